"""One sample on the native core with waves: what to look at when a tensor is wrong."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tritloom.boards.host import Host
from tritloom.compiler import golden
from tritloom.compiler.ir.program import Program
from tritloom.compiler.schedule import Schedule
from tritloom.sim.compare import Difference, compare_tensors, first_difference
from tritloom.sim.verilator import VerilatorCore

__all__ = ["record_sample"]

_STALLS = 0.2


def record_sample(
    program: Program,
    schedule: Schedule,
    codes: Mapping[str, np.ndarray],
    dump: Path,
    *,
    seed: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Difference | None:
    """Run one sample, tensor name -> codes (1, C, H, W), layer by layer with random stalls; ``dump`` is a VCD file of all but the loading.

    Returns the first difference from golden. Raises like :class:`VerilatorCore`.
    """
    core = VerilatorCore(schedule.parameters, stalls=_STALLS, seed=seed, waves=dump, progress=progress)
    try:
        host = Host(core)
        core.record(False)
        host.load(schedule)
        core.record(True)
        tensors, _ = host.trace(schedule, program, {name: values[0] for name, values in codes.items()})
    finally:
        core.close()
    expected = golden.trace(program, dict(codes))
    got = {name: values if values.ndim == 4 else values[None] for name, values in tensors.items()}
    return first_difference(compare_tensors(program, expected, got, candidate="verilator"))
