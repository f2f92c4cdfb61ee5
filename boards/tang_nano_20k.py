"""Sipeed Tang Nano 20K: Gowin GW2AR-18. amaranth-boards has no file for it, so its platform stands here."""

from amaranth.build import Attrs, Clock, Pins, Resource, Subsignal
from amaranth.vendor import GowinPlatform

from tritloom.boards.board import Board

__all__ = ["BOARD", "TangNano20kPlatform"]


class TangNano20kPlatform(GowinPlatform):  # pyright: ignore[reportGeneralTypeIssues]  # amaranth.vendor finds its classes at run time
    """Oscillator and USB serial port of the Tang Nano 20K (Sipeed schematic 3921)."""

    part = "GW2AR-LV18QN88C8/I7"
    family = "GW2AR-18C"
    default_clk = "clk27"
    connectors = ()
    resources = (
        Resource("clk27", 0, Pins("4", dir="i"), Clock(27e6), Attrs(IO_TYPE="LVCMOS33")),
        Resource(
            "uart",
            0,
            Subsignal("rx", Pins("70", dir="i")),
            Subsignal("tx", Pins("69", dir="o")),
            Attrs(IO_TYPE="LVCMOS33"),
        ),
    )


BOARD = Board(
    name="tang-nano-20k",
    title="Tang Nano 20K",
    maker="Sipeed",
    price_usd=30,
    family="gowin",
    part="GW2AR-LV18QN88C8/I7",
    platform="tritloom.boards.tang_nano_20k:TangNano20kPlatform",
    clock_resource="clk27",
    clock_hz=27_000_000,
    pll="gw2ar",
    logic_cell="LUT4",
    logic_cells=20736,
    flip_flops=15552,
    block="BSRAM",
    blocks=46,
    block_bits=18432,
    synthesis=("-family", "gw2a"),
    place=("--device", "GW2AR-LV18QN88C8/I7", "--vopt", "family=GW2A-18C"),
    pack=("-d", "GW2A-18C"),
    typical_mhz=100.0,
    sdram_bits=32,
)
