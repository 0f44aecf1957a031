"""The report of a run: the page shows everything recorded and names what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.viz.pages import Page
from videomaskfeat.engine.contracts import LoopOptions, StepResult
from videomaskfeat.engine.loop import Training, train
from videomaskfeat.errors import UserError
from videomaskfeat.jobs.report import report
from videomaskfeat.viz.pictures import ClipDrawing, write_film, write_picture
from videomaskfeat.viz.report import (
    KINDS,
    RunFacts,
    metric_columns,
    read_run,
    report_data,
    run_kind,
    write_report,
)

MISSING = "not recorded"
PROVENANCE = {
    "command": "train <it>",
    "date": "2026-01-02",
    "videomaskfeat": "1",
    "commit": "cafe",
    "torch": "2",
}


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def titles(charts: list[dict[str, Any]]) -> list[str]:
    """Titles of the charts with data."""
    return [chart["title"] for chart in charts if chart["data"]]


def write_metrics(run: Path, rows: int = 60, **more: float) -> None:
    lines = [
        {"step": step, "epoch": step / 20, "loss": 0.2 - step / 1000, "failures": 0, **more}
        for step in range(1, rows + 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run folder; every text in it contains markup."""
    folder = tmp_path / "run <1>"
    (folder / "pictures").mkdir(parents=True)
    write_metrics(
        folder, lr=1e-3, grad_norm=0.1, data_ms=2.0, step_ms=40.0, samples_per_second=25.0, memory_mb=1500.0
    )
    config = {"model": {"name": "<b>nano</b>"}, "data": {"train": "a&b.csv"}, "optim": {"epochs": 3}}
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    losses = {"heldout_trained": 0.03, "heldout_constant": 0.05, "heldout_untrained": 0.12}
    summary = {**losses, "heldout_clips": 40}
    (folder / "summary.json").write_text(json.dumps(summary))
    environment = {"provenance": PROVENANCE, "torch": {"version": "<2>"}, "gpus": ["x", "y"]}
    (folder / "environment.json").write_text(json.dumps(environment))
    failure = json.dumps({"path": "<script>alert(1)</script>.mp4", "cause": 'zero "bytes"'})
    (folder / "failures.jsonl").write_text(f"{failure}\n{failure}\n")
    drawing = ClipDrawing(
        "clip",
        np.zeros((2, 16, 16, 3), np.uint8),
        np.ones((1, 1, 1), bool),
        np.ones((1, 1, 1, 108), np.float32),
    )
    write_picture(folder / "pictures/clip_&.png", drawing)
    write_film(folder / "pictures/clip_&.mp4", drawing)
    return folder


def test_report_of_a_whole_run_holds_everything(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    for expected in (
        "run <1> finished",
        "Model: <b>nano</b> · Data: a&b.csv",
        "squared error at hidden positions on 40 held-out clips: 40 % below the best constant prediction",
        "0.0300",
        "0.0500",
        "0.1200",
        "3 of 3",
        "mean of the last 50 steps; first step 0.1990",
        "Clips per second 25 median over the steps",
        "Time per step 40 ms median; 5.0 % of the time waiting for data",
        "1.50 GB",
        '<script>alert(1)</script>.mp4 zero "bytes" 2',
        "torch.version <2>",
        "gpus x, y",
        "clip_&.png",
        "Command train <it> Date 2026-01-02 Git commit cafe Versions videomaskfeat 1, torch 2 Page",
    ):
        assert expected in page.text
    assert MISSING not in page.text
    assert len(page.charts) == 6


def test_best_constant_is_a_line_in_the_loss_chart_except_for_a_tokenizer(run: Path) -> None:
    assert report_data(read_run(run))["charts"][0]["data"]["levels"][0]["level"] == 0.05
    assert "Loss best constant 0.05 Numbers" in page_of(run).text
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "kind": "tokenizer"}))
    assert report_data(read_run(run))["charts"][0]["data"]["levels"] == []


@pytest.mark.parametrize(
    ("summary", "recorded", "kind"),
    [
        ({"kind": "detect", "top1": 1.0}, "train_top1", "detect"),
        ({"kind": "tokenizer"}, "loss", "tokenizer"),
        ({"kind": "a later one"}, "loss", "pretrain"),
        ({"kind": ["x"]}, "boxes", "detect"),
        # older summaries, and runs in progress
        ({"top1": 1.0}, "loss", "finetune"),
        (None, "train_top1", "finetune"),
        ({"mean_ap": 0.5}, "loss", "detect"),
        (None, "boxes", "detect"),
        ({"heldout_trained": 0.5}, "used_codes", "tokenizer"),
        ({"heldout_trained": 0.5}, "loss", "pretrain"),
    ],
)
def test_kind_comes_from_the_summary_or_from_the_recorded_metrics(
    summary: dict[str, Any] | None, recorded: str, kind: str
) -> None:
    metrics = {"step": np.ones(1), recorded: np.ones(1)}
    facts = RunFacts("run", metrics, summary, {}, None, None, None, [], None, [], [])
    assert run_kind(facts) == kind
    assert report_data(facts)["kind"] == kind


def write_classifier_run(folder: Path, top1: float) -> Path:
    """A finished fine-tuning, validated every 30th step."""
    folder.mkdir()
    lines = [
        {"step": step, "loss": 2 - step / 100, "train_top1": float(step)}
        | ({"evaluation/top1": step / 2} if step % 30 == 0 else {})
        for step in range(1, 61)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"top1": top1, "top5": 80.0, "mean_class": 41.0, "videos": 39, "listed": 40, "classes": 12}
    (folder / "summary.json").write_text(json.dumps({**summary, "views": 5, "crops": 1}))
    return folder


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        (
            {"kind": "finetune", "top1": 42.5, "top5": 8, "videos": 3, "listed": 4, "views": 5, "crops": 1},
            "Held-out accuracy Top-1 42.50 % Top-5 8.00 % Mean class accuracy not recorded On 3 of 4 "
            "held-out videos with 5 temporal views x 1 spatial crops each, with the weights that were best "
            "in validation. Top-1: 95 % confidence interval: 9 to 84 %. Run",
        ),
        ({"kind": "finetune", "mean_class": 3, "classes": 50}, "accuracy 3.00 % chance level 2.0 % Run"),
        (
            {"kind": "detect", "mean_ap": 0.5, "key_frames": 4, "listed": 5, "area": "center"},
            "Held-out detection Frame mAP 50.00 % On 4 of 5 held-out key frames, center crops, with",
        ),
        (
            {"kind": "detect", "mean_ap": 0.5, "mean_ap_chance": 0.125},
            "Frame mAP 50.00 % chance level 12.50 %: the same detections in random order Run",
        ),
        (
            {"kind": "detect", "mean_ap": 0.5, "mean_ap_interval": [0.4, 0.61]},
            "Frame mAP 50.00 % 95 % interval 40.0 to 61.0 %: bootstrap over the videos Run",
        ),
        (
            {
                "kind": "tokenizer", "heldout_trained": 0.25, "heldout_constant": 0.5, "heldout_frames": 7,
                "vocabulary": 64, "heldout_used_codes": 16, "heldout_perplexity": 12.34,
            },
            "Held-out reconstruction This tokenizer 0.2500 Best constant color 0.5000 Codes in use 16 of 64 "
            "Perplexity 12.3 number of equally frequent codes with the same entropy Mean squared error of "
            "the normalized pixels of 7 held-out frames, decoded from their tokens alone.",
        ),
        (
            {"heldout_trained": 0.5, "heldout_measure": "cross entropy"},
            "This model 0.5000 Cross entropy. The best constant prediction of this loss is unknown. Run",
        ),
        (
            {"heldout_trained": 0, "heldout_constant": 0},
            "The targets are constant, so a constant prediction is perfect. Run",
        ),
        *(({"kind": kind}, MISSING + " Run") for kind in KINDS),
    ],
)  # fmt: skip
def test_each_kind_of_run_has_its_score(tmp_path: Path, summary: dict[str, Any], words: str) -> None:
    write_metrics(tmp_path, step_ms=4010.0)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = page_of(tmp_path).text
    assert words in text
    assert ("Pictures" in text) == (summary.get("kind") not in ("finetune", "detect"))
    assert "Time per step 4.0 s" in text  # not 4.01e+03 ms


def test_runs_are_drawn_side_by_side_under_their_names(tmp_path: Path) -> None:
    tuned = write_classifier_run(tmp_path / "tuned", 42.5)
    scratch = write_classifier_run(tmp_path / "scratch", 11.25)
    path = report(tuned, beside=[scratch])
    assert path == tuned / "comparison.html"
    with pytest.raises(UserError, match=r"comparison\.html exists"):
        report(tuned, beside=[scratch])
    assert report(tuned, path, overwrite=True) == path
    report(tuned, beside=[scratch], overwrite=True)
    page = Page(path.read_text())
    rows = "tuned 42.5 % 80.0 % 41.0 % 8.3 % 28 to 58 % scratch 11.2 % 80.0 % 41.0 % 8.3 % 5 to 25 %"
    assert rows in page.text
    charts = {chart["title"]: chart for chart in report_data(read_run(tuned))["charts"]}
    assert "held-out top-1: 15 at step 30, 30 at step 60" in charts["Accuracy, percent"]["label"]
    assert charts["Accuracy, percent"]["data"]["levels"] == [{"name": "chance level 8.33", "level": 100 / 12}]
    beside = report_data(read_run(tuned), [read_run(scratch)])["beside"]
    assert titles(beside["charts"]) == ["Held-out top-1, percent", "Training top-1, percent", "Training loss"]
    assert "tuned:" in beside["charts"][0]["label"]
    assert "scratch:" in beside["charts"][0]["label"]
    scratch.joinpath("summary.json").write_text('{"kind": "pretrain"}')
    words = "scratch is a pre-training and .*tuned a fine-tuning; --beside compares runs of one kind"
    with pytest.raises(UserError, match=words):
        report(tuned, beside=[scratch], overwrite=True)
    with pytest.raises(UserError, match="4 runs to compare with; the maximum is 3"):
        report(tuned, beside=[scratch] * 4)


def test_a_run_has_the_same_color_in_charts_that_lack_another(tmp_path: Path) -> None:
    """The first run recorded no accuracy: the second one's curve there keeps the second color."""
    tuned, scratch = (write_classifier_run(tmp_path / name, 42.5) for name in ("tuned", "scratch"))
    write_metrics(tuned)
    charts = report_data(read_run(tuned), [read_run(scratch)])["beside"]["charts"]
    colors = {chart["title"]: [curve["color"] for curve in chart["data"]["curves"]] for chart in charts}
    assert colors == {"Held-out top-1, percent": [1], "Training top-1, percent": [1], "Training loss": [0, 1]}


def test_monitors_and_terms_of_the_loss_have_their_charts(tmp_path: Path) -> None:
    more = {"evaluation/mean_ap": 0.25, "evaluation/knn_top1": 5.0}
    write_metrics(tmp_path, loss_hog=0.1, loss_features=0.4, feature_std=0.8, cube_entropy=4.0, **more)
    charts = report_data(read_run(tmp_path))["charts"]
    assert titles(charts) == [
        "Loss",
        "Terms of the loss",
        "Frame mAP, share of 1",
        "Frozen features, top-1, percent",
        "Standard deviation of features, near 0 if collapsed",
        "Entropy of the teacher's mean distribution, nats",
    ]
    assert charts[1]["table"]["header"] == ("Step", "hog", "features")
    write_metrics(tmp_path)
    assert titles(report_data(read_run(tmp_path))["charts"]) == ["Loss"]


def test_pictures_are_part_of_the_page_and_small(run: Path) -> None:
    page = page_of(run)
    assert [address.split(",")[0] for address in page.addresses] == [
        "data:image/webp;base64",
        "data:video/mp4;base64",
    ]
    assert len(page.addresses[0]) < (run / "pictures/clip_&.png").stat().st_size
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    (run / "pictures/clip_&.png").write_bytes(b"no picture")
    assert page_of(run).addresses[0] == "data:image/png;base64,bm8gcGljdHVyZQ=="


def test_report_of_an_unfinished_run_names_what_is_missing(tmp_path: Path) -> None:
    write_metrics(tmp_path, rows=3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    page = Page(write_report(tmp_path, tmp_path / "out.html").read_text(encoding="utf-8"))
    assert "not finished: running or stopped" in page.text
    assert f"Model: {MISSING} · Data: {MISSING}" in page.text
    assert "metrics.jsonl: 1 unreadable line(s) left out" in page.text
    assert "All videos could be read." in page.text  # the steps counted 0 failures
    for heading in ("Held-out loss", "Learning rate", "Pictures", "Peak memory", "Environment"):
        assert f"{heading} {MISSING}" in page.text
    assert not (tmp_path / "report.html").exists()


def test_damaged_files_are_noted_and_the_rest_is_shown(run: Path) -> None:
    (run / "summary.json").write_text("{")
    (run / "environment.json").write_text("[1]")
    (run / "config.yaml").write_text("a: [")
    page = page_of(run)
    assert "summary.json is not a JSON object, left out." in page.text
    assert "environment.json is not a JSON object, left out." in page.text
    assert "a: [" in page.text  # the config as it stands


def test_config_of_other_types_is_shown(run: Path) -> None:
    (run / "config.yaml").write_text("model: {name: [a, b]}\ndata: {train: 6}\n")
    text = page_of(run).text
    assert "Model: ['a', 'b']" in text
    assert "Data: 6" in text


def test_media_past_the_limit_are_left_out_and_counted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png = (run / "pictures/clip_&.png").stat().st_size
    monkeypatch.setattr("videomaskfeat.viz.report.MEDIA_BYTES", png)
    page = page_of(run)
    assert len(page.addresses) == 1
    assert "1 file(s) of pictures/ left out" in page.text


def test_missing_folder_and_missing_metrics_are_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such run folder; give"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match="contains no metrics"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="contains no step yet"):
        write_report(tmp_path)


def test_columns_are_sorted_and_the_last_record_of_a_step_counts() -> None:
    columns = metric_columns(
        [{"step": 2, "loss": 5.0}, {"step": 1, "lr": None}, {"step": 2, "loss": 3.0, "lr": 0.5}]
    )
    assert columns["step"].tolist() == [1.0, 2.0]
    np.testing.assert_array_equal(columns["loss"], [np.nan, 3.0])
    np.testing.assert_array_equal(columns["lr"], [np.nan, 0.5])


@dataclass(frozen=True)
class _Batch:
    index: Tensor
    failures: tuple[()] = ()

    def to(self, device: torch.device) -> _Batch:
        return self


class _Loader:
    batches_per_epoch = 4

    def epoch(self, epoch: int, first_batch: int, stop: Callable[[], bool]) -> Iterator[_Batch]:
        for _ in range(first_batch, 4):
            yield _Batch(torch.arange(2))


def test_every_curve_is_fed_by_what_the_loop_records(tmp_path: Path) -> None:
    """The loop's names are the report's names."""
    model = nn.Linear(1, 1)
    run = Training(
        model=model,
        step=lambda batch: StepResult(model(batch.index[:, None].float()).square().mean(), {}),
        loader=_Loader(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        learning_rate=lambda epoch: 0.01,
        folder=tmp_path,
        device=torch.device("cpu"),
        options=LoopOptions(epochs=2, loggers=()),
        evaluate=lambda: {"heldout_loss": 0.5},
    )
    train(run)
    charts = report_data(read_run(tmp_path))["charts"]
    assert len(titles(charts)) == len(charts) == 6
    assert charts[0]["table"]["header"] == ("Step", "training", "held out")


def test_fine_tuning_shows_its_confusion_matrix_with_class_names(tmp_path: Path) -> None:
    run = write_classifier_run(tmp_path / "tuned", 42.5)
    content: dict[str, Any] = {"class_names": ["walk <1>", "run"], "counts": [[3, 1], [0, 2]]}
    (run / "confusion.json").write_text(json.dumps(content))
    page = page_of(run)
    assert "walk <1> run 1 25 %" in page.text
    assert len(page.charts) == 3  # loss, accuracy, confusion matrix
    (run / "confusion.json").write_text(json.dumps({**content, "class_names": []}))
    assert "class 0 class 1 1 25 %" in page_of(run).text


@pytest.mark.parametrize(
    "content",
    [
        '{"counts": [[1, 2]], "class_names": []}',
        '{"counts": [[1, 0], [2]], "class_names": []}',
        '{"counts": [[-1]], "class_names": []}',
        '{"counts": [], "class_names": []}',
        '{"counts": [[1.5]], "class_names": []}',
        '{"counts": [[1]], "class_names": ["a", "b"]}',
        '{"counts": [[1]], "class_names": 3}',
        '{"counts": [[1]]}',
    ],
)
def test_damaged_confusion_matrix_is_noted(tmp_path: Path, content: str) -> None:
    run = write_classifier_run(tmp_path / "tuned", 42.5)
    (run / "confusion.json").write_text(content)
    assert "confusion.json is not a confusion matrix, left out." in page_of(run).text


def test_versions_of_older_runs_are_shown(run: Path) -> None:
    (run / "environment.json").write_text(json.dumps({"versions": {"torch": "2.10", "av": "16"}}))
    text = page_of(run).text
    assert "Command not recorded Date not recorded Git commit not recorded Versions torch 2.10" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", b"[" * 100_000),
        ("summary.json", b'{"heldout_trained": 1e400, "heldout_constant": NaN, "top1": "x"}'),
        ("summary.json", b'{"heldout_trained": 0, "heldout_constant": 0, "heldout_untrained": 0}'),
        ("summary.json", b'{"heldout_trained": ' + b"9" * 6000 + b"}"),
        ("summary.json", b'{"map": 40, "map_chance": 10, "map_interval": "x"}'),
        ("summary.json", b'{"map": 40, "map_chance": 10, "map_interval": [31, null]}'),
        ("summary.json", b'{"kind": "detect", "mean_ap": 0.4, "mean_ap_interval": {"low": 0.3}}'),
        ("summary.json", b"\x1f\x8b\xff"),
        ("config.yaml", b"a: &a [*a]\n"),
        ("config.yaml", b"[" * 100_000),
        ("config.yaml", b"\xff\xfe\0"),
        ("environment.json", b'{"a": {"b": {"c": [1, null]}}}'),
        ("environment.json", b'{"provenance": [1], "versions": 3}'),
        ("failures.jsonl", b'{"path": null}\n[1]\n{"path": "\\ud800"}\n{"pa'),
        ("metrics.jsonl", b'{"step": 1, "loss": 0}\n{"step": NaN}\n{"step": 1e400}\n{"step": "x"}\n{"st'),
    ],
)
def test_any_content_of_a_run_folder_gives_a_page(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    assert write_report(run).stat().st_size > 1000
