"""Legal settings of the clock generators (PLL) of the three FPGA families, found by exact search.

All frequencies are exact: :class:`fractions.Fraction` in Hz. The limits are those of the makers' data sheets: iCE40 sysCLOCK
PLL design guide (FPGA-TN-02052), ECP5 data sheet (FPGA-DS-02012), Gowin GW1NR (DS117) and GW2AR (DS226).
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from amaranth.hdl import Const, Instance, IOPort, Signal, Value

__all__ = ["PLL_KINDS", "Limits", "PllSetting", "best_setting", "legal_settings"]

_MHZ = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Ranges of a PLL, inclusive, in MHz: phase detector, voltage-controlled oscillator and output."""

    detector: tuple[Fraction, Fraction]
    oscillator: tuple[Fraction, Fraction]
    output: tuple[Fraction, Fraction]


def _limits(detector: tuple[str, str], oscillator: tuple[str, str], output: tuple[str, str]) -> Limits:
    def pair(texts: tuple[str, str]) -> tuple[Fraction, Fraction]:
        return Fraction(texts[0]), Fraction(texts[1])

    return Limits(detector=pair(detector), oscillator=pair(oscillator), output=pair(output))


PLL_KINDS: dict[str, Limits] = {
    "ice40": _limits(("10", "133"), ("533", "1066"), ("16", "275")),
    "ecp5": _limits(("10", "400"), ("400", "800"), ("3.125", "400")),
    "gw1nr": _limits(("3", "400"), ("400", "1200"), ("3.125", "600")),
    "gw2ar": _limits(("3", "500"), ("500", "1250"), ("3.90625", "625")),
}


@dataclass(frozen=True, kw_only=True)
class _Registers:
    """Largest reference and feedback ratio, the output dividers, and whether the divided output (Gowin) is what is fed back."""

    reference: int
    feedback: int
    post: tuple[int, ...]
    output_fed_back: bool = False


_GOWIN = _Registers(reference=64, feedback=64, post=(2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128), output_fed_back=True)
_REGISTERS = {
    "ice40": _Registers(reference=16, feedback=128, post=(2, 4, 8, 16, 32, 64)),
    "ecp5": _Registers(reference=128, feedback=128, post=tuple(range(1, 129))),
    "gw1nr": _GOWIN,
    "gw2ar": _GOWIN,
}


@dataclass(frozen=True, kw_only=True)
class PllSetting:
    """One legal setting: ``frequency = input_hz / reference * feedback / post`` in Hz, Gowin without ``/ post``.

    ``reference``, ``feedback`` and ``post`` are the true ratios, not the register codes. The oscillator runs at
    ``frequency * post``.
    """

    kind: str
    input_hz: Fraction
    reference: int
    feedback: int
    post: int
    frequency: Fraction

    @property
    def mhz(self) -> float:
        """Output frequency in MHz, rounded to Hz."""
        return round(float(self.frequency) / _MHZ, 6)

    @property
    def registers(self) -> dict[str, int]:
        """Parameters of the family's PLL cell that differ from setting to setting."""
        if self.kind == "ice40":
            detector = self.input_hz / self.reference / _MHZ
            # Loop filter by phase detector frequency, the table of Lattice's PLL wizard.
            loop_filter = 1 + sum(detector >= bound for bound in (17, 26, 44, 66, 101))
            return {
                "DIVR": self.reference - 1,
                "DIVF": self.feedback - 1,
                "DIVQ": self.post.bit_length() - 1,
                "FILTER_RANGE": loop_filter,
            }
        if self.kind == "ecp5":
            return {
                "CLKI_DIV": self.reference,
                "CLKOP_DIV": self.feedback,
                "CLKOP_CPHASE": self.feedback - 1,
                "CLKOS_DIV": self.post,
                "CLKOS_CPHASE": self.post - 1,
            }
        return {"IDIV_SEL": self.reference - 1, "FBDIV_SEL": self.feedback - 1, "ODIV_SEL": self.post}

    def instance(self, *, pin: Value | IOPort, on_pad: bool, output: Signal, locked: Signal) -> Instance:
        """The family's PLL cell. ``pin`` is the buffered clock input, or with ``on_pad`` (iCE40 only) the PLL's own package pin."""
        if self.kind == "ice40":
            return self._ice40(pin, on_pad, output, locked)
        return self._ecp5(pin, output, locked) if self.kind == "ecp5" else self._gowin(pin, output, locked)

    @property
    def _parameters(self) -> dict[str, int]:
        return {f"p_{name}": value for name, value in self.registers.items()}

    def _ice40(self, pin: Value | IOPort, on_pad: bool, output: Signal, locked: Signal) -> Instance:
        return Instance(
            "SB_PLL40_PAD" if on_pad else "SB_PLL40_CORE",
            ("i", "PACKAGEPIN" if on_pad else "REFERENCECLK", pin),
            p_FEEDBACK_PATH="SIMPLE",
            **self._parameters,
            i_RESETB=1,
            i_BYPASS=0,
            o_PLLOUTGLOBAL=output,
            o_LOCK=locked,
        )

    def _ecp5(self, pin: Value | IOPort, output: Signal, locked: Signal) -> Instance:
        # The first output only closes the loop, at the detector's own frequency; the second is the clock. This allows every
        # ratio feedback / post, where feeding the clock itself back would allow integers only.
        loop = Signal(name="pll_feedback")
        return Instance(
            "EHXPLLL",
            # Loop current and resistance as Lattice's clock wizard sets them.
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            **self._parameters,
            p_CLKFB_DIV=1,
            p_CLKOP_ENABLE="ENABLED",
            p_CLKOS_ENABLE="ENABLED",
            p_FEEDBK_PATH="CLKOP",
            i_CLKI=pin,
            i_CLKFB=loop,
            i_RST=0,
            i_STDBY=0,
            o_CLKOP=loop,
            o_CLKOS=output,
            o_LOCK=locked,
        )

    def _gowin(self, pin: Value | IOPort, output: Signal, locked: Signal) -> Instance:
        return Instance(
            "rPLL",
            p_DEVICE={"gw1nr": "GW1NR-9C", "gw2ar": "GW2AR-18C"}[self.kind],
            p_FCLKIN=f"{float(self.input_hz) / _MHZ:g}",
            **self._parameters,
            p_DYN_IDIV_SEL="false",
            p_DYN_FBDIV_SEL="false",
            p_DYN_ODIV_SEL="false",
            p_CLKFB_SEL="internal",
            i_CLKIN=pin,
            i_CLKFB=0,
            i_RESET=0,
            i_RESET_P=0,
            i_FBDSEL=Const(0, 6),
            i_IDSEL=Const(0, 6),
            i_ODSEL=Const(0, 6),
            i_PSDA=Const(0, 4),
            i_DUTYDA=Const(0, 4),
            i_FDLY=Const(0, 4),
            o_CLKOUT=output,
            o_LOCK=locked,
        )


@cache
def legal_settings(kind: str, input_hz: int) -> tuple[PllSetting, ...]:
    """One setting for each frequency that the PLL can make of ``input_hz``, lowest first.

    Among the settings of one frequency the one with the smallest reference divider is taken (least jitter), then the one
    whose oscillator runs fastest.
    """
    limits, registers = PLL_KINDS[kind], _REGISTERS[kind]
    chosen: dict[Fraction, PllSetting] = {}
    for reference in range(1, registers.reference + 1):
        detector = Fraction(input_hz, reference * _MHZ)
        if not limits.detector[0] <= detector <= limits.detector[1]:
            continue
        for post in sorted(registers.post, reverse=True):
            for feedback in range(1, registers.feedback + 1):
                oscillator = detector * feedback * (post if registers.output_fed_back else 1)
                frequency = oscillator / post
                if not limits.oscillator[0] <= oscillator <= limits.oscillator[1]:
                    continue
                if limits.output[0] <= frequency <= limits.output[1] and frequency not in chosen:
                    chosen[frequency] = PllSetting(
                        kind=kind,
                        input_hz=Fraction(input_hz),
                        reference=reference,
                        feedback=feedback,
                        post=post,
                        frequency=frequency * _MHZ,
                    )
    return tuple(chosen[frequency] for frequency in sorted(chosen))


def best_setting(kind: str, input_hz: int, limit_hz: Fraction | float) -> PllSetting | None:
    """The highest legal frequency not above ``limit_hz``; ``None`` when the PLL cannot go that low."""
    legal = [setting for setting in legal_settings(kind, input_hz) if setting.frequency <= Fraction(limit_hz)]
    return legal[-1] if legal else None
