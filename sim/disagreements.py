"""Where the outside witness disagrees with golden, and why: the value that it rounded, and how far that lies from a step of the quantiser.

The witness sums in float32 and golden computes exactly, so that codes may differ where a value lies within float32's rounding of a step. A
difference spreads to all layers behind it. Each differing sample is therefore traced to the first tensor whose codes differ, and the elements that
differ there are listed with the witness's own value in front of the quantiser.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from math import floor, prod

import numpy as np
import onnx

from tritloom.compiler.frontend.reader import CUSTOM_DOMAINS, parse_proto
from tritloom.compiler.ir.program import Program, Tensor
from tritloom.errors import ModelError
from tritloom.sim.witness import run_witness

__all__ = ["MOST_LISTED", "MOST_TRACED", "Disagreement", "trace_disagreements"]

MOST_LISTED = 1000
"""Elements that are listed."""

MOST_TRACED = 64
"""Samples that are traced."""

_ROUNDING = 2
"""Codes that rounding to the other side makes: one, or two between those of a bipolar quantiser."""

_WHOLE_STEPS = ("FLOOR", "CEIL", "UP", "DOWN")


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """One element of the first tensor that differs in a sample.

    ``position`` is the witness's value in front of the quantiser in units of codes, ``distance`` how far the nearest step between the two
    codes is from it; both are ``None`` where the model shows no quantiser for the tensor.
    """

    layer: str
    tensor: str
    sample: int
    index: tuple[int, int, int]
    golden: int
    witness: int
    position: float | None
    distance: float | None

    def __str__(self) -> str:
        channel, row, column = self.index
        where = f"layer {self.layer!r}, tensor {self.tensor!r}, sample {self.sample}, channel {channel}, row {row}, column {column}"
        codes = f"{where}: golden {self.golden}, witness {self.witness}"
        if self.position is None:
            return codes
        return f"{codes}; the witness rounded {self.position:.9g} codes, {self.distance:.2g} of a code from the step between them"

    def to_json(self) -> dict[str, object]:
        """The fields that ``verify --json`` prints."""
        return {**asdict(self), "index": list(self.index)}


@dataclass(frozen=True)
class _Quantiser:
    """The real values in front of a quantiser and behind it, and where its steps lie: at halves (0.5), whole codes (0.0), or the real 0 (``None``)."""

    before: str
    behind: str
    fraction: float | None


def _quantisers(model: onnx.ModelProto) -> dict[str, _Quantiser]:
    """Quantisers by the name of the real value behind them, and of the codes where these have one."""
    makers = {output: node for node in model.graph.node for output in node.output}
    found = {}
    for node in model.graph.node:
        if node.domain in CUSTOM_DOMAINS and node.op_type in ("Quant", "IntQuant", "BipolarQuant"):
            mode = next((attribute.s.decode() for attribute in node.attribute if attribute.name == "rounding_mode"), "ROUND").upper()
            fraction = None if node.op_type == "BipolarQuant" else 0.0 if mode in _WHOLE_STEPS else 0.5
            found[node.output[0]] = _Quantiser(node.input[0], node.output[0], fraction)
        elif node.op_type == "DequantizeLinear":
            maker = makers.get(node.input[0])
            if maker is not None and maker.op_type == "Clip":
                maker = makers.get(maker.input[0])
            if maker is not None and maker.op_type == "QuantizeLinear":
                for name in (node.output[0], node.input[0], maker.output[0]):
                    found[name] = _Quantiser(maker.input[0], node.output[0], 0.5)
    return found


def trace_disagreements(
    program: Program, source: bytes, feeds: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], samples: Sequence[int]
) -> list[Disagreement]:
    """What lies behind the codes that differ in ``samples``, at most :data:`MOST_LISTED` elements of at most :data:`MOST_TRACED` samples.

    ``feeds`` are what the witness was given, ``expected`` golden's tensors (N, C, H, W). Empty where the witness does not show the tensors.
    """
    quantisers = _quantisers(parse_proto(source, "the model"))
    shown = list(dict.fromkeys(operation.output for operation in program.operations if operation.output in quantisers))
    picked = list(samples)[:MOST_TRACED]
    names = list(dict.fromkeys(name for key in shown for name in (quantisers[key].behind, quantisers[key].before)))
    if not names or not picked:
        return []
    try:
        found = run_witness(source, {name: np.asarray(array)[picked] for name, array in feeds.items()}, outputs=names)
    except ModelError:  # an executor may refuse to show an inner value; the comparison of the outputs stands without
        return []
    listed: list[Disagreement] = []
    left = dict(enumerate(picked))
    for name in shown:
        tensor, quantiser = program.tensors[name], quantisers[name]
        ours = expected[name][picked].reshape(len(picked), -1).astype(np.int64)
        real, before = (np.asarray(found[key], np.float64) for key in (quantiser.behind, quantiser.before))
        scale, zero = _grid(tensor)
        orders = list(_orders(real.shape, tensor.shape))
        if not orders or not left:
            continue
        rows = list(left)
        codes_of = [np.rint(order(real) / scale + zero).astype(np.int64) for order in orders]
        differing = [np.count_nonzero(codes[rows] != ours[rows]) for codes in codes_of]
        best = int(np.argmin(differing))
        theirs = codes_of[best]
        if 2 * differing[best] > ours[rows].size and np.abs(theirs[rows] - ours[rows]).max() > _ROUNDING:
            continue  # an order of elements that no permutation of axes makes
        positions = None if before.shape != real.shape else orders[best](before) / scale + zero
        layer = program.producer(name)[-1].name
        for row in [row for row in left if (theirs[row] != ours[row]).any()]:
            sample = left.pop(row)
            for element in np.flatnonzero(theirs[row] != ours[row]).tolist():
                position = None if positions is None else float(positions[row, element])
                codes = int(ours[row, element]), int(theirs[row, element])
                channel, line, column = (int(part) for part in np.unravel_index(element, tensor.shape))
                listed.append(
                    Disagreement(
                        layer=layer, tensor=name, sample=sample, index=(channel, line, column), golden=codes[0], witness=codes[1], position=position,
                        distance=None if position is None else _distance(position, codes, quantiser.fraction, float(zero[element])),
                    )
                )  # fmt: skip
                if len(listed) == MOST_LISTED:
                    return listed
    return listed


def _orders(shape: Sequence[int], wanted: Sequence[int]) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Ways from the witness's array (N, ...) to golden's elements (N, C * H * W): golden may hold them in one row, or the channels first where the model
    has them last. The model's own order comes first.
    """
    if prod(shape[1:]) != prod(wanted):
        return
    yield lambda array: array.reshape(len(array), -1)
    long = [axis for axis in range(1, len(shape)) if shape[axis] > 1]
    short = [axis for axis in range(1, len(shape)) if shape[axis] == 1]
    sizes = [size for size in wanted if size > 1]
    if len(long) == len(sizes):
        for order in permutations(long):
            if [shape[axis] for axis in order] == sizes and list(order) != long:
                yield lambda array, order=order: array.transpose(0, *order, *short).reshape(len(array), -1)


def _grid(tensor: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of every element, flat."""
    pixels = tensor.shape[1] * tensor.shape[2]

    def spread(values: Sequence[float]) -> np.ndarray:
        return np.repeat(np.broadcast_to(np.array(values, np.float64), (tensor.shape[0],)), pixels)

    return spread([float(scale) for scale in tensor.scale]), spread(list(tensor.zero_point))


def _distance(position: float, codes: tuple[int, int], fraction: float | None, zero: float) -> float:
    """From ``position`` to the nearest step between two codes. Steps lie at ``fraction`` behind every whole number, or at ``zero`` alone."""
    if fraction is None:
        return abs(position - zero)
    low, high = min(codes), max(codes)
    nearest = floor(position - fraction + 0.5) + fraction
    # A floor changes to a code at that code, a ceil behind the code below: both lie between the two.
    least, most = (low + fraction, high - 1 + fraction) if fraction else (float(low), float(high))
    return abs(position - min(max(nearest, least), most))
