"""Clock generator settings against brute force over the registers, written from the makers' formulas a second time."""

from fractions import Fraction

import pytest
from amaranth.hdl import IOPort, Signal
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.boards import BOARDS
from tritloom.boards.pll import best_setting, legal_settings

MHZ = 1_000_000


def brute_ice40(hz):
    """f = f_in * (DIVF + 1) / (2**DIVQ * (DIVR + 1)), phase detector 10..133 MHz, oscillator 533..1066, output 16..275."""
    for divr in range(16):
        if not 10 * MHZ * (divr + 1) <= hz <= 133 * MHZ * (divr + 1):
            continue
        for divf in range(128):
            oscillator = Fraction(hz * (divf + 1), divr + 1)
            for divq in range(1, 7):
                output = oscillator / 2**divq
                if 533 * MHZ <= oscillator <= 1066 * MHZ and 16 * MHZ <= output <= 275 * MHZ:
                    yield output


def brute_ecp5(hz):
    """Oscillator = f_in / CLKI_DIV * CLKOP_DIV (the first output is fed back undivided), output = oscillator / CLKOS_DIV."""
    for reference in range(1, 129):
        if not 10 * MHZ * reference <= hz <= 400 * MHZ * reference:
            continue
        for first in range(1, 129):
            oscillator = Fraction(hz * first, reference)
            if 400 * MHZ <= oscillator <= 800 * MHZ:
                yield from (oscillator / second for second in range(1, 129) if Fraction(25, 8) * MHZ <= oscillator / second <= 400 * MHZ)


def brute_gowin(hz, detector_high, oscillator_low, oscillator_high, output_low, output_high):
    """f = f_in * (FBDIV_SEL + 1) / (IDIV_SEL + 1), oscillator = f * ODIV_SEL."""
    for idiv in range(64):
        if not 3 * MHZ * (idiv + 1) <= hz <= detector_high * MHZ * (idiv + 1):
            continue
        for fbdiv in range(64):
            output = Fraction(hz * (fbdiv + 1), idiv + 1)
            for odiv in (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128):
                if oscillator_low * MHZ <= output * odiv <= oscillator_high * MHZ and output_low * MHZ <= output <= output_high * MHZ:
                    yield output


CASES = {
    "ice40": (12 * MHZ, brute_ice40),
    "ecp5": (25 * MHZ, brute_ecp5),
    "gw1nr": (27 * MHZ, lambda hz: brute_gowin(hz, 400, 400, 1200, Fraction(25, 8), 600)),
    "gw2ar": (27 * MHZ, lambda hz: brute_gowin(hz, 500, 500, 1250, Fraction(125, 32), 625)),
}


@pytest.mark.parametrize("kind", CASES)
def test_every_frequency_of_the_registers_is_found_and_no_other(kind):
    hz, brute = CASES[kind]
    assert [setting.frequency for setting in legal_settings(kind, hz)] == sorted(set(brute(hz)))


@pytest.mark.parametrize("kind", CASES)
@settings(deadline=None, max_examples=60)
@given(limit=st.floats(min_value=1e6, max_value=700e6))
def test_best_setting_is_the_highest_not_above_the_limit(kind, limit):
    hz = CASES[kind][0]
    below = [setting.frequency for setting in legal_settings(kind, hz) if setting.frequency <= limit]
    found = best_setting(kind, hz, limit)
    assert (found.frequency if found else None) == (max(below) if below else None)


@pytest.mark.parametrize("kind", CASES)
def test_an_exactly_legal_limit_is_reached(kind):
    hz = CASES[kind][0]
    wanted = legal_settings(kind, hz)[7]
    assert best_setting(kind, hz, wanted.frequency) == wanted


@pytest.mark.parametrize("kind", CASES)
def test_register_codes_of_the_cell_give_the_frequency(kind):
    hz = CASES[kind][0]
    for setting in legal_settings(kind, hz)[::11]:
        cell = setting.instance(pin=IOPort(1, name="pin"), on_pad=kind == "ice40", output=Signal(), locked=Signal())
        codes = cell.parameters
        if kind == "ice40":
            made = Fraction(hz * (codes["DIVF"] + 1), (codes["DIVR"] + 1) << codes["DIVQ"])
        elif kind == "ecp5":
            made = Fraction(hz * codes["CLKFB_DIV"] * codes["CLKOP_DIV"], codes["CLKI_DIV"] * codes["CLKOS_DIV"])
        else:
            made = Fraction(hz * (codes["FBDIV_SEL"] + 1), codes["IDIV_SEL"] + 1)
            assert Fraction(codes["FCLKIN"]) * MHZ == hz
        assert made == setting.frequency


def test_loop_filter_follows_the_phase_detector():
    setting = best_setting("ice40", 12 * MHZ, 60 * MHZ)
    cell = setting.instance(pin=Signal(), on_pad=False, output=Signal(), locked=Signal())
    assert (cell.type, cell.parameters["FILTER_RANGE"]) == ("SB_PLL40_CORE", 1)


@pytest.mark.parametrize("name", [name for name, board in BOARDS.items() if board.family != "none"])
def test_the_serial_port_is_fast_and_has_clocks_enough_in_a_bit(name):
    """Twenty clocks a bit put the sample within 5 % of the middle."""
    board = BOARDS[name]
    assert board.divisor >= 20
    assert 960_000 <= board.typical_clock.frequency / board.divisor <= 1_040_000
