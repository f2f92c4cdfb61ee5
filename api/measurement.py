"""How busy the array is, and how fast simulation, compiler and golden model are."""

import itertools
import time
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import onnxruntime

from tritloom.boards import fit, get_board
from tritloom.boards.benchmark import Row
from tritloom.boards.host import Host
from tritloom.compiled import compile
from tritloom.compiler import golden
from tritloom.compiler.ir.program import Convolution, HostOp, InputSpec, OutputSpec, Program, Proof, StepFunction, Tensor, Window
from tritloom.compiler.schedule import Schedule, memory_needs, schedule
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.record import START_MIN, Record
from tritloom.sim.backends import CoreBackend, GoldenBackend

__all__ = ["speed_rows", "utilisation_rows"]

UTILISATION = "of peak"
_ROWS = _COLUMNS = 32
_LANES = 16
_SAMPLES = 200
_GOLDEN_SAMPLES = 10_000


def _network(name: str, shapes: list[tuple[int, int, int]], kernel: tuple[int, int]) -> Program:
    """Ternary layers from each shape (channels, rows, columns) to the next, of random weights, with a clamp behind them."""
    rng = np.random.default_rng(0)
    padding = kernel[0] // 2
    window = Window(kernel=kernel, pads=(padding, padding, padding, padding))
    tensors = {
        f"t{index}": Tensor(name=f"t{index}", shape=shape, bits=8, low=-128, high=127, scale=(Fraction(1),))
        for index, shape in enumerate(shapes)
    }
    clamp = (Record(start=START_MIN, multiplier=1, bias=0, shift=4),)
    layers = []
    for index, (before, after) in enumerate(itertools.pairwise(shapes)):
        weights = rng.integers(-1, 2, (after[0], before[0], *kernel)).astype(np.int16)
        bound = int(weights[0].size) * 128
        step = StepFunction(records=(clamp,) * after[0], low=-128, high=127, proof=Proof(exact=True, reachable=1))
        layers.append(
            Convolution(
                name=f"layer{index}", input=f"t{index}", output=f"t{index + 1}", weights=weights, planes=1, window=window, step=step,
                acc_low=-bound, acc_high=bound,
            )
        )  # fmt: skip
    quantise = HostOp(kind="Quantize", attributes={"scale": 1.0, "zero_point": 0})
    given = InputSpec(name="x", shape=("N", *shapes[0]), dtype="float32", tensor="t0", prologue=(quantise,))
    last = f"t{len(shapes) - 1}"
    result = OutputSpec(name="y", shape=("N", *shapes[-1]), dtype="float32", tensor=last, epilogue=(HostOp(kind="Dequantize"),))
    return Program(name=name, tensors=tensors, operations=tuple(layers), inputs=(given,), outputs=(result,))


def _convolution() -> Program:
    return _network("convolution", [(32, 16, 16), (32, 16, 16)], (3, 3))


def _batch(*sizes: int, samples: int) -> Program:
    """A dense network whose samples are the rows of an image: each layer goes over all of them before the next one begins."""
    return _network("dense", [(size, samples, 1) for size in sizes], (1, 1))


def _plan(program: Program) -> Schedule:
    needs = memory_needs(program, rows=_ROWS, columns=_COLUMNS, weight_encoding="trit2", post_lanes=_LANES)
    core = CoreParameters(
        rows=_ROWS, columns=_COLUMNS, post_lanes=_LANES, accumulator_bits=max(24, needs.accumulator_bits), weight_words=needs.weight_words,
        activation_words=needs.activation_words, record_words=needs.record_words, program_words=needs.program_words,
    )  # fmt: skip
    return schedule(program, core)


def utilisation_rows(name: str, model: Program) -> Iterator[Row]:
    """Share of what an array of 32 x 32 with 16 post lanes could do that whole inferences use, by the exact cycle model.

    ``model`` is the packaged network called ``name``.
    """
    programs = [
        ("convolution 3 x 3, 32 to 32, 16 x 16", _convolution(), 0.95),
        (name, model, 0.75),
        ("dense 784-64-64-64-10, 16 samples at once", _batch(784, 64, 64, 64, 10, samples=16), 0.85),
    ]
    for title, program, goal in programs:
        plan = _plan(program)
        figure = round(plan.macs / (plan.parameters.macs_per_cycle * plan.cycles), 4)
        yield Row(
            name=title,
            figure=figure,
            unit=UTILISATION,
            goal=goal,
            floor=1.0,
            higher=True,
            compared=f"{plan.cycles} clocks{', samples as rows of an image' if program.name == 'dense' else ''}",
        )
    board, program = get_board("ulx3s-25f"), _batch(64, 64, 10, samples=1)
    plan = schedule(program, fit(board, program))
    # Goal: 4 microseconds at the board's typical clock.
    compared = f"{plan.cycles / board.typical_mhz:.2f} us at {board.typical_mhz:g} MHz, core fitted to {board.name}"
    yield Row(name="dense 64-64-10, 1 sample", figure=plan.cycles, unit="clocks", goal=4 * board.typical_mhz, floor=5, compared=compared)


def speed_rows(name: str, source: bytes, *, progress: Callable[[str], None]) -> Iterator[Row]:
    """Simulation of a network on the core of the board ``sim``, its compilation, and golden on 10 000 samples beside ONNX Runtime.

    ``source`` is an ONNX model of standard operators. Figures are wall times of this machine, of the second run where the first one builds something.
    Raises :class:`MissingToolError` without a C++ compiler.
    """
    from tritloom.sim.amaranth import AmaranthCore, contents_of
    from tritloom.sim.verilator import VerilatorCore

    progress("compiler")
    compile(source)
    start = time.perf_counter()
    model = compile(source)
    yield Row(name=f"compile {name}", figure=round(time.perf_counter() - start, 2), unit="seconds", goal=2, guarded=False)

    program, plan = model.program, model.schedule("sim")
    feeds = golden.random_feeds(program, _GOLDEN_SAMPLES, 0)
    codes = golden.quantise_inputs(program, feeds)
    speeds = {}
    cores = {
        "verilator": (VerilatorCore(plan.parameters, progress=progress), _SAMPLES),
        "amaranth": (AmaranthCore(plan.parameters, contents=contents_of(plan)), 1),
    }
    for simulator, (core, samples) in cores.items():
        host = Host(core)
        if simulator == "verilator":
            host.load(plan, bytes.fromhex(model.digest))
        with CoreBackend(simulator, host, program, plan) as backend:
            progress(f"{simulator}: {samples} samples")
            before, start = core.clocks, time.perf_counter()
            backend.run({tensor: values[:samples] for tensor, values in codes.items()})
            speeds[simulator] = (core.clocks - before) / (time.perf_counter() - start)
    verilator, amaranth = speeds["verilator"], speeds["amaranth"]
    yield Row(name=f"Verilator, 16 x 16, {name}", figure=round(verilator), unit="clocks a second", goal=300_000, higher=True, guarded=False)
    compared = f"{amaranth:.0f} clocks a second there, same run"
    yield Row(
        name="Verilator over Amaranth's simulator", figure=round(verilator / amaranth), unit="times", goal=500, higher=True, compared=compared, guarded=False
    )  # fmt: skip

    progress(f"golden and ONNX Runtime: {_GOLDEN_SAMPLES} samples")
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    times = []
    for run in (lambda: GoldenBackend(program, plan).run(golden.quantise_inputs(program, feeds)), lambda: session.run(None, feeds)):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    ours, theirs = times
    compared = f"{ours:.2f} s and {theirs:.2f} s, same run"
    name = f"golden over ONNX Runtime, {_GOLDEN_SAMPLES} samples"
    yield Row(name=name, figure=round(ours / theirs, 2), unit="times", goal=2, compared=compared, guarded=False)
