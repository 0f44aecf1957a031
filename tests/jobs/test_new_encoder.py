"""The example "Add an encoder" of docs/extending.md, from its file to fine-tuning with layer decay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.extending import add_module, python_blocks
from videomaskfeat.cli import main
from videomaskfeat.engine.optim import layers_behind, parameter_groups
from videomaskfeat.errors import UserError
from videomaskfeat.jobs.export import export
from videomaskfeat.models import create_model
from videomaskfeat.models.loading import load_into, load_model
from videomaskfeat.models.zoo import MODELS, encoder_of, family

from .conftest import TINY as PRETRAIN
from .test_finetune import TINY as FINETUNE

SMALL = "model.arguments={depth: 2, width: 16}"
EXPECTED = {"mixer_nano", "maskfeat_mixer_nano", "mixer_nano_detector", "mixer_encoder"}


@pytest.fixture
def _mixer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's module and its line in the zoo."""
    file, line = python_blocks("Add an encoder")
    add_module(file, "videomaskfeat.models.mixer", monkeypatch)
    models = dict(MODELS)
    exec(line, {"MODELS": models, "family": family})
    assert models.keys() - MODELS.keys() == EXPECTED
    for name in EXPECTED:
        monkeypatch.setitem(MODELS, name, models[name])


def without_model(options: list[str]) -> list[str]:
    return [option for option in options if not option.startswith("model.")]


@pytest.mark.usefixtures("_mixer")
def test_new_encoder_is_pretrained_saved_loaded_and_finetuned(sample: Path, tmp_path: Path) -> None:
    stride = "target.arguments={output_stride: [2, 8, 8]}"
    steps = ["optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=8"]  # 2 of 16 videos
    lists = [f"data.train={sample / 'train.csv'}", f"data.validation={sample / 'val.csv'}"]
    own = [SMALL, "model.name=maskfeat_mixer_nano", f"run.folder={tmp_path / 'run'}", stride, *steps]
    assert main(["pretrain", *without_model(PRETRAIN), *lists, *own]) == 0
    weights = tmp_path / "run" / "weights.safetensors"
    model = load_model(weights)
    assert model(torch.zeros(1, 3, 4, 32, 32), torch.zeros(1, 2, 2, 2).bool()).shape == (1, 2, 4, 4, 27)
    out = tmp_path / "finetuned"
    own = [SMALL, "model.name=mixer_nano", f"model.weights={weights}", "optim.layer_decay=0.5"]
    assert main(["finetune", *without_model(FINETUNE), *lists, *own, f"run.folder={out}"]) == 0
    classifier = load_model(out / "weights.safetensors")
    groups = parameter_groups(
        classifier.named_parameters(),
        base_lr=1.0,
        weight_decay=0.0,
        layer_decay=0.5,
        layers=layers_behind(classifier),
    )
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    names = ("patch_embed.proj.weight", "blocks.0.mix", "blocks.1.mlp.fc1.weight", "head.projection.weight")
    assert [scales[name] for name in names] == [0.125, 0.25, 0.5, 1.0]
    encoder = encoder_of(classifier)
    assert encoder.created_as[0] == "mixer_encoder"
    assert encoder.features(torch.zeros(1, 3, 4, 32, 32), pooled=False).shape == (1, 2, 4, 4, 16)
    exported = export(out / "weights.safetensors", tmp_path / "encoder.safetensors", part="encoder")
    assert exported.difference.largest == 0


@pytest.mark.usefixtures("_mixer")
def test_weights_of_a_new_encoder_are_resized_and_recognized() -> None:
    positions = {"absolute_positions": "separable", "width": 16, "depth": 1, "class_token": False}
    small, large = (
        create_model("mixer_nano", clip_size=size, **positions) for size in ((4, 32, 32), (8, 64, 64))
    )
    assert load_into(large, small.state_dict()).resized == ("pos_embed_spatial", "pos_embed_temporal")
    state = create_model("maskfeat_mixer_nano").state_dict()
    with pytest.raises(UserError, match=r"it is probably maskfeat_mixer_nano: set model\.name=mixer_nano$"):
        load_into(create_model("mixer_nano", depth=3), state)
