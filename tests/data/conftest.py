"""Files that several tests of this package read; none of them changes one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.ava_data import NAMES, AvaData, write_numbered, write_truth
from tests.data.make_videos import make_all, make_unreadable
from videomaskfeat.data.ava_sources import sources_in_folder


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every readable kind of file: name -> path."""
    return make_all(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def unreadable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that cannot be read: cause -> path."""
    return make_unreadable(tmp_path_factory.mktemp("unreadable"))


@pytest.fixture(scope="session")
def ava_data(tmp_path_factory: pytest.TempPathFactory) -> AvaData:
    """Three videos of 5 s; in each, four key frames have two boxes."""
    root = tmp_path_factory.mktemp("ava")
    write_numbered(root / "videos", NAMES)
    key_frames = write_truth(root / "truth.csv", NAMES, [901, 902, 903, 904])
    return key_frames, sources_in_folder(key_frames, root / "videos")
