"""Which frames make a clip: the reference's numbers, and what each policy promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from videomaskfeat.data.sampling import (
    ShortVideoError,
    clip_indices_random,
    clip_indices_view,
    clip_span,
    segment_edges,
    segment_indices,
)
from videomaskfeat.errors import UserError


@pytest.fixture
def protocol(golden: Path) -> dict[str, list[dict]]:
    return json.loads((golden / "protocol.json").read_text(encoding="utf-8"))


def test_views_equal_the_reference(protocol: dict[str, list[dict]]) -> None:
    assert len(protocol["temporal"]) == 60
    for case in protocol["temporal"]:
        indices = clip_indices_view(
            case["num_frames"],
            case["clip_size"] * 30.0 / 64.0,  # 16 frames at stride 4 span 64 frames at 30 fps
            frames=16,
            stride=4,
            view=case["clip_idx"],
            views=case["num_clips"],
            offset=case["use_offset"],
        )
        assert indices.tolist() == case["frame_indices"], case


def test_segments_equal_the_reference(protocol: dict[str, list[dict]]) -> None:
    for case in protocol["ssv2_segments"]:
        assert segment_edges(case["num_frames"], frames=case["frames"]).tolist() == case["edges"]
        assert segment_indices(case["num_frames"], frames=case["frames"]).tolist() == case["test_indices"]


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


def test_impossible_arguments_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="view 3 of 3: a view counts from 0 to 2"):
        clip_indices_view(100, 30.0, frames=8, stride=4, view=3, views=3)
    with pytest.raises(UserError, match="'trim' is not one of clamp, loop, error"):
        clip_indices_random(100, 30.0, frames=8, stride=4, rng=rng, short="trim")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a video of 0 frames has no clip"):
        clip_indices_random(0, 30.0, frames=8, stride=4, rng=rng)
    with pytest.raises(UserError, match="8 frames at stride 0 is empty"):
        clip_indices_random(100, 30.0, frames=8, stride=0, rng=rng)
