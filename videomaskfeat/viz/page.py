"""The bare page: its style sheet and the few HTML elements that a report is made of, all text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

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
        svg: of :func:`~videomaskfeat.viz.curves.line_chart`; empty says that nothing was recorded.
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
