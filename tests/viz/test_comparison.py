"""The page of a comparison: means, deviations and wins over seeds, and curves over their common steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.viz.pages import Page
from videomaskfeat.viz.comparison import (
    HEADER,
    SeedResult,
    TargetCost,
    TargetResults,
    comparison_data,
    render_comparison,
)

COST = TargetCost(step_ms=50.0, clips=8, target_ms=5.0, parameters=10)


def seed_result(
    seed: int, steps: Sequence[float], linear: float, untrained: float, top1: float
) -> SeedResult:
    """A run with one probe, at its second step."""
    metrics = {
        "step": np.array(steps),
        "loss": 1 / np.array(steps),
        "memory_mb": np.array([100.0 * seed] * len(steps)),
        "evaluation/linear_top1": np.array([np.nan, linear, *[np.nan] * (len(steps) - 2)]),
    }
    summary = {
        "steps": 3,
        "seconds": 60.0 * seed,
        "linear_top1": linear,
        "linear_top1_untrained": untrained,
        "probe_videos": 120,
        "probe_classes": 12,
    }
    reports = [f"hog/seed_{seed}/{run}/report.html" for run in ("pretrained", "finetuned")]
    tuned, scratch = ({"top1": top1, "classes": 5}, {"top1": 40.0}) if top1 else ({}, {})
    return SeedResult(seed, reports, metrics, summary, tuned, scratch)


RESULTS = TargetResults(
    "hog",
    "nano",
    COST,
    [seed_result(1, [1, 2, 3], 30.0, 10.0, 40.0), seed_result(2, [1, 2], 20.0, 20.0, 44.0)],
)


def test_row_has_mean_deviation_and_wins_over_the_seeds() -> None:
    """By hand: sample deviation; equal accuracies are no win; a probe that was not run has empty cells."""
    cells = dict(zip(HEADER, RESULTS.cells(), strict=True))
    expected = {
        "Steps": "3",
        "Clips per step": "8",
        "Time per step": "50 ms",
        "Share of the target": "10.0%",
        "Peak memory, MB": "200",
        "Pre-training time": "1 min 30 s ± 42 s",
        "Linear top-1": "25.0 ± 7.1 (1 of 2)",
        "k-NN top-1": "",
        "Linear, random encoder": "15.0 ± 7.1",
        "Fine-tuned top-1": "42.0 ± 2.8 (1 of 2)",
        "Fine-tuned from scratch": "40.0 ± 0.0",
    }
    assert {name: cells[name] for name in expected} == expected
    assert RESULTS.row()["linear_top1_wins"] == "1 of 2"


def test_one_seed_has_no_deviation_and_no_fine_tuning_has_no_number() -> None:
    single = TargetResults("hog", "nano", COST, [seed_result(1, [1, 2], 30.0, 10.0, 0.0)])
    assert single.cells()[-4:] == ["30.0", "10.0", "", ""]
    markdown = TargetResults.markdown([single, RESULTS])
    assert [line.count("|") for line in markdown.splitlines()] == [len(HEADER) + 1] * 4


def test_page_shows_every_number_curve_and_run() -> None:
    html = render_comparison([RESULTS], title="compare", provenance={"commit": "cafe"})
    for words in (
        "1 target with 2 seeds each",
        "42.0 ± 2.8 %",
        "from scratch 40.0 ± 0.0 %",
        "50 ms per step 8 clips per step; target: 5 ms",
        "The probes classify 120 videos of 12 classes (chance level 8.3 %).",
        "The fine-tuned models classify 5 classes (chance level 20.0 %).",
        "Git commit cafe",
    ):
        assert words in Page(html).text, words
    for path in (f"hog/seed_{seed}/{run}" for seed in (1, 2) for run in ("pretrained", "finetuned")):
        assert f'<a href="{path}/report.html">{path}</a>' in html
    data = comparison_data([RESULTS], title="compare")
    assert data["probes"][0]["data"] is None  # k-NN was not run
    assert data["probes"][1]["data"]["levels"] == [{"name": "chance level 8.33", "level": 100 / 12}]
    (curve,) = data["probes"][1]["data"]["curves"]  # untrained at step 0, then the only step of both seeds
    assert (curve["step"], curve["value"]) == ([0, 2], [15, 25])
    (curve,) = data["losses"][0]["data"]["curves"]  # over the steps of both seeds
    assert (curve["step"], curve["value"]) == ([1, 2], [1, 0.5])


def test_page_has_no_chance_level_if_the_probes_of_the_seeds_differ() -> None:
    other = SeedResult(3, [], RESULTS.seeds[0].metrics, {"probe_videos": 60, "probe_classes": 10}, {}, {})
    both = TargetResults("hog", "nano", COST, [*RESULTS.seeds, other])
    assert "The probes classify" not in Page(render_comparison([both], title="compare")).text
    assert comparison_data([both], title="compare")["probes"][1]["data"]["levels"] == []
