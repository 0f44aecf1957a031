"""What this machine offers and what is missing for which feature."""

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
from videomaskfeat.machine import SPIN_COUNT, WAIT_POLICY, available_cores
from videomaskfeat.models import create_model
from videomaskfeat.mp4 import write_mp4
from videomaskfeat.provenance import describe_provenance

PACKAGES = (
    "torch", "decord", "av", "opencv-python-headless", "pytorchvideo", "fvcore", "iopath", "simplejson",
    "numpy", "omegaconf", "safetensors", "rich", "tensorboard", "matplotlib",
)  # fmt: skip
EXTRAS = {"export": (("onnx", "onnxscript", "onnxruntime"), "`videomaskfeat export` to ONNX")}
_FRAMES, _SIDE = 12, 96
_NANO_CLIPS = (8, 3, 8, 64, 64)
_LITTLE_SHARED_MEMORY = 1 << 30  # a batch of 16 clips of 16 x 224 x 224 is 39 MB, and several wait at a time
_LITTLE_SPACE = 10 << 30  # a checkpoint of the large model with its optimiser state is 2.6 GB


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        facts: section -> name -> finding, in the order in which they are shown.
        broken: what keeps the package from working, and the remedy; empty where all is well.
        advice: what is missing for a feature or for speed, and the remedy.
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
        """The diagnosis for people."""
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
        data_folder: where videos or runs are to lie; its free space is told. It need not exist yet.
        measure: whether to measure which number of threads a training step would take; takes some seconds.
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
    """The JSON text that runs keep beside their results: their ``provenance`` and the diagnosis."""
    return json.dumps(
        {"provenance": describe_provenance(), **json.loads(diagnose(folder).to_json())}, indent=1
    )


def _versions(broken: list[str]) -> dict[str, str]:
    found = {"videomaskfeat": videomaskfeat.__version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
            if package != "decord":  # which PyAV replaces
                broken.append(f"{package} is not installed and videomaskfeat needs it: pip install {package}")
    found["platform"] = platform.platform()
    return found


def _readers(broken: list[str], advice: list[str]) -> dict[str, str]:
    found = {}
    # Smooth and coloured: a picture that compression leaves within a few levels.
    ramp = np.linspace(40, 200, _SIDE)[:, None] + np.zeros(_SIDE)
    frames = np.stack([np.stack([ramp, ramp.T, ramp * 0 + 8 * i], axis=-1) for i in range(_FRAMES)])
    frames = frames.astype(np.uint8)  # [T, H, W, 3]
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_mp4(clip, frames, fps=30, crf=10)
        for name, version in available_readers().items():
            found[name] = version
            if not version.startswith("missing"):
                found[name] += f", {_decodes(clip, name, frames)}"
    if found["decord"].startswith("missing"):
        advice.append("decord is missing, so PyAV reads all videos; pip install decord (x86-64 has wheels)")
    elif "fails" in found["decord"]:
        advice.append("decord does not decode here: take data.reader=pyav")
    if "decodes" not in found["pyav"].split(", "):
        broken.append("PyAV does not decode here, and it is needed: pip install --force-reinstall av")
    return found


def _decodes(clip: Path, reader: str, frames: np.ndarray) -> str:
    """How reading a clip just written goes, in words."""
    wanted = [0, _FRAMES - 1, 5]
    try:
        with open_video(clip, reader) as video:
            decoder, read = video.decoder, video.read(wanted)
    except Exception as error:  # any failure is the finding itself
        return f"fails: {error}"
    if np.abs(read.astype(int) - frames[wanted]).mean() > 8:
        return "fails: decodes other pictures than were written"
    return "decodes" if decoder == reader else f"fails: {decoder} had to read in its place"


def _devices(advice: list[str]) -> dict[str, str]:
    found = {"torch built for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"}
    if not torch.cuda.is_available():
        found["GPU"] = "none"
        if torch.version.cuda:
            advice.append(
                "no GPU is visible though torch is built for one: look at nvidia-smi and the driver"
            )
        elif shutil.which("nvidia-smi"):
            advice.append("an NVIDIA driver is here, but torch is the CPU build: install the default torch")
        return found
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        memory = f"{facts.total_memory / 2**30:.0f} GiB"
        bf16 = "bf16" if facts.major >= 8 else "no fast bf16"
        found[f"GPU {number}"] = f"{facts.name}, {memory}, capability {facts.major}.{facts.minor}, {bf16}"
    return found


def _machine(folder: Path, advice: list[str], *, measure: bool) -> dict[str, str]:
    found = {"CPU cores": f"{available_cores()} usable of {os.cpu_count()}"}
    if hasattr(os, "getloadavg"):
        found["load"] = f"{os.getloadavg()[0]:.1f} running processes, average of the last minute"
    threads = choose_threads(_nano_step()) if measure else torch.get_num_threads()
    found["CPU threads"] = f"{threads}; {_waiting_words()}"
    shared = Path("/dev/shm")
    if shared.is_dir():
        space = shutil.disk_usage(shared)
        found["shared memory"] = f"{space.free / 2**30:.1f} GiB free of {space.total / 2**30:.1f}"
        if space.free < _LITTLE_SHARED_MEMORY:
            advice.append(
                "little shared memory: loader workers pass batches through /dev/shm; "
                "raise it (docker: --shm-size=8g) or set data.workers=0"
            )
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    found["free space"] = f"{free / 2**30:.1f} GiB at {existing}"
    if free < _LITTLE_SPACE:
        advice.append(f"little space at {existing}: a checkpoint of the large model takes 2.6 GB")
    compiler = _compiler()
    found["C++ compiler"] = compiler or "none"
    if compiler is None:
        advice.append("no C++ compiler, so no torch.compile on the CPU: install g++ (apt: build-essential)")
    return found


def _nano_step() -> Callable[[], None]:
    """A training step of a small model on the CPU, of the kind whose threads wait for each other most."""
    model = create_model("mvitv2_nano")
    clips = torch.zeros(_NANO_CLIPS)

    def step() -> None:
        model(clips).sum().backward()
        model.zero_grad(set_to_none=True)

    return step


def _waiting_words() -> str:
    policy, spins = os.environ.get(WAIT_POLICY), os.environ.get(SPIN_COUNT)
    if policy is None and spins is None:
        return "OpenMP's default wait, which is slow on a busy machine"
    values = {WAIT_POLICY: policy, SPIN_COUNT: spins}
    return ", ".join(f"{name}={value}" for name, value in values.items() if value)


def _extras(advice: list[str]) -> dict[str, str]:
    """What the optional installs bring, and what asks for them."""
    found = {}
    for extra, (packages, feature) in EXTRAS.items():
        versions, missing = [], []
        for package in packages:
            try:
                versions.append(f"{package} {importlib.metadata.version(package)}")
            except importlib.metadata.PackageNotFoundError:
                missing.append(package)
        found[extra] = ", ".join(versions) if not missing else f"missing: {', '.join(missing)}"
        if missing:
            advice.append(f"for {feature}: pip install 'videomaskfeat[{extra}]'")
    return found


def _compiler() -> str | None:
    names = (os.environ.get("CXX"), "g++", "c++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)
