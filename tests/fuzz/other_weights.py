"""Weights of other projects, with damaged names, shapes, configs and archives."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.fuzz.campaign import ROOT
from tests.fuzz.mutations import mutate_bytes, mutate_tree, to_text
from tests.fuzz.victim import Case, verb
from tests.fuzz.weights import tensor_or_value

_GOLDEN = ROOT / "tests" / "golden" / "other_projects"
_MODELS = sorted(path.name for path in _GOLDEN.iterdir() if (path / "model.safetensors").is_file())


def prepare(material: Path) -> None:
    """Nothing: the recorded models are the samples."""


def make_case(seed: int, material: Path, folder: Path) -> Case:
    """A model with a damaged file, and its reader."""
    from videomaskfeat.models.loading import load_model

    rng = random.Random(f"other weights {seed}")
    source, target = _GOLDEN / rng.choice(_MODELS), Path("input")
    target.mkdir()
    for path in sorted(source.glob("*.json")):
        shutil.copy(path, target)
    choice = rng.random()
    if choice < 0.4:
        shutil.copy(source / "model.safetensors", target)
        config = rng.choice(sorted(target.glob("*.json")))
        tree = mutate_tree(json.loads(config.read_text()), rng)
        config.write_bytes(to_text(tree) if rng.random() < 0.9 else mutate_bytes(to_text(tree), rng))
    elif choice < 0.9:
        state: Any = mutate_tree(dict(load_file(source / "model.safetensors")), rng, tensor_or_value)
        key = rng.choice(["model", "module", "target_encoder", "encoder"])
        content = (
            state if rng.random() < 0.5 else {key: state, "args": tensor_or_value(rng), "meta": rng.random()}
        )
        torch.save(content, target / "pytorch_model.bin")
    else:
        data = mutate_bytes((source / "model.safetensors").read_bytes(), rng)
        (target / "model.safetensors").write_bytes(data)
    if rng.random() < 0.5:
        return Case("load_model input", lambda: load_model("input"))
    return verb("import-weights", "input", "out", "--heads", "2")
