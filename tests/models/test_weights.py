"""Saving and loading weights, and the errors for invalid weights files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.models.test_models import MVIT
from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.heads import Classifier
from videomaskfeat.models.loading import load_into, load_model, load_weights
from videomaskfeat.models.maskfeat import MaskFeat
from videomaskfeat.models.positions import resize_table
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.weights import read_state

SMALL: dict[str, Any] = {**MVIT, "depth": 2, "widen_at": (1,), "q_pool_at": (1,)}


def small(**changes: object) -> MaskFeat:
    model = create_model("maskfeat_mvitv2_nano", **{**SMALL, "values_per_token": 27, **changes})
    assert isinstance(model, MaskFeat)
    return model


def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_model(small(), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_model_of_unknown_arguments_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot save a Linear that create_model did not create"):
        save_model(nn.Linear(1, 1), tmp_path / "x.safetensors")


def test_relative_tables_of_another_clip_size_are_interpolated() -> None:
    source, model = small(), small(clip_size=(8, 48, 48))
    report = load_into(model, source.state_dict())
    name = "blocks.0.attn.rel_pos_h"
    assert report.resized == tuple(
        sorted(f"blocks.{i}.attn.rel_pos_{axis}" for i in (0, 1) for axis in "hwt")
    )
    expected = resize_table(source.get_parameter(name), 23)  # 12 rows of tokens: 2 * 12 - 1 offsets
    assert torch.equal(model.get_parameter(name), expected)
    assert "6 resized (blocks.0.attn.rel_pos_h, blocks.0.attn.rel_pos_t" in str(report)


def test_unexpected_weights_are_refused_and_nothing_is_loaded() -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = dict(small().state_dict())
    del state["mask_token"]
    with pytest.raises(UserError, match=r"lacks 1 weights that the model has \(mask_token\)"):
        load_into(model, state)
    state["head.weight"] = torch.ones(3)
    with pytest.raises(UserError, match=r"run.pt has 1 weights that the model does not have \(head.weight\)"):
        load_into(model, state, allow_missing=["mask_token"], source="run.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report = load_into(model, state, allow_missing=["mask_token"], allow_unused=["head.*"])
    assert (report.new, report.unused) == (("mask_token",), ("head.weight",))
    assert torch.equal(model.get_parameter("mask_token"), before["mask_token"])


def test_weight_of_another_shape_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"has pred_head.projections.0.weight in shape \(108, 16\).*needs \(27, 16\)"
    ):
        load_into(small(), small(values_per_token=108).state_dict())


@pytest.mark.parametrize("key", ["model_state", "state_dict", "model", None])
def test_usual_keys_of_a_checkpoint_are_found(tmp_path: Path, key: str | None) -> None:
    state = {"a": torch.arange(3)}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "x.pyth")
    assert torch.equal(read_state(tmp_path / "x.pyth")["a"], state["a"])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip.pyth", "legacy.pyth", "model.safetensors"])
def test_truncated_file_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / kind
    state = {"a": torch.randn(1000)}
    if kind.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save({"model_state": state}, path, _use_new_zipfile_serialization=kind == "zip.pyth")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=rf"{kind} is truncated or damaged and cannot be read") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "start",
    [b"\0\0\0\x20ftypisom\0\0\2\0", b"\x1aE\xdf\xa3", b"RIFF\0\0\0\0AVI LIST", b"a.mp4,3\n", b"\x89PNG"],
    ids=["mp4", "webm", "avi", "list", "png"],
)
def test_other_files_are_refused_without_advice_to_trust_them(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "some.mp4"
    path.write_bytes(start + bytes(100))
    with pytest.raises(UserError, match=r"some.mp4 is not a checkpoint: neither a zip archive nor") as caught:
        read_state(path)
    assert "trust" not in str(caught.value)


def test_folder_is_refused_and_its_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path} is a folder; give the weights file itself$"):
        read_state(tmp_path)
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(UserError, match=r" is a folder; give the weights in it, .*/weights.safetensors$"):
        read_state(tmp_path)


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(UserError, match=r"x.pt: no such file"):
        read_state(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="contains no weights"):
        read_state(path)
    torch.save({"epoch": 3, "a": torch.ones(1)}, path)
    with pytest.raises(UserError, match="'epoch' is not a tensor"):
        read_state(path)


def test_safetensors_without_model_name_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="contains no model name"):
        load_model(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"\x08")
    with pytest.raises(UserError, match=r"y.safetensors is truncated or damaged"):
        load_model(tmp_path / "y.safetensors")


def classifier(**changes: object) -> Classifier:
    model = create_model("maskfeat_mvitv2_nano_classifier", **{**SMALL, "classes": 5, **changes})
    assert isinstance(model, Classifier)
    return model


PRETRAINED: dict[str, Any] = {
    "allow_missing": ("head.*", "norm.*"),
    "allow_unused": ("mask_token", "pred_head.*"),
}


def interpolated(table: Tensor, length: int) -> Tensor:
    """A table [L, d] at ``length`` evenly spaced positions, half a step inside both ends."""
    rows = np.clip((np.arange(length) + 0.5) * len(table) / length - 0.5, 0, len(table) - 1)
    columns = [np.interp(rows, np.arange(len(table)), column) for column in table.double().numpy().T]
    return torch.from_numpy(np.stack(columns, axis=1)).float()


@torch.no_grad()
@pytest.mark.parametrize(
    ("pretraining", "finetuning", "alike", "resized"),
    [
        (small, classifier, 2, []),
        # Pre-training omits the query pooling of the last block. With it, queries have half the resolution of
        # the keys, so the tables are resized.
        (
            lambda: small(depth=4, q_pool_at=(1,)),
            lambda: classifier(depth=4, q_pool_at=(1, 2)),
            2,
            ["blocks.3.attn.rel_pos_h", "blocks.3.attn.rel_pos_w"],
        ),
        (
            lambda: create_model("maskfeat_mvitv2_s"),
            lambda: create_model("maskfeat_mvitv2_s_classifier"),
            14,
            ["blocks.15.attn.rel_pos_h", "blocks.15.attn.rel_pos_w"],
        ),
    ],
    ids=["nano", "nano with another pooling", "s"],
)
def test_classifier_starts_from_pretrained_weights(
    pretraining: Callable[[], Any], finetuning: Callable[[], Any], alike: int, resized: list[str]
) -> None:
    source, model = pretraining().eval(), finetuning().eval()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_into(model, source.state_dict(), **PRETRAINED)
    assert report.resized == tuple(resized)
    assert set(report.new) == {
        f"{part}.{kind}" for part in ("norm", "head.projection") for kind in ("weight", "bias")
    }
    assert set(report.unused) == {name for name in source.state_dict() if name.startswith(("mask", "pred"))}
    names = {*report.loaded, *report.resized, *report.new}
    assert names == set(fresh)
    for name, value in model.state_dict().items():
        if name in resized:
            expected = interpolated(source.get_parameter(name), len(fresh[name]))
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(value, fresh[name] if name in report.new else source.get_parameter(name)), name
    # The networks are equal up to the block with another pooling.
    clips = torch.randn(1, 3, 4, 32, 32)
    features = source.features(clips, depth=alike, pooled=False)
    assert torch.equal(model.features(clips, depth=alike, pooled=False), features)


def test_probe_of_a_pretrained_encoder_starts_from_its_weights() -> None:
    source, model = small(), classifier(head="linear")
    report = load_into(model, source.state_dict(), **PRETRAINED)
    assert {"head.normalise.mean", "head.projection.bias", "norm.weight"} <= set(report.new)
    clips = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(model.eval().features(clips, depth=2), source.eval().features(clips, depth=2))


def test_layer_for_other_classes_is_reset_only_if_allowed() -> None:
    source, model = classifier(classes=7), classifier()
    before = model.get_parameter("head.projection.weight").clone()
    with pytest.raises(UserError, match=r"has head.projection.weight in shape \(7, 16\), .*needs \(5, 16\)"):
        load_into(model, source.state_dict())
    report = load_into(model, source.state_dict(), allow_reset=["head.projection.*"])
    assert report.new == report.reset == ("head.projection.weight", "head.projection.bias")
    assert torch.equal(model.get_parameter("head.projection.weight"), before)
    assert torch.equal(model.get_parameter("norm.weight"), source.get_parameter("norm.weight"))
    same = load_into(classifier(), model.state_dict(), allow_reset=["head.projection.*"])
    assert not same.new  # of the same shape it is loaded


def test_table_has_one_row_per_kind() -> None:
    report = load_into(
        classifier(clip_size=(4, 48, 48)),
        {**small().state_dict(), "head.projection.weight": torch.zeros(7, 16)},
        allow_reset=["head.*"],
        **PRETRAINED,
    )
    rows = report.table().splitlines()
    counts = {"loaded": 49, "resized": 4, "new": 4, "unused": 5}
    assert [row.split()[:2] for row in rows] == [[kind, str(count)] for kind, count in counts.items()]
    assert rows[0].endswith("blocks.*.norm1.weight (2) and 23 more groups of names")
    assert rows[1].endswith("4  blocks.*.attn.rel_pos_h (2), blocks.*.attn.rel_pos_w (2)")
    assert "head.projection.weight (other shape), head.projection.bias" in rows[2]
    kinds = report.to_dict()
    assert {kind: len(names) for kind, names in kinds.items()} == {**counts, "reset": 1}
    assert kinds["reset"] == ["head.projection.weight"]


@pytest.mark.parametrize(
    ("name", "model", "words"),
    [
        (
            "maskfeat_mvitv2_l",
            "maskfeat_mvitv2_s_classifier",
            r"x.pyth lacks \d+ weights that the model has \(blocks.0.proj.weight, .*\): it has 48 blocks "
            "and stem width 144, but the model has 16 blocks and stem width 96; it "
            "is probably maskfeat_mvitv2_l: set model.name=maskfeat_mvitv2_l_classifier$",
        ),
        (
            "mvitv2_b",
            "mvitv2_s",
            "24 blocks and stem width 96, .*; it is probably mvitv2_b: set model.name=mvitv2_b$",
        ),
        (
            "maskfeat_mvitv2_s_classifier",
            "maskfeat_mvitv2_l",
            "16 blocks and stem width 96, .*; it is probably "
            "maskfeat_mvitv2_s_classifier: set model.name=maskfeat_mvitv2_s$",
        ),
        (
            "mvitv2_s",
            "maskfeat_mvitv2_s_classifier",
            "both have 16 blocks and stem width 96, but different widths "
            "from block 1 on; it is probably mvitv2_s: ",
        ),
    ],
)
def test_error_names_the_probable_model_of_other_weights(name: str, model: str, words: str) -> None:
    with torch.device("meta"):  # only shapes are needed
        state, other = create_model(name).state_dict(), create_model(model)
    with pytest.raises(UserError, match=words) as caught:
        load_into(other, state, source="x.pyth", **PRETRAINED)
    assert "\n" not in str(caught.value)


def test_error_for_weights_of_an_unknown_model() -> None:
    with pytest.raises(UserError, match=r"has 3 blocks and stem width 8, but .*; no named model matches"):
        load_into(small(), small(depth=3).state_dict())


@torch.no_grad()
def test_separable_absolute_positions_are_interpolated() -> None:
    source, model = (
        classifier(absolute_positions="separable", clip_size=size) for size in ((4, 32, 32), (8, 64, 64))
    )
    report = load_into(model, source.state_dict())
    assert {"pos_embed_spatial", "pos_embed_temporal"} <= set(report.resized)
    time = interpolated(source.get_parameter("pos_embed_temporal")[0], 4)
    torch.testing.assert_close(model.get_parameter("pos_embed_temporal")[0], time, atol=1e-6, rtol=1e-5)
    # A table over space of the product of two profiles is interpolated axis by axis.
    rows, columns = torch.rand(8, 1), torch.rand(8, 1)
    state = source.state_dict()
    state["pos_embed_spatial"] = (rows @ columns.T).flatten()[None, :, None].expand(1, 64, 8)
    load_into(model, state)
    expected = interpolated(rows, 16) @ interpolated(columns, 16).T
    actual = model.get_parameter("pos_embed_spatial")[0, :, 3].reshape(16, 16)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


def test_joint_absolute_positions_of_another_grid_are_refused() -> None:
    source = classifier(absolute_positions="joint")
    other = classifier(absolute_positions="joint", clip_size=(8, 64, 64))
    with pytest.raises(
        UserError, match=r"has pos_embed in shape \(1, 129, 8\), .*build the model with the clip_size"
    ):
        load_into(other, source.state_dict())


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "model.", "backbone.", "encoder.", "student.backbone."],
)
def test_common_prefix_is_removed_and_reported(prefix: str) -> None:
    model, other = small(), small()
    report = load_into(other, {prefix + name: value for name, value in model.state_dict().items()})
    assert_equal_weights(other, model)
    assert report.prefix == prefix
    assert report.unused == report.new == ()
    assert f"common prefix {prefix!r} removed from all names" in report.table()
    assert f"common prefix {prefix!r} removed" in str(report)
    assert report.to_dict()["prefix"] == [prefix]


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    for name, value in other.state_dict().items():
        assert torch.equal(one.state_dict()[name], value), name


def test_prefix_of_matching_names_is_kept() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))  # all names begin with "0.0."
    report = load_into(model, model.state_dict())
    assert report.prefix == ""


def checkpoint_with_average(path: Path, model: nn.Module, *names: str) -> Path:
    """A checkpoint with weights under each name: the second twice as large as the first, and so on."""
    sets = {
        name: {key: value * (place + 1) for key, value in model.state_dict().items()}
        for place, name in enumerate(names)
    }
    torch.save({**sets, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


def test_moving_average_is_reported_and_can_be_loaded(tmp_path: Path) -> None:
    model, other = small(), small()
    path = checkpoint_with_average(tmp_path / "a.pth", model, "model", "model_ema")
    report = load_weights(other, path)
    assert_equal_weights(other, model)
    assert (report.key, report.beside) == ("model", ("model_ema",))
    words = "weights read from 'model'; the file also contains model_ema (set weights_key to choose)"
    assert words in report.table()
    report = load_weights(other, path, key="model_ema")
    assert torch.equal(other.mask_token, 2 * model.mask_token)
    assert (report.key, report.beside) == ("model_ema", ("model",))
    with pytest.raises(UserError, match=r"no weights under the key 'ema'; known keys: model, model_ema"):
        load_weights(other, path, key="ema")


def test_several_sets_of_weights_need_a_key(tmp_path: Path) -> None:
    model, other = small(), small()
    path = checkpoint_with_average(tmp_path / "a.pth", model, "student", "teacher")
    with pytest.raises(UserError, match=r"several sets of weights, under student, teacher; .*_key=stud"):
        load_weights(other, path)
    load_weights(other, path, key="teacher")
    assert torch.equal(other.mask_token, 2 * model.mask_token)
    only = checkpoint_with_average(tmp_path / "b.pth", model, "state_dict_ema")
    load_weights(other, only)
    assert_equal_weights(other, model)


def test_loading_nothing_is_an_error() -> None:
    everything: dict[str, Any] = dict.fromkeys(("allow_missing", "allow_unused", "allow_reset"), ("*",))
    with pytest.raises(UserError, match=r"a\.pt: none of its 1 weights \(stranger\) is one of the model's"):
        load_into(small(), {"stranger": torch.zeros(1)}, **everything, source="a.pt")
    state = {name: torch.zeros(1, 2, 3) for name in small().state_dict()}
    with pytest.raises(UserError, match="so nothing would be loaded"):
        load_into(small(), state, allow_reset=["*"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    model = small()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["mask_token"].view(-1)[0] = value
    before = model.mask_token.clone()
    with pytest.raises(UserError, match=r"^a\.pt has values in mask_token that are not finite"):
        load_into(model, state, source="a.pt")
    assert torch.equal(model.mask_token, before)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda value: value.to(torch.complex64), "as complex64, but the model needs plain float32"),
        (lambda value: value.to_sparse(), "sparse, quantized or without values"),
        (lambda value: value.to("meta"), "sparse, quantized or without values"),
        (lambda value: value.to(torch.float8_e4m3fn), "as float8_e4m3fn"),
        (lambda value: value.to(torch.int8), "as int8"),
    ],
)
def test_unsupported_tensors_are_refused(make: Callable[[Tensor], Tensor], words: str) -> None:
    model = small()
    state = {**model.state_dict(), "mask_token": make(model.mask_token.detach())}
    with pytest.raises(UserError, match=f"has mask_token .*{words}"):
        load_into(model, state)


def test_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    torch.save({"mask_token": torch.zeros(1).expand(10**12)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: mask_token has shape .*which is larger than the file"):
        read_state(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{", "metadata key 'arguments' is not JSON"),
        ('{"name": "x"}', "cannot build the model .*: model 'vit_h': argument 'name' is unknown"),
        ("[]", "metadata key 'arguments' is not an object"),
        (
            '{"depth": 2.0}',
            "cannot build the model described in its metadata: .*depth 2.0 must be",
        ),
        ('{"width": 131072}', "cannot build the model .*: .*needs at least .*B.*, but this machine has"),
    ],
)
def test_invalid_arguments_in_a_file_are_refused(tmp_path: Path, arguments: str, words: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"model": "vit_h", "arguments": arguments})
    with pytest.raises(UserError, match=rf"a\.safetensors: {words}") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
