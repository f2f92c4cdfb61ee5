"""Artefacts of programs that no core can run: what is written is read, what does not fit together is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from frontend_models import Graph
from test_image import refused, sealed

from tritloom.boards import fit, get_board
from tritloom.compiler import golden
from tritloom.compiler.frontend import lower
from tritloom.compiler.image import Artefact, decode_artefact, encode_artefact
from tritloom.compiler.image.archive import unpack
from tritloom.compiler.ir import Convolution, GoldenOperation, Program, Softmax, Window, obstacles
from tritloom.compiler.schedule import memory_needs, schedule, sim_parameters
from tritloom.errors import ModelError


def program() -> Program:
    """Every operation that only golden can do; a mask before the Softmax."""
    g = Graph(2)
    x = g.qdq("x", 0.25, 3)
    n = g.qdq(g.add("LayerNormalization", x, g.constant(np.ones(4))), 1 / 16)
    scores = g.qdq(g.add("MatMul", n, g.add("Transpose", x, perm=[0, 2, 1])), 1.0)
    p = g.qdq(g.add("Softmax", g.add("Add", scores, g.constant(np.triu(np.full((6, 6), -1e9), 1))), axis=-1), 1 / 256)
    y = g.add("Mul", g.qdq(g.add("MatMul", p, x), 0.25), x)
    return lower(g.model({"x": ("N", 6, 4)}, {g.qdq(y, 2.0): ("N", 6, 4)}, opset=17), name="net").program


PROGRAM = program()
REASON = {"unscheduled": obstacles(PROGRAM)[0]}
ENTRIES = unpack(encode_artefact(Artefact(source=b"model", program=PROGRAM, schedules={}, settings=REASON)), "x")


def test_every_field_survives() -> None:
    data = encode_artefact(Artefact(source=b"model", program=PROGRAM, schedules={}, settings=REASON))
    after = decode_artefact(data, "x.loom")
    assert after.schedules == {} and after.settings == REASON
    assert encode_artefact(after) == data
    assert {type(operation).__name__ for operation in PROGRAM.operations} >= {"Product", "MatrixProduct", "Normalise", "Softmax"}
    for before, read in zip(PROGRAM.operations, after.program.operations, strict=True):
        assert repr(before) == repr(read)
        if isinstance(before, Softmax) and isinstance(read, Softmax):
            assert before.mask is not None and read.mask is not None
            np.testing.assert_array_equal(before.mask, read.mask)
            np.testing.assert_array_equal(before.powers, read.powers)
    feeds = golden.quantise_inputs(PROGRAM, golden.random_feeds(PROGRAM, 3, seed=1))
    for name, codes in golden.run(PROGRAM, feeds).items():
        np.testing.assert_array_equal(golden.run(after.program, feeds)[name], codes)


def test_no_core_takes_it() -> None:
    sentence = r"^layer 'node_layernormalization_2' \(Normalise\) cannot run on a core yet: it has no square root and no division; run the model in golden"
    for attempt in (lambda: memory_needs(PROGRAM, rows=8, columns=8, weight_encoding="trit2"), lambda: sim_parameters(PROGRAM)):
        with pytest.raises(ModelError, match=sentence):
            attempt()
    g = Graph()
    # Nor does a board say first that the model is too large for it.
    large = Convolution(
        name="large", output="y", input=PROGRAM.inputs[0].tensor, weights=np.broadcast_to(np.int16(1), (4096, 4096, 1, 1)), planes=1, window=Window(),
        step=None, acc_low=0, acc_high=0,
    )  # fmt: skip
    output = replace(PROGRAM.tensors[large.input], name="y", shape=(4096, 1, 6))
    with pytest.raises(ModelError, match=sentence):
        fit(get_board("icebreaker"), replace(PROGRAM, operations=(*PROGRAM.operations, large), tensors={**PROGRAM.tensors, "y": output}))
    plain = lower(g.model({"x": ("N", 4)}, {g.add("MatMul", g.qdq("x"), g.weights(4, 4)): None}), name="net").program
    core = sim_parameters(plain)
    with pytest.raises(ModelError, match=sentence):
        schedule(PROGRAM, core)
    other = encode_artefact(Artefact(source=b"", program=plain, schedules={"sim": schedule(plain, core)}))
    stolen = {name: content for name, content in unpack(other, "x").items() if name.startswith("schedules/")}
    refused(sealed({**ENTRIES, **stolen}), "schedule 'sim': layer 'node_layernormalization_2'")


def layer(value: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(operation for operation in value["operations"] if operation["type"] == kind)


@pytest.mark.parametrize(("change", "match"), [
    (lambda p: layer(p, "Product").update(left="nowhere"), "reads a tensor before it is made"),
    (lambda p: layer(p, "Product").update(left=layer(p, "Softmax")["output"]), "multiplies tensors of unlike shapes"),
    (lambda p: layer(p, "Product").update(left_zero=256), "left_zero"),
    (lambda p: layer(p, "Product").update(step=None), "writes accumulators into a tensor of codes"),
    (lambda p: layer(p, "MatrixProduct").update(output=layer(p, "Normalise")["input"]), "writes a tensor that exists already"),
    (lambda p: p["operations"][-3].update(right=layer(p, "Normalise")["output"]), "matrices that do not fit"),
    (lambda p: layer(p, "MatrixProduct").update(acc_low=1, acc_high=0), "empty accumulator range"),
    (lambda p: layer(p, "Normalise").update(groups=3), "has 3 groups"),
    (lambda p: layer(p, "Normalise").update(fraction=31), "fraction"),
    (lambda p: layer(p, "Normalise").update(epsilon=(1 << 62) - 1), "needs more than 62 bits"),
    (lambda p: layer(p, "Normalise").update(epsilon=-1), "epsilon"),
    (lambda p: layer(p, "Normalise").update(centre=1), "centre"),
    (lambda p: layer(p, "Softmax")["powers"].update(dtype="<i8"), "is not of dtype"),
    (lambda p: layer(p, "Softmax").update(powers=layer(p, "Softmax")["mask"]), "powers are not a list of integers of 24 bits"),
    (lambda p: layer(p, "Softmax").update(mask=layer(p, "Softmax")["powers"]), "mask is not a 3-dimensional array"),
    (lambda p: layer(p, "Softmax").update(input=layer(p, "Normalise")["output"]), "has an output of another shape"),
    (lambda p: next(t for t in p["tensors"] if t["name"] == layer(p, "Softmax")["input"]).update(low=-127), "powers"),
])  # fmt: skip
def test_programs_that_do_not_fit_together_are_refused(change: Callable[[dict], None], match: str) -> None:
    value = json.loads(ENTRIES["program.json"])
    change(value)
    refused(sealed({**ENTRIES, "program.json": json.dumps(value).encode()}), match)


def test_a_mask_must_leave_something_of_every_pixel() -> None:
    value = json.loads(ENTRIES["program.json"])
    name = layer(value, "Softmax")["mask"]["array"]
    damaged = ENTRIES[name][:-36] + bytes(36)
    refused(sealed({**ENTRIES, name: damaged}), "leaves out all of a pixel")
    refused(sealed({**ENTRIES, name: ENTRIES[name][:-1] + b"\x02"}), "array of 0 and 1")


def test_golden_only_operations_have_obstacles() -> None:
    """Whatever the vector unit has no instructions for."""
    kinds, waiting = [], [GoldenOperation]
    while waiting:
        below = (kind := waiting.pop()).__subclasses__()
        waiting += below
        kinds += [] if below else [kind]
    assert {kind.__name__ for kind in kinds if kind.obstacle} == {"MatrixProduct", "Normalise", "Product", "Softmax"}
    there = {kind.__name__ for kind in kinds if not kind.obstacle}
    assert there >= {
        "Align", "Attend", "BlockProduct", "BlockSum", "ClampedSum", "Curve", "Hadamard", "Lookup", "Loop", "Magnitude", "Norm", "Position", "Prepend", "Quantise",
        "QuantiseByDeviation", "Rectify", "Reduce", "Rotate", "Store", "Turn", "View",
    }  # fmt: skip
