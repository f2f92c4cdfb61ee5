"""Components that exist only to be measured by :mod:`tritloom.boards.benchmark`."""

from amaranth.hdl import Cat, ClockDomain, ClockSignal, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import ACTIVATION_BITS
from tritloom.hw.cell import TRIT_BITS, ProductAdder

__all__ = ["AccumulateCell", "Enclosed", "PlainCell"]


class AccumulateCell(wiring.Component):
    """A running sum of ternary products, one a clock, that wraps.

    Parameters
    ----------
    bits : :class:`int`
        Width of the sum.

    Members
    -------
    activation : :py:`In(signed(8))`
    trit : :py:`In(2)`
    sum : :py:`Out(signed(bits))`
        One clock later.
    """

    def __init__(self, *, bits: int) -> None:
        self._bits = bits
        super().__init__({"activation": In(signed(ACTIVATION_BITS)), "trit": In(TRIT_BITS), "sum": Out(signed(bits))})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.adder = adder = ProductAdder(columns=1, partial_bits=self._bits, sum_bits=self._bits)
        m.d.comb += [adder.activation.eq(self.activation), adder.trits.eq(self.trit), adder.partial[0].eq(self.sum)]
        m.d.sync += self.sum.eq(adder.sum[0])
        return m


class PlainCell(wiring.Component):
    """What :class:`AccumulateCell` computes, written as one would without thought for the cells: to compare with.

    Members
    -------
    activation, trit, sum : as in :class:`AccumulateCell`
    """

    def __init__(self, *, bits: int) -> None:
        super().__init__({"activation": In(signed(ACTIVATION_BITS)), "trit": In(TRIT_BITS), "sum": Out(signed(bits))})

    def elaborate(self, platform) -> Module:
        m = Module()
        with m.Switch(self.trit):
            with m.Case(0b01):
                m.d.sync += self.sum.eq(self.sum + self.activation)
            with m.Case(0b11):
                m.d.sync += self.sum.eq(self.sum - self.activation)
        return m


class Enclosed(wiring.Component):
    """A component with its inputs on a shift register behind one pin and its outputs in flip-flops that nothing reads: no tables.

    Members
    -------
    clk, data : :py:`In(1)`
    """

    def __init__(self, component: wiring.Component) -> None:
        self._component = component
        super().__init__({"clk": In(1), "data": In(1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.domains.sync = ClockDomain(reset_less=True)
        m.d.comb += ClockSignal().eq(self.clk)
        m.submodules.inner = self._component
        members = [(member.flow, Value.cast(value)) for _, member, value in self._component.signature.flatten(self._component)]
        inputs = Cat(value for flow, value in members if flow == In)
        outputs = Cat(value for flow, value in members if flow != In)
        shifted, kept = Signal(len(inputs)), Signal(len(outputs), attrs={"keep": "true"})
        m.d.sync += [shifted.eq(Cat(self.data, shifted)), kept.eq(outputs)]
        m.d.comb += inputs.eq(shifted)
        return m
