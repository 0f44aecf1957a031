"""Descriptions of the inputs of a result."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError
from videomaskfeat.inference.multiview import build_views
from videomaskfeat.inference.results import describe_views, hash_records
from videomaskfeat.io import file_sha256
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.stored_recipe import ClassifyRecipe

RECIPE = ClassifyRecipe(ClipRecipe(frames=4, stride=2, crop=32), views=3, crops=1, short_side=40)


def records(paths: list[str], labels: list[int] | None = None, source: str = "list") -> Records:
    return Records.from_paths(paths, labels, source=source)


def test_segments_have_no_stride_and_frame_rate() -> None:
    pace = {"stride", "target_fps", "short_video"}
    both = describe_views(RECIPE)
    segments = describe_views(ClassifyRecipe(RECIPE.clip, sampling="segments", views=1))
    assert set(both) - set(segments) == pace
    assert (both["views"], both["crops"], both["short_side"], both["stride"]) == (3, 1, 40, 2)


def test_views_follow_the_recipe() -> None:
    views = build_views(records(["a.mp4"]), RECIPE)
    # Three clips of 8 frames over 20: they start at 0, 6 and 12.
    assert views.frame_indices(20, 30.0)[:, 0].tolist() == [0, 6, 12]
    assert (views.crop, views.short_side, views.crops) == (32, 40, 1)
    with pytest.raises(UserError, match="views=3 with sampling=segments"):
        build_views(records(["a.mp4"]), ClassifyRecipe(RECIPE.clip, sampling="segments", views=3))


def test_hash_of_a_file_is_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "weights").write_bytes(content)
    assert file_sha256(tmp_path / "weights") == hashlib.sha256(content).hexdigest()
    with pytest.raises(UserError, match="no such file"):
        file_sha256(tmp_path / "nowhere")


def test_hash_of_a_list_is_that_of_its_rows_in_their_order() -> None:
    own = hash_records(records(["a", "b"], [0, 1]))
    assert own == hash_records(records(["a", "b"], [0, 1], source="of another name"))
    others = [
        records(["b", "a"], [1, 0]),
        records(["a", "b"], [0, 2]),
        records(["a", "b"]),
        records(["a", "b"], [0, -1]),
    ]
    assert len({own, *map(hash_records, others)}) == 5
