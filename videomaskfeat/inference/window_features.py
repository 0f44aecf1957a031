"""A folder of features of the windows of each video, in the form of action-localization tools.

=================== =====================================================================================
NAME.npz            ``feats`` float [windows, D] and ``times`` float64 [windows, 2], start and end of each
                    window [seconds after the first frame]; or NAME.npy and NAME_times.npy
index.csv           row of the list, path, label, file and number of windows of each readable video
failures.csv        path and cause of each unreadable video
meta.json           inputs of the features: weights, list, windows, protocol
=================== =====================================================================================

NAME is the name of the video without its extension; equal names are numbered. A file gets its name only when
it is complete, so a restart continues with the missing videos.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError
from videomaskfeat.inference.features import read_meta
from videomaskfeat.inference.results import write_json, write_table
from videomaskfeat.io import (
    is_file,
    list_folder,
    make_folder,
    output_paths,
    remove_temporary_files,
    whole_file,
)

KIND = "window features"


class WindowFolder:
    """Writes the features of the windows of each video of a list.

    Args:
        path: the folder.
        records: the list.
        dtype: type of the features: float32 or float16.
        form: "npz" or "npy".
        ignored: name of a file that may be in an empty folder, such as a lock.
    """

    def __init__(
        self, path: str | os.PathLike[str], records: Records, *, dtype: str, form: str, ignored: str
    ) -> None:
        self.path, self.records = Path(path), records
        self.dtype, self.form, self._ignored = np.dtype(dtype), form, ignored
        self._files = output_paths(path, [record.path for record in records])

    def open(self, options: Mapping[str, Any], about: Mapping[str, Any]) -> list[int]:
        """Create the folder, or continue it; only rank 0 calls it.

        Args:
            options: inputs of the features, as plain data; they must be the same when it continues.
            about: further facts for ``meta.json``.

        Returns:
            Rows of the list without features.

        Raises:
            UserError: the folder has other content, or features with other settings.
        """
        make_folder(self.path)
        remove_temporary_files(self.path)
        meta = read_meta(self.path, KIND)
        if meta is None and set(list_folder(self.path)) - {self._ignored}:
            raise UserError(f"{self.path} has files but no features (no meta.json); choose another folder")
        if meta is not None and meta["settings"] != dict(options):
            names = [name for name in options if meta["settings"].get(name) != options[name]]
            raise UserError(
                f"{self.path} has features with other settings ({', '.join(names)}); choose another folder, "
                "or the settings in its meta.json"
            )
        write_json(
            self.path / "meta.json",
            {"kind": KIND, "format": 1, **about, "settings": options, "finished": False},
        )
        return [row for row in range(len(self.records)) if not is_file(self.file(row))]

    def file(self, row: int) -> Path:
        """The file of a video's features; the last that is written."""
        return self._files[row].with_name(f"{self._files[row].name}.{self.form}")

    def save(self, row: int, features: np.ndarray, times: np.ndarray) -> None:
        """Write the features float [n, D] and times float64 [n, 2] of a video."""
        arrays = {"feats": features.astype(self.dtype, copy=False), "times": times}
        if self.form == "npz":
            with whole_file(self.file(row), "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            return
        for name, end in (("times", "_times.npy"), ("feats", ".npy")):
            with whole_file(self._files[row].with_name(f"{self._files[row].name}{end}"), "wb") as file:
                np.save(file, arrays[name])

    def finish(self, failures: Mapping[int, str]) -> tuple[int, int]:
        """Write index.csv and failures.csv from the files in the folder.

        Args:
            failures: row and cause of each unreadable video.

        Returns:
            The number of windows of all videos, and D.

        Raises:
            UserError: no video could be read.
        """
        records = self.records
        if len(failures) == len(records):
            row = min(failures)
            raise UserError(
                f"{records.source}: none of its {len(records)} videos could be read; the first: "
                f"{records[row].path}: {failures[row]}; check the folder that the paths start from (--prefix)"
            )
        readable = [row for row in range(len(records)) if row not in failures]
        shapes = [self._shape(row) for row in readable]
        rows: list[Sequence[object]] = [("row", "path", "label", "file", "windows")]
        for row, (count, _) in zip(readable, shapes, strict=True):
            record = records[row]
            label = "" if record.label is None else record.label
            rows.append((row, record.path, label, self.file(row).name, count))
        write_table(self.path / "index.csv", rows)
        causes = [(records[row].path, cause) for row, cause in sorted(failures.items())]
        write_table(self.path / "failures.csv", [("path", "cause"), *causes])
        meta = read_meta(self.path, KIND)
        write_json(self.path / "meta.json", {**(meta or {}), "finished": True, "failures": len(failures)})
        return sum(count for count, _ in shapes), shapes[0][1]

    def _shape(self, row: int) -> tuple[int, int]:
        stored = np.load(self.file(row), mmap_mode="r", allow_pickle=False)
        windows, width = (stored["feats"] if self.form == "npz" else stored).shape
        return windows, width
