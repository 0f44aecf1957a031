"""What a run says about its model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from videomaskfeat.config import load_config
from videomaskfeat.data.records import Records
from videomaskfeat.jobs.finetune import FinetuneRun, LabelledLists
from videomaskfeat.models import create_model
from videomaskfeat.models.cost import multiply_adds
from videomaskfeat.schemas import FinetuneConfig


@pytest.mark.parametrize(("name", "billions"), [("maskfeat_mvitv2_s_classifier", 71.4), ("mvitv2_s", 64.5)])
def test_multiply_adds_are_the_published_ones(name: str, billions: float) -> None:
    clip = torch.zeros(1, 3, 16, 224, 224)
    assert round(multiply_adds(create_model(name), (clip,)) / 1e9, 1) == billions


def plan(model: torch.nn.Module, *overrides: str) -> str:
    """Of fine-tuning a model on 64 videos."""
    config = load_config(FinetuneConfig, None, ["clip.frames=8", "clip.crop=64", *overrides])
    records = Records.from_paths(["a.mp4"] * 64, [0] * 64, source="train.csv")
    run = SimpleNamespace(config=config, model=model, lists=LabelledLists(records, None, 5, ()))
    return "\n".join(FinetuneRun.plan(run))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], False),
        (["optim.accumulate=8"], False),  # two videos of two clips
        (["optim.accumulate=16"], True),
        (["optim.accumulate=16", "clip.samples_per_video=1"], False),
        (["optim.accumulate=32", "clip.samples_per_video=1"], True),
        (["optim.accumulate=16", "mix.mixup=0", "mix.cutmix=0"], False),
        (["optim.accumulate=16", "mix.probability=0"], False),
    ],
)
def test_plan_says_where_no_two_videos_meet_to_be_mixed(overrides: list[str], told: bool) -> None:
    """Of the default 32 clips a step, two from each video."""
    model = create_model("maskfeat_mvitv2_nano_classifier", classes=5)
    words = "mixing    never of two videos: a micro-batch holds one; lower optim.accumulate or the number of"
    assert (words in plan(model, *overrides)) == told


@pytest.mark.parametrize(
    ("learned", "words"),
    [(1_285, "(1.28 K learned"), (9_999, "(10.00 K learned"), (10_000, "(0.01 M learned")],
)
def test_plan_says_how_little_a_probe_learns(learned: int, words: str) -> None:
    model = create_model("maskfeat_mvitv2_nano_classifier", classes=5).requires_grad_(False)
    model.probe = torch.nn.Parameter(torch.zeros(learned))
    assert words in plan(model)
