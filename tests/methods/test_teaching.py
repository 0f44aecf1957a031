"""What all methods with a teacher promise: gradients, weights, schedules, resuming, a stop of collapse."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.autograd import saved_for_backward
from tests.engine.toy import differences, metrics
from tests.jobs.test_pretrain import assert_refused
from tests.methods.tiny import ARGUMENTS, heldout_loss, make_batch, tiny_method
from videomaskfeat import read_features
from videomaskfeat.cli import main
from videomaskfeat.data.pair_clips import PairClips
from videomaskfeat.data.records import Records
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.methods.teaching import PairMethod
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.loading import load_model
from videomaskfeat.stored_recipe import read_recipe

Pretrain = Callable[..., tuple[int, str]]
METHODS = tuple(ARGUMENTS)


def overrides_of(name: str, **more: float) -> list[str]:
    """A method and its arguments as a run's overrides."""
    further = "".join(f", {key}: {value}" for key, value in more.items())
    return [f"method={name}", f"method.arguments={ARGUMENTS[name][:-1]}{further}}}"]


@pytest.mark.parametrize("model", ["mvit", "vit", "image"])
@pytest.mark.parametrize("name", METHODS)
def test_every_weight_of_the_student_learns_and_none_of_the_teacher(name: str, model: str) -> None:
    """A weight without any gradient would make several processes wait for ever."""
    method = tiny_method(name, model)
    loss, logged, _ = method.loss(method.student, make_batch(method))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(value.ndim == 0 for value in logged.values())
    assert not [key for key, weight in method.student.named_parameters() if weight.grad is None]
    assert not [key for key, weight in method.teacher.module.named_parameters() if weight.grad is not None]
    learned = sum(
        weight.grad.abs().sum() for weight in method.encoder.parameters() if weight.grad is not None
    )
    assert learned > 0


@pytest.mark.parametrize("name", METHODS)
def test_making_the_target_keeps_nothing_for_a_backward(name: str) -> None:
    """Not a tensor is saved, where the student's forward on the same clips saves many."""
    method = tiny_method(name)
    batch = make_batch(method)
    assert saved_for_backward(lambda: method.make_target(batch)) == 0
    assert saved_for_backward(lambda: method.loss(method.student, batch)) > 10


@pytest.mark.parametrize("name", METHODS)
def test_teacher_takes_in_the_students_weights_after_a_step(name: str) -> None:
    """w = m w + (1 - m) student, with m at the share of the run before the step; float32, 1e-6."""
    method = tiny_method(name)
    state = method.loss(method.student, make_batch(method)).state
    start = {"byol": 0.97, "ibot": 0.996, "latent": 0.998}[name]
    assert method.after_step(0.5, [state])["teacher_momentum"] == start
    before = [weight.clone() for weight in method.teacher.module.parameters()]
    with torch.no_grad():
        for weight in method.student.parameters():
            weight.add_(1.0)
    figures = method.after_step(0.75, [state])
    momentum = (start + 1) / 2  # half way along the cosine or the line
    assert figures["teacher_momentum"] == pytest.approx(momentum, abs=1e-9)
    for old, new in zip(before, method.teacher.module.parameters(), strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * (old + 1.0), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_momentum_is_chosen_by_the_length_of_the_run(name: str) -> None:
    """Little of the random start is left, and a long run has the published momentum."""
    method = tiny_method(name)
    (line,) = method.set_length(200)
    share = math.prod(method.teacher.momentum(step / 200) for step in range(200))
    assert 0 < share <= 1e-4
    start = method.teacher.momentum(0.0)
    assert line == (
        f"teacher   momentum {start:g} to 1 (chosen for 200 steps): {share:.2g} of its random start is left "
        "at the end"
    )
    assert method.set_length(50_000)[0].startswith(
        f"teacher   momentum {0.97 if name == 'byol' else 0.996 if name == 'ibot' else 0.998:g} to 1 (chosen"
    )
    method = tiny_method(name, "mvit", "method.arguments={momentum: 0.99}")
    lines = method.set_length(200)
    assert method.teacher.momentum(0.0) == 0.99
    assert "momentum 0.99 to 1 (as configured; 200 steps): 0.36 of its random start" in lines[0]
    assert "method.arguments.momentum 0.99 leaves more than 0.01 of the teacher's random start" in lines[1]


@pytest.mark.parametrize(
    ("epochs", "momentum"), [(1, 0.97), (40, 0.97), (100, 0.99), (300, 0.99), (1000, 0.996)]
)
def test_momentum_of_byol_rises_with_the_epochs(epochs: int, momentum: float) -> None:
    """The presets of BYOL's code."""
    assert tiny_method("byol", "mvit", f"optim.epochs={epochs}").teacher.momentum(0.0) == momentum


@pytest.mark.parametrize(("name", "published"), [("byol", (0.08, 1.0)), ("ibot", (0.25, 1.0))])
def test_pairs_have_the_published_augmentation(name: str, published: tuple[float, float]) -> None:
    """Crops, blur and solarization of BYOL and iBOT (arXiv 2006.07733, table 6; 2111.07832), unless set."""
    method = tiny_method(name)
    assert isinstance(method, PairMethod)
    records = Records.from_paths(["a.mp4"], None, source="train.csv")
    dataset = method.dataset(records, crop=RandomResizedCrop(32))
    assert isinstance(dataset, PairClips)
    first, second = dataset.colors
    assert first is not None
    assert second is not None
    assert (first.blur, second.blur, first.solarize, second.solarize) == (1.0, 0.1, 0.0, 0.2)
    for color in (first, second):
        changes = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
        assert (color.jitter.max_changes, color.chance, color.gray) == (changes, 0.8, 0.2)
    assert dataset.transform.area == published
    if name == "ibot":
        assert dataset.local is not None
        assert dataset.local.color is not None
        assert dataset.local.transform.area == (0.05, 0.25)
        assert (dataset.local.color.blur, dataset.local.color.solarize) == (0.5, 0.0)
    own = method.dataset(records, crop=RandomResizedCrop(32, area=(0.3, 0.9)))
    assert own.transform.area == (0.3, 0.9)
    method = tiny_method(name, "mvit", "method.arguments={crop_area: [0.5, 1.0]}")
    assert method.dataset(records, crop=RandomResizedCrop(32)).transform.area == (0.5, 1.0)


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_figures_do_not_change_what_is_evaluated(name: str) -> None:
    """Held-out losses in the midst of a run leave no trace, and are of the end's schedules."""
    one, two = tiny_method(name), tiny_method(name)
    held_out = make_batch(two, seed=5)
    figures = []
    for method in (one, two):
        method.student.train()
        loss, _, state = method.loss(method.student, make_batch(method))
        if method is two:
            first, second = (heldout_loss(method, held_out, held_out) for _ in range(2))
            assert first == second
            assert first.clips == 2 * len(held_out.index)
            assert (first.constant is None) == (name == "latent")
            assert method.student.training
        figures.append((loss.item(), method.after_step(0.25, [state])))
        again = method.loss(method.student, make_batch(method, seed=2)).loss
        figures[-1] += (again.item(),)
    assert figures[0] == figures[1]


@pytest.mark.parametrize("name", METHODS)
def test_resumed_run_equals_the_uninterrupted_one(name: str, pretrain: Pretrain, tmp_path: Path) -> None:
    """Bit for bit: weights, optimizer, teacher, centers, moving averages, every logged number."""
    overrides = [
        *overrides_of(name, collapse_grace=0.2),
        "run.checkpoint_minutes=0",
        "run.keep_checkpoints=99",
    ]
    overrides += ["run.pictures=0", "model.arguments={depth: 3, width: 8, widen_at: [1], drop_path: 0.3}"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    code, text = pretrain(*overrides, f"run.folder={whole}")
    assert code == 0, text
    steps = len(metrics(whole))
    middle = steps // 2 + 1  # in the second epoch
    (part / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "checkpoints" / f"step_{middle:08d}.pt", part / "checkpoints")
    code, text = pretrain(*overrides, f"run.folder={part}")
    assert code == 0, text
    assert metrics(part) == metrics(whole)[middle:]
    states = [torch.load(run / "checkpoints" / f"step_{steps:08d}.pt") for run in (whole, part)]
    for state in states:
        del state["progress"]["seconds"], state["fingerprint"]
    assert differences(*states) == []
    assert {"teacher", "position", "collapse"} < states[0].keys()


@pytest.mark.parametrize("name", METHODS)
def test_published_encoder_is_saved(name: str, pretrain: Pretrain, sample: Path, tmp_path: Path) -> None:
    """The student's of BYOL, the teacher's of the others."""
    code, text = pretrain(*overrides_of(name), f"data.validation={sample / 'val.csv'}")
    assert code == 0, text
    run = tmp_path / "run"
    path = run / "weights.safetensors"
    encoder = load_model(path)
    assert isinstance(encoder, Encoder)
    assert read_recipe(path).method == name
    last = max((run / "checkpoints").iterdir())
    saved = torch.load(last)["model" if name == "byol" else "teacher"]
    taught = {key.rpartition("encoder.")[2]: value for key, value in saved.items()}
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, taught[key]), key
    for word in ("trained model", "report.html", "no pictures"):
        assert word in text
    assert "untrained" not in text  # its loss is against another teacher, and does not compare
    row = metrics(run)[-1]
    assert 0 < row["feature_std"] <= 1
    assert 0.5 < row["teacher_momentum"] < 1
    page = (run / "report.html").read_text()
    assert f"No pictures: method &#39;{name}&#39; predicts nothing that can be drawn." in page
    assert "Standard deviation of features, near 0 if collapsed" in page
    assert ("Entropy of the teacher" in page) == (name == "ibot")


@pytest.mark.parametrize("name", METHODS)
def test_either_encoder_can_be_saved(name: str) -> None:
    for choice in ("student", "teacher"):
        method = tiny_method(name, "mvit", f"method.arguments={{saved: {choice}}}")
        expected = method.encoder if choice == "student" else method.teacher_encoder
        assert method.weights() == {"weights.safetensors": expected}
    default = tiny_method(name)
    assert default.weights() == {
        "weights.safetensors": default.encoder if name == "byol" else default.teacher_encoder
    }


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_does_not_read_is_said(name: str, pretrain: Pretrain) -> None:
    both = "target, mask" if name == "byol" else "target"  # the tiny run sets a mask
    code, text = pretrain(*overrides_of(name), "target=pixels", "optim.epochs=1", "optim.warmup_epochs=0")
    assert code == 0, text
    assert f"ignored   {both}: method {name} does not use it" in text


def test_weights_are_fine_tuned_and_give_features(pretrain: Pretrain, sample: Path, tmp_path: Path) -> None:
    assert pretrain(*overrides_of("ibot"))[0] == 0
    weights = tmp_path / "run" / "weights.safetensors"
    shape = "model.arguments={depth: 4, width: 8, widen_at: [1, 3]}"
    data = [f"data.train={sample / 'train.csv'}", f"data.validation={sample / 'val.csv'}", "data.workers=0"]
    clip = ["clip.frames=4", "clip.stride=2", "clip.crop=32"]
    short = ["optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=16", "evaluate.short_side=32"]
    name = "model.name=maskfeat_mvitv2_nano_classifier"
    folder = f"run.folder={tmp_path / 'fine'}"
    assert main(["finetune", *data, *clip, *short, name, shape, f"model.weights={weights}", folder]) == 0
    files = [str(weights), str(sample / "val.csv"), str(tmp_path / "features")]
    assert main(["extract-features", *files, "--workers", "0"]) == 0
    features, paths, _ = read_features(tmp_path / "features")
    assert features.shape == (2, encoder_width(weights))
    assert len(paths) == 2


def test_weights_are_a_teacher_for_the_features_target(pretrain: Pretrain, tmp_path: Path) -> None:
    """The route of the offline features: BYOL here, then its features as target, on the same clips."""
    assert pretrain(*overrides_of("byol"))[0] == 0
    weights = tmp_path / "run" / "weights.safetensors"
    target = f"target.arguments={{teacher: {weights}}}"
    code, text = pretrain("target=features", target, f"run.folder={tmp_path / 'next'}", "run.pictures=0")
    assert code == 0, text
    assert metrics(tmp_path / "next")[-1]["loss"] > 0


def encoder_width(weights: Path) -> int:
    encoder = load_model(weights)
    assert isinstance(encoder, Encoder)
    return encoder.out_width


@pytest.mark.parametrize(
    ("name", "limit", "monitor", "words"),
    [
        ("byol", "collapse_std", "feature_std", "it is nearly the same for all clips"),
        ("latent", "collapse_std", "feature_std", "all cells of all clips have nearly the same target"),
        ("ibot", "collapse_std", "feature_std", "all clips have nearly the same features"),
        ("ibot", "collapse_information", "class_information", "all clips have nearly the same distribution"),
    ],
)
def test_collapse_ends_the_run(name: str, limit: str, monitor: str, words: str, pretrain: Pretrain) -> None:
    """A limit above what the monitor can be."""
    result = pretrain(*overrides_of(name, **{limit: 9, "collapse_grace": 0.3}), "run.pictures=0")
    words_of_collapse = ("the features have collapsed", f"{monitor} is ", "below its limit of 9", words)
    assert_refused(result, *words_of_collapse, "lower optim.learning_rate", code=1)
    # The first 0.3 of two epochs does not count; an epoch has 4 steps (latent) or 8 (two clips per video).
    assert f"step {3 if name == 'latent' else 5}: " in result[1].splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        (
            "byol",
            "method.arguments={momentun: 1}",
            ["of 'byol': argument 'momentun' is unknown", "did you mean 'momentum'"],
        ),
        ("byol", "method.arguments={momentum: 2}", ["the teacher's momentum 2 must be between 0 and 1"]),
        ("byol", "method.arguments={color: {gry: 1}}", ["method.arguments.color", "'gry'", "'gray'"]),
        (
            "byol",
            "method.arguments={color: 3}",
            ["method.arguments.color 3 must be a mapping of names to values"],
        ),
        ("byol", "method.arguments={summary: tokens}", ["summary 'tokens'", "did you mean 'token'?"]),
        ("byol", "optim.batch_size=2", ["optim.batch_size 2", "one video per micro-batch", "at least 4"]),
        ("byol", "clip.samples_per_video=3", ["clip.samples_per_video 3", "cuts two clips", "leave it at 1"]),
        ("byol", "optim.batch_size=3", ["batch_size=3 must be a positive multiple"]),
        ("byol", "model.name=maskfeat_mvit2_nano", ["did you mean 'maskfeat_mvitv2_nano'?"]),
        ("byol", "model.arguments={dept: 3}", ["'dept'", "did you mean 'depth'?"]),
        ("byol", "clip.crop=30", ["30", "multiple"]),
        (
            "latent",
            "method.arguments={predictor: mpl}",
            ["predictor 'mpl' is unknown; did you mean", "'mlp'?"],
        ),
        ("latent", "method.arguments={beta: -1}", ["method.arguments.beta -1 must not be negative"]),
        (
            "latent",
            "method.arguments={beta: .nan}",
            ["method.arguments.beta is nan; it must be a finite number"],
        ),
        ("ibot", "method.arguments={ratios: [0.2]}", ["ratios [0.2] must be two numbers, the minimum and"]),
        (
            "ibot",
            "method.arguments={local: {area: [0.4]}}",
            ["local.area [0.4] must be two fractions of the"],
        ),
        ("byol", "method.arguments={saved: studen}", ["saved 'studen'", "did you mean 'student'?"]),
        (
            "byol",
            "method.arguments={crop_area: [0.4]}",
            ["crop_area [0.4] must be two fractions of the frame"],
        ),
        (
            "byol",
            "method.arguments={color: {blur: [1]}}",
            ["color.blur [1] must be two probabilities, of the"],
        ),
        ("byol", "method.arguments={color: {hue: 1}}", ["hue=1: the maximum change must be in 0..0.5"]),
        ("latent", "method.arguments={blocks: 4}", ["blocks 4: the last block outputs", "use at most 2"]),
        (
            "latent",
            "method.arguments={predictor_heads: 5}",
            ["heads 5", "predictor_heads must divide predictor_width"],
        ),
        ("latent", "mask.ratio=0.99", ["mask.ratio 0.99", "no visible cells"]),
        ("latent", "mask.cell=[2,8,8]", ["mask.cell [2, 8, 8]", "does not divide", "2x2x2"]),
        ("ibot", "method.arguments={ratios: [0.5, 0.1]}", ["ratios [0.5, 0.1]: the first must not be above"]),
        ("ibot", "method.arguments={ratios: [0.01, 0.4]}", ["method.arguments.ratios", "no hidden cells"]),
        ("ibot", "method.arguments={ratios: [0.2, 0.99]}", ["method.arguments.ratios", "no visible cells"]),
        ("ibot", "method.arguments={unmasked: 1}", ["unmasked 1 must be at least 0 and below 1"]),
        ("ibot", "method.arguments={student_temperature: 0}", ["student_temperature 0 must be above 0"]),
        (
            "ibot",
            "method.arguments={teacher_temperature: [0, 1]}",
            ["teacher_temperature [0, 1] must be two"],
        ),
        (
            "ibot",
            "method.arguments={temperature_warmup_epochs: 30}",
            ["temperature_warmup_epochs 30", "(optim.epochs 2)"],
        ),
        (
            "ibot",
            "method.arguments={center_momentum: 2}",
            ["the momentum of the centers, 2, must be between 0 and 1"],
        ),
        ("ibot", "method.arguments={class_weight: 0, cube_weight: 0}", ["nor both 0"]),
        (
            "ibot",
            "method.arguments={head: {prototype: 4}}",
            ["argument 'prototype' is unknown; did you mean 'prototypes'?"],
        ),
        ("ibot", "method.arguments={local: {count: 2, size: 30}}", ["local.size 30", "multiple of the cube"]),
        ("ibot", "optim.batch_size=2", ["optim.batch_size 2 is one video per step", "use at least 4"]),
        ("ibot", "mask.cell=[2,8,8]", ["mask.cell [2, 8, 8]", "does not divide", "2x2x2"]),
    ],
)
def test_mistakes_are_refused_before_training(
    name: str, override: str, words: list[str], pretrain: Pretrain
) -> None:
    key, _, text = override.partition("=")
    overrides = [*overrides_of(name), override]
    if key == "method.arguments":  # the last value of an option wins, so it must be whole
        arguments = {**yaml.safe_load(ARGUMENTS[name]), **yaml.safe_load(text)}
        flow = yaml.safe_dump(arguments, default_flow_style=True, width=1000).strip()
        overrides = [f"method={name}", f"method.arguments={flow}"]
    assert_refused(pretrain(*overrides), *words)
