"""Tokenizers by name and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.tokenizers import create_tokenizer, load_tokenizer
from videomaskfeat.models.weights import save_weights

TINY: dict[str, Any] = {"vocabulary": 12, "stride": 4, "width": 16, "blocks": 1, "code_width": 6}


@pytest.mark.parametrize("kind", ["dvae", "vq"])
def test_file_gives_the_same_tokens_and_draws_no_random_number(kind: str, tmp_path: Path) -> None:
    tokenizer = create_tokenizer(kind, **TINY, mean=[0.5, 0.4, 0.3], std=0.25)
    save_weights(tmp_path / "tokenizer.safetensors", tokenizer)
    before = torch.get_rng_state()
    loaded = load_tokenizer(tmp_path / "tokenizer.safetensors", kind=kind)
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    assert torch.equal(loaded.mean.flatten(), torch.tensor([0.5, 0.4, 0.3]))
    pictures = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded.tokens(pictures), tokenizer.tokens(pictures))
    assert torch.equal(loaded.decode(loaded.tokens(pictures)), tokenizer.decode(tokenizer.tokens(pictures)))


def test_unknown_names_are_named() -> None:
    with pytest.raises(UserError, match="tokenizer 'dvea' is unknown; did you mean 'dvae'"):
        create_tokenizer("dvea")
    with pytest.raises(
        UserError, match="tokenizer 'vq': argument 'vocabluary' is unknown; did you mean 'vocabulary'"
    ):
        create_tokenizer("vq", vocabluary=3)
    with pytest.raises(UserError, match=r"tokenizer .vq.: vocabulary .many. must be an integer"):
        create_tokenizer("vq", vocabulary="many")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=r"x\.safetensors: no such file of weights"):
        load_tokenizer(path)
    save_weights(path, create_model("mvitv2_encoder", depth=1, width=8, widen_at=(), q_pool_at=()))
    with pytest.raises(UserError, match="holds the model 'mvitv2_encoder', and a tokenizer is needed"):
        load_tokenizer(path)
    save_weights(path, create_tokenizer("vq", **TINY))
    with pytest.raises(UserError, match="holds a tokenizer of kind 'vq', and one of kind 'dvae' is needed"):
        load_tokenizer(path, kind="dvae")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cut or damaged"):
        load_tokenizer(path)
