"""Early errors for models that need too much memory, and for invalid arguments."""

from __future__ import annotations

import resource
from typing import Any

import pytest
import torch

from videomaskfeat.errors import UserError
from videomaskfeat.machine import machine_memory
from videomaskfeat.models import create_model, create_unset, limits
from videomaskfeat.models.tokenizers import create_tokenizer
from videomaskfeat.targets.hog import HogTarget


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 10**6}, "depth 1000000 must be an integer of at most 1000"),
        ({"width": 10**9}, "width 1000000000 must be an integer of at most"),
        ({"clip_size": [10**6, 64, 64]}, "clip_size 1000000 must be an integer of at most"),
        ({"classes": 10**12}, "classes 1000000000000 must be an integer of at most"),
        ({"classes": 10**8, "width": 2**14, "heads": 1}, "needs at least [0-9.]+ [GT]B for training"),
        ({"width": 2**17, "heads": 1}, "needs .* but this machine has [0-9.]+ GB; reduce its arguments"),
        ({"depth": 6.0}, "depth 6.0 must be an integer"),
        ({"width": "96"}, "width '96' must be an integer"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio nan must be a finite number"),
        ({"class_token": 1}, "class_token 1 must be true or false"),
        ({"clip_size": [8, 64]}, r"clip_size \[8, 64\] must be 3 values, each an integer"),
        (
            {"head": ["mean"]},
            r"head \['mean'\] is unknown; choose from mean, norm_mean, token, linear, attentive",
        ),
    ],
)
def test_invalid_arguments_are_refused_before_memory_is_allocated(
    arguments: dict[str, Any], words: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=f"^model 'vit_nano'.* ?{words}"):
        create_model("vit_nano", **arguments)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # kB


def test_too_many_widenings_are_refused() -> None:
    with pytest.raises(UserError, match="model 'mvitv2_nano' needs"):
        create_model("mvitv2_nano", depth=300, widen_at=list(range(1, 250)))


@pytest.mark.parametrize("shape", [(2**40, 2**40), (2**62, 3), (2**65,), (-1,)], ids=str)
def test_size_beyond_64_bits_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"^a table is too large for any machine; reduce its arguments"):
        limits.build_within_memory(lambda: torch.empty(shape), "a table")


def test_other_errors_are_not_changed() -> None:
    with pytest.raises(RuntimeError, match=r"shape '\[4\]' is invalid"):
        limits.build_within_memory(lambda: torch.empty(3).view(4), "a table")


def test_memory_counts_training_four_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training needs weights, gradients and two moments; loading needs the weights only."""
    model = create_model("vit_nano")
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    monkeypatch.setattr(limits, "machine_memory", lambda: 4 * size)
    create_model("vit_nano")
    monkeypatch.setattr(limits, "machine_memory", lambda: 4 * size - 1)
    with pytest.raises(UserError, match="for training"):
        create_model("vit_nano")
    monkeypatch.setattr(limits, "machine_memory", lambda: size)
    create_unset("vit_nano")
    monkeypatch.setattr(limits, "machine_memory", lambda: size - 1)
    with pytest.raises(UserError, match=r"model 'vit_nano' needs at least .* MB, but this machine has"):
        create_unset("vit_nano")


def test_memory_check_does_not_change_the_random_state() -> None:
    torch.manual_seed(3)
    model = create_model("vit_nano", depth=1)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    same = type(model)(**model.created_as[1])  # type: ignore[arg-type, index]
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)


def test_memory_of_the_machine_is_known() -> None:
    memory = machine_memory()
    assert memory is not None
    assert 2**28 < memory < 2**50


@pytest.mark.parametrize("kind", ["dvae", "vq"])
def test_limits_apply_to_tokenizers(kind: str) -> None:
    with pytest.raises(UserError, match=f"tokenizer {kind!r}: vocabulary 1000000000000 must be"):
        create_tokenizer(kind, vocabulary=10**12)
    with pytest.raises(UserError, match=f"tokenizer {kind!r}: mean nan must be"):
        create_tokenizer(kind, mean=float("nan"))
    with pytest.raises(UserError, match=f"tokenizer {kind!r} needs at least .* [GT]B"):
        create_tokenizer(kind, vocabulary=10**8, code_width=2**17)


def test_hog_bins_are_bounded() -> None:
    with pytest.raises(UserError, match="HOG bins 1000000000 must be at most 360"):
        HogTarget(bins=10**9)
