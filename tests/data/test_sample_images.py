"""Sample pictures: equal bytes, consistent lists and folders, and classes that only the shape determines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.pictures import held_out_accuracy
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.sample import write_sample_data
from videomaskfeat.data.sample_images import SHAPES, _disc_over_shape, sample_image
from videomaskfeat.data.video import open_video
from videomaskfeat.errors import UserError
from videomaskfeat.targets.hog import hog_features

SMALL: dict[str, Any] = {"videos": 12, "frames": 1, "size": 32, "ava_videos": 0, "images": 100}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample_data(folder, **SMALL, workers=2)
    return folder / "images"


def test_pictures_are_the_same_bytes_for_any_number_of_workers(images: Path, tmp_path: Path) -> None:
    write_sample_data(tmp_path, **SMALL, workers=1)
    names = [path.relative_to(images) for path in sorted(images.rglob("*")) if path.is_file()]
    assert len(names) == 104  # the lists and the class names
    for name in names:
        assert (tmp_path / "images" / name).read_bytes() == (images / name).read_bytes()
    assert "100 pictures whose class is a shape" in (tmp_path / "README.txt").read_text()


def test_lists_and_class_folders_say_the_same(images: Path) -> None:
    names = tuple((images / "classes.txt").read_text().split())
    assert names == tuple(SHAPES) == tuple(sorted(SHAPES))
    for split, count in (("train", 80), ("val", 20)):
        listed = load_records(images / f"{split}.csv")
        folders = load_records(images / split, format="images", labels="yes")
        assert len(listed) == count
        assert sorted((r.path, r.label) for r in listed) == [(r.path, r.label) for r in folders]
        assert folders.class_names == names
        assert folders.labels is not None
        assert np.bincount(folders.labels).tolist() == [count // 10] * 10


def test_list_of_few_labels_is_a_balanced_part_of_the_training_pictures(tmp_path: Path) -> None:
    write_sample_data(tmp_path, **{**SMALL, "images": 300})
    few = load_records(tmp_path / "images/train_few.csv")
    listed = load_records(tmp_path / "images/train.csv")
    assert few.labels is not None
    assert np.bincount(few.labels).tolist() == [20] * 10
    assert len(listed) == 240
    assert {r.path for r in few} < {r.path for r in listed}


def test_file_holds_the_picture_of_its_number(images: Path) -> None:
    with open_video(images / "val/heart/000085.png") as video:
        np.testing.assert_array_equal(video.read([0])[0], sample_image(85, size=32, seed=0))


@pytest.mark.parametrize(
    ("name", "area"), [("square", 4), ("bar", 4 * 0.28), ("triangle", 3 * 3**0.5 / 4), ("ring", 0.6 * np.pi)]
)
def test_shapes_cover_equal_areas(name: str, area: float) -> None:
    # Half a percent: the area is counted on a grid of 400 points per axis.
    assert _disc_over_shape(name) == pytest.approx((np.pi / area) ** 0.5, rel=5e-3)


# The mean color of three pictures and one pixel of each. The generator is frozen, as that of the videos is.
FROZEN: dict[int, tuple[tuple[float, ...], tuple[int, ...]]] = {
    0: ((107.95, 83.20, 121.17), (125, 163, 173)),
    8: ((105.33, 113.91, 117.71), (209, 206, 218)),
    25: ((107.11, 127.24, 94.86), (185, 226, 228)),
}


@pytest.mark.parametrize("number", [0, 8, 25])
def test_generator_is_frozen(number: int) -> None:
    """Means to half a level: OpenCV may round anew."""
    picture = sample_image(number, size=64, seed=1)
    mean, pixel = FROZEN[number]
    assert tuple(picture.mean(axis=(0, 1))) == pytest.approx(mean, abs=0.5)
    assert picture[32, 32].tolist() == pytest.approx(pixel, abs=2)


def _nearest_mean(features: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 of the nearest class mean on the last quarter, with means of the rest."""
    cut = len(labels) * 3 // 4
    means = np.stack([features[:cut][labels[:cut] == label].mean(axis=0) for label in range(len(SHAPES))])
    nearest = np.linalg.norm(features[cut:, None] - means, axis=2).argmin(axis=1)
    return float((nearest == labels[cut:]).mean())


def test_colors_tell_nothing_and_edges_tell_the_class() -> None:
    number = 600
    labels = np.arange(number) % len(SHAPES)
    pictures = np.stack([sample_image(index, size=32, seed=3) for index in range(number)])
    means = pictures.mean(axis=(1, 2))
    spreads = pictures.reshape(number, -1, 3).std(axis=1)
    chance, spread = 0.1, np.sqrt(0.1 * 0.9 / (number / 4))
    # Four standard deviations of a classifier that guesses: 20 %.
    assert _nearest_mean(means, labels) < chance + 4 * spread
    colors = np.concatenate([means, spreads, means**2, spreads**2], axis=1)
    assert held_out_accuracy(colors, labels, train_fraction=0.75) < chance + 4 * spread
    clips = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    hog = hog_features(clips, cell=4).mean(dim=1)  # [n, 9, 8, 8]
    edges = torch.nn.functional.avg_pool2d(hog, 2).flatten(1).numpy()
    accuracy = held_out_accuracy(edges, labels, train_fraction=0.75)
    assert accuracy > chance + 6 * spread, accuracy


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images=49: each of the 10 classes needs .* use at least 50"):
        write_sample_data(tmp_path, **{**SMALL, "images": 49})
