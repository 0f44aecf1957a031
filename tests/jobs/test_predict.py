"""``predict``: classes as text, as JSON and drawn into the videos; unreadable videos are reported."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import simplejson

from tests.data.make_videos import numbered_picture, read_number, uneven_times, write_video
from tests.jobs.weights_files import NAMES, RECIPE, write_classifier, write_pretrained
from videomaskfeat.cli import main
from videomaskfeat.data.video import VideoReadError, open_video
from videomaskfeat.errors import UserError
from videomaskfeat.inference.classifiers import load_classifier
from videomaskfeat.inference.multiview import Machine
from videomaskfeat.jobs.predict import predict

CPU = Machine("cpu")
Verb = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("weights") / "classifier.safetensors")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, one of them in a subfolder, and a file that is not a video."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    write_video(folder / "a.mp4", frames=20)
    write_video(folder / "more/b.mp4", frames=9, width=64, height=96)
    (folder / "c_bad.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str]) -> Verb:
    """``verb(*arguments) -> (exit code, stdout, stderr)`` of ``predict`` on the CPU."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["predict", *map(str, arguments), "--device", "cpu"])
        return code, *capsys.readouterr()

    return run


def film_numbers(path: Path, height: int, width: int) -> list[int]:
    """The numbers in the frames of a film; they were drawn at this size and not resized."""
    with open_video(path) as film:
        pictures = film.read(range(film.frames))
    left = (pictures.shape[2] - width) // 2
    return [read_number(picture[:height, left : left + width]) for picture in pictures]


def test_videos_are_classified_and_unreadable_ones_reported(weights: Path, videos: Path, verb: Verb) -> None:
    paths = [str(videos / name) for name in ("a.mp4", "c_bad.mp4", "more/b.mp4", "nowhere.mp4")]
    code, out, err = verb(weights, *paths, "--top", "2")
    assert code == 3
    expected = []
    classifier = load_classifier(weights, device="cpu")
    for path in (paths[0], paths[2]):
        expected.append(path)
        for entry in classifier.predict(path).top(2):
            expected.append(f"{100 * entry.probability:7.2f} %  {NAMES[entry.label]}")
    assert out.splitlines() == expected
    assert err.splitlines() == [
        f"videomaskfeat predict: {paths[1]}: not a video file",
        f"videomaskfeat predict: {paths[3]}: no such file",
    ]


def test_folder_stands_for_its_videos(weights: Path, videos: Path, tmp_path: Path, verb: Verb) -> None:
    code, out, err = verb(weights, videos, "--top", "1")
    assert code == 3
    paths = [line for line in out.splitlines() if not line.startswith(" ")]
    assert paths == [str(videos / "a.mp4"), str(videos / "more/b.mp4")]
    assert "c_bad.mp4: not a video file" in err
    code, _, err = verb(weights, tmp_path)
    assert code == 2
    assert "contains no videos or pictures" in err


def test_json_has_labels_names_probabilities_and_protocol(
    weights: Path, videos: Path, tmp_path: Path, verb: Verb
) -> None:
    path, target = str(videos / "a.mp4"), tmp_path / "new/labels.json"
    arguments = [weights, path, "--top", "3", "--views", "4"]
    code, out, _ = verb(*arguments, "--json", target)
    assert code == 0
    assert out.startswith(path)
    (video,) = simplejson.loads(target.read_text())
    top = load_classifier(weights, device="cpu").predict(path, views=4).top(3)
    assert video["path"] == path
    assert video["predictions"] == [
        {"label": entry.label, "name": entry.name, "probability": pytest.approx(entry.probability, abs=1e-9)}
        for entry in top
    ]
    assert video["protocol"] == {
        "weights": str(weights),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "views": 4,
        "crops": 1,
        "sampling": "clip",
        "frames": 4,
        "stride": 2,
        "target_fps": 30.0,
        "short_video": "clamp",
        "crop": 32,
        "short_side": 32,
        "mean": 0.45,
        "std": 0.225,
        "average": "softmax",
        "precision": "fp32",
    }
    code, out, _ = verb(*arguments, "--json", "-")
    assert code == 0
    assert simplejson.loads(out) == [video]
    code, _, err = verb(*arguments, "--json", target)
    assert code == 2
    assert "labels.json exists: it is the output of an earlier command" in err


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_output_below_a_file_is_refused_before_any_video(
    weights: Path, videos: Path, tmp_path: Path, verb: Verb, option: str
) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = verb(weights, videos / "a.mp4", option, tmp_path / "file" / "x" / "y")
    assert (code, out) == (2, "")
    assert f"cannot be a folder, since {tmp_path}/file is a file; choose another path" in err


def test_classes_without_names_are_numbers(videos: Path, tmp_path: Path, verb: Verb) -> None:
    path = write_classifier(tmp_path / "nameless.safetensors", replace(RECIPE, class_names=()))
    code, out, _ = verb(path, videos / "a.mp4", "--top", "99")
    assert code == 0
    words = [line.split("%  ")[1] for line in out.splitlines()[1:]]
    assert sorted(words) == [f"class {label}" for label in range(7)]
    code, out, _ = verb(path, videos / "a.mp4", "--json", "-")
    assert code == 0
    (video,) = simplejson.loads(out)
    assert {entry["name"] for entry in video["predictions"]} == {None}


def test_file_names_need_not_be_utf8(weights: Path, videos: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    shutil.copy(videos / "a.mp4", name)
    films = tmp_path / "films"
    command = [sys.executable, "-m", "videomaskfeat", "predict", weights, tmp_path, "--out", films]
    done = subprocess.run(
        [*command, "--device", "cpu"],
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert (lines[0], lines[-1]) == (f"{tmp_path}/caf\\xe9.mp4", f"{films}/caf\\xe9_labels.mp4")
    with open_video(films / os.fsdecode(b"caf\xe9_labels.mp4"), "auto") as film:
        assert film.frames == 20
    with pytest.raises(VideoReadError, match="decord cannot open files with names that are not UTF-8"):
        open_video(os.fsdecode(name), "decord")


def test_worker_processes_give_equal_predictions(weights: Path, videos: Path) -> None:
    path = str(videos / "more")
    zero, one = (predict(weights, [path], machine=Machine("cpu", workers=workers)) for workers in (0, 1))
    assert zero.predictions[0].probabilities.tolist() == one.predictions[0].probabilities.tolist()


def test_no_readable_video_is_a_mistake(weights: Path, videos: Path, verb: Verb) -> None:
    code, _, err = verb(weights, videos / "c_bad.mp4", "nowhere.mp4")
    assert code == 2
    assert "none of the 2 videos could be read; the first: " in err


def test_list_belongs_to_evaluate(weights: Path, tmp_path: Path, verb: Verb) -> None:
    path = tmp_path / "list.csv"
    path.write_text("a.mp4 3\n")
    code, _, err = verb(weights, path)
    assert code == 2
    assert "list.csv is a list; give videos, or score the list with `videomaskfeat evaluate WEIGHTS" in err


def test_wrong_weights_are_refused(videos: Path, tmp_path: Path, verb: Verb) -> None:
    pretrained = write_pretrained(tmp_path / "pretrained.safetensors")
    for path, words in (
        (pretrained, "weights of a pre-training run, not weights of a classifier"),
        (tmp_path / "model.pyth", "videomaskfeat import-slowfast --config X.yaml --checkpoint X.pyth OUT"),
        (tmp_path, "is a folder; give the weights file in it"),
        (tmp_path / "nowhere.safetensors", "no such file"),
    ):
        code, _, err = verb(path, videos / "a.mp4")
        assert code == 2
        assert words in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "machine", "words"),
    [
        ({"top": 0}, {}, "top 0: must be at least 1 class"),
        ({"views": 0}, {}, "views=0, crops=1: there must be at least 1 view"),
        ({"crops": 5}, {}, "views=2, crops=5: .*1 crop"),
        ({}, {"reader": "ffmpeg"}, "reader 'ffmpeg' is unknown; choose from auto, decord, pyav"),
        ({}, {"precision": "half"}, "precision 'half' is unknown; choose from auto, fp32, bf16"),
        ({}, {"device": "tpu"}, "device='tpu': must be auto, cpu, cuda"),
        ({}, {"workers": -1}, "workers=-1: must be at least 0"),
    ],
)
def test_wrong_arguments_are_named(
    weights: Path, videos: Path, arguments: dict[str, int], machine: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        predict(weights, [str(videos / "a.mp4")], **arguments, machine=Machine(**machine))


def test_segments_have_one_view(videos: Path, tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "ssv2.safetensors", replace(RECIPE, sampling="segments", views=1))
    with pytest.raises(UserError, match="views=3 with sampling=segments"):
        predict(path, [str(videos / "a.mp4")], views=3, machine=CPU)
    assert predict(path, [str(videos / "a.mp4")], crops=3, machine=CPU).protocol["sampling"] == "segments"


KINDS = {
    "plain": {},
    "sound": {"audio": True},
    "one_frame": {"frames": 1},
    "odd": {"width": 97, "height": 65, "pixels": "yuv444p"},
    "portrait": {"width": 66, "height": 98},
    "vfr": {"milliseconds": uneven_times()},
    "turned": {"rotation": -90},
}


def test_film_shows_every_frame_of_any_kind_of_video(weights: Path, tmp_path: Path) -> None:
    for name, arguments in KINDS.items():
        write_video(tmp_path / f"{name}.mp4", **{"frames": 48, **arguments})
    paths = [str(tmp_path / f"{name}.mp4") for name in KINDS]
    result = predict(weights, paths, out=tmp_path / "films", machine=CPU)
    assert [film.name for film in result.films] == [f"{name}_labels.mp4" for name in KINDS]
    assert not result.failures
    # As displayed, enlarged to a width of 320 pixels; the rotated video is upright in its file.
    heights = {"odd": 214, "portrait": 475, "turned": 480}
    for film, (name, arguments) in zip(result.films, KINDS.items(), strict=True):
        drawn = heights.get(name, 213)
        if name != "turned":
            count = arguments.get("frames", 48)
            assert film_numbers(film, drawn, 320) == list(range(count)), name
        with av.open(str(film)) as opened:
            stream = opened.streams.video[0]
            assert (stream.width, stream.height) == (320, drawn + 122 + drawn % 2), name
            if name == "vfr":
                seconds = float(stream.duration * stream.time_base)
                with open_video(tmp_path / "vfr.mp4") as source:
                    assert seconds == pytest.approx(48 / source.fps, rel=0.01)
            elif name != "one_frame":
                assert float(stream.average_rate) == pytest.approx(30)


def test_bars_in_the_film_are_the_probabilities(weights: Path, videos: Path, tmp_path: Path) -> None:
    result = predict(weights, [str(videos / "a.mp4")], out=tmp_path, machine=CPU)
    with open_video(result.films[0]) as film:
        picture = film.read([0])[0]
    bars = picture[213:].astype(int)
    # Light blue bars on a dark background, in the middle row of each; H.264 blurs their ends.
    lengths = [int((bars[10 + 34 * line + 24, 10:310, 2] > 150).sum()) for line in range(3)]
    expected = [300 * entry.probability for entry in result.predictions[0].top(3)]
    np.testing.assert_allclose(lengths, expected, atol=4)


def test_films_with_equal_names_do_not_replace_each_other_or_the_videos(
    weights: Path, videos: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("x.mp4", "more/x.mp4", "x.mkv")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(videos / "a.mp4", path)
    content = paths[0].read_bytes()
    result = predict(weights, list(map(str, paths)), out=tmp_path, machine=CPU)
    assert [film.name for film in result.films] == ["x_labels.mp4", "x_labels_2.mp4", "x_labels_3.mp4"]
    assert paths[0].read_bytes() == content


def test_video_damaged_outside_its_views_is_classified_without_film(
    weights: Path, tmp_path: Path, verb: Verb
) -> None:
    pictures, films = tmp_path / "pictures", tmp_path / "films"
    pictures.mkdir()
    for number in range(20):
        cv2.imwrite(str(pictures / f"{number:02d}.png"), numbered_picture(number, 48, 32))
    (pictures / "18.png").write_bytes(b"no picture")
    code, out, err = verb(weights, pictures, "--views", "1", "--out", films)
    assert code == 3
    assert out.splitlines()[0] == str(pictures)
    assert "no annotated video: 18.png: not a picture" in err
    assert list(films.iterdir()) == []
