"""The bare page: its style sheet and the few HTML elements that a report is made of, all text escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

NOT_RECORDED = '<span class="missing">not recorded</span>'
_STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f6f7fa; --card: #ffffff; --ink: #1b1f2a; --faint: #626a7d; --rule: #e1e4ec;
  --accent: #2f6fde; --warm: #b7791f; --good: #18794e; --bad: #c03030;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #12141c; --card: #1a1d28; --ink: #e8eaf2; --faint: #9aa1b5; --rule: #2c3040;
    --accent: #6fb1ff; --warm: #ffd166; --good: #4cc38a; --bad: #ff7b7b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .8rem; }
p { margin: .4rem 0; max-width: 75ch; }
.missing, figcaption, footer { color: var(--faint); }
.missing { font-style: italic; }
.head { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: center; }
.status { padding: .1rem .7rem; border-radius: 1rem; border: 1px solid currentColor; font-size: .85rem; }
.status.finished { color: var(--good); } .status.running { color: var(--accent); }
.grid { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 9rem), 1fr)); }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.card, figure, details {
  background: var(--card); border: 1px solid var(--rule); border-radius: .6rem;
  padding: .8rem 1rem; margin: 0;
}
.card .name { color: var(--faint); font-size: .85rem; }
.card .value { font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.card .note { color: var(--faint); font-size: .8rem; }
.bar { height: .45rem; border-radius: .3rem; background: var(--rule); margin-top: .45rem; }
.bar i { display: block; height: 100%; border-radius: .3rem; background: var(--faint); }
.best .bar i { background: var(--good); } .best .value { color: var(--good); }
figure { padding: .7rem; margin-bottom: .8rem; }
figure img, figure video { display: block; height: auto; max-width: 100%; margin: 0 auto; }
figure .wide { width: 100%; min-width: 50rem; max-width: none; }
figcaption { font-size: .85rem; margin-top: .5rem; overflow-wrap: anywhere; }
.charts figcaption { margin: 0 0 .3rem; color: var(--ink); font-weight: 600; font-size: .95rem; }
.charts .key {
  font-weight: 400; color: var(--faint); font-size: .85rem; margin-left: .8rem; white-space: nowrap;
}
.key i { display: inline-block; width: .9rem; height: .2rem; vertical-align: middle; margin-right: .3rem; }
.chart { width: 100%; height: auto; display: block; }
.chart text { fill: var(--faint); font-size: 12px; }
.chart .grid { stroke: var(--rule); } .chart .axis { stroke: var(--faint); }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .spread { stroke-width: 1; opacity: .25; }
.chart .level { stroke: var(--warm); stroke-dasharray: 5 4; fill: none; }
.chart .level-name { fill: var(--warm); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; }
tr { border-bottom: 1px solid var(--rule); }
td { overflow-wrap: anywhere; } th { font-weight: 600; }
tbody th { font-weight: 400; color: var(--faint); white-space: nowrap; }
details { margin-bottom: .8rem; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .85rem; line-height: 1.4; margin: .8rem 0 0; }
.bad { color: var(--bad); }
footer { margin-top: 2.5rem; font-size: .85rem; }
"""
COLOURS = (
    ("#2f6fde", "#6fb1ff"),
    ("#c2571a", "#ff9e64"),
    ("#2a8a6a", "#4fd1a5"),
    ("#8a3fb5", "#d19cff"),
    ("#b0304f", "#ff8fa8"),
    ("#6b6f1f", "#cfd45e"),
    ("#1f7f95", "#63d3ea"),
    ("#7a5230", "#d9a877"),
    ("#5a5f70", "#b5bacb"),
    ("#a8327f", "#f08fd0"),
    ("#3f7a1d", "#9fdc7a"),
    ("#4a4fc4", "#a3a7ff"),
)
"""Of curves, on a light page and on a dark one; a chart of more begins again."""


def _colour_style() -> str:
    """The style sheet's part that gives curve, spread, dot and key number n the colour of class ``c<n>``."""
    light, dark = (
        " ".join(f"--c{number}: {pair[shade]};" for number, pair in enumerate(COLOURS)) for shade in (0, 1)
    )
    rules = [
        f":root {{ {light} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}",
    ]
    for number in range(len(COLOURS)):
        own = f"var(--c{number})"
        rules += [
            f".chart .line.c{number} {{ stroke: {own}; }}",
            f".chart .spread.c{number} {{ stroke: {own}; fill: {own}; }}",
            f".chart .dot.c{number}, .key.c{number} i {{ fill: {own}; background: {own}; }}",
        ]
    return "\n".join(rules) + "\n"


def page(title: str, body: Iterable[str], *, style: str = "") -> str:
    """A whole HTML document with the style sheet, and ``style`` after it; ``body`` is HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{_colour_style()}{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *content: str) -> str:
    """A part of the page under a heading; ``content`` is HTML already."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(content) + "\n</section>"


def card(
    name: str, value: str | None, note: str = "", *, share: float | None = None, best: bool = False
) -> str:
    """A number with its name; ``share`` (0..1) draws a bar under it; no value says so."""
    shown = NOT_RECORDED if value is None else escape(value)
    bar = "" if share is None else f'<div class="bar"><i style="width:{100 * share:.1f}%"></i></div>'
    note = f'<div class="note">{escape(note)}</div>' if note else ""
    kind = "card best" if best else "card"
    return (
        f'<div class="{kind}"><div class="name">{escape(name)}</div>'
        f'<div class="value">{shown}</div>{note}{bar}</div>'
    )


def cards(content: Iterable[str]) -> str:
    """Cards side by side, as many as fit."""
    return '<div class="grid">' + "".join(content) + "</div>"


def chart(title: str, svg: str, names: Sequence[str], *, colours: Sequence[int] | None = None) -> str:
    """Curves with their title, and a key where there are several.

    Args:
        title: above the curves.
        svg: of :func:`~videomaskfeat.viz.page.line_chart`; empty says that nothing was recorded.
        names: of the curves.
        colours: places of their colours in :data:`COLOURS`; None: in the curves' order.
    """
    keys = "".join(
        f'<span class="key c{number % len(COLOURS)}"><i></i>{escape(name)}</span>'
        for number, name in zip(range(len(names)) if colours is None else colours, names, strict=True)
    )
    keys = keys if len(names) > 1 else ""
    return f"<figure><figcaption>{escape(title)}{keys}</figcaption>{svg or NOT_RECORDED}</figure>"


def charts(content: Iterable[str]) -> str:
    """Charts side by side, as many as fit."""
    return '<div class="grid charts">' + "".join(content) + "</div>"


def table(rows: Iterable[Sequence[str]], header: Sequence[str]) -> str:
    """A table of text."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(values: Mapping[str, str]) -> str:
    """A table of names and values."""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<div class="scroll"><table><tbody>{body}</tbody></table></div>'


def folded(title: str, content: str) -> str:
    """A part that opens on a click; ``content`` is HTML already."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def preformatted(text: str) -> str:
    """Text as it stands."""
    return f"<pre>{escape(text)}</pre>"


# Curves of a run as inline SVG: small, sharp at every size, and coloured by the page's own style sheet.
_WIDTH, _HEIGHT = 480, 250  # of the view box; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 34
_COLUMNS = 400  # points a curve, at most
_SMOOTHING = 40  # the moving mean is over 1/40 of the curve


@dataclass(frozen=True)
class Curve:
    """Values over steps.

    Attributes:
        name: shown in the legend.
        x: float [n], ascending.
        y: float [n]; values that are not finite are left out.
        colour: its place among the page's colours; None: the curve's place in its chart.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: int | None = None


def line_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    log: bool = False,
    from_zero: bool = False,
    smooth: bool = True,
    levels: Mapping[str, float] | None = None,
) -> str:
    """Draw curves as one ``<svg>`` element: the spread of the values faintly, their moving mean on top.

    Args:
        curves: one or more; those without a finite value are left out.
        title: what a screen reader says first.
        log: logarithmic vertical axis; values of 0 and below are left out.
        from_zero: the vertical axis begins at 0.
        smooth: draw the moving mean over 1/40 of a curve; False draws the values themselves.
        levels: horizontal dashed lines with their names, such as a loss to compare with.

    Returns:
        The element, or an empty string where there is nothing to draw.
    """
    numbered = [
        replace(curve, colour=place if curve.colour is None else curve.colour)
        for place, curve in enumerate(curves)
    ]
    kept = [curve for curve in (_clean(curve, log=log) for curve in numbered) if len(curve.x)]
    if not kept:
        return ""
    levels = {
        name: level
        for name, level in (levels or {}).items()
        if abs(level) < _LARGEST and (level > 0 or not log)
    }
    x_range = (min(float(curve.x[0]) for curve in kept), max(float(curve.x[-1]) for curve in kept))
    y_range = _vertical_range(kept, list(levels.values()), log, from_zero)
    frame = _Frame(x_range, y_range, log)
    parts = [_axes(frame)]
    parts += [_level(frame, name, level) for name, level in levels.items()]
    parts += [_line(frame, curve, smooth) for curve in kept]
    spoken = escape(f"{title}. " + " ".join(_spoken(curve) for curve in kept), quote=True)
    svg = f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{spoken}">'
    return svg + "".join(parts) + "</svg>"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Some ``count`` round numbers (1, 2 or 5 times a power of ten apart) from ``low`` to ``high``."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def short_number(value: float) -> str:
    """A number in few characters: 12.5k, 0.031, 1e-4."""
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e4:  # below, 2000 reads better than 2k
        unit, letter = next((u, n) for u, n in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if size >= u)
        return f"{value / unit:.4g}{letter}"
    if size >= 1e-3:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean float [n] over ``window`` values, over fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    centre = np.arange(len(values))
    first = np.maximum(centre - window // 2, 0)
    last = np.minimum(centre + (window + 1) // 2, len(values))
    last = np.maximum(last, first + 1)
    return (total[last] - total[first]) / (last - first)


_LARGEST = 1e100  # beyond it sums and ranges overflow


@dataclass(frozen=True)
class _Frame:
    """From values to places in the view box."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool

    def x(self, value: np.ndarray | float) -> np.ndarray:
        low, high = self.x_range
        share = (np.asarray(value, dtype=np.float64) - low) / ((high - low) or 1.0)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: np.ndarray | float) -> np.ndarray:
        low, high = (math.log10(end) for end in self.y_range) if self.log else self.y_range
        height = np.log10(value) if self.log else np.asarray(value, dtype=np.float64)
        share = np.clip((height - low) / ((high - low) or 1.0), 0.0, 1.0)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _clean(curve: Curve, *, log: bool) -> Curve:
    good = np.isfinite(curve.x) & (np.abs(curve.y) < _LARGEST)
    if log:
        good &= curve.y > 0
    return replace(curve, x=curve.x[good].astype(np.float64), y=curve.y[good].astype(np.float64))


def _vertical_range(
    curves: Sequence[Curve], levels: list[float], log: bool, from_zero: bool
) -> tuple[float, float]:
    values = np.concatenate([curve.y for curve in curves])
    ends = [float(values.min()), float(values.max()), *levels]
    if log:  # whole powers of ten, one apart at least; 1e-9 forgives the rounding of log10
        bottom = math.floor(math.log10(min(ends)) + 1e-9)
        top = max(math.ceil(math.log10(max(ends)) - 1e-9), bottom + 1)
        return 10.0**bottom, 10.0**top
    low, high = (0.0 if from_zero else min(ends)), max(ends)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if from_zero else low - margin), high + margin


def _axes(frame: _Frame) -> str:
    low, high = frame.y_range
    if frame.log:
        powers = range(round(math.log10(low)), round(math.log10(high)) + 1)
        marks = [10.0**power for power in powers][:: max(1, len(powers) // 6)]
    else:
        marks = ticks(low, high)
    parts = []
    for mark in marks:
        y = float(frame.y(mark))
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short_number(mark)}</text>')
    bottom = _HEIGHT - _BOTTOM
    for mark in ticks(*frame.x_range, count=6) if frame.x_range[1] > frame.x_range[0] else frame.x_range[:1]:
        x = float(frame.x(mark))
        anchor = "end" if x > _WIDTH - _RIGHT - 16 else "middle"
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{short_number(mark)}</text>'
        )
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">step</text>')
    return "".join(parts)


def _level(frame: _Frame, name: str, level: float) -> str:
    y = float(frame.y(level))
    label = escape(f"{name} {short_number(level)}")
    return (
        f'<path class="level" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
        f'<text class="level-name" x="{_WIDTH - _RIGHT - 2}" y="{y - 4:.1f}" text-anchor="end">{label}</text>'
    )


def _line(frame: _Frame, curve: Curve, smooth: bool) -> str:
    number = (curve.colour or 0) % len(COLOURS)
    bounds = np.unique(np.linspace(0, len(curve.y), min(_COLUMNS, len(curve.y)) + 1).astype(int))[:-1]
    count = np.diff(np.append(bounds, len(curve.y)))
    x = frame.x(np.add.reduceat(curve.x, bounds) / count)
    mean = np.add.reduceat(curve.y, bounds) / count
    least, most = np.minimum.reduceat(curve.y, bounds), np.maximum.reduceat(curve.y, bounds)
    line = frame.y(smoothed(mean, max(1, len(mean) // _SMOOTHING)) if smooth else mean)
    spread = _path(np.append(x, x[::-1]), np.append(frame.y(most), frame.y(least)[::-1]))
    dot = ""
    if len(x) == 1:
        dot = f'<circle class="dot c{number}" cx="{x[0]:.1f}" cy="{line[0]:.1f}" r="3"/>'
    spread_path = f'<path class="spread c{number}" d="{spread}Z"/>'
    return f'{spread_path}<path class="line c{number}" d="{_path(x, line)}"/>{dot}'


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _spoken(curve: Curve) -> str:
    first, last = short_number(float(curve.y[0])), short_number(float(curve.y[-1]))
    return (
        f"{curve.name}: {first} at step {curve.x[0]:.0f}, {last} at step {curve.x[-1]:.0f}, "
        f"least {short_number(float(curve.y.min()))}, most {short_number(float(curve.y.max()))}."
    )
