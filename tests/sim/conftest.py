"""One small network with everything in it, scheduled for a small core of odd shape, and a core in NumPy behind real frames."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tritloom.compiler import golden
from tritloom.compiler.frontend import lower
from tritloom.compiler.image import Artefact, write_artefact
from tritloom.compiler.schedule import memory_needs
from tritloom.compiler.schedule import schedule as make_schedule
from tritloom.hw.arch.link import ERROR_OPCODE, MAX_DATA, REPLY, ErrorCode, Frame, FrameReader, LinkOpcode, Space, State, encode
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.model import CoreModel

DIGEST = bytes(range(8, 16))


def _model_bytes() -> bytes:
    """A 3x3 stride-2 convolution, groups, residual add, concat, both pools, dense head; no size is a multiple of the array."""
    random = np.random.default_rng(11)
    nodes, constants = [], []

    def constant(name, *shape):
        values = random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))

    node("Conv", ["x", constant("w1", 5, 3, 3, 3)], "conv_in", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    node("Relu", ["conv_in"], "relu_in")
    node("Conv", ["relu_in", constant("w2", 5, 1, 3, 3)], "conv_groups", kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=5)
    node("Add", ["relu_in", "conv_groups"], "residual")
    node("Conv", ["residual", constant("w3", 7, 5, 1, 1)], "conv_point")
    node("Concat", ["residual", "conv_point"], "joined", axis=1)
    node("MaxPool", ["joined"], "pool_max", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    node("AveragePool", ["pool_max"], "pool_average", kernel_shape=[2, 2], strides=[1, 1])
    node("Flatten", ["pool_average"], "flat")
    node("Gemm", ["flat", constant("w4", 3, 24), constant("b4", 3)], "y", transB=1)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 9, 7])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])]
    graph = helper.make_graph(nodes, "mixed", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="session")
def model_bytes():
    return _model_bytes()


@pytest.fixture(scope="session")
def program(model_bytes):
    samples = np.random.default_rng(1).normal(size=(16, 3, 9, 7)).astype(np.float32)
    return lower(model_bytes, name="mixed", calibration={"x": samples}).program


@pytest.fixture(scope="session")
def schedule(program):
    """On 8 x 6 columns and two lanes, with memories that are just large enough."""
    needs = memory_needs(program, rows=8, columns=6, weight_encoding="trit2", post_lanes=2)
    parameters = CoreParameters(
        rows=8,
        columns=6,
        post_lanes=2,
        accumulator_bits=needs.accumulator_bits,
        weight_words=needs.weight_words,
        activation_words=needs.activation_words,
        record_words=needs.record_words,
        program_words=needs.program_words,
    )
    return make_schedule(program, parameters)


@pytest.fixture(scope="session")
def codes(program):
    """Three samples of input codes: random ones, and the extremes of the range."""
    (spec,) = program.inputs
    tensor = program.tensors[spec.tensor]
    drawn = golden.quantise_inputs(program, golden.random_feeds(program, 3, 5))[spec.tensor]
    drawn[1] = np.where(np.arange(tensor.elements).reshape(tensor.shape) % 2, tensor.low, tensor.high)
    return {spec.tensor: drawn}


@pytest.fixture(scope="session")
def expected(program, codes):
    return golden.run(program, codes)


@pytest.fixture(scope="session")
def artefact_path(tmp_path_factory, model_bytes, program, schedule):
    path = tmp_path_factory.mktemp("artefact") / "mixed.loom"
    write_artefact(path, Artefact(source=model_bytes, program=program, schedules={"sim": schedule}, settings={}))
    return path


class ModelTransport:
    """:class:`CoreModel` behind the frames of the link, with room for faults.

    ``spoil(frame, reply)`` gets each request and the bytes of its answer, and returns what arrives at the host instead.
    """

    def __init__(self, parameters, spoil=None):
        self.model = CoreModel(parameters)
        self.requests = []
        self.runs = 0
        self.paused = 0
        self.closed = False
        self._artefact = bytes(8)
        self._spoil = spoil or (lambda frame, reply: reply)
        self._reader = FrameReader()

    def exchange(self, data, *, timeout):
        reply, damaged = b"", self._reader.damaged
        for frame in self._reader.feed(data):
            self.requests.append(frame)
            reply += self._spoil(frame, encode(self._execute(frame)))
        if self._reader.damaged > damaged:
            reply += encode(Frame(0, ERROR_OPCODE, bytes([ErrorCode.CRC])))
        return reply

    def pause(self, clocks):
        self.paused += clocks

    def close(self):
        self.closed = True

    def _execute(self, frame):
        model, data = self.model, frame.data
        answer = b""
        match frame.opcode:
            case LinkOpcode.IDENTITY:
                answer = model.parameters.digest + self._artefact
            case LinkOpcode.STATUS:
                answer = bytes([model.state, model.fault]) + model.pc.to_bytes(2, "little") + model.cycles.to_bytes(8, "little")
            case LinkOpcode.WRITE:
                assert len(data) <= MAX_DATA
                model.write(Space(data[0]), int.from_bytes(data[1:5], "little"), data[5:])
                if data[0] == Space.ARTEFACT:
                    self._artefact = data[5:]
            case LinkOpcode.READ:
                answer = model.read(int.from_bytes(data[1:5], "little"), int.from_bytes(data[5:], "little"))
            case LinkOpcode.START:
                if model.state == State.RUNNING:
                    return Frame(frame.sequence, ERROR_OPCODE, bytes([ErrorCode.BUSY]))
                self.runs += 1
                model.run(int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little"), clear=bool(data[4]))
            case LinkOpcode.ABORT:
                model.state = State.IDLE
            case _:
                return Frame(frame.sequence, ERROR_OPCODE, bytes([ErrorCode.OPCODE]))
        return Frame(frame.sequence, frame.opcode | REPLY, answer)


@pytest.fixture
def model_transport():
    return ModelTransport
