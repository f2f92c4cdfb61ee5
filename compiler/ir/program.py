"""Integer tensors and operations. Every operation is a dataclass; its NumPy meaning is in :mod:`tritloom.compiler.golden`.

Layout: every integer tensor is (channels, height, width) beside the batch axis; a vector of features is (features, 1, 1)
and a 1-D signal is (channels, 1, length). All codes are signed; unsigned and zero-point tensors are folded to signed ones
when the program is made. A real value is ``scale * (code - zero_point)``, scale an exact rational.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from tritloom.hw.arch.record import Record

__all__ = [
    "Add", "Convolution", "Copy", "HostOp", "InputSpec", "MaxPool", "Operation", "OutputSpec", "Program", "Proof", "Rescale", "StepFunction", "SumPool",
    "Tensor", "Window",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An integer tensor. ``bits`` is 8 or less for codes, 16 or 32 for the elements of blocks, and 32 for raw accumulators.

    ``low`` and ``high`` bound every code that can occur. ``scale`` and ``zero_point`` have one entry, or one a channel.
    ``source`` says where the range comes from: ``quantiser``, ``calibration``, ``declared`` or ``accumulator``.
    """

    name: str
    shape: tuple[int, int, int]
    bits: int
    low: int
    high: int
    scale: tuple[Fraction, ...]
    zero_point: tuple[int, ...] = (0,)
    source: str = "quantiser"

    @property
    def elements(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What is known of a step function: ``exact`` when it equals the float graph at every reachable input.

    ``differing`` counts reachable inputs (pairs of codes for :class:`Add`) over all channels whose code differs, and
    ``largest`` is the largest difference in codes. ``reachable`` counts all inputs looked at.
    """

    exact: bool
    reachable: int
    differing: int = 0
    largest: int = 0


@dataclass(frozen=True, kw_only=True)
class StepFunction:
    """Accumulator to code, channel by channel; ``records[c]`` are the pieces of channel ``c`` (all channels have equally many).

    Meaning: :func:`tritloom.hw.arch.record.evaluate`. For :class:`Add` there are two records a channel, one an operand.
    """

    records: tuple[tuple[Record, ...], ...]
    low: int
    high: int
    proof: Proof

    @property
    def pieces(self) -> int:
        return len(self.records[0])


@dataclass(frozen=True, kw_only=True)
class Window:
    """Kernel geometry, (height, width) pairs; ``pads`` are top, left, bottom, right. Ceil mode is folded into ``pads``."""

    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        top, left, bottom, right = self.pads
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.strides, self.dilations
        return (height + top + bottom - dh * (kh - 1) - 1) // sh + 1, (width + left + right - dw * (kw - 1) - 1) // sw + 1


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Base of all operations. ``name`` is the user's node name; ``output`` names the tensor that is written."""

    name: str
    output: str

    @property
    def inputs(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def outputs(self) -> tuple[str, ...]:
        """All tensors that are written."""
        return (self.output,)

    @property
    def parts(self) -> tuple["Operation", ...]:
        """Operations that this one consists of, in order: the body of a loop."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Convolution(Operation):
    """Convolution or dense layer: ``acc[o] = sum w[o, i, ky, kx] * code``, then ``step`` (``None``: the accumulator is the result).

    ``weights`` is int16 (outputs, inputs / groups, kernel height, kernel width); ``planes`` digit planes hold it exactly.
    Outside the input every code is ``pad_code``. A dense layer on (C, H, W) has an H x W kernel and one output pixel.
    ``acc_low`` and ``acc_high`` bound every accumulator (proven from weights and code ranges), also after each digit plane.
    ``weight_method`` says how the weights became integers: ``exact`` (they were), ``twn``, ``absmean`` or ``planes``;
    ``weight_error`` is the relative squared error of that step.
    """

    input: str
    weights: np.ndarray = field(compare=False)
    planes: int
    window: Window
    groups: int = 1
    pad_code: int = 0
    step: StepFunction | None
    acc_low: int
    acc_high: int
    weight_method: str = "exact"
    weight_error: float = 0.0

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)

    def is_dense(self, shape: tuple[int, int, int]) -> bool:
        """Whether the only window is the whole input (C, H, W), all channels in one group."""
        if self.groups != 1 or any(self.window.pads):
            return False
        plain = all(size == 1 or dilation == 1 for size, dilation in zip(self.window.kernel, self.window.dilations, strict=True))
        return self.window.kernel == shape[1:] and plain


@dataclass(frozen=True, kw_only=True)
class MaxPool(Operation):
    """Largest code in each window; elements outside the input do not count."""

    input: str
    window: Window

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, kw_only=True)
class SumPool(Operation):
    """Average pool: ``acc`` is the sum of the codes in the window, outside the input ``pad_code``; then the step of its region.

    ``regions`` are ``((y0, y1, x0, x1), step)`` half-open rectangles of output pixels that tile the output: pixels whose
    windows have unequal divisors (``count_include_pad=0``) have different step functions.
    """

    input: str
    window: Window
    pad_code: int = 0
    regions: tuple[tuple[tuple[int, int, int, int], StepFunction], ...]
    acc_low: int
    acc_high: int

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, kw_only=True)
class Rescale(Operation):
    """Elementwise step function of one tensor, written at ``channel_offset`` of the output tensor.

    With an offset other than 0, or fewer channels than the output, several operations write parts of one tensor (Concat).
    """

    input: str
    step: StepFunction
    channel_offset: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, kw_only=True)
class Add(Operation):
    """Sum of two tensors of one shape on an output grid: the two-record form of :mod:`tritloom.hw.arch.record`."""

    left: str
    right: str
    step: StepFunction

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.left, self.right)


@dataclass(frozen=True, kw_only=True)
class Copy(Operation):
    """Moves codes unchanged: ``out.flat[i] = input.flat[index[i]]`` in (C, H, W) order (Transpose, Reshape between layouts)."""

    input: str
    index: np.ndarray = field(compare=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, kw_only=True)
class HostOp:
    """A float32 operation that the host does before the first quantiser or after the last integer tensor.

    Arrays are (N, ...), axis 0 the batch. ``kind`` is the ONNX operator and decides what is read:

    ======================= ================================== =====================================================
    kind                    constants                          attributes
    ======================= ================================== =====================================================
    Add, Sub, Mul, Div      ``A`` or ``B``: the constant side  ``head``: part of what :attr:`OutputSpec.witness` names
    Neg, Relu, Sigmoid
    LeakyRelu                                                  ``alpha``
    PRelu                   ``slope``
    Clip                    ``min``, ``max``; absent is open
    BatchNormalization      ``scale B input_mean input_var``   ``epsilon``; axis 1 is the channel
    Softmax, LogSoftmax                                        ``axis``
    ArgMax                                                     ``axis keepdims select_last_index``
    Function                                                   ``name parameters``: :mod:`tritloom.compiler.quantize.functions`
    Fork, Swap                                                 :func:`tritloom.compiler.golden.host.apply_hosts`
    Join                                                       ``operator``: Add, Sub, Mul or Div
    Reshape                                                    ``shape`` without the batch axis
    Transpose                                                  ``perm``, its first entry is 0
    Gather                  ``index``: element of the sample
    Pad                     ``value``                          ``pads`` without the batch axis: (before, after) an axis
    Quantize                ``scale zero_point thresholds``    ``axis``, ``low high rounding bipolar clip_first offset``
    Dequantize              ``scale``, ``zero_point``          ``axis``
    ======================= ================================== =====================================================

    ``scale`` and ``zero_point`` are single, vectors along ``axis`` (default 1), or of a sample's shape. ``thresholds`` (rows of rising
    numbers, one or one an entry of ``axis``) are there only where they decide the code. The quantiser's attributes are those of
    :class:`tritloom.compiler.quantize.steps.Quantiser`.
    """

    kind: str
    constants: dict[str, np.ndarray] = field(default_factory=dict, compare=False)
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """A graph input: the model's declared shape (batch axis included), the host's float steps, and the tensor they fill.

    The last of ``prologue`` is ``Quantize``; integers that are codes as they are need no steps. ``index`` maps tensor elements to the flattened quantised array without batch:
    ``tensor.flat[i] = array.flat[index[i]]``; ``None`` is the identity.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    tensor: str
    prologue: tuple[HostOp, ...]
    index: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """A graph output: ``Dequantize`` of an integer tensor and whatever float steps follow it.

    ``index`` maps the elements of the output (without batch) to the tensor: ``array.flat[i] = tensor.flat[index[i]]``, applied before the epilogue.
    ``witness`` names the model's value that the dequantised tensor stands for (differs from ``name`` before a final Softmax), after the steps
    behind ``Dequantize`` that are marked ``head``: a bias between two codes, say. ``scale_tensor`` names the scales of a block tensor (:mod:`tritloom.compiler.ir.block`).
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    tensor: str
    epilogue: tuple[HostOp, ...]
    index: np.ndarray | None = field(default=None, compare=False)
    witness: str = ""
    scale_tensor: str = ""


@dataclass(frozen=True, kw_only=True)
class State:
    """Before a run ``tensor`` holds what ``following`` held after the run before, and zeros before the first one."""

    tensor: str
    following: str


@dataclass(frozen=True, kw_only=True)
class Program:
    """An integer program in execution order. ``tensors`` holds every tensor by name, inputs and states included."""

    name: str
    tensors: dict[str, Tensor]
    operations: tuple[Operation, ...]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    states: tuple[State, ...] = ()

    def walk(self) -> Iterator[Operation]:
        """Every operation in order; behind a loop those of its body."""
        waiting = list(reversed(self.operations))
        while waiting:
            yield (operation := waiting.pop())
            waiting.extend(reversed(operation.parts))

    def producer(self, tensor: str) -> tuple[Operation, ...]:
        """Operations that write ``tensor``, in order; none for an input."""
        return tuple(op for op in self.walk() if op.output == tensor)
