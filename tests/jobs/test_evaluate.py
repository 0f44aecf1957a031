"""``evaluate`` and ``average-scores``: files, output and refusals."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.processes import exit_codes_of_ranks
from tests.jobs.scored_videos import BROKEN, LABELS, Run, write_list, write_words
from tests.jobs.weights_files import NAMES, RECIPE, write_classifier
from tests.reference.accuracy import knn_shares, mean_class, sorted_classes, top_k
from tests.viz.pages import Page
from videomaskfeat.cli import CommandLine, main
from videomaskfeat.engine import distributed
from videomaskfeat.inference.classifiers import load_classifier, load_encoder
from videomaskfeat.inference.multiview import Machine
from videomaskfeat.inference.scores import load_scores
from videomaskfeat.jobs.evaluate import Neighbors, evaluate
from videomaskfeat.viz.evaluation import accuracy_text, confidence_interval


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "result.json").read_text())


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scores_and_accuracies_are_those_of_each_video_by_itself(
    material: Path, run: Run, tmp_path: Path
) -> None:
    """One video at a time with load_classifier; other batches: 1e-5 of probabilities."""
    code, out, err = run(
        "evaluate", material / "best.safetensors", material / "val.csv", "--views", "3", "--crops", "3"
    )
    assert code == 3
    assert f"videomaskfeat evaluate: {material / '004.mp4'}: not a video file\n" in err
    scored = load_scores(tmp_path / "out")
    assert scored.rows.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert scored.labels.tolist() == [label for row, label in enumerate(LABELS) if row != BROKEN]
    classifier = load_classifier(material / "best.safetensors", device="cpu")
    for path, scores in zip(scored.paths, scored.scores, strict=True):
        expected = classifier.predict(path, views=3, crops=3).probabilities
        np.testing.assert_allclose(scores, expected, atol=1e-5)

    rows, labels = scored.scores.tolist(), scored.labels.tolist()
    result = result_of(tmp_path)
    assert result["top1"] == pytest.approx(top_k(rows, labels, 1))
    assert result["top5"] == pytest.approx(top_k(rows, labels, 5))
    assert result["mean_class"] == pytest.approx(mean_class(rows, labels))
    assert out.splitlines() == [
        "9 of 10 videos scored (3 x 3 views)",
        f"top-1       {accuracy_text(result['top1'], 9, 7)}",
        f"top-5       {accuracy_text(result['top5'], 9, 7, guesses=5)}",
        f"mean class  {result['mean_class']:.2f} % (chance 14.3 %)",
        f"report      {tmp_path / 'out' / 'report.html'}",
    ]


def test_result_carries_its_protocol(material: Path, run: Run, tmp_path: Path) -> None:
    run(
        "evaluate", material / "best.safetensors", material / "val.csv", "--crops", "3", "--average", "logits"
    )
    result = result_of(tmp_path)
    assert {key: result[key] for key in ("videos", "listed", "unreadable", "classes", "model", "head")} == {
        "videos": 9,
        "listed": 10,
        "unreadable": 1,
        "classes": 7,
        "model": "maskfeat_mvitv2_nano_classifier",
        "head": "mean",
    }
    assert result["failures"] == [{"row": 5, "path": str(material / "004.mp4"), "cause": "not a video file"}]
    assert result["protocol"] == {
        "views": 2,
        "crops": 3,
        "sampling": "clip",
        "frames": 4,
        "stride": 2,
        "target_fps": 30.0,
        "short_video": "clamp",
        "crop": 32,
        "short_side": 32,
        "mean": 0.45,
        "std": 0.225,
        "average": "logits",
        "precision": "fp32",
        "reader": "auto",
    }
    assert result["weights_sha256"] == sha256_by_hand(material / "best.safetensors")
    assert result["list_file_sha256"] == sha256_by_hand(material / "val.csv")


def sha256_by_hand(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_tables_agree_with_the_scores(material: Path, run: Run, tmp_path: Path) -> None:
    run("evaluate", material / "best.safetensors", material / "val.csv")
    scored, folder = load_scores(tmp_path / "out"), tmp_path / "out"
    videos = rows_of(folder / "scores.csv")
    assert [int(row["row"]) for row in videos] == list(range(1, 11))
    assert videos[BROKEN]["unreadable"] == "not a video file"
    assert videos[BROKEN]["prediction"] == ""
    read = [row for number, row in enumerate(videos) if number != BROKEN]
    confusion = np.zeros((7, 7), int)
    for row, scores, label in zip(read, scored.scores.tolist(), scored.labels.tolist(), strict=True):
        order = sorted_classes(scores)
        assert (int(row["label"]), int(row["prediction"])) == (label, order[0])
        assert int(row["rank_of_label"]) == order.index(label) + 1
        assert float(row["score_of_label"]) == pytest.approx(scores[label], rel=1e-5)
        assert float(row["score_of_prediction"]) == pytest.approx(scores[order[0]], rel=1e-5)
        assert (row["label_name"], row["prediction_name"]) == (NAMES[label], NAMES[order[0]])
        confusion[label, order[0]] += 1
    table = list(csv.reader((folder / "confusion.csv").open()))
    assert table[0] == ["label", *map(str, range(7))]
    assert np.array_equal(np.array(table[1:], int)[:, 1:], confusion)
    assert np.array_equal(np.load(folder / "scores.npz")["confusion"], confusion)
    classes = rows_of(folder / "per_class.csv")
    assert [row["name"] for row in classes] == list(NAMES)
    for label, row in enumerate(classes):
        assert int(row["videos"]) == confusion[label].sum()
        own = 100 * confusion[label, label] / confusion[label].sum() if confusion[label].sum() else None
        assert row["top1"] == ("" if own is None else f"{own:.2f}")
    assert [row["label"] for row in classes if not int(row["videos"])] == ["4", "5", "6"]


def test_every_video_readable_is_exit_0(material: Path, run: Run, tmp_path: Path) -> None:
    listing = write_list(material / "four.csv", LABELS[:4])
    code, out, err = run("evaluate", material / "best.safetensors", listing)
    assert code == 0
    assert out.startswith("4 of 4 videos scored (2 x 1 views)\n")
    assert "scoring videos: 4 of 4" in err
    assert result_of(tmp_path)["failures"] == []


def test_missing_video_is_listed_and_not_replaced(material: Path, run: Run, tmp_path: Path) -> None:
    listing = material / "absent.csv"
    listing.write_text("000.mp4 0\nvideo_of_nobody.mp4 1\n003.mp4 3\n")
    code, out, err = run("evaluate", material / "best.safetensors", listing)
    assert code == 3
    assert "video_of_nobody.mp4: no such file" in err
    assert out.startswith("2 of 3 videos scored")
    assert load_scores(tmp_path / "out").rows.tolist() == [0, 2]


def test_unlabeled_list_gives_predictions_and_a_submission(material: Path, run: Run, tmp_path: Path) -> None:
    listing = material / "unlabeled.csv"
    listing.write_text("000.mp4\n007.mp4\n004.mp4\n")
    submission = tmp_path / "new" / "deep" / "submission.csv"
    code, out, _ = run("evaluate", material / "best.safetensors", listing, "--submission", submission)
    assert code == 3
    assert "top-1" not in out
    assert f"\nsubmission  {submission} (without 1 of 3 rows: unreadable videos)\n" in out
    whole = material / "whole.csv"
    whole.write_text("000.mp4\n007.mp4\n")
    _, out, _ = run("evaluate", material / "best.safetensors", whole, "--submission", submission)
    assert f"\nsubmission  {submission}\n" in out
    run("evaluate", material / "best.safetensors", listing, "--submission", submission)
    scored = load_scores(tmp_path / "out")
    assert not scored.has_labels
    assert "top1" not in result_of(tmp_path)
    lines = submission.read_text().splitlines()
    best = [sorted_classes(scores)[:5] for scores in scored.scores.tolist()]
    assert lines == [
        ";".join([name, *map(str, five)]) for name, five in zip(("000", "007"), best, strict=True)
    ]
    assert not (tmp_path / "out" / "confusion.csv").exists()
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "2 of 3 videos were scored. The list has no labels, so there is no accuracy." in page.text


def test_report_shows_the_result_and_loads_nothing(material: Path, run: Run, tmp_path: Path) -> None:
    recipe = replace(RECIPE, class_names=("<b>push</b>", *NAMES[1:]))
    weights = write_classifier(tmp_path / "odd.safetensors", recipe)
    run("evaluate", weights, material / "val.csv")
    html = (tmp_path / "out" / "report.html").read_text()
    page, result = Page(html), result_of(tmp_path)
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    # Untrained weights of other versions of torch classify other videos correctly.
    low, high = confidence_interval(result["top1"] / 100, 9)
    assert (
        f"Top-1 accuracy: {result['top1']:.2f} % of the 9 scored videos (10 listed). "
        f"95 % confidence interval: {100 * low:.0f} to {100 * high:.0f} %." in page.text
    )
    assert f"1 could not be read; counted as wrong, top-1 is {result['top1'] * 9 / 10:.2f} %" in page.text
    assert "<b>push</b>" in page.text  # as text, so it was escaped
    assert "1 of 10 videos missing" in page.text
    assert f"{material / '004.mp4'} not a video file" in page.text
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 9  # no more than the videos there are, each once: wrong or right
    assert all((attributes["src"] or "").startswith("data:image/jpeg;base64,") for attributes in pictures)


def test_names_that_are_not_utf8_survive(material: Path, run: Run, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    shutil.copy(material / "000.mp4", material / name)
    (material / "odd.csv").write_bytes(b"caf\xe9.mp4 0\ncaf\xe9_gone.mp4 1\n")
    submission = tmp_path / "submission.csv"
    code, _, err = run(
        "evaluate", material / "best.safetensors", material / "odd.csv", "--submission", submission
    )
    assert code == 3
    assert "_gone.mp4: no such file" in err
    assert load_scores(tmp_path / "out").paths == (str(material / name),)
    assert submission.read_bytes().startswith(b"caf\xe9;")
    assert b"caf\xe9.mp4,0," in (tmp_path / "out" / "scores.csv").read_bytes()
    assert "caf\\xe9.mp4" in (tmp_path / "out" / "report.html").read_text()


def test_segments_have_one_view_by_default(material: Path, run: Run, tmp_path: Path) -> None:
    run(
        "evaluate",
        material / "best.safetensors",
        material / "val.csv",
        "--sampling",
        "segments",
        "--crops",
        "3",
    )
    protocol = result_of(tmp_path)["protocol"]
    assert (protocol["sampling"], protocol["views"], protocol["crops"]) == ("segments", 1, 3)
    assert "stride" not in protocol


def test_neighbors_equal_plain_python(material: Path, run: Run, tmp_path: Path) -> None:
    """Weights of pre-training, features one video at a time: 1e-3 of shares, as cosines are over 0.07."""
    train = write_list(material / "train.csv", LABELS)
    test = material / "test.csv"
    test.write_text("003.mp4 3\n009.mp4 2\n")
    weights = material / "pretrained.safetensors"
    code, out, err = run("evaluate", weights, test, "--knn", train, "--k", "3")
    assert code == 3  # of the training list
    assert "004.mp4: not a video file" in err
    assert out.startswith("2 of 2 videos scored (1 x 1 views)")
    encoder = load_encoder(weights, device="cpu")
    rows = [row for row in range(10) if row != BROKEN]
    features = {row: encoder.features(str(material / f"{row:03d}.mp4")).flatten().tolist() for row in rows}
    expected = knn_shares(
        [features[row] for row in rows],
        [LABELS[row] for row in rows],
        [features[3], features[9]],
        classes=7,
        k=3,
        temperature=0.07,
    )
    scored = load_scores(tmp_path / "out")
    np.testing.assert_allclose(scored.scores, expected, atol=1e-3)
    result = result_of(tmp_path)
    assert (result["head"], result["protocol"]["k"], result["train_videos"]) == ("knn", 3, 9)
    assert [entry["row"] for entry in result["train_failures"]] == [BROKEN + 1]
    assert scored.kind == "knn"


def evaluate_on_ranks(material: Path, out: Path) -> None:
    """What torchrun starts; every rank gets the whole result, and only one of them the text."""
    machine = Machine(device="cpu", videos_per_batch=2)
    result = evaluate(material / "best.safetensors", str(material / "val.csv"), out, machine=machine)
    assert bool(result.text) == (distributed.rank() == 0)
    assert len(result.scored.rows) == 9
    assert len(result.failures) == 1
    nearest = evaluate(
        material / "best.safetensors",
        str(material / "val.csv"),
        out / "knn",
        neighbors=Neighbors(str(material / "val.csv"), k=4),
        machine=machine,
    )
    assert len(nearest.failures) == 2  # one in each list


def test_ranks_write_one_result(material: Path, run: Run, tmp_path: Path) -> None:
    """Ten videos, three processes."""
    assert exit_codes_of_ranks(3, evaluate_on_ranks, material, tmp_path / "ranks") == [0, 0, 0]
    run("evaluate", material / "best.safetensors", material / "val.csv")
    together, alone = load_scores(tmp_path / "ranks"), load_scores(tmp_path / "out")
    np.testing.assert_allclose(together.scores, alone.scores, atol=1e-5)
    assert np.array_equal(together.rows, alone.rows)
    assert together.failures == alone.failures
    listing = material / "val.csv"
    run("evaluate", material / "best.safetensors", listing, "--knn", listing, "--k", "4")
    together, alone = load_scores(tmp_path / "ranks" / "knn"), load_scores(tmp_path / "out")
    np.testing.assert_allclose(together.scores, alone.scores, atol=1e-3)  # cosines are over 0.07
    assert alone.scores.max(axis=1).min() < 1  # more than one has a vote


def test_average_of_two_evaluations(material: Path, run: Run, tmp_path: Path) -> None:
    for name, views in (("one", "1"), ("three", "3")):
        run("evaluate", material / "best.safetensors", material / "val.csv", "--views", views)
        shutil.move(tmp_path / "out", tmp_path / name)
    code, out, err = run("average-scores", tmp_path / "one", tmp_path / "three" / "scores.npz")
    assert code == 3
    assert "videomaskfeat average-scores: " in err
    assert out.startswith("9 of 10 videos scored\ntop-1 ")
    one, three, mean = (load_scores(tmp_path / name) for name in ("one", "three", "out"))
    np.testing.assert_allclose(mean.scores, (one.scores + three.scores) / 2, atol=1e-7)
    result = result_of(tmp_path)
    assert result["members"] == {
        "1": str(tmp_path / "one" / "scores.npz"),
        "2": str(tmp_path / "three" / "scores.npz"),
    }
    assert result["top1"] == pytest.approx(top_k(mean.scores.tolist(), mean.labels.tolist(), 1))
    code, out, err = run("average-scores", tmp_path / "one", tmp_path / "one" / "scores.npz")
    assert (code, out) == (2, "")
    assert "one/scores.npz is given twice; give each file once" in err
    assert "Average of 2 evaluations" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("name", ["result.json", "scores.npz", "report.html"])
def test_an_earlier_result_is_kept(material: Path, verb: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    command = [material / "best.safetensors", material / "val.csv", "--workers", "0"]
    code, out, err = verb("evaluate", *command, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert f"out/{name} exists: it is the output of an earlier command; choose another" in err
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_average_is_not_written_over_an_evaluation() -> None:
    assert CommandLine("evaluate").read(["best.safetensors", "val.csv"]).out == "evaluation"
    assert CommandLine("average-scores").read(["a", "b"]).out == "ensemble"


def test_classes_in_words_take_the_numbers_of_the_weights(material: Path, run: Run, tmp_path: Path) -> None:
    listing = write_words(material / "words.csv", ["turn left", "push", "Zähne putzen"])
    code, _, _ = run("evaluate", material / "best.safetensors", listing)
    assert code == 0
    assert load_scores(tmp_path / "out").labels.tolist() == [2, 0, 6]


def assert_refused(outcome: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, one line on stderr with these words, and no video was read."""
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert all(part in err for part in words), err
    assert "scoring videos" not in err
    assert len([line for line in err.splitlines() if line.startswith("videomaskfeat")]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--crops 2", "evaluate.crops 2 must be 1 or 3"),
        ("--views 0", "evaluate.views 0 must be at least 1"),
        ("--short-side 24", "short side 24 is smaller than the crop 32; raise the short side"),
        ("--sampling segment", "sampling 'segment' is unknown; did you mean"),
        ("--sampling segments --views 2", "views=2 with sampling=segments"),
        ("--average logit", "average 'logit' is unknown; did you mean 'logits'"),
        (
            "--precision fp16",
            "precision 'fp16' is unknown; did you mean 'bf16'? Choose from auto, fp32, bf16",
        ),
        ("--clips-at-once 0", "evaluate.clips_at_once 0 must be at least 1"),
        ("--videos-per-batch 0", "evaluate.videos_per_batch 0 must be at least 1"),
        ("--reader pyva", "'pyva' is unknown; did you mean 'pyav'? Choose from auto, decord, pyav"),
        ("--knn val.csv --k 0", "evaluate.k 0 must be at least 1"),
        ("--knn val.csv --temperature 0", "evaluate.temperature 0 must be above 0"),
    ],
)
def test_wrong_options_are_refused(
    material: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: str, words: str
) -> None:
    monkeypatch.chdir(material)
    assert_refused(run("evaluate", "best.safetensors", "val.csv", *arguments.split()), words)


def test_label_outside_the_classes(material: Path, run: Run) -> None:
    listing = write_list(material / "eleven.csv", [0, 11, 2])
    assert_refused(
        run("evaluate", material / "best.safetensors", listing),
        f"eleven.csv: row 2 ({material / '001.mp4'}): label 11 is out of range; ",
        "best.safetensors has 7 classes (0..6; 1 of 3 rows are outside); give the list",
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (NAMES[:-1], ("6 class names, but", "has 7 classes; give the names")),
        ((*NAMES[:3], "stand", "turn right", *NAMES[5:]), ("class 3 is 'stand', but 'turn right' in",)),
    ],
)
def test_class_names_of_other_classes_are_refused(
    material: Path, run: Run, names: tuple[str, ...], words: tuple[str, ...]
) -> None:
    path = material / "names.txt"
    path.write_text("\n".join(names), encoding="utf-8")
    outcome = run("evaluate", material / "best.safetensors", material / "val.csv", "--class-names", path)
    assert_refused(outcome, f"names.txt: {words[0]}", *words)


def test_labels_of_another_data_set_are_refused(material: Path, run: Run) -> None:
    """The labels file of Something-Something-v2, beside the list, has another number of classes."""
    (material / "ssv2-labels.json").write_text(
        json.dumps({"Pushing something": "0", "Holding something": "1"})
    )
    listing = material / "ssv2-validation.json"
    listing.write_text(json.dumps([{"id": "000", "template": "Pushing [something]", "label": "x"}]))
    outcome = run("evaluate", material / "best.safetensors", listing)
    assert_refused(outcome, "ssv2-labels.json: 2 class names, but")


def test_template_without_a_label_is_refused(material: Path, run: Run) -> None:
    table = {f"{name} something": str(number) for number, name in enumerate(NAMES)}
    (material / "other-labels.json").write_text(json.dumps(table))
    listing = material / "other-validation.json"
    listing.write_text(json.dumps([{"id": "000", "template": "pushed [something]", "label": "x"}]))
    weights = write_classifier(material / "nameless.safetensors", replace(RECIPE, class_names=()))
    assert_refused(
        run("evaluate", weights, listing),
        "object 1 (id 000) has the template 'pushed something', which is not among the 7 classes",
        "did you mean 'push something'",
    )


def test_pretrained_weights_need_neighbors(material: Path, run: Run) -> None:
    assert_refused(
        run("evaluate", material / "pretrained.safetensors", material / "val.csv"),
        "pretrained.safetensors contains weights of a pre-training run, not weights of a classifier",
        "or score the features of these weights with --knn TRAIN_LIST",
    )


def test_folder_has_no_labels_for_neighbors(material: Path, run: Run) -> None:
    outcome = run("evaluate", material / "pretrained.safetensors", material / "val.csv", "--knn", material)
    assert_refused(outcome, "is not in a class folder; videos must lie in")


def test_no_readable_video_is_a_mistake(material: Path, run: Run) -> None:
    listing = material / "gone.csv"
    listing.write_text("gone.mp4 0\n")
    assert_refused(
        run("evaluate", material / "best.safetensors", listing),
        "none of its 1 videos could be read; the first: ",
        "gone.mp4 (no such file); check the folder that the paths start from (--prefix)",
    )


def test_classes_in_words_of_unknown_order_are_refused(material: Path, run: Run, tmp_path: Path) -> None:
    weights = write_classifier(tmp_path / "nameless.safetensors", replace(RECIPE, class_names=()))
    listing = write_words(material / "words.csv", ["turn left", "push", "Zähne putzen"])
    assert_refused(
        run("evaluate", weights, listing),
        "the labels are 3 class names, but",
        "has 7 classes, so their numbers are unknown; give a file of class names",
    )


@pytest.mark.parametrize("option", ["--out", "--submission"])
def test_output_below_a_file_is_refused_before_the_videos_are_read(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "file").write_text("")
    places = {"--out": tmp_path / "out", "--submission": tmp_path / "s.csv"}
    places[option] = tmp_path / "file" / "x"
    more = [str(word) for pair in places.items() for word in pair]
    code = main(["evaluate", f"{material}/best.safetensors", f"{material}/val.csv", "--workers", "0", *more])
    assert_refused(
        (code, *capsys.readouterr()),
        f"cannot be a folder, since {tmp_path}/file is a file; choose another path\n",
    )
