"""Compares a compiled recursive network with its float model on held-out puzzles, cell by cell.

::

    python docs/benchmarks/recursion_agreement.py MODEL.onnx [DATA]

The puzzles are those that training held out with seed 0 (DATA: sudoku4, the default, or sudoku9). Printed are the puzzles that ONNX Runtime and golden
solve, every cell right, how many answers and numbers of supervision steps are the same, and the difference of the logits over their standard deviation.
"""

import sys
from pathlib import Path
from time import monotonic

import numpy as np
import onnxruntime

import tritloom
from tritloom.models.data.puzzles import load_puzzles


def main() -> None:
    source = Path(sys.argv[1]).read_bytes()
    found = load_puzzles(sys.argv[2] if len(sys.argv) > 2 else "sudoku4", count=1, seed=0)
    given, wanted = found.test, found.test_answers
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    runs = [session.run(["logits", "halt", "steps"], {"puzzle": row[None]}) for row in given]
    floats, halts, steps = (np.concatenate([np.asarray(run[place]).reshape(1, -1) for run in runs]) for place in range(3))
    floats = floats.reshape(len(given), given.shape[1], -1)
    begun = monotonic()
    logits, halt, taken = tritloom.InferenceSession(source).run(["logits", "halt", "steps"], {"puzzle": given})
    seconds = monotonic() - begun
    answers = [values.argmax(-1) for values in (floats, logits)]
    solved = [int((answer == wanted).all(-1).sum()) for answer in answers]
    same = int((answers[0] == answers[1]).all(-1).sum())
    print(f"{len(given)} puzzles: ONNX Runtime solves {solved[0]}, golden {solved[1]}; the same answer for {same}")
    alike = steps.ravel() == taken
    print(f"the same number of steps for {int(alike.sum())}; {steps.mean():.3f} and {taken.mean():.3f} steps a puzzle")
    difference = np.sqrt(((floats - logits)[alike] ** 2).mean()) / floats.std()
    print(
        f"where they are the same logits differ by {difference:.2%} of their deviation, halt by at most {np.abs(halts.ravel() - halt)[alike].max():.3f}"
    )
    print(f"golden: {len(given) / seconds:.1f} puzzles a second")


if __name__ == "__main__":
    main()
