"""Sipeed Tang Nano 9K: Gowin GW1NR-9."""

from tritloom.boards.board import Board

__all__ = ["BOARD"]

BOARD = Board(
    name="tang-nano-9k",
    title="Tang Nano 9K",
    maker="Sipeed",
    price_usd=15,
    family="gowin",
    part="GW1NR-LV9QN88PC6/I5",
    platform="amaranth_boards.tang_nano_9k:TangNano9kPlatform",
    clock_resource="clk27",
    clock_hz=27_000_000,
    pll="gw1nr",
    logic_cell="LUT4",
    logic_cells=8640,
    flip_flops=6480,
    block="BSRAM",
    blocks=26,
    block_bits=18432,
    synthesis=("-family", "gw1n"),
    place=("--device", "GW1NR-LV9QN88PC6/I5", "--vopt", "family=GW1N-9C"),
    pack=("-d", "GW1N-9C"),
    typical_mhz=68.0,
)
