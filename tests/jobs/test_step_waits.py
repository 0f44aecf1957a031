"""No kind of training lets the host wait for the device while it launches a step."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.without_data import DEVICE, act_as_on_a_device, host_waits
from videomaskfeat.config import load_config
from videomaskfeat.engine import run as run_module
from videomaskfeat.engine import steps as steps_module
from videomaskfeat.engine.distributed import StopSignals
from videomaskfeat.engine.loop import Training
from videomaskfeat.engine.run import Run
from videomaskfeat.engine.steps import StepBatches, Steps
from videomaskfeat.jobs.detect import DetectRun
from videomaskfeat.jobs.finetune import FinetuneRun
from videomaskfeat.jobs.pretrain import PretrainRun
from videomaskfeat.jobs.tokenizer import TokenizerRun
from videomaskfeat.models import create_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.tokenizers import create_tokenizer
from videomaskfeat.recipe import METADATA_KEY, ClipRecipe, PretrainRecipe
from videomaskfeat.schemas.detect import DetectConfig
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.schemas.tokenizer import TokenizerConfig

from .action_set import make_action_set
from .conftest import TINY
from .test_finetune import ENCODER
from .test_finetune import TINY as TINY_FINETUNE
from .test_parallel import METHODS
from .test_tokenizer import ARGUMENTS as TOKENIZERS
from .test_tokenizer import TINY as TINY_TOKENIZER

CHANNELS = ["clip.mean=[0.485, 0.456, 0.406]", "clip.std=[0.229, 0.224, 0.225]"]
CLIPPED = ["optim.gradient_clip=0.1", "optim.ema_decay=0.9", "optim.accumulate=2"]
MIXED = ["mix.probability=1", "mix.mixup=0.8", "mix.cutmix=1", "mix.smoothing=0.1", "optim.layer_decay=0.75"]
ON_DEVICE = "data.augment_on=device"
# Without erasing, whose generator of random numbers needs a real device.
AUGMENT = [ON_DEVICE, "augment.erasing=0", "augment.brightness=0.4", "augment.randaugment=rand-m7-n4-p0.9"]
VIT = [
    "mask.kind=random",
    "model.name=mae_vit_nano",
    "model.arguments={depth: 2, width: 32, heads: 2, cube_stride: [2,16,16]}",
]
VISIBLE = "{predictor_width: 16, predictor_depth: 1, predictor_heads: 2, context: visible, visible_weight: 1}"
FEATURES = "{teacher: TEACHER, teacher_mean: [0.4, 0.5, 0.6], depth: 2}"
PRETRAIN = {
    "maskfeat": [*TINY, *CLIPPED, *CHANNELS],
    "maskfeat of device crops": [*TINY, ON_DEVICE],
    "pixels": [*TINY, "target=pixels"],
    "features": [*TINY, "target=features", f"target.arguments={FEATURES}"],
    "tokens": [*TINY, "target=dvae", "target.arguments={weights: TOKENIZER}"],
    "combined": [*TINY, "target=combined", "target.arguments={parts: {hog: {}, pixels: {weight: 0.5}}}"],
    "lars": [*TINY, "optim.optimizer=lars"],
    "mae": [*[word for word in TINY if "model" not in word], *VIT, "target=pixels"],
    "byol": [*METHODS["byol"], *CLIPPED],
    "ibot": [*METHODS["ibot"], "optim.gradient_clip_each=3"],
    "latent": METHODS["latent"],
    "latent of visible positions": [*METHODS["latent"], f"method.arguments={VISIBLE}"],
}
FINETUNE = {
    "finetune": [*TINY_FINETUNE, *CLIPPED, *CHANNELS, *MIXED],
    "finetune of device crops": [*TINY_FINETUNE, *AUGMENT],
}
DETECT = {
    "detect of device crops": [ON_DEVICE, "color.brightness=0.4"],
    "detect": [*CHANNELS, "loss.focusing=2", "loss.balance=0.5"],
    "detect poses": ["loss.name=poses", "loss.poses=[1,2]", "loss.balance=0.5"],
}
VQ = [*TINY_TOKENIZER, "model.name=vq", f"model.arguments={TOKENIZERS['vq']}"]
TOKENIZER = {
    "dvae": [*TINY_TOKENIZER, "model.name=dvae", f"model.arguments={TOKENIZERS['dvae']}"],
    "vq": [*VQ, "optim.accumulate=2"],
    "perceptual vq": [*VQ, "perceptual.weights=TEACHER", "perceptual.depths=[1,2]"],
}
CASES: dict[str, tuple[type, type[Run], list[str]]] = {
    **{name: (PretrainConfig, PretrainRun, words) for name, words in PRETRAIN.items()},
    **{name: (FinetuneConfig, FinetuneRun, words) for name, words in FINETUNE.items()},
    **{name: (DetectConfig, DetectRun, words) for name, words in DETECT.items()},
    **{name: (TokenizerConfig, TokenizerRun, words) for name, words in TOKENIZER.items()},
}
WITHOUT_LARS = importlib.util.find_spec("pytorch_optimizer") is None
LARS_MARK = pytest.mark.skipif(WITHOUT_LARS, reason="pytorch_optimizer is not installed")


def make_run(case: str, sample: Path, folder: Path, device: torch.device, *overrides: str) -> Run:
    """A run of the case on a device."""
    schema, kind, words = CASES[case]
    if schema is DetectConfig:
        words = [*make_action_set(folder).overrides(folder / "run"), *words]
    else:
        words = [*words, f"data.train={sample / 'train.csv'}", f"run.folder={folder / 'run'}"]
    if any("TEACHER" in word for word in words):
        recipe = PretrainRecipe(ClipRecipe(frames=4, stride=2, crop=32)).to_json()
        teacher = create_model("maskfeat_mvitv2_nano", **ENCODER)
        save_model(teacher, folder / "teacher.safetensors", metadata={METADATA_KEY: recipe})
    if any("TOKENIZER" in word for word in words):
        tokenizer = create_tokenizer("dvae", vocabulary=8, width=8, stride=16)
        save_model(tokenizer, folder / "tokenizer.safetensors")
    paths = {"TEACHER": "teacher.safetensors", "TOKENIZER": "tokenizer.safetensors"}
    for name, path in paths.items():
        words = [word.replace(name, str(folder / path)) for word in words]
    return kind(load_config(schema, None, [*words, "run.precision=bf16", *overrides]), device)


def training_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> Training[Any]:
    """What the run passes to the engine, with the lag of a GPU."""
    trainings: list[Training[Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train", trainings.append)
        run._loop()
    return replace(trainings[0], options=replace(trainings[0].options, check_lag=1))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=LARS_MARK) if case == "lars" else case for case in CASES]
)
def test_launching_a_step_never_waits(
    case: str, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine launches two steps of real batches on tensors without data.

    Batches and the numbers of a step have page-locked memory on a GPU. The first step also copies tables that
    stay on the device.
    """
    act_as_on_a_device(monkeypatch)
    monkeypatch.setattr(steps_module, "_numbers_on", lambda device, own: torch.empty(len(own), device=device))
    monkeypatch.setattr(steps_module, "_for_host", lambda values: values)
    run = make_run(case, sample, tmp_path, DEVICE)
    training = training_of(run, monkeypatch)
    steps, accumulate = Steps(training, None), training.options.accumulate
    with run.loader:
        stream = run.loader.epoch(0)
        for number in range(2):
            batches = list(islice(stream, accumulate))
            fields = [getattr(batch, name) for batch in batches for name in batch.device_fields]
            with host_waits() as copies:  # clips may be cropped and augmented on the device
                batches = [batch.to(DEVICE) for batch in batches]
            assert len(copies) == sum(field is not None for field in fields), copies
            with host_waits() as waits:
                steps.launch(StepBatches(batches, 0.0), StopSignals(), 0.0)
            assert number == 0 or waits == []
    newest = steps._launched[-1]
    assert newest._numbers.is_meta  # type: ignore[union-attr]
    assert all(not isinstance(value, Tensor) or value.is_meta for value in newest._further.values())


@pytest.mark.cuda
@pytest.mark.parametrize(
    "case", ["finetune of device crops", "detect poses", "ibot", "latent of visible positions", "vq"]
)
def test_launching_a_step_on_a_gpu_never_waits(
    case: str, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch raises if the host waits for the GPU in the second step, also while it crops clips and erases."""
    erasing = ["augment.erasing=1"] if "crops" in case else []
    run = make_run(case, sample, tmp_path, torch.device("cuda", 0), *erasing)
    training = training_of(run, monkeypatch)
    steps = Steps(training, None)
    with run.loader:
        stream = run.loader.epoch(0)
        for number in range(2):
            data = StepBatches(list(islice(stream, training.options.accumulate)), 0.0)
            torch.cuda.set_sync_debug_mode("error" if number else "default")
            try:
                steps.launch(data, StopSignals(), 0.0)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            steps.settle(keep=1)
    steps.settle(keep=0)
    assert steps.record["step"] == 2
