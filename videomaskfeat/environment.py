"""Diagnosis of this machine: versions, readers, devices, memory, and what each feature lacks."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import videomaskfeat
from videomaskfeat.data.video import available_readers, open_video
from videomaskfeat.engine.threads import choose_threads
from videomaskfeat.machine import available_cores
from videomaskfeat.models import create_model
from videomaskfeat.models.kernels.choice import current_kernels
from videomaskfeat.models.kernels.measure import choose_kernels
from videomaskfeat.mp4 import write_mp4
from videomaskfeat.openmp import SPIN_COUNT, WAIT_POLICY
from videomaskfeat.provenance import describe_provenance

PACKAGES = (
    *("torch", "decord", "av", "opencv-python-headless", "pytorchvideo", "fvcore", "iopath", "simplejson"),
    *("numpy", "omegaconf", "safetensors", "rich", "tensorboard", "matplotlib"),
)
EXTRAS = {
    "export": (("onnx", "onnxscript", "onnxruntime"), "`videomaskfeat export` to ONNX"),
    "hub": (("huggingface_hub",), "uploads and downloads of models"),
    "lora": (("peft",), "fine-tuning with low-rank adapters (model.lora)"),
    "lars": (("pytorch_optimizer",), "optim.optimizer=lars"),
    "teachers": (("transformers",), "vision models of transformers as teachers"),
    "detector": (("transformers",), "models of transformers that find persons"),
    "wandb": (("wandb",), "run.loggers=[wandb]"),
    "mlflow": (("mlflow-skinny",), "run.loggers=[mlflow]"),
    "shards": (("urllib3", "fsspec", "s3fs", "gcsfs"), "shards on web servers and in object stores"),
    "torchcodec": (("torchcodec",), "data.reader=torchcodec, torchcodec-cuda"),
    "launch": (("submitit",), "`videomaskfeat launch` on SLURM"),
    "ray": (("ray",), "`--ray`: offline jobs on a Ray cluster"),
    "docs": (("mkdocs-material", "mkdocstrings"), "`make docs`"),
}
"""Extras of setup.py, without the tools of developers: name -> packages and what needs them."""
_FRAMES, _SIDE = 12, 96
_NANO_CLIPS = (8, 3, 8, 64, 64)
_LITTLE_SHARED_MEMORY = 1 << 30  # a batch of 16 clips of 16 x 224 x 224 is 39 MB; several batches wait in it
_LITTLE_SPACE = 10 << 30  # a checkpoint of the large model with its optimizer state is 2.6 GB


@dataclass(frozen=True)
class Diagnosis:
    """The result of a diagnosis.

    Attributes:
        facts: section -> name -> finding, in the order of printing.
        broken: faults that prevent the package from working, with remedies.
        advice: missing packages or resources for a feature or for speed, with remedies.
    """

    facts: dict[str, dict[str, str]]
    broken: list[str]
    advice: list[str]

    @property
    def healthy(self) -> bool:
        """Whether videos can be read and models trained here."""
        return not self.broken

    def to_json(self) -> str:
        """The diagnosis as JSON text."""
        content = {"healthy": self.healthy, "broken": self.broken, "advice": self.advice, **self.facts}
        return json.dumps(content, indent=1)

    def text(self) -> str:
        """The diagnosis as plain text."""
        lines = []
        for section, findings in self.facts.items():
            lines.append(section)
            width = max(len(name) for name in findings)
            lines += [f"  {name:<{width}}  {finding}" for name, finding in findings.items()]
        for title, sentences in (("broken", self.broken), ("advice", self.advice)):
            if sentences:
                lines += [title, *(f"  - {sentence}" for sentence in sentences)]
        return "\n".join(lines if self.broken or self.advice else [*lines, "nothing is missing"])


def diagnose(data_folder: str | os.PathLike[str] = ".", *, measure: bool = False) -> Diagnosis:
    """Examine this machine: versions, readers (each decodes a clip), GPU, threads, memory, space, compiler.

    Args:
        data_folder: folder for videos or runs, which need not exist; its free space is reported.
        measure: whether to measure the number of threads of a training step, which needs some seconds.
    """
    broken: list[str] = []
    advice: list[str] = []
    facts = {
        "versions": _versions(broken),
        "video readers": _readers(broken, advice),
        "devices": _devices(advice),
        "machine": _machine(Path(data_folder), advice, measure=measure),
        "extras": _extras(advice),
    }
    return Diagnosis(facts, broken, advice)


def environment_text(folder: str | os.PathLike[str]) -> str:
    """The JSON text that runs store with their results: their ``provenance`` and the diagnosis."""
    return json.dumps(
        {"provenance": describe_provenance(), **json.loads(diagnose(folder).to_json())}, indent=1
    )


def _versions(broken: list[str]) -> dict[str, str]:
    facts = {"videomaskfeat": videomaskfeat.__version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "missing"
            if package != "decord":  # PyAV replaces it
                broken.append(f"{package} is not installed and videomaskfeat needs it: pip install {package}")
    facts["platform"] = platform.platform()
    return facts


def _readers(broken: list[str], advice: list[str]) -> dict[str, str]:
    facts = {}
    # A smooth color gradient, which compression changes by only a few levels.
    ramp = np.linspace(40, 200, _SIDE)[:, None] + np.zeros(_SIDE)
    frames = np.stack([np.stack([ramp, ramp.T, ramp * 0 + 8 * i], axis=-1) for i in range(_FRAMES)])
    frames = frames.astype(np.uint8)  # [T, H, W, 3]
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_mp4(clip, frames, fps=30, crf=10)
        for name, version in available_readers().items():
            facts[name] = version
            if not version.startswith("missing"):
                facts[name] += f", {_decodes(clip, name, frames)}"
    if facts["decord"].startswith("missing"):
        advice.append("decord is missing, so PyAV reads all videos; pip install decord (x86-64 has wheels)")
    elif "fails" in facts["decord"]:
        advice.append("decord does not decode on this machine: set data.reader=pyav")
    if "decodes" not in facts["pyav"].split(", "):
        broken.append("PyAV is required but does not decode here: pip install --force-reinstall av")
    return facts


def _decodes(clip: Path, reader: str, frames: np.ndarray) -> str:
    """``decodes``, or ``fails`` with the cause."""
    indices = [0, _FRAMES - 1, 5]
    try:
        with open_video(clip, reader) as video:
            decoder, decoded = video.decoder, video.read(indices)
    except Exception as error:  # any failure is a finding
        return f"fails: {error}"
    if np.abs(decoded.astype(int) - frames[indices]).mean() > 8:
        return "fails: the decoded frames differ from the written ones"
    return "decodes" if decoder == reader else f"fails: {decoder} decodes instead"


def _devices(advice: list[str]) -> dict[str, str]:
    facts = {"torch built for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"}
    if not torch.cuda.is_available():
        facts["GPU"] = "none"
        if torch.version.cuda:
            advice.append("no GPU is visible, but torch is built for CUDA: check nvidia-smi and the driver")
        elif shutil.which("nvidia-smi"):
            advice.append("there is an NVIDIA driver, but torch is a CPU build: install the default torch")
        return facts
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        bf16 = "bf16" if gpu.major >= 8 else "no fast bf16"
        facts[f"GPU {number}"] = f"{gpu.name}, {memory}, capability {gpu.major}.{gpu.minor}, {bf16}"
    return facts


def _machine(folder: Path, advice: list[str], *, measure: bool) -> dict[str, str]:
    facts = {"CPU cores": f"{available_cores()} usable of {os.cpu_count()}"}
    if hasattr(os, "getloadavg"):
        facts["load"] = f"{os.getloadavg()[0]:.1f} running processes, average of the last minute"
    threads = choose_threads(_nano_step()) if measure else torch.get_num_threads()
    facts["CPU threads"] = f"{threads}; {_wait_policy()}"
    if measure:
        facts["CPU kernels, bf16"] = str(choose_kernels(bf16=True))
        facts["CPU kernels, fp32"] = str(choose_kernels())
    else:
        facts["CPU kernels"] = str(current_kernels())
    shared = Path("/dev/shm")
    if shared.is_dir():
        space = shutil.disk_usage(shared)
        facts["shared memory"] = f"{space.free / 2**30:.1f} GiB free of {space.total / 2**30:.1f}"
        if space.free < _LITTLE_SHARED_MEMORY:
            advice.append(
                "little shared memory: loader workers pass batches through /dev/shm; "
                "increase it (docker: --shm-size=8g) or set data.workers=0"
            )
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    facts["free space"] = f"{free / 2**30:.1f} GiB at {existing}"
    if free < _LITTLE_SPACE:
        advice.append(f"little space at {existing}: a checkpoint of the large model needs 2.6 GB")
    compiler = _compiler()
    facts["C++ compiler"] = compiler or "none"
    if compiler is None:
        advice.append("no torch.compile on the CPU: install g++ (apt: build-essential)")
    return facts


def _nano_step() -> Callable[[], None]:
    """A training step of a small model on the CPU, in which threads wait for each other often."""
    model = create_model("mvitv2_nano")
    clips = torch.zeros(_NANO_CLIPS)

    def step() -> None:
        model(clips).sum().backward()
        model.zero_grad(set_to_none=True)

    return step


def _wait_policy() -> str:
    variables = [f"{name}={os.environ[name]}" for name in (WAIT_POLICY, SPIN_COUNT) if os.environ.get(name)]
    return ", ".join(variables) or "OpenMP's default wait policy, which is slow on a busy machine"


def _extras(advice: list[str]) -> dict[str, str]:
    facts, incomplete = {}, []
    for extra, (packages, feature) in EXTRAS.items():
        versions, missing = [], []
        for package in packages:
            try:
                versions.append(f"{package} {importlib.metadata.version(package)}")
            except importlib.metadata.PackageNotFoundError:
                missing.append(package)
        state = f"not installed: {', '.join(missing)}" if missing else ", ".join(versions)
        facts[extra] = f"{state}; for {feature}"
        if missing:
            incomplete.append(extra)
    if incomplete:
        advice.append(
            f"extras that are not installed: {', '.join(incomplete)}; only if you need their features (see "
            f"extras): pip install 'videomaskfeat[{incomplete[0]}]'"
        )
    return facts


def _compiler() -> str | None:
    names = (os.environ.get("CXX"), "g++", "c++", "clang++")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)
