"""Quality of an encoder's frozen features during pre-training, measured on labeled lists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from videomaskfeat.data.memory import VideoMemory
from videomaskfeat.data.records import Records
from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError
from videomaskfeat.inference.lists import ListChoice, check_single_label
from videomaskfeat.inference.multiview import Machine, VideoScores, build_views, video_features
from videomaskfeat.metrics.accuracy import accuracy
from videomaskfeat.metrics.features import check_knn, knn_scores, linear_probe_scores
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.schemas.pretrain import DataConfig, ProbeConfig
from videomaskfeat.stored_recipe import ClassifyRecipe
from videomaskfeat.values import build_dataclass


@dataclass(frozen=True)
class _Files:
    """List files of a probe."""

    train: str
    test: str


@dataclass(frozen=True)
class _Lists:
    """The lists of a probe, and its number of classes."""

    train: Records
    test: Records
    classes: int


class _LastBlocks(nn.Module):
    """An encoder whose features are those of its last blocks side by side.

    Middle blocks contain more of a clip than the last one, which is fitted to the pre-training's target.
    DINO (arXiv:2104.14294, section 4.1) and iBOT read four blocks.

    Args:
        encoder: an :class:`Encoder`.
        count: number of blocks, 1..all.
    """

    def __init__(self, encoder: Encoder, count: int) -> None:
        super().__init__()
        self.encoder, self.count = encoder, count

    def features(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalized -> [B, sum of D']: each block's tokens are averaged and
        scaled to length 1; those of the last block have the final norm."""
        depth = len(self.encoder.blocks)
        grids = self.encoder.features_at(clips, range(depth - self.count + 1, depth + 1))
        *before, last = (grid.flatten(1, 3) for grid in grids)  # [B, N', D'] per block
        means = [tokens.mean(dim=1) for tokens in before] + [self.encoder.pool(last)]
        return torch.cat([nn.functional.normalize(mean, dim=-1) for mean in means], dim=-1)


class FeatureProbe:
    """Nearest neighbors and a linear fit on the features of labeled lists.

    One center view per video; the tokens of each of the last ``probe.blocks`` blocks are averaged and scaled
    to length 1. Labels never reach the encoder.
    Lists of the same videos with other labels (``factors``) share the features.

    Args:
        config: the lists and the settings of the probes.
        data: how lists and videos are read.
        clip: how clips are cut.
        device: device of the encoder.
        bf16: run it under bf16 autocast.

    Raises:
        UserError: one of the lists is missing or wrong, or a number is out of range.

    Attributes:
        memory: decoded videos, which are not read from their files.
    """

    memory: VideoMemory | None = None

    def __init__(
        self, config: ProbeConfig, data: DataConfig, clip: ClipRecipe, *, device: torch.device, bf16: bool
    ) -> None:
        check_knn(k=config.k, temperature=config.temperature)
        self.config = config
        choice = ListChoice(data.format, "yes", data.separator, data.prefix)
        self._probes = {
            name: _load_lists(files, choice, stills=clip.frames == 1)
            for name, files in _list_files(config).items()
        }
        # The short side is the crop itself, so that the square covers as much of the frame as possible.
        self._recipe = ClassifyRecipe(clip=clip, views=1, crops=1, short_side=clip.short_side)
        for records in self.lists:
            build_views(records, self._recipe, reader=data.reader)  # raises if the recipe is wrong
        self._machine = Machine(str(device), "bf16" if bf16 else "fp32", data.reader, data.workers)

    @property
    def lists(self) -> list[Records]:
        """All lists."""
        return [records for probe in self._probes.values() for records in (probe.train, probe.test)]

    def __call__(self, encoder: nn.Module) -> dict[str, float]:
        """Top-1 accuracy of all probes in percent; all ranks call it and get the same numbers.

        Args:
            encoder: has ``features(clips) -> [B, D]``, and is an :class:`Encoder` if several blocks are read;
                it does not change.

        Returns:
            ``knn_top1`` and ``linear_top1`` of ``probe.train`` and ``probe.test``, and the same names with
            ``_NAME`` at the end for each factor.

        Raises:
            UserError: no video of a list could be read, or the encoder has fewer blocks.
            RunFailed: a feature is not finite.
        """
        encoder = self._reader(encoder)
        machine = replace(self._machine, memory=self.memory)
        features: dict[tuple[str, ...], VideoScores] = {}
        for records in self.lists:
            paths = _paths(records)
            if paths not in features:
                features[paths] = video_features(encoder, records, self._recipe, machine)

        def measure() -> dict[str, float]:
            results: dict[str, float] = {}
            for name, probe in self._probes.items():
                train, test = (_with_labels(features[_paths(r)], r) for r in (probe.train, probe.test))
                for kind, value in self._measure(*train, *test, probe.classes).items():
                    results[f"{kind}_{name}" if name else kind] = value
            return results

        return distributed.run_on_main(measure)

    def _reader(self, encoder: nn.Module) -> nn.Module:
        """The encoder with the features that are read."""
        count, plain = self.config.blocks, distributed.unwrap(encoder)
        if count == 1:
            return encoder
        if not isinstance(plain, Encoder):
            raise UserError(f"probe.blocks={count}: {type(plain).__name__} is no Encoder; use probe.blocks=1")
        if count > len(plain.blocks):
            raise UserError(
                f"probe.blocks={count}: the encoder has {len(plain.blocks)} blocks; use at most that"
            )
        return _LastBlocks(plain, count)

    def facts(self) -> dict[str, int]:
        """Number of test videos and of classes; for a factor with ``_NAME`` at the end."""
        facts: dict[str, int] = {}
        for name, probe in self._probes.items():
            end = f"_{name}" if name else ""
            facts |= {f"probe_videos{end}": len(probe.test), f"probe_classes{end}": probe.classes}
        return facts

    def _measure(
        self,
        train: np.ndarray,
        train_labels: np.ndarray,
        test: np.ndarray,
        test_labels: np.ndarray,
        classes: int,
    ) -> dict[str, float]:
        """Accuracies from features [m, D] and [n, D] and labels [m] and [n]."""
        config = self.config
        votes = knn_scores(
            train, train_labels, test, classes=classes, k=config.k, temperature=config.temperature
        )
        linear = linear_probe_scores(train, train_labels, test, classes=classes, penalty=config.penalty)
        return {
            "knn_top1": accuracy(votes, test_labels).top1,
            "linear_top1": accuracy(linear, test_labels).top1,
        }


def _list_files(config: ProbeConfig) -> dict[str, _Files]:
    """List files by factor; the name of ``probe.train`` and ``probe.test`` is empty."""
    files: dict[str, _Files] = {}
    if config.train or config.test:
        if not (config.train and config.test):
            present, missing = ("train", "test") if config.train else ("test", "train")
            raise UserError(
                f"probe.{present} is set but probe.{missing} is not; set both labeled lists, or neither"
            )
        files[""] = _Files(config.train, config.test)
    for name, value in config.factors.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
            raise UserError(
                f"probe.factors: the name {name!r} must start with a letter and contain only letters, "
                "digits, - and _, since names of metrics end with it"
            )
        if not isinstance(value, Mapping):
            raise UserError(f"probe.factors.{name} {value!r}: must be {{train: LIST, test: LIST}}")
        files[name] = build_dataclass(_Files, value, name=f"probe.factors.{name}")
    return files


def _load_lists(files: _Files, choice: ListChoice, *, stills: bool) -> _Lists:
    train = choice.load(files.train, stills=stills)
    # Class folders get the labels of the training list, even if some of them are missing.
    test = choice.load(files.test, known_classes=train.class_names, stills=stills)
    check_single_label(train, test)
    assert train.labels is not None  # labels are "yes"
    assert test.labels is not None
    return _Lists(train, test, 1 + int(max(train.labels.max(), test.labels.max())))


def _paths(records: Records) -> tuple[str, ...]:
    return tuple(record.path for record in records)


def _with_labels(features: VideoScores, records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, D] of the readable videos and their labels [n] in this list."""
    assert records.labels is not None
    return features.scores, records.labels[features.rows].astype(np.int64)
