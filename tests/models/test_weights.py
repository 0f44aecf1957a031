"""Saving, loading, and every way in which a file of weights can be wrong."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.positions import resize_table
from videomaskfeat.models.weights import load_into, load_model, read_state, save_weights

SMALL = {
    "depth": 2,
    "width": 8,
    "widen_at": (1,),
    "q_pool_at": (1,),
    "clip_size": (4, 32, 32),
    # The published cubes of 4x4 pixels, not the nano's own.
    "cube_kernel": (3, 7, 7),
    "cube_stride": (2, 4, 4),
    "cube_padding": (1, 3, 3),
    "kv_stride": (1, 4, 4),
}


def small(**changes: object) -> nn.Module:
    return create_model("maskfeat_mvitv2_nano", **{**SMALL, "values_per_token": 27, **changes})


def test_saved_model_comes_back_without_a_config(tmp_path: Path) -> None:
    model = small(blank_hidden=True).eval()
    save_weights(tmp_path / "model.safetensors", model)
    loaded = load_model(tmp_path / "model.safetensors")
    clips, mask = torch.randn(1, 3, 4, 32, 32), torch.rand(1, 2, 2, 2) < 0.5
    assert torch.equal(loaded(clips, mask), model(clips, mask))
    assert loaded.created_as == model.created_as
    assert not loaded.training
    assert os.listdir(tmp_path) == ["model.safetensors"]  # no temporary file stays


def test_model_that_create_model_did_not_make_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a Linear that create_model did not make"):
        save_weights(tmp_path / "x.safetensors", nn.Linear(1, 1))


def test_relative_tables_of_another_clip_size_are_interpolated() -> None:
    source, model = small(), small(clip_size=(8, 48, 48))
    report = load_into(model, source.state_dict())
    name = "blocks.0.attn.rel_pos_h"
    assert report.resized == tuple(
        sorted(f"blocks.{i}.attn.rel_pos_{axis}" for i in (0, 1) for axis in "hwt")
    )
    wanted = resize_table(source.get_parameter(name), 23)  # 12 rows of tokens: 2 * 12 - 1 offsets
    assert torch.equal(model.get_parameter(name), wanted)
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
def test_state_is_found_where_others_keep_it(tmp_path: Path, key: str | None) -> None:
    state = {"a": torch.arange(3)}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "x.pyth")
    assert torch.equal(read_state(tmp_path / "x.pyth")["a"], state["a"])


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    path, trap = tmp_path / "trap.pyth", tmp_path / "was_run"
    torch.save({"model_state": {"a": Payload(trap)}}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"trap.pyth: holds pickled code .* keep only the tensors") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)
    assert not trap.exists()
    pickle.dump(Payload(trap), path.open("wb"))
    with pytest.raises(UserError, match=r"trap.pyth: "):
        read_state(path)
    assert not trap.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip.pyth", "legacy.pyth", "model.safetensors"])
def test_cut_file_is_named(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / kind
    state = {"a": torch.randn(1000)}
    if kind.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save({"model_state": state}, path, _use_new_zipfile_serialization=kind == "zip.pyth")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=rf"{kind}: is cut or damaged and cannot be read") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


def test_files_without_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(UserError, match=r"x.pt: no such file of weights"):
        read_state(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds no weights"):
        read_state(path)
    torch.save({"epoch": 3, "a": torch.ones(1)}, path)
    with pytest.raises(UserError, match="'epoch' is not a tensor"):
        read_state(path)


def test_safetensors_of_others_has_no_model_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="has no model name inside"):
        load_model(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"\x08")
    with pytest.raises(UserError, match=r"y.safetensors: is cut or damaged"):
        load_model(tmp_path / "y.safetensors")
