"""torchcodec: the contract of its documented interface, played by PyAV, and how a missing one is reported.

The tests of all readers (``READERS`` of make_videos) read with torchcodec itself where it can be loaded.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from tests.data.clip_data import write_videos
from tests.jobs.conftest import TINY
from tests.reference.decode import decode_all
from videomaskfeat.cli import main
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_pyav import PyAvReader
from videomaskfeat.data.video import available_readers, open_video
from videomaskfeat.environment import diagnose
from videomaskfeat.errors import UserError


class Decoder:
    """torchcodec's ``VideoDecoder``, as documented: frames at indices in any order, with repeats, as a batch
    of uint8 tensors with their times; errors are RuntimeError."""

    broken = False
    calls: ClassVar[list[dict[str, Any]]] = []

    def __init__(
        self,
        source: str,
        *,
        stream_index: int | None = None,
        dimension_order: str = "NCHW",
        num_ffmpeg_threads: int = 1,
        device: str | None = "cpu",
        seek_mode: str = "exact",
    ) -> None:
        type(self).calls.append({"source": source, "device": device, "threads": num_ffmpeg_threads})
        assert seek_mode == "exact"  # approximate positions may be other frames
        if not Path(source).stat().st_size:
            raise RuntimeError("Could not open input file\nException raised from C++")
        self._frames, self._order = torch.from_numpy(decode_all(Path(source))), dimension_order
        with PyAvReader(source) as reader:
            info = reader.info
        self.metadata = SimpleNamespace(
            average_fps_from_header=info.fps * (1.1 if "vfr" in source else 1),
            average_fps=len(self._frames) / info.duration_seconds,
        )

    def __len__(self) -> int:
        return len(self._frames)

    def get_frames_at(self, indices: torch.Tensor | list[int]) -> SimpleNamespace:
        assert all(type(index) is int for index in indices)
        frames = self._frames[torch.as_tensor(indices)]
        data = frames if self._order == "NHWC" else frames.permute(0, 3, 1, 2)
        if self.broken:
            raise RuntimeError("Could not push packet to decoder\nException raised from C++")
        return SimpleNamespace(data=data, pts_seconds=torch.as_tensor(indices) / 30.0)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> type[Decoder]:
    """A package torchcodec with this decoder."""
    package, decoders = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
    package.__version__, package.decoders = "0.99", decoders  # type: ignore[attr-defined]
    decoders.VideoDecoder = Decoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    monkeypatch.setattr(Decoder, "calls", [])
    return Decoder


def test_frames_are_those_of_the_indices(played: type[Decoder], files: dict[str, Path]) -> None:
    for name in ("plain.mp4", "turned_90.mp4", "vp9.webm"):
        expected = decode_all(files[name])
        with open_video(files[name], "torchcodec", threads=3) as video:
            assert video.decoder == "torchcodec"
            assert (video.frames, video.fps) == (len(expected), 30.0)
            clip = video.read(np.array([7, 2, 2, 40]))
            assert np.array_equal(clip, expected[[7, 2, 2, 40]])
            with PyAvReader(str(files[name])) as other:
                assert video.info == other.info
    assert played.calls[0] == {"source": str(files["plain.mp4"]), "device": "cpu", "threads": 3}


def test_rate_of_uneven_frames_is_that_of_the_other_readers(
    played: type[Decoder], files: dict[str, Path]
) -> None:
    with open_video(files["vfr.mp4"], "torchcodec") as video, PyAvReader(str(files["vfr.mp4"])) as other:
        assert video.fps == other.fps


def test_other_files_are_read_by_pyav(played: type[Decoder], files: dict[str, Path]) -> None:
    for name in ("plain.ts", "cut_plain.mp4", "raw.h264"):
        with open_video(files[name], "torchcodec") as video:
            assert video.decoder == "pyav"
    assert not played.calls


def test_errors_are_one_phrase(
    played: type[Decoder], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(played, "broken", True)
    with open_video(files["plain.mp4"], "torchcodec") as video, pytest.raises(VideoReadError) as caught:
        video.read([3])
    assert caught.value.cause == "torchcodec: Could not push packet to decoder"
    monkeypatch.setattr(
        Decoder, "__init__", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no stream\nC++"))
    )
    with pytest.raises(VideoReadError, match=r"torchcodec: no stream$"):
        open_video(files["plain.mp4"], "torchcodec")


def test_nvdec_needs_a_gpu(played: type[Decoder], files: dict[str, Path], monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="reader 'torchcodec-cuda': there is no GPU; use 'torchcodec', or"):
        open_video(files["plain.mp4"], "torchcodec-cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with open_video(files["plain.mp4"], "torchcodec-cuda") as video:
        assert video.decoder == "torchcodec-cuda"
    assert [opened["device"] for opened in played.calls] == ["cuda"]


LIBRARY = OSError("libnvrtc.so.13: cannot open shared object file: No such file or directory")


def _cannot_load(name: str, cause: BaseException) -> Callable[..., Any]:
    import_module = importlib.import_module

    def fail(module: str, package: str | None = None) -> Any:
        if module != name:
            return import_module(module, package)
        if not isinstance(cause, ModuleNotFoundError):
            raise OSError("Could not load this library: /site-packages/torchcodec/lib.so") from cause
        raise cause

    return fail


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (
            ModuleNotFoundError("No module named 'torchcodec'"),
            r"reader 'torchcodec' is not installed; pip install 'videomaskfeat\[torchcodec\]', or set "
            r"data\.reader=auto",
        ),
        (
            LIBRARY,
            r"reader 'torchcodec' cannot be loaded: torchcodec: libnvrtc\.so\.13: cannot open shared object "
            r"file: .*; it needs the torchcodec of this torch version and build, and the shared libraries of "
            r"FFmpeg .*; or set data\.reader=auto",
        ),
    ],
)
def test_missing_torchcodec_is_one_line(
    cause: BaseException,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a command, whose last line it is: exit code 2."""
    videos = write_videos(tmp_path, 8)
    monkeypatch.setattr(importlib, "import_module", _cannot_load("torchcodec", cause))
    with pytest.raises(UserError, match=f"^{words}$"):
        open_video(tmp_path / "000.mp4", "torchcodec")
    run = [f"data.train={videos}", "data.reader=torchcodec", f"run.folder={tmp_path / 'run'}"]
    assert main(["pretrain", *TINY, *run, "run.device=cpu"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.match(r"videomaskfeat pretrain: reader 'torchcodec' ", error.splitlines()[-1]), error
    assert available_readers()["torchcodec"].startswith("missing: ")


def test_doctor_lists_the_reader(played: type[Decoder]) -> None:
    assert "0.99, decodes" in diagnose().text()
