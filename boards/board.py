"""What the project knows of a board: its part, memories, clock input and serial port."""

import importlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tritloom.boards.pll import PllSetting, best_setting
from tritloom.errors import BuildError, MissingToolError
from tritloom.hw.arch.parameters import CoreParameters

__all__ = ["Board"]

_BAUD = 1_000_000
"""Bits per second of the serial port at the typical clock. The USB bridges of the boards divide 3 MHz or more in steps of an eighth, so they
meet any rate near this one within 2 %, of the 5 % that a receiver bears which samples ten bits near their middles."""


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
    typical_mhz
        Clock that a typical build of this project reaches; place and route is asked for it.
    vector_mhz
        The same of a build with a vector unit, 0 where none has been measured.
    sdram_bits
        Width of the board's SDRAM, 0 where it has none.
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
    typical_mhz: float = 0.0
    vector_mhz: float = 0.0
    sdram_bits: int = 0

    def expected_mhz(self, core: CoreParameters) -> float:
        """Clock that a build of such a core typically reaches."""
        return self.vector_mhz if core.vector_lanes and self.vector_mhz else self.typical_mhz

    @property
    def block_kbits(self) -> int:
        """Block RAM of the part in kbit (1024 bits)."""
        return self.blocks * self.block_bits // 1024

    @property
    def reduction(self) -> str:
        """The cheaper structure of the array's sums (:mod:`tritloom.hw.arch.reduction`): chains where a carry cell holds the whole product."""
        return "chain" if self.family == "ecp5" else "tree"

    @property
    def typical_clock(self) -> PllSetting:
        """What the clock generator is set to until place and route has shown how fast the design is."""
        return self.clock(self.typical_mhz * 1e6)

    @property
    def divisor(self) -> int:
        """Clocks of one bit on the serial port, whatever the clock turns out to be."""
        return round(self.typical_mhz * 1e6 / _BAUD)

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
