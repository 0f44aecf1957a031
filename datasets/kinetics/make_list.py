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
    """Paths of all videos below class folders, and the name of the class folder of each.

    Raises:
        UserError: there are none, or some lie beside the class folders.
    """
    paths = [record.path for record in load_records(folder, format="folder")]
    parts = [Path(os.path.relpath(path, folder)).parts for path in paths]
    loose = next((path for path, names in zip(paths, parts, strict=True) if len(names) < 2), None)
    if loose is not None:
        raise UserError(f"{loose}: is not in a class folder; the folder above a video is its class")
    return paths, [names[0].replace("_", " ") for names in parts]


def rows_of_csv(path: str, videos: str) -> tuple[list[str], list[str]]:
    """Paths of the videos of Kinetics' own CSV that are there, and the class of each.

    Raises:
        UserError: the CSV is wrong, has no labels, or no video of it is there.
    """
    records = load_records(path, prefix=videos)
    paths = [record.path for record in records]
    names = [records.class_names[label] for label in records.labels] if records.class_names else []
    if not all(names) or len(names) != len(paths):
        raise UserError(
            f"{path}: has no column label, so a list of paths is all there is: use the CSV itself"
        )
    found = [exists(path) for path in paths]
    print(f"{found.count(False)} of {len(paths)} videos of {path} are missing below {videos}")
    kept = [(path, name) for path, name, there in zip(paths, names, found, strict=True) if there]
    return [path for path, _ in kept], [name for _, name in kept]


def class_numbers(names: list[str], path: str | None) -> dict[str, int]:
    """Class name -> number, from the classes file where it exists; else sorted, and written there.

    Raises:
        UserError: a class is not in the file.
    """
    if path is not None and exists(path):
        lines = read_text(path, what="a file of class names").split("\n")
        known = [line.strip() for line in lines if line.strip()]
        strange = sorted(set(names) - set(known))
        if strange:
            raise UserError(
                f"{path}: lacks the class {strange[0]!r}; delete the file to number the classes anew"
            )
    else:
        known = sorted(set(names))
        if path is not None:
            with open_file(path, "w", errors="surrogateescape") as file:
                file.writelines(f"{name}\n" for name in known)
    return {name: number for number, name in enumerate(known)}


def write_list(path: str, videos: list[str], labels: list[int]) -> None:
    """Write `path label` rows parted by a space, paths relative to the list's own folder."""
    folder = os.path.dirname(os.path.abspath(path))
    with open_file(path, "w", errors="surrogateescape") as file:  # names of files may have any bytes
        for video, label in zip(videos, labels, strict=True):
            file.write(f"{os.path.relpath(os.path.abspath(video), folder)} {label}\n")


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own); returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="folder of class folders, or Kinetics' own CSV")
    parser.add_argument(
        "--videos", default="", help="folder of the videos that the CSV names (default: the CSV's)"
    )
    parser.add_argument("--out", required=True, help="list to write")
    parser.add_argument("--classes", help="file of class names, one a line: used if it exists, else written")
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # what was left out of a folder
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
