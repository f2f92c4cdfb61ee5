"""Language models as other exporters write them, in golden against ONNX Runtime."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from decoder_cases import Runner, random_weights, small
from decoder_forms import ATTENTIONS, GATES, LAYER_NORMS, NORMS, QUANTISERS, ROTATIONS, Form, Graph, fused, more_inputs

import tritloom
from tritloom.errors import ModelError
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


def _changed(form: str, change: Callable[[Graph, onnx.NodeProto], None]) -> bytes:
    graph = Graph(plain())
    ATTENTIONS[form](graph)
    change(graph, next(node for node in graph.nodes if node.op_type in ("GroupQueryAttention", "Attention", "Expand")))
    return graph.bytes()


def _attribute(name: str, value: float) -> Callable[[Graph, onnx.NodeProto], None]:
    def change(graph: Graph, node: onnx.NodeProto) -> None:
        kept = [entry for entry in node.attribute if entry.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return change


def _hiding(graph: Graph, node: onnx.NodeProto) -> None:
    """A mask that hides the first token from the third on."""
    later = graph.add("Greater", ["total", graph.constant("two.tokens", 2, np.int64)], "hiding.later")
    first = graph.add("Less", ["columns", graph.constant("first", 1, np.int64)], "hiding.first")
    hidden = graph.add("Where", [graph.add("And", [later, first], "hiding"), "masked", "constant.0.0"], "hiding.mask")
    node.input[3] = graph.add("Add", ["mask", hidden], "hiding.whole")


def _wrong_length(graph: Graph, node: onnx.NodeProto) -> None:
    node.input[5] = graph.add("Unsqueeze", ["gqa.total", "gqa.axis"], "gqa.wrong")


def _wide(graph: Graph, node: onnx.NodeProto) -> None:
    """Keys repeated along the tokens."""
    wide = next(other for other in graph.nodes if "repeat.wide" in other.output)
    wide.input[:] = [wide.input[0], wide.input[1], wide.input[2], "repeat.2", wide.input[4]]


@pytest.mark.parametrize(
    "form,change,message",
    [
        ("GroupQueryAttention", _attribute("softcap", 5.0), "its attribute softcap is not read"),
        ("GroupQueryAttention", _attribute("local_window_size", 2), "its attribute local_window_size is not read"),
        ("GroupQueryAttention", _attribute("kv_cache_bit_width", 4), "its attribute kv_cache_bit_width is not read"),
        ("GroupQueryAttention", _attribute("scale", -0.5), "its scale must be above 0, not -0.5"),
        ("GroupQueryAttention", _wrong_length, "its length of the keys must be the number of earlier tokens"),
        ("Attention", _attribute("softcap", 5.0), "its attribute softcap is not read"),
        ("Attention of heads, with a mask", _hiding, "the mask of a single token must hide nothing"),
        ("Attention behind Concat", _attribute("is_causal", 1), "it would leave a token only the first of them"),
        ("repeated keys", _wide, "repeats more than the heads of a cache"),
    ],
)
def test_what_is_refused_is_named(form, change, message):
    with pytest.raises(ModelError, match=message):
        golden(_changed(form, change))


def test_neutral_attributes_change_nothing():
    np.testing.assert_array_equal(
        golden(_changed("GroupQueryAttention", _attribute("local_window_size", -1))), golden(written(ATTENTIONS["GroupQueryAttention"]))
    )
