"""Views of a wave file: signals grouped as in the block diagram, for GTKWave (``.gtkw``) and Surfer (``.sucl``)."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from pathlib import Path

from tritloom.hw.arch.isa import Opcode
from tritloom.hw.arch.link import LinkOpcode, Space, State

__all__ = ["WaveSignal", "read_signals", "write_views"]

_GROUPS: dict[str, re.Pattern[str]] = {
    "clock": re.compile(r"(?!)"),
    "sequencer": re.compile(r"^(sequencer|control|fetch|nest|loop|operand)"),
    "array": re.compile(r"^(array|mesh|tile|accumul)"),
    "post": re.compile(r"^(post|requant|result|maximum)"),
    "link": re.compile(r"^(link|uart|receiver|transmitter)"),
}
"""Group, and what the name of a block that belongs to it begins with; clock and reset are found by their own names."""

_SIGNALS_PER_GROUP = 48
"""A view is a beginning: the viewer's own tree has the rest."""

_GTKWAVE_GROUP, _GTKWAVE_GROUP_END, _GTKWAVE_COMMENT = "@800200", "@1000200", "@200"
_GTKWAVE_BIT, _GTKWAVE_HEX, _GTKWAVE_TRANSLATED = "@28", "@22", "@2022"

_VIEW_PIXELS = 800
"""Width of the waves in a window of usual size, for the zoom that shows the whole dump."""

_FIRST_TIMES, _PAUSE = 8, 100
"""Times at the beginning among which a pause is looked for, and how many of the shortest steps a pause is longer than."""

_TAIL = 1 << 20
"""Bytes at the end of a dump in which the last time is looked for."""

_ENUMS = {
    "state": {int(item): item.name for item in State},
    "opcode": {int(item): item.name for item in Opcode},
    "link_opcode": {int(item): item.name for item in LinkOpcode},
    "space": {int(item): item.name for item in Space},
}


@dataclass(frozen=True)
class WaveSignal:
    """A variable of a VCD file: path of its scope, name, bits; variables with one ``code`` are the same wire."""

    scope: tuple[str, ...]
    name: str
    bits: int
    code: str

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
                yield WaveSignal(tuple(scope), words[4], int(words[2]), words[3])
            elif words[:1] == ["$enddefinitions"]:
                return


def write_views(dump: Path) -> tuple[Path, ...]:
    """Write ``.gtkw`` and ``.sucl`` beside a VCD file, and the names of states and opcodes that the former refers to."""
    groups = _grouped(list(read_signals(dump)))
    for name, names in _ENUMS.items():
        text = "".join(f"{value:x} {label}\n" for value, label in names.items())
        dump.with_name(f"{dump.stem}.{name}.txt").write_text(text)
    start, end = _times(dump)
    # GTKWave's zoom is minus the binary logarithm of the time that 200 pixels take; -1 says that no marker is set.
    zoom = -math.log2(max(1, end - start) * 200 / _VIEW_PIXELS)
    gtkwave = [f'[dumpfile] "{dump.name}"', f"[timestart] {start}", f"*{zoom:.6f} -1"]
    surfer = []
    for group, signals in groups.items():
        gtkwave += [_GTKWAVE_GROUP, f"-{group}"]
        surfer.append(f"divider_add {group}")
        for scope, members in groupby(signals, lambda signal: signal.scope):
            if len(scope) > 1:
                block = ".".join(scope[1:])
                gtkwave += [_GTKWAVE_COMMENT, f"-{block}"]
                surfer.append(f"divider_add {block}")
            for signal in members:
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


def _times(dump: Path) -> tuple[int, int]:
    """First and last time that a view shows, in the VCD file's own units; zeros for a dump without changes.

    A dump whose recording was switched on later begins with a few clocks at time 0, which are left out.
    """
    with open(dump, "rb") as stream:
        for line in stream:
            if line.startswith(b"$enddefinitions"):
                break
        first = list(islice((int(line[1:]) for line in stream if line.startswith(b"#")), _FIRST_TIMES))
        stream.seek(max(stream.tell(), dump.stat().st_size - _TAIL))
        last = re.findall(rb"^#(\d+)", stream.read(), re.MULTILINE)
    if len(first) < 2:
        return 0, max(first, default=0)
    steps = [after - before for before, after in pairwise(first)]
    longest = max(steps)
    start = first[steps.index(longest) + 1] if longest > _PAUSE * min(steps) else first[0]
    return start, int(last[-1]) if last else first[-1]


def _grouped(signals: list[WaveSignal]) -> dict[str, list[WaveSignal]]:
    """Signals by group, block by block, outer blocks first.

    Left out are tools' own signals, copies of clock and reset, and other names of a wire that is shown already.
    """
    # Amaranth ends a block's name in "$" and a number where it shares it with a signal; such signals are copies of ports.
    plain = [
        signal
        for signal in signals
        if not any(part.startswith(("$", "\\$")) for part in signal.scope) and "$" not in signal.name and "." not in signal.name
    ]
    groups: dict[str, list[WaveSignal]] = {name: [] for name in _GROUPS}
    if not plain:
        return {}
    top = min(len(signal.scope) for signal in plain)
    shown: set[str] = set()
    for signal in sorted(plain, key=lambda signal: (len(signal.scope), signal.scope)):
        group = _group_of(signal, top)
        if group is not None and signal.code not in shown and len(groups[group]) < _SIGNALS_PER_GROUP:
            groups[group].append(signal)
            shown.add(signal.code)
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
