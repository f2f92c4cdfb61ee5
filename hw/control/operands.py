"""Operand addresses: registers ``a``, ``b``, ``y`` and ``x`` of an instruction."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.isa import FIELDS
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.control.bus import LOOP_INDEX_BITS, InstructionBus, field_register, field_value, step_table
from tritloom.hw.memory import address_bits

__all__ = ["OperandAddresses"]


class OperandAddresses(wiring.Component):
    """Addresses of an element, one clock after its issue; the registers are as wide as the memories need.

    Parameters
    ----------
    parameters : :class:`CoreParameters`

    Members
    -------
    bus : :py:`In(InstructionBus())`
    step : :py:`In(1)`
        An element is issued; the outputs are its own in the next clock.
    index : :py:`In(3)`
        With ``step``: the loop that advances after it.
    two_operands : :py:`In(1)`
        One clock after the element's address, ``activation`` is that of its second operand. Static.
    activation : out
        Byte address.
    weight : out
        Word address.
    inside : :py:`Out(1)`
        The element lies inside the input, or the instruction is not padded.
    second : :py:`Out(1)`
        ``activation`` is the address of a second operand.
    table : out
        Register ``b`` as a byte address.
    """

    def __init__(self, parameters: CoreParameters) -> None:
        self._parameters = p = parameters
        super().__init__({
            "bus": In(InstructionBus()), "step": In(1), "index": In(LOOP_INDEX_BITS), "two_operands": In(1),
            "activation": Out(address_bits(p.activation_bytes)), "weight": Out(address_bits(p.weight_words)),
            "inside": Out(1), "second": Out(1), "table": Out(address_bits(p.activation_bytes)),
        })  # fmt: skip

    @property
    def parameters(self) -> CoreParameters:
        return self._parameters

    def elaborate(self, platform) -> Module:
        m = Module()
        activation_bits, weight_bits = len(self.activation), len(self.weight)
        moving = Signal()
        m.d.sync += moving.eq(self.step)
        registers = {}
        for name, width in (("a", activation_bits), ("b", max(activation_bits, weight_bits)), ("y", 16), ("x", 16)):
            place = FIELDS[name]
            registers[name] = register = Signal(width, name=name)
            step = step_table(m, self.bus, f"{name}_step", width=width, index=self.index, enable=self.step)
            with m.If(self.bus.header[place.word]):
                m.d.sync += register.eq(field_value(self.bus.word, place))
            with m.Elif(moving):
                m.d.sync += register.eq(register + step)

        # The second operand's address is kept, because `b` may go on in the next clock.
        second = Signal(activation_bits)
        m.d.sync += [second.eq(registers["b"]), self.second.eq(moving & self.two_operands)]
        m.d.comb += [
            self.activation.eq(Mux(self.second, second, registers["a"])),
            self.weight.eq(registers["b"]),
            self.table.eq(registers["b"]),
        ]

        padded = field_register(m, self.bus, "padded")
        height, width = field_register(m, self.bus, "height"), field_register(m, self.bus, "width")
        # A negative coordinate is larger than any legal one when read as unsigned; sizes above 32767 are excluded by the sign.
        fits = [~registers[name][-1] & (registers[name] < size) for name, size in (("y", height), ("x", width))]
        m.d.comb += self.inside.eq(~padded | Cat(fits).all())
        return m
