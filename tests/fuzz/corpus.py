"""Small whole files that the mutations start from: ONNX models of every dialect, ``.loom`` and ``.npz`` files."""

import io
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1] / "compiler"))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from decoder_cases import random_weights, small
from decoder_forms import ATTENTIONS, GATES, NORMS, ROTATIONS, Form, fused
from decoder_forms import Graph as Forms
from frontend_models import Graph
from loop_cases import recursive, ring

from tritloom.compiled import compile
from tritloom.compiler.image import encode_artefact
from tritloom.models.nets.decoder_export import decoder_model

__all__ = ["TARGETS", "corpus"]

TARGETS = ("onnx", "loom", "npz", "toml")


def _convolutions() -> bytes:
    """QDQ: convolutions with pads, groups and strides, pools, a sum, a joint, Gemm."""
    g = Graph()
    x = g.qdq("x")
    a = g.qdq(g.add("Relu", g.add("Conv", x, g.weights(4, 2, 3, 3), g.constant(np.arange(4.0)), pads=[1, 1, 1, 1])), 0.5)
    b = g.qdq(g.add("Conv", a, g.weights(4, 2, 3, 3), group=2, pads=[1, 1, 1, 1], strides=[1, 1]), 0.5)
    c = g.qdq(g.add("Add", a, b), 0.5)
    pooled = g.add("MaxPool", c, kernel_shape=[2, 2], strides=[2, 2])
    mean = g.qdq(g.add("AveragePool", c, kernel_shape=[2, 2], strides=[2, 2]), 0.5)
    joined = g.add("Concat", pooled, mean, axis=1)
    flat = g.add("Reshape", joined, g.constant([0, -1], np.int64))
    y = g.add("Softmax", g.add("Gemm", flat, g.weights(3, 72), g.constant(np.ones(3)), transB=1))
    return g.model({"x": ("N", 2, 6, 6)}, {y: None})


def _qonnx() -> bytes:
    """QONNX: quantised weights, bipolar values, LeakyRelu, Trunc, batch normalisation."""
    g = Graph()
    x = g.quant("x", 0.125, bits=8)
    w = g.quant(g.constant(g.rng.normal(size=(3, 2, 2, 2))), 0.25, bits=2, narrow=1)
    ones, spread = g.constant(np.ones(3)), g.constant([0.5, 1.0, 2.0])
    a = g.add("BatchNormalization", g.add("Conv", x, w), spread, ones, ones, ones)
    b = g.quant(g.add("LeakyRelu", a, alpha=0.25), 0.5, bits=4, mode="FLOOR")
    bipolar = g.add("BipolarQuant", g.add("Flatten", b), g.constant(1.0), domain="qonnx.custom_op.general")
    y = g.quant(g.add("MatMul", bipolar, g.constant(np.sign(g.rng.normal(size=(27, 4))))), 1.0, bits=6)
    return g.model({"x": (1, 2, 4, 4)}, {y: (1, 4)})


def _float() -> bytes:
    """Float layers that need calibration, with shapes computed inside the graph."""
    g = Graph()
    a = g.add("Relu", g.add("MatMul", "x", g.constant(g.rng.normal(size=(6, 5)))))
    size = g.add("Gather", g.add("Shape", a), g.constant(0, np.int64), axis=0)
    target = g.add("Concat", g.add("Unsqueeze", size, g.constant([0], np.int64)), g.constant([5, 1], np.int64), axis=0)
    b = g.add("Transpose", g.add("Reshape", a, target), perm=[0, 2, 1])
    scaled = g.add("Mul", g.add("Sub", b, g.constant(0.5)), g.constant(np.linspace(0.5, 2, 5)))
    y = g.add("Sigmoid", g.add("MatMul", scaled, g.constant(g.rng.normal(size=(5, 3)))))
    return g.model({"x": ("N", 6)}, {y: ("N", 1, 3)})


def _moves() -> bytes:
    """Slices, splits, pads, reductions and constants that are folded."""
    g = Graph()
    x = g.qdq("x", zero=3, dtype=np.uint8)
    lists = [g.constant(values, np.int64) for values in ([1], [4], [2], [0, 0, 1, 0, 0, 1])]
    a = g.add("Pad", g.add("Slice", x, *lists[:3]), lists[3])
    y = g.add("ReduceMean", g.add("Clip", a, g.constant(-1.0), g.constant(2.0)), g.constant([2], np.int64), keepdims=0)
    w = g.add("Mul", g.add("Cast", g.constant([[1, -1, 0]] * 5, np.int8), to=TensorProto.FLOAT), g.constant(0.5))
    return g.model(
        {"x": (1, 5, 3)},
        {
            g.qdq(
                g.add(
                    "MatMul",
                    g.qdq(y, 0.5),
                    g.add("Slice", w, g.constant([0], np.int64), g.constant([2], np.int64), g.constant([1], np.int64)),
                ),
                0.5,
            ): None
        },
    )


def _nested() -> bytes:
    """Functions, subgraphs, sparse and external tensors, text: what the front end refuses, in whole form."""
    g = Graph()
    inner = helper.make_graph([helper.make_node("Relu", ["h"], ["r"])], "branch", [], [helper.make_tensor_value_info("r", 1, None)])
    h = g.add("Own", g.add("MatMul", g.qdq("x"), g.weights(3, 3)), output="h", domain="own")
    y = g.add("If", g.constant(True, np.bool_), then_branch=inner, else_branch=inner)
    t = helper.make_node("Constant", [], ["text"], value_strings=["a", "b"])
    g.nodes.append(t)
    model = onnx.load_from_string(g.model({"x": (1, 3)}, {g.qdq(h): None, y: None}))
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "Own", ["a"], ["b"], body, [helper.make_opsetid("", 21)]))
    model.metadata_props.add(key="author", value="nobody")
    external = numpy_helper.from_array(np.ones(3, np.float32), "elsewhere")
    external.ClearField("raw_data")
    external.data_location = TensorProto.DEFAULT
    external.raw_data = np.ones(3, np.float32).tobytes()
    model.graph.initializer.append(external)
    return model.SerializeToString()


def _decoder(block: str, kind: str = "ternary", *forms: Form) -> bytes:
    """A language model with a cache of 12 tokens: written-out quantisers, rotations, attention, states; ``forms`` of other exporters."""
    decoder = small(block, context=12)
    model = decoder_model("decoder", decoder, random_weights(decoder, kind, 0), {})
    if not forms:
        return model.SerializeToString()
    graph = Forms(model)
    for form in forms:
        form(graph)
    return graph.bytes()


def _arrays() -> list[bytes]:
    rng = np.random.default_rng(0)
    files = []
    for options in ({"x": rng.normal(size=(3, 6))}, {"a": np.arange(5, dtype=np.int8), "b": np.asfortranarray(rng.normal(size=(2, 3, 4)))}):
        for save in (np.savez, np.savez_compressed):
            stream = io.BytesIO()
            save(stream, **options)
            files.append(stream.getvalue())
    return files


def _tables() -> list[bytes]:
    """Layers of ``compile``, and settings of ``train`` for each kind of network."""
    texts = [
        '[conv1]\nplanes = 3\n\n["/head/Gemm"]\nmethod = "twn"\n\n["a \\u00e9 b"]\nmethod = "planes"\nplanes = 2\n',
        'method = "twn"\nnet = "cnn"\nchannels = [4, 8]\npooled = [1]\nepochs = 3\nshift = 0.5\nlearning_rate = 1e-3\n',
        'method = "bitnet"\nnet = "mlp"\ndata = "digits"\nseed = 1\nhidden = [16, 16]\n',
        'method = "evolve"\nnet = "layered"\nseed = 2\n',
        'method = "bitnet"\nnet = "trm-sudoku4"\nseed = 3\n',
        'method = "bitnet"\nnet = "bitnet"\ndata = "text"\n',
    ]
    return [text.encode() for text in texts]


def corpus(target: str) -> list[bytes]:
    """Whole files for one of :data:`TARGETS`, the same ones each time."""
    if target == "toml":
        return _tables()
    if target == "npz":
        return _arrays()
    decoders = [
        _decoder("bitnet"),
        _decoder("drna"),
        _decoder("llama", "2"),
        _decoder("llama", "ternary", fused, NORMS["Pow, Div"], ROTATIONS["Slice"], GATES["Gelu by Erf"], ATTENTIONS["repeated keys"]),
        _decoder("llama", "ternary", NORMS["SkipSimplifiedLayerNormalization"], ATTENTIONS["GroupQueryAttention"]),
    ]
    loops = [ring(ticks=3), recursive()]
    models = [_convolutions(), _qonnx(), _float(), _moves(), *decoders, *loops, _nested()]
    if target == "onnx":
        return models
    samples = {"x": np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)}
    compiled = [compile(models[0], name="net"), compile(models[1], name="net"), compile(models[2], name="net", calibration=samples)]
    compiled += [compile(model, name="net") for model in (*decoders[:3], *loops)]
    return [encode_artefact(model.artefact) for model in compiled]
