"""``detect``: actions of persons in videos, from a boxes file or a plug-in, as JSON, rows and a film."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import simplejson
import torch

from tests.data.make_videos import copy_to_avi, read_number, uneven_times, write_video
from videomaskfeat.ava import VideoNames, read_detections
from videomaskfeat.cli import main
from videomaskfeat.data.transforms import WholeFrame
from videomaskfeat.data.video import open_video
from videomaskfeat.errors import UserError
from videomaskfeat.inference.detectors import VideoDetector, load_detector
from videomaskfeat.inference.person_boxes import read_boxes
from videomaskfeat.inference.persons import KeyFrameActions, VideoActions, find_actions
from videomaskfeat.jobs.detect_video import Detected, Timeline, detect_videos, write_film, write_rows
from videomaskfeat.models import create_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.schemas.detect_video import DetectFiles, DetectVideoConfig
from videomaskfeat.stored_recipe import DETECT_KEY, DetectRecipe

RECIPE = DetectRecipe(
    ClipRecipe(frames=4, stride=2, crop=32),
    {1: "bend", 2: "stand", 4: "sing"},
    4,
    poses=(1, 2),
    short_side=32,
)
FRAMES = 75  # 2.5 s at 30 fps


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model(
        "maskfeat_mvitv2_nano_detector", depth=2, width=8, clip_size=(4, 32, 32), classes=4, head_scale=30.0
    )
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_model(model, path, metadata={DETECT_KEY: RECIPE.to_json()})
    return path


@pytest.fixture(scope="module")
def detector(weights: Path) -> VideoDetector:
    return load_detector(weights)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with two persons, and a file with its boxes and those of another video."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", frames=FRAMES)
    rows = [f"a,{t:04d},{0.1 + 0.1 * t:.3f},0.2,{0.4 + 0.1 * t:.3f},0.9,,0.95\n" for t in range(3)]
    rows += ["a,0000,0.6,0.1,0.9,1.0,,0.9\n", "a,0002,0.6,0.1,0.9,1.0,,0.85\n", "a,0001,0,0,0.2,0.2,,0.3\n"]
    rows += ["b,0001,0.1,0.1,0.5,0.5,,0.9\n"]
    (folder / "boxes.csv").write_text("".join(rows))
    return folder


def detect(weights: Path, videos: list[Path], out: Path, **options: Any) -> Detected:
    """Run the job on the CPU; each option belongs to the section of the config that has it."""
    config = DetectVideoConfig(DetectFiles(str(weights), [str(video) for video in videos], str(out)))
    for name, value in {"device": "cpu", **options}.items():
        section = next(one for one in (config.persons, config.actions, config.machine) if hasattr(one, name))
        setattr(section, name, value)
    return detect_videos(config)


def left_half(pictures: np.ndarray) -> list[np.ndarray]:
    """A person in the left half of each frame with an even number."""
    height, width = pictures.shape[1:3]
    person = np.array([[0.0, 0, width / 2, height, 0.9]])
    return [person[read_number(picture) % 2 :] for picture in pictures]


def test_scores_are_those_of_the_clip_around_each_key_frame(detector: VideoDetector, videos: Path) -> None:
    """Against the network called by hand on frames read by their numbers, one key frame at a time."""
    result = find_actions(detector, videos / "a.mp4", boxes=videos / "boxes.csv", smooth_seconds=0)
    assert [frame.seconds for frame in result.key_frames] == [0, 1, 2]
    geometry = WholeFrame(32, detector.model.patch_embed.stride[1]).sample(64, 96)
    for frame in result.key_frames:
        middle = round(frame.seconds * 30)
        with open_video(videos / "a.mp4") as video:
            pictures = video.read(np.clip(middle + np.array([-4, -2, 0, 2]), 0, FRAMES - 1))
        boxes = geometry.apply_boxes(frame.boxes * np.array([96, 64, 96, 64], np.float32))
        numbered = torch.from_numpy(np.pad(boxes, ((0, 0), (1, 0))))
        expected = detector.scores(torch.from_numpy(geometry.apply_clip(pictures))[None], numbered)
        # One clip at a time instead of three: other orders of summation in float32.
        np.testing.assert_allclose(frame.scores, expected.numpy(), atol=1e-5)
        np.testing.assert_array_equal(frame.smoothed, frame.scores)
    assert (result.width, result.height, result.fps) == (96, 64, 30.0)
    assert result.duration_seconds == pytest.approx(2.5)
    assert result.persons == 2
    assert [sorted(frame.tracks.tolist()) for frame in result.key_frames] == [[0, 1], [0], [0, 1]]
    np.testing.assert_allclose(result.key_frames[1].boxes, [[0.2, 0.2, 0.5, 0.9]], atol=1e-6)
    np.testing.assert_allclose(result.key_frames[1].box_scores, [0.95], atol=1e-6)


def test_json_and_rows_have_the_actions(
    weights: Path, detector: VideoDetector, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = videos / "boxes.csv"
    command = ["detect", str(weights), str(videos / "a.mp4"), "--boxes", str(boxes), "--csv", "--no-film"]
    command += ["--out", str(tmp_path), "--threshold", "0.3", "--device", "cpu"]
    assert main(command) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith(f"{videos / 'a.mp4'}: 2 persons in 3 key frames, 5 boxes: ")
    assert output[1:] == [str(tmp_path / "a_actions.json"), str(tmp_path / "a_actions.csv")]
    assert main(command) == 2
    assert f"{tmp_path / 'a_actions.json'} exists (and 1 more): it is the" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    document = simplejson.loads((tmp_path / "a_actions.json").read_text())
    result = find_actions(detector, videos / "a.mp4", boxes=boxes)
    facts = [document[key] for key in ("width", "height", "persons", "start_second")]
    assert facts == [96, 64, 2, 0]
    assert [frame["seconds"] for frame in document["key_frames"]] == [0, 1, 2]
    for frame, key_frame in zip(document["key_frames"], result.key_frames, strict=True):
        assert len(frame["persons"]) == len(key_frame.boxes)
        for row, person in enumerate(frame["persons"]):
            assert person["track"] == key_frame.tracks[row] + 1
            assert person["box"] == pytest.approx(key_frame.boxes[row], abs=1e-5)
            assert person["box_pixels"] == pytest.approx(key_frame.boxes[row] * [96, 64, 96, 64], abs=0.01)
            smoothed = {number: key_frame.smoothed[row, number - 1] for number in RECIPE.actions}
            expected = sorted((s, n) for n, s in smoothed.items() if s >= 0.3)[::-1]
            assert [action["id"] for action in person["actions"]] == [number for _, number in expected]
            for action, (score, number) in zip(person["actions"], expected, strict=True):
                assert action["name"] == RECIPE.actions[number]
                assert action["score"] == pytest.approx(score, abs=1e-5)
                raw = key_frame.scores[row, number - 1]
                assert action["unsmoothed_score"] == pytest.approx(raw, abs=1e-5)
    protocol = document["protocol"]
    assert protocol["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert protocol["boxes"] == {
        "file": str(boxes),
        "sha256": hashlib.sha256(boxes.read_bytes()).hexdigest(),
    }
    assert (protocol["every"], protocol["threshold"], protocol["box_score"]) == (1.0, 0.3, 0.8)
    rows = read_detections(tmp_path / "a_actions.csv", VideoNames())
    assert rows.actions.tolist() == [1, 2, 4] * 5  # the actions that have a name
    scores = np.concatenate([frame.scores[:, [0, 1, 3]] for frame in result.key_frames])
    np.testing.assert_allclose(rows.scores, scores.ravel(), atol=1e-6)  # not smoothed
    assert sorted(set(rows.times.tolist())) == [0, 1000, 2000]


def test_rows_of_long_films_keep_milliseconds(tmp_path: Path) -> None:
    """So that they match the key frames of the boxes file."""
    write_rows(tmp_path / "rows.csv", replace(person_at(0, 2), start_second=1000.333))
    rows = read_detections(tmp_path / "rows.csv", VideoNames())
    assert rows.times.tolist() == [1_000_333, 1_000_333, 1_002_333, 1_002_333]
    assert rows.scores.tolist() == pytest.approx([0.5, 0.0, 0.5, 0.2])


def test_plug_in_finds_the_persons_each_second(detector: VideoDetector, videos: Path) -> None:
    """Frames 0, 15, 30, 45, 60: the detector sees the key frames themselves, at full size."""
    result = find_actions(detector, videos / "a.mp4", box_detector=left_half, every=0.5, clips_at_once=2)
    assert [frame.seconds for frame in result.key_frames] == [0, 0.5, 1, 1.5, 2]
    assert [len(frame.boxes) for frame in result.key_frames] == [1, 0, 1, 0, 1]
    np.testing.assert_allclose(result.key_frames[2].boxes, [[0, 0, 0.5, 1]], atol=1e-6)
    assert result.persons == 1  # the gaps of 1 s are bridged
    assert result.notes == ("There is no person in 2 of 5 key frames, at a score of 0.8 or more.",)


def test_film_shows_every_frame_with_its_persons(weights: Path, videos: Path, tmp_path: Path) -> None:
    """The frame numbers can be read, and boxes are interpolated between key frames."""
    boxes = str(videos / "boxes.csv")
    result = detect(weights, [videos / "a.mp4"], tmp_path, boxes=boxes, threshold=0.99)
    assert result.files == [tmp_path / "a_actions.json", tmp_path / "a_actions.mp4"]
    with open_video(tmp_path / "a_actions.mp4") as film:
        assert (film.frames, film.fps) == (FRAMES, 30)
        pictures = film.read([15, 45])
    assert pictures.shape[1:3] == (320, 480)
    for picture, left in zip(pictures, (0.15, 0.25), strict=True):
        line = np.abs(picture.astype(int) - (111, 211, 255)).max(axis=-1) < 60  # person 1's color
        columns = line[100:280].sum(axis=0)
        assert np.flatnonzero(columns > 100)[0] == pytest.approx(left * 480, abs=3)


KINDS: dict[str, dict[str, Any]] = {
    "sound": {"audio": True},
    "one_frame": {"frames": 1},
    "odd": {"width": 97, "height": 65, "pixels": "yuv444p"},
    "portrait": {"width": 66, "height": 98},
    "turned": {"rotation": -90},
    "vfr": {"milliseconds": uneven_times()},
}


@pytest.mark.parametrize("b_frames", [0, 2])
def test_avi_that_states_twice_its_rate_is_detected_as_the_mp4(
    weights: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, b_frames: int
) -> None:
    """The header states 60 frames per second of a video of 30: duration, key frames and scores are equal."""
    source = write_video(tmp_path / "a.mp4", frames=FRAMES, b_frames=b_frames)
    (tmp_path / "avi").mkdir()
    copied = copy_to_avi(source, tmp_path / "avi" / "a.avi")
    with av.open(str(copied)) as container:
        assert container.streams.video[0].average_rate == 60
    shown: list[int] = []

    def whole(pictures: np.ndarray) -> list[np.ndarray]:
        shown.extend(read_number(picture) for picture in pictures)
        return [np.array([[0.0, 0, *picture.shape[1::-1], 0.9]]) for picture in pictures]

    monkeypatch.setattr("tests.jobs.test_detect_video.left_half", whole)
    plug_in = ["--detector", "tests.jobs.test_detect_video:left_half", "--every", "0.5"]
    for name, options in {"found": plug_in, "listed": ["--boxes", str(videos / "boxes.csv")]}.items():
        documents, rows = [], []
        for path in (source, copied):
            out = path.parent / name
            command = ["detect", str(weights), str(path), *options, "--csv", "--out", str(out)]
            assert main([*command, "--threshold", "0", "--device", "cpu"]) == 0
            documents.append(simplejson.loads((out / "a_actions.json").read_text()))
            rows.append((out / "a_actions.csv").read_bytes())
            with av.open(str(out / "a_actions.mp4")) as film:
                times = [round(frame.time * 30) for frame in film.decode(video=0)]
            assert times == list(range(FRAMES))
        own, avi = documents
        seconds = [0, 0.5, 1, 1.5, 2] if name == "found" else [0, 1, 2]
        assert [frame["seconds"] for frame in avi["key_frames"]] == seconds
        assert all(frame["persons"] for frame in avi["key_frames"])
        assert avi["duration_seconds"] == pytest.approx(2.5, abs=0.001)
        assert avi["fps"] == pytest.approx(30)
        assert avi["key_frames"] == own["key_frames"]
        assert rows[0] == rows[1]
    assert shown == [0, 15, 30, 45, 60] * 2


def test_any_kind_of_video_plays_at_its_speed(weights: Path, tmp_path: Path) -> None:
    """The film is as long as the video, also with uneven frame times."""
    paths = [write_video(tmp_path / f"{name}.mp4", **{"frames": 48, **kind}) for name, kind in KINDS.items()]
    (tmp_path / "everywhere.py").write_text(
        "import numpy as np\ndef find(frames):\n"
        "    return [np.array([[2, 2, f.shape[1] - 2, f.shape[0] - 2, 0.9]]) for f in frames]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = detect(weights, paths, tmp_path / "films", detector="everywhere:find")
    assert not result.failures
    sizes = {"odd": (322, 480), "portrait": (713, 480), "turned": (720, 480)}
    for video, name in zip(result.videos, KINDS, strict=True):
        with av.open(str(tmp_path / "films" / f"{name}_actions.mp4")) as container:
            stream = container.streams.video[0]
            seconds = float(stream.duration * stream.time_base)
            assert not container.streams.audio
            height, width = sizes.get(name, (320, 480))
            assert (stream.height, stream.width) == (height + height % 2, width), name
        assert seconds == pytest.approx(video.duration_seconds, abs=0.04), name
    times = (np.array(uneven_times()) - uneven_times()[0]) / 1000
    with open_video(tmp_path / "films/vfr_actions.mp4") as film:
        numbers = [read_number(film.read([frame])[0][:320]) for frame in (10, 20, 30)]
        expected = [int(np.abs(times - frame / film.fps).argmin()) for frame in (10, 20, 30)]
    assert numbers == expected


def test_second_of_the_film_is_second_of_the_video_however_uneven(tmp_path: Path) -> None:
    """A second at 50 fps, eight at 2, one at 40: each frame shows the nearest one in time."""
    milliseconds = [*range(0, 1000, 20), *range(1000, 9000, 500), *range(9000, 10000, 25)]
    path = write_video(tmp_path / "a.mp4", frames=len(milliseconds), milliseconds=milliseconds)
    fps, times = len(milliseconds) / 10, np.array(milliseconds) / 1000
    video = replace(person_at(), path=str(path), fps=fps, duration_seconds=10.0)
    write_film(tmp_path / "film.mp4", video, threshold=0.4, top=3)
    with av.open(str(tmp_path / "film.mp4")) as film:
        shown = [(frame.time, read_number(frame.to_ndarray(format="rgb24")[:320])) for frame in film.decode()]
    assert len(shown) == len(milliseconds)
    for second, number in shown:
        # The rate is rounded to a ratio of small numbers: near half-way the other picture may be taken.
        assert abs(times[number] - second) <= np.abs(times - second).min() + 0.015


def person_at(*seconds: float) -> VideoActions:
    """One track that moves right by 0.1 per second."""
    frames = [
        KeyFrameActions(
            float(second),
            np.array([[0.1 * second, 0.2, 0.1 * second + 0.2, 0.8]], np.float32)[: second in seconds],
            np.ones(int(second in seconds), np.float32),
            np.zeros(int(second in seconds), np.int64),
            *[np.array([[0.5, second / 10]], np.float32)[: second in seconds]] * 2,
        )
        for second in range(6)
    ]
    return VideoActions("a.mp4", 100, 100, 30.0, 6.0, 0.0, 1.0, {1: "stand", 2: "sing"}, tuple(frames), ())


def test_boxes_move_in_straight_lines_between_key_frames() -> None:
    timeline = Timeline(person_at(1, 2, 4), threshold=0.3, top=1)
    assert timeline.at(0.4) == []
    assert timeline.at(4.6) == []
    for second, left in ((0.6, 0.1), (1.25, 0.125), (3.0, 0.3), (4.5, 0.4)):  # 3: a gap
        (person,) = timeline.at(second)
        assert person.box == pytest.approx((left, 0.2, left + 0.2, 0.8), abs=1e-6)
        assert person.title == "person 1"
        assert [(bar.text, bar.share) for bar in person.bars] == [("stand", pytest.approx(0.5))]
    both = Timeline(person_at(3, 4), threshold=0.35, top=3)
    assert [bar.text for bar in both.at(3.4)[0].bars] == ["stand"]  # the nearer key frame's
    assert [bar.text for bar in both.at(3.6)[0].bars] == ["stand", "sing"]


def test_first_and_last_key_frame_reach_the_ends() -> None:
    timeline = Timeline(person_at(0, 1, 5), threshold=0.3, top=1)
    assert len(timeline.at(0.0)) == 1
    assert len(timeline.at(5.99)) == 1


def test_times_of_ava_cuts_are_found_out(detector: VideoDetector, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.csv").write_text(
        "a.mp4,901,0.1,0.1,0.5,0.9,,0.9\na.mp4,902,0.1,0.1,0.5,0.9,1,0.9\na.mp4,930,0.1,0.1,0.5,0.9,1,0.9\n"
    )
    boxes = tmp_path / "cut.csv"
    with pytest.raises(UserError, match=r"all 3 key frames of a.mp4, from 901 to 930 s, are outside .*a.mp4"):
        find_actions(detector, videos / "a.mp4", boxes=boxes)
    result = find_actions(detector, videos / "a.mp4", boxes=boxes, start_second=900)
    assert [frame.seconds for frame in result.key_frames] == [1, 2]
    assert result.notes == (
        f"1 of the 3 key frames of {boxes} are outside the video and left out, the first at 930 s: the video "
        "lasts 2.5 s and starts at second 900.",
    )
    boxes.write_text("\n".join(boxes.read_text().splitlines()[:2]))
    result = find_actions(detector, videos / "a.mp4", boxes=boxes, every=2)
    assert [frame.seconds for frame in result.key_frames] == [1]
    assert result.start_second == 900
    assert result.notes == (
        f"The first frame is at second 900: otherwise the times of {boxes} do not fit.",
        "1 of 2 key frames are left out: they follow within 2 s of the one before.",
    )


def test_boxes_may_have_any_action_that_the_detector_knows(
    detector: VideoDetector, videos: Path, tmp_path: Path
) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("a,1,0.1,0.1,0.5,0.9,95,0.9\n")
    with pytest.raises(UserError, match=r"boxes\.csv:1: the action '95' .* from 1 to 80"):
        find_actions(detector, videos / "a.mp4", boxes=boxes)
    listed = read_boxes(boxes, "a.mp4", duration_seconds=2.5, every=1, score_threshold=0.8, classes=100)
    assert [len(own) for own, _ in listed.persons] == [1]


def test_video_without_persons_gets_its_film(
    weights: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["detect", str(weights), str(videos / "a.mp4"), "--boxes", str(videos / "boxes.csv")]
    assert main([*command, "--box-score", "0.99", "--out", str(tmp_path), "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    assert "0 persons in 3 key frames, 0 boxes: no action at a score of 0.4 or more" in output
    assert "There is no person in any of the 3 key frames, at a score of 0.99 or more." in output
    with open_video(tmp_path / "a_actions.mp4") as film:
        assert [read_number(picture) for picture in film.read([0, 40])] == [0, 40]


def test_config_names_the_detector(
    weights: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options on the command line override the file."""
    (tmp_path / "my_own_boxes.py").write_text(
        "def make(share):\n    return lambda frames: [[[0, 0, share * f.shape[1], 9, 0.9]] for f in frames]\n"
    )
    (tmp_path / "detect.yaml").write_text(
        "persons: {detector: my_own_boxes:make, detector_options: {share: 0.5}, every: 2}\n"
        "told: {film: false}\n"
    )
    monkeypatch.chdir(tmp_path)
    command = ["detect", str(weights), str(videos / "a.mp4"), "--config", "detect.yaml", "--device", "cpu"]
    assert main([*command, "--detector-option", "share=0.25"]) == 0
    document = simplejson.loads((tmp_path / "a_actions.json").read_text())
    assert [frame["seconds"] for frame in document["key_frames"]] == [0, 2]
    assert document["key_frames"][0]["persons"][0]["box_pixels"] == [0, 0, 24, 9]
    assert document["protocol"]["boxes"] == {"detector": "my_own_boxes:make", "options": {"share": 0.25}}
    assert not (tmp_path / "a_actions.mp4").exists()


def test_keys_are_listed_and_unknown_ones_named(
    weights: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", "--keys"]) == 0
    assert "persons.detector" in capsys.readouterr().out
    (tmp_path / "detect.yaml").write_text("persons: {evry: 2}\n")
    command = ["detect", str(weights), str(videos / "a.mp4"), "--config", str(tmp_path / "detect.yaml")]
    assert main(command) == 2
    assert "unknown key 'persons.evry'; did you mean 'persons.every'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            "b,1,0,0,1,1,,0.9\nc,1,0,0,1,1,,0.9\n",
            "boxes.csv has no box of 'a'; its videos are b, c: a row starts",
        ),
        ("", "boxes.csv contains no boxes; a row is `video,second,x1,y1,x2,y2,,score`"),
        ("a,1,0,0,1,1.5,,0.9\n", "boxes.csv:1: the box of 'a,1,0,0,1,1.5,,0.9' exceeds the frame"),
        ("a,1,0.5,0,0.4,1,,0.9\n", "boxes.csv:1: x2 of .* is not above x1"),
        (
            "a,9,0,0,1,1,,0.9\n",
            "boxes.csv: all 1 key frames of a, from 9 to 9 s, are outside .* \\(--start-second\\)",
        ),
        ("a,1,0,0,1,1,,7\n", "boxes.csv:1: the score 7 is not in 0..1"),
    ],
)
def test_wrong_boxes_are_named(
    detector: VideoDetector, videos: Path, tmp_path: Path, rows: str, words: str
) -> None:
    (tmp_path / "boxes.csv").write_text(rows)
    with pytest.raises(UserError, match=words):
        find_actions(detector, videos / "a.mp4", boxes=tmp_path / "boxes.csv")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"boxes": None},
            r"neither given; give either a boxes file \(--boxes\) or a person detector \(--detector\)",
        ),
        (
            {"detector": "tests.jobs.test_detect_video:left_half"},
            "boxes and person detector: both given; give either",
        ),
        (
            {"detector_options": {"size": 1}},
            "detector options size need a person detector; set it with --detector",
        ),
        ({"every": 0.0}, r"every=0 must be above 0 \(seconds\)"),
        ({"threshold": 1.5}, "threshold 1.5: the minimum score of an action is in 0..1"),
        ({"box_score": -1.0}, "box_score=-1 must be in 0..1"),
        ({"top": 0}, "top 0: must be at least 1 action"),
        ({"smooth_seconds": -1.0}, "the smoothing of -1 seconds must be at least 0"),
        ({"min_iou": 0.0}, "min_iou=0 must be above 0"),
        ({"min_iou": 3.0}, "min_iou=3 must be above 0 and at most 1"),
        ({"max_gap_seconds": -1.0}, "max_gap_seconds=-1 must be at least 0"),
        ({"clips_at_once": 0}, "clips_at_once=0: must be at least 1"),
        ({"boxes": "nowhere.csv"}, "nowhere.csv: no such file"),
    ],
)
def test_wrong_arguments_are_named(
    weights: Path, videos: Path, tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    options = {"boxes": str(videos / "boxes.csv"), "film": False, **arguments}
    with pytest.raises(UserError, match=words):
        detect(weights, [videos / "a.mp4"], tmp_path, **options)


def test_unreadable_videos_are_reported(
    weights: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    plug_in = ["--detector", "tests.jobs.test_detect_video:left_half", "--no-film", "--out", str(tmp_path)]
    command = ["detect", str(weights), str(tmp_path / "bad.mp4"), *plug_in, "--device", "cpu"]
    assert main(command) == 2
    assert "none of the 1 videos could be read; the first: " in capsys.readouterr().err
    command.insert(2, str(videos / "a.mp4"))
    assert main(command) == 3
    assert f"videomaskfeat detect: {tmp_path / 'bad.mp4'}: not a video file" in capsys.readouterr().err
    assert main(["detect", str(weights), str(tmp_path), *plug_in, "--device", "cpu"]) == 2
    assert "is a folder; give a video file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [("--smooth-seconds", "-1"), ("--min-iou", "3"), ("--max-gap-seconds", "-2")]
)
def test_tracking_options_are_checked_before_the_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    """The weights and the video do not exist."""
    assert main(["detect", str(tmp_path / "w.safetensors"), "a.mp4", "--detector", "no:where", *option]) == 2
    assert f"argument '{' '.join(option)}': actions." in capsys.readouterr().err


def test_file_of_boxes_must_have_every_video_before_the_first(
    weights: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["detect", str(weights), str(videos / "a.mp4"), "c.mp4", "e/d.mp4", "--device", "cpu"]
    command += ["--boxes", str(videos / "boxes.csv"), "--out", str(tmp_path / "out"), "--no-film"]
    assert main(command) == 2
    assert "boxes.csv has no box of 'c', 'd'; its videos are a, b: a row" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.json"))


def test_detector_that_raises_is_named_above_its_traceback(
    weights: Path,
    videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "det_that_raises.py").write_text(
        "def raises(frames):\n    raise ValueError('no model')\n"
        "class Unmade:\n    def __init__(self):\n        raise KeyError('weights')\n"
    )
    monkeypatch.chdir(tmp_path)
    path = str(videos / "a.mp4")
    command = ["detect", str(weights), path, "--device", "cpu", "--detector"]
    assert main([*command, "det_that_raises:raises"]) == 1
    lines = capsys.readouterr().err.splitlines()
    words = f"videomaskfeat detect: detector 'det_that_raises:raises' failed on {path}: ValueError: no model"
    assert words in lines
    below = lines[lines.index(words) + 1 :]
    assert below[0] == "Traceback (most recent call last):"
    assert any('det_that_raises.py", line 2, in raises' in line for line in below)
    assert main([*command, "det_that_raises:Unmade"]) == 1
    output = capsys.readouterr().err
    assert "detector 'det_that_raises:Unmade' could not be built: KeyError: 'weights'\nTraceback" in output


def test_persons_are_linked_over_the_steps_of_the_file(weights: Path, videos: Path, tmp_path: Path) -> None:
    """Key frames 1 s apart and --every 0.2: twice that is less than a step."""
    video, boxes = videos / "a.mp4", str(videos / "boxes.csv")
    (result,) = detect(weights, [video], tmp_path, boxes=boxes, every=0.2, film=False).videos
    assert (result.persons, result.every) == (2, 1.0)
    document = simplejson.loads((tmp_path / "a_actions.json").read_text())["protocol"]
    assert (document["every"], document["max_gap_seconds"]) == (0.2, 2.0)
    result = find_actions(load_detector(weights), video, boxes=boxes, every=2)
    assert result.every == 2  # thinned to 0 and 2 s
