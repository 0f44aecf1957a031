"""The config of a comparison of targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videomaskfeat.config_keys import key, section


@dataclass
class CompareSettings:
    """Targets, seeds and shared configs of a comparison.

    ``finetunes`` maps names, such as ``motion`` and ``appearance``, to section -> key -> value on top of
    ``finetune`` and ``shared.finetune``: each encoder is fine-tuned once per name. An entry of ``targets`` is
    a mapping of three keys, all optional:

    - ``pretrain`` and ``finetune``: section -> key -> value, on top of the shared configs;
    - ``before``: runs that come first, such as a tokenizer's or a teacher's: name -> ``{verb, config, keys,
      folder}``. They are in ``{run}``, or in a folder that several entries share.

    In every value ``{folder}`` is the comparison's folder, ``{run}`` the folder of the entry's runs with this
    seed, and ``{seed}`` the seed.
    """

    folder: str = key("", "folder of all runs; an existing one is continued", required="runs/compare")
    pretrain: str = key("", "pre-training config of all targets", required="configs/pretrain/sample.yaml")
    finetune: str = key("", "fine-tuning config of all targets; empty: no fine-tuning")
    finetunes: dict[str, Any] = key(
        {}, "keys per fine-tuning, such as one per factor; empty: one fine-tuning"
    )
    shared: dict[str, Any] = key({}, "pretrain, finetune: keys that differ from those files, for all targets")
    targets: dict[str, Any] = key({}, "keys per target name; see docs/comparing.md", required="{hog: {}}")
    only: list[str] = key([], "targets to run (empty: all)", flag="targets")
    seeds: int = key(1, "number of runs per target, with run.seed 1, 2, ...", least=1, flag="seeds")
    jobs: int = key(1, "number of parallel runs; times per step are not comparable above 1", least=1)
    probes: int = key(4, "number of probes of the frozen features during a pre-training", least=0)


@dataclass
class CompareConfig:
    """Comparison of several targets under one budget."""

    compare: CompareSettings = section(CompareSettings)
