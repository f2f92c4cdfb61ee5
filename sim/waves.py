"""Views of a wave file: signals grouped as in the block diagram, for GTKWave (``.gtkw``) and Surfer (``.sucl``)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tritloom.hw.arch.isa import Opcode
from tritloom.hw.arch.link import LinkOpcode, Space, State

__all__ = ["WaveSignal", "read_signals", "write_views"]

_GROUPS: dict[str, re.Pattern[str]] = {
    "clock": re.compile(r"(?!)"),
    "link": re.compile(r"^(link|uart|receiver|transmitter)"),
    "sequencer": re.compile(r"^(sequencer|control|fetch|nest|loop|operand)"),
    "array": re.compile(r"^(array|mesh|tile|accumul)"),
    "post": re.compile(r"^(post|requant|result|maximum)"),
}
"""Group, and what the name of a block that belongs to it begins with; clock and reset are found by their own names."""

_SIGNALS_PER_GROUP = 48
"""A view is a beginning: the viewer's own tree has the rest."""

_GTKWAVE_GROUP, _GTKWAVE_GROUP_END = "@800200", "@1000200"
_GTKWAVE_BIT, _GTKWAVE_HEX, _GTKWAVE_TRANSLATED = "@28", "@22", "@2022"

_ENUMS = {
    "state": {int(item): item.name for item in State},
    "opcode": {int(item): item.name for item in Opcode},
    "link_opcode": {int(item): item.name for item in LinkOpcode},
    "space": {int(item): item.name for item in Space},
}


@dataclass(frozen=True)
class WaveSignal:
    """A variable of a VCD file: path of its scope, name, bits."""

    scope: tuple[str, ...]
    name: str
    bits: int

    @property
    def path(self) -> str:
        """As GTKWave writes it, bit range included."""
        return ".".join([*self.scope, self.name]) + (f"[{self.bits - 1}:0]" if self.bits > 1 else "")


def read_signals(dump: Path) -> Iterator[WaveSignal]:
    """The variables that a VCD file's header declares, without array elements' copies."""
    scope: list[str] = []
    with open(dump, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            words = line.split()
            if words[:1] == ["$scope"]:
                scope.append(words[2])
            elif words[:1] == ["$upscope"]:
                scope.pop()
            elif words[:1] == ["$var"]:
                yield WaveSignal(tuple(scope), words[4], int(words[2]))
            elif words[:1] == ["$enddefinitions"]:
                return


def write_views(dump: Path) -> tuple[Path, ...]:
    """Write ``.gtkw`` and ``.sucl`` beside a VCD file, and the names of states and opcodes that the former refers to."""
    groups = _grouped(list(read_signals(dump)))
    for name, names in _ENUMS.items():
        text = "".join(f"{value:x} {label}\n" for value, label in names.items())
        dump.with_name(f"{dump.stem}.{name}.txt").write_text(text)
    gtkwave = [f'[dumpfile] "{dump.name}"', "[timestart] 0"]
    surfer = []
    for group, signals in groups.items():
        gtkwave += [_GTKWAVE_GROUP, f"-{group}"]
        surfer.append(f"divider_add {group}")
        for signal in signals:
            enum = _enum_of(signal)
            if enum is not None:
                gtkwave += [_GTKWAVE_TRANSLATED, f"^1 {dump.stem}.{enum}.txt"]
            else:
                gtkwave.append(_GTKWAVE_BIT if signal.bits == 1 else _GTKWAVE_HEX)
            gtkwave.append(signal.path)
            surfer.append("variable_add " + ".".join([*signal.scope, signal.name]))
        gtkwave += [_GTKWAVE_GROUP_END, f"-{group}"]
    surfer.append("zoom_fit")
    views = dump.with_suffix(".gtkw"), dump.with_suffix(".sucl")
    views[0].write_text("\n".join(gtkwave) + "\n")
    views[1].write_text("\n".join(surfer) + "\n")
    return views


def _grouped(signals: list[WaveSignal]) -> dict[str, list[WaveSignal]]:
    """Signals by group, those of outer blocks first; tools' own signals, and copies of clock and reset, are left out."""
    # Amaranth ends a block's name in "$" and a number where it shares it with a signal; such signals are copies of ports.
    plain = [
        signal
        for signal in signals
        if not any(part.startswith("$") for part in signal.scope) and "$" not in signal.name and "." not in signal.name
    ]
    groups: dict[str, list[WaveSignal]] = {name: [] for name in _GROUPS}
    if not plain:
        return {}
    top = min(len(signal.scope) for signal in plain)
    for signal in sorted(plain, key=lambda signal: len(signal.scope)):
        group = _group_of(signal, top)
        if group is not None and len(groups[group]) < _SIGNALS_PER_GROUP:
            groups[group].append(signal)
    return {name: members for name, members in groups.items() if members}


def _group_of(signal: WaveSignal, top: int) -> str | None:
    if signal.name in ("clk", "rst"):
        return "clock" if len(signal.scope) == top else None
    blocks = signal.scope[top:]
    if not blocks:
        return "link"
    # The outermost block that any group knows decides: a counter inside the link belongs to the link.
    for block in blocks:
        for group, pattern in _GROUPS.items():
            if pattern.search(block):
                return group
    return None


def _enum_of(signal: WaveSignal) -> str | None:
    if signal.name == "opcode":
        return "link_opcode" if any("link" in scope or "engine" in scope for scope in signal.scope) else "opcode"
    if signal.name in ("state", "write_space", "space"):
        return "state" if signal.name == "state" and signal.bits == 2 else "space" if signal.name != "state" else None
    return None
