"""Named models as in timm: listing, creating with classes and weights, new classifiers, sizes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import torch.nn.functional as F

import videomaskfeat
from tests.models.test_models import CASES, build
from videomaskfeat.errors import UserError
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.sizes import list_facts, measure_model
from videomaskfeat.models.zoo import MODELS

SMALL = {"depth": 2, "width": 16, "heads": 2, "clip_size": (4, 32, 32)}
TYPED = ("create_model", "load_model")


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_names_are_listed_by_pattern() -> None:
    names = videomaskfeat.list_models()
    assert names == sorted(MODELS)
    assert videomaskfeat.list_models("*_nano") == [name for name in names if name.endswith("_nano")]
    assert videomaskfeat.list_models("vit_[bs]") == ["vit_b", "vit_s"]
    assert videomaskfeat.list_models("resnet*") == []


def test_functions_have_types() -> None:
    assert (Path(videomaskfeat.__file__).parent / "py.typed").is_file()
    for name in TYPED:
        assert get_type_hints(getattr(videomaskfeat, name))["return"] is Encoder


def test_classifier_starts_from_an_encoder_and_from_other_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrained = videomaskfeat.create_model("maskfeat_vit_nano", **SMALL)
    videomaskfeat.save_model(pretrained, tmp_path / "a.safetensors")
    with caplog.at_level(logging.INFO):
        model = videomaskfeat.create_model(
            "vit_nano", num_classes=7, weights=tmp_path / "a.safetensors", **SMALL
        )
    assert "a.safetensors: " in caplog.text
    assert "weights loaded, 4 new (norm.weight, norm.bias, head.projection.weight and 1 more)" in caplog.text
    assert model(torch.zeros(2, 3, 4, 32, 32)).shape == (2, 7)
    own, other = state_of(model), pretrained.state_dict()
    shared = own.keys() & other.keys()
    assert len(shared) > 20
    assert all(torch.equal(own[name], other[name]) for name in shared)
    videomaskfeat.save_model(model, tmp_path / "b.safetensors")
    same = videomaskfeat.create_model("vit_nano", num_classes=7, weights=tmp_path / "b.safetensors", **SMALL)
    assert all(torch.equal(value, own[name]) for name, value in same.state_dict().items())
    fewer = videomaskfeat.create_model("vit_nano", num_classes=3, weights=tmp_path / "b.safetensors", **SMALL)
    assert torch.equal(fewer.state_dict()["norm.weight"], own["norm.weight"])
    assert fewer(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 3)


def test_number_of_classes_needs_a_model_with_classes() -> None:
    with pytest.raises(UserError, match=r"model 'maskfeat_vit_nano' has no classes, so num_classes=3"):
        videomaskfeat.create_model("maskfeat_vit_nano", num_classes=3)
    with pytest.raises(UserError, match="num_classes and classes are the same"):
        videomaskfeat.create_model("vit_nano", num_classes=3, classes=3)
    with pytest.raises(UserError, match="model 'vit_nono' is unknown; did you mean 'vit_nano'"):
        videomaskfeat.create_model("vit_nono", num_classes=3)


@pytest.mark.parametrize("case", ["mean", "token", "linear vit", "attentive", "detector early mean"])
def test_new_classifier_changes_only_the_last_layer_and_is_saved(case: str, tmp_path: Path) -> None:
    model: Any = build(case, std=0.3, head_scale=0.5)
    before = state_of(model)
    torch.manual_seed(3)
    model.reset_classifier(11)
    expected = torch.nn.Linear(model.head.projection.in_features, 11)
    assert model.classes == 11
    for name, value in model.state_dict().items():
        assert name.startswith("head.projection.") != torch.equal(value, before[name]), name
    assert model.head.projection.weight.shape == expected.weight.shape
    # The head's scale applies again: std 0.02 before it.
    assert model.head.projection.weight.std().item() == pytest.approx(0.02 * 0.5, rel=0.2)
    assert torch.equal(model.head.projection.bias, torch.full((11,), 0.02) * 0.5)
    videomaskfeat.save_model(model, tmp_path / "model.safetensors")
    loaded = videomaskfeat.load_model(tmp_path / "model.safetensors")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(UserError, match="classes 0 must be positive"):
        model.reset_classifier(0)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_forward_features_are_the_normalized_tokens_of_all_models(case: str) -> None:
    model: Any = build(case, std=0.3).eval()
    clips = torch.randn(2, 3, 4, 32, 32)
    tokens = model.forward_features(clips)
    prefix = model.prefix
    grid = model.features(clips, pooled=False)
    assert torch.equal(tokens[:, prefix:], grid.flatten(1, 3))
    if case == "token":  # its logits are those of the class token
        logits = F.linear(tokens[:, 0], model.head.projection.weight, model.head.projection.bias)
        torch.testing.assert_close(logits, model(clips))  # one matrix product: equal to rounding


@pytest.mark.parametrize("name", ["maskfeat_mvitv2_pico", "vit_pico_detector", "mae_vit_pico", "vit_encoder"])
def test_stored_sizes_are_those_of_the_models(name: str) -> None:
    (facts,) = list_facts(name)
    if name == "vit_encoder":  # affine in the number of blocks, which are equal
        (_, one), (_, two) = (measure_model(name, depth=depth, clip_size=(2, 32, 32)) for depth in (1, 2))
        (_, four) = measure_model(name, depth=4, clip_size=(2, 32, 32))
        assert four == pytest.approx(one + 3 * (two - one), rel=1e-9)
        return
    assert (facts.parameters, facts.multiply_adds) == measure_model(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if "_pico" in name or "_nano" in name])
def test_all_stored_sizes_of_small_models_are_those_of_the_models(name: str) -> None:
    (facts,) = list_facts(name)
    assert (facts.parameters, facts.multiply_adds) == measure_model(name)


def test_sizes_are_the_published_ones() -> None:
    facts = {one.name: one for one in list_facts()}
    assert facts.keys() == MODELS.keys()
    # Published in G: MViTv2 (arXiv 2112.01526, table 10) and ViT-B/16 at 224x224 (17.6 in DeiT's and timm's
    # tables, which count the same layers).
    published = {"mvitv2_s": 64.5, "mvitv2_b": 225.2, "mvitv2_l": 2828, "vit_b_image": 17.6}
    for name, cost in published.items():
        assert facts[name].multiply_adds / 1e9 == pytest.approx(cost, rel=0.01)
    with torch.device("meta"):
        for name in ("mvitv2_l", "vit_h_detector", "mae_vit_l"):
            model = videomaskfeat.create_model(name)
            assert facts[name].parameters == sum(value.numel() for value in model.parameters())
    assert facts["vit_pico"].clip == (4, 32, 32)
    assert facts["vit_pico"].purpose == "classification"


def test_verb_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    from videomaskfeat.cli import main

    assert main(["models", "*vit_pico"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "parameters", "multiply-adds", "clip", "for"]
    assert [line.split()[0] for line in lines[1:]] == ["mae_vit_pico", "maskfeat_vit_pico", "vit_pico"]
    assert lines[3].endswith("  4x32x32  classification")
    assert main(["models", "vit_pico", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["clip"] == [4, 32, 32]
    assert main(["models", "resnet"]) == 2
    assert "no model matches 'resnet'; `videomaskfeat models` lists all" in capsys.readouterr().err
