"""QuEST's decoders compiled to integers: golden against ONNX Runtime, the files, what the front end refuses of them."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from decoder_cases import Runner, random_weights, small
from onnx import numpy_helper

import tritloom
from tritloom.compiled import CompiledModel
from tritloom.compiler.golden import Stream
from tritloom.compiler.image import decode_artefact, encode_artefact
from tritloom.compiler.ir.quest import Hadamard, QuantiseByDeviation
from tritloom.errors import ModelError
from tritloom.models.nets.decoder import Decoder
from tritloom.models.nets.decoder_export import decoder_model

ROWS = np.random.default_rng(7).integers(0, 13, (6, 10))


def exported(bits: str, block: str = "llama", rotation: str = "interleaved") -> tuple[onnx.ModelProto, Decoder]:
    """Every head has keys of its own: of the first token two heads that share theirs are equal, half of their rotated channels 0, and float residue decides the codes."""
    decoder = small(block, kv_heads=4, rotation=rotation)
    return decoder_model("small", decoder, random_weights(decoder, bits, 1), {}), decoder


@pytest.mark.parametrize(("bits", "block"), [("1", "llama"), ("1.585", "bitnet"), ("2", "llama"), ("3", "llama"), ("4", "bitnet")])
def test_golden_follows_onnx_runtime(bits, block):
    """A value near the border of two levels may go the other way, and a level is up to 1.6 standard deviations wide: golden may differ in some places, not in most."""
    model, decoder = exported(bits, block)
    runner = Runner(model.SerializeToString(), decoder)
    expected = np.stack([runner.whole(row) for row in ROWS])
    (found,) = tritloom.InferenceSession(tritloom.compile(model.SerializeToString(), context=12)).run(["logits"], {"input_ids": ROWS})
    errors = np.sqrt(((found - expected) ** 2).mean(axis=-1)) / expected.std()
    print(f"{bits} bits: median error {np.median(errors):.4f}, largest {errors.max():.3f} of the logits' deviation")
    assert np.median(errors) < 0.1 and np.sqrt((errors**2).mean()) < 0.3


def test_codes_are_few_and_widths_hold():
    """Of two bits: rotated blocks of 32 and 16 channels, codes of 3 bits, every tensor in its range; the file gives the same integers."""
    model = tritloom.compile(exported("2")[0].SerializeToString(), context=12)
    again = CompiledModel(decode_artefact(encode_artefact(model.artefact), "x"))
    rotations = [operation.size for operation in model.program.operations if isinstance(operation, Hadamard)]
    grids = [operation for operation in model.program.operations if isinstance(operation, QuantiseByDeviation)]
    assert rotations == [32, 32, 32, 16] * 2 and len(grids) == 8 and {grid.levels for grid in grids} == {4}
    streams = Stream(model.program), Stream(again.program)
    for token in ROWS[0]:
        for stream in streams:
            stream.step(np.array([token]))
        for name, array in streams[0].tensors.items():
            tensor = model.program.tensors[name]
            assert tensor.low <= array.min() and array.max() <= tensor.high, name
            np.testing.assert_array_equal(array, streams[1].tensors[name])
        for grid in grids:
            assert set(np.unique(streams[0].tensors[grid.output])) <= {-3, -1, 1, 3}


def _changed(bits: str, change: Callable[[onnx.GraphProto], None]) -> bytes:
    model = exported(bits)[0]
    change(model.graph)
    return model.SerializeToString()


def _node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.output[0] == f"block0.attention_norm.{name}")


def _other_matrix(graph: onnx.GraphProto) -> None:
    """A Hadamard matrix with its rows in another order."""
    tensor = next(tensor for tensor in graph.initializer if tensor.name == "rotation.32_codes")
    tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 1, axis=1), tensor.name))


def _unlike_limits(graph: onnx.GraphProto) -> None:
    _node(graph, "limited").input[1] = "constant.-1.0"
    graph.initializer.append(numpy_helper.from_array(np.float32(-1), "constant.-1.0"))


def _other_unit(graph: onnx.GraphProto) -> None:
    _node(graph, "quantised").input[1] = "block0.attention_norm.deviation"


def _not_odd(graph: onnx.GraphProto) -> None:
    _node(graph, "levels").input[1] = "constant.2.0"


def _not_rounded(graph: onnx.GraphProto) -> None:
    _node(graph, "doubled").input[0] = "block0.attention_norm.levels"


def _other_block(graph: onnx.GraphProto) -> None:
    _node(graph, "units").input[0] = "block0.attention_norm"


@pytest.mark.parametrize(
    "change,message",
    [
        (_other_matrix, r"'block0.attention_norm.sums': its activations are not quantised"),
        (_unlike_limits, r"'block0.attention_norm.limited': .*limited to integers from -127 to 127"),
        (_other_unit, r"'block0.attention_norm.quantised': codes are not multiplied by the unit that they were divided by"),
        (_not_odd, r"'block0.attention_norm.quantised': it is no step of a quantiser by the root mean square"),
        (_not_rounded, r"'block0.attention_norm.quantised': it is no step of a quantiser by the root mean square"),
        (_other_block, r"'block0.attention_norm.units': a norm divides what its mean square was taken of"),
    ],
)
def test_what_is_refused_is_named(change, message):
    with pytest.raises(ModelError, match=message):
        tritloom.compile(_changed("2", change))


def test_eight_bits_are_refused():
    with pytest.raises(ModelError, match="limited to integers from -127 to 127"):
        tritloom.compile(exported("8")[0].SerializeToString())
