"""Damaged files for every reader, each under 5 s of CPU time and 2 GB of memory; only tritloom's own errors may come out.

``python tests/fuzz/fuzz.py --minutes 60 --seed 0`` for a night, ``--inputs 500`` for a bounded run, ``--seed 0 --target onnx --only 17`` for one
input again, ``--file FILE --target onnx`` for a stored one. Input number ``n`` depends on seed, target and ``n`` alone. Exits with 1 when
something was found; what was found lies in ``--findings``, the file and the traceback.
"""

import os

# Threads of BLAS wait by computing: on a busy machine that would count as CPU time of an input.
os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import hashlib
import json
import random
import resource
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from corpus import TARGETS, corpus
from mutate import mutate
from targets import run

CPU_SECONDS = 5.0
MEMORY = 2 << 30
WALL_SECONDS = 120
"""Without an answer; a worker that then waits, instead of being ready to compute on a busy machine, is a finding."""

BATCH = 200
"""Inputs of one worker process."""


@dataclass
class Count:
    """What became of the inputs of one target."""

    accepted: int = 0
    refused: int = 0
    findings: dict[str, list[str]] = field(default_factory=dict)
    """Kind of defect to the inputs that show it."""

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + sum(map(len, self.findings.values()))


def damaged(target: str, files: list[bytes], seed: int, number: int) -> bytes:
    """Input ``number`` of a target."""
    rng = random.Random(f"{seed} {target} {number}")
    return mutate(target, rng.choice(files), files, rng)


def _limit() -> None:
    """This process may take :data:`MEMORY` more than it has."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _attempt(target: str, data: bytes) -> str:
    """``accepted``, ``refused``, or the kind of defect with its traceback, in JSON. A process that takes too long is killed by its timer."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        return json.dumps({"outcome": run(target, data)})
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        inner = next((frame for frame in reversed(frames) if "tests/fuzz" not in frame.filename), frames[-1])
        kind = f"{type(error).__name__} in {Path(inner.filename).name}:{inner.name}"
        return json.dumps({"outcome": kind, "trace": "".join(traceback.format_exception(error))[-6000:]})
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _work(target: str, inputs: list[bytes], first: int, pipe: int) -> None:
    """The child: one line before and one after each input."""
    _limit()
    for offset, data in enumerate(inputs):
        os.write(pipe, f"{first + offset}\n".encode())
        os.write(pipe, _attempt(target, data).encode() + b"\n")


def _computes(process: int) -> bool:
    """Whether a process is computing or could be, if the machine had time for it, or has ended; looked at for a second."""
    states = set()
    for _ in range(20):
        states.add(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0])
        time.sleep(0.05)
    return bool(states & {"R", "D", "Z"})


def examine(target: str, inputs: list[bytes], tell=None) -> list[tuple[str, str]]:
    """Outcome and traceback of each input, every one in a process that has outlived those before it."""
    results: list[tuple[str, str]] = []
    while len(results) < len(inputs):
        start = len(results)
        read, write = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if not child:
            os.close(read)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            try:
                _work(target, inputs[start:], start, write)
            finally:
                os._exit(0)
        os.close(write)
        buffer, begun = b"", False
        silent = False
        while True:
            ready, _, _ = select.select([read], [], [], WALL_SECONDS)
            if not ready and _computes(child):
                continue
            if not ready:
                silent = True
                os.kill(child, signal.SIGKILL)
                break
            part = os.read(read, 1 << 16)
            if not part:
                break
            buffer += part
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                if begun:
                    found = json.loads(line)
                    results.append((found["outcome"], found.get("trace", "")))
                begun = not begun
        os.close(read)
        _, status = os.waitpid(child, 0)
        if begun:
            if silent:
                results.append((f"no answer in {WALL_SECONDS} s", ""))
            elif os.WIFSIGNALED(status):
                name = signal.Signals(os.WTERMSIG(status)).name
                results.append((f"more than {CPU_SECONDS:g} s of CPU time" if name == "SIGPROF" else f"killed by {name}", ""))
            else:
                results.append(("the process ended by itself", ""))
    return results


def _record(count: Count, target: str, label: str, data: bytes, outcome: str, trace: str, folder: Path) -> None:
    if outcome in ("accepted", "refused"):
        setattr(count, outcome, getattr(count, outcome) + 1)
        return
    known = count.findings.setdefault(outcome, [])
    known.append(label)
    if len(known) <= 3:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{target}-{hashlib.sha256(data).hexdigest()[:12]}"
        (folder / f"{name}.bin").write_bytes(data)
        (folder / f"{name}.txt").write_text(f"{outcome}\n{label}\n{trace}")
        print(f"{outcome}: {folder / name}.bin ({label})", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so long")
    parser.add_argument("--inputs", type=int, default=0, help="stop after so many inputs a target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    parser.add_argument("--only", type=int, help="one input by its number")
    parser.add_argument("--file", type=Path, help="one stored input")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    targets = options.target or list(TARGETS)
    counts = {target: Count() for target in targets}
    if options.file is not None:
        data = options.file.read_bytes()
        for outcome, trace in (result for target in targets for result in examine(target, [data])):
            print(outcome, trace, sep="\n")
        return 0
    files = {target: corpus(target) for target in targets}
    if options.only is not None:
        for target in targets:
            data = damaged(target, files[target], options.seed, options.only)
            outcome, trace = examine(target, [data])[0]
            print(target, len(data), outcome, trace, sep="\n")
        return 0
    started, number = time.monotonic(), 0
    while (not options.inputs or number < options.inputs) and (not options.minutes or time.monotonic() - started < 60 * options.minutes):
        size = min(BATCH, options.inputs - number) if options.inputs else BATCH
        for target in targets:
            inputs = [damaged(target, files[target], options.seed, number + offset) for offset in range(size)]
            for offset, (outcome, trace) in enumerate(examine(target, inputs)):
                label = f"--seed {options.seed} --target {target} --only {number + offset}"
                _record(counts[target], target, label, inputs[offset], outcome, trace, options.findings)
        number += size
        if not options.inputs and not options.minutes:
            break
    summary = {
        target: {
            "inputs": c.inputs,
            "accepted": c.accepted,
            "refused": c.refused,
            "findings": {kind: len(at) for kind, at in c.findings.items()},
        }
        for target, c in counts.items()
    }
    print(json.dumps({"seed": options.seed, "seconds": round(time.monotonic() - started), "targets": summary}, indent=1))
    return 1 if any(count.findings for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
