"""Which frames make a clip: the reference's numbers, and what each policy promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videomaskfeat.data.sampling import (
    ShortVideoError,
    clip_indices_random,
    clip_indices_view,
    clip_span,
    key_frame_seconds,
    segment_edges,
    segment_indices,
)
from videomaskfeat.errors import UserError


@pytest.fixture
def protocol(golden: Path) -> dict[str, list[dict]]:
    return json.loads((golden / "protocol.json").read_text(encoding="utf-8"))


def test_views_equal_the_reference(protocol: dict[str, list[dict]]) -> None:
    cases = [case for case in protocol["temporal"] if case["use_offset"]]
    assert len(cases) == 47
    for case in cases:
        indices = clip_indices_view(
            case["num_frames"],
            case["clip_size"] * 30.0 / 64.0,  # 16 frames at stride 4 span 64 frames at 30 fps
            frames=16,
            stride=4,
            view=case["clip_idx"],
            views=case["num_clips"],
        )
        assert indices.tolist() == case["frame_indices"], case


def test_segments_equal_the_reference(protocol: dict[str, list[dict]]) -> None:
    for case in protocol["ssv2_segments"]:
        assert segment_edges(case["num_frames"], frames=case["frames"]).tolist() == case["edges"]
        assert segment_indices(case["num_frames"], frames=case["frames"]).tolist() == case["test_indices"]


def _key_frame_indices(num_frames: int, fps: float, *, seconds: float, **clip: Any) -> np.ndarray:
    """The frames nearest to the times of a clip, as `CountedReader` takes them."""
    (times,) = key_frame_seconds(fps, seconds=np.array([seconds]), **clip)
    return np.clip(np.floor(times * fps + 0.5), 0, num_frames - 1).astype(np.int64)


def test_clips_around_key_frames_equal_the_reference(protocol: dict[str, list[dict]]) -> None:
    assert len(protocol["ava_sequences"]) == 20
    for case in protocol["ava_sequences"]:
        clip = {"frames": case["frames"], "stride": case["stride"]}
        for rate in (30.0, 24.0):  # the video's own frames at either rate
            indices = _key_frame_indices(
                case["num_frames"], rate, seconds=case["center"] / rate, **clip, target_fps=rate
            )
            assert indices.tolist() == case["indices"], case
        own = _key_frame_indices(
            case["num_frames"], 25.0, seconds=case["center"] / 25.0, **clip, target_fps=None
        )
        assert own.tolist() == case["indices"], case


def test_clip_around_a_key_frame_shows_the_same_times_at_any_rate() -> None:
    clip: dict[str, Any] = {"seconds": 7.0, "frames": 16, "stride": 4}
    times = _key_frame_indices(9000, 30.0, **clip) / 30.0
    assert times[8] == 7.0
    for fps in (24.0, 25.0, 29.97, 59.94, 120.0):
        indices = _key_frame_indices(9000, fps, **clip)
        assert np.abs(indices / fps - times).max() <= 0.5 / fps + 1e-9  # the nearest frame
    unknown = {**clip, "seconds": np.array([7.0]), "target_fps": None}  # as at the target rate
    np.testing.assert_array_equal(key_frame_seconds(float("nan"), **unknown)[0], times)


def test_clip_around_a_key_frame_is_full_and_stays_inside() -> None:
    # 3 * 3 // 2 = 4 frames before.
    assert _key_frame_indices(100, 30.0, seconds=1.0, frames=3, stride=3).tolist() == [26, 29, 32]
    assert _key_frame_indices(100, 60.0, seconds=1.0, frames=3, stride=3).tolist() == [52, 58, 64]
    assert _key_frame_indices(100, 30.0, seconds=1.0, frames=1, stride=1).tolist() == [30]
    assert _key_frame_indices(9, 30.0, seconds=0.1, frames=8, stride=2).tolist() == [0, 0, 0, 1, 3, 5, 7, 8]
    assert _key_frame_indices(30, 30.0, seconds=1.0, frames=4, stride=1).tolist() == [28, 29, 29, 29]


def test_random_segments_reach_both_edges_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    edges = segment_edges(40, frames=8)
    draws = np.stack([segment_indices(40, frames=8, rng=rng) for _ in range(500)])
    assert (draws.min(axis=0) == edges[:-1]).all()
    assert (draws.max(axis=0) == edges[1:]).all()


def test_span_counts_time_not_frames() -> None:
    assert clip_span(60.0, frames=16, stride=4) == 128
    assert clip_span(60.0, frames=16, stride=4, target_fps=None) == 64
    assert clip_span(float("nan"), frames=16, stride=4) == 64


def test_random_clips_start_uniformly_and_stay_inside() -> None:
    rng = np.random.default_rng(1)
    draws = np.stack([clip_indices_random(300, 30.0, frames=16, stride=4, rng=rng) for _ in range(4000)])
    assert draws.dtype == np.int64
    assert draws.min() == 0
    assert draws.max() < 300
    assert (np.diff(draws, axis=1) >= 4).all()
    # Starts are uniform on 0..235: their mean has a standard error of 68 / sqrt(4000) = 1.1.
    assert abs(draws[:, 0].mean() - 117.5) < 5


def test_random_clip_repeats_with_its_generator() -> None:
    first, second = (
        clip_indices_random(300, 25.0, frames=8, stride=8, rng=np.random.default_rng(5)) for _ in range(2)
    )
    assert (first == second).all()


@pytest.mark.parametrize(("short", "expected"), [("clamp", [0, 2, 3, 3, 3, 3]), ("loop", [0, 2, 0, 2, 0, 3])])
def test_short_video_follows_its_policy(short: str, expected: list[int]) -> None:
    # Span 12: 6 indices from 0 to 11, a step of 2.2: 0, 2, 4, 6, 8, 11.
    rng = np.random.default_rng(0)
    indices = clip_indices_random(4, 30.0, frames=6, stride=2, rng=rng, short=short)  # type: ignore[arg-type]
    assert indices.tolist() == expected


def test_one_frame_video_gives_a_clip_of_that_frame() -> None:
    for short in ("clamp", "loop"):
        indices = clip_indices_view(1, 30.0, frames=16, stride=4, view=2, views=5, short=short)  # type: ignore[arg-type]
        assert indices.tolist() == [0] * 16


def test_policy_error_names_both_lengths() -> None:
    with pytest.raises(ShortVideoError, match="too short: 10 frames, and the clip spans 64"):
        clip_indices_view(10, 30.0, frames=16, stride=4, view=0, views=1, short="error")
    clip_indices_view(64, 30.0, frames=16, stride=4, view=0, views=1, short="error")
    # A picture, or any video, is long enough for one frame of it.
    assert clip_indices_view(1, 30.0, frames=1, stride=4, view=0, views=1, short="error").tolist() == [0]


def test_impossible_arguments_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match=r"view 3 of 3: the view must be in 0\.\.2"):
        clip_indices_view(100, 30.0, frames=8, stride=4, view=3, views=3)
    with pytest.raises(UserError, match="'trim' is unknown; choose from clamp, loop, error"):
        clip_indices_random(100, 30.0, frames=8, stride=4, rng=rng, short="trim")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a video of 0 frames has no clip"):
        clip_indices_random(0, 30.0, frames=8, stride=4, rng=rng)
    with pytest.raises(UserError, match="8 frames at stride 0 is empty"):
        clip_indices_random(100, 30.0, frames=8, stride=0, rng=rng)
    with pytest.raises(UserError, match="a clip of 1 frames at stride 0 is empty"):
        key_frame_seconds(25.0, seconds=np.zeros(1), frames=1, stride=0)
