"""Pairs of clips for methods that compare views: their loaders, from the config and a method's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from videomaskfeat.config import PretrainConfig
from videomaskfeat.data.clips import MaskDraw
from videomaskfeat.data.colour import ColourJitter, RandomColour
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.pairs import LocalCrops, PairClips
from videomaskfeat.data.sampling import clip_indices_random
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.errors import UserError
from videomaskfeat.tasks.pretraining.pretrain_parts import (
    HELDOUT_BATCH,
    check_heldout_clips,
    frame_sampler,
    records_of,
    training_crop,
)


@dataclass(frozen=True)
class Colours:
    """How the colours of a view change.

    Attributes:
        brightness, contrast, saturation: greatest change, a share.
        chance: that they change at all, 0..1.
        grey: chance that a view loses its colours, 0..1.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    chance: float = 0.8
    grey: float = 0.2


@dataclass(frozen=True)
class Local:
    """Small crops that only the student sees.

    Attributes:
        count: crops a video; 0: none.
        size: pixels of their side; frames are those of the clips.
        area: least and greatest share of the frame.
    """

    count: int = 0
    size: int = 96
    area: Sequence[float] = (0.05, 0.4)


def pair_dataset(
    config: PretrainConfig, path: str, *, colours: Colours, mask: MaskDraw | None, local: Local
) -> PairClips:
    """Pairs of the videos of a list, each clip with random frames, crop and colours.

    Raises:
        UserError: the list, a clip setting or an argument is wrong.
    """
    clip = config.clip
    if clip.samples_per_video not in (1, 2):
        raise UserError(
            f"clip.samples_per_video {clip.samples_per_video}: method {config.method.name!r} cuts two clips "
            "from each video; leave it at 1"
        )
    crops = None
    if len(local.area) != 2:
        raise UserError(
            f"method.arguments.local.area {list(local.area)} must be two shares of the frame, the least and "
            "the greatest, such as [0.05, 0.4]"
        )
    if local.count:
        transform = RandomResizedCrop(
            local.size,
            area=(local.area[0], local.area[1]),
            aspect=(clip.crop_aspect[0], clip.crop_aspect[1]),
            flip=clip.flip,
        )
        crops = LocalCrops(local.count, transform)
    jitter = ColourJitter(
        brightness=colours.brightness, contrast=colours.contrast, saturation=colours.saturation
    )
    return PairClips(
        records_of(config, path),
        sampler=frame_sampler(config, clip_indices_random),
        transform=training_crop(clip),
        colour=RandomColour(jitter, chance=colours.chance, grey=colours.grey),
        mask=mask,
        local=crops,
        reader=config.data.reader,
        seed=config.run.seed,
    )


def training_pairs(config: PretrainConfig, *, rank: int, world_size: int, **parts: Any) -> ClipLoader[Any]:
    """The training batches of a rank; ``parts`` are those of :func:`pair_dataset`.

    ``optim.batch_size`` counts clips, two a video; local crops do not count.

    Raises:
        UserError: see :func:`pair_dataset`; or a batch that does not divide.
    """
    return ClipLoader(
        pair_dataset(config, config.data.train, **parts),
        batch_size=config.optim.batch_size,
        accumulate=config.optim.accumulate,
        workers=config.data.workers,
        read_seconds=config.data.read_seconds,
        rank=rank,
        world_size=world_size,
        pin_memory=config.run.device != "cpu",
    )


def heldout_pairs(config: PretrainConfig, **parts: Any) -> ClipLoader[Any] | None:
    """Pairs of the held-out videos in the list's order, always the same; None where there is no list.

    Raises:
        UserError: see :func:`pair_dataset`; or no clips to evaluate.
    """
    if not config.data.validation:
        return None
    check_heldout_clips(config)
    dataset = pair_dataset(config, config.data.validation, **parts)
    videos = min(max(config.run.evaluate_clips // 2, 1), len(dataset))
    return ClipLoader(
        dataset,
        batch_size=2 * max(size for size in range(1, HELDOUT_BATCH // 2 + 1) if videos % size == 0),
        workers=config.data.workers,
        read_seconds=config.data.read_seconds,
        shuffle=False,
        read_ahead=False,
    )
