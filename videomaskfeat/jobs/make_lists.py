"""``make-lists``: lists for training, validation and test, and class names, from labeled videos."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from videomaskfeat.data.check import CheckReport, Progress, check_list
from videomaskfeat.data.formats.writing import write_list
from videomaskfeat.data.layouts import DataSet, LabeledVideo, read_data_set, source_video
from videomaskfeat.data.records import Record
from videomaskfeat.data.split import split_groups
from videomaskfeat.errors import UserError, counted, nearest
from videomaskfeat.inference.lists import read_class_names
from videomaskfeat.io import check_outputs, make_folder, whole_file

logger = logging.getLogger(__name__)
SUBSETS = ("train", "val", "test")


@dataclass(frozen=True)
class MadeLists:
    """The written lists.

    Attributes:
        folder: folder of train.csv, val.csv, test.csv (those with videos) and classes.txt.
        kind: layout that was recognized.
        subsets: videos of each list.
        class_names: class names, indexed by label.
        multi_label: whether a video has any number of classes.
        report: findings of the check; None without it.
        dropped: number of videos left out because of them.
        missing: number of annotated videos without a file.
    """

    folder: str
    kind: str
    subsets: dict[str, list[LabeledVideo]]
    class_names: tuple[str, ...]
    multi_label: bool
    report: CheckReport | None
    dropped: int
    missing: int

    def text(self) -> str:
        """The lists, what was left out, and the next command."""
        several = ", any number per video" if self.multi_label else ""
        lines = [f"{self.kind}: {len(self.class_names)} classes{several}"]
        for part, videos in self.subsets.items():
            counts = Counter(name for video in videos for name in video.classes)
            most = max(counts.values(), default=0)
            least = min((counts[name] for name in self.class_names), default=0)
            lines.append(
                f"{os.path.join(self.folder, f'{part}.csv')}  {counted(len(videos), 'video')}, "
                f"{least} to {most} per class"
            )
        lines.append(os.path.join(self.folder, "classes.txt"))
        if self.missing:
            lines.append(f"left out  {counted(self.missing, 'annotated video')} without a file")
        if self.dropped:
            lines.append(f"left out  {counted(self.dropped, 'video')}, unreadable or copies:")
            assert self.report is not None
            problems = [one for one in self.report.problems if one.kind != "odd"]
            lines += [f"    {one.path}: {one.detail}" for one in problems[:20]]
        for label, command in zip(("next      ", 10 * " "), self.next_commands(), strict=True):
            lines.append(f"{label}{shlex.join(command)}")
        return "\n".join(lines)

    def next_commands(self) -> tuple[list[str], list[str]]:
        """Pre-training and fine-tuning with the configs for small sets on this machine."""
        size = "small_gpu" if shutil.which("nvidia-smi") else "small_cpu"
        validation = f"{self.folder}/val.csv" if "val" in self.subsets else ""
        lists = [f"data.train={self.folder}/train.csv", f"data.validation={validation}"]
        names, weights = f"data.class_names={self.folder}/classes.txt", f"runs/{size}/weights.safetensors"
        pretrain = ["videomaskfeat", "pretrain", "--config", f"pretrain/{size}", *lists]
        finetune = ["videomaskfeat", "finetune", "--config", f"finetune/{size}", *lists, names]
        return pretrain, [*finetune, f"model.weights={weights}"]


def make_lists(
    source: str,
    out: str,
    *,
    videos: str = "",
    validation: float = 0.15,
    test: float = 0.15,
    fold: int = 1,
    group: str = "auto",
    seed: int = 0,
    class_names: str = "",
    check: bool = True,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MadeLists:
    """Write train.csv, val.csv, test.csv and classes.txt into a folder.

    Lists that the data set defines are kept. If it has a test list but no validation list, the validation
    videos are drawn from its training list; without lists, all three are drawn. Drawn lists have equal shares
    of every class, and clips of one source video are in one list.

    Args:
        source: see :func:`~videomaskfeat.data.layouts.read_data_set`, as ``videos`` and ``fold``.
        out: folder to write.
        validation: share of the videos in val.csv; 0: no such list.
        test: share of the videos in test.csv; 0: no such list.
        group: see :func:`~videomaskfeat.data.layouts.source_video`.
        seed: seed of the random split.
        class_names: file of class names in the order of the labels; empty: the data set's, or sorted names.
        check: decode frames of every video, and leave out unreadable ones; before a random split also
            copies of a video.
        workers: number of processes that check.
        overwrite: replace lists in the folder.
        progress: called with (files checked, total files).

    Raises:
        UserError: the source is wrong, a class is unknown, a share is out of range, or a list exists.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise UserError(
            f"validation={validation:g}, test={test:g}: shares must be at least 0, with a sum below 1"
        )
    check_outputs((os.path.join(out, f"{part}.csv") for part in SUBSETS), overwrite=overwrite)
    data = read_data_set(source, videos=videos, fold=fold)
    names, labels = _number_classes(data, class_names)
    rows, report = data.videos, None
    if check:
        pairs = [(video.path, None if data.multi_label else labels[video.classes[0]]) for video in rows]
        report = check_list(pairs, workers=workers, progress=progress)
        kinds = {"missing", "unreadable"}
        if not any(video.split for video in rows):
            kinds.add("duplicate")
        drop = {problem.row for problem in report.problems if problem.kind in kinds}
        rows = [video for row, video in enumerate(rows) if row not in drop]
        if not rows:
            raise UserError(f"{source}: no video can be read; the first: {report.problems[0].detail}")
    split = _split(rows, labels, validation, test, group, seed)
    subsets = {part: [video for video in split if video.split == part] for part in SUBSETS}
    subsets = {part: own for part, own in subsets.items() if own}
    make_folder(out)
    for part in SUBSETS:  # a list of an earlier command must not stay beside the new ones
        path = os.path.join(out, f"{part}.csv")
        if part not in subsets and os.path.lexists(path):
            os.remove(path)
    for part, own in subsets.items():
        own_rows = [_record(video, labels, multi_label=data.multi_label) for video in own]
        write_list(os.path.join(out, f"{part}.csv"), own_rows)
    with whole_file(os.path.join(out, "classes.txt"), errors="surrogateescape") as file:
        file.writelines(f"{name}\n" for name in names)
    _warn_of_few_videos(subsets, names)
    dropped = len(data.videos) - len(rows)
    return MadeLists(out, data.kind, subsets, names, data.multi_label, report, dropped, data.missing)


def _number_classes(data: DataSet, path: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names by label, and the label of each class of the videos; a class may be a number."""
    used = {name for video in data.videos for name in video.classes}
    are_labels = not data.class_names and all(re.fullmatch(r"0|[1-9]\d{0,5}", name) for name in used)
    names = read_class_names(path) if path else data.class_names
    if not names:
        names = tuple(map(str, range(1 + max(map(int, used))))) if are_labels else tuple(sorted(used))
    labels = {name: label for label, name in enumerate(names)}
    if are_labels:
        labels |= {str(label): label for label in range(len(names))}
    unknown = next((name for name in sorted(used) if name not in labels), None)
    if unknown is not None:
        raise UserError(
            f"{path or data.kind}: the class {unknown!r} is missing{nearest(unknown, names)}; add it to the "
            "class names"
        )
    return names, labels


def _split(
    videos: Sequence[LabeledVideo],
    labels: dict[str, int],
    validation: float,
    test: float,
    group: str,
    seed: int,
) -> list[LabeledVideo]:
    """The videos with a part each."""
    known = {video.split for video in videos if video.split}
    if not known:
        shares = (1 - validation - test, validation, test)
    elif "val" in known or not validation:
        shares = (1.0, 0.0, 0.0)
    else:
        shares = (1 - validation, validation, 0.0)
    open_rows = [row for row, video in enumerate(videos) if video.split in ("", "train")]
    if shares[0] == 1:
        drawn = [0] * len(open_rows)
    else:
        own = [videos[row] for row in open_rows]
        classes = [[labels[name] for name in video.classes] for video in own]
        drawn = split_groups(classes, [source_video(v.path, group) for v in own], shares, seed=seed).tolist()
    result = list(videos)
    for row, part in zip(open_rows, drawn, strict=True):
        result[row] = replace(videos[row], split=SUBSETS[part])
    return result


def _record(video: LabeledVideo, labels: dict[str, int], *, multi_label: bool) -> Record:
    numbers = tuple(sorted({labels[one] for one in video.classes}))
    return Record(video.path, None, numbers) if multi_label else Record(video.path, next(iter(numbers), -1))


def _warn_of_few_videos(subsets: dict[str, list[LabeledVideo]], names: Sequence[str]) -> None:
    """Log which classes have no video in a list."""
    for part, videos in subsets.items():
        present = {name for video in videos for name in video.classes}
        absent = [name for name in names if name not in present]
        if absent:
            logger.warning(
                "%s.csv has no video of %d of %d classes (%s, ...)", part, len(absent), len(names), absent[0]
            )
