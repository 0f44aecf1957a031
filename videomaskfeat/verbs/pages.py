"""The verbs that draw: visualize, report."""

from __future__ import annotations

from dataclasses import dataclass

from videomaskfeat.config_keys import key
from videomaskfeat.schemas.pretrain import MASK_KINDS
from videomaskfeat.schemas.sections import (
    CLIP_MAPS,
    READERS,
    OutputOptions,
)
from videomaskfeat.terminal import DONE, report_failures
from videomaskfeat.texts import printable, printable_name
from videomaskfeat.verbs.verb import Verb


@dataclass
class VisualizeOptions(OutputOptions):
    """files"""

    weights: str = key(
        "",
        "weights of a pre-training run; with --attention, of any run",
        positional=True,
        former="checkpoint",
    )
    videos: list[str] = key([], "videos, or folders of videos", positional=True)
    out: str = key("pictures", "folder to write")
    mask: str | None = key(
        None, "kind of mask", choices=MASK_KINDS, plugin="a mask function", null="from the weights"
    )
    ratio: float | None = key(None, "fraction of hidden tokens", null="from the weights")
    seed: int = key(0, "seed of the mask", least=0)
    columns: int = key(8, "time steps per picture", least=1)
    device: str = key("auto", "device: auto | cpu | cuda")
    reader: str = key("auto", "video reader", choices=READERS, plugin="a VideoReader")
    attention: bool = key(False, "a map of the clip instead of mask, target and prediction")
    map: str = key("auto", "map of --attention", choices=CLIP_MAPS)
    label: int | None = key(None, "class of gradcam", least=0, null="the most probable one")
    block: int | None = key(None, "block of attention and rollout, from 1", least=1, null="the last")


def visualize(options: VisualizeOptions) -> int:
    """Draw frames, mask, target and prediction of each video, as a picture and an mp4.

    videomaskfeat visualize runs/s/weights.safetensors my_video.mp4 --out pictures
    videomaskfeat visualize runs/s/weights.safetensors *.mp4 --mask tube --ratio 0.6 --seed 3
    videomaskfeat visualize runs/s_k400/best.safetensors my_video.mp4 --attention --label 17
    videomaskfeat visualize runs/s/weights.safetensors my_video.mp4 --attention --map attention --block 12
    """
    from videomaskfeat.jobs.visualize import visualize

    result = visualize(**vars(options))
    for path in result.written:
        print(printable_name(str(path)))
    return report_failures("visualize", result.failures)


@dataclass
class ReportOptions(OutputOptions):
    """files"""

    folder: str = key("", "run folder", positional=True)
    out: str | None = key(
        None, "HTML file", null="report.html in the run folder, with --beside comparison.html"
    )
    beside: list[str] = key([], "run folders to compare with this one")


def report(options: ReportOptions) -> int:
    """Write one self-contained HTML page about a run, finished or not.

    videomaskfeat report runs/s
    videomaskfeat report runs/s --out s.html
    videomaskfeat report runs/pretrained --beside runs/scratch      the curves of both runs in one chart
    """
    from videomaskfeat.jobs.report import report

    print(printable(str(report(**vars(options)))))
    return DONE


VERBS = {
    "visualize": Verb(visualize),
    "report": Verb(report),
}
