"""Files that several tests of this package read; none of them changes one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.make_videos import make_all, make_unreadable


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every readable kind of file: name -> path."""
    return make_all(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def unreadable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that cannot be read: cause -> path."""
    return make_unreadable(tmp_path_factory.mktemp("unreadable"))
