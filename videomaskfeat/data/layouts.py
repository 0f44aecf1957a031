"""Labeled videos of data sets as downloaded, of class folders, and of tables of names and labels."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from videomaskfeat.data.folders import find_videos
from videomaskfeat.errors import UserError, counted, nearest
from videomaskfeat.io import is_folder
from videomaskfeat.texts import read_json, read_text, show_text

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of the subsets of a data set -> the part."""
_PATH_COLUMNS = ("path", "video", "file", "filename", "name", "video_id", "id")
_LABEL_COLUMNS = ("label", "labels", "class", "classes", "action", "actions", "category")


@dataclass(frozen=True)
class LabeledVideo:
    """A video: its path, its classes (names or numbers), and train, val, test, or empty if not fixed."""

    path: str
    classes: tuple[str, ...]
    split: str = ""


@dataclass(frozen=True)
class DataSet:
    """The videos of a data set.

    Attributes:
        kind: noun phrase for the layout that was recognized.
        videos: videos that exist.
        class_names: class names, indexed by label; empty: the sorted names of the videos.
        missing: number of annotated videos that do not exist.
        multi_label: whether a video has any number of classes instead of one.
    """

    kind: str
    videos: list[LabeledVideo]
    class_names: tuple[str, ...] = ()
    missing: int = 0
    multi_label: bool = False


@dataclass(frozen=True)
class _Row:
    """An annotation: name of a video, its classes and part."""

    name: str
    classes: tuple[str, ...]
    split: str


class _Folder:
    """Videos and annotation files below a folder; folders of pictures are videos."""

    def __init__(self, root: str) -> None:
        matches = find_videos(root)
        self.root = root
        self.videos = [*matches.videos, *(path for path in matches.frames if path != ".")]
        self.files = matches.skipped

    def path(self, name: str) -> str:
        """Path of an annotation file or a video."""
        return os.path.join(self.root, name)

    def matches(self, pattern: str) -> dict[str, str]:
        """First group of the pattern -> path, for the annotation files with such a name."""
        names = ((re.fullmatch(pattern, os.path.basename(file), re.I), file) for file in self.files)
        return {match[1].lower(): self.path(file) for match, file in names if match}

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        stems: dict[str, list[str]] = {}
        for path in self.videos:
            stems.setdefault(_stem(path), []).append(path)
        return stems

    def find(self, name: str) -> str | None:
        """The video with the name of an annotation, with or without folder and suffix; None: missing.

        Raises:
            UserError: several videos have the name.
        """
        matches = self._by_stem.get(_stem(name), [])
        exact = [path for path in matches if f"{os.sep}{path}".endswith(f"{os.sep}{os.path.normpath(name)}")]
        matches = exact or matches
        if len(matches) > 1:
            raise UserError(
                f"{self.root}: {show_text(name)} matches {matches[0]} and {matches[1]}; write the folder "
                "in the annotations, or give the folder of one of them"
            )
        return matches[0] if matches else None


def _stem(path: str) -> str:
    base = os.path.basename(os.path.normpath(path))
    stem, suffix = os.path.splitext(base)
    return stem if re.fullmatch(r"\.[A-Za-z]\w{1,4}", suffix) else base


def read_data_set(source: str, *, videos: str = "", fold: int = 1) -> DataSet:
    """Read a folder or a table of names and labels.

    Args:
        source: class folders (also in folders train, val, test), a data set as downloaded with its annotation
            files, or a CSV file of names and labels.
        videos: folder of the videos, if it is not the source or the folder of the CSV file.
        fold: number of the published split of UCF101 and HMDB51.

    Raises:
        UserError: no layout is recognized, an annotation is wrong, or no annotated video exists.
    """
    if not is_folder(source):
        return _locate(_Folder(videos or os.path.dirname(source) or "."), "a table", *_table(source))
    folder = _Folder(source)
    media = _Folder(videos) if videos else folder
    for kind, read in _LAYOUTS.items():
        rows = read(folder, fold)
        if rows is not None:
            return _locate(media, kind, *rows)
    return _class_folders(folder)


_Rows = tuple[list[_Row], tuple[str, ...], bool]
"""Annotations, class names by label (may be empty), and whether a video has any number of classes."""


def _locate(
    folder: _Folder, kind: str, rows: Sequence[_Row], names: tuple[str, ...], multi_label: bool
) -> DataSet:
    """The videos of annotations that exist."""
    pairs = [(row, folder.find(row.name)) for row in rows]
    videos = [LabeledVideo(folder.path(path), row.classes, row.split) for row, path in pairs if path]
    if not videos:
        raise UserError(
            f"{folder.root}: none of the {len(rows)} annotated videos is in this folder ({rows[0].name}, "
            "...); set videos to the folder of the videos"
            if rows
            else f"{folder.root}: the annotations ({kind}) have no rows with labels"
        )
    known = set(names)
    for row in rows if names else ():
        unknown = next((name for name in row.classes if name not in known), None)
        if unknown is not None:
            raise UserError(
                f"{row.name} has the class {show_text(unknown)!r}, which is not among the {len(names)} "
                f"classes of {kind}{nearest(unknown, names)}; correct the annotations"
            )
    return DataSet(kind, videos, names, len(rows) - len(videos), multi_label)


def _class_folders(folder: _Folder) -> DataSet:
    videos: list[LabeledVideo] = []
    subsets = {path.split(os.sep)[0] for path in folder.videos}
    in_subsets = bool(subsets) and all(part.lower() in SPLITS for part in subsets)
    for path in folder.videos:
        names = path.split(os.sep)
        split = SPLITS[names.pop(0).lower()] if in_subsets else ""
        if len(names) < 2:
            raise UserError(
                f"{folder.path(path)} is not in a class folder; the folder of a video is its class. Move it, "
                "or give a CSV file with rows `path,label`"
            )
        videos.append(LabeledVideo(folder.path(path), (names[0].replace("_", " "),), split))
    if not videos:
        raise UserError(
            f"{folder.root} contains no videos ({counted(len(folder.files), 'other file')}); give a folder "
            "with one folder of videos per class"
        )
    return DataSet("class folders", videos)


def _csv_rows(path: str) -> Iterable[tuple[str, list[str]]]:
    """``file:line`` and fields of the rows that are not blank, separated as in the first row."""
    text = read_text(path, what="a table of names and labels")
    first = text.lstrip().partition("\n")[0]
    separator = next((one for one in "\t,;" if one in first), "")
    if not separator:  # the label follows the last space
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{path}:{number}", [field for field in line.strip().rpartition(" ")[::2] if field]
        return
    rows = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    try:
        for row in rows:
            if any(field.strip() for field in row):
                yield f"{path}:{rows.line_num}", [field.strip() for field in row]
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num}: {error}; is a double quote not closed?") from error


def _table(path: str) -> _Rows:
    """Rows `path,label`, with or without a header; a column `labels` has any number of classes per row."""
    rows = list(_csv_rows(path))
    if not rows:
        raise UserError(f"{path} is empty; a table has a row `path,label` for each video")
    header = [name.lower() for name in rows[0][1]]
    if "youtube_id" in header:
        return [_kinetics_row(where, header, row, "") for where, row in rows[1:]], (), False
    path_column = next((header.index(name) for name in _PATH_COLUMNS if name in header), None)
    label_column = next((header.index(name) for name in _LABEL_COLUMNS if name in header), None)
    if path_column is None or label_column is None:
        path_column, label_column, header = 0, 1, []
    else:
        rows = rows[1:]
    several = bool(header) and header[label_column] in ("labels", "classes", "actions")
    split_column = header.index("split") if "split" in header else None
    annotations = []
    for where, row in rows:
        if len(row) <= max(path_column, label_column) or not row[path_column]:
            raise UserError(
                f"{where}: {show_text(','.join(row))!r} has no label; a row is `path,label`, or the first "
                "row names the columns: path, label (or labels: several, separated by ;) and split"
            )
        label = row[label_column]
        words = re.split(r"[;|,]", label) if several else [label]
        classes = tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
        if not classes and not several:
            raise UserError(f"{where}: the label of {show_text(row[path_column])!r} is empty; add it")
        split = "" if split_column is None or len(row) <= split_column else row[split_column].lower()
        if split and split not in SPLITS:
            raise UserError(f"{where}: the split {show_text(split)!r} is not train, val or test")
        annotations.append(_Row(row[path_column], classes, SPLITS.get(split, "")))
    return annotations, (), several


def _kinetics_row(where: str, header: Sequence[str], row: Sequence[str], split: str) -> _Row:
    fields = dict(zip(header, row, strict=False))
    try:
        times = [int(float(fields[name])) for name in ("time_start", "time_end")]
    except (KeyError, ValueError) as error:
        raise UserError(f"{where}: time_start and time_end must be numbers (seconds)") from error
    name = "_".join([fields["youtube_id"], *(f"{second:06d}" for second in times)])
    label = fields.get("label", "")
    return _Row(name, (label,) if label else (), SPLITS.get(fields.get("split", "").lower(), split))


def _kinetics(folder: _Folder, fold: int) -> _Rows | None:
    annotations = []
    for path in folder.matches(r"(.*\.csv)").values():
        text = read_text(path, what="a table").lstrip()
        if "youtube_id" not in text.partition("\n")[0].lower():
            continue
        words = re.split(r"[^a-z]+", os.path.basename(path).lower())
        split = next((SPLITS[word] for word in words if word in SPLITS), "")
        rows = list(_csv_rows(path))
        header = [name.lower() for name in rows[0][1]]
        annotations += [_kinetics_row(where, header, row, split) for where, row in rows[1:]]
    labeled = [row for row in annotations if row.classes]  # the test part has no labels
    return (labeled, (), False) if annotations else None


def _lines(path: str) -> list[str]:
    lines = read_text(path, what="a list of a data set").split("\n")
    return [line.strip() for line in lines if line.strip()]


def _ucf101(folder: _Folder, fold: int) -> _Rows | None:
    files = folder.matches(r"((?:train|test)list\d+\.txt)")
    if not files:
        return None
    annotations = []
    for part in ("train", "test"):
        path = files.get(f"{part}list{fold:02d}.txt")
        if path is None:
            raise UserError(f"{folder.root}: {part}list{fold:02d}.txt is missing; set fold to 1, 2 or 3")
        for line in _lines(path):
            name = re.sub(r"\s+\d+$", "", line)  # training rows end with the label, from 1
            annotations.append(_Row(name, (name.split("/")[0],), part))
    return annotations, (), False


def _hmdb51(folder: _Folder, fold: int) -> _Rows | None:
    if not folder.matches(r"(.+_test_split\d\.txt)"):
        return None
    annotations = []
    files = folder.matches(rf"(.+)_test_split{fold}\.txt")
    if not files:
        raise UserError(f"{folder.root}: no files *_test_split{fold}.txt; set fold to 1, 2 or 3")
    for name, path in files.items():
        for line in _lines(path):
            video, _, number = line.rpartition(" ")
            if number in ("1", "2"):  # 0: unused in this split
                annotations.append(
                    _Row(video.strip(), (name.replace("_", " "),), "train" if number == "1" else "test")
                )
    return annotations, (), False


def _objects(path: str) -> list[Mapping[str, Any]]:
    data = read_json(path, what="a JSON list")
    if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
        raise UserError(f"{path} is not a JSON list of objects; use the file of the data set")
    return data


def _diving48(folder: _Folder, fold: int) -> _Rows | None:
    files = folder.matches(r"Diving48_(?:V2_)?(train|test)\.json")
    if not files:
        return None
    vocabularies = list(folder.matches(r"(Diving48_vocab\.json)").values())
    names: tuple[str, ...] = ()
    if vocabularies:
        names = tuple(" ".join(map(str, words)) for words in read_json(vocabularies[0], what="a JSON list"))
    annotations = []
    for split, path in files.items():
        for number, one in enumerate(_objects(path), start=1):
            label = one.get("label")
            limit = len(names) or 10**6
            if not isinstance(label, int) or not 0 <= label < limit or "vid_name" not in one:
                raise UserError(
                    f"{path}: object {number} has no `vid_name`, or no `label` from 0 to {limit - 1}"
                )
            annotations.append(_Row(str(one["vid_name"]), (names[label] if names else str(label),), split))
    return annotations, names, False


def _ssv2(folder: _Folder, fold: int) -> _Rows | None:
    files = folder.matches(r"(?:something-something-v2-)?(train|validation|labels)\.json")
    if not {"train", "labels"} <= set(files):
        return None
    table = read_json(files["labels"], what="a labels JSON")
    if not isinstance(table, dict):
        raise UserError(f"{files['labels']}: must map each template to its number")
    try:
        names = tuple(sorted(table, key=lambda name: int(table[name])))
    except (TypeError, ValueError) as error:
        raise UserError(f"{files['labels']}: must map each template to its number") from error
    annotations = []
    for part in ("train", "validation"):
        for number, one in enumerate(_objects(files[part]) if part in files else (), start=1):
            if "id" not in one or "template" not in one:
                raise UserError(f"{files[part]}: object {number} has no `id` or no `template`")
            template = str(one["template"]).replace("[", "").replace("]", "")
            annotations.append(_Row(str(one["id"]), (template,), SPLITS[part]))
    return annotations, names, False


def _charades(folder: _Folder, fold: int) -> _Rows | None:
    files = folder.matches(r"Charades_v1_(train|test)\.csv")
    if not files:
        return None
    classes = list(folder.matches(r"(Charades_v1_classes\.txt)").values())
    if not classes:
        raise UserError(
            f"{folder.root}: Charades_v1_classes.txt is missing; it names the classes c000 to c156"
        )
    codes = dict(line.partition(" ")[::2] for line in _lines(classes[0]))
    annotations = []
    for split, path in files.items():
        rows = list(_csv_rows(path))
        header = rows[0][1] if rows else []
        if not {"id", "actions"} <= set(header):
            raise UserError(f"{path}: the first row must name the columns id and actions")
        for where, row in rows[1:]:
            fields = dict(zip(header, row, strict=False))
            actions = fields.get("actions", "").split(";")  # code, start and end in seconds
            own = tuple(dict.fromkeys(action.split()[0] for action in actions if action.strip()))
            unknown = next((code for code in own if code not in codes), None)
            if unknown is not None:
                raise UserError(f"{where}: the action {show_text(unknown)!r} is not in {classes[0]}")
            annotations.append(_Row(fields["id"], tuple(codes[code] for code in own), split))
    return annotations, tuple(codes.values()), True


_LAYOUTS: dict[str, Callable[[_Folder, int], _Rows | None]] = {
    "Charades": _charades,
    "Something-Something-v2": _ssv2,
    "Diving48": _diving48,
    "UCF101": _ucf101,
    "HMDB51": _hmdb51,
    "Kinetics": _kinetics,
}
"""Name -> reader of the annotations in a folder; None if the folder has another layout."""

_CLIP_OF_VIDEO = (
    r"(.+_g\d+)_c\d+",  # UCF101
    r"(.+)_\d{6}_\d{6}",  # Kinetics: start and end in seconds
    r"(.+)_[a-z]_(?:cm|nm)_np\d_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+",  # HMDB51
    r"(.{11})_\d{5}",  # Diving48: YouTube id and clip
    r"(.+?)[ _-](?:clip|part|seg|segment|scene|shot|cut)[ _-]?\d+",
)


def source_video(path: str, pattern: str = "auto") -> str:
    """The video that a clip was cut from, by its file name; clips of one video belong into one list.

    Args:
        path: path of a clip.
        pattern: regular expression whose first group is the source video; ``auto``: the names of UCF101,
            Kinetics, HMDB51, Diving48 and ``name_clip3``; ``none``: every file is a video by itself.

    Raises:
        UserError: the pattern is not a regular expression with a group.
    """
    stem = _stem(path)
    if pattern == "none":
        return path
    if pattern != "auto":
        try:
            match = re.search(pattern, stem)
            return match[1] if match else path
        except (re.error, IndexError) as error:
            raise UserError(
                f"group={pattern}: must be a regular expression with a group for the source video, such as "
                f"'(.+)_\\d+' ({error})"
            ) from error
    for one in _CLIP_OF_VIDEO:
        match = re.fullmatch(one, stem, re.I)
        if match:
            return match[1]
    return path
