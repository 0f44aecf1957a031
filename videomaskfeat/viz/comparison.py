"""The page of a comparison: what each target costs, how it learns, and what its features are worth."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videomaskfeat.durations import duration_text
from videomaskfeat.viz.charts import Curve, line_chart
from videomaskfeat.viz.page import number, render_page, table

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
# What is measured after training -> the same without it, by which a seed wins.
_AGAINST = {
    "knn_top1": "knn_top1_untrained",
    "linear_top1": "linear_top1_untrained",
    "finetuned_top1": "scratch_top1",
}


@dataclass(frozen=True)
class TargetCost:
    """What a step costs, by itself on the machine.

    Attributes:
        step_ms: forward and backward of a micro-batch, its target included, without data and optimizer.
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
        metrics: float [n] per name, of the pre-training: ``step``, ``loss``, ``memory_mb``,
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
        """A number of the summary, or ``finetuned_top1``, ``scratch_top1``, ``memory_mb`` (the most held)."""
        if key == "memory_mb":
            memory = self.metrics.get(key, np.empty(0))
            return float(np.nanmax(memory)) if np.isfinite(memory).any() else None
        fine = {"finetuned_top1": self.finetuned, "scratch_top1": self.scratch}
        return number(fine[key].get("top1") if key in fine else self.summary.get(key))


@dataclass(frozen=True)
class TargetResults:
    """All of one target."""

    name: str
    model: str
    cost: TargetCost
    seeds: Sequence[SeedResult]

    def numbers(self, key: str) -> list[float]:
        """A number of :meth:`SeedResult.number`, one per seed that has it."""
        return [value for one in self.seeds if (value := one.number(key)) is not None]

    def wins(self, key: str) -> tuple[int, int]:
        """Seeds in which training beats the same without it, by ``knn_top1``, say; of how many."""
        pairs = [(one.number(key), one.number(_AGAINST[key])) for one in self.seeds]
        known = [(after, before) for after, before in pairs if after is not None and before is not None]
        return sum(after > before for after, before in known), len(known)

    def row(self) -> dict[str, Any]:
        """Everything as plain data."""
        tops = {key: self.numbers(key) for pair in _AGAINST.items() for key in pair}
        return {
            "target": self.name,
            "model": self.model,
            **vars(self.cost),
            "memory_mb": max(self.numbers("memory_mb"), default=0.0),
            "steps": self.numbers("steps"),
            "seconds": self.numbers("seconds"),
            **tops,
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
            spread(self.numbers("seconds"), form=duration_text),
            *(
                spread(self.numbers(key), wins)
                for trained, untrained in _AGAINST.items()
                for key, wins in ((trained, self.wins(trained)), (untrained, None))
            ),
        ]

    @staticmethod
    def markdown(results: Sequence[TargetResults]) -> str:
        """The table of all as Markdown."""
        lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
        return "\n".join([*lines, *("| " + " | ".join(one.cells()) + " |" for one in results)]) + "\n"


def render_comparison(results: Sequence[TargetResults], *, title: str) -> str:
    """The page as one HTML document without any reference outside itself.

    Args:
        results: of each target, in the order in which they are shown.
        title: of the page.
    """
    return render_page("comparison", comparison_data(results, title=title))


def comparison_data(results: Sequence[TargetResults], *, title: str) -> dict[str, Any]:
    """What the page shows, as plain data."""
    probes = {"knn_top1": "k-NN top-1, percent", "linear_top1": "Linear probe top-1, percent"}
    tuned = {one.name: statistics.mean(tops) for one in results if (tops := one.numbers("finetuned_top1"))}
    asked = {
        (one.number("probe_videos"), one.number("probe_classes"))
        for target in results
        for one in target.seeds
    }
    return {
        "title": title,
        "targets": len(results),
        "seeds": max(len(one.seeds) for one in results),
        "asked": asked.pop() if len(asked) == 1 else (None, None),
        "table": table(HEADER, [tuple(one.cells()) for one in results]),
        "probes": [
            line_chart(
                name,
                _mean_curves(results, f"evaluation/{probe}", start=f"{probe}_untrained"),
                from_zero=True,
                smooth=False,
            )
            for probe, name in probes.items()
        ],
        "finetuned": [
            {
                "name": one.name,
                "top1": spread(one.numbers("finetuned_top1")),
                "scratch": spread(one.numbers("scratch_top1")),
                "share": tuned[one.name] / (max(tuned.values()) or 1.0),
            }
            for one in results
            if one.name in tuned
        ],
        "costs": [{"name": one.name, **vars(one.cost)} for one in results],
        # Losses of different kinds share no axis.
        "losses": [line_chart(curve.name, [curve]) for curve in _mean_curves(results, "loss")],
        "links": [[path for one in target.seeds for path in one.reports] for target in results],
        "has_charts": True,
    }


def _mean_curves(results: Sequence[TargetResults], key: str, *, start: str = "") -> list[Curve]:
    """The mean over the seeds at the steps that all recorded; ``start``: name of the value at step 0."""
    curves = []
    for place, result in enumerate(results):
        columns = []
        for one in result.seeds:
            values = one.metrics.get(key, np.full(len(one.metrics["step"]), np.nan))
            column = dict(zip(one.metrics["step"].tolist(), values.tolist(), strict=True))
            first = one.number(start)
            columns.append({0.0: first if first is not None else np.nan, **column})
        mean = {
            step: statistics.fmean(column[step] for column in columns)
            for step in sorted(set.intersection(*map(set, columns)))
        }
        known = {step: value for step, value in mean.items() if np.isfinite(value)}
        if known:
            x, y = np.array([*known]), np.array([*known.values()])
            curves.append(Curve(result.name, x, y, place))
    return curves


def spread(
    values: Sequence[float],
    wins: tuple[int, int] | None = None,
    *,
    form: Callable[[float], str] = "{:.1f}".format,
) -> str:
    """Mean and standard deviation of several, or the one value; empty if there is none."""
    if not values:
        return ""
    text = form(statistics.mean(values))
    if len(values) > 1:
        text += f" ± {form(statistics.stdev(values))}"
    return f"{text} ({wins[0]} of {wins[1]})" if wins and wins[1] > 1 else text
