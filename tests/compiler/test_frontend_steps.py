"""Scales of any value: a code of golden differs from an executor's only where its exact value lies within float32 rounding of a step."""

import numpy as np
import pytest
from frontend_models import Graph, run_both

SAMPLES, FEATURES, OUTPUTS = 1000, 40, 9


def _distance(values: np.ndarray, mode: str) -> np.ndarray:
    """From the nearest place where a rounding changes: halves, or integers."""
    shifted = values - 0.5 if mode == "ROUND" else values
    return np.abs(shifted - np.rint(shifted))


@pytest.mark.parametrize(("dialect", "mode"), [
    ("Quant", "ROUND"), ("Quant", "FLOOR"), ("QuantizeLinear", "ROUND"), ("MultiThreshold", "ROUND"), ("MultiThreshold", "FLOOR"),
    ("Round", "ROUND"), ("Round", "FLOOR"),
])  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_inputs_differ_only_at_steps(dialect: str, mode: str, seed: int) -> None:
    g = Graph(seed)
    a, b, c = (np.float32(scale) for scale in g.rng.uniform(0.05, 0.4, 3))
    c *= np.float32(4)
    weights = g.rng.integers(-3, 4, (FEATURES, OUTPUTS))
    x = g.quant("x", a, 0, 5) if dialect == "Quant" else g.qdq("x", a)
    w = g.constant((weights * b).astype(np.float32))
    m = g.add("MatMul", x, w)
    if dialect == "Quant":
        y = g.quant(m, c, 0, 8, mode=mode)
    elif dialect == "QuantizeLinear":
        y = g.qdq(m, c)
    elif dialect == "MultiThreshold":
        edges = (np.arange(-127, 128) - (0.5 if mode == "ROUND" else 0)).astype(np.float64) * c
        table = g.constant(edges.astype(np.float32)[None])
        y = g.add("MultiThreshold", m, table, domain="qonnx.custom_op.general", out_dtype="INT8", data_layout="NC", out_bias=-128.0)
    else:
        y = g.add(
            "Clip", g.add("Round" if mode == "ROUND" else "Floor", g.add("Div", m, g.constant(c))), g.constant(-128.0), g.constant(127.0)
        )
    standard = dialect in ("Round", "QuantizeLinear")
    data = g.model({"x": ("N" if standard else 1, FEATURES)}, {y: None if standard else (1, OUTPUTS)})
    lowered, ours, theirs, feeds = run_both(data, samples=SAMPLES)
    step = float(c) if dialect in ("Quant", "QuantizeLinear") else 1.0
    mine, other = (np.rint(array[y] / step).astype(np.int64) for array in (ours, theirs))
    bound = 16 if dialect == "Quant" else 128
    codes = np.clip(np.rint(feeds["x"] / a), -bound, bound - 1)
    ratio = float(a) * float(b) / float(c)
    exact, size = codes @ weights * ratio, np.abs(codes) @ np.abs(weights) * ratio
    wrong = mine != other
    # Weights, products, sums of 40 terms, the division and the thresholds are rounded once each.
    rounding = (FEATURES + 4) * 2.0**-24 * (size + np.abs(exact)) + 2.0**-24 * 128
    assert (np.abs(mine - other)[wrong] == 1).all()
    assert (_distance(exact, mode)[wrong] <= rounding[wrong]).all()
    assert wrong.mean() < 0.02 and (np.abs(exact) < 127).mean() > 0.3
    assert not lowered.notes
