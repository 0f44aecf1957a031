"""The report: everything recorded is on the page, nothing else is asked for, and what lacks is said to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from videomaskfeat.engine.contracts import LoopOptions, StepResult
from videomaskfeat.engine.loop import train
from videomaskfeat.errors import UserError
from videomaskfeat.jobs.report import metric_columns, report
from videomaskfeat.viz.pictures import ClipDrawing, write_film, write_picture

MISSING = "not recorded"


class Page(HTMLParser):
    """What a browser would see: the text outside of style, the addresses, the tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.addresses += [
            value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")
        ]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1][0] == "style":
            return
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def write_metrics(run: Path, rows: int = 60, **more: float) -> None:
    lines = [
        {"step": step, "epoch": step / 20, "loss": 0.2 - step / 1000, "failures": 0, **more}
        for step in range(1, rows + 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run folder whose every text wants to be markup."""
    folder = tmp_path / "run <1>"
    (folder / "pictures").mkdir(parents=True)
    write_metrics(
        folder, lr=1e-3, grad_norm=0.1, data_ms=2.0, step_ms=40.0, samples_per_second=25.0, memory_mb=1500.0
    )
    config = {"model": {"name": "<b>nano</b>"}, "data": {"train": "a&b.csv"}, "optim": {"epochs": 3}}
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    summary = {
        "heldout_trained": 0.03,
        "heldout_constant": 0.05,
        "heldout_untrained": 0.12,
        "heldout_clips": 40,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "environment.json").write_text(json.dumps({"torch": {"version": "<2>"}, "gpus": ["x", "y"]}))
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
    path = report(run)
    assert path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    for expected in (
        "run <1> finished",
        "Model: <b>nano</b> · Data: a&b.csv",
        "on 40 clips that it never saw, 40% below the best constant",
        "0.0300",
        "0.0500",
        "0.1200",
        "3 of 3",
        "mean of 50 steps; the first was 0.1990",
        "Time per step 40 ms 5.0% of it waiting for data",
        "1.50 GB",
        '<script>alert(1)</script>.mp4 zero "bytes" 2',
        "torch.version <2>",
        "gpus x, y",
        "clip_&.png",
    ):
        assert expected in page.text
    assert MISSING not in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 6


def test_report_of_slow_steps_gives_seconds(run: Path) -> None:
    """Not 4.01e+03 ms."""
    write_metrics(run, data_ms=2.0, step_ms=4010.0)
    page = Page(report(run).read_text(encoding="utf-8"))
    assert "Time per step 4.0 s" in page.text
    assert "e+03" not in page.text


def write_classifier_run(folder: Path, top1: float) -> Path:
    """A finished fine-tuning, validated every 30th step."""
    folder.mkdir()
    lines = [
        {"step": step, "loss": 2 - step / 100, "train_top1": float(step)}
        | ({"evaluation/top1": step / 2} if step % 30 == 0 else {})
        for step in range(1, 61)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"top1": top1, "top5": 80.0, "mean_class": 41.0, "videos": 39, "listed": 40}
    (folder / "summary.json").write_text(json.dumps({**summary, "views": 5, "crops": 1}))
    return folder


def test_report_of_a_classifier_tells_its_accuracy_and_of_how_many_videos(tmp_path: Path) -> None:
    page = Page(report(write_classifier_run(tmp_path / "tuned", 42.5)).read_text(encoding="utf-8"))
    for expected in (
        "Held-out accuracy",
        "42.5 %",
        "80.0 %",
        "41.0 %",
        "Of 39 of 40 held-out videos, 5 clips",
    ):
        assert expected in page.text
    assert "Held-out loss" not in page.text
    spoken = [attributes["aria-label"] or "" for tag, attributes in page.tags if tag == "svg"]
    assert any("held-out top-1: 15 at step 30, 30 at step 60" in words for words in spoken)


def test_runs_are_drawn_side_by_side_under_their_names(tmp_path: Path) -> None:
    tuned = write_classifier_run(tmp_path / "tuned", 42.5)
    scratch = write_classifier_run(tmp_path / "scratch", 11.25)
    page = Page(report(tuned, beside=[scratch]).read_text(encoding="utf-8"))
    assert "Side by side" in page.text
    assert "tuned 42.5 % 80.0 % 41.0 % scratch 11.2 % 80.0 % 41.0 %" in page.text
    spoken = [attributes["aria-label"] or "" for tag, attributes in page.tags if tag == "svg"]
    both = [words for words in spoken if "tuned:" in words and "scratch:" in words]
    assert [words.split(". ")[0] for words in both] == [
        "Held-out top-1, percent",
        "Training top-1, percent",
        "Training loss",
    ]
    with pytest.raises(UserError, match="4 runs beside another one: 3 fit at most"):
        report(tuned, beside=[scratch] * 4)


def test_a_run_has_the_same_colour_in_charts_that_lack_another(tmp_path: Path) -> None:
    """The first run recorded no accuracy: the second one's curve there keeps the second colour."""
    tuned, scratch = (write_classifier_run(tmp_path / name, 42.5) for name in ("tuned", "scratch"))
    lines = [{"step": step, "loss": 2 - step / 100} for step in range(1, 61)]
    (tuned / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = report(tuned, beside=[scratch]).read_text(encoding="utf-8")
    charts = {
        words.split(". ")[0]: re.findall(r'class="line (c\d)"', body)
        for words, body in re.findall(r'<svg class="chart"[^>]*aria-label="([^"]*)">(.*?)</svg>', html)
        if "scratch:" in words
    }
    assert charts["Held-out top-1, percent"] == ["c1"]
    assert charts["Training loss"] == ["c0", "c1"]


def test_monitors_and_parts_of_the_loss_have_their_charts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_metrics(folder, loss_hog=0.1, loss_features=0.4, feature_std=0.8, cube_entropy=4.0)
    text = Page(report(folder).read_text(encoding="utf-8")).text
    for words in (
        "Parts of the loss hog features",
        "Spread of features, near 0 when collapsed",
        "Entropy of the teacher's mean distribution, nats",
    ):
        assert words in text
    assert "tell inputs apart" not in text
    write_metrics(folder)
    assert "Spread of features" not in report(folder).read_text(encoding="utf-8")


def test_report_escapes_and_asks_for_nothing_outside(run: Path) -> None:
    html = report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "b", "iframe", "object"}
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r'base64,[^"]*', "", html))
    assert len(page.addresses) == 2
    assert all(re.match(r"data:(image/png|video/mp4);base64,", address) for address in page.addresses)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_report_of_a_run_in_progress_says_what_is_missing(tmp_path: Path) -> None:
    write_metrics(tmp_path, rows=3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    page = Page(report(tmp_path, tmp_path / "out.html").read_text(encoding="utf-8"))
    assert "in progress, or stopped before its end" in page.text
    assert f"Model: {MISSING} · Data: {MISSING}" in page.text
    assert "metrics.jsonl: 1 unreadable line(s) left out" in page.text
    assert "None: every video could be read." in page.text  # the steps counted 0 failures
    for heading in ("Held-out loss", "Learning rate", "Pictures", "Peak memory", "Environment"):
        assert f"{heading} {MISSING}" in page.text
    assert not (tmp_path / "report.html").exists()


def test_damaged_files_are_noted_and_the_rest_is_shown(run: Path) -> None:
    (run / "summary.json").write_text("{")
    (run / "environment.json").write_text("[1]")
    (run / "config.yaml").write_text("a: [")
    page = Page(report(run).read_text(encoding="utf-8"))
    assert "summary.json: no JSON object, left out." in page.text
    assert "environment.json: no JSON object, left out." in page.text
    assert "a: [" in page.text  # the config as it stands


def test_config_of_other_types_is_shown(run: Path) -> None:
    (run / "config.yaml").write_text("model: {name: [a, b]}\ndata: {train: 6}\n")
    text = Page(report(run).read_text(encoding="utf-8")).text
    assert "Model: ['a', 'b']" in text
    assert "Data: 6" in text


def test_media_past_the_limit_are_left_out_and_counted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png = (run / "pictures/clip_&.png").stat().st_size
    monkeypatch.setattr("videomaskfeat.jobs.report.MEDIA_BYTES", png)
    page = Page(report(run).read_text(encoding="utf-8"))
    assert len(page.addresses) == 1
    assert "1 file(s) of pictures/ left out" in page.text


def test_missing_folder_and_missing_metrics_are_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such run folder; give"):
        report(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no metrics"):
        report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no step yet"):
        report(tmp_path)


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
    train(
        model=model,
        step=lambda batch: StepResult(model(batch.index[:, None].float()).square().mean(), {}),
        loader=_Loader(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        learning_rate=lambda epoch: 0.01,
        folder=tmp_path,
        device=torch.device("cpu"),
        options=LoopOptions(epochs=2, tensorboard=False),
        evaluate=lambda: {"heldout_loss": 0.5},
    )
    page = Page(report(tmp_path).read_text(encoding="utf-8"))
    assert sum(tag == "svg" for tag, _ in page.tags) == 6
    assert "held out" in page.text
    assert f"Clips per second {MISSING}" not in page.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", b"[" * 100_000),
        ("summary.json", b'{"heldout_trained": 1e400, "heldout_constant": NaN, "top1": "x"}'),
        ("summary.json", b'{"heldout_trained": 0, "heldout_constant": 0, "heldout_untrained": 0}'),
        ("summary.json", b'{"heldout_trained": ' + b"9" * 6000 + b"}"),
        ("summary.json", b"\x1f\x8b\xff"),
        ("config.yaml", b"a: &a [*a]\n"),
        ("config.yaml", b"[" * 100_000),
        ("config.yaml", b"\xff\xfe\0"),
        ("environment.json", b'{"a": {"b": {"c": [1, null]}}}'),
        ("failures.jsonl", b'{"path": null}\n[1]\n{"path": "\\ud800"}\n{"pa'),
        ("metrics.jsonl", b'{"step": 1, "loss": 0}\n{"step": NaN}\n{"step": 1e400}\n{"step": "x"}\n{"st'),
    ],
)
def test_any_content_of_a_run_folder_gives_a_page(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    assert report(run).stat().st_size > 1000
