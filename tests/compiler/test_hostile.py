"""Models made to mislead: what leads out of the file, what claims more than it has, what never ends. One sentence for each."""

import io
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from frontend_models import Graph
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tritloom.compiled import CompiledModel, compile
from tritloom.compiler.frontend import check, lower
from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.settings import Settings
from tritloom.compiler.image import decode_artefact, encode_artefact
from tritloom.compiler.ir.program import HostOp, Tensor
from tritloom.errors import ModelError, UserError
from tritloom.files import read_arrays
from tritloom.session import InferenceSession
from tritloom.sim.witness import run_witness


def _model(change: Callable[[onnx.ModelProto], None] | None = None) -> bytes:
    """Input (1, 6), one dense layer, initializer ``constant_2`` its int8 weights."""
    g = Graph()
    y = g.qdq(g.add("MatMul", g.qdq("x"), g.weights(6, 4)), 0.5)
    model = onnx.load_from_string(g.model({"x": (1, 6)}, {y: None}))
    if change is not None:
        change(model)
    return model.SerializeToString()


def _refused(data: bytes, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        lower(data, name="net")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    try:
        assert not check(data, name="net").supported
    except ModelError as error:
        assert str(error) == str(caught.value)


def _field(number: int, payload: bytes) -> bytes:
    """A message inside another, in protobuf's own bytes: its Python library does not make all that it can be given."""
    size, length = b"", len(payload)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + payload


# ---- files beside the model ---------------------------------------------------------------------------------------------


def _elsewhere(location: str, shape: tuple[int, ...] = (6, 4)) -> TensorProto:
    tensor = TensorProto(name="secret", data_type=TensorProto.INT8, dims=shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def _initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    tensor.name = "constant_2"
    model.graph.initializer[2].CopyFrom(tensor)


def _constant_node(model: onnx.ModelProto, tensor: TensorProto) -> None:
    del model.graph.initializer[2]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["constant_2"], value=tensor))


def _sparse(model: onnx.ModelProto, tensor: TensorProto) -> None:
    indices = numpy_helper.from_array(np.arange(24), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [24]))


def _branch(model: onnx.ModelProto, tensor: TensorProto) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["secret"], ["r"])], "b", [], [helper.make_empty_tensor_value_info("r")], [tensor]
    )
    outer = helper.make_graph(
        [helper.make_node("If", ["c"], ["r2"], then_branch=inner, else_branch=inner)], "o", [], [helper.make_empty_tensor_value_info("r2")]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    model.graph.node.append(helper.make_node("If", ["c"], ["r3"], then_branch=outer, else_branch=outer))


def _function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    body = [helper.make_node("Constant", [], ["b"], value=tensor)]
    model.functions.append(helper.make_function("own", "Secret", ["a"], ["b"], body, [helper.make_opsetid("", 21)]))


def _list_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node[0].attribute.append(AttributeProto(name="extra", type=AttributeProto.TENSORS, tensors=[tensor]))


@pytest.mark.parametrize("place", [_initializer, _constant_node, _sparse, _branch, _function, _list_attribute])
@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd", "sub/../../weights.bin", ""])
def test_no_tensor_is_read_from_another_file(place: Callable, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    for folder in (tmp_path, tmp_path / "here"):
        (folder / "weights.bin").write_bytes(bytes(24))
    monkeypatch.chdir(tmp_path / "here")
    data = _model(lambda model: place(model, _elsewhere(location)))
    _refused(data, r"^net keeps tensor '(secret|constant_2)' in another file; save the model with its weights inside one file$")
    with pytest.raises(ModelError, match="in another file"):
        run_witness(data, {"x": np.zeros((1, 6))})


def test_a_location_without_the_flag_that_says_so_is_refused_too() -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[2].external_data.add(key="location", value="/etc/passwd")

    _refused(_model(change), "in another file")


# ---- claims, cycles, names ----------------------------------------------------------------------------------------------


def _nested(depth: int) -> bytes:
    """A node whose attribute holds a graph with a node whose attribute holds ..."""
    node = b""
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["r"], name="deep").SerializeToString() + _field(
            5, _field(1, b"then_branch") + _field(6, _field(1, node))
        )
    return _model() + _field(7, _field(1, node))


def _weights(name: str, value: object) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[2]
        if name == "dims":
            tensor.dims[:] = value  # type: ignore[index]
        else:
            setattr(tensor, name, value)

    return change


def _input_sizes(*sizes: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes))

    return change


def _scale(value: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(value), model.graph.initializer[0].name))

    return change


def _text_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.output[0].name


def _two_of_one_name(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["x"], [model.graph.output[0].name]))


def _name(text: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[2].name = text

    return change


CASES: dict[str, tuple[bytes, str]] = {
    "2 GB of weights": (_model(_weights("dims", [1 << 31])), "not a valid ONNX model"),
    "weights beyond 64 bits": (_model(_weights("dims", [1 << 62, 1 << 62])), "not a valid ONNX model"),
    "negative weights": (_model(_weights("dims", [-6, -4])), "not a valid ONNX model"),
    "no weights": (_model(_weights("raw_data", b"")), "not a valid ONNX model|damaged"),
    "unknown type": (_model(_weights("data_type", 99)), "not a valid ONNX model"),
    "text as weights": (_model(_weights("data_type", TensorProto.STRING)), "not a valid ONNX model|node"),
    "input of 2 GB": (_model(_input_sizes(1, 1 << 29, 4)), "elements a sample"),
    "input of 50 M": (_model(_input_sizes(1, 127, 6, 65535)), r"more than 16777216 elements a sample; give smaller sizes with --shape"),
    "input beyond 64 bits": (_model(_input_sizes(1, 1 << 62, 1 << 62)), "elements a sample"),
    "negative input": (_model(_input_sizes(1, -6)), "must be a fixed number"),
    "batch of 2 G": (
        _model(_input_sizes((1 << 31) - 1, 6)),
        "declares a batch of 2147483647; export the model with a batch of 1 or a free one$",
    ),
    "negative batch": (_model(_input_sizes(-2, 6)), "declares a batch of -2"),
    "empty input": (_model(_input_sizes(1, 0)), "must be a fixed number"),
    "scale nan": (_model(_scale(np.nan)), "not a positive finite number"),
    "scale infinite": (_model(_scale(np.inf)), "not a positive finite number"),
    "scale negative": (_model(_scale(-0.5)), "not a positive finite number"),
    "text as output": (_model(_text_output), r"is declared as STRING; declare it as float32, as exporters do$"),
    "one output twice": (
        _model(lambda model: model.graph.output.append(model.graph.output[0])),
        r"lists graph output '.*' twice; list it once$",
    ),
    "cycle": (_model(_cycle), "topologically sorted"),
    "two of one name": (_model(_two_of_one_name), "single static assignment"),
    "endless name": (_model(_name("n" * 100_000)), r"has a name of 100000 characters, more than 2000: 'n{40}'\.\.\.$"),
    "endless axis": (
        _model(lambda model: model.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_param", "n" * 5000)),
        "name of 5000 characters",
    ),
    "name with a line break": (_model(_name("a\nb")), r"control characters: 'a\\nb'; rename it$"),
    "name that clears the screen": (_model(_name("\x1b[2J")), "control characters"),
    "20 subgraphs in each other": (_nested(20), r"^net is not a valid ONNX model: "),
    "1000 subgraphs in each other": (_nested(1000), r"^net is not an ONNX model, or it is damaged"),
}


@pytest.mark.parametrize("name", CASES)
def test_models_that_claim_what_cannot_be(name: str) -> None:
    _refused(*CASES[name])


@pytest.mark.parametrize("batch", [-1, (1 << 62)])
def test_an_output_whose_batch_is_no_size_has_a_free_one(batch: int) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info(model.graph.output[0].name, TensorProto.FLOAT, [batch, 4]))

    model = compile(_model(change), name="net")
    assert decode_artefact(encode_artefact(model.artefact), "x.loom").program.outputs[0].shape == (1, 4)


def test_a_frame_around_65536_equal_channels_is_looked_at_once() -> None:
    g = Graph()
    framed = g.add("Clip", g.add("Pad", g.qdq("x"), g.constant([0, 0, 1, 0, 0, 1], np.int64)), g.constant(-1.0), g.constant(2.0))
    data = g.model({"x": (1, 1 << 16, 3)}, {g.qdq(g.add("ReduceMean", framed, g.constant([2], np.int64), keepdims=0), 0.5): None})
    started = time.process_time()
    assert check(data).supported
    assert time.process_time() - started < 5


def test_a_chain_of_ten_thousand_nodes_is_refused_where_exact_numbers_would_grow_without_end() -> None:
    g = Graph()
    x = g.qdq("x")
    for _ in range(10_000):
        x = g.add("Relu", x)
    data = g.model({"x": (1, 6)}, {g.qdq(g.add("MatMul", x, g.weights(6, 4))): None})
    with pytest.raises(
        ModelError, match=r"^net: node 'node_relu_258': more than 256 elementwise operators follow each other; put a quantiser"
    ):
        lower(data, name="net")


def test_more_nodes_than_any_network_has() -> None:
    model = onnx.load_from_string(_model())
    node = helper.make_node("Identity", ["x"], [""]).SerializeToString()
    _refused(model.SerializeToString() + _field(7, _field(1, node) * 100_001), "more than 100000 nodes$")


# ---- compiled models ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    return compile(_model(), name="net")


def _quantise(**changes: object) -> HostOp:
    attributes = {
        "axis": 1,
        "low": -128,
        "high": 127,
        "rounding": "half_even",
        "bipolar": False,
        "clip_first": False,
        "offset": 0,
        **changes,
    }
    return HostOp(kind="Quantize", constants={"scale": np.array(0.25), "zero_point": np.array(0)}, attributes=attributes)


BACK = HostOp(kind="Dequantize", constants={"scale": np.array(0.5), "zero_point": np.array(0)})
BAD_STEPS: dict[str, tuple[tuple[HostOp, ...], tuple[HostOp, ...], str]] = {
    "axis of no number": ((_quantise(axis=None),), (BACK,), "step Quantize cannot be computed"),
    "axis beyond": ((_quantise(axis=7),), (BACK,), "step Quantize cannot be computed"),
    "wide codes": ((_quantise(high=300),), (BACK,), "codes beyond 8 bits"),
    "no such rounding": ((_quantise(rounding="up"),), (BACK,), "unknown rounding"),
    "scale of nothing": ((replace(_quantise(), constants={"scale": np.array(0.0)}),), (BACK,), "not a positive number"),
    "scale for others": ((replace(_quantise(), constants={"scale": np.ones(5)}),), (BACK,), "not one constant, or one a channel"),
    "two quantisers": ((_quantise(), HostOp(kind="Add", constants={"B": np.array(1.0)}), _quantise()), (), ""),
    "other shape": ((HostOp(kind="Reshape", attributes={"shape": (7,)}), _quantise()), (BACK,), "step Reshape cannot be computed"),
    "fewer elements": ((HostOp(kind="Gather", constants={"index": np.arange(2)}), _quantise()), (BACK,), "gives 2 codes for 6"),
    "index beyond": ((HostOp(kind="Gather", constants={"index": np.full(6, 99)}), _quantise()), (BACK,), "step Gather cannot be computed"),
    "frame of 4 GB": (
        (HostOp(kind="Pad", constants={"value": np.array(0)}, attributes={"pads": ((0, 1 << 32),)}), _quantise()),
        (BACK,),
        "pads too much",
    ),
    "table of 4 TB": (
        (_quantise(),),
        (BACK, HostOp(kind="Add", constants={"B": np.ones((1 << 12, 1 << 12, 1))})),
        "makes too large an array",
    ),
    "no constant": ((_quantise(),), (HostOp(kind="Mul"),), "step Mul cannot be computed"),
    "axis of the batch": ((_quantise(),), (BACK, HostOp(kind="Transpose", attributes={"perm": (1, 0)})), "does not keep the batch"),
    "other count": ((_quantise(),), (BACK, HostOp(kind="Gather", constants={"index": np.arange(3)})), "for 3 elements"),
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_host_steps_that_cannot_be_computed_are_refused_when_the_file_is_read(name: str, compiled: CompiledModel) -> None:
    prologue, epilogue, words = BAD_STEPS[name]
    given, result = compiled.program.inputs[0], compiled.program.outputs[0]
    program = replace(
        compiled.program, inputs=(replace(given, prologue=prologue),), outputs=(replace(result, epilogue=epilogue or (BACK,)),)
    )
    data = encode_artefact(replace(compiled.artefact, program=program))
    if not words:
        decode_artefact(data, "x.loom")
        return
    with pytest.raises(ModelError, match=words) as caught:
        decode_artefact(data, "x.loom")
    assert "\n" not in str(caught.value)


def test_a_compiled_model_whose_source_is_damaged_or_leads_elsewhere(compiled: CompiledModel) -> None:
    for source, words in (
        (b"damaged", "is not an ONNX model"),
        (_model(lambda m: _initializer(m, _elsewhere("/etc/passwd"))), "in another file"),
    ):
        model = CompiledModel.load(encode_artefact(replace(compiled.artefact, source=source)))
        with pytest.raises(
            ModelError, match=f"^the ONNX model inside the compiled one {words}|^the ONNX model inside the compiled one keeps tensor"
        ):
            InferenceSession(model).run(None, {"x": np.zeros((1, 6), np.float32)})


# ---- arrays -------------------------------------------------------------------------------------------------------------


def test_an_array_file_that_unfolds_without_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (300 << 20,)})  # type: ignore[arg-type]
        for _ in range(300):
            member.write(bytes(1 << 20))
    with pytest.raises(
        UserError, match=r"would unfold from \d+ to 3145\d+ bytes, which arrays of samples do not; write it with numpy.savez"
    ):
        read_arrays(path)


def test_member_names_of_an_array_file_are_only_names(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.arange(3))
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.npy", stream.getvalue())
    assert list(read_arrays(path)) == ["../../evil"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(("zero", "sound"), [(1 << 40, True), (-(1 << 40), True), ((1 << 40) + 1, False), (-(1 << 40) - 1, False)])
def test_zero_points_that_no_file_could_hold_are_refused(zero, sound) -> None:
    builder = Builder(settings=Settings(), grid_of=lambda value, bits: (Fraction(1), 0), dry=True)
    tensor = Tensor(name="t", shape=(1, 1, 1), bits=8, low=-128, high=127, scale=(Fraction(1),), zero_point=(zero,))
    if sound:
        assert builder.add(tensor) is tensor
        return
    with pytest.raises(RefusalError, match=r"^the zero point of 't' would be beyond 1099511627776"):
        builder.add(tensor)


def test_a_constant_branch_that_cannot_be_written_down_is_refused(monkeypatch) -> None:
    def damaged(node):
        raise onnx_ir.serde.SerdeError("no such type")

    g = Graph()
    y = g.add("Add", "x", g.add("Sin", g.constant(1.0)))
    data = g.model({"x": (1, 6)}, {y: None})
    monkeypatch.setattr("tritloom.compiler.frontend.execution.onnx_ir.to_proto", damaged)
    assert [problem.reason for problem in check(data).problems] == ["what it holds is damaged"]
