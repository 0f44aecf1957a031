"""What a run says about its model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from videomaskfeat.config import load_config
from videomaskfeat.data.records import Records
from videomaskfeat.jobs.finetune_building import LabelledLists
from videomaskfeat.jobs.plan import describe_finetuning
from videomaskfeat.models import create_model
from videomaskfeat.models.cost import multiply_adds
from videomaskfeat.schemas import FinetuneConfig


@pytest.mark.parametrize(("name", "billions"), [("maskfeat_mvitv2_s_classifier", 71.4), ("mvitv2_s", 64.5)])
def test_multiply_adds_are_the_published_ones(name: str, billions: float) -> None:
    clip = torch.zeros(1, 3, 16, 224, 224)
    assert round(multiply_adds(create_model(name), (clip,)) / 1e9, 1) == billions


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
    config = load_config(FinetuneConfig, None, overrides)
    config.clip.frames, config.clip.crop = 8, 64
    lists = LabelledLists(Records.from_paths(["a.mp4"] * 64, [0] * 64, source="train.csv"), None, 5, ())
    loader: Any = SimpleNamespace(batches_per_epoch=4 * config.optim.accumulate)
    model = create_model("maskfeat_mvitv2_nano_classifier", classes=5)
    plan = describe_finetuning(config, model, loader, lists, device=torch.device("cpu"), bf16=False)
    words = "mixing    never of two videos: a micro-batch holds one; lower optim.accumulate or the number of"
    assert (words in plan) == told


@pytest.mark.parametrize(
    ("learnt", "words"), [(1_285, "(1.28 K learnt"), (9_999, "(10.00 K learnt"), (10_000, "(0.01 M learnt")]
)
def test_plan_says_how_little_a_probe_learns(learnt: int, words: str) -> None:
    config = load_config(FinetuneConfig, None, [])
    config.clip.frames, config.clip.crop = 8, 64
    lists = LabelledLists(Records.from_paths(["a.mp4"] * 64, [0] * 64, source="train.csv"), None, 5, ())
    loader: Any = SimpleNamespace(batches_per_epoch=4)
    model = create_model("maskfeat_mvitv2_nano_classifier", classes=5).requires_grad_(False)
    model.probe = torch.nn.Parameter(torch.zeros(learnt))
    plan = describe_finetuning(config, model, loader, lists, device=torch.device("cpu"), bf16=False)
    assert words in plan
