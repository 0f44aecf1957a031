"""``data.augment_on=device``: trainings whose clips are cropped and augmented on the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import simplejson
import torch

from videomaskfeat.data.uncropped import UncroppedClips
from videomaskfeat.jobs import plan
from videomaskfeat.jobs.finetune import FinetuneRun
from videomaskfeat.jobs.pretrain import PretrainRun
from videomaskfeat.models.weights import read_state

from .action_set import make_action_set
from .conftest import TINY, Verb
from .test_bench_data import RATE
from .test_extend import IBOT
from .test_finetune import TINY as TINY_FINETUNE
from .test_pretrain import assert_refused, rows

ON_DEVICE = "data.augment_on=device"
AUGMENT = ["augment.erasing=1", "augment.brightness=0.4", "augment.randaugment=rand-m7-n3-p0.9-mstd0.5-inc1"]
Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(sample: Path, tmp_path: Path, verb: Verb) -> Train:
    """``train(verb, folder, *words) -> (exit code, stderr)``."""

    def run_verb(name: str, folder: str, *words: str) -> tuple[int, str]:
        tiny = TINY if name == "pretrain" else TINY_FINETUNE
        data = [f"data.train={sample / 'train.csv'}", f"run.folder={tmp_path / folder}", "run.device=cpu"]
        code, _, err = verb(name, *tiny, *data, *words)
        return code, err

    return run_verb


@pytest.mark.parametrize("words", [[], ["method=ibot", f"method.arguments={IBOT}", "mask.kind=random"]])
def test_losses_are_those_of_clips_that_workers_crop(train: Train, tmp_path: Path, words: list[str]) -> None:
    """The same random numbers, and pixels that differ by a level (iBOT: a few, after colors). The targets of
    the sample's flat pictures change with a level, so the first loss, before any training, agrees to 1 %
    (with OpenCV 4, whose rotations and colors are coarser, to 2 %)."""
    losses = {}
    for where in ("workers", "device"):
        code, text = train("pretrain", where, f"data.augment_on={where}", "clip.flip=0.5", *words)
        assert code == 0, text
        losses[where] = rows(tmp_path / where)[0]["loss"]
    assert losses["device"] != losses["workers"]
    assert losses["device"] == pytest.approx(losses["workers"], rel=0.01 if cv2.__version__ >= "5" else 0.02)


@pytest.mark.parametrize(("name", "run"), [("pretrain", PretrainRun), ("finetune", FinetuneRun)])
def test_resumed_run_equals_the_uninterrupted_one(
    name: str, run: Any, train: Train, tmp_path: Path, stop_at: Any
) -> None:
    """Bit for bit on the CPU, with noise of erased boxes, and workers that start again."""
    words = [ON_DEVICE, "data.workers=1", *(AUGMENT if name == "finetune" else [])]
    assert train(name, "whole", *words)[0] == 0
    stop_at(run, 5)
    assert "interrupted" in train(name, "parted", *words)[1]
    code, text = train(name, "parted", *words, "data.workers=0")
    assert code == 0, text
    one, two = (read_state(tmp_path / folder / "weights.safetensors") for folder in ("whole", "parted"))
    for key, value in one.items():
        assert torch.equal(value, two[key]), key
    assert [row["loss"] for row in rows(tmp_path / "whole")] == [
        row["loss"] for row in rows(tmp_path / "parted")
    ]


def test_run_is_not_resumed_with_clips_of_the_other_kind(train: Train) -> None:
    assert train("pretrain", "run")[0] == 0
    assert_refused(train("pretrain", "run", ON_DEVICE), "data.augment_on", verb="pretrain")


def test_detection_learns_from_clips_of_the_device_as_from_those_of_workers(
    tmp_path: Path, verb: Verb
) -> None:
    """Pixels differ by a level, which changes the first loss, before any training, by less than 1 %."""
    actions = make_action_set(tmp_path)
    losses = {}
    for where in ("workers", "device"):
        words = [*actions.overrides(tmp_path / where), f"data.augment_on={where}", "color.brightness=0.4"]
        code, _, err = verb("detect-train", *words, "data.workers=1")
        assert code == 0, err
        losses[where] = rows(tmp_path / where)[0]["loss"]
    assert losses["device"] != losses["workers"]
    assert losses["device"] == pytest.approx(losses["workers"], rel=0.01)


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_stage_of_the_device_is_measured(name: str, sample: Path, tmp_path: Path, verb: Verb) -> None:
    yaml = tmp_path / "config.yaml"
    yaml.write_text("mask: {ratio: 0.4}\n" if name == "pretrain" else "evaluate: {views: 2}\n")
    tiny = TINY if name == "pretrain" else [*TINY_FINETUNE, *AUGMENT]
    words = [f"data.train={sample / 'train.csv'}", f"run.folder={tmp_path / 'run'}", ON_DEVICE]
    figures = tmp_path / "figures.json"
    code, out, err = verb(
        "bench-data", "--config", yaml, *tiny, *words, "--clips", "6", "--out", f"{figures}"
    )
    assert code == 0, err
    seconds = simplejson.loads(figures.read_text())["seconds_per_clip"]
    assert [*seconds][-2:] == ["copy", "device"]
    assert seconds["device"] > 0
    assert seconds["resize"] == 0
    assert (seconds["augment"] > 0) == (name == "finetune")  # parameters are drawn
    printed = {stage: float(milliseconds) for stage, milliseconds, _ in RATE.findall(out)}
    assert printed["device"] == pytest.approx(1e3 * seconds["device"], abs=6e-4)


def test_stage_of_the_device_is_measured_in_detection(tmp_path: Path, verb: Verb) -> None:
    yaml, figures = tmp_path / "config.yaml", tmp_path / "figures.json"
    yaml.write_text("color: {brightness: 0.4}\n")
    words = [*make_action_set(tmp_path).overrides(tmp_path / "run"), ON_DEVICE]
    code, _, err = verb("bench-data", "--config", yaml, *words, "--clips", "6", "--out", f"{figures}")
    assert code == 0, err
    seconds = simplejson.loads(figures.read_text())["seconds_per_clip"]
    assert seconds["device"] > 0 == seconds["resize"]


def test_stage_of_the_device_is_counted_once_in_a_step(
    sample: Path, tmp_path: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan` moves a batch to the device within a step, so its step contains the stage."""
    apply, make_plan, plans = UncroppedClips.apply, plan.plan_training, list[plan.TrainingPlan]()

    def apply_slowly(clips: UncroppedClips) -> torch.Tensor:
        time.sleep(0.2)
        return apply(clips)

    def note_plan(*arguments: Any) -> plan.TrainingPlan:
        plans.append(make_plan(*arguments))
        return plans[0]

    monkeypatch.setattr(UncroppedClips, "apply", apply_slowly)
    monkeypatch.setattr(plan, "plan_training", note_plan)
    yaml, figures = tmp_path / "config.yaml", tmp_path / "figures.json"
    yaml.write_text("mask: {ratio: 0.4}\n")
    words = [f"data.train={sample / 'train.csv'}", f"run.folder={tmp_path / 'run'}", ON_DEVICE]
    code, _, err = verb("bench-data", "--config", yaml, *TINY, *words, "--clips", "4", "--out", f"{figures}")
    assert code == 0, err
    assert simplejson.loads(figures.read_text())["step_seconds"] == plans[0].computing_seconds > 0.2
