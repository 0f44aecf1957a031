"""The page of a comparison: means, spreads and wins over seeds, and the curves over their common steps."""

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
    """A run with one probe in its course, at the second of its steps."""
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
    tuned, scratch = ({"top1": top1}, {"top1": 40.0}) if top1 else ({}, {})
    return SeedResult(seed, reports, metrics, summary, tuned, scratch)


RESULTS = TargetResults(
    "hog",
    "nano",
    COST,
    [seed_result(1, [1, 2, 3], 30.0, 10.0, 40.0), seed_result(2, [1, 2], 20.0, 20.0, 44.0)],
)


def test_row_has_the_seeds_mean_spread_and_wins() -> None:
    """Mean and sample deviation by hand; a draw is no win; of the probe that was not run nothing stands."""
    cells = dict(zip(HEADER, RESULTS.cells(), strict=True))
    assert (cells["Steps"], cells["of clips"], cells["Time per step"]) == ("3", "8", "50 ms")
    assert cells["Target, share of it"] == "10.0%"
    assert cells["Peak memory, MB"] == "200"
    assert cells["Pre-training time"] == "1 min 30 s ± 42 s"
    assert cells["Linear top-1"] == "25.0 ± 7.1 (1 of 2)"
    assert cells["k-NN top-1"] == ""
    assert cells["linear, random encoder"] == "15.0 ± 7.1"
    assert cells["Fine-tuned top-1"] == "42.0 ± 2.8 (1 of 2)"
    assert cells["fine-tuned from scratch"] == "40.0 ± 0.0"
    assert RESULTS.row()["linear_top1_wins"] == "1 of 2"


def test_one_seed_has_no_spread_and_without_finetuning_there_is_no_figure() -> None:
    alone = TargetResults("hog", "nano", COST, [seed_result(1, [1, 2], 30.0, 10.0, 0.0)])
    assert alone.cells()[-4:] == ["30.0", "10.0", "", ""]
    markdown = TargetResults.markdown([alone, RESULTS])
    assert [line.count("|") for line in markdown.splitlines()] == [len(HEADER) + 1] * 4


def test_page_shows_finetuned_bars_and_a_loss_curve_per_target() -> None:
    text = Page(render_comparison([RESULTS], title="compare")).text
    for words in (
        "1 target, 2 seeds each",
        "42.0 ± 2.8 %",
        "from scratch 40.0 ± 0.0 %",
        "per step of 8 clips; 5 ms of it for the target",
        "They were asked for 120 videos of 12 classes (chance 8.3).",
    ):
        assert words in text
    data = comparison_data([RESULTS], title="compare")
    assert data["probes"][0]["data"] is None  # k-NN was not run
    (curve,) = data["probes"][1]["data"]["curves"]  # the untrained at 0, then the one step of both
    assert (curve["step"], curve["value"]) == ([0, 2], [15, 25])
    (curve,) = data["losses"][0]["data"]["curves"]  # over the steps of both
    assert (curve["step"], curve["value"]) == ([1, 2], [1, 0.5])


def test_page_links_to_every_run() -> None:
    html = render_comparison([RESULTS], title="compare")
    for path in (f"hog/seed_{seed}/{run}" for seed in (1, 2) for run in ("pretrained", "finetuned")):
        assert f'<a href="{path}/report.html">{path}</a>' in html


def test_page_does_not_count_for_seeds_that_were_asked_differently() -> None:
    other = SeedResult(3, [], RESULTS.seeds[0].metrics, {"probe_videos": 60, "probe_classes": 12}, {}, {})
    both = TargetResults("hog", "nano", COST, [*RESULTS.seeds, other])
    assert "They were asked" not in Page(render_comparison([both], title="compare")).text
