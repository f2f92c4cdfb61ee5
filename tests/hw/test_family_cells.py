# amaranth: UnusedElaboratable=no
"""The ECP5 adders against the portable ones: proven by a solver, for all operands, with the cell models that yosys ships.

iCE40 and Gowin have no adders of their own; their netlists are held against golden in tests/sim."""

import pytest
from amaranth.back import rtlil

from tritloom.boards import get_board
from tritloom.boards.toolchain import run_yosys
from tritloom.errors import BuildError
from tritloom.hw.cell import AccumulatorAdder, PairAdder, ProductAdder, TernaryCell, adder, ecp5


def prove_equal(folder, component, *, mapped: bool) -> None:
    """Raise :class:`BuildError` unless the component as built for ECP5, or its netlist, equals the portable one for all inputs."""
    platform = get_board("ulx3s-25f").make_platform()
    (folder / "portable.il").write_text(rtlil.convert(component, name="portable", emit_src=False))
    (folder / "family.il").write_text(rtlil.convert(component, name="family", emit_src=False, platform=platform))
    # Written and read again, so that nothing is left of the models that synthesis works with.
    synthesis = (
        "synth_ecp5 -top family\nselect family\nwrite_rtlil -selected mapped.il\ndesign -reset\nread_rtlil mapped.il\n" if mapped else ""
    )
    run_yosys(
        f"read_rtlil family.il\n{synthesis}read_verilog -overwrite +/ecp5/cells_sim.v\nhierarchy -top family\nproc\nflatten\nopt_clean\nselect -assert-none t:CCU2C\n"
        "design -stash candidate\nread_rtlil portable.il\nproc\nflatten\ndesign -stash reference\n"
        "design -copy-from candidate family\ndesign -copy-from reference portable\n"
        "miter -equiv -make_outputs -flatten portable family both\nhierarchy -top both\nsat -verify -prove trigger 0 -show-inputs both\n",
        cwd=folder,
    )


# Two columns, so that one adder follows another in a chain; few bits, because a solver takes long over wide sums, and every bit is alike.
COMPONENTS = {
    "first product of a sum": lambda: ProductAdder(columns=1, partial_bits=8, sum_bits=9),
    "products of two columns": lambda: ProductAdder(columns=2, partial_bits=9, sum_bits=10),
    "product whose sum is no wider": lambda: ProductAdder(columns=2, partial_bits=9, sum_bits=9),
    "pairs": lambda: PairAdder(columns=2, bits=8),
    "accumulators": lambda: AccumulatorAdder(columns=2, accumulator_bits=9, sum_bits=7),
    "cell": TernaryCell,
}


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("mapped", [False, True])
def test_adders_of_ecp5_equal_the_portable_ones(tmp_path, name, mapped):
    """The carry cells as they are instantiated, and the netlist after synthesis."""
    prove_equal(tmp_path, COMPONENTS[name](), mapped=mapped)


@pytest.mark.parametrize("name,wrong", [("ADD_PRODUCT", 0x69AA), ("ADD", 0x6666), ("ADD_SELECTED", 0x665B), ("_CARRY_IN", 0x0000)])
def test_a_wrong_table_is_found(tmp_path, monkeypatch, name, wrong):
    """The proof is one: with a single table changed it fails, whichever adder uses it."""
    monkeypatch.setattr(ecp5 if name == "_CARRY_IN" else adder, name, wrong)
    component = {"ADD": PairAdder(columns=2, bits=9), "ADD_SELECTED": AccumulatorAdder(columns=2, accumulator_bits=9, sum_bits=7)}.get(
        name, ProductAdder(columns=2, partial_bits=9, sum_bits=10)
    )
    with pytest.raises(BuildError):
        prove_equal(tmp_path, component, mapped=False)
