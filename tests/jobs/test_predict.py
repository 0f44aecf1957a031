"""``predict``: labels as text, as JSON and in the video; good videos answered, bad ones reported."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

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
from videomaskfeat.jobs.predict import predict


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("weights") / "classifier.safetensors")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, one of them a folder down, and a file that is none."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    write_video(folder / "a.mp4", frames=20)
    write_video(folder / "more/b.mp4", frames=9, width=64, height=96)
    (folder / "c_bad.mp4").write_bytes(b"no video")
    return folder


def film_numbers(path: Path, height: int, width: int) -> list[int]:
    """The numbers in the frames of a film, drawn from pictures of this size without change of it."""
    with open_video(path) as film:
        pictures = film.read(range(film.frames))
    left = (pictures.shape[2] - width) // 2
    return [read_number(picture[:height, left : left + width]) for picture in pictures]


def test_good_videos_are_answered_and_bad_ones_reported(
    weights: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(videos / name) for name in ("a.mp4", "c_bad.mp4", "more/b.mp4", "nowhere.mp4")]
    assert main(["predict", str(weights), *paths, "--top", "2", "--device", "cpu"]) == 3
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [paths[0], paths[2]]
    classifier = load_classifier(weights, device="cpu")
    for path, start in ((paths[0], 0), (paths[2], 3)):
        best, second = classifier.predict(path).top(2)
        assert lines[start + 1] == f"{100 * best.probability:7.2f} %  {NAMES[best.label]}"
        assert lines[start + 2] == f"{100 * second.probability:7.2f} %  {NAMES[second.label]}"
    assert len(lines) == 6
    assert said.err.splitlines() == [
        f"videomaskfeat predict: {paths[1]}: not a video file",
        f"videomaskfeat predict: {paths[3]}: no such file",
    ]


def test_folder_stands_for_its_videos(
    weights: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(weights), str(videos), "--top", "1", "--device", "cpu"]) == 3
    said = capsys.readouterr()
    paths = [line for line in said.out.splitlines() if not line.startswith(" ")]
    assert paths == [str(videos / "a.mp4"), str(videos / "more/b.mp4")]
    assert "c_bad.mp4: not a video file" in said.err
    assert main(["predict", str(weights), str(tmp_path)]) == 2
    assert "holds no videos or pictures" in capsys.readouterr().err


def test_json_holds_labels_names_probabilities_and_protocol(
    weights: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, target = str(videos / "a.mp4"), tmp_path / "new/labels.json"
    arguments = ["predict", str(weights), path, "--top", "3", "--views", "4", "--device", "cpu"]
    assert main([*arguments, "--json", str(target)]) == 0
    assert capsys.readouterr().out.startswith(path)
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
    assert main([*arguments, "--json", "-"]) == 0
    assert simplejson.loads(capsys.readouterr().out) == [video]


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_file_above_what_is_written_is_named_before_any_video(
    weights: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "file").write_text("")
    command = ["predict", str(weights), str(videos / "a.mp4"), "--device", "cpu"]
    assert main([*command, option, str(tmp_path / "file" / "x" / "y")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"cannot be a folder, since {tmp_path}/file is a file; choose another path" in said.err


def test_classes_without_names_are_numbers(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_classifier(tmp_path / "nameless.safetensors", replace(RECIPE, class_names=()))
    assert main(["predict", str(path), str(videos / "a.mp4"), "--top", "99", "--device", "cpu"]) == 0
    words = [line.split("%  ")[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert sorted(words) == [f"class {label}" for label in range(7)]
    assert main(["predict", str(path), str(videos / "a.mp4"), "--json", "-", "--device", "cpu"]) == 0
    (video,) = simplejson.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in video["predictions"]} == {None}


def test_file_names_need_not_be_utf8(weights: Path, videos: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    shutil.copy(videos / "a.mp4", name)
    command = [
        "-m",
        "videomaskfeat",
        "predict",
        str(weights),
        str(tmp_path),
        "--out",
        str(tmp_path / "films"),
    ]
    done = subprocess.run(
        [sys.executable, *command, "--device", "cpu"],
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert (lines[0], lines[-1]) == (f"{tmp_path}/caf\\xe9.mp4", f"{tmp_path}/films/caf\\xe9_labels.mp4")
    with open_video(tmp_path / "films" / os.fsdecode(b"caf\xe9_labels.mp4"), "auto") as film:
        assert film.frames == 20
    with pytest.raises(VideoReadError, match="decord opens no file whose name is not UTF-8"):
        open_video(os.fsdecode(name), "decord")


def test_worker_processes_give_the_same(weights: Path, videos: Path) -> None:
    path = str(videos / "more")
    here, there = (predict(weights, [path], device="cpu", workers=workers) for workers in (0, 1))
    assert here.predictions[0].probabilities.tolist() == there.predictions[0].probabilities.tolist()


def test_all_unreadable_is_the_users_mistake(
    weights: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(weights), str(videos / "c_bad.mp4"), "nowhere.mp4", "--device", "cpu"]) == 2
    assert "none of the 2 videos could be read; the first: " in capsys.readouterr().err


def test_list_is_sent_to_evaluate(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list.csv"
    path.write_text("a.mp4 3\n")
    assert main(["predict", str(weights), str(path), "--device", "cpu"]) == 2
    assert "list.csv: is a list, and videos are needed here; score a list with `videomaskfeat evaluate" in (
        capsys.readouterr().err
    )


def test_wrong_weights_are_refused(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = str(videos / "a.mp4")
    pretrained = write_pretrained(tmp_path / "pretrained.safetensors")
    for path, words in (
        (pretrained, "weights of a pre-training run, and a classifier's are needed"),
        (tmp_path / "model.pyth", "videomaskfeat import-slowfast --config X.yaml --checkpoint X.pyth OUT"),
        (tmp_path, "is a folder; give the weights file in it"),
        (tmp_path / "nowhere.safetensors", "no such file"),
    ):
        assert main(["predict", str(path), video]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"top": 0}, "top 0: must be at least 1 class"),
        ({"views": 0}, "views=0, crops=1: there must be at least 1 view"),
        ({"crops": 5}, "views=2, crops=5: .*1 crop"),
        ({"reader": "ffmpeg"}, "reader 'ffmpeg' is unknown; there are auto, decord, pyav"),
        ({"precision": "half"}, "precision 'half' is unknown; there are auto, fp32, bf16"),
        ({"device": "tpu"}, "device='tpu': must be auto, cpu, cuda"),
        ({"workers": -1}, "workers=-1: must be at least 0"),
    ],
)
def test_wrong_arguments_are_named(weights: Path, videos: Path, arguments: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        predict(weights, [str(videos / "a.mp4")], **arguments)


def test_segments_have_one_view(videos: Path, tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "ssv2.safetensors", replace(RECIPE, sampling="segments", views=1))
    with pytest.raises(UserError, match="views=3 with sampling=segments"):
        predict(path, [str(videos / "a.mp4")], views=3, device="cpu")
    assert predict(path, [str(videos / "a.mp4")], crops=3, device="cpu").protocol["sampling"] == "segments"


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
    result = predict(
        weights, [str(tmp_path / f"{name}.mp4") for name in KINDS], out=tmp_path / "films", device="cpu"
    )
    assert [film.name for film in result.films] == [f"{name}_labels.mp4" for name in KINDS]
    assert not result.failures
    # As displayed, enlarged to 320 pixels of width; a turned one is upright in the file and lies on its side.
    heights = {"odd": 214, "portrait": 475, "turned": 480}
    for film, (name, arguments) in zip(result.films, KINDS.items(), strict=True):
        if name != "turned":
            count = arguments.get("frames", 48)
            assert film_numbers(film, heights.get(name, 213), 320) == list(range(count)), name
        with av.open(str(film)) as opened:
            stream = opened.streams.video[0]
            drawn = heights.get(name, 213)
            assert (stream.width, stream.height) == (320, drawn + 122 + drawn % 2), name
            if name == "vfr":
                seconds = float(stream.duration * stream.time_base)
                with open_video(tmp_path / "vfr.mp4") as source:
                    assert seconds == pytest.approx(48 / source.fps, rel=0.01)
            elif name != "one_frame":
                assert float(stream.average_rate) == pytest.approx(30)


def test_film_says_what_the_text_says(weights: Path, videos: Path, tmp_path: Path) -> None:
    result = predict(weights, [str(videos / "a.mp4")], out=tmp_path, device="cpu")
    with open_video(result.films[0]) as film:
        picture = film.read([0])[0]
    bars = picture[213:].astype(int)
    # The light blue of the bars against their dark ground, on the middle row of each; H.264 smears its ends.
    lengths = [int((bars[10 + 34 * line + 24, 10:310, 2] > 150).sum()) for line in range(3)]
    expected = [300 * entry.probability for entry in result.predictions[0].top(3)]
    np.testing.assert_allclose(lengths, expected, atol=4)


def test_films_of_one_name_and_the_videos_themselves_are_kept(
    weights: Path, videos: Path, tmp_path: Path
) -> None:
    for name in ("x.mp4", "more/x.mp4", "x.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(videos / "a.mp4", tmp_path / name)
    content = (tmp_path / "x.mp4").read_bytes()
    paths = [str(tmp_path / name) for name in ("x.mp4", "more/x.mp4", "x.mkv")]
    result = predict(weights, paths, out=tmp_path, device="cpu")
    assert [film.name for film in result.films] == ["x_labels.mp4", "x_labels_2.mp4", "x_labels_3.mp4"]
    assert (tmp_path / "x.mp4").read_bytes() == content


def test_video_damaged_where_no_view_looks_is_answered_without_film(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(20):
        cv2.imwrite(str(pictures / f"{number:02d}.png"), numbered_picture(number, 48, 32))
    (pictures / "18.png").write_bytes(b"no picture")
    arguments = ["predict", str(weights), str(pictures), "--views", "1", "--out", str(tmp_path / "films")]
    assert main([*arguments, "--device", "cpu"]) == 3
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == str(pictures)
    assert "no annotated video: 18.png: no picture" in said.err
    assert list((tmp_path / "films").iterdir()) == []
