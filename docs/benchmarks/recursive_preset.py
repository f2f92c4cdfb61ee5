"""Writes a Tiny Recursive Model of a preset with random weights, to see what one of its size takes.

::

    python docs/benchmarks/recursive_preset.py trm-mlp OUT.onnx [CELLS SYMBOLS]

81 cells of 11 symbols if not given, those of a Sudoku of 9 x 9: trm-mlp then has 5.0 million parameters and takes 205 G multiply-accumulates a puzzle.
"""

import sys
from pathlib import Path

from tritloom.models.nets.recursion import PRESETS, RecursiveShape
from tritloom.models.nets.recursive_export import random_weights, recursive_model


def main() -> None:
    preset, target, *sizes = sys.argv[1:]
    cells, symbols = map(int, sizes or ("81", "11"))
    shape = RecursiveShape.of(PRESETS[preset], cells, symbols)
    model = recursive_model(Path(target).stem, shape, random_weights(shape, seed=0), metadata={})
    Path(target).write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
