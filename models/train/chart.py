"""The course of a training as an SVG picture; needs no other package."""

from collections.abc import Sequence
from html import escape

__all__ = ["chart"]

WIDTH, HEIGHT = 720, 360
LEFT, TOP, RIGHT, BOTTOM = 60, 40, 60, 40


def chart(title: str, series: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Up to two curves over the epochs, the first with its axis on the left, the second on the right; both axes begin at 0.

    Parameters
    ----------
    title
        Above the curves.
    series
        Name and one value an epoch, none negative.
    """
    count = max((len(values) for _, values in series), default=0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fbfaf7"/>',
        f'<text x="{LEFT}" y="24" font-size="15" fill="#1d2330">{escape(title)}</text>',
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}V{TOP}" fill="none" stroke="#b9b4a6"/>',
        f'<text x="{WIDTH / 2:g}" y="{HEIGHT - 8}" text-anchor="middle" fill="#5d6675">epoch</text>',
    ]
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    for epoch in sorted({1, (count + 1) // 2, count} - {0}):
        x = LEFT + across * (epoch - 1) / max(1, count - 1)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle" fill="#5d6675">{epoch}</text>')
    for (name, values), colour, x, anchor in zip(
        series, ("#0f7b6c", "#c4562f"), (LEFT - 6, WIDTH - RIGHT + 6), ("end", "start"), strict=False
    ):
        top = max(values, default=0) or 1.0
        parts.append(f'<text x="{x}" y="{TOP - 8}" text-anchor="{anchor}" fill="{colour}">{escape(name)}</text>')
        for share in (0, 0.5, 1):
            y = TOP + down * (1 - share)
            parts.append(f'<text x="{x}" y="{y + 4:.1f}" text-anchor="{anchor}" fill="{colour}">{top * share:.3g}</text>')
        points = (
            f"{LEFT + across * index / max(1, len(values) - 1):.1f},{TOP + down * (1 - value / top):.1f}"
            for index, value in enumerate(values)
        )
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>", ""])
