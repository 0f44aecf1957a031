"""Quality of an encoder's frozen features during pre-training, measured on two labeled lists."""

from __future__ import annotations

import torch
from torch import nn

from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError
from videomaskfeat.inference.lists import ListChoice
from videomaskfeat.inference.multiview import Machine, VideoScores, build_views, video_features
from videomaskfeat.metrics.accuracy import accuracy
from videomaskfeat.metrics.features import check_knn, knn_scores, linear_probe_scores
from videomaskfeat.recipe import ClassifyRecipe, ClipRecipe
from videomaskfeat.schemas import DataConfig, ProbeConfig


class FeatureProbe:
    """Nearest neighbors and a linear fit on the features of two labeled lists.

    One center view per video; its tokens are averaged and scaled to length 1. Labels never reach the encoder.

    Args:
        config: the lists and the settings of the probes.
        data: how lists and videos are read.
        clip: how clips are cut.
        device: device of the encoder.
        bf16: run it under bf16 autocast.

    Raises:
        UserError: one of the lists is missing or wrong, or a number is out of range.
    """

    def __init__(
        self, config: ProbeConfig, data: DataConfig, clip: ClipRecipe, *, device: torch.device, bf16: bool
    ) -> None:
        if not (config.train and config.test):
            present, missing = ("train", "test") if config.train else ("test", "train")
            raise UserError(
                f"probe.{present} is set but probe.{missing} is not; set both labeled lists, or neither"
            )
        check_knn(k=config.k, temperature=config.temperature)
        self.config = config
        lists = ListChoice(data.format, "yes", data.separator, data.prefix)
        stills = clip.frames == 1
        self._train = lists.load(config.train, stills=stills)
        # Class folders get the labels of the training list, even if some of them are missing.
        self._test = lists.load(config.test, known_classes=self._train.class_names, stills=stills)
        assert self._train.labels is not None  # labels are "yes"
        assert self._test.labels is not None
        self._classes = 1 + int(max(self._train.labels.max(), self._test.labels.max()))
        # The short side is the crop itself, so that the square covers as much of the frame as possible.
        self._recipe = ClassifyRecipe(clip=clip, views=1, crops=1, short_side=clip.crop)
        for records in (self._train, self._test):
            build_views(records, self._recipe, reader=data.reader)  # raises if the recipe is wrong
        self._machine = Machine(str(device), "bf16" if bf16 else "fp32", data.reader, data.workers)

    def __call__(self, encoder: nn.Module) -> dict[str, float]:
        """Top-1 accuracy of both probes in percent; all ranks call it and get the same numbers.

        Args:
            encoder: has ``features(clips) -> [B, D]``; it does not change.

        Raises:
            UserError: no video of a list could be read.
            RunFailed: a feature is not finite.
        """
        train = video_features(encoder, self._train, self._recipe, self._machine)
        test = video_features(encoder, self._test, self._recipe, self._machine)
        return distributed.run_on_main(lambda: self._measure(train, test))

    def facts(self) -> dict[str, int]:
        """Number of test videos and of classes."""
        return {"probe_videos": len(self._test), "probe_classes": self._classes}

    def _measure(self, train: VideoScores, test: VideoScores) -> dict[str, float]:
        config = self.config
        votes = knn_scores(
            train.scores,
            train.labels,
            test.scores,
            classes=self._classes,
            k=config.k,
            temperature=config.temperature,
        )
        linear = linear_probe_scores(
            train.scores, train.labels, test.scores, classes=self._classes, penalty=config.penalty
        )
        return {
            "knn_top1": accuracy(votes, test.labels).top1,
            "linear_top1": accuracy(linear, test.labels).top1,
        }
