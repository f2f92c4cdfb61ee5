"""Carry chains of the ECP5, shared by several adders.

A carry cell (CCU2C) holds two bits. For each bit a 4-input table over A, B, C, D gives ``p``; the sum bit is ``p ^ carry``, and the
carry goes on where ``p`` is set, else it becomes what the table gives for A and B with C and D zero. All tables here have that
part equal to A, so that any addend ``p ^ A`` computed from B, C and D is added: add, subtract and skip cost no table of their own.
The behaviour is that of the simulation model which yosys ships; the tests prove the adders equal to the portable ones with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Const, Instance, Module, Signal, Value
from amaranth.vendor import LatticePlatform

__all__ = ["ADD", "ADD_PRODUCT", "ADD_SELECTED", "ChainAdder", "carry_chain", "has_carry_chains"]

ADD = 0x666A
"""``A + B``, with D set."""
ADD_PRODUCT = 0x96AA
"""``A + B``, ``A + ~B`` with C set, ``A`` with D clear."""
ADD_SELECTED = 0x665A
"""``A + B``, or ``A + C`` with D clear."""
_CARRY_IN = 0x000A
"""Begins an adder: the carry into the next bit is A, whatever the bit before it hands on; D is set."""


def has_carry_chains(platform: object) -> bool:
    """Whether the part is an ECP5."""
    return isinstance(platform, LatticePlatform) and platform.family == "ecp5"


@dataclass(frozen=True)
class ChainAdder:
    """One adder: its table, the bits of A and B (lowest first), C and D for each bit, and the carry into the lowest bit."""

    table: int
    left: Sequence[Value | int]
    right: Sequence[Value | int]
    select: Sequence[tuple[Value | int, Value | int]]
    carry: Value | int = 0


def carry_chain(m: Module, adders: Sequence[ChainAdder]) -> list[list[Value]]:
    """Put the adders into one carry chain; the sum bits of each. The carry of the first one enters the chain, and each other one stands
    behind half a cell that sets its carry."""
    halves: list[tuple[int, Value | int, Value | int, Value | int, Value | int]] = []
    places = []
    for index, adder in enumerate(adders):
        if index:
            halves.append((_CARRY_IN, adder.carry, 0, 0, 1))
        places.append((len(halves), len(adder.left)))
        halves += [
            (adder.table, left, right, negative, nonzero)
            for left, right, (negative, nonzero) in zip(adder.left, adder.right, adder.select, strict=True)
        ]
    if len(halves) % 2:
        halves.append((0, 0, 0, 0, 0))
    sums = Signal(len(halves), name="chain_sums")
    carry: Value | int = adders[0].carry
    for index in range(0, len(halves), 2):
        following = Signal(name=f"chain_carry_{index // 2}")
        ports: dict[str, object] = {"i_CIN": carry, "o_COUT": following}
        for half in range(2):
            table, *inputs = halves[index + half]
            ports |= {f"p_INIT{half}": Const(table, 16), f"p_INJECT1_{half}": "NO", f"o_S{half}": sums[index + half]}
            ports |= {f"i_{letter}{half}": value for letter, value in zip("ABCD", inputs, strict=True)}
        m.submodules[f"carry_cell_{index // 2}"] = Instance("CCU2C", **ports)
        carry = following
    return [[sums[start + bit] for bit in range(width)] for start, width in places]
