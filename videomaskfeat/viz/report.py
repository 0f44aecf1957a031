"""What the report of a run says where the run trains a tokenizer of frames."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from videomaskfeat.durations import duration_text
from videomaskfeat.targets.target import margin
from videomaskfeat.viz import page
from videomaskfeat.viz.page import Curve, line_chart

TOKEN_CHARTS: tuple[tuple[str, Mapping[str, str]], ...] = (
    (
        "Reconstruction, mean squared error",
        {"reconstruction": "training", "evaluation/reconstruction": "held out"},
    ),
    (
        "Perplexity of the codes",
        {"perplexity": "a training batch", "evaluation/perplexity": "held out"},
    ),
    ("Codes in use", {"used_codes": "a training batch", "evaluation/used_codes": "held out"}),
    ("Perceptual distance", {"perceptual": "training"}),
    ("Temperature of the draws", {"temperature": "temperature"}),
    ("KL divergence to uniform codes, nats", {"kl": "training"}),
    ("Distance of the latents to their codes", {"commitment": "training"}),
)
"""Title -> metric -> its name in the chart; one whose metrics were not recorded is left out."""


def token_verdict(summary: Mapping[str, Any]) -> str:
    """Reconstruction against one colour and the untrained tokenizer, and the codes in use, as HTML."""
    names = {
        "heldout_trained": "This tokenizer",
        "heldout_constant": "Best one colour",
        "heldout_untrained": "Untrained tokenizer",
    }
    errors = {key: summary[key] for key in names if _is_number(summary.get(key))}
    if not errors:
        return f"<p>{page.NOT_RECORDED}</p>"
    most = max(errors.values()) or 1.0
    cards = [
        page.card(
            names[key],
            f"{error:.4f}",
            share=error / most,
            best=key == "heldout_trained" and error == min(errors.values()),
        )
        for key, error in errors.items()
    ]
    vocabulary: Any = summary.get("vocabulary")
    used: Any = summary.get("heldout_used_codes")
    perplexity: Any = summary.get("heldout_perplexity")
    if all(map(_is_number, (vocabulary, used, perplexity))):
        cards.append(page.card("Codes in use", f"{used} of {vocabulary}", share=used / vocabulary))
        cards.append(page.card("Perplexity", f"{perplexity:.1f}", "codes that would say as much, used alike"))
    frames = summary.get("heldout_frames")
    on = f" of {frames} frames that it never saw" if frames else ""
    return page.cards(cards) + (
        f"<p>Mean squared error of the normalised pixels{on}, decoded from nothing but their tokens.</p>"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# The charts that the report of a pre-training has beside those of every run.
_METHOD_CHARTS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("Parts of the loss", {"class_loss": "class token", "cube_loss": "cubes"}),
    (
        "Spread of features, near 0 when collapsed",
        {"feature_std": "features", "projection_std": "projections", "clip_std": "means of clips"},
    ),
    (
        "Entropy of the teacher's mean distribution, nats",
        {"class_entropy": "class token", "cube_entropy": "cubes"},
    ),
    (
        "What the teacher's distributions tell inputs apart by, nats",
        {"class_information": "class token", "cube_information": "cubes"},
    ),
)
_PART = "loss_"
"""Before the name of a target that is one of several."""


def method_charts(recorded: Iterable[str]) -> list[tuple[str, Mapping[str, str]]]:
    """Title and metric -> its name in the chart, of what was recorded.

    Args:
        recorded: names of the run's metrics.
    """
    names = list(recorded)
    parts = {name: name.removeprefix(_PART) for name in names if name.startswith(_PART)}
    charts = [("Parts of the loss", parts)] if parts else []
    return charts + [chart for chart in _METHOD_CHARTS if any(name in chart[1] for name in names)]


# The report of a run: one HTML page that needs nothing but itself.
_FAILURES_SHOWN = 200
_NOW = 50  # steps behind "loss now"


@dataclass(frozen=True)
class Media:
    """A picture or film of the run: file name and content, PNG or mp4 by the name's ending."""

    name: str
    content: bytes


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run; None where nothing was recorded.

    Attributes:
        name: of the run.
        metrics: float [n] a name, one value a recorded step, NaN where a step lacks it: always ``step``, and
            ``epoch``, ``loss``, ``lr``, ``grad_norm``, ``data_ms``, ``step_ms`` (data included),
            ``samples_per_second``, ``memory_mb``, ``evaluation/heldout_loss``, ``train_top1``,
            ``evaluation/top1`` and ``evaluation/top5`` (percent) where recorded.
        summary: written when a run ends: ``heldout_trained``, ``heldout_constant``, ``heldout_untrained``,
            ``heldout_clips``, or of a classifier ``top1``, ``top5``, ``mean_class`` (percent), ``videos``,
            ``listed``, ``views``, ``crops``; ``not_drawn``, why there are no pictures; whatever else it holds
            is listed.
        model: name of the model.
        data: list or folder that was trained on.
        epochs: passes over the data that the run is to make.
        config: the resolved config as text.
        environment: versions, machine, devices; may be nested.
        failures: a mapping each time a video could not be read, with ``path`` and ``cause``.
        heldout_failures: likewise for held-out videos, which nothing stands in for.
        media: pictures and films.
        notes: what could not be read or was left out, a sentence each.
    """

    name: str
    metrics: Mapping[str, np.ndarray]
    summary: Mapping[str, Any] | None = None
    model: str | None = None
    data: str | None = None
    epochs: float | None = None
    config: str | None = None
    environment: Mapping[str, Any] | None = None
    failures: Sequence[Mapping[str, Any]] | None = None
    heldout_failures: Sequence[Mapping[str, Any]] = ()
    media: Sequence[Media] = ()
    notes: Sequence[str] = ()


def render_report(facts: RunFacts, *, version: str, beside: Sequence[RunFacts] = ()) -> str:
    """The report as one HTML document without any reference outside itself.

    Args:
        facts: what is known of the run.
        version: of the package, for the footer.
        beside: other runs whose curves are drawn together with this one's, 3 at most.
    """
    classifies = "top1" in (facts.summary or {}) or "train_top1" in facts.metrics
    detects = "mean_ap" in (facts.summary or {}) or "boxes" in facts.metrics
    heading, tell = "Held-out loss", _verdict
    if classifies:
        heading, tell = "Held-out accuracy", _accuracy
    elif detects:
        heading, tell = "Held-out detection", _detection
    elif "used_codes" in facts.metrics:
        heading, tell = "Held-out reconstruction", token_verdict
    pictures = list(map(_figure, facts.media)) or [_no_pictures(facts.summary or {})]
    body = [
        _header(facts),
        page.section(heading, tell(facts.summary or {})),
        *([page.section("Side by side", side_by_side([facts, *beside]))] if beside else []),
        page.section("Run", _numbers(facts)),
        page.section("Curves", _curves(facts)),
        *([] if (classifies or detects) and not facts.media else [page.section("Pictures", *pictures)]),
        page.section("Videos that could not be read", *_unreadable(facts)),
        page.section("Set-up", *_setup(facts)),
        f"<footer>Written by videomaskfeat {escape(version)}. This page needs no network.</footer>",
    ]
    return page.page(f"{facts.name} · videomaskfeat", body)


def _no_pictures(summary: Mapping[str, Any]) -> str:
    reason = summary.get("not_drawn")
    return f"<p>None: {escape(str(reason))}.</p>" if reason else f"<p>{page.NOT_RECORDED}</p>"


def _header(facts: RunFacts) -> str:
    kind, status = "running", "in progress, or stopped before its end"
    if facts.summary is not None:
        kind, status = "finished", "finished"
    lines = [
        f"{name}: {page.NOT_RECORDED if value is None else escape(value)}"
        for name, value in (("Model", facts.model), ("Data", facts.data))
    ]
    notes = "".join(f'<p class="bad">{escape(note)}</p>' for note in facts.notes)
    return (
        f'<header><div class="head"><h1>{escape(facts.name)}</h1>'
        f'<span class="status {kind}">{status}</span></div>'
        f"<p>{' · '.join(lines)}</p>{notes}</header>"
    )


def _verdict(summary: Mapping[str, Any]) -> str:
    """Trained against the best constant and the untrained model, in numbers and in a sentence."""
    names = {
        "heldout_trained": "This model",
        "heldout_constant": "Best constant prediction",
        "heldout_untrained": "Untrained model",
    }
    losses = {key: _number(summary.get(key)) for key in names}
    known = [loss for loss in losses.values() if loss is not None]
    if not known:
        return f"<p>{page.NOT_RECORDED}</p>"
    cards = []
    for key, name in names.items():
        loss = losses[key]
        if loss is not None:
            best = key == "heldout_trained" and loss == min(known)
            cards.append(page.card(name, f"{loss:.4f}", share=loss / (max(known) or 1.0), best=best))
    trained, constant = losses["heldout_trained"], losses["heldout_constant"]
    sentence = ""
    apart = margin(trained, constant)
    if apart:
        clips = _number(summary.get("heldout_clips"))
        on = f"on {clips:.0f} clips that it never saw, " if clips else ""
        sentence = (
            f"<p>{_measure(summary)} {on}{apart[0]:.0f}% {apart[1]} the best "
            "constant (in hindsight, of the very targets it is measured on).</p>"
        )
    elif constant is not None:
        sentence = f"<p>{_measure(summary)}; the targets are constant, so nothing can do better.</p>"
    elif trained is not None:
        sentence = f"<p>{_measure(summary)}; which constant would do best at it is not known.</p>"
    return page.cards(cards) + sentence


def _measure(summary: Mapping[str, Any]) -> str:
    """What the held-out loss is called, as the start of a sentence."""
    name = str(summary.get("heldout_measure") or "mean squared error at hidden positions")
    return escape(name[:1].upper() + name[1:])


def _accuracy(summary: Mapping[str, Any]) -> str:
    """Top-1, top-5 and mean class accuracy of a classifier, and what they are of."""
    names = {"top1": "Top-1", "top5": "Top-5", "mean_class": "Mean of the classes"}
    values = {key: _number(summary.get(key)) for key in names}
    if all(value is None for value in values.values()):
        return f"<p>{page.NOT_RECORDED}</p>"
    cards = []
    for key, name in names.items():
        value = values[key]
        text, share = (None, None) if value is None else (f"{value:.1f} %", value / 100)
        cards.append(page.card(name, text, share=share, best=key == "top1"))
    videos, listed, views, crops = (
        _number(summary.get(key)) for key in ("videos", "listed", "views", "crops")
    )
    sentence = ""
    if videos is not None and listed is not None and views is not None and crops is not None:
        sentence = (
            f"<p>Of {videos:.0f} of {listed:.0f} held-out videos, {views:.0f} clips x {crops:.0f} crops "
            "each, with the weights that did best in validation.</p>"
        )
    return page.cards(cards) + sentence


def _detection(summary: Mapping[str, Any]) -> str:
    """The frame mAP of a detector of actions, and what it is of."""
    value = _number(summary.get("mean_ap"))
    if value is None:
        return f"<p>{page.NOT_RECORDED}</p>"
    read, listed = _number(summary.get("key_frames")), _number(summary.get("listed"))
    sentence = ""
    if read is not None and listed is not None:
        seen = "centre crops" if summary.get("area") == "centre" else "whole frames"
        sentence = (
            f"<p>Of {read:.0f} of {listed:.0f} held-out key frames, {seen}, with the weights that did best "
            "in validation. The folder <code>score</code> has each action's and the detections.</p>"
        )
    return page.cards([page.card("Frame mAP", f"{100 * value:.2f} %", share=value, best=True)]) + sentence


def side_by_side(runs: Sequence[RunFacts]) -> str:
    """Held-out accuracy or loss, and training loss, of several runs over their steps, as HTML."""
    charts = {
        "evaluation/top1": "Held-out top-1, percent",
        "evaluation/mean_ap": "Held-out mAP, share of 1",
        "evaluation/heldout_loss": "Held-out loss",
        "train_top1": "Training top-1, percent",
        "loss": "Training loss",
    }
    drawn = []
    for key, title in charts.items():
        curves = [
            Curve(run.name, run.metrics["step"], run.metrics[key], place)
            for place, run in enumerate(runs)
            if len(_finite(run, key))
        ]
        if curves:
            svg = line_chart(curves, title=title, from_zero=True, smooth=not key.startswith("evaluation/"))
            names, places = zip(*((curve.name, curve.colour) for curve in curves), strict=True)
            drawn.append(page.chart(title, svg, names, colours=places))
    ends = [
        (run.name, *(_percent((run.summary or {}).get(key)) for key in ("top1", "top5", "mean_class")))
        for run in runs
        if "top1" in (run.summary or {})
    ]
    table = page.table(ends, ("Run", "Top-1", "Top-5", "Mean of the classes")) if ends else ""
    return page.charts(drawn) + table


def _percent(value: Any) -> str:
    number = _number(value)
    return "" if number is None else f"{number:.1f} %"


def _numbers(facts: RunFacts) -> str:
    steps, epochs = facts.metrics["step"], facts.epochs
    epoch = next(iter(_finite(facts, "epoch")[-1:]), None)
    loss, speed, memory = (_finite(facts, key) for key in ("loss", "samples_per_second", "memory_mb"))
    data, step = _finite(facts, "data_ms"), _finite(facts, "step_ms")
    waiting = f"{data.sum() / step.sum():.1%} of it waiting for data" if len(data) and step.sum() else ""
    failures = facts.failures
    unreadable = None if failures is None else str(len({str(one.get("path", "")) for one in failures}))
    return page.cards(
        [
            page.card("Steps", f"{steps[-1]:.0f}"),
            page.card(
                "Epochs",
                None if epoch is None else f"{epoch:.4g}" + (f" of {epochs:.4g}" if epochs else ""),
                share=min(1.0, float(epoch) / epochs) if epochs and epoch is not None else None,
            ),
            page.card(
                "Training loss now",
                f"{loss[-_NOW:].mean():.4f}" if len(loss) else None,
                f"mean of {len(loss[-_NOW:])} steps; the first was {loss[0]:.4f}" if len(loss) else "",
            ),
            page.card(
                "Clips per second",
                f"{np.median(speed):.3g}" if len(speed) else None,
                "median over the steps" if len(speed) else "",
            ),
            page.card(
                "Time per step", duration_text(float(np.median(step)) / 1e3) if len(step) else None, waiting
            ),
            page.card("Peak memory", f"{memory.max() / 1000:.2f} GB" if len(memory) else None),
            page.card("Unreadable videos", unreadable),
        ]
    )


def _curves(facts: RunFacts) -> str:
    constant = _number((facts.summary or {}).get("heldout_constant"))

    def one(title: str, names: Mapping[str, str], **options: Any) -> str:
        curves = [
            Curve(name, facts.metrics["step"], facts.metrics[key])
            for key, name in names.items()
            if len(_finite(facts, key))
        ]
        svg = line_chart(curves, title=title, **options)
        return page.chart(title, svg, [curve.name for curve in curves])

    tokens = [one(*chart) for chart in TOKEN_CHARTS if any(len(_finite(facts, key)) for key in chart[1])]
    # A tokenizer's constant is one of the reconstruction, of which the loss is more than that.
    levels = {} if constant is None or tokens else {"best constant": constant}
    accuracy = []
    if "train_top1" in facts.metrics:
        names = {"train_top1": "training top-1", "evaluation/top1": "held-out top-1"}
        accuracy = [one("Accuracy, percent", names, from_zero=True)]
    if "evaluation/mean_ap" in facts.metrics:
        names = {"evaluation/mean_ap": "held-out mAP"}
        accuracy.append(one("Frame mAP, share of 1", names, from_zero=True, smooth=False))
    if "evaluation/knn_top1" in facts.metrics:
        names = {"evaluation/knn_top1": "k-NN", "evaluation/linear_top1": "linear probe"}
        accuracy.append(one("Frozen features, top-1, percent", names, from_zero=True, smooth=False))
    return page.charts(
        [
            one(
                "Loss",
                {"loss": "training", "evaluation/heldout_loss": "held out"},
                from_zero=True,
                levels=levels,
            ),
            *accuracy,
            *tokens,
            *(one(*chart, from_zero=True) for chart in method_charts(facts.metrics)),
            one("Learning rate", {"lr": "learning rate"}, from_zero=True, smooth=False),
            one("Gradient norm, before clipping", {"grad_norm": "gradient norm"}, log=True),
            one("Time per step, ms", {"step_ms": "in all", "data_ms": "data"}, log=True),
            one("Clips per second", {"samples_per_second": "clips per second"}, from_zero=True),
            one("Peak memory, MB", {"memory_mb": "memory"}, from_zero=True, smooth=False),
        ]
    )


def _unreadable(facts: RunFacts) -> list[str]:
    """Training videos, which others stood in for, and held-out ones, which were left out."""
    held_out = facts.heldout_failures
    if not held_out:
        return [_failures(facts.failures)]
    rows = [(str(one.get("path", "")), str(one.get("cause", ""))) for one in held_out[:_FAILURES_SHOWN]]
    more = f"<p>And {len(held_out) - len(rows)} more.</p>" if len(held_out) > len(rows) else ""
    left_out = f"<p>{len(held_out)} held-out videos were left out of every score.</p>"
    training = _failures(facts.failures) if facts.failures else "<p>Every training video could be read.</p>"
    return [left_out + page.table(rows, ("Video", "Cause")) + more, training]


def _failures(failures: Sequence[Mapping[str, Any]] | None) -> str:
    if failures is None:
        return f"<p>{page.NOT_RECORDED}</p>"
    if not failures:
        return "<p>None: every video could be read.</p>"
    times = Counter((str(one.get("path", "")), str(one.get("cause", ""))) for one in failures)
    rows = [(path, cause, str(count)) for (path, cause), count in times.most_common(_FAILURES_SHOWN)]
    more = len(times) - len(rows)
    rest = f"<p>And {more} more in failures.jsonl.</p>" if more > 0 else ""
    table = page.table(rows, ("Video", "Cause", "Times"))
    return "<p>Each was replaced by another video, every time.</p>" + table + rest


def _setup(facts: RunFacts) -> list[str]:
    config, environment = page.NOT_RECORDED, page.NOT_RECORDED
    if facts.config is not None:
        config = page.preformatted(facts.config)
    if facts.environment is not None:
        environment = page.facts(flattened(facts.environment))
    parts = [page.folded("Config, as resolved", config), page.folded("Environment", environment)]
    if facts.summary:
        parts.append(page.folded("Summary", page.facts(flattened(facts.summary))))
    return parts


def _figure(media: Media) -> str:
    data = base64.b64encode(media.content).decode("ascii")
    name = escape(media.name, quote=True)
    if media.name.lower().endswith(".mp4"):
        shown = (
            f'<video controls loop muted playsinline aria-label="{name}: frames, visible cubes, HOG target '
            f'and prediction over time" src="data:video/mp4;base64,{data}"></video>'
        )
    else:
        what = "frames, visible cubes, HOG target and prediction, a column a time step"
        if media.name.startswith("reconstructions"):
            what = "frames, their tokens and what is decoded from these, a column a frame"
        shown = f'<img class="wide" alt="{name}: {what}" src="data:image/png;base64,{data}">'
    return f'<figure><div class="scroll">{shown}</div><figcaption>{name}</figcaption></figure>'


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one of texts, with names joined by dots."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat


def _number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _finite(facts: RunFacts, key: str) -> np.ndarray:
    """The finite values of a metric, float [m]; empty where it was not recorded."""
    values = facts.metrics.get(key, np.empty(0))
    return values[np.isfinite(values)]
