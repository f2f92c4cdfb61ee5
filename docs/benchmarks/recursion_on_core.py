"""Lets the simulated core solve held-out puzzles by itself, and compares what it leaves with golden.

::

    python docs/benchmarks/recursion_on_core.py MODEL.onnx [COUNT]

Of the puzzles that training held out with seed 0, COUNT (20 if not given) are taken: those that take golden most supervision steps, up to a third, and the
first of the others. Each runs from START to HALT without a stop. Printed are the integers of the outputs that differ from golden's, the steps, whether the
clock counter shows what the schedule says for that many steps, and the clocks of all of them.
"""

import sys
from pathlib import Path

import numpy as np

import tritloom
from tritloom.compiler import golden
from tritloom.models.data.puzzles import load_puzzles


def main() -> None:
    model = tritloom.compile(Path(sys.argv[1]))
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    given = load_puzzles("sudoku4", count=1, seed=0).test
    (taken,) = tritloom.InferenceSession(model).run(["steps"], {"puzzle": given})
    slow = np.argsort(-taken, kind="stable")[: count // 3]
    chosen = np.sort(np.concatenate([slow, np.setdiff1d(np.arange(len(given)), slow)[: count - len(slow)]]))
    session, schedule = tritloom.InferenceSession(model, providers=["verilator"]), model.schedule()
    names = [spec.name for spec in model.program.outputs]
    loop = model.program.producer(next(spec.tensor for spec in model.program.outputs if spec.name == "steps"))[0].name
    differing, values, clocks, steps = 0, 0, 0, []
    for place, puzzle in enumerate(given[chosen], start=1):
        codes = golden.quantise_inputs(model.program, {"puzzle": puzzle[None]})
        tensors = golden.run(model.program, codes, keep=[spec.tensor for spec in model.program.outputs])
        expected = golden.dequantise_outputs(model.program, tensors)
        found = session.run(names, {"puzzle": puzzle[None]})
        differing += sum(int((ours != expected[name]).sum()) for name, ours in zip(names, found, strict=True))
        values += sum(ours.size for ours in found)
        steps.append(int(expected["steps"].item()))
        right = session.last_cycles == schedule.cycles_of({loop: steps[-1]})
        clocks += session.last_cycles or 0
        print(
            f"puzzle {place} of {count}: {steps[-1]} steps, {session.last_cycles} clocks{'' if right else ', not what the schedule says'}",
            flush=True,
        )
    print(
        f"{count} puzzles, {sum(steps)} steps: {differing} of {values} output values differ from golden's; {clocks} clocks, {clocks // count} a puzzle"
    )


if __name__ == "__main__":
    main()
