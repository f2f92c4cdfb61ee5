"""Curved functions, ConvTranspose and Resize on the core itself, in Verilator: every tensor is golden's, and golden's output the witness's."""

import numpy as np
from frontend_models import Graph, run_both

from tritloom.compiler import golden
from tritloom.compiler.ir.program import Copy
from tritloom.compiler.schedule import schedule, sim_parameters
from tritloom.sim.backends import open_backend
from tritloom.sim.compare import compare_tensors, first_difference


def _network() -> bytes:
    g = Graph(11)
    a = g.add("Conv", g.qdq("x"), g.weights(6, 3, 3, 3, low=-1, high=1), strides=[2, 2], pads=[1] * 4)
    a = g.qdq(g.add("Mul", a, g.add("Sigmoid", a)), 0.0571)
    gate = g.qdq(g.add("HardSigmoid", a), 2.0**-8, -128)
    a = g.qdq(g.add("Mul", a, gate), 0.0471)
    up = g.add(
        "ConvTranspose",
        a,
        g.weights(6, 5, 4, 4, low=-1, high=1),
        g.constant(g.rng.integers(-9, 9, 5) * 0.0625),
        strides=[2, 2],
        pads=[1] * 4,
    )
    half = g.add("Mul", up, g.add("Add", g.add("Erf", g.add("Div", up, g.constant(np.sqrt(2)))), g.constant(1.0)))
    up = g.qdq(g.add("Mul", half, g.constant(0.5)), 0.0387, -100)
    grown = g.add("Resize", a, "", g.constant([1.0, 1, 2, 2]), coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    uneven = g.add("Resize", g.qdq(g.add("Elu", up), 0.0387, -90), "", "", g.constant([1, 5, 11, 6], np.int64))
    joined = g.qdq(g.add("Concat", up, g.add("Tanh", grown), axis=1), 0.0423)
    y = g.qdq(g.add("Softplus", g.add("Conv", joined, g.weights(4, 11, 3, 3, low=-1, high=1))), 0.0311, -128)
    z = g.qdq(g.add("Mish", g.add("Conv", uneven, g.weights(2, 5, 2, 2, low=-1, high=1))), 0.0613)
    return g.model({"x": (1, 3, 8, 8)}, {y: None, z: None})


def test_every_tensor_on_the_core_equals_golden() -> None:
    lowered, ours, theirs, feeds = run_both(_network(), samples=3)
    program = lowered.program
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-5, err_msg=name)
        assert len(np.unique(array)) > 15
    steps = [operation.step for operation in program.operations if getattr(operation, "step", None) is not None]  # type: ignore[attr-defined]
    assert all(step.proof.exact for step in steps) and max(step.pieces for step in steps) > 10
    assert sum(isinstance(operation, Copy) for operation in program.operations) == 3
    codes = golden.quantise_inputs(program, feeds)
    with open_backend("verilator", program, schedule(program, sim_parameters(program))) as backend:
        comparisons = compare_tensors(program, golden.run(program, codes), backend.trace(codes), candidate="verilator")
    assert first_difference(comparisons) is None
    assert {comparison.tensor for comparison in comparisons} == set(program.tensors)
