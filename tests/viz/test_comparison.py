"""The page of a comparison: means, deviations and wins over seeds, and curves over their common steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.viz.pages import Page, drawn_height
from videomaskfeat.viz.comparison import (
    Gain,
    SeedResult,
    TargetCost,
    TargetResults,
    comparison_data,
    gain_chart,
    render_comparison,
    table_header,
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
    tuned, scratch = ({"": {"top1": top1, "classes": 5}}, {"": {"top1": 40.0}}) if top1 else ({}, {})
    return SeedResult(seed, reports, metrics, summary, tuned, scratch)


RESULTS = TargetResults(
    "hog",
    "nano",
    COST,
    [seed_result(1, [1, 2, 3], 30.0, 10.0, 40.0), seed_result(2, [1, 2], 20.0, 20.0, 44.0)],
)


def test_row_has_mean_deviation_and_wins_over_the_seeds() -> None:
    """By hand: sample deviation; equal accuracies are no win; a probe that was not run has empty cells."""
    cells = dict(zip(table_header([""]), RESULTS.cells(), strict=True))
    expected = {
        "Steps": "3",
        "Clips per step": "8",
        "Time per step": "50 ms",
        "Share of the target": "10.0%",
        "Peak memory, MB": "200",
        "Pre-training time": "1 min 30 s ± 42 s",
        # Wilson's interval of 30 and 18 of 120: the videos of two seeds are the same.
        "Linear top-1": "25.0 ± 7.1 [18, 33] (1 of 2)",
        "k-NN top-1": "",
        "Linear, random encoder": "15.0 ± 7.1 [10, 22]",
        "Fine-tuned top-1": "42.0 ± 2.8 (1 of 2)",
        "Fine-tuned from scratch": "40.0 ± 0.0",
    }
    assert {name: cells[name] for name in expected} == expected
    assert RESULTS.row()["linear_top1_wins"] == "1 of 2"


def test_cost_of_a_step_covers_all_its_micro_batches() -> None:
    results = TargetResults("hog", "nano", COST, RESULTS.seeds, micro_batches=3)
    cells = dict(zip(table_header([""]), results.cells(), strict=True))
    assert (cells["Clips per step"], cells["Time per step"]) == ("24", "150 ms")
    assert cells["Share of the target"] == "10.0%"
    text = Page(render_comparison([results], title="compare")).text
    assert "150 ms per step 24 clips per step; target: 15 ms" in text
    assert results.row()["micro_batches"] == 3


def test_one_seed_has_no_deviation_and_columns_without_numbers_are_left_out() -> None:
    single = TargetResults("hog", "nano", COST, [seed_result(1, [1, 2], 30.0, 10.0, 0.0)])
    assert single.cells()[-4:] == ["30.0 [23, 39]", "10.0 [6, 17]", "", ""]
    markdown = TargetResults.markdown([single, RESULTS])
    without_knn = [title for title in table_header([""]) if "k-NN" not in title]
    table, chance = markdown.rstrip().split("\n\n")
    assert table.splitlines()[0] == f"| {' | '.join(without_knn)} |"
    assert [line.count("|") for line in table.splitlines()] == [len(without_knn) + 1] * 4
    assert chance.startswith("Chance: probes 8.3 % on 120 videos; fine-tuned 20.0 %. In square brackets: ")
    assert "Fine-tuned" not in TargetResults.markdown([single])


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


def factor_results(name: str, gains: dict[str, Sequence[float]]) -> TargetResults:
    """Linear probes of factors: 10 before, and 10 plus the gain of each seed after."""
    count = len(next(iter(gains.values())))
    summaries: list[dict[str, float]] = [{} for _ in range(count)]
    for factor, values in gains.items():
        for summary, value in zip(summaries, values, strict=True):
            linear = f"linear_top1_{factor}"
            summary |= {f"probe_classes_{factor}": 4, linear: 10.0 + value, f"{linear}_untrained": 10.0}
    metrics = {"step": np.array([1, 2]), "loss": np.array([1.0, 0.5])}
    seeds = [SeedResult(number, [], metrics, one, {}, {}) for number, one in enumerate(summaries, start=1)]
    return TargetResults(name, "nano", COST, seeds)


def test_gain_is_the_mean_of_pairs_with_students_interval() -> None:
    """By hand: five differences 1..5 have mean 3 and deviation 1.5811; 2.776 * 1.5811 / sqrt(5) = 1.963."""
    gain = Gain.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (gain.mean, gain.pairs) == (3.0, 5)
    assert gain.interval == pytest.approx(1.963, abs=1e-3)
    assert gain.text == "+3.0 ± 2.0"
    assert Gain.of([-2.0]) == Gain(-2.0, None, 1)
    assert Gain.of([-2.0]).text == "-2.0"
    # 40 differences: the quantile of 39 degrees of freedom is 2.0227.
    many = Gain.of([0.0, 1.0] * 20)
    assert many.interval == pytest.approx(2.0227 * 0.50637 / 40**0.5, abs=2e-4)


def test_page_has_the_gain_of_each_target_and_factor() -> None:
    hog = factor_results("hog", {"motion": [8.0, 10.0, 12.0], "color": [-1.0, 1.0, 0.0]})
    mae = factor_results("mae", {"motion": [1.0, 1.0, 1.0]})
    chart = gain_chart([hog, mae], "linear_top1")
    assert drawn_height(chart) == pytest.approx(chart["data"]["height"], abs=2)
    data = chart["data"]
    assert (data["targets"], data["factors"], data["largest"]) == (["hog", "mae"], ["motion", "color"], 10.0)
    cells = {(cell["target"], cell["factor"]): cell for cell in data["cells"]}
    # 4.303 * 2 / sqrt(3) = 4.97 and 4.303 * 1 / sqrt(3) = 2.48.
    assert cells["hog", "motion"]["text"] == "+10.0 ± 5.0"
    assert cells["hog", "color"]["text"] == "+0.0 ± 2.5"
    assert [cells[key]["clear"] for key in cells] == [True, False, True]
    assert ("mae", "color") not in cells
    assert gain_chart([hog], "knn_top1")["data"] is None  # not measured
    page = Page(render_comparison([hog, mae], title="compare"))
    assert "What each target brings" in page.text
    assert [chart["width"] for chart in page.charts if "cells" in chart.get("datasets", {})] == [{"step": 92}]
    row = hog.row()["factors"]["motion"]
    assert row["linear_top1"] == [18.0, 20.0, 22.0]
    assert row["linear_top1_untrained"] == [10.0, 10.0, 10.0]
    assert (row["linear_top1_gain"]["mean"], row["knn_top1_gain"]) == (10.0, None)
    markdown = TargetResults.markdown([hog, mae])
    assert "| hog | +10.0 ± 5.0 | +0.0 ± 2.5 |" in markdown
    assert "| mae | +1.0 ± 0.0 |  |" in markdown
    assert "Points over the random encoder" not in TargetResults.markdown([RESULTS])


def test_each_fine_tuning_has_its_columns_cards_and_gain() -> None:
    """By hand: 60 and 64 against 40 are +22.0 ± 12.706 * 2.828 / sqrt(2) = 25.4; a name may have "_"."""
    results = []
    for name, motion in (("hog", (60.0, 64.0)), ("mae", (50.0, 50.0))):
        seeds = [
            SeedResult(
                number,
                [],
                {"step": np.array([1, 2]), "loss": np.array([1.0, 0.5])},
                {},
                {"motion": {"top1": top1, "classes": 4}, "few_digits": {"top1": 30.0, "classes": 10}},
                {"motion": {"top1": 40.0}, "few_digits": {"top1": 35.0}},
            )
            for number, top1 in enumerate(motion, start=1)
        ]
        results.append(TargetResults(name, "nano", COST, seeds))
    data = comparison_data(results, title="compare")
    assert data["table"]["header"][-4:] == (
        "Fine-tuned top-1, motion",
        "Fine-tuned from scratch, motion",
        "Fine-tuned top-1, few_digits",
        "Fine-tuned from scratch, few_digits",
    )
    assert data["table"]["rows"][0][-4:] == (
        "62.0 ± 2.8 (2 of 2)",
        "40.0 ± 0.0",
        "30.0 ± 0.0 (0 of 2)",
        "35.0 ± 0.0",
    )
    row = results[0].row()
    assert (row["finetuned_top1_motion"], row["scratch_top1_few_digits"]) == ([60.0, 64.0], [35.0, 35.0])
    assert (row["finetuned_wins_motion"], row["finetuned_gain_few_digits"]["mean"]) == ("2 of 2", -5.0)
    (gains,) = data["gains"]  # no probes
    assert gains["title"] == "Points over random weights, fine-tuned"
    texts = {(cell["target"], cell["factor"]): cell["text"] for cell in gains["data"]["cells"]}
    assert texts["hog", "motion"] == "+22.0 ± 25.4"
    assert texts["mae", "few_digits"] == "-5.0 ± 0.0"
    page = Page(render_comparison(results, title="compare"))
    for words in (
        "The models fine-tuned for motion classify 4 classes (chance level 25.0 %).",
        "Fine-tuned top-1, few_digits",
        "from scratch 35.0 ± 0.0 %",
    ):
        assert words in page.text, words
    assert "| hog | +22.0 ± 25.4 | -5.0 ± 0.0 |" in TargetResults.markdown(results)
