"""What the project knows of a board: its part, memories, clock input and serial port."""

import importlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tritloom.boards.pll import PllSetting, best_setting
from tritloom.errors import BuildError, MissingToolError

__all__ = ["BAUD_RATES", "Board", "serial_rate"]

BAUD_RATES = (1_000_000, 921_600, 500_000, 460_800, 230_400, 115_200, 57_600, 38_400, 19_200, 9_600)
"""Rates that every USB serial bridge and operating system offers, fastest first."""

_BAUD_TOLERANCE = Fraction(1, 100)


def serial_rate(clock_hz: Fraction) -> tuple[int, int]:
    """``(baud, divisor)``: the fastest of :data:`BAUD_RATES` that a whole number of clocks a bit meets within 1 %.

    At least 4 clocks a bit, so that a receiver can sample near the middle. Raises :class:`BuildError` when no rate fits.
    """
    for baud in BAUD_RATES:
        divisor = round(clock_hz / baud)
        if divisor >= 4 and abs(clock_hz / divisor - baud) < _BAUD_TOLERANCE * baud:
            return baud, divisor
    raise BuildError(f"no serial rate can be made from a clock of {float(clock_hz) / 1e6:g} MHz")


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board that a core can be built for; ``family`` is ``none`` for the simulated board.

    Parameters
    ----------
    name, title, maker, price_usd
        For people; ``name`` is what the command line takes.
    family
        ``ice40``, ``ecp5``, ``gowin`` or ``none``.
    part
        The maker's part name.
    platform
        ``module:class`` of the Amaranth platform with the pins; loaded when a build needs it.
    clock_resource, clock_hz, pll
        Oscillator input of the platform, its frequency, and the kind of clock generator (:data:`tritloom.boards.pll.PLL_KINDS`).
    pll_on_pad
        iCE40: whether the oscillator is wired to the clock generator's own package pin, which it then must use.
    logic_cell, logic_cells
        nextpnr's name of the cells that hold a 4-input table, and how many the part has. On Gowin a carry cell (``ALU``) takes the
        place of one.
    flip_flops
        How many the part has; 0 where each logic cell has its own.
    block, blocks, block_bits
        nextpnr's name of the block RAM, how many the part has, and the bits of one.
    spram
        Whether the part has the four 16 K x 16 single-port RAMs of the iCE40 UP5K.
    tables_in_logic
        Whether the small tables of the loop registers are made of logic cells, for a part with few block RAMs.
    dsp, dsps
        nextpnr's name of the multiplier cells that a build may use, and how many the part has; empty if none.
    synthesis, place, pack
        Options of the yosys synthesis command, of nextpnr and of the packer that belong to the part.
    guess_mhz
        Clock that a typical build of this project reaches; the first attempt asks for it.
    """

    name: str
    title: str
    maker: str = ""
    price_usd: int = 0
    family: str
    part: str = ""
    platform: str = ""
    clock_resource: str = ""
    clock_hz: int = 0
    pll: str = ""
    pll_on_pad: bool = False
    logic_cell: str = ""
    logic_cells: int = 0
    flip_flops: int = 0
    block: str = ""
    blocks: int = 0
    block_bits: int = 0
    spram: bool = False
    tables_in_logic: bool = False
    dsp: str = ""
    dsps: int = 0
    synthesis: tuple[str, ...] = ()
    place: tuple[str, ...] = ()
    pack: tuple[str, ...] = ()
    guess_mhz: float = 0.0

    @property
    def block_kbits(self) -> int:
        """Block RAM of the part in kbit (1024 bits)."""
        return self.blocks * self.block_bits // 1024

    @property
    def reduction(self) -> str:
        """The cheaper structure of the array's sums (:mod:`tritloom.hw.arch.reduction`): chains where a carry cell holds the whole product."""
        return "chain" if self.family == "ecp5" else "tree"

    def make_platform(self) -> Any:
        """A fresh Amaranth platform. Raises :class:`MissingToolError` when the package with the board files is absent."""
        module, _, name = self.platform.partition(":")
        try:
            return getattr(importlib.import_module(module), name)()
        except ModuleNotFoundError as error:
            raise MissingToolError(f"{error.name} is not installed: pip install 'tritloom[fpga]'") from error

    def clock(self, limit_hz: Fraction | float) -> PllSetting:
        """The highest clock not above ``limit_hz``. Raises :class:`BuildError` when the clock generator cannot go that low."""
        setting = best_setting(self.pll, self.clock_hz, limit_hz)
        if setting is None:
            raise BuildError(f"the clock generator of {self.name} cannot make a clock as slow as {float(limit_hz) / 1e6:.1f} MHz")
        return setting
