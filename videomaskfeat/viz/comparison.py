"""The page of a comparison: what each target costs, how it learns, and what its features are worth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from videomaskfeat.durations import duration_text
from videomaskfeat.viz import page
from videomaskfeat.viz.page import Curve, line_chart

HEADER = (
    "Target",
    "Model",
    "Steps",
    "of clips",
    "Time per step",
    "Target, share of it",
    "Peak memory, MB",
    "Pre-training time",
    "k-NN top-1",
    "k-NN, random encoder",
    "Linear top-1",
    "linear, random encoder",
    "Fine-tuned top-1",
    "fine-tuned from scratch",
)


@dataclass(frozen=True)
class TargetCost:
    """What a step costs, by itself on the machine.

    Attributes:
        step_ms: forward and backward of a micro-batch, its target included, without data and optimiser.
        clips: in that micro-batch.
        target_ms: making the target alone.
        parameters: that learn.
    """

    step_ms: float
    clips: int
    target_ms: float
    parameters: int


@dataclass(frozen=True)
class SeedResult:
    """The runs of a target with one seed.

    Attributes:
        seed: of all of them.
        reports: of its runs, as the page links to them.
        metrics: float [n] a name, of the pre-training: ``step``, ``loss``, ``memory_mb``,
            ``evaluation/knn_top1``, ``evaluation/linear_top1``.
        summary: of the pre-training: ``seconds``, and ``knn_top1``, ``linear_top1`` (percent) of the trained
            encoder and ``knn_top1_untrained``, ``linear_top1_untrained`` of the same encoder at its start.
        finetuned: summary of the fine-tuning: ``top1``; empty without one.
        scratch: likewise of the same fine-tuning from random weights.
    """

    seed: int
    reports: Sequence[str]
    metrics: Mapping[str, np.ndarray]
    summary: Mapping[str, Any]
    finetuned: Mapping[str, Any]
    scratch: Mapping[str, Any]

    def number(self, key: str) -> float | None:
        """A number of the summary."""
        value = self.summary.get(key)
        return _number(value)

    @property
    def memory_mb(self) -> float | None:
        """The most that the run held."""
        memory = self.metrics.get("memory_mb")
        return None if memory is None or not np.isfinite(memory).any() else float(np.nanmax(memory))


@dataclass(frozen=True)
class TargetResults:
    """All of one target."""

    name: str
    model: str
    cost: TargetCost
    seeds: Sequence[SeedResult]

    def numbers(self, key: str) -> list[float]:
        """A number of the summaries, one a seed that has it."""
        found = (one.number(key) for one in self.seeds)
        return [value for value in found if value is not None]

    @property
    def finetuned(self) -> list[float]:
        """Top-1 after fine-tuning, in percent, one a seed."""
        return _numbers(one.finetuned.get("top1") for one in self.seeds)

    @property
    def scratch(self) -> list[float]:
        """Top-1 of the same fine-tuning from random weights, in percent, one a seed."""
        return _numbers(one.scratch.get("top1") for one in self.seeds)

    def wins(self, probe: str) -> tuple[int, int]:
        """Seeds in which the trained encoder beats itself untrained by ``knn_top1``, say; of how many."""
        return _wins((one.number(probe), one.number(f"{probe}_untrained")) for one in self.seeds)

    @property
    def finetuned_wins(self) -> tuple[int, int]:
        """Seeds in which fine-tuning the pre-trained encoder beats fine-tuning a random one; of how many."""
        tops = ((one.finetuned.get("top1"), one.scratch.get("top1")) for one in self.seeds)
        return _wins((_number(tuned), _number(scratch)) for tuned, scratch in tops)

    def row(self) -> dict[str, Any]:
        """Everything as plain data."""
        probes = ("knn_top1", "linear_top1")
        return {
            "target": self.name,
            "model": self.model,
            **vars(self.cost),
            "memory_mb": max((one.memory_mb or 0.0 for one in self.seeds), default=0.0),
            "steps": self.numbers("steps"),
            "seconds": self.numbers("seconds"),
            **{key: self.numbers(key) for key in (*probes, *(f"{probe}_untrained" for probe in probes))},
            **{f"{probe}_wins": "{} of {}".format(*self.wins(probe)) for probe in probes},
            "finetuned_top1": self.finetuned,
            "scratch_top1": self.scratch,
            "finetuned_wins": "{} of {}".format(*self.finetuned_wins),
        }

    def cells(self) -> list[str]:
        """A row of the table, in the order of ``HEADER``."""
        row = self.row()
        share = self.cost.target_ms / self.cost.step_ms if self.cost.step_ms else 0.0
        knn, linear = (
            [_spread(row[probe], self.wins(probe)), _spread(row[f"{probe}_untrained"])]
            for probe in ("knn_top1", "linear_top1")
        )
        return [
            self.name,
            self.model,
            f"{max(self.numbers('steps'), default=0):.0f}",
            str(self.cost.clips),
            duration_text(self.cost.step_ms / 1e3),
            f"{share:.1%}",
            f"{row['memory_mb']:.0f}",
            _spread(row["seconds"], form=duration_text),
            *knn,
            *linear,
            _spread(row["finetuned_top1"], self.finetuned_wins),
            _spread(row["scratch_top1"]),
        ]

    @staticmethod
    def markdown(results: Sequence[TargetResults]) -> str:
        """The table of all as Markdown."""
        lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
        return "\n".join([*lines, *("| " + " | ".join(one.cells()) + " |" for one in results)]) + "\n"


def render_comparison(results: Sequence[TargetResults], *, version: str, title: str) -> str:
    """The page as one HTML document without any reference outside itself.

    Args:
        results: of each target, in the order in which they are shown.
        version: of the package, for the footer.
        title: of the page.
    """
    seeds = max(len(one.seeds) for one in results)
    words = (
        f"<p>{_count(len(results), 'target')}, {_count(seeds, 'seed')} each, under the budget that the "
        "comparison's config gives. Numbers of several seeds are mean ± standard deviation. k-NN and linear "
        "probe see the frozen encoder; the random encoder beside them is the same one before its first step. "
        "In brackets stands in how many seeds the pre-trained encoder beat it, and beat what the same "
        f"fine-tuning makes of random weights.{_asked(results)} Times are of this machine.</p>"
    )
    body = [
        f'<header><div class="head"><h1>{escape(title)}</h1></div></header>',
        page.section("Table", words, page.table([one.cells() for one in results], HEADER)),
        page.section("Features in the course of pre-training", _probes(results)),
        page.section("Cost", _costs(results)),
        page.section("Training losses", _losses(results)),
        page.section("Runs", *(_links(one) for one in results)),
        f"<footer>Written by videomaskfeat {escape(version)}. This page needs no network.</footer>",
    ]
    return page.page(f"{title} · videomaskfeat", body, style="td:first-child { white-space: nowrap; }\n")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _asked(results: Sequence[TargetResults]) -> str:
    """How many videos the probes were asked for, where all asked for as many."""
    counts = {
        (one.number("probe_videos"), one.number("probe_classes")) for all in results for one in all.seeds
    }
    videos, classes = counts.pop() if len(counts) == 1 else (None, None)
    if not (videos and classes):
        return ""
    return f" They were asked for {videos:.0f} videos of {classes:.0f} classes (chance {100 / classes:.1f})."


def _links(result: TargetResults) -> str:
    """The reports of a target's runs."""
    links = [
        f'<a href="{escape(path, quote=True)}">{escape(path.removesuffix("/report.html"))}</a>'
        for one in result.seeds
        for path in one.reports
    ]
    return f"<p>{' · '.join(links)}</p>"


def _probes(results: Sequence[TargetResults]) -> str:
    charts = []
    for probe, name in (("knn_top1", "k-NN top-1, percent"), ("linear_top1", "Linear probe top-1, percent")):
        curves = [
            _mean_curve(one, f"evaluation/{probe}", place, start=f"{probe}_untrained")
            for place, one in enumerate(results)
        ]
        charts.append(_chart(name, [curve for curve in curves if curve is not None]))
    tuned = [one for one in results if one.finetuned]
    if tuned:
        most = max(max(one.finetuned) for one in tuned) or 1.0
        bars = [
            page.card(
                one.name,
                f"{_spread(one.finetuned)} %",
                f"from scratch {_spread(one.scratch)} %" if one.scratch else "",
                share=statistics.mean(one.finetuned) / most,
            )
            for one in tuned
        ]
        return page.charts(charts) + "<h3>Fine-tuned top-1</h3>" + page.cards(bars)
    return page.charts(charts)


def _costs(results: Sequence[TargetResults]) -> str:
    slowest = max(one.cost.step_ms for one in results) or 1.0
    return page.cards(
        page.card(
            one.name,
            duration_text(one.cost.step_ms / 1e3),
            f"per step of {one.cost.clips} clips; {duration_text(one.cost.target_ms / 1e3)} of it for the "
            "target",
            share=one.cost.step_ms / slowest,
        )
        for one in results
    )


def _losses(results: Sequence[TargetResults]) -> str:
    """A chart a target: losses of different kinds share no axis."""
    charts = []
    for place, one in enumerate(results):
        curve = _mean_curve(one, "loss", place)
        if curve is not None:
            charts.append(_chart(one.name, [curve], smooth=True, from_zero=False))
    return page.charts(charts)


def _chart(name: str, curves: Sequence[Curve], *, smooth: bool = False, from_zero: bool = True) -> str:
    svg = line_chart(curves, title=name, smooth=smooth, from_zero=from_zero) if curves else ""
    colours = [curve.colour or 0 for curve in curves]
    return page.chart(name, svg, [curve.name for curve in curves], colours=colours)


def _mean_curve(result: TargetResults, key: str, place: int, *, start: str = "") -> Curve | None:
    """The mean over the seeds, at the steps that all recorded; ``start``: name of the value at step 0."""
    columns = []
    for one in result.seeds:
        values = one.metrics.get(key)
        if values is None:
            return None
        kept = np.isfinite(values)
        steps, values = one.metrics["step"][kept], values[kept]
        first = one.number(start) if start else None
        if first is not None:
            steps, values = np.append(0.0, steps), np.append(first, values)
        columns.append(dict(zip(steps.tolist(), values.tolist(), strict=True)))
    common = sorted(set.intersection(*map(set, columns))) if columns else []
    if not common:
        return None
    mean = [statistics.mean(column[step] for column in columns) for step in common]
    return Curve(result.name, np.array(common), np.array(mean), place)


def _number(value: object) -> float | None:
    """A finite number as it is, all else as unknown."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None  # type: ignore[arg-type]


def _numbers(values: Iterable[object]) -> list[float]:
    return [number for number in map(_number, values) if number is not None]


def _wins(pairs: Iterable[tuple[float | None, float | None]]) -> tuple[int, int]:
    """In how many pairs the first is more; of how many that are known."""
    known = [(after, before) for after, before in pairs if after is not None and before is not None]
    return sum(after > before for after, before in known), len(known)


def _spread(
    values: Sequence[float],
    wins: tuple[int, int] | None = None,
    *,
    form: Callable[[float], str] = "{:.1f}".format,
) -> str:
    """Mean and standard deviation of several, or the one value; nothing where there is none."""
    if not values:
        return ""
    text = form(statistics.mean(values))
    if len(values) > 1:
        text += f" ± {form(statistics.stdev(values))}"
    return f"{text} ({wins[0]} of {wins[1]})" if wins and wins[1] > 1 else text
