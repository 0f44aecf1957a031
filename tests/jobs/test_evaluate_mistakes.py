"""``evaluate``: the words for weights, lists and choices that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.jobs.scored_videos import Run, write_list, write_words
from tests.jobs.weights_files import NAMES, RECIPE, write_classifier
from videomaskfeat.cli import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--crops", "2"], "evaluate.crops 2 must be 1 or 3"),
        (["--views", "0"], "evaluate.views 0 must be at least 1"),
        (["--short-side", "24"], "short side 24 is smaller than the crop 32; raise it"),
        (["--sampling", "segment"], "sampling 'segment' is unknown; did you mean"),
        (["--average", "logit"], "average 'logit' is unknown; did you mean 'logits'"),
        (
            ["--precision", "fp16"],
            "precision 'fp16' is unknown; did you mean 'bf16'? there are auto, fp32, bf16",
        ),
        (["--clips-at-once", "0"], "evaluate.clips_at_once 0 must be at least 1"),
        (["--videos-per-batch", "0"], "evaluate.videos_per_batch 0 must be at least 1"),
        (["--reader", "pyva"], "'pyva' is unknown; did you mean 'pyav'? there are auto, decord, pyav"),
        (["--knn", "val.csv", "--k", "0"], "evaluate.k 0 must be at least 1"),
        (
            ["--knn", "val.csv", "--temperature", "0"],
            "evaluate.temperature 0 must be above 0",
        ),
    ],
)
def test_choices_that_do_not_fit(
    made: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(made)
    code, out, err = run("evaluate", "best.safetensors", "val.csv", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "scoring videos" not in err  # said before the work, not after it
    assert len([line for line in err.splitlines() if line.startswith("videomaskfeat")]) == 1


def test_label_outside_the_classes(made: Path, run: Run) -> None:
    listing = write_list(made / "eleven.csv", [0, 11, 2])
    code, _, err = run("evaluate", made / "best.safetensors", listing)
    assert code == 2
    assert f"eleven.csv: row 2 ({made / '001.mp4'}) has the label 11, and" in err
    assert "best.safetensors has 7 classes (0..6; 1 of 3 rows are outside); give the list" in err


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (NAMES[:-1], "holds 6 class names, and"),
        ((*NAMES[:3], "stand", "turn right", *NAMES[5:]), "calls class 3 'stand', and"),
    ],
)
def test_class_names_that_do_not_fit(made: Path, run: Run, names: tuple[str, ...], words: str) -> None:
    path = made / "names.txt"
    path.write_text("\n".join(names), encoding="utf-8")
    code, _, err = run("evaluate", made / "best.safetensors", made / "val.csv", "--class-names", path)
    assert code == 2
    assert f"names.txt: {words}" in err
    assert ("has 7 classes; give the names" in err) or ("calls it 'turn right': these are not the" in err)


def test_labels_of_another_data_set_are_refused(made: Path, run: Run) -> None:
    """Something-Something-v2's labels file, found beside the list, has another number of classes."""
    (made / "ssv2-labels.json").write_text(json.dumps({"Pushing something": "0", "Holding something": "1"}))
    listing = made / "ssv2-validation.json"
    listing.write_text(json.dumps([{"id": "000", "template": "Pushing [something]", "label": "x"}]))
    code, _, err = run("evaluate", made / "best.safetensors", listing)
    assert code == 2
    assert "ssv2-labels.json: holds 2 class names, and" in err


def test_template_that_the_labels_lack(made: Path, run: Run) -> None:
    table = {f"{name} something": str(number) for number, name in enumerate(NAMES)}
    (made / "other-labels.json").write_text(json.dumps(table))
    listing = made / "other-validation.json"
    listing.write_text(json.dumps([{"id": "000", "template": "pushed [something]", "label": "x"}]))
    weights = write_classifier(made / "nameless.safetensors", replace(RECIPE, class_names=()))
    code, _, err = run("evaluate", weights, listing)
    assert code == 2
    assert "object 1 (id 000) has the template 'pushed something', which is not among the 7 classes" in err
    assert "did you mean 'push something'" in err


def test_pretrained_weights_need_neighbours(made: Path, run: Run) -> None:
    code, _, err = run("evaluate", made / "pretrained.safetensors", made / "val.csv")
    assert code == 2
    assert "pretrained.safetensors: weights of a pre-training run, and a classifier's are needed" in err
    assert "or score the features of these weights with --knn TRAIN_LIST" in err


def test_folder_has_no_labels_for_neighbours(made: Path, run: Run) -> None:
    code, _, err = run("evaluate", made / "pretrained.safetensors", made / "val.csv", "--knn", made)
    assert code == 2
    assert "a folder has no labels" in err


def test_no_readable_video_is_a_mistake(made: Path, run: Run) -> None:
    listing = made / "gone.csv"
    listing.write_text("gone.mp4 0\n")
    code, _, err = run("evaluate", made / "best.safetensors", listing)
    assert code == 2
    assert "none of its 1 videos could be read; the first: " in err
    assert "gone.mp4 (no such file); check the folder that the paths start from (--prefix)" in err
    assert "scoring videos" not in err  # no file is there, so none is tried


def test_classes_in_words_of_unknown_order_are_refused(made: Path, run: Run, tmp_path: Path) -> None:
    weights = write_classifier(tmp_path / "nameless.safetensors", replace(RECIPE, class_names=()))
    listing = write_words(made / "words.csv", ["turn left", "push", "Zähne putzen"])
    code, _, err = run("evaluate", weights, listing)
    assert code == 2
    assert "names 3 classes in words, and" in err
    assert "has 7, so nobody can tell which is which; give a file of class names" in err


@pytest.mark.parametrize("option", ["--out", "--submission"])
def test_places_that_cannot_be_written_are_refused_before_the_videos_are_read(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "file").write_text("")
    places = {"--out": tmp_path / "out", "--submission": tmp_path / "s.csv"}
    places[option] = tmp_path / "file" / "x"
    more = [str(word) for pair in places.items() for word in pair]
    code = main(["evaluate", f"{made}/best.safetensors", f"{made}/val.csv", "--workers", "0", *more])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.endswith(f"cannot be a folder, since {tmp_path}/file is a file; choose another path\n")
    assert "scoring videos" not in err
