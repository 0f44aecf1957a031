"""Scores of boxes: against a plain loop, on any number of ranks, failures, and the frame mAP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.engine.processes import exit_codes_of_ranks
from tests.jobs.action_set import (
    ACTIONS,
    CLASSES,
    ActionSet,
    make_action_set,
    write_detector,
)
from videomaskfeat.data.ava import BoxedClips, KeyFrameBatch, KeyFrameViews
from videomaskfeat.data.ava_lists import KeyFrames
from videomaskfeat.data.ava_sources import sources_in_folder
from videomaskfeat.data.batches import Failure
from videomaskfeat.data.loader import ViewLoader
from videomaskfeat.engine import distributed
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.inference import detectors
from videomaskfeat.inference.ava_scores import ScoredFiles, write_key_frame_score
from videomaskfeat.inference.detectors import (
    BoxScores,
    VideoDetector,
    build_detections,
    join_batches,
    load_detector,
    score_batches,
    score_in_memory,
    score_key_frames,
)
from videomaskfeat.inference.key_frames import read_key_frames
from videomaskfeat.inference.multiview import Machine
from videomaskfeat.metrics.accuracy import action_scores
from videomaskfeat.recipe import ClipRecipe, normalize
from videomaskfeat.stored_recipe import DetectRecipe


class Shades(nn.Module):
    """Logits of a box from its clip's mean and its own corners, so that each box has other logits."""

    def forward(self, clips: Tensor, boxes: Tensor) -> Tensor:
        means = clips.mean(dim=(1, 2, 3, 4))[boxes[:, 0].long()]
        return torch.stack([means, boxes[:, 1] / 10, boxes[:, 3] / 10, means * boxes[:, 2] / 10], dim=1)


def detector_of(model: nn.Module, *, at_once: int = 2, poses: tuple[int, ...] = ()) -> VideoDetector:
    recipe = DetectRecipe(ClipRecipe(2, 1, 16), {}, CLASSES, poses)
    return VideoDetector(model, recipe, Machine("cpu", clips_at_once=at_once))


def draw_view(width: int = 24) -> BoxedClips:
    """Three clips with two, zero and three boxes, in unsorted rows."""
    clips = torch.randint(0, 256, (3, 2, 16, width, 3), dtype=torch.uint8)
    places = torch.tensor([2.0, 0.0, 2.0, 0.0, 2.0])
    return BoxedClips(clips, torch.cat([places[:, None], 16 * torch.rand(5, 4)], dim=1))


def key_frames(counts: list[int], seconds: list[float] | None = None) -> KeyFrames:
    """Key frames of the videos x and y, with these numbers of boxes."""
    total = sum(counts)
    left = np.linspace(0, 0.5, total, dtype=np.float32)
    boxes = np.column_stack([left, left, left + 0.3, left + 0.4])
    return KeyFrames(
        source="made.csv",
        videos=("x", "y"),
        video=np.arange(len(counts)) // 2 % 2,
        seconds=np.array(seconds or np.arange(len(counts)), np.float64),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        boxes=boxes,
        labels=np.arange(total)[:, None] % CLASSES == np.arange(CLASSES),
        scores=np.ones(total),
    )


def batches_of(frames: KeyFrames, size: int, *, failing: tuple[int, ...] = ()) -> list[KeyFrameBatch]:
    """All key frames in batches of this size, as a loader returns them."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (len(frames), 2, 16, 16, 3), dtype=torch.uint8, generator=generator)
    batches = []
    for first in range(0, len(frames), size):
        index = [i for i in range(first, min(first + size, len(frames))) if i not in failing]
        failed = [i for i in range(first, min(first + size, len(frames))) if i in failing]
        rows = [np.arange(*frames.starts[i : i + 2]) for i in index]
        places = np.repeat(np.arange(len(index)), [len(part) for part in rows])
        all_rows = np.concatenate([np.empty(0, np.int64), *rows])
        boxes = np.column_stack([places, 16 * frames.boxes[all_rows]]).astype(np.float32)
        view = BoxedClips(pixels[index], torch.from_numpy(boxes))
        batches.append(
            KeyFrameBatch(
                (view,) if index else (),
                torch.tensor(index, dtype=torch.int64),
                torch.from_numpy(all_rows),
                tuple(Failure(i, f"{i}.mp4", "broken") for i in failed),
            )
        )
    return batches


@pytest.fixture(scope="module")
def actions(tmp_path_factory: pytest.TempPathFactory) -> ActionSet:
    return make_action_set(tmp_path_factory.mktemp("actions"))


@pytest.mark.parametrize("poses", [(), (1, 3)])
@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_scores_are_the_mean_over_the_views_of_each_box(at_once: int, poses: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    views = [draw_view(24), draw_view(40)]
    detector = detector_of(Shades(), at_once=at_once, poses=poses)
    scores = detector.mean_scores(views)
    for row in range(5):
        expected = torch.zeros(CLASSES, dtype=torch.float64)
        for view in views:
            place = int(view.boxes[row, 0])
            box = view.boxes[row : row + 1].clone()
            box[:, 0] = 0
            clip = normalize(view.clips[place : place + 1], mean=0.45, std=0.225)
            expected += action_scores(Shades()(clip, box).double(), detector.recipe.pose_mask)[0] / 2
        torch.testing.assert_close(scores[row], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_any_split_of_batches_over_ranks_scores_each_box_once(
    world: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gathered batches of all ranks, against a single pass."""
    frames = key_frames([2, 1, 3, 1, 2])
    whole = score_batches(detector_of(Shades()), batches_of(frames, 5, failing=(3,)), frames)
    batches = batches_of(frames, size, failing=(3,))
    shares: list[Any] = []

    def keep(value: Any) -> list[Any]:
        shares.append(value)
        return [value]

    monkeypatch.setattr(distributed, "gather_objects", keep)
    monkeypatch.setattr(detectors, "join_batches", lambda parts_of_ranks, _: parts_of_ranks)
    for rank in range(world):
        score_batches(detector_of(Shades()), batches[rank::world], frames)
    gathered = [batch for share in shares if share for [part] in [share] for batch in part]
    joined = join_batches(gathered, frames)
    assert np.array_equal(joined.scored, whole.scored)
    assert joined.scored.tolist() == [True] * 6 + [False] + [True] * 2
    np.testing.assert_allclose(joined.scores, whole.scores, atol=1e-6)
    assert joined.failures == whole.failures
    assert (joined.read, joined.listed) == (4, 5)


def test_a_lost_or_doubled_key_frame_is_noticed() -> None:
    frames = key_frames([2, 1, 3])
    batches = batches_of(frames, 1)
    for wrong in (batches[:2], [*batches, batches[0]]):
        with pytest.raises(AssertionError, match="every key frame is scored or has failed, exactly once"):
            score_batches(detector_of(Shades()), wrong, frames)


def test_unreadable_key_frames_are_listed_and_not_replaced() -> None:
    frames = key_frames([2, 1, 3])
    result = score_batches(detector_of(Shades()), batches_of(frames, 2, failing=(0, 1)), frames)
    assert [failure.path for failure in result.failures] == ["0.mp4", "1.mp4"]
    assert not result.scored[:3].any()
    assert (result.scores[:3] == 0).all()
    assert len(build_detections(frames, result, ACTIONS).frames) == 3 * len(ACTIONS)
    with pytest.raises(UserError, match=r"made\.csv: none of the 3 key frames could be read; .* 0\.mp4"):
        score_batches(detector_of(Shades()), batches_of(frames, 2, failing=(0, 1, 2)), frames)


def test_a_score_that_is_not_finite_is_an_error() -> None:
    class Broken(Shades):
        def forward(self, clips: Tensor, boxes: Tensor) -> Tensor:
            return super().forward(clips, boxes) * torch.nan

    frames = key_frames([2, 1])
    with pytest.raises(RunFailed, match="not finite for box 0 of the key frames; its weights are damaged"):
        score_batches(detector_of(Broken()), batches_of(frames, 2), frames)


def test_training_mode_is_restored() -> None:
    model, frames = Shades(), key_frames([1])
    model.dropout = nn.Dropout(0.9)
    score_batches(detector_of(model), batches_of(frames, 1), frames)
    assert model.dropout.training


def score_a_share(folder: str) -> None:
    """Score the key frames of this rank, and save the result."""
    with distributed.process_group(torch.device("cpu")):
        frames = key_frames([2, 1, 3, 1, 2])
        batches = batches_of(frames, 1, failing=(3,))
        share = batches[distributed.rank() :: distributed.world_size()]
        result = score_batches(detector_of(Shades()), share, frames)
        name = f"{distributed.world_size()}_{distributed.rank()}.npy"
        np.save(Path(folder) / name, np.concatenate([result.scores, result.scored[:, None]], axis=1))


@pytest.mark.slow
def test_processes_score_as_a_single_one(tmp_path: Path) -> None:
    for count in (1, 2, 3):
        assert exit_codes_of_ranks(count, score_a_share, str(tmp_path)) == [0] * count
    one = np.load(tmp_path / "1_0.npy")
    for count, rank in ((2, 0), (2, 1), (3, 0), (3, 2)):
        np.testing.assert_allclose(np.load(tmp_path / f"{count}_{rank}.npy"), one, atol=1e-6)


def test_score_in_memory_is_that_of_the_files(actions: ActionSet, tmp_path: Path) -> None:
    """Real videos, whole 3:2 frames, three ranks' loaders; the files are scored by the official rules."""
    key_frames = read_key_frames(
        actions.truth, [actions.boxes], actions.excluded, classes=CLASSES, score_threshold=0.8
    )
    truth, tested, _ = key_frames
    assert (len(tested), len(tested.boxes)) == (5, 15)
    weights = write_detector(tmp_path / "d.safetensors")
    detector = load_detector(weights, device="cpu", clips_at_once=2)
    sources = sources_in_folder(tested, actions.videos)
    result = score_key_frames(detector, tested, sources, flip=True, scales=(32, 40))
    views = KeyFrameViews(
        tested, sources, frames=4, stride=2, target_fps=None, short_sides=(32, 40), multiple=8, flip=True
    )
    loaders = [ViewLoader(views, per_batch=2, workers=0, rank=rank, world_size=3) for rank in range(3)]
    shared = score_batches(detector, (batch for part in loaders for batch in part), tested)
    np.testing.assert_allclose(shared.scores, result.scores, atol=1e-6)
    files = ScoredFiles(actions.truth, actions.labels, actions.excluded, (actions.boxes,))
    scored = write_key_frame_score(tmp_path / "out", files, key_frames, result, {"title": "made"})
    memory = score_in_memory(truth, tested, result, ACTIONS)
    assert memory.mean_ap == pytest.approx(scored.result.mean_ap, abs=1e-9)
    assert memory.ap == pytest.approx(scored.result.ap, abs=1e-9, nan_ok=True)
    assert 0 < memory.mean_ap < 1
    lines = (tmp_path / "out" / "detections.csv").read_text().splitlines()
    assert len(lines) == 15 * len(ACTIONS)
    assert lines[0].startswith("v,0001,0.1")


def test_a_perfect_detector_scores_one(actions: ActionSet) -> None:
    truth, tested, _ = read_key_frames(actions.truth, [], "", classes=CLASSES, score_threshold=0.8)
    assert tested is truth
    right = BoxScores(truth.labels.astype(np.float32), np.ones(len(truth.boxes), bool), (), len(truth))
    assert score_in_memory(truth, tested, right, ACTIONS).mean_ap == 1.0
    half = replace(right, scored=np.arange(len(truth.boxes)) % 2 == 0)  # the left boxes alone
    assert score_in_memory(truth, tested, half, ACTIONS).mean_ap == pytest.approx(1 / 3)


def test_empty_detections_score_nothing(actions: ActionSet, tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    key_frames = read_key_frames(actions.truth, [str(empty)], "", classes=CLASSES, score_threshold=0.8)
    truth, tested, _ = key_frames
    assert len(tested) == 0
    detector = load_detector(write_detector(tmp_path / "d.safetensors"))
    result = score_key_frames(detector, tested, sources_in_folder(tested, actions.videos))
    assert score_in_memory(truth, tested, result, ACTIONS).mean_ap == 0
    files = ScoredFiles(actions.truth, actions.labels, "", (str(empty),))
    scored = write_key_frame_score(tmp_path / "out", files, key_frames, result, {"title": "made"})
    assert scored.result.mean_ap == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["tested"]["key_frames"] == 0


def test_boxes_of_other_key_frames_are_refused(actions: ActionSet, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("z,0001,0.1,0.1,0.5,0.5,,0.9\n")
    with pytest.raises(UserError, match=r"none of its 1 key frame \(z at 1 s, \.\.\.\) has ground truth in"):
        read_key_frames(actions.truth, [str(other)], "", classes=CLASSES, score_threshold=0.8)
