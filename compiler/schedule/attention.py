"""Attention of one token on the vector unit, step by step as :mod:`tritloom.compiler.golden.block` defines it."""

from tritloom.compiler.ir.block import Attend
from tritloom.compiler.schedule.blocks import LARGEST_OUT_SHIFT, BlockLowering
from tritloom.compiler.schedule.emit import Emitter
from tritloom.compiler.schedule.nest import Axis
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.scalar import ADDEND, COUNT, FACTOR, OUT_SHIFT, SHIFT, STATISTIC, STEP_A, STEP_B, ScalarOpcode
from tritloom.hw.arch.vector import NOT_WRITTEN, OUT_SHIFT_REGISTER, Factor, Second, Statistic, VectorFunction

__all__ = ["attend"]

POSITION, SPARE, SPARE_2 = 1, 2, 3
OWN, KEYS_EXPONENT, VALUES_EXPONENT, TOTAL, COMMON = (4, 5), 6, 7, (8, 9), 10
RIGHT, EXPONENT = 11, 12
_KEPT_BYTES = 12
"""What is kept of a head until all exponents are known: shift, mantissa, exponent."""

_COUNTED = 0


def attend(lowering: BlockLowering, operation: Attend, emitter: Emitter) -> None:
    """Instructions of an :class:`Attend`."""
    _Attention(lowering, operation, emitter).lower()


class _Attention:
    def __init__(self, lowering: BlockLowering, operation: Attend, emitter: Emitter) -> None:
        self._lowering, self._operation, self._emitter = lowering, operation, emitter
        self._channels, self._key_heads, self._capacity = lowering.placement(operation.keys).shape
        self._heads = lowering.placement(operation.queries).shape[1]
        words = 4 * self._capacity
        self._key_factors, self._value_factors, self._scores, self._logits = (
            lowering.scratch(f"attention {name}", words) for name in ("keys", "values", "scores", "logits")
        )
        self._factors = lowering.scratch("attention factors", words)
        self._mixed = lowering.scratch("attention mixed", 4 * self._channels * self._heads)
        self._kept = lowering.scratch("attention heads", _KEPT_BYTES * self._heads)
        self._powers = lowering.table(blockfloat.POWERS, 4)

    def lower(self) -> None:
        e, operation = self._emitter, self._operation
        e.load(POSITION, self._lowering.address(operation.position))
        e.move(COUNT, POSITION)
        # The loop behind that over the columns takes back what their strides have added.
        for register, stride in ((STEP_A, 4), (STEP_B, self._lowering.placement(operation.values).pixel_bytes)):
            e.scalar(ScalarOpcode.MULTIPLY, SPARE, POSITION, stride)
            e.scalar(ScalarOpcode.SUBTRACT, register, SPARE, 0)
        shared = self._heads // self._key_heads
        for head in range(self._heads):
            if head % shared == 0:
                self._columns(operation.keys_scale, head // shared, self._key_factors, KEYS_EXPONENT)
                self._columns(operation.values_scale, head // shared, self._value_factors, VALUES_EXPONENT)
            self._logits_of(head, head // shared)
            self._weights()
            self._mix(head, head // shared)
        self._finish()

    def _columns(self, scales: str, head: int, factors: int, exponent: int) -> None:
        """Mantissas of the columns of a key head at their largest exponent, which goes to a register."""
        place, e = self._lowering.placement(scales), self._emitter
        first = self._lowering.address(scales, head * self._capacity)
        stride = place.pixel_bytes
        e.counted(
            VectorFunction(o_size=NOT_WRITTEN, statistic=Statistic.LARGEST), [Axis(count=_COUNTED, strides={"a": stride})], a=first + 4
        )
        e.move(exponent, STATISTIC)
        e.move(SHIFT, exponent)
        function = VectorFunction(second=Second.SHIFT, shifted=True)
        e.counted(function, [Axis(count=_COUNTED, strides={"a": stride, "b": stride, "o": 4})], a=first, b=first + 4, o=factors)

    def _logits_of(self, head: int, key_head: int) -> None:
        """``scores``: normalised products; ``logits``: differences to the largest logit."""
        e, operation, lowering = self._emitter, self._operation, self._lowering
        each = [Axis(count=_COUNTED, strides={"a": 4, "o": 4})]
        pairs = [Axis(count=_COUNTED, strides={"a": 4, "b": 4, "o": 4})]
        e.load_pair(OWN, lowering.address(operation.queries_scale, head))
        e.product_constant(OWN, OWN, operation.logit, SPARE)
        e.move(FACTOR, OWN[0])
        e.counted(VectorFunction(factor=Factor.REGISTER, out_shift=16), each, a=self._key_factors, o=self._factors)
        keys = lowering.placement(operation.keys)
        products = VectorFunction(a_size=0, b_size=0, second=Second.FACTOR, factor=Factor.OPERAND, statistic=Statistic.MAGNITUDE)
        axes = [
            Axis(count=self._channels, reduces=True, strides={"a": 1, "b": 1}),
            Axis(count=_COUNTED, strides={"b": keys.pixel_bytes, "o": 4}),
        ]
        first = lowering.address(operation.keys, key_head * self._capacity)
        e.counted(products, axes, a=lowering.address(operation.queries, head), b=first, o=self._scores)
        e.scalar(ScalarOpcode.LENGTH, RIGHT, STATISTIC, blockfloat.BLOCK_BITS)
        e.move(SHIFT, RIGHT)
        e.add(SPARE, OWN[1], right=KEYS_EXPONENT)
        e.add(SPARE, SPARE, right=RIGHT)
        e.scalar(ScalarOpcode.SUBTRACT, SPARE, SPARE, -16)
        e.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, 1)
        e.scalar(ScalarOpcode.MINIMUM, OUT_SHIFT, SPARE, LARGEST_OUT_SHIFT)
        logits = VectorFunction(
            shifted=True, second=Second.FACTOR, factor=Factor.OPERAND, out_shift=OUT_SHIFT_REGISTER, rounded=True, bits=30,
            statistic=Statistic.LARGEST,
        )  # fmt: skip
        e.counted(logits, pairs, a=self._scores, b=self._factors, o=self._logits)
        e.scalar(ScalarOpcode.SUBTRACT, ADDEND, STATISTIC, 0)
        e.counted(VectorFunction(addend=True), each, a=self._logits, o=self._scores)

    def _weights(self) -> None:
        """Powers of the differences, their sum as a scale, and the powers times the values' factors."""
        e = self._emitter
        each = [Axis(count=_COUNTED, strides={"a": 4, "o": 4})]
        pairs = [Axis(count=_COUNTED, strides={"a": 4, "b": 4, "o": 4})]
        powers = VectorFunction(second=Second.POWER, statistic=Statistic.SUM)
        e.counted(powers, each, a=self._scores, b=self._powers, o=self._logits)
        e.scale_of(TOTAL, STATISTIC, None, SPARE)
        e.reciprocal(TOTAL, TOTAL, SPARE)
        weights = VectorFunction(second=Second.FACTOR, factor=Factor.OPERAND, out_shift=16)
        e.counted(weights, pairs, a=self._logits, b=self._value_factors, o=self._scores)

    def _mix(self, head: int, key_head: int) -> None:
        """Sums of the values, and what is kept of the head."""
        e, lowering, values = self._emitter, self._lowering, self._operation.values
        dropped = blockfloat.mixing_shift(self._capacity)
        function = VectorFunction(b_size=0, second=Second.FACTOR, factor=Factor.OPERAND, out_shift=dropped, statistic=Statistic.MAGNITUDE)
        axes = [
            Axis(count=_COUNTED, reduces=True, strides={"a": 4, "b": lowering.placement(values).pixel_bytes}),
            Axis(count=self._channels, strides={"b": 1, "o": 4}),
        ]
        first = lowering.address(values, key_head * self._capacity)
        e.counted(function, axes, a=self._scores, b=first, o=self._mixed + 4 * self._channels * head)
        e.scalar(ScalarOpcode.LENGTH, RIGHT, STATISTIC, blockfloat.BLOCK_BITS)
        e.add(EXPONENT, TOTAL[1], right=VALUES_EXPONENT)
        e.add(EXPONENT, EXPONENT, right=RIGHT)
        e.add(EXPONENT, EXPONENT, 16 + dropped)
        for offset, register in enumerate((RIGHT, TOTAL[0], EXPONENT)):
            e.store(register, self._kept + _KEPT_BYTES * head + 4 * offset)
        if head:
            e.scalar(ScalarOpcode.MAXIMUM, COMMON, COMMON, right=EXPONENT)
        else:
            e.move(COMMON, EXPONENT)

    def _finish(self) -> None:
        """All heads at one exponent."""
        e, operation, lowering = self._emitter, self._operation, self._lowering
        function = VectorFunction(shifted=True, factor=Factor.REGISTER, out_shift=OUT_SHIFT_REGISTER, statistic=Statistic.MAGNITUDE)
        axes = [Axis(count=self._channels, strides={"a": 4, "o": 4})]
        for head in range(self._heads):
            kept = self._kept + _KEPT_BYTES * head
            e.load(SHIFT, kept)
            e.load(FACTOR, kept + 4)
            e.load(EXPONENT, kept + 8)
            e.scalar(ScalarOpcode.SUBTRACT, SPARE, EXPONENT, right=COMMON)
            e.scalar(ScalarOpcode.MINIMUM, OUT_SHIFT, SPARE, LARGEST_OUT_SHIFT)
            place = 4 * self._channels * head
            e.vector(function, axes, a=self._mixed + place, o=lowering.address(operation.output) + place)
            if head:
                e.scalar(ScalarOpcode.MAXIMUM, SPARE_2, SPARE_2, right=STATISTIC)
            else:
                e.move(SPARE_2, STATISTIC)
        lowering.keep_peak(e, operation.output, SPARE_2)
        e.set(OWN[0], 1 << 15)
        e.add(OWN[1], COMMON, -15)
        e.store_pair(OWN, lowering.address(operation.output_scale))
