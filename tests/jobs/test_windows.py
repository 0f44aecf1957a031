"""Windows of long videos: their times, the clip of each, and `predict` and `extract-features` on them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.make_videos import read_number, uneven_times, write_video
from tests.jobs.weights_files import RECIPE, write_classifier, write_pretrained
from videomaskfeat.data.transforms import UniformCrop
from videomaskfeat.data.video import open_video
from videomaskfeat.data.windows import clip_seconds, window_times
from videomaskfeat.errors import UserError
from videomaskfeat.inference.classifiers import Predictions, load_classifier, load_encoder
from videomaskfeat.inference.multiview import Machine
from videomaskfeat.inference.windows import Windows, iter_window_clips
from videomaskfeat.jobs.features import extract_features
from videomaskfeat.jobs.predict import Predicted, WindowPredictions, _add_window_film, predict
from videomaskfeat.viz.labeled import Bar, draw_labeled

from .conftest import Verb

CPU = Machine("cpu")
FRAMES = 75  # 2.5 seconds at 30 per second


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An even video of 2.5 s, one with uneven frame times, and a short one of 0.2 s."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "even.mp4", frames=FRAMES)
    write_video(folder / "uneven.mp4", frames=60, milliseconds=uneven_times(60))
    write_video(folder / "short.mp4", frames=6)
    return folder


@pytest.mark.parametrize(
    ("duration", "window", "every", "expected"),
    [
        (5.0, 2, 1, [(0, 2), (1, 3), (2, 4), (3, 5)]),
        (5.5, 2, 1, [(0, 2), (1, 3), (2, 4), (3, 5), (4, 5.5)]),
        (2.0, 2, 1, [(0, 2)]),
        (1.2, 2, 1, [(0, 1.2)]),
        (7.0, 2, 3, [(0, 2), (3, 5), (6, 7)]),
        (6.0, 2, 5, [(0, 2), (5, 6)]),
        (4.0, 2, 5, [(0, 2)]),  # the next one would start after the end
    ],
)
def test_windows_cover_the_video(
    duration: float, window: float, every: float, expected: list[tuple[float, float]]
) -> None:
    np.testing.assert_array_equal(window_times(duration, window=window, every=every), expected)


def test_windows_need_a_length() -> None:
    with pytest.raises(UserError, match="window=0, every=1: both must be seconds above 0"):
        window_times(5, window=0, every=1)


def test_segments_are_spread_over_the_window() -> None:
    times = np.array([[0.0, 2.0], [1.0, 2.0]])
    seconds = clip_seconds(times, 0.0, frames=4, stride=8, sampling="segments")
    np.testing.assert_array_equal(seconds, [[0.25, 0.75, 1.25, 1.75], [1.125, 1.375, 1.625, 1.875]])


def nearest(shown: np.ndarray, time: float) -> int:
    """The frame nearest to a time; from 0.48 of the way on, the later one, as in `TimedReader`."""
    before = int(np.clip(np.searchsorted(shown, time, side="right") - 1, 0, len(shown) - 2))
    return before + int((time - shown[before]) / (shown[before + 1] - shown[before]) >= 0.48)


@pytest.mark.parametrize("name", ["even.mp4", "uneven.mp4"])
def test_clip_of_a_window_is_the_one_cut_by_hand(videos: Path, name: str) -> None:
    """Frames nearest to 4 times, 2/30 s apart, around the middle of the window; bit for bit."""
    path = str(videos / name)
    groups = list(iter_window_clips(path, RECIPE, Windows(1.0, 0.4)))
    times, clips = np.concatenate([one for one, _ in groups]), torch.cat([one for _, one in groups])
    with open_video(path) as video:
        uneven = np.array(uneven_times(60)) / 1e3
        shown = np.arange(FRAMES) / 30 if name == "even.mp4" else uneven - uneven[0]
        assert len(times) == len(clips) == (5 if name == "even.mp4" else 6)
        for (start, end), clip in zip(times, clips, strict=True):
            middle = (start + end) / 2
            indices = [nearest(shown, middle + (2 * i - 4) / 30) for i in range(4)]
            frames = video.read(indices)
            expected = UniformCrop(32, 32).sample(*frames.shape[1:3]).apply_clip(frames)
            np.testing.assert_array_equal(clip.numpy(), expected)


def test_windows_of_a_short_video_repeat_its_frames(videos: Path) -> None:
    ((times, clips),) = iter_window_clips(str(videos / "short.mp4"), RECIPE, Windows(2.0, 1.0))
    np.testing.assert_allclose(times, [[0, 0.2]], atol=1e-9)
    assert clips.shape == (1, 4, 32, 32, 3)
    ((_, three),) = iter_window_clips(
        str(videos / "short.mp4"), RECIPE.with_views(views=1, crops=3), Windows(2.0, 1.0)
    )
    assert three.shape == (3, 4, 32, 32, 3)


def assert_film_shows(film: Path, video: Path, bars: list[list[Bar]], times: np.ndarray) -> None:
    """Each of `FRAMES` frames has its number, and below it the bars of the window with the nearest middle.

    The bars are found by comparison with those of all windows.
    """
    with open_video(video) as source:
        sheets = [next(draw_labeled([source.read([0])[0]], one)) for one in bars]
    distances = [np.abs(a[213:].astype(int) - b[213:]).mean() for a in sheets for b in sheets if a is not b]
    assert min(distances) > 1, "the windows look alike"
    with open_video(film) as decoded:
        assert decoded.frames == FRAMES
        assert decoded.fps == pytest.approx(30)
        for number in range(FRAMES):
            picture = decoded.read([number])[0]
            left = (picture.shape[1] - 320) // 2
            assert read_number(picture[:213, left : left + 320]) == number
            nearest = min(range(len(times)), key=lambda n: abs(times[n].sum() / 2 - number / 30))
            errors = [np.abs(sheet[213:].astype(int) - picture[213:]).mean() for sheet in sheets]
            assert int(np.argmin(errors)) == nearest, (number, errors)


def test_film_of_windows_shows_the_window_of_each_moment(videos: Path, tmp_path: Path) -> None:
    """The windows do not overlap, and the best class differs between them."""
    times = np.array([[0.0, 0.5], [0.7, 1.2], [1.4, 1.9], [2.1, 2.5]])
    names = ("jump", "sit", "wave", "write")
    path = str(videos / "even.mp4")
    shares = torch.tensor([[9, 1, 0, 0], [1, 6, 1, 2], [0, 0, 10, 0], [2, 2, 2, 4]]) / 10
    predictions = [Predictions(path, one, names) for one in shares]
    result = Predicted({})
    _add_window_film(result, WindowPredictions(path, times, predictions), tmp_path / "film.mp4", "auto")
    assert result.films == [tmp_path / "film.mp4"]
    bars = [[Bar(entry.text, entry.probability) for entry in one.top(3)] for one in predictions]
    assert_film_shows(tmp_path / "film.mp4", videos / "even.mp4", bars, times)


def test_classes_of_windows_as_json_csv_and_film(videos: Path, tmp_path: Path, verb: Verb) -> None:
    weights = write_classifier(tmp_path / "w.safetensors")
    path = videos / "even.mp4"
    files = ["--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv", "--out", tmp_path / "films"]
    code, out, err = verb(
        "predict", weights, path, videos / "gone.mp4", "--window", "1", "--every", "0.4", "--top", "2", *files
    )
    assert code == 3, err
    assert "gone.mp4: no such file" in err
    lines = out.splitlines()
    assert lines[0] == str(path)
    assert lines[5].split()[:4] == ["1.60", "-", "2.50", "s"]
    (document,) = json.loads((tmp_path / "a.json").read_text())
    assert document["protocol"]["window_seconds"] == 1.0
    assert document["protocol"]["every_seconds"] == 0.4
    classifier = load_classifier(weights, device="cpu")
    ((times, clips),) = iter_window_clips(str(path), RECIPE, Windows(1.0, 0.4))
    expected = classifier.clip_probabilities(clips, views=1)
    assert len(document["windows"]) == len(times) == 5
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    for number, window in enumerate(document["windows"]):
        assert (window["start_seconds"], window["end_seconds"]) == tuple(np.round(times[number], 6))
        best = window["predictions"][0]
        assert best["label"] == int(expected[number].argmax())
        assert best["probability"] == float(expected[number].max())
        row = rows[2 * number]
        assert (row["path"], row["name"]) == (str(path), best["name"])
        assert float(row["start_seconds"]) == pytest.approx(times[number, 0])
        assert float(row["probability"]) == pytest.approx(best["probability"], abs=1e-6)
    film = tmp_path / "films/even_labels.mp4"
    with open_video(film) as decoded:
        assert decoded.frames == FRAMES
        picture = decoded.read([40])[0]
        left = (picture.shape[1] - 320) // 2
        assert read_number(picture[:213, left : left + 320]) == 40


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every": 1.0}, "every=1 is the distance of windows; set window=SECONDS, too"),
        ({"window": 1.0, "views": 3}, "views=3 with window=1: a window has one view"),
    ],
)
def test_wrong_windows_are_named(
    videos: Path, tmp_path: Path, arguments: dict[str, float], words: str
) -> None:
    weights = write_classifier(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=words):
        predict(weights, [str(videos / "even.mp4")], machine=CPU, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_features_of_windows_and_their_times(videos: Path, tmp_path: Path, form: str) -> None:
    weights, out = write_pretrained(tmp_path / "w.safetensors"), tmp_path / "out"
    (tmp_path / "list.csv").write_text(
        "".join(
            f"{videos / name} {label}\n" for label, name in enumerate(["even.mp4", "no.mp4", "uneven.mp4"])
        )
    )
    options = {"window": 1.0, "every": 0.4, "form": form, "machine": CPU}
    result = extract_features(weights, str(tmp_path / "list.csv"), out, **options)  # type: ignore[arg-type]
    assert [str(failure) for failure in result.failures] == [f"{videos / 'no.mp4'}: no such file"]
    encoder = load_encoder(weights, device="cpu")
    count = 0
    for name in ("even", "uneven"):
        ((times, clips),) = iter_window_clips(str(videos / f"{name}.mp4"), encoder.recipe, Windows(1.0, 0.4))
        if form == "npz":
            with np.load(out / f"{name}.npz") as arrays:
                feats, own = arrays["feats"], arrays["times"]
        else:
            feats, own = np.load(out / f"{name}.npy"), np.load(out / f"{name}_times.npy")
        np.testing.assert_array_equal(own, times)
        np.testing.assert_array_equal(feats, encoder.clip_features(clips, views=1).numpy())
        count += len(times)
    assert result.shape == (count, feats.shape[1])
    with open(out / "index.csv", newline="") as file:
        index = list(csv.DictReader(file))
    assert [(row["file"], row["label"]) for row in index] == [(f"even.{form}", "0"), (f"uneven.{form}", "2")]
    # The same command keeps finished videos and repeats missing ones.
    before = (out / f"even.{form}").stat().st_mtime_ns
    (out / f"uneven.{form}").unlink()
    again = extract_features(weights, str(tmp_path / "list.csv"), out, **options)  # type: ignore[arg-type]
    assert again.shape == result.shape
    assert (out / f"even.{form}").stat().st_mtime_ns == before
    assert (out / f"uneven.{form}").exists()
    with pytest.raises(UserError, match=r"features with other settings \(every_seconds\)"):
        extract_features(weights, str(tmp_path / "list.csv"), out, **{**options, "every": 0.5})  # type: ignore[arg-type]


def test_window_features_have_no_grid(videos: Path, tmp_path: Path) -> None:
    weights = write_pretrained(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="grid with window: windows have pooled features"):
        extract_features(weights, str(videos), tmp_path / "out", window=1.0, grid=True, machine=CPU)
