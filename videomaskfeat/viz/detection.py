"""Curves of precision over recall as inline SVG, both axes from 0 to 1, so that areas compare at sight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from videomaskfeat.viz import page
from videomaskfeat.viz.report import flattened

_WIDTH, _HEIGHT = 260, 220  # of the view box; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 34
_POINTS = 200  # of a measured curve, at most


def recall_chart(
    heights: np.ndarray, *, title: str, measured: tuple[np.ndarray, np.ndarray] | None = None
) -> str:
    """Draw a curve as one ``<svg>`` element, with the area below it: the average precision.

    Args:
        heights: float [bins], the mean precision in equal steps of recall from 0 to 1.
        title: what a screen reader says first.
        measured: recall and precision, float [n] each, of what the curve was interpolated from.
    """
    said = ", ".join(
        f"{heights[min(int(recall * len(heights)), len(heights) - 1)]:.2f} at recall {recall:g}"
        for recall in (0.1, 0.5, 0.9)
    )
    spoken = escape(f"{title}. Area {heights.mean():.3f}; precision {said}.", quote=True)
    outline = _steps(heights)
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{spoken}">',
        _axes(),
        f'<path class="spread c0" d="{outline}V{_y(0.0)}H{_x(0.0)}Z"/>',
    ]
    if measured is not None and len(measured[0]):
        parts.append(f'<path class="measured" d="{_thinned(*measured)}"/>')
    parts.append(f'<path class="line c0" d="{outline}"/></svg>')
    return "".join(parts)


def _x(recall: float) -> str:
    return f"{_LEFT + recall * (_WIDTH - _LEFT - _RIGHT):.1f}"


def _y(precision: float) -> str:
    return f"{_HEIGHT - _BOTTOM - precision * (_HEIGHT - _TOP - _BOTTOM):.1f}"


def _steps(heights: np.ndarray) -> str:
    """A step for each height; equal neighbours make one."""
    places = [_y(float(height)) for height in heights]
    path = [f"M{_x(0.0)} {places[0]}"]
    for number, (here, after) in enumerate(zip(places, [*places[1:], ""], strict=True), start=1):
        if after != here:
            path.append(f"H{_x(number / len(places))}" + (f"V{after}" if after else ""))
    return "".join(path)


def _thinned(recall: np.ndarray, precision: np.ndarray) -> str:
    """Some of the points, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(recall) - 1, min(_POINTS, len(recall))).round().astype(int))
    return "M" + "L".join(
        f"{_x(x)} {_y(y)}" for x, y in zip(recall[chosen].tolist(), precision[chosen].tolist(), strict=True)
    )


def _axes() -> str:
    """Grid, numbers and names."""
    parts = []
    for mark in (0.0, 0.5, 1.0):
        x, y = _x(mark), _y(mark)
        parts.append(
            f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}M{x} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{mark:g}</text>')
        parts.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{mark:g}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text x="{_x(0.5)}" y="{_HEIGHT - 4}" text-anchor="middle">recall</text>')
    turned = f'x="12" y="{middle:g}" transform="rotate(-90 12 {middle:g})"'
    parts.append(f'<text {turned} text-anchor="middle">precision</text>')
    return "".join(parts)


def mean_heights(curves: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of curves of equal steps, float [bins]; its area is the mean of theirs."""
    return np.mean(np.stack(list(curves)), axis=0)


# The report of a detection score: one HTML page that needs nothing but itself.
_OPEN_ACTIONS = 30  # actions, at most, whose table is open from the start
_OPEN_CURVES = 12
_STYLE = """
.strip { width: 7rem; height: .45rem; border-radius: .3rem; background: var(--rule); margin-top: .5rem; }
.strip i { display: block; height: 100%; border-radius: .3rem; background: var(--good); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.mean { max-width: 26rem; margin-top: .8rem; }
.curves { grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); }
.curves figure { margin: 0; padding: .5rem; }
.curves figcaption { margin: 0 0 .3rem; color: var(--ink); }
.chart .measured { fill: none; stroke: var(--c1); stroke-width: 1; opacity: .7; }
"""


@dataclass(frozen=True)
class ActionRow:
    """How one action fared; shares of 1.

    Attributes:
        number: of the action.
        name: its name.
        truths: rows of the ground truth.
        detections: rows of it that were judged.
        ap: average precision; NaN without ground truth, like ``found``.
        found: share of the ground truth that was hit, however low the score.
        heights: float [bins], precision in equal steps of recall.
        recall: float [hits], at each hit.
        precision: float [hits], at each hit, as it was measured.
    """

    number: int
    name: str
    truths: int
    detections: int
    ap: float
    found: float
    heights: np.ndarray
    recall: np.ndarray
    precision: np.ndarray


@dataclass(frozen=True)
class PartRow:
    """The score of a part of the ground truth; ``mean_ap`` is a share of 1, NaN without ground truth."""

    name: str
    mean_ap: float
    actions: int
    truths: int
    detections: int


@dataclass(frozen=True)
class DetectionFacts:
    """What scoring found.

    Attributes:
        title: heading of the page.
        mean_ap: mean of the average precisions, share of 1.
        iou_threshold: the least overlap of a hit.
        rows_per_frame: how many rows a key frame were judged at most; None for all.
        key_frames: how many hold ground truth.
        actions: a row an action.
        sides: a row for the ground truth and one for the detections: name, then rows by what became of them.
        notes: sentences on what is odd about the files.
        persons: the score by persons a key frame.
        sizes: the score by the size of the boxes.
        summary: everything that identifies the result; may be nested.
        tested: how the key frames were tested: name, value and note of each fact; none: not known, of a file
            of detections.
    """

    title: str
    mean_ap: float
    iou_threshold: float
    rows_per_frame: int | None
    key_frames: int
    actions: Sequence[ActionRow]
    sides: Sequence[Sequence[str]]
    notes: Sequence[str]
    persons: Sequence[PartRow]
    sizes: Sequence[PartRow]
    summary: Mapping[str, Any]
    tested: Sequence[tuple[str, str, str]] = ()


def render_detection(facts: DetectionFacts, *, version: str) -> str:
    """The report as one HTML document without any reference outside itself.

    Args:
        facts: what was found.
        version: of the package, for the footer.
    """
    known = [row for row in facts.actions if row.truths]
    notes = "".join(f"<p>{escape(note)}</p>" for note in facts.notes)
    tested = " · ".join(f"{name} {value}" for name, value, _ in facts.tested)
    body = [
        f'<header><div class="head"><h1>{escape(facts.title)}</h1>'
        f'<span class="status finished">frame mAP at IoU {facts.iou_threshold:g}</span></div>'
        + (f"<p>{escape(tested)}</p>" if tested else "")
        + "</header>",
        page.section("Score", _headline(facts, known)),
        page.section("Protocol", _protocol(facts)),
        page.section(
            "Rows",
            page.table(
                facts.sides,
                ("File", "Rows", "Scored", "At excluded times", "Without an action", "Of actions not listed"),
            ),
            notes,
        ),
        page.section("Actions", _actions(facts.actions)),
        page.section("Precision over recall", *_curves(known)),
        page.section("By persons in the key frame", *_parts(facts.persons, "Key frames with")),
        page.section("By size of the box", *_parts(facts.sizes, "Boxes")),
        page.folded("Everything about this result", page.facts(flattened(facts.summary))),
        f"<footer>Written by videomaskfeat {escape(version)}. This page needs no network.</footer>",
    ]
    return page.page(f"{facts.title} · detection · videomaskfeat", body, style=_STYLE)


def percent(share: float) -> str:
    """A share of 1 as it is read; a dash for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.2f} %"


def _headline(facts: DetectionFacts, known: Sequence[ActionRow]) -> str:
    truths = sum(row.truths for row in known)
    found = sum(round(row.found * row.truths) for row in known)
    detections = sum(row.detections for row in facts.actions)
    share = found / max(truths, 1)
    cards = [
        page.card("mAP", percent(facts.mean_ap), share=facts.mean_ap, best=True),
        page.card("Actions", f"{len(known)} of {len(facts.actions)}", "with ground truth, in the mean"),
        page.card("Ground truth", f"{truths}", f"rows in {facts.key_frames} key frames"),
        page.card("Detections", f"{detections}", "rows, a box and an action each"),
        page.card("Found", percent(share), "of the ground truth, at any score", share=share),
    ]
    curve = recall_chart(mean_heights([row.heights for row in known]), title="Mean of the actions")
    caption = "<figcaption>Mean of the actions: the area is the mAP</figcaption>"
    return page.cards(cards) + f'<figure class="mean">{caption}{curve}</figure>'


def _protocol(facts: DetectionFacts) -> str:
    kept = "all" if facts.rows_per_frame is None else f"the {facts.rows_per_frame} best"
    return page.cards(
        [
            *(page.card(*fact) for fact in facts.tested),
            page.card("IoU of a hit", f"{facts.iou_threshold:g} or more", "with the box overlapped most"),
            page.card("Area under the curve", "all points", "interpolated precision"),
            page.card("Rows of a key frame", kept, "the official script: the 50 best"),
        ]
    )


def _actions(rows: Sequence[ActionRow]) -> str:
    """The actions, the worst first; those without ground truth last."""
    order = sorted(rows, key=lambda row: (not row.truths, row.ap if row.truths else 0.0, row.number))
    header = ("Id", "Action", "Ground truth", "AP", "", "Found", "Detections")
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "".join(_action_row(row) for row in order)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    if len(rows) <= _OPEN_ACTIONS:
        return table
    return page.folded(f"All {len(rows)} actions, the worst first", table)


def _action_row(row: ActionRow) -> str:
    strip = f'<div class="strip"><i style="width:{100 * row.ap:.1f}%"></i></div>' if row.truths else ""
    cells = [
        str(row.number),
        escape(row.name),
        f'<span class="number">{row.truths}</span>',
        percent(row.ap),
        strip,
        percent(row.found),
        f'<span class="number">{row.detections}</span>',
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _curves(known: Sequence[ActionRow]) -> list[str]:
    """A picture an action, the most frequent first."""
    order = sorted(known, key=lambda row: (-row.truths, row.number))
    pictures = [
        f"<figure><figcaption>{escape(row.name)}: {percent(row.ap)} of {row.truths}</figcaption>"
        + recall_chart(row.heights, title=row.name, measured=(row.recall, row.precision))
        + "</figure>"
        for row in order
    ]
    shown, rest = pictures[:_OPEN_CURVES], pictures[_OPEN_CURVES:]
    parts = [
        "<p>The most frequent actions first. Thin: precision as measured at each hit. Thick: the best "
        "precision there or at a higher recall; the area below is the average precision.</p>",
        f'<div class="grid curves">{"".join(shown)}</div>',
    ]
    if rest:
        parts.append(page.folded(f"{len(rest)} more", f'<div class="grid curves">{"".join(rest)}</div>'))
    return parts


def _parts(parts: Sequence[PartRow], what: str) -> list[str]:
    rows = [
        (part.name, percent(part.mean_ap), str(part.actions), str(part.truths), str(part.detections))
        for part in parts
    ]
    return [
        page.table(rows, (what, "mAP", "Actions", "Ground truth", "Detections")),
        "<p>The mean is over the actions that have ground truth in the part, so actions differ too.</p>",
    ]
