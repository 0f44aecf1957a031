"""Fine-tuning: a tiny run end to end, its lists, its plan, two ranks, and what is refused."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import simplejson
import torch
from torch import nn

from videomaskfeat.config import load_config
from videomaskfeat.data.augment import Mixing
from videomaskfeat.data.batches import LabeledBatch
from videomaskfeat.data.records import Records
from videomaskfeat.engine.run import BestWeights
from videomaskfeat.errors import UserError
from videomaskfeat.jobs.finetune import (
    ClassLists,
    FinetuneRun,
    label_gap_warning,
    largest_share,
    read_lists,
)
from videomaskfeat.losses.labels import soft_cross_entropy
from videomaskfeat.models import create_model
from videomaskfeat.models.cost import multiply_adds
from videomaskfeat.models.loading import load_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.weights import read_state
from videomaskfeat.recipe import METADATA_KEY, ClipRecipe, PretrainRecipe, normalize
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.stored_recipe import ClassifyRecipe, read_classify_recipe

from .conftest import Verb
from .ranks import run_verb
from .test_pretrain import assert_refused, rows

Finetune = Callable[..., tuple[int, str]]

ENCODER = {"depth": 4, "width": 8, "widen_at": (1, 3), "clip_size": (4, 32, 32)}
TINY = [
    "clip.frames=4",
    "clip.stride=2",
    "clip.crop=32",
    "clip.flip=0",
    "clip.samples_per_video=2",
    "model.name=maskfeat_mvitv2_nano_classifier",
    "model.arguments={depth: 4, width: 8, widen_at: [1, 3]}",
    "optim.epochs=2",
    "optim.warmup_epochs=1",
    "optim.batch_size=8",
    "optim.base_batch_size=8",
    "data.workers=0",
    "evaluate.short_side=32",
    "evaluate.views=2",
    "evaluate.epochs=1",
]


@pytest.fixture
def finetune(sample: Path, tmp_path: Path, verb: Verb) -> Finetune:
    """``finetune(*overrides) -> (exit code, stderr)`` of a tiny run in ``tmp_path / "run"``."""

    def run_finetune(*overrides: str) -> tuple[int, str]:
        data = [f"data.train={sample / 'train.csv'}", f"data.validation={sample / 'val.csv'}"]
        code, _, err = verb("finetune", *TINY, *data, f"run.folder={tmp_path / 'run'}", *overrides)
        return code, err

    return run_finetune


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """Weights of a pre-training run of the tiny encoder."""
    torch.manual_seed(7)
    path = tmp_path / "pretrained.safetensors"
    recipe = PretrainRecipe(ClipRecipe(frames=4, stride=2, crop=32)).to_json()
    save_model(create_model("maskfeat_mvitv2_nano", **ENCODER), path, metadata={METADATA_KEY: recipe})
    return path


def test_run_leaves_a_classifier_that_knows_its_classes_and_views(
    finetune: Finetune, pretrained: Path, sample: Path, tmp_path: Path
) -> None:
    names = f"data.class_names={sample / 'classes.txt'}"
    code, text = finetune(f"model.weights={pretrained}", names, "evaluate.average=logits")
    assert code == 0, text
    run = tmp_path / "run"
    for name in ("config.yaml", "log.txt", "report.html", "tensorboard", "best.safetensors"):
        assert (run / name).exists(), name
    metrics = rows(run)
    assert [row["step"] for row in metrics] == list(range(1, 9))
    # Validation after each of the two epochs of 4 steps, and the train accuracy at every step.
    assert [row["step"] for row in metrics if "evaluation/top1" in row] == [4, 8]
    assert all("train_top1" in row for row in metrics)
    summary = simplejson.loads((run / "summary.json").read_text())
    assert (summary["videos"], summary["listed"], summary["views"], summary["classes"]) == (2, 2, 2, 12)
    confusion = simplejson.loads((run / "confusion.json").read_text())
    assert confusion["class_names"][:2] == ["move left", "move right"]
    assert (sum(map(sum, confusion["counts"])), len(confusion["counts"])) == (2, 12)
    provenance = simplejson.loads((run / "environment.json").read_text())["provenance"]
    assert {"command", "date", "torch"} <= provenance.keys()
    assert summary["validation_best_top1"] == max(row.get("evaluation/top1", 0.0) for row in metrics)
    loaded = simplejson.loads((run / "weights_loaded.json").read_text())
    assert {"head.projection.weight", "norm.weight"} <= set(loaded["new"])
    assert "mask_token" in loaded["unused"]
    assert "weights from" in text
    recipe = read_classify_recipe(run / "best.safetensors")
    assert recipe.views == 2
    assert recipe.average == "logits"
    assert recipe.clip.frames == 4
    assert load_model(run / "weights.safetensors")(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 12)


def test_pretrained_encoder_is_where_the_run_starts(
    finetune: Finetune, pretrained: Path, tmp_path: Path
) -> None:
    """With a rate of nothing, every shared weight is still the pre-trained one, bit for bit."""
    rate = ["optim.learning_rate=1e-30", "optim.start_learning_rate=0", "optim.end_learning_rate=0"]
    assert finetune(f"model.weights={pretrained}", "optim.weight_decay=0", *rate)[0] == 0
    before, after = read_state(pretrained), read_state(tmp_path / "run" / "weights.safetensors")
    shared = [name for name in after if name in before]
    assert len(shared) > 50
    for name in shared:
        assert torch.equal(before[name], after[name]), name


@pytest.mark.parametrize(("mean", "warned"), [("0.45", False), ("[0.485, 0.456, 0.406]", True)])
def test_other_normalization_than_that_of_the_weights_causes_a_warning(
    finetune: Finetune, pretrained: Path, mean: str, warned: bool
) -> None:
    short = ["optim.epochs=0.25", "optim.warmup_epochs=0"]
    code, text = finetune(f"model.weights={pretrained}", f"clip.mean={mean}", *short)
    assert code == 0, text
    words = "these weights were trained with mean 0.45 and std 0.225, but clip.mean is (0.485, 0.456, 0.406)"
    assert (words in text) == warned
    assert ("these weights were trained" in text) == warned


def test_probe_leaves_the_encoder_alone(finetune: Finetune, pretrained: Path, tmp_path: Path) -> None:
    code, text = finetune(f"model.weights={pretrained}", "model.head=linear", "optim.learning_rate=0.1")
    assert code == 0, text
    assert "the encoder is frozen" in text
    before, after = read_state(pretrained), read_state(tmp_path / "run" / "weights.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("blocks."))
    assert after["head.projection.weight"].std() > 1e-3


@pytest.mark.parametrize("options", [["optim.ema_decay=0.9"], ["optim.optimizer=sgd", "data.balanced=true"]])
def test_resumed_run_equals_the_uninterrupted_one(
    finetune: Finetune, tmp_path: Path, options: list[str], stop_at: Any
) -> None:
    """Bit for bit on the CPU, mixing and augmentation included: stopped after 5 of 8 steps."""
    whole = [*options, f"run.folder={tmp_path / 'whole'}"]
    assert finetune(*whole)[0] == 0
    parted = [*options, f"run.folder={tmp_path / 'parted'}"]
    stop_at(FinetuneRun, 5)
    text = finetune(*parted)[1]
    assert "interrupted" in text
    assert finetune(*parted)[0] == 0
    one, two = (read_state(tmp_path / name / "weights.safetensors") for name in ("whole", "parted"))
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
    keys = ("loss", "train_top1", "evaluation/top1")
    first, second = (
        [{key: row.get(key) for key in keys} for row in rows(tmp_path / n)] for n in ("whole", "parted")
    )
    assert first == second


def test_step_loss_is_soft_cross_entropy_of_mixed_clips() -> None:
    """Against the definition; float32, 1e-6."""
    torch.manual_seed(0)
    model = create_model("maskfeat_mvitv2_nano_classifier", classes=5, **ENCODER).eval()
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    batch = LabeledBatch(clips, torch.tensor([1, 4]), torch.arange(2))
    mixing = Mixing(classes=5, mixup=0.0, cutmix=0.0, probability=1.0, switch=0.5, smoothing=0.1)
    recipe = ClassifyRecipe(ClipRecipe(frames=4, stride=2, crop=32))
    run: Any = SimpleNamespace(network=model, mixing=mixing, recipe=recipe)
    run.loss, run.right = soft_cross_entropy, largest_share
    run.compare = functools.partial(FinetuneRun.classify, run)
    loss, metrics, _ = FinetuneRun.step(run, batch)
    logits = model(normalize(clips, mean=0.45, std=0.225))
    targets = 0.02 * torch.ones(2, 5)
    targets[0, 1] = targets[1, 4] = 0.92
    expected = -(targets * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    right = (logits.argmax(-1) == batch.labels).float().mean() * 100
    assert metrics["train_top1"] == right


def test_best_weights_are_those_of_the_highest_accuracy(tmp_path: Path) -> None:
    model = create_model("maskfeat_mvitv2_nano_classifier", classes=5, **ENCODER)
    best = BestWeights(tmp_path / "best.safetensors", lambda path: save_model(model, path))
    for number, top1 in enumerate((10.0, 30.0, 30.0, 20.0)):
        nn.init.constant_(model.head.projection.bias, float(number))
        best.offer(top1)
    assert read_state(tmp_path / "best.safetensors")["head.projection.bias"][0] == 1.0
    again = BestWeights(best.path, lambda path: path.unlink())
    again.load_state_dict(best.state_dict())
    again.offer(25.0)
    assert read_state(tmp_path / "best.safetensors")["head.projection.bias"][0] == 1.0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.classes=5"], ("train.csv", "has the label 5", "labels of 5 classes are 0..4")),
        (["clip.sampling=segment"], ("clip.sampling 'segment' is unknown; did you mean 'segments'",)),
        (["evaluate.crops=2"], ("evaluate.crops 2 must be 1 or 3",)),
        (["clip.sampling=segments"], ("views=2 with sampling=segments", "use views=1")),
        (["evaluate.short_side=16"], ("short side 16 is smaller than the crop 32",)),
        (
            ["evaluate.weights=averaged"],
            ("evaluate.weights=averaged needs averaged weights", "set optim.ema_decay"),
        ),
        (["evaluate.weights=best"], ("evaluate.weights 'best' is unknown; choose from auto, trained",)),
        (["augment.randaugment=rand-m7-z3"], ("z3",)),
        (["mix.mixup=-1"], ("mixup",)),
        (
            ["optim.optimizer=adam"],
            ("optim.optimizer 'adam' is unknown; did you mean 'adamw'?",),
        ),
        (["model.head=max"], ("model.head 'max' is unknown;",)),
        (
            ["clip.flip_swaps_labels=true", "clip.flip=0.5"],
            ("clip.flip_swaps_labels needs class names",),
        ),
        (["clip.flip_swaps_labels=true"], ("clip.flip=0 flips no clip", "set clip.flip=0.5")),
        (["clip.crop_kind=center"], ("clip.crop_kind 'center' is unknown; choose from area, short_side",)),
        (["model.weights=nowhere.pyth"], ("nowhere.pyth: no such file",)),
    ],
)
def test_impossible_settings_are_refused_in_one_line(
    finetune: Finetune, tmp_path: Path, overrides: list[str], words: tuple[str, ...]
) -> None:
    assert_refused(finetune(*overrides), *words)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_weights_of_another_model_are_refused_with_its_likely_name(
    finetune: Finetune, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    save_model(create_model("maskfeat_mvitv2_nano"), path)
    assert_refused(finetune(f"model.weights={path}"), "other.safetensors", "maskfeat_mvitv2_nano")


def test_unlabeled_list_is_refused(finetune: Finetune, sample: Path) -> None:
    (sample / "bare.csv").write_text("".join(f"videos/{n:06d}.mp4\n" for n in range(16)))
    assert_refused(finetune(f"data.train={sample / 'bare.csv'}"), "bare.csv", "label")


def test_unreadable_held_out_video_is_left_out_named_and_counted(
    finetune: Finetune, sample: Path, tmp_path: Path
) -> None:
    """Exit 3, and the score says of how many videos it is; named once, however often it is validated."""
    name = (sample / "val.csv").read_text().split()[0]
    (sample / name).write_bytes(b"this is text")
    code, text = finetune()
    assert code == 3, text
    assert "1 of 2 videos" in text
    assert name in text
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1 held-out videos are left out of every score" in page
    assert name in page
    assert "All videos could be read" not in page
    assert simplejson.loads((tmp_path / "run" / "summary.json").read_text())["videos"] == 1
    assert text.count(f"unreadable held-out video, left out: {sample / name}: not a video file") == 1
    (line,) = (tmp_path / "run" / "heldout_failures.jsonl").read_text().splitlines()
    assert simplejson.loads(line) == {"path": str(sample / name), "cause": "not a video file"}


def test_classes_in_words_have_one_number_in_both_lists(
    finetune: Finetune, sample: Path, tmp_path: Path
) -> None:
    """Kinetics' own CSV; the held-out list lacks the first class in the alphabet."""
    names = (sample / "classes.txt").read_text().splitlines()
    for split in ("train", "val"):
        rows = [line.split() for line in (sample / f"{split}.csv").read_text().splitlines()]
        lines = ["label,youtube_id,time_start,time_end,split"]
        for number, (path, label) in enumerate(rows):
            lines.append(f"{names[int(label)]},{split}{number},0,1,{split}")
            (sample / path).rename(sample / f"{split}{number}_000000_000001.mp4")
        (sample / f"{split}_own.csv").write_text("\n".join(lines) + "\n")
    lists = [f"data.train={sample / 'train_own.csv'}", f"data.validation={sample / 'val_own.csv'}"]
    code, text = finetune(*lists, "optim.epochs=1", "optim.warmup_epochs=0")
    assert code == 0, text
    assert read_classify_recipe(tmp_path / "run" / "best.safetensors").class_names == tuple(sorted(names))
    config = load_config(FinetuneConfig, None, lists)
    held_out = read_lists(config).validation
    assert held_out is not None
    own = [line.split(",")[0] for line in (sample / "val_own.csv").read_text().splitlines()[1:]]
    assert held_out.labels.tolist() == [sorted(names).index(name) for name in own]
    assert held_out.labels.min() > 0


def test_resumed_run_keeps_the_views_it_was_last_tested_with(finetune: Finetune, tmp_path: Path) -> None:
    """The views may change between a run and its resumption; file and summary speak of the same ones."""
    assert finetune()[0] == 0
    assert finetune("evaluate.views=3")[0] == 0
    assert simplejson.loads((tmp_path / "run" / "summary.json").read_text())["views"] == 3
    assert read_classify_recipe(tmp_path / "run" / "best.safetensors").views == 3


def test_weights_without_a_channel_order_cause_a_warning(finetune: Finetune, tmp_path: Path) -> None:
    path = tmp_path / "slowfast.pyth"
    torch.save({"model_state": create_model("maskfeat_mvitv2_nano", **ENCODER).state_dict()}, path)
    code, text = finetune(f"model.weights={path}")
    assert code == 0, text
    assert "slowfast.pyth does not contain the order and normalization of color channels" in text
    assert "import-slowfast" in text


@pytest.mark.cuda
def test_run_on_a_gpu_mixes_averages_and_scores(finetune: Finetune, pretrained: Path, tmp_path: Path) -> None:
    more = ["optim.ema_decay=0.5", "data.workers=1"]
    code, text = finetune(f"model.weights={pretrained}", "run.device=cuda", *more)
    assert code == 0, text
    run = tmp_path / "run"
    assert [row["step"] for row in rows(run) if "evaluation/top1" in row] == [4, 8]
    assert simplejson.loads((run / "summary.json").read_text())["videos"] == 2
    assert load_model(run / "weights.safetensors")(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 12)


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


def read(folder: Path, *overrides: str) -> ClassLists:
    data = [f"data.train={folder / 'train.csv'}", f"data.validation={folder / 'val.csv'}"]
    return read_lists(load_config(FinetuneConfig, None, [*data, *overrides]))


def labels(lists: ClassLists) -> tuple[list[int], list[int]]:
    assert lists.validation is not None
    assert lists.train.labels is not None
    assert lists.validation.labels is not None
    return lists.train.labels.tolist(), lists.validation.labels.tolist()


def test_classes_in_words_have_the_numbers_of_the_training_list(lists: Path) -> None:
    """The held-out list lacks a class, and by itself would number the others from 0."""
    class_lists = read(lists)
    assert class_lists.names == ("archery", "bowling", "cooking")
    assert labels(class_lists) == ([0, 1, 2, 1], [2, 1])


@pytest.mark.parametrize("name", ["names.txt", "names.json"])
def test_a_file_of_names_numbers_both_lists(lists: Path, name: str) -> None:
    names = ["cooking", "bowling", "archery", "dancing"]
    text = "\n".join(names) if name == "names.txt" else json.dumps(names)
    (lists / name).write_text(text)
    class_lists = read(lists, f"data.class_names={lists / name}")
    assert class_lists.classes == 4
    assert labels(class_lists) == ([2, 1, 0, 1], [0, 1])


def test_class_of_the_held_out_list_alone_is_refused(lists: Path) -> None:
    (lists / "val.csv").write_text((lists / "val.csv").read_text().replace("cooking", "cookin"))
    with pytest.raises(UserError, match=r"val\.csv: class 'cookin' .* did you mean 'cooking'"):
        read(lists)


def test_words_of_another_number_than_the_classes_are_refused(lists: Path) -> None:
    with pytest.raises(UserError, match=r"has 3 class names, but data\.classes is 400; set data\.classes=0 "):
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
    text = label_gap_warning(records, max(numbers) + 1)
    assert re.search(words, text) if words else not text


@pytest.mark.parametrize(("name", "billions"), [("maskfeat_mvitv2_s_classifier", 71.4), ("mvitv2_s", 64.5)])
def test_multiply_adds_are_the_published_ones(name: str, billions: float) -> None:
    clip = torch.zeros(1, 3, 16, 224, 224)
    assert round(multiply_adds(create_model(name), (clip,)) / 1e9, 1) == billions


def plan(model: torch.nn.Module, *overrides: str) -> str:
    """Of fine-tuning a model on 64 videos."""
    config = load_config(FinetuneConfig, None, ["clip.frames=8", "clip.crop=64", *overrides])
    records = Records.from_paths(["a.mp4"] * 64, [0] * 64, source="train.csv")
    recipe = ClassifyRecipe.of(config.clip, config.evaluate, ())
    run = SimpleNamespace(
        config=config, model=model, lists=ClassLists(records, None, 5, ()), recipe=recipe, lora=None
    )
    return "\n".join(FinetuneRun.plan(run))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        ([], False),
        (["optim.accumulate=8"], False),  # two videos of two clips
        (["optim.accumulate=16"], True),
        (["optim.accumulate=16", "clip.samples_per_video=1"], False),
        (["optim.accumulate=32", "clip.samples_per_video=1"], True),
        (["optim.accumulate=16", "mix.mixup=0", "mix.cutmix=0"], False),
        (["optim.accumulate=16", "mix.probability=0"], False),
    ],
)
def test_plan_warns_if_no_two_videos_can_be_mixed(overrides: list[str], warned: bool) -> None:
    """The default is 32 clips per step, two per video."""
    model = create_model("maskfeat_mvitv2_nano_classifier", classes=5)
    words = (
        "mixing    never of two videos: a micro-batch contains one; lower optim.accumulate or the number of"
    )
    assert (words in plan(model, *overrides)) == warned


@pytest.mark.parametrize(
    ("learned", "words"),
    [(1_285, "(1.28 K learned"), (9_999, "(10.00 K learned"), (10_000, "(0.01 M learned")],
)
def test_plan_states_the_learned_parameters_of_a_probe(learned: int, words: str) -> None:
    model = create_model("maskfeat_mvitv2_nano_classifier", classes=5).requires_grad_(False)
    model.probe = torch.nn.Parameter(torch.zeros(learned))
    assert words in plan(model)


# Each rank draws its own drop path and mixing.
SAME = ["model.drop_path=0.0", "mix.mixup=0", "mix.cutmix=0", "data.balanced=true", "optim.ema_decay=0.9"]


def finetune_on_ranks(count: int, sample: Path, run: Path) -> None:
    """A tiny run with 3 held-out videos, so that one of two ranks has one more."""
    rows = (sample / "val.csv").read_text() + (sample / "test.csv").read_text().splitlines()[0] + "\n"
    (sample / "three.csv").write_text(rows)
    data = [f"data.train={sample / 'train.csv'}", f"data.validation={sample / 'three.csv'}"]
    overrides = [*TINY, *SAME, *data, f"run.folder={run}"]
    run_verb(count, "finetune", *overrides)


@pytest.mark.slow
def test_two_ranks_learn_and_score_what_one_does(sample: Path, tmp_path: Path) -> None:
    """Sums of gradients in another order: losses equal to 1e-4; accuracies of 3 videos exactly."""
    finetune_on_ranks(1, sample, tmp_path / "one")
    finetune_on_ranks(2, sample, tmp_path / "two")
    one, two = (
        [simplejson.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("one", "two")
    )
    assert len(one) == 8
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-4)
    for key in ("evaluation/top1", "evaluation/top5"):
        assert [row.get(key) for row in one] == [row.get(key) for row in two]
    first, second = (simplejson.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "two"))
    assert {key: first[key] for key in ("top1", "top5", "videos")} == {
        key: second[key] for key in ("top1", "top5", "videos")
    }
    assert first["videos"] == 3
