"""ONNX files of evolved rings: one ``Loop`` of ticks on int8 states; needs no PyTorch.

``bits`` int8 (1, inputs) of -1 and 1 goes to ``answer`` int8 (1, outputs), 0 for unknown, and ``ticks`` int64 (), the number of ticks taken. Everything is an integer: a tick is a
``MatMulInteger`` and a ``Sign``. The loop ends when nothing changes, when every output is known, or after the most ticks allowed, as
:meth:`tritloom.models.methods.ring.Ring.run` does.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto

from tritloom.models.methods.ring import Ring
from tritloom.models.nets.loops import Scope, State, model_of, typed

__all__ = ["INPUT", "OUTPUTS", "ring_model"]

INPUT, OUTPUTS = "bits", ("answer", "ticks")


def ring_model(name: str, ring: Ring, ticks: int, *, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The model, with ``metadata`` in the given order. The same arguments give the same bytes."""
    neurons, inputs, outputs = len(ring.roles), ring.inputs(), ring.outputs()
    places = np.full(neurons, len(inputs), np.int64)
    places[inputs] = np.arange(len(inputs))
    root = Scope()
    matrix = root.constant("matrix", ring.dense().T.astype(np.int8))
    read = root.constant("outputs", outputs.astype(np.int64))
    zero = root.constant("zero", np.int32(0))

    def tick(scope: Scope, number: str, states: list[str]) -> tuple[str, list[str]]:
        sums = scope.node("MatMulInteger", [states[0], matrix], "tick.sums")
        after = scope.node("Sign", [sums], "tick.signs")
        before = scope.node("Cast", [states[0]], "tick.before", to=TensorProto.INT32)
        distance = scope.node("Abs", [scope.node("Sub", [after, before], "tick.difference")], "tick.distance")
        changes = scope.node("Greater", [scope.node("ReduceMax", [distance], "tick.most", keepdims=0), zero], "tick.changes")
        known = scope.node("Abs", [scope.node("Gather", [after, read], "tick.read", axis=1)], "tick.known")
        unknown = scope.node(
            "Not",
            [scope.node("Greater", [scope.node("ReduceMin", [known], "tick.least", keepdims=0), zero], "tick.all_known")],
            "tick.unknown",
        )
        goes_on = scope.node("And", [changes, unknown], "tick.goes_on")
        count = scope.node("Add", [number, scope.constant("one", np.int64(1))], "tick.count")
        return goes_on, [scope.node("Cast", [after], "tick.states", to=TensorProto.INT8), count]

    padded = root.node("Concat", [INPUT, root.constant("nothing", np.zeros((1, 1), np.int8))], "padded", axis=1)
    start = root.node("Gather", [padded, root.constant("places", places)], "start", axis=1)
    last, count = root.loop(
        "tick",
        ticks,
        [
            State("states", start, (1, neurons), TensorProto.INT8),
            State("ticks", root.constant("no_ticks", np.int64(0)), (), TensorProto.INT64),
        ],
        tick,
    )
    answer = root.node("Gather", [last, read], "read", axis=1)
    found = {"answer": (answer, TensorProto.INT8, (1, len(outputs))), "ticks": (count, TensorProto.INT64, ())}
    return model_of(root, name, typed([INPUT], [(TensorProto.INT8, (1, len(inputs)))]), found, metadata)
