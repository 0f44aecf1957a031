"""Sample videos with several factors: equal bytes, independent labels, and what one or two frames show."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videomaskfeat.data.formats import load_records
from videomaskfeat.data.sample import write_sample_data
from videomaskfeat.data.sample_factors import (
    FACTORS,
    LARGEST_GROWTH,
    ROOM,
    SCALES,
    draw_labels,
    factor_scene,
    load_digits,
)
from videomaskfeat.errors import UserError

SMALL: dict[str, Any] = {"videos": 12, "frames": 4, "size": 32, "ava_videos": 0, "factors": 60}
SCENE: dict[str, Any] = {"frames": 32, "size": 48, "fps": 30.0, "seed": 3}


@pytest.fixture(scope="module")
def factors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample_data(folder, **SMALL, workers=2)
    return folder / "factors"


def test_digits_are_those_of_the_published_file_with_their_license() -> None:
    """Sums known from scikit-learn's copy: pictures per class, and the first picture's first rows."""
    pictures, labels = load_digits()
    assert (pictures.shape, int(pictures.sum()), int(pictures.max())) == ((1797, 8, 8), 561_718, 16)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert pictures[0, :2].tolist() == [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0]]
    with np.load(Path(write_sample_data.__code__.co_filename).parent / "digits.npz") as file:
        assert "CC BY 4.0" in str(file["source"])


def test_equal_seeds_give_equal_files(factors: Path, tmp_path: Path) -> None:
    write_sample_data(tmp_path, **SMALL, workers=1)
    names = sorted(str(path.relative_to(factors)) for path in factors.rglob("*") if path.is_file())
    assert len(names) == 60 + 5 * len(FACTORS)
    for name in names:
        assert (tmp_path / "factors" / name).read_bytes() == (factors / name).read_bytes()
    assert "60 videos with independent factors" in (tmp_path / "README.txt").read_text()
    write_sample_data(tmp_path, **SMALL, seed=1)
    assert (tmp_path / "factors/train_motion.csv").read_bytes() != (factors / "train_motion.csv").read_bytes()


def test_lists_of_all_factors_name_the_same_videos(factors: Path) -> None:
    for split, count in (("train", 48), ("val", 6), ("test", 6)):
        lists = {factor: load_records(factors / f"{split}_{factor}.csv") for factor in FACTORS}
        assert {len(records) for records in lists.values()} == {count}
        assert len({tuple(record.path for record in records) for records in lists.values()}) == 1
        for factor, records in lists.items():
            numbers = [int(Path(record.path).stem) for record in records]
            assert [record.label for record in records] == [draw_labels(n, seed=0)[factor] for n in numbers]
            names = (factors / f"classes_{factor}.txt").read_text().splitlines()
            assert tuple(names) == FACTORS[factor]


def test_list_of_few_labels_has_the_first_videos_of_each_class(tmp_path: Path) -> None:
    write_sample_data(tmp_path, **{**SMALL, "frames": 1, "factors": 330})
    for factor, classes in FACTORS.items():
        rows = (tmp_path / f"factors/train_{factor}.csv").read_text().splitlines()
        few = (tmp_path / f"factors/train_few_{factor}.csv").read_text().splitlines()
        expected = {row for n in range(len(classes)) for row in [r for r in rows if r.endswith(f" {n}")][:20]}
        assert few == [row for row in rows if row in expected]


def test_factors_are_independent() -> None:
    """Contingency tables of all pairs, and of each factor with the uniform distribution.

    Chi-squared has mean f and variance 2 f for f degrees of freedom; 28 tables, so five deviations.
    """
    labels = [draw_labels(number, seed=0) for number in range(6000)]
    columns = {name: np.array([row[name] for row in labels]) for name in FACTORS}
    for name, column in columns.items():
        counts = np.bincount(column, minlength=len(FACTORS[name]))
        expected, freedom = len(labels) / len(counts), len(counts) - 1
        assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom), name
    for first, second in combinations(FACTORS, 2):
        table = np.zeros((len(FACTORS[first]), len(FACTORS[second])))
        np.add.at(table, (columns[first], columns[second]), 1)
        margins = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        assert ((table - margins) ** 2 / margins).sum() < freedom + 5 * np.sqrt(2 * freedom), (first, second)


def test_scales_do_not_overlap() -> None:
    radii = list(SCALES.values())
    assert all(LARGEST_GROWTH * small < large for small, large in pairwise(radii))
    assert LARGEST_GROWTH * radii[-1] < 0.5  # a digit fits into the frame


@pytest.mark.parametrize("number", range(12))
def test_scene_has_the_properties_of_its_labels(number: int) -> None:
    """Closed forms: the quadrant at the middle, the range of radii, the color, the sign of most changes."""
    names = {factor: FACTORS[factor][label] for factor, label in draw_labels(number, seed=3).items()}
    one = factor_scene(number, held_out=False, **{**SCENE, "frames": 31})  # frame 15 is the middle
    (sprite,) = one.scene.sprites
    x, y = sprite.centers[15]
    assert names["position"] == f"{'lower' if y >= 0.5 else 'upper'} {'right' if x >= 0.5 else 'left'}"
    smallest = SCALES[names["scale"]]
    assert smallest <= sprite.radii.min() <= sprite.radii.max() < LARGEST_GROWTH * smallest
    assert np.abs(sprite.centers - 0.5).max() <= ROOM / 2
    assert np.abs(sprite.turns).max() <= 15 / 360
    fades = (np.diff(one.brightness) < 0).mean()
    assert (fades > 0.8) == (names["time"] == "forward")
    bright = {"red": "R", "yellow": "RG", "green": "G", "cyan": "GB", "blue": "B", "magenta": "RB"}
    mean = sprite.texture.mean(axis=(0, 1))
    assert (
        "".join(c for c, level in zip("RGB", mean, strict=True) if level > 0.8 * mean.max())
        == bright[names["color"]]
    )


def test_held_out_digits_are_other_pictures() -> None:
    def digits(held_out: bool) -> set[bytes]:
        scenes = (factor_scene(n, held_out=held_out, **{**SCENE, "frames": 1}) for n in range(400))
        return {one.scene.sprites[0].alpha.tobytes() for one in scenes}

    train, held_out = digits(False), digits(True)
    assert min(len(train), len(held_out)) > 150
    assert not train & held_out


def _accuracies(features: np.ndarray, labels: dict[str, np.ndarray]) -> dict[str, float]:
    """Top-1 of a ridge classifier on the second half, fitted on the first, for each factor."""
    features = features.reshape(len(features), -1)
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    half = len(features) // 2
    train, test = features[:half], features[half:]
    gram = train @ train.T + 0.3 * features.shape[1] * np.eye(half)  # the dual form
    weights = np.linalg.solve(gram, train @ test.T).T  # [test, train]
    result = {}
    for factor, column in labels.items():
        onehot = np.eye(column.max() + 1)[column[:half]] - 1 / (column.max() + 1)
        result[factor] = float(((weights @ onehot).argmax(axis=1) == column[half:]).mean())
    return result


def test_one_frame_reads_appearance_and_two_frames_motion() -> None:
    """Ridge regression on the spectrum of the saturation, whose absolute value ignores the position.

    Measured: one frame reads appearance with 62 % and scale with 78 %, two frames read motion with 37 % and
    speed with 48 %. Bounds: half of the distance to chance. What must not be readable is below four standard
    deviations above chance.
    """
    count = 1200
    columns = [draw_labels(number, seed=3) for number in range(count)]
    labels = {name: np.array([row[name] for row in columns]) for name in FACTORS}
    spectra, first_frames = [], []
    for number in range(count):
        one = factor_scene(number, held_out=number >= count // 2, **SCENE)
        frames = np.stack([one.render(index) for index in (0, 13, 17)]).astype(np.float64)
        saturation = frames.max(axis=3) - frames.min(axis=3)
        first_frames.append(saturation[0].reshape(12, 4, 12, 4).mean(axis=(1, 3)))
        saturation = saturation[1:]
        saturation -= saturation.mean(axis=(1, 2), keepdims=True)
        spectrum = np.fft.fftshift(np.fft.fft2(saturation), axes=(1, 2))
        spectra.append(spectrum[:, 14:34, 14:34])
    first, second = np.stack(spectra, axis=1)
    still = _accuracies(np.sqrt(np.abs(second)), labels)
    placed = _accuracies(np.stack(first_frames), labels)  # where the digit is, at the start
    cross = first.conj() * second
    cross /= np.sqrt(np.abs(cross) + 1e-9)
    moving = _accuracies(np.concatenate([cross.real, cross.imag], axis=1), labels)
    chance = {name: 1 / len(classes) for name, classes in FACTORS.items()}
    limit = {name: c + 4 * np.sqrt(c * (1 - c) / (count / 2)) for name, c in chance.items()}
    assert still["appearance"] > 0.36
    assert still["scale"] > 0.56
    for factor in ("motion", "speed", "time"):
        assert max(still[factor], placed[factor]) < limit[factor], factor
    assert moving["motion"] > 0.23
    assert moving["speed"] > 0.41


def test_most_changes_of_the_mean_brightness_read_the_direction_of_time() -> None:
    """Of three changes over 0.2 s, at most one is the jump. Measured 99 %; the digit also grows or leaves."""
    scenes = [factor_scene(number, held_out=False, **SCENE) for number in range(100)]
    means = np.array([[one.render(index).mean() for index in (0, 6, 12, 18)] for one in scenes])
    forward = np.median(np.diff(means, axis=1), axis=1) < 0
    labels = np.array([draw_labels(number, seed=3)["time"] for number in range(100)])
    assert (forward == (labels == FACTORS["time"].index("forward"))).mean() >= 0.95


@pytest.mark.parametrize("factors", [1, 29])
def test_too_few_videos_are_refused(tmp_path: Path, factors: int) -> None:
    with pytest.raises(UserError, match=f"factors={factors}: use at least 30 videos"):
        write_sample_data(tmp_path, videos=12, factors=factors)
