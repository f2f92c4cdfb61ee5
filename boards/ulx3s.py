"""ULX3S with the ECP5 25F and 85F."""

from tritloom.boards.board import Board

__all__ = ["ULX3S_25F", "ULX3S_85F"]


def _ulx3s(*, size: str, price_usd: int, cells: int, blocks: int, dsps: int) -> Board:
    return Board(
        name=f"ulx3s-{size.lower()}",
        title=f"ULX3S {size}",
        maker="Radiona",
        price_usd=price_usd,
        family="ecp5",
        part=f"LFE5U-{size}-6BG381C",
        platform=f"amaranth_boards.ulx3s:ULX3S_{size}_Platform",
        clock_resource="clk25",
        clock_hz=25_000_000,
        pll="ecp5",
        logic_cell="TRELLIS_COMB",
        logic_cells=cells,
        block="DP16KD",
        blocks=blocks,
        # 1024 x 18; in the shapes without the parity bits (8, 4, 2, 1 wide) a block holds 16384 bits.
        block_bits=18432,
        dsp="MULT18X18D",
        dsps=dsps,
        place=(f"--{size[:-1]}k", "--package", "CABGA381", "--speed", "6"),
        pack=("--compress",),
        typical_mhz=100.0,
        vector_mhz=66.0,
        sdram_bits=16,
    )


ULX3S_25F = _ulx3s(size="25F", price_usd=115, cells=24288, blocks=56, dsps=28)
ULX3S_85F = _ulx3s(size="85F", price_usd=195, cells=83640, blocks=208, dsps=156)
