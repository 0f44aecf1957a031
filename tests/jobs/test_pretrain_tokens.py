"""Pre-training on the tokens of a frozen tokenizer, end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import simplejson
import torch
from safetensors.torch import load_file

from videomaskfeat.models.tokenizers import create_tokenizer
from videomaskfeat.models.weights import save_weights

Pretrain = Callable[..., tuple[int, str]]


def write_tokenizer(path: Path, kind: str, *, vocabulary: int = 12, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = create_tokenizer(kind, vocabulary=vocabulary, stride=8, width=16, blocks=1, code_width=4)
    for parameter in tokenizer.parameters():
        parameter.data.normal_(std=0.5)
    save_weights(path, tokenizer)
    return path


@pytest.mark.parametrize(("target", "kind"), [("dvae", "dvae"), ("codebook", "vq")])
def test_pretraining_learns_tokens_and_leaves_the_tokenizer_alone(
    target: str, kind: str, pretrain: Pretrain, sample: Path, tmp_path: Path
) -> None:
    weights = write_tokenizer(tmp_path / "tokenizer.safetensors", kind)
    before = weights.read_bytes()
    settings = [
        f"data.validation={sample / 'val.csv'}",
        f"target.name={target}",
        f"target.arguments={{weights: {weights}, vocabulary: 12}}",
        "optim.learning_rate=3e-3",
        "optim.gradient_clip=1",
    ]
    code, text = pretrain(*settings)
    assert code == 0, text
    assert weights.read_bytes() == before
    saved = load_file(tmp_path / "run" / "weights.safetensors")
    assert not [name for name in saved if "tokenizer" in name or "codebook" in name or name == "codes"]
    summary = simplejson.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["heldout_trained"] < summary["heldout_untrained"]
    assert "cross-entropy in nats" in text

    write_tokenizer(
        weights, kind, seed=1
    )  # other tokens under the same path: the run may not go on with them
    code, text = pretrain(*settings)
    assert code == 2
    assert "tokenizer.safetensors" in text.strip().splitlines()[-1]


def test_tokenizers_that_do_not_fit_are_refused_before_training(pretrain: Pretrain, tmp_path: Path) -> None:
    weights = write_tokenizer(tmp_path / "tokenizer.safetensors", "dvae")
    for arguments, words in (
        (f"{{weights: {weights}, vocabulary: 8192}}", "a vocabulary of 12, and target.arguments want 8192"),
        (f"{{weights: {weights}, output_stride: [2, 4, 4]}}", "would have to be enlarged"),
        (f"{{weights: {weights}, output_stride: [2, 8, 8]}}", "2x4x4"),  # against the 2x2x2 of the model
        (
            "{weights: gone.safetensors}",
            "target.arguments.weights gone.safetensors: no such file of weights; train the tokenizer first "
            "(videomaskfeat train-tokenizer), or check the path",
        ),
        ("{}", "of 'dvae': argument 'weights' is missing"),
    ):
        code, text = pretrain("target.name=dvae", f"target.arguments={arguments}")
        assert code == 2, text
        assert words in text.strip().splitlines()[-1]
        assert not (tmp_path / "run").exists()
