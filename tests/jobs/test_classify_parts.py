"""The lists of a fine-tuning: what number a class has in both of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from videomaskfeat.config import load_config
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError
from videomaskfeat.jobs.finetune import LabelledLists, read_lists, words_on_gaps
from videomaskfeat.schemas import FinetuneConfig


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Lists as Kinetics publishes them, classes in words; one class is in the training list alone."""
    listed = {"train": ["archery", "bowling", "cooking", "bowling"], "val": ["cooking", "bowling"]}
    for split, names in listed.items():
        rows = ["label,youtube_id,time_start,time_end,split"]
        rows += [f"{name},{split}{row:06d},0,10,{split}" for row, name in enumerate(names)]
        (tmp_path / f"{split}.csv").write_text("\n".join(rows) + "\n")
        (tmp_path / f"{split}000000_000000_000010.mp4").touch()
    return tmp_path


def read(folder: Path, *overrides: str) -> LabelledLists:
    data = [f"data.train={folder / 'train.csv'}", f"data.validation={folder / 'val.csv'}"]
    return read_lists(load_config(FinetuneConfig, None, [*data, *overrides]))


def labels(lists: LabelledLists) -> tuple[list[int], list[int]]:
    assert lists.validation is not None
    assert lists.train.labels is not None
    assert lists.validation.labels is not None
    return lists.train.labels.tolist(), lists.validation.labels.tolist()


def test_classes_in_words_have_the_numbers_of_the_training_list(lists: Path) -> None:
    """The held-out list lacks a class, and by itself would number the others from 0."""
    found = read(lists)
    assert found.names == ("archery", "bowling", "cooking")
    assert labels(found) == ([0, 1, 2, 1], [2, 1])


@pytest.mark.parametrize("name", ["names.txt", "names.json"])
def test_a_file_of_names_numbers_both_lists(lists: Path, name: str) -> None:
    names = ["cooking", "bowling", "archery", "dancing"]
    text = "\n".join(names) if name == "names.txt" else json.dumps(names)
    (lists / name).write_text(text)
    found = read(lists, f"data.class_names={lists / name}")
    assert found.classes == 4
    assert labels(found) == ([2, 1, 0, 1], [0, 1])


def test_class_of_the_held_out_list_alone_is_refused(lists: Path) -> None:
    (lists / "val.csv").write_text((lists / "val.csv").read_text().replace("cooking", "cookin"))
    with pytest.raises(UserError, match=r"val\.csv: class 'cookin' .* did you mean 'cooking'"):
        read(lists)


def test_words_of_another_number_than_the_classes_are_refused(lists: Path) -> None:
    with pytest.raises(UserError, match=r"train\.csv: holds 3 class names, and data\.classes is 400; leave"):
        read(lists, "data.classes=400")


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (
            [1, 2, 3],
            "labels run from 1 to 3, 3 different ones, .*1 class up to 3 .*the first is 0",
        ),
        (
            [0, 1, 4],
            r"from 0 to 4, 3 .*\(data.classes is 5\): 2 classes .*first is 2; .*renumber",
        ),
        ([0, 1, 2], ""),
        ([0, 0], ""),
        ([0, 123456789], "123456788 classes up to 123456789"),
    ],
)
def test_labels_that_start_at_1_or_have_gaps(numbers: list[int], words: str) -> None:
    records = Records.from_paths(["a"] * len(numbers), numbers, source="l.csv")
    text = words_on_gaps(records, max(numbers) + 1)
    assert re.search(words, text) if words else not text
