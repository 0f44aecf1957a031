"""Files of scores: written and read again, and averages over equal videos and classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from videomaskfeat.data.batches import Failure
from videomaskfeat.errors import UserError
from videomaskfeat.inference.scores import ScoredList, average_scores, load_scores, save_scores

NAMES = ("push", "pull", "Zähne putzen")


def make(
    *, failing: tuple[int, ...] = (2,), listed: int = 6, seed: int = 0, folder: str = "/a"
) -> ScoredList:
    """Probabilities of 3 classes for six videos, one without scores because it could not be read."""
    rng = np.random.default_rng(seed)
    rows = np.array([row for row in range(listed) if row not in failing])
    powers = np.exp(rng.normal(size=(listed, 3)))[rows]
    return ScoredList(
        scores=(powers / powers.sum(axis=1, keepdims=True)).astype(np.float32),
        labels=rows % 3,
        rows=rows,
        paths=tuple(f"{folder}/{row}.mp4" for row in rows),
        failures=tuple(Failure(row, f"{folder}/{row}.mp4", f"cause {row}") for row in failing),
        listed=listed,
        kind="softmax",
        class_names=NAMES,
    )


def assert_equal(left: ScoredList, right: ScoredList) -> None:
    for name in ("scores", "labels", "rows"):
        assert np.array_equal(getattr(left, name), getattr(right, name))
        assert getattr(left, name).dtype == getattr(right, name).dtype
    for name in ("paths", "failures", "listed", "kind", "class_names"):
        assert getattr(left, name) == getattr(right, name)


@pytest.mark.parametrize("names", [NAMES, ()])
@pytest.mark.parametrize("failing", [(2,), (), (0, 5)])
def test_written_scores_can_be_read(tmp_path: Path, failing: tuple[int, ...], names: tuple[str, ...]) -> None:
    scored = replace(make(failing=failing), class_names=names)
    save_scores(tmp_path / "scores.npz", scored, confusion=np.eye(3))
    assert_equal(load_scores(tmp_path / "scores.npz"), scored)
    assert_equal(load_scores(tmp_path), scored)  # the folder names it, too
    assert np.load(tmp_path / "scores.npz")["confusion"].trace() == 3


def test_path_that_is_not_text_can_be_read(tmp_path: Path) -> None:
    scored = replace(make(failing=()), paths=tuple(f"caf\udce9{row}.mp4" for row in range(6)))
    save_scores(tmp_path / "scores.npz", scored)
    assert load_scores(tmp_path).paths == scored.paths


def test_probabilities_of_logits_are_their_softmax() -> None:
    logits = replace(make(), kind="logits", scores=np.array([[1000.0, 1000.0, 0.0]] * 5, np.float32))
    np.testing.assert_allclose(logits.probabilities(), [[0.5, 0.5, 0.0]] * 5)
    scored = make()
    assert np.array_equal(scored.probabilities(), scored.scores.astype(np.float64))


def test_average_is_the_mean_of_videos_readable_in_all() -> None:
    """Lists with equal file names in other folders are equal."""
    one, two, three = make(), make(failing=(4,), seed=1, folder="/b"), make(failing=(), seed=2)
    mean = average_scores([one, two, three], ["one", "two", "three"])
    assert mean.rows.tolist() == [0, 1, 3, 5]
    assert mean.labels.tolist() == [0, 1, 0, 2]
    assert mean.paths == tuple(f"/a/{row}.mp4" for row in mean.rows)
    assert [(failure.index, failure.cause) for failure in mean.failures] == [(2, "cause 2"), (4, "cause 4")]
    assert mean.listed == 6
    for place, row in enumerate(mean.rows):
        members = [scored.scores[scored.rows == row][0].astype(np.float64) for scored in (one, two, three)]
        np.testing.assert_allclose(mean.scores[place], sum(members) / 3, atol=1e-7)


def test_average_with_itself_is_itself() -> None:
    scored = make()
    assert_equal(average_scores([scored, scored], ["a", "b"]), scored)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (make(listed=7), "one scores a list of 6 videos, but two a list of 7; only scores of the same list"),
        (
            replace(make(), scores=np.ones((5, 4), np.float32), class_names=()),
            "one scores 3 classes, but two 4; only scores for the same classes",
        ),
        (
            replace(make(), kind="logits"),
            "one contains probabilities, but two logits, which cannot be averaged; .* same --average",
        ),
        (
            replace(make(), class_names=("push", "drop", "Zähne putzen")),
            "class 1 is 'pull' in one, but 'drop' in two; only scores for the same classes",
        ),
        (
            replace(make(), labels=np.array([0, 1, 0, 2, 2])),
            r"row 5 is 4\.mp4 \(label 1\) in one and 4\.mp4 \(label 2\) in the other",
        ),
        (
            replace(make(), paths=tuple(f"/a/{row}.mp4" for row in (0, 7, 3, 4, 5))),
            r"different lists: row 2 is 1\.mp4 \(label 1\) in one and 7\.mp4 \(label 1\)",
        ),
        (make(failing=(0, 1, 3, 4, 5)), "one, two: no video is readable in all of them"),
    ],
)
def test_scores_that_cannot_be_averaged(other: ScoredList, words: str) -> None:
    with pytest.raises(UserError, match=words):
        average_scores([make(), other], ["one", "two"])


def test_one_file_is_not_an_average() -> None:
    with pytest.raises(UserError, match="1 file of scores; an average needs at least two"):
        average_scores([make()], ["one"])


@pytest.mark.parametrize("content", [b"", b"this is text", None])
def test_file_without_scores(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "scores.npz"
    if content is None:
        np.savez(path, scores=np.zeros((2, 2)))  # and nothing else
    else:
        path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"scores\.npz is not a file of scores .*`videomaskfeat evaluate` wrote"
    ):
        load_scores(path)


def test_missing_file_of_scores(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scores\.npz: no such file; give the folder that"):
        load_scores(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("scores", np.zeros(5, np.float32), "`scores` is not an array"),
        ("scores", np.full((5, 3), np.nan, np.float32), "finite numbers"),
        ("labels", np.array([0, 1, 9, 0, 0]), "a label is outside the classes"),
        ("labels", np.zeros((5, 1), int), "`labels` is not one value per row"),
        ("rows", np.array([0, 0, 1, 3, 4]), "rows are not those of one list"),
        ("listed", np.array(10**9), "rows are not those of one list"),
        ("paths", np.arange(5), "`paths` is not one value per row"),
        ("kind", np.array("x"), "`kind` or `class_names` does not fit"),
        ("class_names", np.array(["a"]), "`kind` or `class_names` does not fit"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, key: str, value: np.ndarray, words: str) -> None:
    path = tmp_path / "scores.npz"
    save_scores(path, make())
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, key: value})
    with pytest.raises(UserError, match=words):
        load_scores(path)
