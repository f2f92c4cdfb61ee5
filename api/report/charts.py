"""Pictures as inline SVG; colours are the page's CSS variables, so that they follow light and dark."""

from collections.abc import Sequence
from html import escape

import numpy as np

__all__ = ["bars", "grey_picture", "split_bars", "usage_bars"]

_WIDTH, _LABEL, _VALUE, _ROW, _BAR = 720, 170, 110, 26, 14


def bars(rows: Sequence[tuple[str, float, str]], title: str) -> str:
    """Horizontal bars: (label, value, text of the value)."""
    largest = max((value for _, value, _ in rows), default=0) or 1
    return _chart(title, [(label, [(value / largest, "var(--accent)")], text) for label, value, text in rows])


def split_bars(rows: Sequence[tuple[str, tuple[int, int, int], str]], title: str) -> str:
    """Bars of three parts that fill the width: counts of -1, 0 and 1."""
    colours = ("var(--negative)", "var(--zero)", "var(--accent)")
    lines = []
    for label, counts, text in rows:
        total = sum(counts) or 1
        lines.append((label, [(count / total, colour) for count, colour in zip(counts, colours, strict=True)], text))
    return _chart(title, lines)


def usage_bars(rows: Sequence[tuple[str, int, int]], title: str) -> str:
    """Bars of used against available."""
    lines = []
    for label, used, available in rows:
        share = used / available if available else 0.0
        lines.append((label, [(share, "var(--accent)"), (1 - share, "var(--zero)")], f"{used} of {available}"))
    return _chart(title, lines)


def _chart(title: str, lines: Sequence[tuple[str, Sequence[tuple[float, str]], str]]) -> str:
    room = _WIDTH - _LABEL - _VALUE
    height = _ROW * len(lines)
    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>']
    for index, (label, shares, text) in enumerate(lines):
        top = index * _ROW
        middle = top + _ROW / 2
        shown = label if len(label) <= 24 else label[:23] + "…"
        parts.append(f'<text x="{_LABEL - 10}" y="{middle}" class="label">{escape(shown)}<title>{escape(label)}</title></text>')
        x = float(_LABEL)
        for share, colour in shares:
            width = max(share, 0.0) * room
            if width > 0:
                parts.append(f'<rect x="{x:.1f}" y="{top + (_ROW - _BAR) / 2}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>')
            x += width
        parts.append(f'<text x="{x + 8:.1f}" y="{middle}" class="value">{escape(text)}</text>')
    return "".join(parts) + "</svg>"


def grey_picture(pixels: np.ndarray, title: str) -> str:
    """A small picture, float (height, width), dark where the value is large."""
    height, width = pixels.shape
    span = float(pixels.max() - pixels.min()) or 1.0
    parts = [f'<svg class="pixels" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>']
    for (y, x), value in np.ndenumerate((pixels - pixels.min()) / span):
        if value > 0:
            parts.append(f'<rect x="{x}" y="{y}" width="1.02" height="1.02" fill="var(--ink)" fill-opacity="{float(value):.2f}"/>')
    return "".join(parts) + "</svg>"
