"""Operations on blocks: tensors whose scale is known only at run time. What language models and recursive networks are made of.

A *block tensor* is a tensor of integers and a *scale tensor*: int32 (2, H, W), channel 0 mantissas and channel 1 exponents, one scale a pixel, which
all channels share (:mod:`tritloom.hw.arch.blockfloat`). It stands for ``scale * code * mantissa * 2**exponent``, ``scale`` being the constant of the
:class:`~tritloom.compiler.ir.program.Tensor`. The pixels of a layer's activations are heads (H) or tokens (W).

A *state* keeps a tensor from one run of the program to the next: the keys and values of the tokens before, and how many there are.
The rules, with the width of every intermediate value, stand in ``docs/numerics.md`` and in :mod:`tritloom.compiler.golden.block`.
"""

from dataclasses import dataclass, field

import numpy as np

from tritloom.compiler.ir.vector import GoldenOperation

__all__ = [
    "TURN_BITS", "Attend", "BlockOperation", "BlockProduct", "BlockSum", "Curve", "Lookup", "Norm", "Position", "Quantise", "Rectify", "Rotate", "Store", "Turn", "View",
]  # fmt: skip

TURN_BITS = 8
"""Fraction bits of the values that index the table of a :class:`Turn`."""


@dataclass(frozen=True, kw_only=True)
class BlockOperation(GoldenOperation):
    """Base. ``output_scale`` names the scale tensor that is written beside ``output``, empty where there is none."""

    output_scale: str = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output, self.output_scale) if self.output_scale else (self.output,)


@dataclass(frozen=True, kw_only=True)
class Lookup(BlockOperation):
    """Row ``code`` of ``table``, int16 (rows, channels), as a column of channels, for each code of ``input`` (1, 1, W): the embeddings of tokens. No scale."""

    input: str
    table: np.ndarray = field(compare=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, kw_only=True)
class Position(BlockOperation):
    """``input + 1``: the number of tokens after this one. Its state stops at ``capacity``."""

    input: str
    capacity: int

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, kw_only=True)
class Norm(BlockOperation):
    """The channels of each pixel over the root of their mean square, or with ``centre`` of their variance, times ``gain``, plus ``bias``.

    ``gain`` is int16 (C,); ``bias`` int16 (C,) with the constant ``bias_scale`` (mantissa, exponent) relative to the scale of the products, or ``None``. ``epsilon`` is the scale
    (mantissa, exponent) of ``epsilon * C`` over the square of the input's constant scale; (0, 0) is none.
    """

    input: str
    input_scale: str = ""
    gain: np.ndarray = field(compare=False)
    bias: np.ndarray | None = field(default=None, compare=False)
    bias_scale: tuple[int, int] = (0, 0)
    centre: bool = False
    epsilon: tuple[int, int] = (0, 0)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.input, self.input_scale) if name)


@dataclass(frozen=True, kw_only=True)
class Quantise(BlockOperation):
    """Codes -127..127 of each pixel, the largest magnitude of its channels being 127: BitNet's quantiser of activations."""

    input: str
    input_scale: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.input, self.input_scale) if name)


@dataclass(frozen=True, kw_only=True)
class Rectify(BlockOperation):
    """``max(code, 0)``; the scale is the input's."""

    input: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, kw_only=True)
class _Pair(BlockOperation):
    """The right operand is a tensor, or int16 ``table`` (C,), the same for every pixel and of no scale."""

    left: str
    left_scale: str = ""
    right: str = ""
    right_scale: str = ""
    table: np.ndarray | None = field(default=None, compare=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.left, self.left_scale, self.right, self.right_scale) if name)


@dataclass(frozen=True, kw_only=True)
class BlockProduct(_Pair):
    """Element by element."""


@dataclass(frozen=True, kw_only=True)
class BlockSum(_Pair):
    """Element by element; ``left_constant`` and ``right_constant`` are the operands' constant scales as (mantissa, exponent), relative to the result's."""

    left_constant: tuple[int, int]
    right_constant: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Curve(BlockOperation):
    """``table[i]``, int16, at ``i = floor(value * 2**6 + 1/2)`` clamped to -512..511, of each element; ``constant`` is the input's constant scale
    as (mantissa, exponent). No scale."""

    input: str
    input_scale: str = ""
    constant: tuple[int, int]
    table: np.ndarray = field(compare=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.input, self.input_scale) if name)


@dataclass(frozen=True, kw_only=True)
class Rotate(BlockOperation):
    """Rotary positions: pairs of channels turned by the angle of row ``position`` (the tokens before).

    ``cosine`` and ``sine`` are int16 (positions, C / 2) with 14 fraction bits; a pair is the channels j and j + C / 2, or with ``interleaved`` 2 j and 2 j + 1.
    """

    input: str
    input_scale: str = ""
    position: str
    cosine: np.ndarray = field(compare=False)
    sine: np.ndarray = field(compare=False)
    interleaved: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.input, self.input_scale, self.position) if name)


@dataclass(frozen=True, kw_only=True)
class Turn(BlockOperation):
    """Pairs of channels turned by angles of their own for each channel (D-RNA): ``angles[position, c] + pi * tanh(before[c])``.

    The first half of the channels makes pairs with the second. ``angles`` is int32 (positions, C) in turns of ``2**16``. ``before`` (C, key heads, 1) is a block with the constant
    scale ``constant`` (mantissa, exponent); head h reads head ``h * key heads / heads`` of it. ``table`` holds ``tanh`` with 15 fraction bits, int16, from -4 to 4 in steps of 1/256.
    """

    input: str
    input_scale: str = ""
    before: str
    before_scale: str
    constant: tuple[int, int]
    position: str
    angles: np.ndarray = field(compare=False)
    table: np.ndarray = field(compare=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.input, self.input_scale, self.before, self.before_scale, self.position) if name)


@dataclass(frozen=True, kw_only=True)
class Store(BlockOperation):
    """``cache`` (C, heads, capacity) with ``input`` (C, heads, 1) at column ``position``."""

    cache: str
    input: str
    position: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.cache, self.input, self.position)


@dataclass(frozen=True, kw_only=True)
class Attend(BlockOperation):
    """Attention of one token: softmax over the columns 0 to ``position`` of queries times keys, times values.

    Codes: ``queries`` (C, heads, 1), ``keys`` and ``values`` (C, key heads, capacity), each with a scale tensor; query head h reads key head
    ``h * key heads / heads``. The result is (heads * C, 1, 1), one scale. ``logit`` is the scale (mantissa, exponent) of one product of codes times ``256 * log2(e)``.
    """

    queries: str
    queries_scale: str
    keys: str
    keys_scale: str
    values: str
    values_scale: str
    position: str
    logit: tuple[int, int]

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.queries, self.queries_scale, self.keys, self.keys_scale, self.values, self.values_scale, self.position)


@dataclass(frozen=True, kw_only=True)
class View(BlockOperation):
    """``out.flat[i] = input.flat[index[i]]`` in (C, H, W) order of a tensor whose pixels all have one scale, the input's first."""

    input: str
    input_scale: str = ""
    index: np.ndarray = field(compare=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.input, self.input_scale) if name)
