"""The page of a comparison: cost, learning curves and feature quality of each target."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videomaskfeat.durations import duration_text
from videomaskfeat.viz.charts import Curve, line_chart
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
    "Fine-tuned top-1",
    "Fine-tuned from scratch",
)
# Accuracy with pre-training -> the same without it, for the number of seeds in which pre-training is better.
_BASELINES = {
    "knn_top1": "knn_top1_untrained",
    "linear_top1": "linear_top1_untrained",
    "finetuned_top1": "scratch_top1",
}


@dataclass(frozen=True)
class TargetCost:
    """Cost of a step on one machine.

    Attributes:
        step_ms: forward and backward of a micro-batch with its target, without data and optimizer [ms].
        clips: clips per micro-batch.
        target_ms: computing the target alone [ms].
        parameters: number of trained parameters.
    """

    step_ms: float
    clips: int
    target_ms: float
    parameters: int


@dataclass(frozen=True)
class SeedResult:
    """The runs of a target with one seed.

    Attributes:
        seed: the seed.
        reports: paths of the run reports, relative to the page.
        metrics: float [n] by name, of the pre-training: ``step``, ``loss``, ``memory_mb``,
            ``evaluation/knn_top1``, ``evaluation/linear_top1``.
        summary: summary of the pre-training: ``seconds``, ``knn_top1`` and ``linear_top1`` [percent], and
            ``knn_top1_untrained`` and ``linear_top1_untrained`` of the same encoder at step 0.
        finetuned: summary of the fine-tuning: ``top1``, ``classes``; empty without fine-tuning.
        scratch: summary of the same fine-tuning from random weights.
    """

    seed: int
    reports: Sequence[str]
    metrics: Mapping[str, np.ndarray]
    summary: Mapping[str, Any]
    finetuned: Mapping[str, Any]
    scratch: Mapping[str, Any]

    def number(self, key: str) -> float | None:
        """A number of the summary, or ``finetuned_top1``, ``scratch_top1``, ``memory_mb`` (the maximum)."""
        if key == "memory_mb":
            memory = self.metrics.get(key, np.empty(0))
            return float(np.nanmax(memory)) if np.isfinite(memory).any() else None
        summaries = {"finetuned_top1": self.finetuned, "scratch_top1": self.scratch}
        return finite_number(summaries[key].get("top1") if key in summaries else self.summary.get(key))


@dataclass(frozen=True)
class TargetResults:
    """All runs of one target."""

    name: str
    model: str
    cost: TargetCost
    seeds: Sequence[SeedResult]

    def numbers(self, key: str) -> list[float]:
        """The values of :meth:`SeedResult.number` that are known."""
        return [value for seed in self.seeds if (value := seed.number(key)) is not None]

    def wins(self, key: str) -> tuple[int, int]:
        """Number of seeds in which pre-training improves an accuracy such as ``knn_top1``; number of all."""
        pairs = [(seed.number(key), seed.number(_BASELINES[key])) for seed in self.seeds]
        known = [(after, before) for after, before in pairs if after is not None and before is not None]
        return sum(after > before for after, before in known), len(known)

    def row(self) -> dict[str, Any]:
        """All numbers as plain data."""
        return {
            "target": self.name,
            "model": self.model,
            **vars(self.cost),
            "memory_mb": max(self.numbers("memory_mb"), default=0.0),
            "steps": self.numbers("steps"),
            "seconds": self.numbers("seconds"),
            **{key: self.numbers(key) for pair in _BASELINES.items() for key in pair},
            "knn_top1_wins": "{} of {}".format(*self.wins("knn_top1")),
            "linear_top1_wins": "{} of {}".format(*self.wins("linear_top1")),
            "finetuned_wins": "{} of {}".format(*self.wins("finetuned_top1")),
        }

    def cells(self) -> list[str]:
        """A row of the table, in the order of ``HEADER``."""
        share = self.cost.target_ms / self.cost.step_ms if self.cost.step_ms else 0.0
        return [
            self.name,
            self.model,
            f"{max(self.numbers('steps'), default=0):.0f}",
            str(self.cost.clips),
            duration_text(self.cost.step_ms / 1e3),
            f"{share:.1%}",
            f"{max(self.numbers('memory_mb'), default=0.0):.0f}",
            format_mean(self.numbers("seconds"), form=duration_text),
            *(
                format_mean(self.numbers(key), wins)
                for trained, untrained in _BASELINES.items()
                for key, wins in ((trained, self.wins(trained)), (untrained, None))
            ),
        ]

    @staticmethod
    def markdown(results: Sequence[TargetResults]) -> str:
        """The table of all targets as Markdown."""
        lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
        return "\n".join([*lines, *("| " + " | ".join(target.cells()) + " |" for target in results)]) + "\n"


def render_comparison(results: Sequence[TargetResults], *, title: str, provenance: object = None) -> str:
    """The page as one HTML document without external references; arguments of :func:`render_page`."""
    return render_page("comparison", comparison_data(results, title=title), provenance=provenance)


def comparison_data(results: Sequence[TargetResults], *, title: str) -> dict[str, Any]:
    """The content of the page as plain data."""
    seeds = [seed for target in results for seed in target.seeds]
    classes = _common_number(seed.number("probe_classes") for seed in seeds)
    probe_chance = {"chance level": 100 / classes} if classes else {}
    finetuned = [target for target in results if target.numbers("finetuned_top1")]
    best = max((statistics.mean(target.numbers("finetuned_top1")) for target in finetuned), default=0.0)
    return {
        "title": title,
        "targets": len(results),
        "seeds": max(len(target.seeds) for target in results),
        "probe_videos": _common_number(seed.number("probe_videos") for seed in seeds),
        "probe_classes": classes,
        "finetuned_classes": _common_number(
            finite_number(seed.finetuned.get("classes")) for seed in seeds if seed.finetuned
        ),
        "table": build_table(HEADER, [tuple(target.cells()) for target in results]),
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
        "finetuned": [
            {
                "name": target.name,
                "top1": format_mean(target.numbers("finetuned_top1")),
                "scratch": format_mean(target.numbers("scratch_top1")),
                "share": statistics.mean(target.numbers("finetuned_top1")) / (best or 1.0),
            }
            for target in finetuned
        ],
        "costs": [{"name": target.name, **vars(target.cost)} for target in results],
        # Losses of different kinds share no axis.
        "losses": [line_chart(curve.name, [curve]) for curve in _mean_curves(results, "loss")],
        "links": [[path for seed in target.seeds for path in seed.reports] for target in results],
        "has_charts": True,
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
    form: Callable[[float], str] = "{:.1f}".format,
) -> str:
    """Mean and standard deviation, or the only value; empty without values."""
    if not values:
        return ""
    text = form(statistics.mean(values))
    if len(values) > 1:
        text += f" ± {form(statistics.stdev(values))}"
    return f"{text} ({wins[0]} of {wins[1]})" if wins and wins[1] > 1 else text
