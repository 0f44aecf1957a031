"""Weights files: safetensors of every kind of model, and PySlowFast's .pyth."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.data.make_videos import write_video
from tests.fuzz.campaign import ROOT
from tests.fuzz.checkpoints import damaged_archive
from tests.fuzz.mutations import LARGE, mutate_bytes, mutate_tree, nested, plain_value, reencode, to_text
from tests.fuzz.victim import Case, verb
from tests.jobs.action_set import write_detector
from tests.jobs.weights_files import write_classifier, write_pretrained
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.tokenizers import create_tokenizer

_TOKENIZERS = {
    "dvae": {"vocabulary": 16, "stride": 4, "width": 16, "blocks": 1, "code_width": 8},
    "vq": {"vocabulary": 16, "stride": 4, "width": 16, "blocks": 1, "code_width": 4},
}
_FILES = ("pretrained", "classifier", "detector", "dvae", "vq")
_GOLDEN = ("maskfeat_mvitv2_video", "mvitv2_kinetics", "mae_vit_video", "maskfeat_vit_image")


def prepare(material: Path) -> None:
    """Write weights files, and a video for them."""
    write_pretrained(material / "pretrained.safetensors")
    write_classifier(material / "classifier.safetensors")
    write_detector(material / "detector.safetensors")
    for kind, arguments in _TOKENIZERS.items():
        torch.manual_seed(0)
        save_model(create_tokenizer(kind, **arguments), material / f"{kind}.safetensors")
    write_video(material / "video.mp4", frames=10, width=48, height=32)
    (material / "boxes.csv").write_text("video,0,0.1,0.1,0.9,0.9,,0.9\n")


def make_case(seed: int, material: Path, folder: Path) -> Case:
    """A damaged weights file, and its reader."""
    rng = random.Random(f"weights {seed}")
    for name in ("video.mp4", "boxes.csv"):
        shutil.copy(material / name, name)
    if rng.random() < 0.2:
        return _pyth(rng)
    kind = rng.choice(_FILES)
    header, body = _split((material / f"{kind}.safetensors").read_bytes())
    Path("input.safetensors").write_bytes(_damaged(header, body, rng))
    return _entry(kind, rng)


def _entry(kind: str, rng: random.Random) -> Case:
    from videomaskfeat.inference.classifiers import load_classifier, load_encoder
    from videomaskfeat.inference.detectors import load_detector
    from videomaskfeat.models.loading import load_model
    from videomaskfeat.models.tokenizers import load_tokenizer

    weights, video = "input.safetensors", "video.mp4"
    bounded = ("data.train=missing.csv", "data.workers=0", "run.device=cpu", "run.folder=run")
    calls: dict[str, list[Case | Callable[[str], Any]]] = {
        "pretrained": [
            load_encoder,
            verb("visualize", weights, video, "--out", "pictures"),
            verb("extract-features", weights, video, "out", "--workers", "0"),
            verb(
                "finetune", f"model.weights={weights}", "model.name=maskfeat_mvitv2_nano_classifier", *bounded
            ),
            verb("pretrain", "target.name=features", f"target.arguments={{teacher: {weights}}}", *bounded),
        ],
        "classifier": [
            load_classifier,
            lambda path: load_classifier(path, device="cpu").predict(video),
            verb("predict", weights, video, "--json", "-"),
            verb("export", weights, "out.pt2"),
        ],
        "detector": [load_detector, verb("detect", weights, video, "--boxes", "boxes.csv", "--out", "out")],
        "dvae": [load_tokenizer, _target_of("dvae", weights, bounded)],
        "vq": [load_tokenizer, _target_of("codebook", weights, bounded)],
    }
    chosen = rng.choice([load_model, *calls[kind], *calls[kind]])
    if isinstance(chosen, Case):
        return chosen
    name = getattr(chosen, "__name__", "").replace("<lambda>", "load_classifier") or "load"
    return Case(f"{name} {weights} ({kind})", lambda: chosen(weights))


def _target_of(name: str, weights: str, bounded: tuple[str, ...]) -> Case:
    arguments = f"target.arguments={{weights: {weights}, vocabulary: 16, output_stride: [2, 16, 16]}}"
    model = ("model.name=maskfeat_mvitv2_nano", "clip.frames=4", "clip.crop=32", "mask.cell=[2,16,16]")
    return verb("pretrain", f"target.name={name}", arguments, *model, *bounded)


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Sorted header and tensors of a safetensors file."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    return dict(sorted(header.items())), data[8 + size :]


def _joined(header: bytes, body: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + body


def _damaged(header: dict[str, Any], body: bytes, rng: random.Random) -> bytes:
    choice = rng.random()
    metadata = header["__metadata__"]
    if choice < 0.55:  # a recipe or the arguments, which are JSON
        name = rng.choice([name for name in metadata if metadata[name].startswith("{")])
        if rng.random() < 0.08:
            text = nested(rng).decode()
        else:
            tree = mutate_tree(json.loads(metadata[name]), rng, plain_value)
            text = json.dumps(tree)
        return _joined(to_text({**header, "__metadata__": {**metadata, name: text}}), body)
    if choice < 0.62:
        name = rng.choice(list(metadata))
        other = rng.choice(["", "x", "mvitv2_l", "vit_h_image", "null", "dvae", "é", "mae_vit_nano"])
        return _joined(to_text({**header, "__metadata__": {**metadata, name: other}}), body)
    if choice < 0.72:
        return _joined(to_text(mutate_tree(header, rng)), body)
    if choice < 0.8:
        return _joined(to_text(header), _strange_numbers(body, rng))
    whole = _joined(to_text(header), body)
    if choice < 0.85:
        return _joined(to_text(header), body, rng.choice([0, 1, 2**31, 2**63, 2**64 - 1, 100]))
    if choice < 0.88:
        return _joined(nested(rng), body)
    if choice < 0.9:
        return reencode(whole, rng)
    return mutate_bytes(whole, rng)


def _strange_numbers(body: bytes, rng: random.Random) -> bytes:
    """Non-finite or extreme numbers in place of some weights."""
    words = [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x00\x00\x80\xff"]
    start = rng.randrange(0, len(body) - 64, 4)
    return body[:start] + rng.choice(words) * 8 + body[start + 32 :]


def _pyth(rng: random.Random) -> Case:
    """A PySlowFast checkpoint with a damaged archive or content."""
    golden = ROOT / "tests" / "golden" / rng.choice(_GOLDEN)
    if rng.random() < 0.5:
        data = damaged_archive((golden / "checkpoint.pyth").read_bytes(), rng)
    else:
        content = torch.load(golden / "checkpoint.pyth", map_location="cpu", weights_only=True)
        tree = mutate_tree(_without_tensors(content, rng), rng, tensor_or_value)
        buffer = io.BytesIO()
        torch.save(tree, buffer)
        data = buffer.getvalue()
    Path("input.pyth").write_bytes(data)
    return verb("import-slowfast", "--config", golden / "config.yaml", "--checkpoint", "input.pyth", "out")


def _without_tensors(content: Any, rng: random.Random) -> Any:
    """A checkpoint as plain mappings; the state may have another key or a prefix."""
    state = dict(content["model_state"])
    prefix = rng.choice(["", "", "module.", "_orig_mod.", "model."])
    state = {prefix + name: value for name, value in state.items()}
    others = {key: value for key, value in content.items() if key != "model_state"}
    return {**others, rng.choice(["model_state", "model_state", "state_dict", "model", "x"]): state}


def tensor_or_value(rng: random.Random) -> Any:
    makers: tuple[Callable[[], Any], ...] = (
        lambda: torch.zeros(0),
        lambda: torch.tensor(float("nan")),
        lambda: torch.zeros(1, 1, 1, 1, 1, 1),
        lambda: torch.ones(3, dtype=torch.complex64),
        lambda: torch.ones(3, dtype=torch.bool),
        lambda: torch.zeros(1).expand(1000, 1000, 1000, 10),
        lambda: torch.zeros(2, 2).to_sparse(),
        lambda: rng.choice(LARGE),
        lambda: plain_value(rng),
    )
    return rng.choice(makers)()
