"""iCEBreaker: iCE40 UP5K, 120 kbit of block RAM and 1 Mbit of single-port RAM, whose contents no bitstream can hold."""

from tritloom.boards.board import Board

__all__ = ["BOARD"]

BOARD = Board(
    name="icebreaker",
    title="iCEBreaker",
    maker="1BitSquared",
    price_usd=85,
    family="ice40",
    part="iCE40UP5K-SG48",
    platform="amaranth_boards.icebreaker:ICEBreakerPlatform",
    clock_resource="clk12",
    clock_hz=12_000_000,
    pll="ice40",
    pll_on_pad=True,
    logic_cell="ICESTORM_LC",
    logic_cells=5280,
    block="ICESTORM_RAM",
    blocks=30,
    block_bits=4096,
    spram=True,
    dsp="ICESTORM_DSP",
    dsps=8,
    synthesis=("-device", "u", "-dsp"),
    place=("--up5k", "--package", "sg48"),
    typical_mhz=28.0,
)
