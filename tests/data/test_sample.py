"""The sample data set: equal bytes, and classes that only the motion determines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.data.pictures import held_out_accuracy
from videomaskfeat.data.sample import AVA_FIRST_SECOND, sample_scene, write_sample_data
from videomaskfeat.data.sample_scenes import MOTIONS, make_scene, render_frame
from videomaskfeat.errors import UserError

SMALL = {"videos": 24, "frames": 8, "size": 32, "ava_videos": 4, "ava_seconds": 4}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample_data(folder, **SMALL, workers=2)
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_sample_data_is_the_same_bytes_for_any_number_of_workers(sample: Path, tmp_path: Path) -> None:
    write_sample_data(tmp_path, **SMALL, workers=1)
    assert _contents(tmp_path) == _contents(sample)


def test_sample_data_differs_with_the_seed(sample: Path, tmp_path: Path) -> None:
    write_sample_data(tmp_path, **SMALL, seed=1)
    name = "videos/000000.mp4"
    assert (tmp_path / name).read_bytes() != (sample / name).read_bytes()


def test_sample_video_is_h264_of_the_asked_size(sample: Path) -> None:
    with av.open(str(sample / "videos/000003.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 32, 32)
        assert sum(1 for _ in container.decode(stream)) == 8


def test_sample_lists_agree_with_each_other(sample: Path) -> None:
    labels = json.loads((sample / "something-something-v2-labels.json").read_text())
    assert sorted(map(int, labels.values())) == list(range(12))
    for csv_name, json_name in (("train", "train"), ("val", "validation")):
        rows = [line.split(" ") for line in (sample / f"{csv_name}.csv").read_text().splitlines()]
        items = json.loads((sample / f"something-something-v2-{json_name}.json").read_text())
        assert [path for path, _ in rows] == [f"videos/{item['id']}.mp4" for item in items]
        plain = [item["template"].replace("[", "").replace("]", "") for item in items]
        assert [label for _, label in rows] == [labels[template] for template in plain]
    assert "label" not in json.loads((sample / "something-something-v2-test.json").read_text())[0]
    assert len((sample / "classes.txt").read_text().splitlines()) == 12


def test_few_labels_are_as_many_of_each_class(tmp_path: Path) -> None:
    write_sample_data(tmp_path, videos=312, frames=1, size=32, ava_videos=0)
    few = (tmp_path / "train_few.csv").read_text().splitlines()
    assert few == (tmp_path / "train.csv").read_text().splitlines()[:240]
    assert sorted(row.split(" ")[1] for row in few) == sorted(
        str(label) for label in range(12) for _ in range(20)
    )


def _ava_rows(sample: Path, name: str) -> Iterator[list[str]]:
    return (line.split(",") for line in (sample / "ava/annotations" / name).read_text().splitlines())


def test_boxes_between_key_frames_are_those_of_the_key_frames_there(sample: Path) -> None:
    """Five times per second; at whole seconds, exactly the corners of the ground truth."""
    truth = {(row[0], float(row[1]), *row[2:6]) for row in _ava_rows(sample, "ava_val_v2.2.csv")}
    tracked = {(row[0], float(row[1]), *row[2:6]) for row in _ava_rows(sample, "ava_val_tracked_boxes.csv")}
    assert {row for row in tracked if row[1].is_integer()} == truth
    assert sorted({row[1] for row in tracked}) == [901, 901.2, 901.4, 901.6, 901.8, 902]


def test_sample_ava_rows_hold_boxes_inside_the_picture(sample: Path) -> None:
    keys: dict[tuple[str, int], set[str]] = {}
    for video, second, *corners, action, person in _ava_rows(sample, "ava_train_v2.2.csv"):
        x1, y1, x2, y2 = map(float, corners)
        assert 0 <= x1 < x2 <= 1
        assert 0 <= y1 < y2 <= 1
        assert 1 <= int(action) <= 12
        persons = keys.setdefault((video, int(second)), set())
        assert person not in persons
        persons.add(person)
    # Four seconds: the first and the last hold no key frame.
    assert {second for _, second in keys} == {AVA_FIRST_SECOND + 1, AVA_FIRST_SECOND + 2}
    assert max(map(len, keys.values())) >= 2
    for *_, action, score in _ava_rows(sample, "ava_val_predicted_boxes.csv"):
        assert action == ""
        assert 0 < float(score) <= 1


@pytest.mark.parametrize("label", range(len(MOTIONS)), ids=list(MOTIONS))
def test_motion_is_what_its_name_says(label: int) -> None:
    name = list(MOTIONS)[label]
    scene = sample_scene(label, frames=31, size=32, fps=30.0, seed=5)
    for sprite in scene.sprites:
        step = (np.diff(sprite.centers, axis=0) + 0.5) % 1.0 - 0.5  # the shortest way on the torus
        x, y = step.sum(axis=0)
        path = np.abs(step).sum(axis=0)
        turn = np.diff(sprite.turns)
        grown = np.median(
            np.diff(np.log(sprite.radii))
        )  # the median ignores the jump from largest to smallest
        curl = np.median(step[:-1, 0] * step[1:, 1] - step[:-1, 1] * step[1:, 0])
        expected = {
            "move left": x < -0.4, "move right": x > 0.4, "move up": y < -0.4, "move down": y > 0.4,
            "turn clockwise": np.all(turn > 0), "turn anticlockwise": np.all(turn < 0),
            "grow": grown > 0.01, "shrink": grown < -0.01,
            "bounce sideways": path[0] > 0.4 and abs(x) < 0.3,
            "bounce up and down": path[1] > 0.4 and abs(y) < 0.3,
            "circle clockwise": curl > 1e-5, "circle anticlockwise": curl < -1e-5,
        }  # fmt: skip
        assert expected[name]
        still = {"move": (1, 1), "turn": (0, 0), "grow": (0, 0), "shrink": (0, 0)}.get(
            name.split()[0], (1, 1)
        )
        assert still == (1, 1) or path.max() == 0


def test_turning_clockwise_turns_the_picture_clockwise() -> None:
    """The rendered picture, not only the numbers: a quarter turn on equals np.rot90 to the right."""
    rng = np.random.default_rng(2)
    scene = make_scene(["turn clockwise"], rng, frames=2, size=64, fps=1.0)
    sprite = scene.sprites[0]
    sprite.centers[:] = 0.5
    sprite.turns[:] = (0.0, 0.25)
    sprite.radii[:] = 0.3
    scene.background[:] = 0
    scene.drift[:] = 0
    before, after = (render_frame(scene, index).astype(int) for index in (0, 1))
    # Two levels: the soft rim is interpolated twice with rounding.
    assert np.abs(np.rot90(before, -1) - after).max() <= 2
    assert np.abs(np.rot90(before, 1) - after).max() > 50


# Center, angle and radius of the first sprite at frame 7, and the mean color of that frame, of three clips.
# The generator is frozen: docs/proof.md speaks of these videos, and another one would need another proof.
FROZEN: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    0: ((0.6659935, 0.0644618, 0.8953927, 0.2301538), (122.24, 112.82, 123.57)),
    5: ((0.1603247, 0.5772282, 0.451549, 0.2858081), (107.33, 134.07, 140.23)),
    11: ((0.1316608, 0.4203368, 0.541751, 0.1899669), (88.07, 111.19, 101.74)),
}


@pytest.mark.parametrize("number", [0, 5, 11])
def test_generator_is_frozen(number: int) -> None:
    """Positions to 1e-6 (numpy's generators are stable), colors to half a level (OpenCV may round anew)."""
    scene = sample_scene(number, frames=32, size=96, fps=30.0, seed=1)
    sprite = scene.sprites[0]
    pose = (*sprite.centers[7], sprite.turns[7], sprite.radii[7])
    color = render_frame(scene, 7).mean(axis=(0, 1))
    expected_pose, expected_color = FROZEN[number]
    assert pose == pytest.approx(expected_pose, abs=1e-6)
    assert tuple(color) == pytest.approx(expected_color, abs=0.5)


def _edges(frame: np.ndarray) -> np.ndarray:
    """Orientation histograms of 8x8 cells, the kind of feature a classifier would use."""
    gray = frame.astype(np.float64).mean(axis=2)
    y, x = np.gradient(gray)
    bins = (np.arctan2(y, x) / np.pi * 9 % 9).astype(int).clip(0, 8)
    cells = (np.hypot(x, y)[..., None] * np.eye(9)[bins]).reshape(6, 8, 6, 8, 9).sum(axis=(1, 3))
    return np.sqrt(cells).ravel()


def test_single_frames_tell_nothing_and_motion_tells_the_class() -> None:
    frames, number = 32, 600
    labels = np.arange(number) % len(MOTIONS)
    stills: dict[int, list[np.ndarray]] = {0: [], frames // 2: [], frames - 1: []}
    moving = []
    for index in range(number):
        scene = sample_scene(index, frames=frames, size=48, fps=30.0, seed=3)
        pictures = {at: render_frame(scene, at) for at in (*stills, 2)}
        for at, features in stills.items():
            small = cv2.resize(pictures[at], (12, 12), interpolation=cv2.INTER_AREA)
            features.append(np.concatenate([_edges(pictures[at]), small.ravel() / 64]))
        flow = cv2.calcOpticalFlowFarneback(
            *(cv2.cvtColor(pictures[at], cv2.COLOR_RGB2GRAY) for at in (0, 2)), None, 0.5, 2, 11, 3, 5, 1.1, 0
        )
        turn = np.arctan2(flow[..., 1], flow[..., 0])
        strength = np.hypot(flow[..., 0], flow[..., 1])
        moving.append(np.histogram(turn, bins=12, range=(-np.pi, np.pi), weights=strength)[0])
    chance = 1 / len(MOTIONS)
    spread = np.sqrt(chance * (1 - chance) / (number / 2))
    for features in stills.values():
        # Four standard deviations of a classifier that guesses.
        assert held_out_accuracy(np.stack(features), labels, train_fraction=0.5) < chance + 4 * spread
    # The same classifier on coarse motion of one instant does see classes, so it could have seen a trace.
    assert held_out_accuracy(np.stack(moving), labels, train_fraction=0.5) > chance + 6 * spread


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 33}, "size=33: .* use 34"),
        ({"videos": 3}, "each of the 12 classes needs a video; use at least 12"),
        ({"frames": 0}, "frames=0"),
        ({"fps": 0}, "between 1 and 240"),
        ({"ava_videos": 1}, "ava_videos=1.*at least 2"),
    ],
)
def test_sample_data_refuses_impossible_sizes(tmp_path: Path, arguments: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        write_sample_data(tmp_path, **arguments)  # type: ignore[arg-type]
