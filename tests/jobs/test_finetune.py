"""Fine-tuning end to end on a tiny sample, and the words of what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import simplejson
import torch
from torch import nn

from videomaskfeat.cli import main
from videomaskfeat.config import load_config
from videomaskfeat.data.augment import Mixing
from videomaskfeat.data.batches import LabelledBatch
from videomaskfeat.engine.run import BestWeights
from videomaskfeat.jobs.finetune import FinetuneRun, read_lists
from videomaskfeat.models import create_model
from videomaskfeat.models.weights import load_model, read_state, save_weights
from videomaskfeat.recipe import (
    METADATA_KEY,
    ClassifyRecipe,
    ClipRecipe,
    PretrainRecipe,
    normalize,
    read_classify_recipe,
)
from videomaskfeat.schemas import FinetuneConfig

from .test_pretrain import last_line, rows

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
def finetune(sample: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Finetune:
    """``finetune(*overrides) -> (exit code, what stderr says)`` of a tiny run in ``tmp_path / "run"``."""

    def call(*overrides: str) -> tuple[int, str]:
        data = [f"data.train={sample / 'train.csv'}", f"data.validation={sample / 'val.csv'}"]
        code = main(["finetune", *TINY, *data, f"run.folder={tmp_path / 'run'}", *overrides])
        return code, capfd.readouterr().err

    return call


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """Weights of a pre-training run of the tiny encoder."""
    torch.manual_seed(7)
    path = tmp_path / "pretrained.safetensors"
    recipe = PretrainRecipe(ClipRecipe(frames=4, stride=2, crop=32)).to_json()
    save_weights(path, create_model("maskfeat_mvitv2_nano", **ENCODER), metadata={METADATA_KEY: recipe})
    return path


def assert_refused(result: tuple[int, str], *words: str) -> None:
    """Exit code 2, one line with all these words, and no traceback."""
    code, text = result
    assert code == 2, text
    assert "Traceback" not in text
    line = last_line(text)
    assert line.startswith("videomaskfeat finetune: ")
    for word in words:
        assert word in line, f"{word!r} is not in {line!r}"


def test_run_leaves_a_classifier_that_knows_its_classes_and_views(
    finetune: Finetune, pretrained: Path, tmp_path: Path
) -> None:
    code, text = finetune(f"model.weights={pretrained}", "evaluate.average=logits")
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
    assert (summary["videos"], summary["listed"], summary["views"]) == (2, 2, 2)
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


@pytest.mark.parametrize(("mean", "told"), [("0.45", False), ("[0.485, 0.456, 0.406]", True)])
def test_other_normalisation_than_that_of_the_weights_is_told(
    finetune: Finetune, pretrained: Path, mean: str, told: bool
) -> None:
    short = ["optim.epochs=0.25", "optim.warmup_epochs=0"]
    code, text = finetune(f"model.weights={pretrained}", f"clip.mean={mean}", *short)
    assert code == 0, text
    words = "these weights saw pixels less 0.45, by 0.225; here clip.mean is (0.485, 0.456, 0.406)"
    assert (words in text) == told
    assert ("these weights saw" in text) == told


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
    batch = LabelledBatch(clips, torch.tensor([1, 4]), torch.arange(2))
    mixing = Mixing(classes=5, mixup=0.0, cutmix=0.0, probability=1.0, switch=0.5, smoothing=0.1)
    recipe = ClassifyRecipe(ClipRecipe(frames=4, stride=2, crop=32))
    run: Any = SimpleNamespace(network=model, mixing=mixing, recipe=recipe)
    run.compare = functools.partial(FinetuneRun.classify, run)
    loss, metrics, _ = FinetuneRun.step(run, batch)
    logits = model(normalize(clips, mean=0.45, std=0.225))
    wanted = 0.02 * torch.ones(2, 5)
    wanted[0, 1] = wanted[1, 4] = 0.92
    expected = -(wanted * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    right = (logits.argmax(-1) == batch.labels).float().mean() * 100
    assert metrics["train_top1"] == right


def test_best_weights_are_those_of_the_highest_accuracy(tmp_path: Path) -> None:
    model = create_model("maskfeat_mvitv2_nano_classifier", classes=5, **ENCODER)
    best = BestWeights(tmp_path / "best.safetensors", lambda path: save_weights(path, model))
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
        (["data.classes=5"], ("train.csv", "has the label 5", "with 5 classes labels are 0..4")),
        (["clip.sampling=segment"], ("clip.sampling 'segment' is unknown; did you mean 'segments'",)),
        (["evaluate.crops=2"], ("evaluate.crops 2 must be 1 or 3",)),
        (["clip.sampling=segments"], ("views=2 with sampling=segments", "take views=1")),
        (["evaluate.short_side=16"], ("short side 16 is smaller than the crop 32",)),
        (["evaluate.weights=averaged"], ("evaluate.weights is averaged", "set optim.ema_decay")),
        (["evaluate.weights=best"], ("evaluate.weights 'best' is unknown; there are auto, trained",)),
        (["augment.randaugment=rand-m7-z3"], ("z3",)),
        (["mix.mixup=-1"], ("mixup",)),
        (
            ["optim.optimizer=adam"],
            ("optim.optimizer 'adam' is unknown; did you mean 'adamw'? there are adamw, sgd"),
        ),
        (["model.head=max"], ("head 'max' is unknown; there are mean, token, linear, attentive",)),
        (
            ["clip.flip_swaps_labels=true", "clip.flip=0.5"],
            ("clip.flip_swaps_labels needs the names of the classes",),
        ),
        (["clip.flip_swaps_labels=true"], ("clip.flip=0 flips none", "set clip.flip=0.5")),
        (["clip.crop_kind=centre"], ("clip.crop_kind 'centre' is unknown; there are area, short_side",)),
        (["model.weights=nowhere.pyth"], ("nowhere.pyth: no such file of weights",)),
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
    save_weights(path, create_model("maskfeat_mvitv2_nano"))
    assert_refused(finetune(f"model.weights={path}"), "other.safetensors", "maskfeat_mvitv2_nano")


def test_unlabelled_list_is_refused(finetune: Finetune, sample: Path) -> None:
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
    assert "1 held-out videos were left out of every score" in page
    assert name in page
    assert "every video could be read" not in page
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


def test_weights_that_do_not_know_their_colours_say_so(finetune: Finetune, tmp_path: Path) -> None:
    path = tmp_path / "slowfast.pyth"
    torch.save({"model_state": create_model("maskfeat_mvitv2_nano", **ENCODER).state_dict()}, path)
    code, text = finetune(f"model.weights={path}")
    assert code == 0, text
    assert "slowfast.pyth does not say in which order its model takes colours" in text
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
