"""Line charts as inline SVG. Every point tells its figures in a ``<title>``, so no script is needed. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 12, 40
_TICKS = 5
_MOST_POINTS = 300  # of a line; beyond, neighbours share one


@dataclass(frozen=True)
class Dot:
    """``told``: the figures in words. ``label``: written beside it. ``ring``: it is the one to look at."""

    x: float
    y: float
    told: str
    label: str = ""
    ring: bool = False


@dataclass(frozen=True)
class Line:
    """``kind`` is its CSS class. ``dots`` None: a gap in the line."""

    name: str
    kind: str
    dots: Sequence[Dot | None]


@dataclass(frozen=True)
class Chart:
    title: str
    x_name: str
    y_name: str
    lines: Sequence[Line]
    mark_x: float | None = None  # a vertical line, such as the end of the warm-up
    marked: bool = False  # every point is drawn, not only the line


def svg(chart: Chart) -> str:
    lines = [thinned(line) for line in chart.lines]
    dots = [dot for line in lines for dot in line.dots if dot is not None]
    title = escape(chart.title)
    if not dots:
        return f"<figure><figcaption>{title}</figcaption><p>nothing to show</p></figure>"
    xs = ticks(min(dot.x for dot in dots), max(dot.x for dot in dots))
    ys = ticks(0, max(dot.y for dot in dots))
    place = _Place(xs, ys)
    parts = _axes(chart, place, xs, ys)
    if chart.mark_x is not None and xs[0] < chart.mark_x < xs[-1]:
        parts.append(f'<path class="mark" d="M{place.x(chart.mark_x)} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
    for line in lines:
        parts += _line(line, place, marked=chart.marked)
    names = [f'<span class="{line.kind}"><i></i>{escape(line.name)}</span>' for line in lines]
    return (
        f"<figure><figcaption>{title}<span>{''.join(names) if len(names) > 1 else ''}</span></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg></figure>"
    )


def ticks(low: float, high: float) -> list[float]:
    """Round values that span both, about ``_TICKS`` of them."""
    if high <= low:
        high = low + 1
    raw = (high - low) / _TICKS
    step = 10.0 ** math.floor(math.log10(raw))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= raw)
    first = math.floor(low / step)
    return [number * step for number in range(first, math.ceil(high / step - 1e-9) + 1)]


def thinned(line: Line) -> Line:
    """Of neighbours the highest stays: no peak is hidden."""
    every = math.ceil(len(line.dots) / _MOST_POINTS)
    if every <= 1:
        return line
    groups = (line.dots[start : start + every] for start in range(0, len(line.dots), every))
    kept = [max((dot for dot in group if dot), key=lambda dot: dot.y, default=None) for group in groups]
    return Line(line.name, line.kind, kept)


class _Place:
    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self._xs, self._ys = xs, ys

    def x(self, value: float) -> float:
        low, high = self._xs[0], self._xs[-1]
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self._ys[0], self._ys[-1]
        return round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _axes(chart: Chart, place: _Place, xs: Sequence[float], ys: Sequence[float]) -> list[str]:
    parts = []
    for value in ys:
        at = place.y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {at}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 6, at + 4, f"{value:,.4g}", anchor="end"))
    for value in xs:
        parts.append(_text(place.x(value), _HEIGHT - _BOTTOM + 16, f"{value:,.4g}"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, chart.x_name))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<g transform="rotate(-90 12 {middle})">{_text(12, middle, chart.y_name)}</g>')
    return parts


def _line(line: Line, place: _Place, *, marked: bool) -> list[str]:
    path, marks, pen = [], [], "M"
    look = "dot" if marked else "dot faint"
    for dot in line.dots:
        if dot is None:
            pen = "M"
            continue
        x, y = place.x(dot.x), place.y(dot.y)
        path.append(f"{pen}{x} {y}")
        pen = "L"
        if dot.ring:
            marks.append(f'<circle class="ring" cx="{x}" cy="{y}" r="9"/>')
        if dot.label:
            marks.append(_text(x, y - 12, dot.label))
        told = f"<title>{escape(dot.told)}</title>"
        marks.append(f'<circle class="{look}" cx="{x}" cy="{y}" r="3">{told}</circle>')
    return [f'<g class="{line.kind}"><path class="line" d="{"".join(path)}"/>', *marks, "</g>"]


def _text(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
