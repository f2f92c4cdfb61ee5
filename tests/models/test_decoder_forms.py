"""Language models as other exporters write them, in golden against ONNX Runtime."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from decoder_cases import Runner, random_weights, small
from decoder_forms import ATTENTIONS, GATES, LAYER_NORMS, NORMS, QUANTISERS, ROTATIONS, Form, Graph, fused, more_inputs

import tritloom
from tritloom.models.nets.decoder import Decoder
from tritloom.models.nets.decoder_export import decoder_model

TOKENS = np.random.default_rng(7).integers(0, 13, 12)


def shape(block: str = "llama") -> Decoder:
    """ONNX Runtime rotates heads of 16 channels and more in its attention; two heads of queries share a key."""
    return replace(small(block), width=64)


def plain(block: str = "llama") -> onnx.ModelProto:
    return decoder_model("small", shape(block), random_weights(shape(block), "ternary", 3), {})


def written(form: Form, block: str = "llama", opset: int = 23) -> bytes:
    graph = Graph(plain(block))
    form(graph)
    return graph.bytes(opset)


def golden(model: bytes) -> np.ndarray:
    return tritloom.InferenceSession(tritloom.compile(model, context=12)).run(["logits"], {"input_ids": TOKENS[None]})[0][0]


def follows(model: bytes, block: str = "llama", within: float = 0.04) -> None:
    """The witness computes other logits than for a model of another norm, gate or order of heads by far more than golden's rounding."""
    expected = Runner(model, shape(block)).whole(TOKENS)
    error = np.sqrt(((golden(model) - expected) ** 2).mean()) / expected.std()
    print(f"rms error {error:.4f} of the logits' deviation")
    assert error < within


@pytest.mark.parametrize("form", NORMS)
def test_norms(form):
    follows(written(NORMS[form]))


@pytest.mark.parametrize("form", LAYER_NORMS)
def test_layer_norms(form):
    follows(written(LAYER_NORMS[form], "drna"), "drna")


@pytest.mark.parametrize("form", ROTATIONS)
def test_rotary_positions(form):
    follows(written(ROTATIONS[form]))


@pytest.mark.parametrize("form", GATES)
def test_gates(form):
    follows(written(GATES[form], opset=24 if "Swish" in form else 23))


@pytest.mark.parametrize("form", QUANTISERS)
def test_quantisers(form):
    follows(written(QUANTISERS[form]))


@pytest.mark.parametrize("form", ATTENTIONS)
def test_attention(form):
    follows(written(ATTENTIONS[form]))


def test_layers_that_are_split():
    follows(written(fused))


def test_positions_and_mask_as_inputs():
    model = written(more_inputs)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    past = {value.name: np.zeros((1, 2, 0, 16), np.float32) for value in session.get_inputs() if value.name.startswith("past")}
    feeds = {"input_ids": TOKENS[None].astype(np.int32), "attention_mask": np.ones((1, 12), np.int64), "position_ids": np.arange(12)[None]}
    expected = np.asarray(session.run(["logits"], {**feeds, **past})[0])[0]
    assert np.sqrt(((golden(model) - expected) ** 2).mean()) < 0.04 * expected.std()
