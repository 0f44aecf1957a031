"""Options that several verbs share, and their use as arguments of the jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from videomaskfeat.config_keys import key
from videomaskfeat.schemas.finetune import CROPS
from videomaskfeat.schemas.pretrain import LABELS
from videomaskfeat.schemas.sections import (
    LIST_FORMATS,
    READERS,
    SEPARATORS,
    SHARE,
    MachineOptions,
)
from videomaskfeat.terminal import DONE, report_failures
from videomaskfeat.texts import printable

T = TypeVar("T")


def select_fields(cls: type[T], options: Any) -> T:
    """An instance of a dataclass from the options of the same names."""
    values = {item.name: getattr(options, item.name) for item in fields(cls) if hasattr(options, item.name)}  # type: ignore[arg-type]
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def as_arguments(
    options: Any, groups: Mapping[str, type[Any]] | None = None, **new_names: str
) -> dict[str, Any]:
    """The options as keyword arguments of a job.

    Args:
        options: the options of a verb.
        groups: argument -> dataclass that replaces the options of the same names.
        new_names: option -> argument, where the names differ.
    """
    groups = groups or {}
    grouped = {item.name for cls in groups.values() for item in fields(cls)}
    arguments = {
        new_names.get(name, name): value for name, value in vars(options).items() if name not in grouped
    }
    return arguments | {name: select_fields(cls, options) for name, cls in groups.items()}


def print_scores(verb: str, text: str, failures: Iterable[str]) -> int:
    """Print the text of a result and its failures on the first rank; returns the exit code."""
    if not text:  # not the first rank; torchrun would end all ranks if it returned SOME_FAILED
        return DONE
    print(printable(text))
    return report_failures(verb, failures)


@dataclass
class ListOptions:
    """list"""

    prefix: str = key("", "folder put before every relative path")
    format: str = key("auto", "format of the list", choices=LIST_FORMATS, plugin="a ListFormat")
    labels: str = key("auto", "whether rows end with a label", choices=LABELS)
    separator: str = key("auto", "column separator", choices=SEPARATORS)


@dataclass
class ReadingOptions(MachineOptions):
    """reading"""

    reader: str = key("auto", "video reader", choices=READERS, plugin="a VideoReader")
    workers: int = key(2, "number of loader processes per rank; 0: the main process loads", least=0)


@dataclass
class RayOptions:
    """cluster"""

    ray: str = key(
        "",
        "address of a Ray cluster that does the work: host:6379, ray://host:10001, auto, or local (Ray on "
        "this machine); empty: no cluster",
    )


@dataclass
class ViewsOptions:
    """views"""

    views: int | None = key(None, "temporal views per video, evenly spaced", least=1, null="from the weights")
    crops: int | None = key(None, "crops per view", choices=CROPS, null="from the weights")


@dataclass
class KeyFrameOptions:
    """key frames"""

    groundtruth: str = key("", "rows video,second,x1,y1,x2,y2,action,person", required="ava_val_v2.2.csv")
    labels: str = key("", "label map (pbtxt) of the scored actions", required="actions.pbtxt")
    iou: float = key(0.5, "minimum IoU of a hit", **SHARE)
    rows_per_frame: int | None = key(
        None, "maximum number of rows per key frame, best first (official script: 50)", least=1, null="all"
    )
