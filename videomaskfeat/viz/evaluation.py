"""A confusion matrix as a picture: cells with numbers for a few classes, a pixel a cell for many."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import cv2
import numpy as np

from videomaskfeat.viz import page
from videomaskfeat.viz.report import flattened

_NUMBERED = 40  # classes, at most, whose cells are large enough for numbers
_CELL, _NAME, _TOP = 30, 190, 34  # pixels of the drawing
_LETTERS = 26  # of a name, at most
_INK = (47, 111, 222)  # the page's accent, RGB; how much of it shows is a cell's share


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> str:
    """HTML of the matrix: a row a class of the videos, a column a class that was said.

    The ink of a cell is its share of its row, so that rare classes show as well as frequent ones.

    Args:
        confusion: int [L, L].
        names: a text a class.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    if len(confusion) <= _NUMBERED:
        return _cells(confusion, shares, names)
    return _pixels(shares)


def frequent_confusions(
    confusion: np.ndarray, names: Sequence[str], count: int
) -> list[tuple[str, str, int, float]]:
    """The most frequent wrong answers: (the videos' class, what was said, how often, percent of its row)."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    found = []
    for label, said in zip(*np.unravel_index(order, wrong.shape), strict=True):
        times = int(wrong[label, said])
        if times:
            found.append((names[label], names[said], times, 100 * times / int(confusion[label].sum())))
    return found


def _cells(confusion: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> str:
    size = len(confusion)
    width, height = _NAME + size * _CELL, _TOP + size * _CELL
    right = 100 * confusion.trace() / max(confusion.sum(), 1)
    spoken = escape(f"Confusion matrix of {size} classes; {right:.1f} % of the videos on its diagonal.")
    parts = [
        f'<svg class="matrix" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="{spoken}">'
    ]
    for label, name in enumerate(names):
        y = _TOP + label * _CELL
        text = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
        parts.append(f'<text x="{_NAME - 8}" y="{y + 20}" text-anchor="end">{escape(text)}</text>')
        middle = _NAME + label * _CELL + _CELL / 2
        parts.append(f'<text x="{middle:g}" y="{_TOP - 10}" text-anchor="middle">{label}</text>')
        for said, share in enumerate(shares[label]):
            x, count = _NAME + said * _CELL, int(confusion[label, said])
            kind = "cell own" if said == label else "cell"
            hint = escape(f"{name}, said to be {names[said]}: {count} ({100 * share:.0f} %)")
            parts.append(
                f'<rect class="{kind}" x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}" '
                f'style="fill-opacity:{share:.3f}"><title>{hint}</title></rect>'
            )
            if count:
                shade = "count light" if share > 0.55 else "count"
                parts.append(
                    f'<text class="{shade}" x="{x + _CELL / 2:g}" y="{y + 19}" text-anchor="middle">'
                    f"{count}</text>"
                )
    return f'<div class="scroll">{"".join(parts)}</svg></div>'


def _pixels(shares: np.ndarray) -> str:
    """A PNG with a pixel a cell, whose opacity is the share: it suits a light and a dark page."""
    size = len(shares)
    picture = np.empty((size, size, 4), np.uint8)
    picture[..., :3] = _INK[::-1]
    picture[..., 3] = np.round(255 * np.sqrt(shares))  # the root lifts rare confusions into sight
    done, data = cv2.imencode(".png", picture)
    assert done
    content = base64.b64encode(data.tobytes()).decode("ascii")
    return (
        f'<img class="matrix" alt="Confusion matrix of {size} classes, a pixel a cell" '
        f'src="data:image/png;base64,{content}">'
    )


# The report of an evaluation: one HTML page that needs nothing but itself.
_OPEN_CLASSES = 30  # classes, at most, whose table is open from the start
_CONFUSIONS = 12
_FAILURES_SHOWN = 200
_STYLE = """
.matrix { display: block; width: 100%; }
svg.matrix text { fill: var(--faint); font-size: 12px; }
svg.matrix .cell { fill: var(--bad); stroke: var(--rule); } svg.matrix .own { fill: var(--good); }
svg.matrix .count { fill: var(--ink); pointer-events: none; } svg.matrix .light { fill: var(--card); }
img.matrix { image-rendering: pixelated; max-width: 48rem; border: 1px solid var(--rule); }
.videos { grid-template-columns: repeat(auto-fill, minmax(min(100%, 11rem), 1fr)); }
.videos figure { margin: 0; padding: .5rem; }
.videos img { border-radius: .3rem; height: 7rem; width: 100%; object-fit: cover; }
.videos .none { height: 7rem; display: grid; place-items: center; color: var(--faint); }
.videos b { font-weight: 600; color: var(--ink); }
.strip { width: 7rem; height: .45rem; border-radius: .3rem; background: var(--rule); margin-top: .5rem; }
.strip i { display: block; height: 100%; border-radius: .3rem; background: var(--good); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.sure { color: var(--faint); font-variant-numeric: tabular-nums; white-space: nowrap; }
.rest { color: var(--faint); font-size: .85rem; }
.beside { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); align-items: start; }
.beside > * { min-width: 0; }
"""


@dataclass(frozen=True)
class ClassRow:
    """How one class fared.

    Attributes:
        label: its number.
        name: its name, or a text with its number.
        videos: how many the list has of it.
        top1: percent of them that were right; NaN without videos, like ``top5``.
        top5: percent of them whose class was among the 5 best.
        taken_for: the class that was said most often of those that were wrong; empty where none was.
        times: how often.
    """

    label: int
    name: str
    videos: int
    top1: float
    top5: float
    taken_for: str
    times: int


@dataclass(frozen=True)
class ShownVideo:
    """A video of which the report shows a picture.

    Attributes:
        path: of the video.
        label: what it shows.
        label_share: how probable that was found, 0..1.
        prediction: what was said.
        prediction_share: how probable that was found.
        picture: a JPEG file, or None.
    """

    path: str
    label: str
    label_share: float
    prediction: str
    prediction_share: float
    picture: bytes | None


@dataclass(frozen=True)
class EvaluationFacts:
    """What an evaluation found; the accuracies are in percent, and None for a list without labels.

    Attributes:
        title: heading of the page.
        videos: how many were scored.
        listed: of how many in the list.
        top1: share of the videos whose class has the highest score.
        top5: whose class is among the 5 highest.
        mean_class: mean of the classes' own top-1.
        protocol: how the videos were cut and scored, by name.
        summary: everything that identifies the result; may be nested.
        classes: a row a class; none for a list without labels.
        confusion: int [L, L]: class of the videos, class that was said; None for a list without labels.
        said: int [L], how often each class was said.
        class_texts: a text a class.
        worst: the videos that were most surely wrong.
        best: the videos that were most surely right.
        failures: path and cause of each video that could not be read.
    """

    title: str
    videos: int
    listed: int
    top1: float | None
    top5: float | None
    mean_class: float | None
    protocol: Mapping[str, Any]
    summary: Mapping[str, Any]
    classes: Sequence[ClassRow]
    confusion: np.ndarray | None
    said: np.ndarray
    class_texts: Sequence[str]
    worst: Sequence[ShownVideo]
    best: Sequence[ShownVideo]
    failures: Sequence[tuple[str, str]]


def render_evaluation(facts: EvaluationFacts, *, version: str) -> str:
    """The report as one HTML document without any reference outside itself.

    Args:
        facts: what was found.
        version: of the package, for the footer.
    """
    body = [
        _header(facts),
        page.section("Accuracy" if facts.top1 is not None else "Predictions", _headline(facts)),
        page.section("Protocol", _protocol(facts.protocol)),
    ]
    if facts.confusion is not None:
        body += [
            page.section("Confusions", *_confusions(facts.confusion, facts.class_texts)),
            page.section("Classes", _classes(facts.classes)),
            page.section("Most surely wrong", _videos(facts.worst, "No video was taken for another class.")),
            page.section("Most surely right", _videos(facts.best, "No video was right.")),
        ]
    else:
        body.append(page.section("What was said", _said(facts)))
    body += [
        page.section("Videos that could not be read", _failures(facts)),
        page.folded("Everything about this result", page.facts(flattened(facts.summary))),
        f"<footer>Written by videomaskfeat {escape(version)}. This page needs no network.</footer>",
    ]
    return page.page(f"{facts.title} · evaluation · videomaskfeat", body, style=_STYLE)


def _header(facts: EvaluationFacts) -> str:
    missing = facts.listed - facts.videos
    kind, status = (
        ("running", f"{missing} of {facts.listed} videos missing")
        if missing
        else (
            "finished",
            "every video scored",
        )
    )
    names = (("Weights", "weights"), ("List", "list"))
    lines = [f"{name}: {escape(str(facts.summary[key]))}" for name, key in names if key in facts.summary]
    return (
        f'<header><div class="head"><h1>{escape(facts.title)}</h1>'
        f'<span class="status {kind}">{escape(status)}</span></div><p>{"<br>".join(lines)}</p></header>'
    )


def _headline(facts: EvaluationFacts) -> str:
    cards = []
    for name, value in (
        ("Top-1", facts.top1),
        ("Top-5", facts.top5),
        ("Mean of the classes", facts.mean_class),
    ):
        if value is not None:
            cards.append(page.card(name, f"{value:.2f} %", share=value / 100, best=name == "Top-1"))
    share = facts.videos / max(facts.listed, 1)
    cards.append(page.card("Videos scored", f"{facts.videos} of {facts.listed}", share=share))
    return page.cards(cards) + f"<p>{escape(verdict(facts))}</p>"


def verdict(facts: EvaluationFacts) -> str:
    """The headline in a sentence or three."""
    missing = facts.listed - facts.videos
    videos = f"{facts.videos} of {facts.listed} videos"
    if facts.top1 is None:
        return f"{videos} were scored; the list has no labels, so there is no accuracy."
    share = facts.top1 / 100
    spread = 196 * math.sqrt(max(share * (1 - share), 0.0) / max(facts.videos, 1))
    text = f"Top-1 {facts.top1:.2f} % of {videos}."
    if missing:
        least = facts.top1 * facts.videos / max(facts.listed, 1)
        text += f" The other {missing} could not be read; counted as wrong, top-1 is {least:.2f} %."
    if 0 < share < 1:
        text += (
            f" Another draw of so many videos would give a top-1 within {spread:.1f} points, 19 times in 20."
        )
    return text


def _protocol(protocol: Mapping[str, Any]) -> str:
    """Cards in words; what has none here is listed below them by name."""
    left = dict(protocol)

    def take(name: str) -> Any:
        return left.pop(name, None)

    views, crops, sampling, frames = map(take, ("views", "crops", "sampling", "frames"))
    stride, rate, crop, short_side = map(take, ("stride", "target_fps", "crop", "short_side"))
    cards = []
    if views is not None:
        cuts = {1: "the centre", 3: "along the longer side"}.get(crops, "")
        cards.append(page.card("Views of a video", f"{views} x {crops}", f"clips over time x crops, {cuts}"))
    if frames is not None:
        pace = (
            f"a frame of each of {frames} equal parts" if sampling == "segments" else f"at stride {stride:g}"
        )
        pace += f", counted at {rate:g} a second" if rate and sampling != "segments" else ""
        cards.append(page.card("Frames of a clip", str(frames), pace))
    if crop is not None:
        cards.append(page.card("Crop", f"{crop} pixels", f"of frames with a short side of {short_side}"))
    average = take("average")
    if average is not None:
        votes = take("k")
        note = "over the views" if votes is None else f"over the views; {votes} nearest videos vote"
        cards.append(page.card("Average of", str(average), note))
    for name, key in (("Precision", "precision"), ("Reader", "reader")):
        value = take(key)
        if value is not None:
            cards.append(page.card(name, str(value)))
    rest = " · ".join(f"{name} {value}" for name, value in flattened(left).items())
    return page.cards(cards) + f'<p class="rest">{escape(rest)}</p>'


def _confusions(confusion: np.ndarray, names: Sequence[str]) -> list[str]:
    rows = [
        (label, said, str(times), f"{share:.0f} %")
        for label, said, times, share in frequent_confusions(confusion, names, _CONFUSIONS)
    ]
    table = (
        page.table(rows, ("Most often, videos of", "said to be", "Videos", "Of the class")) if rows else ""
    )
    return [
        "<p>A row for each class of the videos, a column for each class that was said, in the same order: "
        "what was right lies on the diagonal. The stronger the colour, the larger the share of the row.</p>",
        f'<div class="grid beside"><figure>{draw_confusion(confusion, names)}</figure>{table}</div>',
    ]


def _classes(rows: Sequence[ClassRow]) -> str:
    """The classes, the worst first; those without a video last."""
    order = sorted(rows, key=lambda row: (not row.videos, row.top1 if row.videos else 0.0, row.label))
    header = ("Class", "Name", "Videos", "Top-1", "", "Top-5", "Most often taken for")
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "".join(_class_row(row) for row in order)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    if len(rows) <= _OPEN_CLASSES:
        return table
    return page.folded(f"All {len(rows)} classes, the worst first", table)


def _class_row(row: ClassRow) -> str:
    cells = [str(row.label), escape(row.name), f'<span class="number">{row.videos}</span>']
    if row.videos:
        strip = f'<div class="strip"><i style="width:{row.top1:.1f}%"></i></div>'
        cells += [f"{row.top1:.1f} %", strip, f"{row.top5:.1f} %"]
    else:
        cells += ["", "", ""]
    cells.append(f"{escape(row.taken_for)} ({row.times})" if row.times else "")
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _videos(videos: Sequence[ShownVideo], none: str) -> str:
    if not videos:
        return f"<p>{escape(none)}</p>"
    return f'<div class="grid videos">{"".join(map(_video, videos))}</div>'


def _video(video: ShownVideo) -> str:
    name = escape(os.path.basename(video.path), quote=True)
    if video.picture is None:
        picture = '<div class="none">no picture</div>'
    else:
        data = base64.b64encode(video.picture).decode("ascii")
        picture = f'<img alt="The middle frame of {name}" src="data:image/jpeg;base64,{data}">'
    lines = [name, f'<b>{escape(video.label)}</b> <span class="sure">{100 * video.label_share:.0f} %</span>']
    if video.prediction != video.label:
        lines.append(
            f'said: {escape(video.prediction)} <span class="sure">{100 * video.prediction_share:.0f} %</span>'
        )
    caption = "<br>".join(lines)
    return f'<figure title="{escape(video.path)}">{picture}<figcaption>{caption}</figcaption></figure>'


def _said(facts: EvaluationFacts) -> str:
    order = np.argsort(-facts.said, kind="stable")
    rows = [
        (facts.class_texts[label], str(facts.said[label]), f"{100 * facts.said[label] / facts.videos:.1f} %")
        for label in order.tolist()
        if facts.said[label]
    ]
    table = page.table(rows, ("Class", "Videos", "Of all"))
    return table if len(rows) <= _OPEN_CLASSES else page.folded(f"{len(rows)} classes were said", table)


def _failures(facts: EvaluationFacts) -> str:
    if not facts.failures:
        return "<p>None: every video could be read.</p>"
    more = len(facts.failures) - _FAILURES_SHOWN
    rest = f"<p>And {more} more in result.json.</p>" if more > 0 else ""
    table = page.table(facts.failures[:_FAILURES_SHOWN], ("Video", "Cause"))
    return "<p>Nothing stands in for them: they are in none of the figures above.</p>" + table + rest
