"""Multi-label lists: a tiny fine-tuning, its evaluation and report, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from videomaskfeat import load_classifier
from videomaskfeat.data.augment import MultiLabelMixing
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.labeled_clips import MultiLabelClips
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.errors import UserError
from videomaskfeat.inference.scores import load_scores
from videomaskfeat.losses.labels import multi_label_cross_entropy
from videomaskfeat.metrics.accuracy import chance_precision, multi_label_score
from videomaskfeat.metrics.bootstrap import multi_label_interval
from videomaskfeat.stored_recipe import read_classify_recipe

from .conftest import Verb
from .test_finetune import TINY
from .test_pretrain import assert_refused, rows

CLASSES = 3


@pytest.fixture
def lists(sample: Path) -> Path:
    """``several_train.csv`` and ``several_val.csv`` beside the videos of the sample."""
    for part in ("train", "val"):
        videos = [row.split()[0] for row in (sample / f"{part}.csv").read_text().splitlines()]
        labels = [("0,2", "1", "-1", "2,1")[number % 4] for number in range(len(videos))]
        text = "".join(f"{video} {own}\n" for video, own in zip(videos, labels, strict=True))
        (sample / f"several_{part}.csv").write_text(f"path labels\n{text}")
    return sample


def _refusal(verb: Verb, *words: str | Path) -> tuple[int, str]:
    code, _, err = verb(str(words[0]), *words[1:])
    return code, err


def test_training_evaluation_and_prediction(lists: Path, tmp_path: Path, verb: Verb) -> None:
    run, evaluation = tmp_path / "run", tmp_path / "evaluation"
    data = [f"data.train={lists / 'several_train.csv'}", f"data.validation={lists / 'several_val.csv'}"]
    code, _, err = verb("finetune", *TINY, *data, f"run.folder={run}", "data.class_names=", "data.classes=0")
    assert code == 0, err
    summary = json.loads((run / "summary.json").read_text())
    assert summary["classes"] == CLASSES
    assert 0 < summary["map"] <= 100
    assert "top1" not in summary
    assert all("evaluation/map" in row for row in rows(run) if row["epoch"] == int(row["epoch"]))
    assert "mAP" in (run / "report.html").read_text()
    recipe = read_classify_recipe(run / "best.safetensors")
    assert recipe.is_multi_label

    words = [run / "best.safetensors", lists / "several_val.csv", "--out", evaluation, "--workers", "0"]
    code, out, err = verb("evaluate", *words)
    assert code == 0, err
    scored = load_scores(evaluation)
    assert scored.targets is not None
    low, high = multi_label_interval(scored.scores, scored.targets) or (0, 0)
    chance = 100 * chance_precision(1, 2)  # each of the three classes has one of the two videos
    line = f"{summary['map']:.2f} % (random scores {chance:.1f} %, 95 % interval {low:.1f} to {high:.1f} %)"
    assert f"mAP         {line}" in out  # the same views as at the end of the training
    assert f"mAP         {line}" in (run / "log.txt").read_text()
    assert ("includes chance" in (run / "log.txt").read_text()) == (low <= chance)
    stored = json.loads((evaluation / "result.json").read_text())
    assert stored["map_interval"] == pytest.approx([low, high])
    assert summary["map_interval"] == pytest.approx([low, high])
    assert stored["map_chance"] == pytest.approx(chance)
    note = f"chance level {chance:.1f} %: random scores; 95 % interval {low:.1f} to {high:.1f} %"
    assert note in (evaluation / "report.html").read_text()
    assert note in (run / "report.html").read_text()
    assert scored.targets.tolist() == [[1, 0, 1], [0, 1, 0]]
    result = multi_label_score(scored.scores, scored.targets)
    with open(evaluation / "per_class.csv") as file:
        per_class = list(csv.DictReader(file))
    assert [float(row["ap"]) for row in per_class] == pytest.approx(result.ap.tolist(), abs=0.005)
    assert "average precision" in (evaluation / "report.html").read_text()

    classifier = load_classifier(run / "best.safetensors", device="cpu")
    probabilities = classifier.predict(scored.paths[0]).probabilities
    np.testing.assert_allclose(probabilities.numpy(), scored.scores[0], atol=1e-5)  # float32 rounding

    other = [run / "best.safetensors", lists / "val.csv", "--out", evaluation, "--workers", "0"]
    assert_refused(_refusal(verb, "evaluate", *other), "one label per video", "any number of labels")
    assert_refused(_refusal(verb, "evaluate", *words, "--average", "softmax"), "multi-label classifier")
    neighbors = ["--knn", lists / "several_train.csv"]
    assert_refused(_refusal(verb, "evaluate", *words, *neighbors), "several labels per video")


def test_clips_have_the_labels_of_their_video(lists: Path) -> None:
    records = load_records(lists / "several_train.csv")
    clips = MultiLabelClips(
        records,
        transform=RandomResizedCrop(32, area=(0.5, 1), aspect=(1, 1), flip=0.5),
        sampler=lambda frames, fps, rng: np.arange(2),
        samples_per_video=2,
        classes=CLASSES,
        flip_labels={0: 1, 1: 0},
    )
    assert clips._labels(0, [False, True]).tolist() == [[1, 0, 1], [0, 1, 1]]
    assert clips._labels(2, [False, True]).tolist() == [[0, 0, 0], [0, 0, 0]]
    with pytest.raises(UserError, match=r"data\.balanced=false"):
        MultiLabelClips(
            records, transform=clips.transform, sampler=clips.sampler, classes=CLASSES, balanced=True
        )


def test_mixed_targets_are_shares_of_both_clips() -> None:
    torch.manual_seed(0)
    mixing = MultiLabelMixing(classes=CLASSES, mixup=1.0, cutmix=0.0, probability=1.0, switch=0.5)
    labels = torch.tensor([[True, True, False], [False, True, False]])
    clips, targets = mixing(torch.stack([torch.ones(3, 1, 4, 4), torch.zeros(3, 1, 4, 4)]), labels)
    weight = float(clips[0].mean())
    expected = torch.tensor([[weight, 1, 0], [1 - weight, 1, 0]])
    torch.testing.assert_close(targets, expected, atol=1e-6, rtol=0)


def test_loss_is_the_mean_binary_cross_entropy() -> None:
    torch.manual_seed(1)
    logits, targets = torch.randn(4, CLASSES), torch.rand(4, CLASSES)
    p = logits.double().sigmoid()
    slow = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    assert float(multi_label_cross_entropy(logits, targets)) == pytest.approx(float(slow), abs=1e-6)
    extreme = multi_label_cross_entropy(torch.tensor([[200.0]]), torch.tensor([[0.0]]))
    assert float(extreme) == pytest.approx(float(F.softplus(torch.tensor(200.0))))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.mp4", r"several\.csv:2: 'a\.mp4' is not `path labels`"),
        ("a.mp4 1,x", r"several\.csv:2: .* with labels such as 3,17,92"),
    ],
)
def test_wrong_rows_are_named(row: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "several.csv"
    path.write_text(f"path labels\n{row}\n")
    with pytest.raises(UserError, match=message):
        load_records(path)


def test_lists_of_two_kinds_are_refused(lists: Path, tmp_path: Path, verb: Verb) -> None:
    data = [f"data.train={lists / 'several_train.csv'}", f"data.validation={lists / 'val.csv'}"]
    refused = _refusal(verb, "finetune", *TINY, *data, f"run.folder={tmp_path / 'run'}")
    assert_refused(refused, "one has several labels per video")
    data[1] = f"data.validation={lists / 'several_val.csv'}"
    refused = _refusal(verb, "finetune", *TINY, *data, f"run.folder={tmp_path / 'run'}", "data.classes=2")
    assert_refused(refused, "the largest label is 2")
