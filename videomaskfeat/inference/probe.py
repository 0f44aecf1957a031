"""How good an encoder's frozen features are while it is trained, measured on two labelled lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from videomaskfeat.data.formats import load_records
from videomaskfeat.data.records import Records
from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError
from videomaskfeat.inference.multiview import Machine, VideoScores, build_views, video_features
from videomaskfeat.metrics.accuracy import accuracy
from videomaskfeat.metrics.features import check_knn, knn_scores, linear_probe_scores
from videomaskfeat.recipe import ClassifyRecipe, ClipRecipe
from videomaskfeat.schemas import DataConfig, ProbeConfig


class FeatureProbe:
    """Nearest neighbours and a linear fit on the features of two labelled lists.

    One center view per video, its tokens averaged and scaled to length 1; the labels never reach the encoder.

    Args:
        config: the lists, and how they are asked.
        data: how lists and videos are read.
        clip: how the encoder sees clips.
        device: where the encoder is.
        bf16: run it under bf16 autocast.

    Raises:
        UserError: only one of the lists is given, one is wrong, or a number is out of its range.
    """

    def __init__(
        self, config: ProbeConfig, data: DataConfig, clip: ClipRecipe, *, device: torch.device, bf16: bool
    ) -> None:
        if not (config.train and config.test):
            given, lacking = ("train", "test") if config.train else ("test", "train")
            raise UserError(
                f"probe.{given} is set and probe.{lacking} is not: give both lists, one whose labels are "
                "known and one that is asked"
            )
        check_knn(k=config.k, temperature=config.temperature)
        self.config = config
        self._known = _labelled(config.train, data, clip)
        # Class folders are numbered as those of the training are, also where some are lacking.
        self._asked = _labelled(config.test, data, clip, self._known.class_names)
        self._classes = 1 + max(int(_labels(part).max()) for part in (self._known, self._asked))
        # The shorter side is the crop itself, so that the square shows all that it can of the frame.
        self._recipe = ClassifyRecipe(clip=clip, views=1, crops=1, short_side=clip.crop)
        for part in (self._known, self._asked):
            build_views(part, self._recipe, reader=data.reader)  # refuses what does not fit
        self._machine = Machine(str(device), "bf16" if bf16 else "fp32", data.reader, data.workers)

    def __call__(self, encoder: nn.Module) -> dict[str, float]:
        """Top-1 in percent of both probes; all ranks call it, and all get the same numbers.

        Args:
            encoder: has ``features(clips) -> [B, D]``; it is not changed.

        Raises:
            UserError: no video of a list can be read.
            RunFailed: a feature is not finite.
        """
        known = video_features(encoder, self._known, self._recipe, self._machine)
        asked = video_features(encoder, self._asked, self._recipe, self._machine)
        return distributed.run_on_main(lambda: self._accuracies(known, asked))

    def facts(self) -> dict[str, int]:
        """How many videos are asked for, of how many classes."""
        return {"probe_videos": len(self._asked), "probe_classes": self._classes}

    def _accuracies(self, known: VideoScores, asked: VideoScores) -> dict[str, float]:
        votes = knn_scores(
            known.scores,
            known.labels,
            asked.scores,
            classes=self._classes,
            k=self.config.k,
            temperature=self.config.temperature,
        )
        fitted = linear_probe_scores(
            known.scores, known.labels, asked.scores, classes=self._classes, penalty=self.config.penalty
        )
        return {
            "knn_top1": accuracy(votes, asked.labels).top1,
            "linear_top1": accuracy(fitted, asked.labels).top1,
        }


def _labelled(path: str, data: DataConfig, clip: ClipRecipe, known_classes: Sequence[str] = ()) -> Records:
    return load_records(
        path,
        format=data.format,
        labels="yes",
        separator=data.separator,
        prefix=data.prefix,
        known_classes=known_classes,
        stills=clip.frames == 1,
    )


def _labels(records: Records) -> np.ndarray:
    assert records.labels is not None  # asked for
    return records.labels
