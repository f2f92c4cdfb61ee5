"""iCE40-HX8K breakout board: 7680 logic cells but only 128 kbit of block RAM, and no multipliers."""

from tritloom.boards.board import Board

__all__ = ["BOARD"]

BOARD = Board(
    name="hx8k",
    title="iCE40-HX8K Breakout Board",
    maker="Lattice",
    price_usd=60,
    family="ice40",
    part="iCE40HX8K-CT256",
    platform="amaranth_boards.ice40_hx8k_b_evn:ICE40HX8KBEVNPlatform",
    clock_resource="clk12",
    clock_hz=12_000_000,
    pll="ice40",
    logic_cell="ICESTORM_LC",
    logic_cells=7680,
    block="ICESTORM_RAM",
    blocks=32,
    block_bits=4096,
    tables_in_logic=True,
    synthesis=("-device", "hx"),
    place=("--hx8k", "--package", "ct256"),
    typical_mhz=64.0,
)
