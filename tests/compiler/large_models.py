"""A generated network of many layers: encoder and decoder with skip connections, for measurements of compile and run time."""

import numpy as np
from frontend_models import Graph


def skip_network(g: Graph, *, convolutions: int = 40, channels: int = 16, size: int = 64, quantised: bool = True) -> bytes:
    """Convolutions of 3 x 3 on (N, 3, size, size) with residual sums, three levels of strided convolutions, and back up by Resize and Concat.

    With ``quantised`` a pair of QuantizeLinear and DequantizeLinear stands behind every layer, else the model is float.
    """
    made = 0

    def grid(y: str) -> str:
        return g.qdq(y, 0.5) if quantised else y

    def conv(y: str, inputs: int, outputs: int = channels, stride: int = 1) -> str:
        nonlocal made
        made += 1
        weights = g.constant(g.rng.integers(-1, 2, (outputs, inputs, 3, 3)) * (0.25 / np.sqrt(inputs) if not quantised else 0.125))
        return grid(g.add("Relu", g.add("Conv", y, weights, pads=[1] * 4, strides=[stride] * 2)))

    def block(y: str) -> str:
        return grid(g.add("Add", y, conv(conv(y, channels), channels)))

    y = conv(grid("x"), 3)
    levels = []
    for _ in range(3):
        for _ in range(3):
            y = block(y)
        levels.append(y)
        y = conv(y, channels, stride=2)
    for skip in reversed(levels):
        up = g.add("Resize", block(y), "", g.constant([1.0, 1.0, 2.0, 2.0]), coordinate_transformation_mode="asymmetric")
        y = block(conv(g.add("Concat", up, skip, axis=1), 2 * channels))
    while made < convolutions:
        y = conv(y, channels)
    assert made == convolutions
    return g.model({"x": ("N", 3, size, size)}, {y: None})
