"""Small models with ONNX ``Loop`` nodes: recursive networks with random weights, rings, and loops written by hand. Needs no PyTorch."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from tritloom.models.methods.ring import random_ring
from tritloom.models.nets.loops import Scope, State, model_of, typed
from tritloom.models.nets.recursion import Preset, RecursiveShape
from tritloom.models.nets.recursive_export import random_weights, recursive_model
from tritloom.models.nets.ring_export import ring_model

SHAPE = RecursiveShape.of(Preset(16, prefix=2, heads=0, multiple=8, n=2, cycles=2, supervision=4), 9, 4)


def recursive(seed: int = 0, shape: RecursiveShape = SHAPE, halt_bias: float = 0.0, spread: int = 2048) -> bytes:
    """A Tiny Recursive Model with random trits, heads that say something, and first states of the standard deviation ``spread`` in steps of their grid."""
    weights = random_weights(shape, seed=seed, halt_bias=halt_bias, spread=spread)
    return recursive_model("recursive", shape, weights, metadata={}).SerializeToString()


def ring(seed: int = 0, ticks: int = 16) -> bytes:
    """A ring of random trits with three inputs and three outputs."""
    return ring_model("ring", random_ring(3, 3, m=5, seed=seed), ticks, metadata={}).SerializeToString()


def counting(limit: int, start: int, kind: int = TensorProto.INT8) -> onnx.ModelProto:
    """``x`` (1, 3) becomes ``sign(x - 1)`` up to ``limit`` times, as long as its largest element was above ``start``: ``last``, and ``trips`` int64."""
    root = Scope()
    one, bound = root.constant("one", np.int32(1)), root.constant("bound", np.int32(start))

    def body(scope: Scope, number: str, states: list[str]) -> tuple[str, list[str]]:
        wide = scope.node("Cast", [states[0]], "wide", to=TensorProto.INT32)
        floor = scope.node("Sign", [scope.node("Sub", [wide, one], "less")], "sign")
        more = scope.node("Greater", [scope.node("ReduceMax", [wide], "most", keepdims=0), bound], "more")
        count = scope.node("Add", [number, scope.constant("step", np.int64(1))], "count")
        return more, [scope.node("Cast", [floor], "next", to=kind), count]

    states = [State("x", "x", (1, 3), kind), State("trips", root.constant("no_trips", np.int64(0)), (), TensorProto.INT64)]
    last, trips = root.loop("turn", limit, states, body)
    outputs = {"last": (last, kind, (1, 3)), "trips": (trips, TensorProto.INT64, ())}
    return model_of(root, "counting", typed(["x"], [(kind, (1, 3))]), outputs, {})


def in_onnx_runtime(data: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of each sample alone, one behind the other; a single number becomes an element."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    count = len(next(iter(feeds.values())))
    runs = [session.run(None, {name: array[sample : sample + 1] for name, array in feeds.items()}) for sample in range(count)]
    return [np.concatenate([np.atleast_1d(run[place]) for run in runs]) for place in range(len(runs[0]))]
