"""Bars as HTML and pictures as inline SVG; colours are the page's CSS variables, so that they follow light and dark."""

from collections.abc import Sequence
from html import escape

import numpy as np

__all__ = ["bars", "count", "grey_picture", "split_bars", "usage_bars"]


def count(value: int) -> str:
    """Digits in groups of three from 10 000 on, with spaces that no line breaks at."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if abs(value) >= 10_000 else str(value)


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
        lines.append((label, [(number / total, colour) for number, colour in zip(counts, colours, strict=True)], text))
    return _chart(title, lines)


def usage_bars(rows: Sequence[tuple[str, int, int]], title: str) -> str:
    """Bars of used against available."""
    lines = []
    for label, used, available in rows:
        share = used / available if available else 0.0
        lines.append((label, [(share, "var(--accent)"), (1 - share, "var(--zero)")], f"{count(used)} of {count(available)}"))
    return _chart(title, lines)


def _chart(title: str, lines: Sequence[tuple[str, Sequence[tuple[float, str]], str]]) -> str:
    """A grid of label, bar and value: unlike a scaled picture its text stays legible on a narrow screen."""
    parts = [f'<div class="chart" role="img" aria-label="{escape(title)}">']
    for label, shares, text in lines:
        filled = "".join(
            f'<i style="width: {max(share, 0.0) * 100:.2f}%; background: {colour}"></i>' for share, colour in shares if share > 0
        )
        parts.append(f'<span class="label" title="{escape(label)}">{escape(label)}</span><span class="bar">{filled}</span>')
        parts.append(f'<span class="value">{escape(text)}</span>')
    return "".join(parts) + "</div>"


def grey_picture(pixels: np.ndarray, title: str) -> str:
    """A small picture, float (height, width), dark where the value is large."""
    height, width = pixels.shape
    span = float(pixels.max() - pixels.min()) or 1.0
    parts = [f'<svg class="pixels" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>']
    for (y, x), value in np.ndenumerate((pixels - pixels.min()) / span):
        if value > 0:
            parts.append(f'<rect x="{x}" y="{y}" width="1.02" height="1.02" fill="var(--ink)" fill-opacity="{float(value):.2f}"/>')
    return "".join(parts) + "</svg>"
