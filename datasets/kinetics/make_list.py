"""Write a list `path label` from a folder of class folders, or from Kinetics' own CSV and its videos."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from videomaskfeat.data.formats import load_records
from videomaskfeat.errors import UserError
from videomaskfeat.io import exists, is_folder, open_file
from videomaskfeat.texts import read_text


def rows_of_folder(folder: str) -> tuple[list[str], list[str]]:
    """Paths of all videos below class folders, and their class names.

    Raises:
        UserError: there are no videos, or a video is not in a class folder.
    """
    paths = [record.path for record in load_records(folder, format="folder")]
    folders = [Path(os.path.relpath(path, folder)).parts for path in paths]
    loose = next((path for path, names in zip(paths, folders, strict=True) if len(names) < 2), None)
    if loose is not None:
        raise UserError(f"{loose} is not in a class folder; the folder above a video is its class")
    return paths, [names[0].replace("_", " ") for names in folders]


def rows_of_csv(path: str, videos: str) -> tuple[list[str], list[str]]:
    """Paths of the existing videos in Kinetics' own CSV, and their class names.

    Raises:
        UserError: the CSV is wrong or has no labels, or no video exists.
    """
    records = load_records(path, prefix=videos)
    paths = [record.path for record in records]
    names = [records.class_names[label] for label in records.labels] if records.class_names else []
    if not all(names) or len(names) != len(paths):
        raise UserError(f"{path} has no column label, so a list would only have paths: use the CSV directly")
    existing = [exists(path) for path in paths]
    print(f"{existing.count(False)} of {len(paths)} videos of {path} are missing below {videos}")
    rows = [(path, name) for path, name, there in zip(paths, names, existing, strict=True) if there]
    return [path for path, _ in rows], [name for _, name in rows]


def class_numbers(names: list[str], path: str | None) -> dict[str, int]:
    """Labels by class name, from the classes file if it exists; otherwise sorted, and written to it.

    Raises:
        UserError: a class is not in the file.
    """
    if path is not None and exists(path):
        lines = read_text(path, what="a file of class names").split("\n")
        known = [line.strip() for line in lines if line.strip()]
        missing = sorted(set(names) - set(known))
        if missing:
            raise UserError(
                f"{path}: the class {missing[0]!r} is missing; delete the file to define new labels"
            )
    else:
        known = sorted(set(names))
        if path is not None:
            with open_file(path, "w", errors="surrogateescape") as file:
                file.writelines(f"{name}\n" for name in known)
    return {name: number for number, name in enumerate(known)}


def write_list(path: str, videos: list[str], labels: list[int]) -> None:
    """Write rows `path label` with paths relative to the folder of the list."""
    folder = os.path.dirname(os.path.abspath(path))
    with open_file(path, "w", errors="surrogateescape") as file:  # file names may contain any bytes
        for video, label in zip(videos, labels, strict=True):
            file.write(f"{os.path.relpath(os.path.abspath(video), folder)} {label}\n")


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line (default: that of the process); returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="folder of class folders, or Kinetics' own CSV")
    parser.add_argument(
        "--videos", default="", help="folder of the videos in the CSV (default: the folder of the CSV)"
    )
    parser.add_argument("--out", required=True, help="list to write")
    parser.add_argument(
        "--classes", help="file of class names, one per line: used if it exists, else written"
    )
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # files that are left out
    try:
        if is_folder(arguments.source):
            videos, names = rows_of_folder(arguments.source)
        else:
            videos, names = rows_of_csv(arguments.source, arguments.videos)
        numbers = class_numbers(names, arguments.classes)
        write_list(arguments.out, videos, [numbers[name] for name in names])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{arguments.out}: {len(videos)} videos of {len(set(names))} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
