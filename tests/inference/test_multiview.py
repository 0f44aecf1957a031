"""Scores of a list equal a plain loop, for any batch size and number of ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.data.clip_data import write_videos
from tests.engine.processes import exit_codes_of_ranks
from tests.jobs.toy_classifier import ToyClassifier
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.records import Records
from videomaskfeat.engine import distributed
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.inference.multiview import (
    Machine,
    VideoScores,
    build_views,
    evaluate_model,
    evaluation_mode,
    video_features,
)
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.stored_recipe import ClassifyRecipe

RECIPE = ClassifyRecipe(ClipRecipe(2, 2, 16), views=2, crops=3, short_side=20)
"""Two clips of two frames, three crops of 16 pixels each."""
BROKEN = (4, 9)


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven videos, two of them unreadable; the number is prime."""
    path = write_videos(tmp_path_factory.mktemp("videos"), 11)
    for row in BROKEN:
        (path.parent / f"{row:03d}.mp4").write_bytes(b"")
    return path


def score(
    listing: Path | Records, model: nn.Module | None = None, *, average: str = "softmax", **arguments: Any
) -> VideoScores:
    """The scores of the toy classifier."""
    records = load_records(listing) if isinstance(listing, Path) else listing
    progress = arguments.pop("progress", None)
    machine = Machine(**{"device": "cpu", "videos_per_batch": 1, **arguments})
    recipe = replace(RECIPE, average=average)
    return evaluate_model(model or ToyClassifier(), records, recipe, machine, progress=progress)


def by_hand(listing: Path, average: str) -> np.ndarray:
    """Float64 [n, L]: the arithmetic of the toy in float64, one video at a time."""
    views, weight = (
        build_views(load_records(listing), RECIPE),
        ToyClassifier().weight.detach().double().numpy(),
    )
    rows = []
    for row in range(len(views)):
        if row in BROKEN:
            continue
        clips = (views[row].clips.double().numpy() / 255.0 - 0.45) / 0.225  # [V*S, T, H, W, C]
        logits = clips.mean(axis=(2, 3)).transpose(0, 2, 1).reshape(len(clips), -1) @ weight.T
        if average == "softmax":
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            logits = powers / powers.sum(axis=1, keepdims=True)
        rows.append(logits.mean(axis=0))
    return np.stack(rows)


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_scores_equal_a_plain_loop(listing: Path, average: str) -> None:
    """Float32 network against float64: 1e-5 of logits of size 10."""
    result = score(listing, average=average)
    np.testing.assert_allclose(result.scores, by_hand(listing, average), atol=1e-5)
    assert result.scores.dtype == np.float32
    assert result.rows.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10]
    assert result.labels.tolist() == [row % 5 for row in result.rows]
    assert result.listed == 11
    assert [(failure.index, failure.cause) for failure in result.failures] == [
        (row, "empty file (0 bytes)") for row in BROKEN
    ]


@pytest.mark.parametrize(("videos", "workers", "at_once"), [(1, 0, 4), (2, 0, 1), (4, 2, 5), (64, 0, 1000)])
def test_batches_do_not_change_scores(listing: Path, videos: int, workers: int, at_once: int) -> None:
    """Only the order of float32 sums differs: 1e-6 of probabilities."""
    model = ToyClassifier()
    result = score(listing, model, videos_per_batch=videos, workers=workers, clips_at_once=at_once)
    expected = score(listing)
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-6)
    assert np.array_equal(result.rows, expected.rows)
    assert result.failures == expected.failures
    assert sum(model.batches) == 9 * 6  # every clip of every readable video once
    assert max(model.batches) <= at_once


def save_scores(listing: Path, out: Path) -> None:
    """Save the result of one rank."""
    result = score(listing, average="logits", videos_per_batch=2, clips_at_once=5)
    rows = np.array([failure.index for failure in result.failures])
    np.savez(
        out / f"{distributed.world_size()}_{distributed.rank()}.npz",
        scores=result.scores,
        labels=result.labels,
        rows=result.rows,
        failed=rows,
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_do_not_change_scores(listing: Path, tmp_path: Path, ranks: int) -> None:
    """Eleven videos over 2 and 3 processes: every rank gets each row once. 1e-5 of logits of size 10."""
    assert exit_codes_of_ranks(ranks, save_scores, listing, tmp_path) == [0] * ranks
    expected = score(listing, average="logits")
    for rank in range(ranks):
        result = np.load(tmp_path / f"{ranks}_{rank}.npz")
        assert np.array_equal(result["rows"], expected.rows)
        assert np.array_equal(result["labels"], expected.labels)
        assert result["failed"].tolist() == list(BROKEN)
        np.testing.assert_allclose(result["scores"], expected.scores, atol=1e-5)


def fail_on_one_rank(listing: Path, few: Path) -> None:
    """More ranks than videos; bad scores on one rank are an error on all of them."""
    assert len(score(few).rows) == 2
    poisoned = PoisonedClassifier() if distributed.rank() == 1 else ToyClassifier()
    with pytest.raises(RunFailed, match=r"not finite for the video in row 2 of the list"):
        score(listing, poisoned)


class PoisonedClassifier(ToyClassifier):
    """A classifier with damaged weights."""

    def forward(self, clips: Tensor) -> Tensor:
        """Logits that are NaN."""
        return super().forward(clips) * float("nan")


def test_error_on_one_rank_is_raised_on_all(listing: Path, tmp_path: Path) -> None:
    few = write_videos(tmp_path, 2)
    assert exit_codes_of_ranks(3, fail_on_one_rank, listing, few) == [0, 0, 0]


def test_training_mode_of_each_module_is_restored(listing: Path) -> None:
    model = ToyClassifier()
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    score(listing, model)
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    failing = PoisonedClassifier()
    with pytest.raises(RunFailed):
        score(listing, failing)
    assert model.dropout.training
    assert failing.dropout.training
    assert torch.is_grad_enabled()


def test_progress_counts_videos(listing: Path) -> None:
    calls: list[tuple[int, int]] = []
    score(listing, videos_per_batch=4, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 11), (8, 11), (11, 11)]


def test_features_are_mean_directions(listing: Path) -> None:
    records, model, machine = load_records(listing), ToyClassifier(), Machine("cpu", clips_at_once=5)
    result = video_features(model, records, RECIPE, machine)
    clips = build_views(records, RECIPE)[3].clips.permute(0, 4, 1, 2, 3) / 255
    expected = model.features((clips - 0.45) / 0.225).mean(dim=0)
    np.testing.assert_allclose(result.scores[3], expected / expected.norm(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(result.scores, axis=1), 1.0, atol=1e-6)
    with pytest.raises(UserError, match="Linear has no `features` method, so videos cannot be compared"):
        video_features(nn.Linear(1, 1), records, RECIPE, machine)


def test_bf16_runs_under_autocast(listing: Path) -> None:
    """The toy's product rounds to bf16: near the float32 scores (1e-2), and not them."""
    half, full = score(listing, precision="bf16").scores, score(listing).scores
    np.testing.assert_allclose(half, full, atol=2e-2)
    assert not np.array_equal(half, full)


def test_list_without_a_readable_video(tmp_path: Path) -> None:
    path = tmp_path / "val.csv"
    path.write_text("gone.mp4 0\nlost.mp4 1\n")
    words = r"val\.csv: none of its 2 videos could be read; the first: .*gone\.mp4 \(no such file\); .*prefix"
    with pytest.raises(UserError, match=words):
        score(path)


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("average", "softmx", "average 'softmx' is unknown; did you mean 'softmax'"),
        ("clips_at_once", 0, "clips_at_once=0: must be at least 1"),
        ("videos_per_batch", 0, "videos_per_batch=0: must be at least 1"),
        ("workers", -1, "workers=-1: must be at least 0"),
    ],
)
def test_wrong_settings_are_named(listing: Path, argument: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        score(listing, **{argument: value})
