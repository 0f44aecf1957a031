"""YAML configs of every verb, also PySlowFast's, and overrides on the command line."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz.campaign import ROOT
from tests.fuzz.mutations import merged, mutate_document, mutate_tree, to_text
from tests.fuzz.victim import Case, verb
from tests.jobs.action_set import write_detector
from tests.jobs.conftest import TINY
from tests.jobs.weights_files import write_pretrained
from videomaskfeat.data.sample import write_sample_data

_VERBS = {
    "pretrain": "pretrain",
    "finetune": "finetune",
    "detect": "detect-train",
    "tokenizer": "train-tokenizer",
}
_SAMPLES = {folder: sorted((ROOT / "configs" / folder).glob("sample*.yaml")) for folder in _VERBS}
_GOLDEN = ("maskfeat_mvitv2_video", "mvitv2_kinetics", "mae_vit_video", "maskfeat_vit_image")
_DETECT = {
    "persons": {"boxes": "boxes.csv", "box_score": 0.5, "every": 1.0, "start_second": None},
    "actions": {"threshold": 0.4, "top": 3, "smooth_seconds": 0.7, "film": True, "csv": False},
    "machine": {"device": "cpu", "precision": "auto", "clips_at_once": 8},
}
_BOUNDED = ("data.workers=0", "run.device=cpu", "run.compile=false", "run.folder=run")
"""Last on the command line, to override a damaged config: no processes, and no other folder."""
_OVERRIDES = (
    "", "=", "a", "optim", "optim=", "optim.epochs", "optim.epochs=", ".=1", "optim..epochs=1",
    "optim.epochs=x", "optim.epochs=[", "optim.epochs={a", "optim.epochs=${data.train}", "optim.epochs=${",
    "optim=3", "model=",
    "model.arguments=[]", "model.arguments={depth: x}", "model.arguments={depth: -1}", "clip.crop=1e400",
    "model.arguments={width: 1000000000000}", "target.arguments={bins: 1000000000}", "clip.frames=nan",
    "target.arguments={bins: -3}", "optim.betas=[]", "mask.cell=null", "mask.ratio=.nan", "data.train=\x01",
    "data.train=caf\udce9", "model=caf\udce9", "\udce9=1", "optim.epochs=" + "9" * 6000, "optim.a[0]=1",
    "mask.cell=" + "[" * 500 + "]" * 500, "run.seed=-1", "run.seed=" + "9" * 30, "model.name=", "target=null",
    "clip.frames=9223372036854775807", "optim.batch_size=9223372036854775807", "optim.epochs=1e18",
    "optim.epochs=.inf", "run.precision=[1]", "mask={}", "clip={}", "data={}",
    "model.arguments.depth=!!set {a}",
)  # fmt: skip


def prepare(material: Path) -> None:
    """Write a tiny data set and weights."""
    write_sample_data(material / "sample", videos=12, frames=8, size=32, seed=3, ava_videos=0, images=0)
    train = material / "sample" / "train.csv"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:2]))
    write_detector(material / "detector.safetensors")
    write_pretrained(material / "pretrained.safetensors")


def make_case(seed: int, material: Path, folder: Path) -> Case:
    """A damaged config, and the verb that reads it."""
    rng = random.Random(f"configs {seed}")
    make = rng.choices((_config, _overrides, _training, _compare, _detect, _slowfast), (8, 3, 1, 2, 1, 3))[0]
    return make(rng, material)


def _sample(rng: random.Random) -> tuple[str, dict[str, Any]]:
    kind = rng.choice(["pretrain", "pretrain", *_VERBS])
    return _VERBS[kind], yaml.safe_load(rng.choice(_SAMPLES[kind]).read_text())


def _config(rng: random.Random, material: Path) -> Case:
    """A config with a missing list of videos: everything before it is built."""
    name, tree = _sample(rng)
    Path("config.yaml").write_bytes(mutate_document(tree, rng))
    return verb(name, "--config", "config.yaml", "data.train=missing.csv", *_BOUNDED)


def _overrides(rng: random.Random, material: Path) -> Case:
    name, tree = _sample(rng)
    Path("config.yaml").write_bytes(to_text(tree))
    overrides = [rng.choice(_OVERRIDES) for _ in range(rng.choice([1, 1, 2]))]
    return verb(name, "--config", "config.yaml", "data.train=missing.csv", *overrides, *_BOUNDED)


def _training(rng: random.Random, material: Path) -> Case:
    """One step on two videos, with one or two damaged values in the config."""
    tree: dict[str, Any] = {"optim": {}, "run": {"pictures": 0}, "mask": {}, "clip": {}, "data": {}}
    for override in TINY:
        section, _, rest = override.partition(".")
        key, _, value = rest.partition("=")
        tree = merged(tree, {section: {key: yaml.safe_load(value)}})
    tree["optim"].update(learning_rate=1e-3, betas=[0.9, 0.95], gradient_clip=1.0, weight_decay=0.05)
    tree["target"] = {"name": "hog", "arguments": {"bins": 9}}
    Path("config.yaml").write_bytes(to_text(mutate_tree(tree, rng)))
    sizes = [
        "optim.epochs=1",
        "optim.batch_size=2",
        "optim.base_batch_size=2",
        "clip.frames=4",
        "clip.crop=32",
    ]
    train = f"data.train={material / 'sample' / 'train.csv'}"
    return verb("pretrain", "--config", "config.yaml", train, *sizes, *_BOUNDED)


def _compare(rng: random.Random, material: Path) -> Case:
    """The plan of a comparison."""
    from videomaskfeat.config import load_config
    from videomaskfeat.jobs.compare import plan_runs
    from videomaskfeat.schemas.compare import CompareConfig

    tree = yaml.safe_load(rng.choice(sorted((ROOT / "configs" / "compare").glob("sample*.yaml"))).read_text())
    names = rng.sample(sorted(tree["compare"]["targets"]), 2)
    tree["compare"]["targets"] = {name: tree["compare"]["targets"][name] for name in names}
    os.symlink(ROOT / "configs", "configs")
    Path("compare.yaml").write_bytes(mutate_document(tree, rng))

    def run() -> None:
        config = load_config(CompareConfig, "compare.yaml", ["compare.folder=out", "compare.seeds=1"])
        assert plan_runs(config.compare)

    return Case("compare --config compare.yaml (its plan)", run)


def _detect(rng: random.Random, material: Path) -> Case:
    Path("detect.yaml").write_bytes(mutate_document(_DETECT, rng))
    Path("boxes.csv").write_text("missing,1,0.1,0.1,0.9,0.9,,0.9\n")
    weights = material / "detector.safetensors"
    return verb(
        "detect", weights, "missing.mp4", "--config", "detect.yaml", "--device", "cpu", "--out", "out"
    )


def _slowfast(rng: random.Random, material: Path) -> Case:
    golden = ROOT / "tests" / "golden" / rng.choice(_GOLDEN)
    tree = yaml.safe_load((golden / "config.yaml").read_text())
    Path("slowfast.yaml").write_bytes(mutate_document(tree, rng))
    return verb(
        "import-slowfast", "--config", "slowfast.yaml", "--checkpoint", golden / "checkpoint.pyth", "out"
    )
