"""The page of a comparison: cost, learning curves and feature quality of each target."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videomaskfeat.durations import duration_text
from videomaskfeat.viz.charts import Curve, line_chart
from videomaskfeat.viz.evaluation import confidence_interval
from videomaskfeat.viz.page import build_table, finite_number, render_page

HEADER = (
    "Target",
    "Model",
    "Steps",
    "Clips per step",
    "Time per step",
    "Share of the target",
    "Peak memory, MB",
    "Pre-training time",
    "k-NN top-1",
    "k-NN, random encoder",
    "Linear top-1",
    "Linear, random encoder",
)
"""Columns of the table before those of each fine-tuning."""


@dataclass(frozen=True)
class TargetCost:
    """Cost of a micro-batch on one machine.

    Attributes:
        step_ms: forward and backward with the target, without data and optimizer [ms].
        clips: clips per micro-batch.
        target_ms: computing the target alone [ms].
        parameters: number of trained parameters.
    """

    step_ms: float
    clips: int
    target_ms: float
    parameters: int


_GAINS_TOP, _GAINS_ROW = 20, 26  # pixels of the column names and of a row
_PROBES = ("linear_top1", "knn_top1")
_GAINS = {
    "linear_top1": "Points over the random encoder, linear probe",
    "knn_top1": "Points over the random encoder, k-NN",
    "finetuned_top1": "Points over random weights, fine-tuned",
}
# 97.5 % quantiles of Student's t distribution for 1 to 30 degrees of freedom.
_T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Gain:
    """Mean difference of paired accuracies, in points.

    Attributes:
        mean: mean over the pairs.
        interval: half the width of the 95 % confidence interval of the mean (Student's t); None for one pair.
        pairs: number of pairs.
    """

    mean: float
    interval: float | None
    pairs: int

    @staticmethod
    def of(differences: Sequence[float]) -> Gain:
        """The gain of at least one difference."""
        count = len(differences)
        interval = None
        if count > 1:
            # Above 30 degrees of freedom, 1.96 + 2.5 / freedom is exact to 0.002.
            freedom = count - 1
            quantile = _T_QUANTILES[freedom - 1] if freedom <= len(_T_QUANTILES) else 1.96 + 2.5 / freedom
            interval = quantile * statistics.stdev(differences) / count**0.5
        return Gain(statistics.fmean(differences), interval, count)

    @property
    def text(self) -> str:
        """Such as ``+12.3 ± 2.1``."""
        return f"{self.mean:+.1f}" + ("" if self.interval is None else f" ± {self.interval:.1f}")


@dataclass(frozen=True)
class SeedResult:
    """The runs of a target with one seed.

    Attributes:
        seed: the seed.
        reports: paths of the run reports, relative to the page.
        metrics: float [n] by name, of the pre-training: ``step``, ``loss``, ``memory_mb``,
            ``evaluation/knn_top1``, ``evaluation/linear_top1``.
        summary: summary of the pre-training: ``seconds``, ``knn_top1`` and ``linear_top1`` [percent], and
            ``knn_top1_untrained`` and ``linear_top1_untrained`` of the same encoder at step 0. The names of
            the probe of a factor end with ``_FACTOR`` (before ``_untrained``).
        finetuned: summary of each fine-tuning by name ("" for the only one): ``top1``, ``classes``.
        scratch: summary of each of the same fine-tunings from random weights.
    """

    seed: int
    reports: Sequence[str]
    metrics: Mapping[str, np.ndarray]
    summary: Mapping[str, Any]
    finetuned: Mapping[str, Mapping[str, Any]]
    scratch: Mapping[str, Mapping[str, Any]]

    def number(self, key: str) -> float | None:
        """A number of the summary, ``memory_mb`` (the maximum), or an accuracy of a fine-tuning.

        Those are ``finetuned_top1`` and ``scratch_top1``, and for a named one ``finetuned_top1_NAME``.
        """
        if key == "memory_mb":
            memory = self.metrics.get(key, np.empty(0))
            return float(np.nanmax(memory)) if np.isfinite(memory).any() else None
        for kind, summaries in (("finetuned_top1", self.finetuned), ("scratch_top1", self.scratch)):
            for name, summary in summaries.items():
                if key == join_names(kind, name):
                    return finite_number(summary.get("top1"))
        return finite_number(self.summary.get(key))


@dataclass(frozen=True)
class TargetResults:
    """All runs of one target.

    Attributes:
        name: name of the target.
        model: name of the model.
        cost: cost of a micro-batch.
        seeds: results of each seed.
        micro_batches: micro-batches per step.
    """

    name: str
    model: str
    cost: TargetCost
    seeds: Sequence[SeedResult]
    micro_batches: int = 1

    @property
    def clips_per_step(self) -> int:
        """Clips per optimizer step."""
        return self.cost.clips * self.micro_batches

    @property
    def step_seconds(self) -> float:
        """Time per optimizer step, without data and optimizer."""
        return self.cost.step_ms * self.micro_batches / 1e3

    def numbers(self, key: str) -> list[float]:
        """The values of :meth:`SeedResult.number` that are known."""
        return [value for seed in self.seeds if (value := seed.number(key)) is not None]

    def wins(self, key: str) -> tuple[int, int]:
        """Number of seeds in which pre-training improves an accuracy such as ``knn_top1``; number of all."""
        pairs = [(seed.number(key), seed.number(_baseline(key))) for seed in self.seeds]
        known = [(after, before) for after, before in pairs if after is not None and before is not None]
        return sum(after > before for after, before in known), len(known)

    @property
    def factors(self) -> list[str]:
        """Names of the probed factors, in the order of the first seed's config."""
        start = "probe_classes_"
        return [key.removeprefix(start) for key in self.seeds[0].summary if key.startswith(start)]

    @property
    def finetunings(self) -> list[str]:
        """Names of the fine-tunings, in the order of the config."""
        return list(self.seeds[0].finetuned)

    def gain(self, kind: str, factor: str) -> Gain | None:
        """What pre-training adds to an accuracy of a factor.

        Args:
            kind: ``knn_top1`` or ``linear_top1``, compared with the same encoder at step 0; or
                ``finetuned_top1``, compared with random weights.
            factor: one of `factors` or of `finetunings`.

        Returns:
            The gain over the seeds; None if no seed has both accuracies.
        """
        name = join_names(kind, factor)
        pairs = [(seed.number(name), seed.number(_baseline(name))) for seed in self.seeds]
        known = [after - before for after, before in pairs if after is not None and before is not None]
        return Gain.of(known) if known else None

    def factor_row(self, factor: str) -> dict[str, Any]:
        """Accuracies of both probes for each seed, before and after, and their gains."""
        row: dict[str, Any] = {"classes": self.seeds[0].number(f"probe_classes_{factor}")}
        for probe in _PROBES:
            name, gain = f"{probe}_{factor}", self.gain(probe, factor)
            row[probe] = self.numbers(name)
            row[f"{probe}_untrained"] = self.numbers(f"{name}_untrained")
            row[f"{probe}_gain"] = None if gain is None else vars(gain)
        return row

    def row(self) -> dict[str, Any]:
        """All numbers as plain data."""
        tunings: dict[str, Any] = {}
        for name in self.finetunings or [""]:
            key = join_names("finetuned_top1", name)
            gain = self.gain("finetuned_top1", name)
            tunings[key], tunings[_baseline(key)] = self.numbers(key), self.numbers(_baseline(key))
            tunings[join_names("finetuned_wins", name)] = "{} of {}".format(*self.wins(key))
            tunings[join_names("finetuned_gain", name)] = None if gain is None else vars(gain)
        return {
            "target": self.name,
            "model": self.model,
            **vars(self.cost),
            "micro_batches": self.micro_batches,
            "memory_mb": max(self.numbers("memory_mb"), default=0.0),
            "steps": self.numbers("steps"),
            "seconds": self.numbers("seconds"),
            **{key: self.numbers(key) for probe in _PROBES for key in (probe, _baseline(probe))},
            "knn_top1_wins": "{} of {}".format(*self.wins("knn_top1")),
            "linear_top1_wins": "{} of {}".format(*self.wins("linear_top1")),
            **tunings,
            "factors": {factor: self.factor_row(factor) for factor in self.factors},
        }

    def cells(self, finetunings: Sequence[str] = ("",)) -> list[str]:
        """A row of the table, in the order of :func:`table_header`."""
        keys = ["knn_top1", "linear_top1", *(join_names("finetuned_top1", name) for name in finetunings)]
        share = self.cost.target_ms / self.cost.step_ms if self.cost.step_ms else 0.0
        return [
            self.name,
            self.model,
            f"{max(self.numbers('steps'), default=0):.0f}",
            str(self.clips_per_step),
            duration_text(self.step_seconds),
            f"{share:.1%}",
            f"{max(self.numbers('memory_mb'), default=0.0):.0f}",
            format_mean(self.numbers("seconds"), form=duration_text),
            *(
                format_mean(self.numbers(key), wins, interval=self.interval(key))
                for trained in keys
                for key, wins in ((trained, self.wins(trained)), (_baseline(trained), None))
            ),
        ]

    def counts(self, key: str) -> tuple[float | None, float | None]:
        """Numbers of videos and classes of an accuracy such as ``knn_top1`` or ``scratch_top1_motion``."""
        for kind in ("finetuned_top1", "scratch_top1"):
            if key == kind or key.startswith(f"{kind}_"):
                name = key[len(kind) + 1 :]
                runs = [seed.finetuned[name] for seed in self.seeds if name in seed.finetuned]
                return (
                    _common_number(finite_number(run.get("videos")) for run in runs),
                    _common_number(finite_number(run.get("classes")) for run in runs),
                )
        return (
            _common_number(seed.number("probe_videos") for seed in self.seeds),
            _common_number(seed.number("probe_classes") for seed in self.seeds),
        )

    def interval(self, key: str) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the mean accuracy over the seeds, in percent; None if it is unknown.

        The seeds share their test videos, so these count once: the interval covers the choice of the videos,
        and the deviation over the seeds that of the training.
        """
        values, (videos, _) = self.numbers(key), self.counts(key)
        if not values or not videos:
            return None
        low, high = confidence_interval(statistics.mean(values) / 100, videos)
        return 100 * low, 100 * high

    @staticmethod
    def markdown(results: Sequence[TargetResults]) -> str:
        """The tables of all targets as Markdown: the whole one, and the gains per factor."""
        tables = [_markdown_table(*_whole_table(results)), *describe_chance(results)]
        for kind, title in _GAINS.items():
            if _columns(results, kind):
                tables += [f"{title}:", _markdown_table(*_gain_table(results, kind))]
        return "\n\n".join(tables) + "\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def join_names(kind: str, name: str) -> str:
    """``kind_name``, or the kind alone for the only one of its kind."""
    return f"{kind}_{name}" if name else kind


def _baseline(key: str) -> str:
    """The name of the same accuracy without pre-training."""
    return key.replace("finetuned", "scratch", 1) if key.startswith("finetuned") else f"{key}_untrained"


def table_header(finetunings: Sequence[str]) -> tuple[str, ...]:
    """Header of the table with two columns per fine-tuning."""
    ends = [f", {name}" if name else "" for name in finetunings]
    return (
        *HEADER,
        *(f"{words}{end}" for end in ends for words in ("Fine-tuned top-1", "Fine-tuned from scratch")),
    )


def _whole_table(results: Sequence[TargetResults]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the table, without the columns that no target has a value for."""
    finetunings = _finetunings(results) or [""]
    columns = [
        (title, *cells)
        for title, *cells in zip(
            table_header(finetunings), *(target.cells(finetunings) for target in results), strict=True
        )
        if any(cells)
    ]
    header, *rows = zip(*columns, strict=True)
    return header, rows


def describe_chance(results: Sequence[TargetResults]) -> list[str]:
    """A sentence on the chance levels and the intervals of the table; none if they are unknown."""
    names = {"probes": "linear_top1"}
    for name in _finetunings(results):
        names[f"fine-tuned, {name}" if name else "fine-tuned"] = join_names("finetuned_top1", name)
    chances = []
    for title, key in names.items():
        counts = [one.counts(key) for one in results]
        videos, classes = (
            _common_number(value for value in values if value is not None)
            for values in zip(*counts, strict=True)
        )
        if classes:
            chances.append(f"{title} {100 / classes:.1f} %" + (f" on {videos:.0f} videos" if videos else ""))
    if not chances:
        return []
    return [
        f"Chance: {'; '.join(chances)}. In square brackets: 95 % interval of the mean for the choice of the "
        "videos."
    ]


def _finetunings(results: Sequence[TargetResults]) -> list[str]:
    return list(dict.fromkeys(name for target in results for name in target.finetunings))


def _columns(results: Sequence[TargetResults], kind: str) -> list[str]:
    """The factors of a kind of gain; a fine-tuning without a name has no column."""
    if kind == "finetuned_top1":
        return list(filter(None, _finetunings(results)))
    return list(dict.fromkeys(factor for target in results for factor in target.factors))


def _gain_table(results: Sequence[TargetResults], kind: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the gains of each target (row) and factor (column)."""
    factors = _columns(results, kind)
    gains = [[target.gain(kind, factor) for factor in factors] for target in results]
    rows = [
        (target.name, *("" if gain is None else gain.text for gain in row))
        for target, row in zip(results, gains, strict=True)
    ]
    return ("Target", *factors), rows


def gain_chart(results: Sequence[TargetResults], kind: str) -> dict[str, Any]:
    """The gains by pre-training: a row per target, a column per factor, the color is the gain.

    Args:
        results: results of each target.
        kind: see :meth:`TargetResults.gain`.

    Returns:
        Like :func:`~videomaskfeat.viz.charts.line_chart`.
    """
    title, factors = _GAINS[kind], _columns(results, kind)
    gains = {
        (target.name, factor): gain
        for target in results
        for factor in factors
        if (gain := target.gain(kind, factor)) is not None
    }
    if not gains:
        return {"title": title, "data": None}
    header, rows = _gain_table(results, kind)
    words = (f"{target} {factor} {gain.text}" for (target, factor), gain in gains.items())
    return {
        "title": title,
        "data": gain_cells(gains),
        "label": f"{title}. " + ", ".join(words),
        "table": build_table(header, rows),
    }


def gain_cells(gains: Mapping[tuple[str, str], Gain]) -> dict[str, Any]:
    """The data of the template ``gains.json`` from at least one gain, by target (row) and factor (column)."""
    targets, factors = (list(dict.fromkeys(names)) for names in zip(*gains, strict=True))
    cells = [
        {
            "target": target,
            "factor": factor,
            "gain": round(gain.mean, 2),
            "text": gain.text,
            "pairs": gain.pairs,
            "clear": gain.interval is not None and abs(gain.mean) > gain.interval,
        }
        for (target, factor), gain in gains.items()
    ]
    return {
        "kind": "gains",
        "height": 11 + _GAINS_TOP + _GAINS_ROW * len(targets),
        "top": _GAINS_TOP,
        "row": _GAINS_ROW,
        "cells": cells,
        "targets": targets,
        "factors": factors,
        "largest": max(1.0, *(abs(gain.mean) for gain in gains.values())),
    }


def render_comparison(results: Sequence[TargetResults], *, title: str, provenance: object = None) -> str:
    """The page as one HTML document without external references; arguments of :func:`render_page`."""
    return render_page("comparison", comparison_data(results, title=title), provenance=provenance)


def comparison_data(results: Sequence[TargetResults], *, title: str) -> dict[str, Any]:
    """The content of the page as plain data."""
    seeds = [seed for target in results for seed in target.seeds]
    classes = _common_number(seed.number("probe_classes") for seed in seeds)
    probe_chance = {"chance level": 100 / classes} if classes else {}
    return {
        "title": title,
        "targets": len(results),
        "seeds": max(len(target.seeds) for target in results),
        "probe_videos": _common_number(seed.number("probe_videos") for seed in seeds),
        "probe_classes": classes,
        "table": build_table(*_whole_table(results)),
        "probes": [
            line_chart(
                name,
                _mean_curves(results, f"evaluation/{probe}", start=f"{probe}_untrained"),
                from_zero=True,
                smooth=False,
                reference_lines=probe_chance,
            )
            for probe, name in (
                ("knn_top1", "k-NN top-1, percent"),
                ("linear_top1", "Linear probe top-1, percent"),
            )
        ],
        "gains": [gain_chart(results, kind) for kind in _GAINS if _columns(results, kind)],
        "finetuned": [_finetuned_cards(results, name) for name in _finetunings(results)],
        "costs": [
            {
                "name": target.name,
                "step_seconds": target.step_seconds,
                "clips": target.clips_per_step,
                "target_seconds": target.cost.target_ms * target.micro_batches / 1e3,
            }
            for target in results
        ],
        # Losses of different kinds share no axis.
        "losses": [line_chart(curve.name, [curve]) for curve in _mean_curves(results, "loss")],
        "links": [[path for seed in target.seeds for path in seed.reports] for target in results],
        "has_charts": True,
    }


def _finetuned_cards(results: Sequence[TargetResults], name: str) -> dict[str, Any]:
    """Accuracy of a fine-tuning of each target, and its number of classes."""
    tuned, scratch = join_names("finetuned_top1", name), join_names("scratch_top1", name)
    known = [target for target in results if target.numbers(tuned)]
    best = max((statistics.mean(target.numbers(tuned)) for target in known), default=0.0)
    summaries = [seed.finetuned[name] for one in results for seed in one.seeds if name in seed.finetuned]
    return {
        "name": name,
        "classes": _common_number(finite_number(summary.get("classes")) for summary in summaries),
        "targets": [
            {
                "name": target.name,
                "top1": format_mean(target.numbers(tuned), interval=target.interval(tuned)),
                "scratch": format_mean(target.numbers(scratch), interval=target.interval(scratch)),
                "share": statistics.mean(target.numbers(tuned)) / (best or 1.0),
            }
            for target in known
        ],
    }


def _common_number(values: Any) -> float | None:
    """The value that all share; None if they differ or are unknown."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _mean_curves(results: Sequence[TargetResults], key: str, *, start: str = "") -> list[Curve]:
    """Means over the seeds at the steps that all recorded; ``start``: name of the value at step 0."""
    curves = []
    for index, target in enumerate(results):
        columns = []
        for seed in target.seeds:
            values = seed.metrics.get(key, np.full(len(seed.metrics["step"]), np.nan))
            column = dict(zip(seed.metrics["step"].tolist(), values.tolist(), strict=True))
            first = seed.number(start)
            columns.append({0.0: first if first is not None else np.nan, **column})
        mean = {
            step: statistics.fmean(column[step] for column in columns)
            for step in sorted(set.intersection(*map(set, columns)))
        }
        known = {step: value for step, value in mean.items() if np.isfinite(value)}
        if known:
            curves.append(Curve(target.name, np.array([*known]), np.array([*known.values()]), index))
    return curves


def format_mean(
    values: Sequence[float],
    wins: tuple[int, int] | None = None,
    *,
    interval: tuple[float, float] | None = None,
    form: Callable[[float], str] = "{:.1f}".format,
) -> str:
    """Mean and standard deviation, or the only value, its interval, and wins; empty without values.

    >>> format_mean([25.0, 35.0], (1, 2), interval=(20.0, 41.0))
    '30.0 ± 7.1 [20, 41] (1 of 2)'
    """
    if not values:
        return ""
    text = form(statistics.mean(values))
    if len(values) > 1:
        text += f" ± {form(statistics.stdev(values))}"
    if interval is not None:
        text += f" [{interval[0]:.0f}, {interval[1]:.0f}]"
    return f"{text} ({wins[0]} of {wins[1]})" if wins and wins[1] > 1 else text
