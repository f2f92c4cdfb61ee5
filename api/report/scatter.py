"""Accuracy against cost as an SVG file of its own, readable on light and dark pages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tritloom.planes import PlaneSearch, Point

__all__ = ["accuracy_plot"]

_WIDTH, _HEIGHT = 460, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 24, 40, 52
_LOWEST = 0.05
"""The axis ends this much below the float model's accuracy, or at five times the allowed loss; points below it stand on its edge."""

_STYLE = (
    "text{fill:#1d2330;font:12px system-ui,sans-serif}.s{fill:#5d6675}.a{stroke:#b9b4a6;fill:none}.p{fill:#5d6675;fill-opacity:.55}"
    ".c{fill:#0f7b6c;stroke:#1d2330}.f{stroke:#0f7b6c;fill:none}.b{stroke:#c4562f;stroke-dasharray:5 4;fill:none}"
)


@dataclass(frozen=True)
class _Axis:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round values inside."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def accuracy_plot(search: PlaneSearch, title: str) -> str:
    """All points of a search: accuracy against cycles, and against bytes of weights; the chosen one is marked and named.

    Points that do not fit the board are left out. The upper line is the float model, the dashed one the least accuracy that is allowed.
    """
    points = [point for point in search.points if point.cycles is not None]
    panels = (
        (f"cycles an inference, {search.board}", [point.cycles or 0 for point in points]),
        ("bytes of weight memory", [point.weight_bytes or 0 for point in points]),
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * _WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{2 * _WIDTH}" height="{_HEIGHT}" rx="10" fill="#fbfaf7"/>',
        f'<text x="{_LEFT}" y="24" font-weight="600">{escape(title)}</text>',
    ]
    for number, (label, costs) in enumerate(panels):
        parts += _panel(search, points, costs, label, number * _WIDTH)
    return "\n".join([*parts, "</svg>", ""])


def _panel(search: PlaneSearch, points: Sequence[Point], costs: Sequence[int], label: str, left: int) -> list[str]:
    best = search.float_correct / search.samples
    floor = best - max(_LOWEST, 5 * search.max_loss)
    accuracies = [point.accuracy for point in points]
    bottom, top = max(floor, min([best - search.max_loss, *accuracies]) - 0.002), min(1.0, max([best, *accuracies]) + 0.002)
    across = _Axis(0, max(costs) * 1.08, left + _LEFT, left + _WIDTH - _RIGHT)
    up = _Axis(bottom, max(top, bottom + 0.001), _HEIGHT - _BOTTOM, _TOP)
    parts = [f'<path class="a" d="M{across.start} {_TOP}V{up.start}H{across.end}"/>']
    for value in across.ticks():
        x = across(value)
        parts.append(f'<path class="a" d="M{x:.1f} {up.start}v4"/>')
        parts.append(f'<text class="s" x="{x:.1f}" y="{up.start + 18}" text-anchor="middle">{value:g}</text>')
    for value in up.ticks():
        y = up(value)
        parts.append(
            f'<path class="a" d="M{across.start} {y:.1f}h-4"/>'
            f'<text class="s" x="{across.start - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.1%}</text>'
        )
    parts.append(f'<text x="{(across.start + across.end) / 2}" y="{_HEIGHT - 14}" text-anchor="middle">{escape(label)}</text>')
    for kind, value, name in (("f", best, "float model"), ("b", best - search.max_loss, f"{search.max_loss:.2%} less")):
        parts.append(f'<path class="{kind}" d="M{across.start} {up(value):.1f}H{across.end}"/>')
        parts.append(f'<text class="s" x="{across.start + 4}" y="{up(value) - 5:.1f}">{name}</text>')
    # The chosen point last, so that it lies on top.
    for point, cost in sorted(zip(points, costs, strict=True), key=lambda pair: pair[0] is search.chosen):
        parts.append(_mark(point, across(cost), up(max(point.accuracy, bottom)), point.accuracy < bottom, point is search.chosen))
    return parts


def _mark(point: Point, x: float, y: float, below: bool, chosen: bool) -> str:
    told = f"<title>{escape(point.name)}: {point.accuracy:.2%}, {point.cycles} cycles, {point.weight_bytes} bytes</title>"
    if below:
        return f'<path class="p" d="M{x - 4:.1f} {y - 7:.1f}h8l-4 7z">{told}</path>'
    if not chosen:
        return f'<circle class="p" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{told}</circle>'
    name = f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">chosen</text>'
    return f'<circle class="c" cx="{x:.1f}" cy="{y:.1f}" r="6">{told}</circle>{name}'
