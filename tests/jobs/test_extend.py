"""``run.extend``: a finished run of each kind continues to a larger number of epochs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.toy import differences, metrics
from videomaskfeat.methods.ibot import Ibot

from .action_set import make_action_set
from .conftest import TINY as PRETRAIN
from .conftest import Verb
from .test_finetune import TINY as FINETUNE
from .test_tokenizer import ARGUMENTS
from .test_tokenizer import TINY as TOKENIZER

IBOT = (
    "{head: {prototypes: 12, hidden_width: 16, bottleneck: 8}, summary: mean, ratios: [0.2, 0.5], "
    "temperature_warmup_epochs: 1, momentum: 0.9, collapse_std: 0, collapse_information: 0}"
)
MAE = [
    "model.arguments={depth: 2, decoder_depth: 1}",
    "mask.kind=random",
    "mask.cell=[2,8,8]",
    "target=pixels",
    "target.arguments.output_stride=[2,8,8]",
]
KINDS = {
    "masked": ("pretrain", [*PRETRAIN, "optim.ema_decay=0.9"]),
    "ibot": ("pretrain", [*PRETRAIN, "method=ibot", f"method.arguments={IBOT}", "mask.kind=random"]),
    "mae": ("pretrain", [*PRETRAIN, "model.name=mae_vit_nano", *MAE]),
    "finetune": ("finetune", [*FINETUNE, "optim.ema_decay=0.9"]),
    "detect": ("detect-train", []),
    "dvae": ("train-tokenizer", [*TOKENIZER, f"model.arguments={ARGUMENTS['dvae']}", "gumbel.kl_weight=0"]),
}
MAE_TOO = pytest.param("mae", marks=pytest.mark.slow)  # the other pre-trainings take the same path
SCHEDULE = [
    "optim.warmup_epochs=0",
    "optim.learning_rate=1e-3",
    "optim.start_learning_rate=0",
    "optim.end_learning_rate=1e-4",
    "run.checkpoint_minutes=0",
    "run.keep_checkpoints=99",
]


def arguments_of(kind: str, sample: Path, tmp_path: Path) -> tuple[str, list[str]]:
    """The verb and the overrides of a tiny run, without its folder and length."""
    name, overrides = KINDS[kind]
    if kind == "detect":
        overrides = make_action_set(tmp_path / "actions").overrides(tmp_path / "unused")
    else:
        overrides = [*overrides, f"data.train={sample / 'train.csv'}"]
    if kind == "finetune":
        overrides.append(f"data.validation={sample / 'val.csv'}")
    return name, [*overrides, *SCHEDULE]


def final_state(folder: Path) -> dict[str, object]:
    """The newest checkpoint without measured times."""
    state: dict[str, object] = torch.load(max((folder / "checkpoints").glob("*.pt")))
    assert isinstance(state["progress"], dict)
    del state["progress"]["seconds"]
    return state


@pytest.mark.parametrize("kind", [*sorted(KINDS.keys() - {"mae"}), MAE_TOO])
def test_extended_run_follows_the_new_length_and_resumes_bit_for_bit(
    kind: str, verb: Verb, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning rates equal the closed form to 1e-9."""
    (tmp_path / "actions").mkdir()
    name, overrides = arguments_of(kind, sample, tmp_path)
    short, whole, resumed = (tmp_path / folder for folder in ("short", "whole", "resumed"))

    shares = []  # of the run, at the steps of iBOT
    compare = Ibot.compare

    def spy(self: Ibot, network: Any, batch: Any, *, progress: float) -> Any:
        shares.append(progress)
        return compare(self, network, batch, progress=progress)

    monkeypatch.setattr(Ibot, "compare", spy)

    def train(folder: Path, *more: str) -> tuple[int, str]:
        code, _, text = verb(name, *overrides, f"run.folder={folder}", *more)
        return code, text

    code, text = train(short, "optim.epochs=1")
    assert code == 0, text
    steps = len(metrics(short))
    code, text = train(short, "optim.epochs=2")
    assert code == 2
    assert "optim.epochs is 1.0 there and 2.0 here; set run.extend=true to continue" in text
    shutil.copytree(short, whole)
    code, text = train(whole, "optim.epochs=2", "run.extend=true")
    assert code == 0, text
    assert "extended  from 1 to 2 epochs; all schedules follow the new length from epoch 1 on" in text
    logged = metrics(whole)
    assert logged[:steps] == metrics(short)
    for row in logged[steps:]:
        share = (row["step"] - 1) / (2 * steps)
        assert row["lr"] == pytest.approx(1e-4 + 9e-4 * (math.cos(math.pi * share) + 1) / 2, rel=1e-9)
    assert [row["step"] for row in logged] == list(range(1, 2 * steps + 1))
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["extensions"] == [{"epoch": 1.0, "epochs_before": 1.0, "epochs": 2.0}]
    if kind == "ibot":
        assert shares == [step / steps for step in range(steps)] + [
            step / (2 * steps) for step in range(steps, 2 * steps)
        ]
        momentum = 1 - 0.1 * (math.cos(math.pi / 2) + 1) / 2  # of the share before the step
        assert logged[steps]["teacher_momentum"] == pytest.approx(momentum, abs=1e-9)
    if kind == "dvae":  # of the share before the step: one half, not the end of the short run
        temperature = 0.0625 + 0.9375 * (math.cos(math.pi / 2) + 1) / 2
        assert logged[steps]["temperature"] == pytest.approx(temperature, rel=1e-6)

    shutil.copytree(short, resumed)
    shutil.copy(whole / "checkpoints" / f"step_{steps + 1:08d}.pt", resumed / "checkpoints")
    code, text = train(resumed, "optim.epochs=2", "run.extend=true")
    assert code == 0, text
    assert "extended  from 1 to 2 epochs" in text
    assert metrics(resumed)[-steps + 1 :] == logged[steps + 1 :]
    assert differences(final_state(resumed), final_state(whole)) == []


def test_length_is_never_reduced(verb: Verb, sample: Path, tmp_path: Path) -> None:
    name, overrides = arguments_of("masked", sample, tmp_path)
    overrides += [f"run.folder={tmp_path / 'run'}", "run.extend=true"]
    assert verb(name, *overrides, "optim.epochs=1")[0] == 0  # nothing to extend yet
    code, _, text = verb(name, *overrides, "optim.epochs=0.5")
    assert code == 2
    assert "optim.epochs is 1.0 there and 0.5 here; set them back" in text
    code, _, text = verb(name, *overrides, "optim.epochs=2", "optim.batch_size=8")
    assert code == 2
    assert "optim.batch_size is 4 there and 8 here; set them back" in text
