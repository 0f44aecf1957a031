"""The keys of a comparison of targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from videomaskfeat.config.key import key


@dataclass
class CompareSettings:
    """What is compared, and what all runs share.

    An entry of ``targets`` is a mapping of three keys, each of which may be absent:

    - ``pretrain`` and ``finetune``: section -> key -> value, on top of the shared configs;
    - ``before``: runs that must come first, such as a tokenizer's or a teacher's, a name each -> ``{verb,
      config, keys, folder}``; they lie under ``{run}``, or under a folder that several entries share.

    In every value ``{folder}`` is the comparison's folder, ``{run}`` that of the entry's runs with this seed,
    and ``{seed}`` the seed.
    """

    folder: str = key("", "folder of all runs and of the page; one that exists is gone on with (required)")
    pretrain: str = key("", "config file of pre-training that all entries share (required)")
    finetune: str = key("", "config file of fine-tuning that all share; empty: nothing is fine-tuned")
    shared: dict[str, Any] = key({}, "pretrain, finetune: keys that differ from those files in every entry")
    targets: dict[str, Any] = key({}, "name -> what is different there (required); see docs/comparing.md")
    seeds: int = key(1, "runs of each entry, with run.seed 1, 2, ...")
    jobs: int = key(1, "runs at a time; more than 1 makes the times of steps mean little")
    probes: int = key(4, "times that the frozen features are probed in the course of a pre-training")


@dataclass
class CompareConfig:
    """Several targets under one budget."""

    compare: CompareSettings = field(default_factory=CompareSettings)
