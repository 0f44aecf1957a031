"""``import-weights`` for each row of the table, and ``predict`` or ``extract-features`` with its weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import videomaskfeat
from tests.data.clip_data import write_videos
from tests.interop.layouts import write_layout
from videomaskfeat import cli
from videomaskfeat.inference.classifiers import VideoClassifier, VideoEncoder
from videomaskfeat.interop.other_projects import FORMATS
from videomaskfeat.models.loading import build_converted, convert_weights
from videomaskfeat.recipe import PretrainRecipe
from videomaskfeat.stored_recipe import ClassifyRecipe

SUPPORTED = [name for name, one in FORMATS.items() if one.convert is not None]
REFUSED = [name for name, one in FORMATS.items() if one.convert is None]
# Of the supported formats, those whose recorded weights have a head.
CLASSIFIERS = [
    *("videomae", "videomae-transformers", "videomae-mmaction2", "vjepa2-transformers", "hiera", "vit-timm"),
    *("vit-transformers", "mvitv2-timm", "mvitv2-torchvision", "mvitv2-mmaction2"),
]


@pytest.mark.parametrize("name", SUPPORTED)
def test_commands_give_the_outputs_of_the_direct_load(
    name: str, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(5)
    write_videos(tmp_path, 1, frames=24)
    source, missing = write_layout(name, golden, tmp_path)
    options = [word for key, value in missing.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    weights = tmp_path / "out/weights.safetensors"
    assert cli.main(["import-weights", str(source), str(weights.parent), "--from", name, *options]) == 0
    assert FORMATS[name].title in capsys.readouterr().out

    converted = convert_weights(str(source), format=name, **missing)
    direct, _ = build_converted(str(source), converted)
    video, recipe = tmp_path / "000.mp4", converted.recipe
    if isinstance(recipe, PretrainRecipe):
        recipe = ClassifyRecipe(recipe.clip, views=1, crops=1, short_side=recipe.clip.short_side)
    if name in CLASSIFIERS:
        expected = VideoClassifier(direct, recipe).predict(video).probabilities
        assert cli.main(["predict", str(weights), str(video), "--top", "99", "--json", "-"]) == 0
        (result,) = json.loads(capsys.readouterr().out)
        rows = sorted(result["predictions"], key=lambda row: row["label"])
        probabilities = [row["probability"] for row in rows]
        # The printed numbers have all digits of float32.
        np.testing.assert_allclose(probabilities, expected.numpy(), rtol=1e-6)
        assert np.ptp(probabilities) > 1e-3
    else:
        expected = VideoEncoder(direct, recipe).features(video)
        out = str(tmp_path / "features")
        assert cli.main(["extract-features", str(weights), str(tmp_path / "train.csv"), out]) == 0
        (features,) = videomaskfeat.read_features(out).array
        np.testing.assert_allclose(features, expected.numpy(), rtol=1e-6)
        assert np.ptp(features) > 1e-3


@pytest.mark.parametrize("name", REFUSED)
def test_refused_weights_are_named(
    name: str, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_layout(name, golden, tmp_path)
    for words in ([], ["--from", name]):
        assert cli.main(["import-weights", str(source), str(tmp_path / "out"), *words]) == 2
        error = capsys.readouterr().err
        named = f"{source}: recognized as {FORMATS[name].title}, which is not supported: "
        assert named + FORMATS[name].reason in error
    assert not (tmp_path / "out").exists()
