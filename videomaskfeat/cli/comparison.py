"""The verb that compares targets."""

from __future__ import annotations

import argparse
from typing import Any

from videomaskfeat.cli.training import add_config_arguments, print_keys
from videomaskfeat.cli.verb import DONE, add_verb
from videomaskfeat.texts import printable


def add_compare(verbs: Any) -> None:
    """``compare``: several targets under one budget."""
    parser = add_verb(
        verbs,
        "compare",
        run_compare,
        summary="pre-train with several targets under one budget, probe and fine-tune each; one page",
        examples="""\
  videomaskfeat compare --config configs/compare/sample.yaml
  videomaskfeat compare --config configs/compare/sample.yaml --targets hog,pixels,ibot --seeds 3
  videomaskfeat compare --config ... compare.folder=runs/targets     the same command goes on after a stop
  videomaskfeat compare --keys        every key, its default and its meaning""",
    )
    add_config_arguments(parser)
    parser.add_argument("--targets", metavar="A,B,...", help="entries to run (default: all of the config)")
    parser.add_argument("--seeds", type=int, help="runs of each, instead of compare.seeds")


def run_compare(options: argparse.Namespace) -> int:
    """Run ``compare``."""
    from videomaskfeat.config import load_config
    from videomaskfeat.config.compare import CompareConfig

    if options.keys:
        return print_keys(CompareConfig)
    seeds = [] if options.seeds is None else [f"compare.seeds={options.seeds}"]
    config = load_config(CompareConfig, options.config, [*options.overrides, *seeds])
    from videomaskfeat.tasks.pretraining.compare import compare

    targets = [name.strip() for name in (options.targets or "").split(",") if name.strip()]
    print(printable(f"report  {compare(config, targets=targets)}"))
    return DONE
