"""The commands of the pages of docs/: each is run on tiny files, or is listed with the reason why not.

The commands of README, of "Prepare data" and of "Your own classes" run in tests/test_docs.py.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch.distributed.run import parse_args as parse_torchrun

from tests.extending import add_module, python_blocks
from tests.models.test_lora import stand_in
from tests.test_docs import EXAMPLES, MODEL, NAMES, README, ROOT, SHORT, SMALL, TINY, blocks, commands_in
from videomaskfeat.cli import CommandLine, main
from videomaskfeat.data.sample import write_sample_data
from videomaskfeat.models.zoo import MODELS, family
from videomaskfeat.verbs import VERBS

GOLDEN = ROOT / "tests/golden/mvitv2_kinetics"
FEW_STEPS = ["optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=4", "optim.base_batch_size=4"]
FEW_STEPS += ["optim.accumulate=1", "run.threads=1", "data.workers=0"]
PRETRAIN = [*TINY["pretrain"], *MODEL["pretrain"], *SHORT, "optim.accumulate=1", "run.pictures=0"]
FINETUNE = [*TINY["finetune"], *MODEL["finetune"], *SHORT, "optim.accumulate=1"]
DETECT = [*SMALL["detect-train"], "model.name=maskfeat_mvitv2_nano_detector", "optim.accumulate=1"]
CHANGES: dict[str, list[str]] = {
    "pretrain": PRETRAIN,
    "finetune": FINETUNE,
    "detect-train": DETECT,
    "plan": PRETRAIN,
    "bench-data": PRETRAIN,
    "check-data": ["--workers", "1"],
    "evaluate": ["--workers", "0"],
    "extract-features": ["--workers", "0"],
    "detect-evaluate": ["--workers", "0"],
}
"""Words added to the commands that start with a verb, so that they are short."""
SAMPLE = "kinetics400"
ANNOTATIONS = f"{SAMPLE}/ava/annotations"
PUBLISHED = "ava_action_list_v2.2_for_activitynet_2019.pbtxt"
PRETRAINED, CLASSIFIER = "pretrained/weights.safetensors", "finetuned/best.safetensors"
FILM = f"{SAMPLE}/ava/videos/actors_000.mp4"
AVA = {
    "ava/videos": f"{SAMPLE}/ava/videos",
    "ava/annotations": ANNOTATIONS,
    f"ava/annotations/{PUBLISHED}": f"{ANNOTATIONS}/ava_action_list_v2.2.pbtxt",
}


@dataclass(frozen=True)
class Page:
    """What the commands of a page need.

    Args:
        files: file or folder of the page -> its copy's source in the folder of tiny files.
        changes: part of a command -> words added to it, instead of those of its verb in ``CHANGES``.
        not_run: start of a command -> the reason why it is not run. It is parsed.
        replaces: part of a command that is an alternative to an earlier one -> the result of the earlier one,
            which is removed.
        written: files that exist at the end.
        section: heading of a section whose commands run in another test.
        prepare: called in the folder of the commands before the first one.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, list[str]] = field(default_factory=dict)
    not_run: Mapping[str, str] = field(default_factory=dict)
    replaces: Mapping[str, str] = field(default_factory=dict)
    written: tuple[str, ...] = ()
    section: str = ""
    prepare: Callable[[pytest.MonkeyPatch], None] = lambda monkeypatch: None


def write_boxes(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Write a boxes file of a video, with a box per second."""

    def write(monkeypatch: pytest.MonkeyPatch) -> None:
        video = "film" if name == "boxes.csv" else "my_video"
        Path(name).write_text("".join(f"{video},{second},0.1,0.1,0.6,0.9,,0.9\n" for second in (1, 2)))

    return write


def add_mixer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the encoder of the page to the zoo, as the page says."""
    file, line = python_blocks("Add an encoder")
    add_module(file, "videomaskfeat.models.mixer", monkeypatch)
    models = dict(MODELS)
    exec(line, {"MODELS": models, "family": family})
    for name in models.keys() - MODELS.keys():
        monkeypatch.setitem(MODELS, name, models[name])


def replace_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("peft") is None:  # the extra lora is not installed
        monkeypatch.setitem(sys.modules, "peft", stand_in())


LONG = "takes more than half an hour; tests/jobs/test_compare.py has smaller ones"
TORCHRUN = "starts 8 processes per machine"
RAY = "needs a Ray cluster and the extra ray"
HIERA = [*TINY["pretrain"], *FEW_STEPS, "model.name=mae_hiera_pico"]
HIERA += ["target.arguments={output_stride: [2, 8, 8]}", "run.pictures=0"]
MIXER = [*FEW_STEPS, f"data.train={SAMPLE}/train.csv", "data.validation=", "clip.frames=4", "clip.crop=32"]
MIXER += ["clip.stride=1", "model.arguments={depth: 2, width: 16}"]
PAGES: dict[str, Page] = {
    "docs/extending.md": Page(
        files={SAMPLE: SAMPLE},
        changes={
            "pretrain": [*MIXER, "run.pictures=0"],
            "finetune": [
                *MIXER,
                f"data.validation={SAMPLE}/val.csv",
                "data.class_names=",
                "evaluate.views=1",
            ],
        },
        written=("demo/finetuned/best.safetensors",),
        prepare=add_mixer,
    ),
    "docs/how_to/choose_a_target.md": Page(
        files={SAMPLE: SAMPLE},
        changes={"pretrain": HIERA},
        written=("runs/k400_hiera_b_mae/weights.safetensors", "runs/k400_hiera_b_hog/weights.safetensors"),
    ),
    "docs/how_to/come_from_pyslowfast.md": Page(
        files={
            "MVITv2_S_16x4.yaml": "slowfast.yaml",
            "MViTv2_S_16x4_k400.pyth": "slowfast.pyth",
            "maskfeat_s.pyth": "pretrained.pyth",
            "k400/train.csv": f"{SAMPLE}/seven_classes.csv",
            "k400/val.csv": f"{SAMPLE}/seven_classes.csv",
            "k400/videos": f"{SAMPLE}/videos",
            SAMPLE: SAMPLE,
        },
        changes={"--config runs/training": [*FEW_STEPS, "clip.stride=1", "evaluate.views=1"]},
        written=("runs/s/best.safetensors", "evaluation/result.json"),
    ),
    "docs/how_to/detect_in_your_videos.md": Page(
        files={
            "actions/train.csv": f"{ANNOTATIONS}/ava_train_v2.2.csv",
            "actions/val.csv": f"{ANNOTATIONS}/ava_val_v2.2.csv",
            "actions/labels.pbtxt": f"{ANNOTATIONS}/ava_action_list_v2.2.pbtxt",
            "my_videos": f"{SAMPLE}/ava/videos",
            "runs/small_gpu/weights.safetensors": PRETRAINED,
            "runs/s_ava/best.safetensors": "detector/best.safetensors",
            "film.mp4": FILM,
        },
        not_run={"videomaskfeat detect best.safetensors": "needs weights of a person detector"},
        written=("runs/small_gpu_actions/best.safetensors",),
        prepare=write_boxes("boxes.csv"),
    ),
    "docs/how_to/evaluate.md": Page(
        files={
            "k400": SAMPLE,
            "runs/k400/best.safetensors": CLASSIFIER,
            "runs/s/weights.safetensors": PRETRAINED,
            "runs/a/evaluation": "evaluation",
            "runs/b/evaluation": "evaluation",
        },
        written=("runs/k400/10x1/report.html", "ensemble/result.json"),
    ),
    "docs/how_to/export.md": Page(
        files={"best.safetensors": CLASSIFIER, "weights.safetensors": PRETRAINED},
        written=(
            "classifier.onnx",
            "classifier.pt2",
            "classifier.pyth",
            "encoder.onnx",
            "encoder.safetensors",
        ),
    ),
    "docs/how_to/run_on_a_cluster.md": Page(
        files={"train.csv": f"{SAMPLE}/train.csv", "videos": f"{SAMPLE}/videos"},
        not_run={
            "videomaskfeat launch --nodes 4": "needs SLURM",
            "videomaskfeat launch --cluster local": "needs the extra launch; trains in the background",
            "ray start --head": RAY,
            "ray start --address": RAY,
            "videomaskfeat check-data": RAY,
            "videomaskfeat prepare-videos": RAY,
            "videomaskfeat pack": RAY,
            "videomaskfeat extract-features": RAY,
            "videomaskfeat evaluate": RAY,
        },
        written=("data.json",),
    ),
    "docs/how_to/stop_and_resume.md": Page(
        files={"runs/first": "pretrained", "clean.csv": "clean.csv", "videos": f"{SAMPLE}/videos"},
        changes={"pretrain": [*PRETRAIN, "optim.epochs=2"]},
        written=("runs/first/checkpoints/step_00000010.pt",),
    ),
    "docs/performance.md": Page(
        not_run={
            "python benchmarks/run.py step": "takes minutes; tests/test_benchmarks.py runs parts of it",
            "python benchmarks/run.py attention": "as above",
            "python benchmarks/run.py --device cuda": "needs a GPU",
            "benchmarks/gpu.sh --prepare": "downloads packages",
            "benchmarks/gpu.sh --wheels": "needs a GPU",
            "benchmarks/gpu.sh --dry": "takes minutes; tests/test_benchmarks.py runs it",
        },
    ),
    "docs/reference/ava_metric.md": Page(
        files={**AVA, "detections.csv": "detections.csv"}, written=("runs/ava/score/result.json",)
    ),
    "docs/reference/run_folder.md": Page(
        not_run={"WANDB_MODE=offline videomaskfeat pretrain": "needs the extra wandb"},
    ),
    "docs/tutorials/ava.md": Page(
        files={**AVA, "runs/s_k400/best.safetensors": CLASSIFIER, "my_video.mp4": FILM},
        changes={"detect-train": [*DETECT, "data.classes=0", "evaluate.every_seconds=1"]},
        written=("runs/s_ava/best.safetensors",),
        prepare=write_boxes("my_boxes.csv"),
    ),
    "docs/tutorials/compare_targets.md": Page(
        changes={"sample-data": ["--factors", "30", "--frames", "8"]},
        not_run={
            "videomaskfeat compare --config configs/compare/factors.yaml --targets": LONG,
            "videomaskfeat compare --config configs/compare/factors.yaml": LONG,
        },
        written=("demo/factors/factors/train_motion.csv",),
    ),
    "docs/tutorials/fine_tune.md": Page(
        files={
            "k400": SAMPLE,
            "runs/k400_maskfeat_mvitv2_s/weights.safetensors": PRETRAINED,
            "my_video.mp4": FILM,
            "train.csv": f"{SAMPLE}/train.csv",
            "val.csv": f"{SAMPLE}/val.csv",
            "classes.txt": f"{SAMPLE}/classes.txt",
            "videos": f"{SAMPLE}/videos",
            "runs/first/weights.safetensors": PRETRAINED,
            "demo/sample": SAMPLE,
            "demo/run/weights.safetensors": PRETRAINED,
            "runs/pretrained": "finetuned",
            "runs/scratch": "finetuned",
        },
        written=("runs/tuned/best.safetensors", "runs/pretrained/comparison.html"),
        section="Your own classes",
        prepare=replace_peft,
    ),
    "docs/tutorials/pretrain.md": Page(
        files={
            "my_videos": f"{SAMPLE}/videos",
            "train.csv": f"{SAMPLE}/train.csv",
            "val.csv": f"{SAMPLE}/val.csv",
            "videos": f"{SAMPLE}/videos",
        },
        replaces={"--config configs/pretrain/sample.yaml": "runs/first"},
        written=("runs/first/report.html", "features/features.npy", "runs/tuned/best.safetensors"),
    ),
    "docs/tutorials/several_gpus.md": Page(
        not_run={"torchrun --nproc-per-node=8": TORCHRUN, "torchrun --nnodes=4": TORCHRUN},
    ),
}
"""Pages with commands, except those of the next table."""
ELSEWHERE = {
    "CONTRIBUTING.md": "its targets of make are checked below",
    "README.md": "tests/test_docs.py",
    "docs/index.md": "has the commands of README, as checked below",
    "docs/how_to/other_weights.md": "tests/jobs/test_import_other_weights.py",
    "docs/how_to/predict.md": "tests/jobs/test_inference_page.py",
    "docs/how_to/prepare_data.md": "tests/test_docs.py",
}


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of tiny files: sample data, a run of each kind, and their results."""
    folder = tmp_path_factory.mktemp("tiny")
    write_sample_data(folder / SAMPLE, videos=24, frames=8, size=40, seed=3, ava_videos=4, images=0)
    rows = (folder / SAMPLE / "train.csv").read_text().splitlines(keepends=True)
    few = "".join(row for row in rows if int(row.split()[1]) < 7)
    (folder / SAMPLE / "seven_classes.csv").write_text(few)
    shutil.copy(folder / SAMPLE / "train.csv", folder / "clean.csv")
    (folder / "videos").symlink_to(folder / SAMPLE / "videos")
    shutil.copy(GOLDEN / "config.yaml", folder / "slowfast.yaml")
    shutil.copy(GOLDEN / "checkpoint.pyth", folder / "slowfast.pyth")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "demo").mkdir()
    (folder / "demo/actors").symlink_to(folder / SAMPLE)
    pretrain, finetune = (f"configs/{kind}/k400_maskfeat_mvitv2_s.yaml" for kind in ("pretrain", "finetune"))
    weights = f"model.weights={PRETRAINED}"
    score = ["--videos", f"{SAMPLE}/ava/videos", "--groundtruth", f"{ANNOTATIONS}/ava_val_v2.2.csv"]
    score += ["--boxes", f"{ANNOTATIONS}/ava_val_predicted_boxes.csv"]
    score += ["--labels", f"{ANNOTATIONS}/ava_action_list_v2.2.pbtxt", "--out", "score"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        for verb, *words in (
            ["pretrain", "--config", pretrain, "data.train=clean.csv", "run.folder=pretrained"],
            ["finetune", "--config", finetune, weights, "run.folder=finetuned", "data.classes=0"],
            ["detect-train", "--config", "configs/detect/sample.yaml", weights, "run.folder=detector"],
            ["evaluate", CLASSIFIER, f"{SAMPLE}/val.csv", "--views", "1", "--out", "evaluation"],
            ["detect-evaluate", "detector/best.safetensors", *score],
            ["export", PRETRAINED, "pretrained.pyth"],
        ):
            assert main([verb, *words, *CHANGES.get(verb, [])]) == 0, (verb, words)
    shutil.copy(folder / "score/detections.csv", folder / "detections.csv")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_the_page_run(
    name: str,
    tiny_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = PAGES[name]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for used, source in page.files.items():
        (tmp_path / used).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (tiny_files / source).is_dir() else shutil.copy)(
            tiny_files / source, tmp_path / used
        )
    monkeypatch.chdir(tmp_path)
    page.prepare(monkeypatch)
    text = (ROOT / name).read_text(encoding="utf-8")
    if page.section:
        before, _, section = text.partition(f"\n## {page.section}\n")
        text = before + section[section.index("\n## ") :]
    left = list(page.not_run)
    for words in commands_in(text):
        command = shlex.join(words)
        listed = [start for start in left if command.startswith(start)]
        if listed:
            check_words(words)
            left.remove(listed[0])
        elif words[0] == "videomaskfeat":
            changes = [more for part, more in page.changes.items() if part in command]
            words += (changes or [CHANGES.get(words[1], [])])[0]
            for replaced in [folder for part, folder in page.replaces.items() if part in command]:
                shutil.rmtree(replaced)
            assert main(words[1:]) == 0, (command, capsys.readouterr().err)
        else:
            assert words[:2] == ["pip", "install"], f"{command}: neither run nor listed in not_run"
            check_words(words)
    assert not left, "listed, but not a command of the page"
    if name not in EXAMPLES:
        for code in blocks(ROOT / name, "python"):
            exec(code, {})
    for written in page.written:
        assert (tmp_path / written).is_file(), written


def check_words(words: list[str]) -> None:
    """Check a command that is not run: program, options, keys and the config file."""
    while re.match(r"[A-Z_]+=", words[0]):  # environment variables
        words = words[1:]
    program, *rest = words
    if program == "videomaskfeat":
        config = CommandLine(rest[0]).read(rest[1:])
        if rest[0] == "launch":
            check_words(["videomaskfeat", *config.command])
    elif program == "torchrun":
        options = parse_torchrun(rest)
        assert options.module
        check_words([options.training_script, *options.training_script_args])
    elif program == "pip":
        assert rest[0] == "install"
        (extra,) = re.findall(r"^videomaskfeat\[(\w+)\]$", rest[1])
        assert f'"{extra}": [' in (ROOT / "setup.py").read_text(encoding="utf-8")
    elif program == "ray":
        assert rest[0] == "start"
    else:
        script = rest[0] if program == "python" else program
        source = (ROOT / script).read_text(encoding="utf-8")
        for option in re.findall(r"--[a-z-]+", " ".join(rest)):
            assert option in source, option


def test_pages_with_commands_are_known() -> None:
    """A new page with commands needs an entry in a table."""
    with_commands = {name for name in NAMES if list(commands_in((ROOT / name).read_text(encoding="utf-8")))}
    assert with_commands == PAGES.keys() | ELSEWHERE.keys()
    assert not PAGES.keys() & ELSEWHERE.keys()


def test_index_has_commands_of_readme_and_contributing_targets_of_make() -> None:
    readme = list(commands_in(README.read_text(encoding="utf-8")))
    for words in commands_in((ROOT / "docs/index.md").read_text(encoding="utf-8")):
        assert words in readme
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"))
    for program, target in commands_in((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        assert program == "make"
        assert target in targets


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_sentences_are_understood(name: str) -> None:
    """Verb and options of commands such as `videomaskfeat check-data LIST --clean CLEAN`."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", (ROOT / name).read_text(encoding="utf-8"))
    for command in re.findall(r"`videomaskfeat ([^`]+)`", text):
        verb, *words = shlex.split(re.sub(r"\s+", " ", command))
        if verb.startswith("--") or verb == "VERB":
            continue
        assert verb in VERBS, command
        options = [word for word in words if word.startswith("--") and word not in ("--help", "--keys")]
        known = CommandLine(verb).parser().format_help()
        assert all(re.search(rf"(?<![\w-]){option}(?![\w-])", known) for option in options), command
