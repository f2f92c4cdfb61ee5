"""How often float models keep their top class without retraining, on random inputs that made no grid and chose no code.

::

    python docs/benchmarks/float_agreement.py three_layer.onnx conv1d.onnx ...

Calibrates on 256 inputs and compares 2000 others with ONNX Runtime (100 where an input has more than 10 000 numbers), standard normal ones and ones
from 0 to 1. The class is the largest entry along axis 1, so that an image of scores counts pixel by pixel.
"""

import sys
from pathlib import Path

import numpy as np
import onnx

import tritloom
from tritloom.sim.witness import run_witness

SETTINGS = {
    "3 planes, nearest codes": {"planes": 3, "compensation": False},
    "3 planes": {"planes": 3},
    "6 planes": {"planes": 6},
}
KINDS = {"normal": lambda rng, shape: rng.normal(size=shape), "0 to 1": lambda rng, shape: rng.random(shape)}


def inputs(model: onnx.ModelProto, kind: str, count: int, seed: int) -> dict[str, np.ndarray]:
    """At most ``count`` random inputs by name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    rng = np.random.default_rng(seed)
    found = {}
    for value in model.graph.input:
        if value.name not in constants:
            shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim][1:]
            rows = count if np.prod(shape) <= 10_000 else min(count, 100)
            found[value.name] = KINDS[kind](rng, (rows, *shape)).astype(np.float32)
    return found


def main() -> None:
    print(f"| model | inputs | {' | '.join(SETTINGS)} |\n| --- | --- |{' --- |' * len(SETTINGS)}")
    for path in sys.argv[1:]:
        data = Path(path).read_bytes()
        model = onnx.ModelProto.FromString(data)
        for kind in KINDS:
            judged = inputs(model, kind, 2000, 1)
            (expected,) = run_witness(data, judged).values()
            shares = []
            for options in SETTINGS.values():
                compiled = tritloom.compile(data, calibration=inputs(model, kind, 256, 2), method="planes", name=Path(path).stem, **options)
                (found,) = tritloom.InferenceSession(compiled).run(None, judged)
                shares.append(f"{np.mean(np.asarray(found).argmax(axis=1) == expected.argmax(axis=1)):.1%}")
            print(f"| {Path(path).stem} | {kind} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
