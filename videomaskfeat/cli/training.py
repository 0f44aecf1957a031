"""Verbs that train."""

from __future__ import annotations

import argparse
import logging
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from videomaskfeat.cli.verb import DONE, INTERRUPTED, SOME_FAILED, add_verb
from videomaskfeat.processes import started_by_verbs

logger = logging.getLogger(__name__)


def add_pretrain(verbs: Any) -> None:
    """``pretrain``: train an encoder to predict what was hidden."""
    parser = add_verb(
        verbs,
        "pretrain",
        run_pretrain,
        summary="pre-train an encoder on videos by masked prediction; a run folder that exists is resumed",
        examples="""\
  videomaskfeat pretrain --config configs/pretrain/sample.yaml
  videomaskfeat pretrain --config configs/pretrain/k400_maskfeat_mvitv2_s.yaml \\
      data.train=k400/train.csv data.prefix=k400/videos run.folder=runs/s
  torchrun --nproc-per-node=8 -m videomaskfeat pretrain --config ... run.folder=runs/s
  videomaskfeat pretrain --keys        every key, its default and its meaning""",
    )
    add_config_arguments(parser)


def run_pretrain(options: argparse.Namespace) -> int:
    """Run ``pretrain``."""
    from videomaskfeat.config import PretrainConfig, load_config

    if options.keys:
        from videomaskfeat.tasks.arguments import pretrain_arguments

        print_keys(PretrainConfig)
        return _print_arguments(pretrain_arguments())
    config = load_config(PretrainConfig, options.config, options.overrides, say=logger.info)
    from videomaskfeat.tasks.pretraining.pretrain import pretrain

    outcome = pretrain(config)
    return exit_code(outcome)


def add_finetune(verbs: Any) -> None:
    """``finetune``: train a classifier, from pre-trained weights or from scratch."""
    parser = add_verb(
        verbs,
        "finetune",
        run_finetune,
        summary="train a classifier from pre-trained weights, ours or PySlowFast's, or from scratch",
        examples="""\
  videomaskfeat finetune --config configs/finetune/sample.yaml model.weights=demo/run/weights.safetensors
  videomaskfeat finetune --config configs/finetune/k400_maskfeat_mvitv2_s.yaml \\
      data.train=k400/train.csv data.validation=k400/val.csv model.weights=runs/s/weights.safetensors \\
      run.folder=runs/s_k400
  videomaskfeat finetune --config ... model.head=linear        a linear probe: the encoder stays frozen
  torchrun --nproc-per-node=8 -m videomaskfeat finetune --config ... run.folder=runs/s_k400
  videomaskfeat finetune --keys        every key, its default and its meaning""",
    )
    add_config_arguments(parser)


def run_finetune(options: argparse.Namespace) -> int:
    """Run ``finetune``."""
    from videomaskfeat.config import FinetuneConfig, load_config

    if options.keys:
        return print_keys(FinetuneConfig)
    config = load_config(FinetuneConfig, options.config, options.overrides, say=logger.info)
    from videomaskfeat.tasks.classification.classify import finetune

    outcome = finetune(config)
    return exit_code(outcome)


def add_train_tokenizer(verbs: Any) -> None:
    """``train-tokenizer``: train what names frames by tokens, for the targets dvae and codebook."""
    parser = add_verb(
        verbs,
        "train-tokenizer",
        run_train_tokenizer,
        summary="train a tokenizer of frames on videos, whose tokens a pre-training can predict (BEiT, PeCo)",
        examples="""\
  videomaskfeat train-tokenizer --config configs/tokenizer/sample_dvae.yaml
  videomaskfeat train-tokenizer --config configs/tokenizer/sample_vq.yaml \\
      perceptual.weights=demo/run/weights.safetensors perceptual.depths=[2,4]
  videomaskfeat pretrain --config configs/pretrain/sample_dvae.yaml      predicts its tokens
  videomaskfeat train-tokenizer --keys        every key, its default and its meaning""",
    )
    add_config_arguments(parser)


def run_train_tokenizer(options: argparse.Namespace) -> int:
    """Run ``train-tokenizer``."""
    from videomaskfeat.config import TokenizerConfig, load_config

    if options.keys:
        from videomaskfeat.tasks.arguments import tokenizer_arguments

        print_keys(TokenizerConfig)
        return _print_arguments(tokenizer_arguments())
    config = load_config(TokenizerConfig, options.config, options.overrides, say=logger.info)
    from videomaskfeat.tasks.tokenizing.tokenizer import train_tokenizer

    outcome = train_tokenizer(config)
    return exit_code(outcome)


def exit_code(outcome: Any) -> int:
    """Of a training that ended without an error.

    One that a signal stopped has saved its last step and ends with 0; as a part of a longer command it must
    be distinguished from a finished one.
    """
    if not outcome.finished and started_by_verbs():
        return INTERRUPTED
    return SOME_FAILED if outcome.failures else DONE


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """What every verb takes that is run by a config."""
    parser.add_argument("--config", metavar="YAML", help="config file; only what differs from the defaults")
    parser.add_argument("--keys", action="store_true", help="list every config key and stop")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="on top of the config")


def print_keys(schema: type) -> int:
    """Every key of a config with its default and its meaning, in columns."""
    from videomaskfeat.config import key_table

    rows = key_table(schema)
    width = max(len(name) for name, _, _ in rows)
    default_width = max(len(default) for _, default, _ in rows)
    for name, default, meaning in rows:
        print(f"{name:<{width}}  {default:<{default_width}}  {meaning}")
    return DONE


def _print_arguments(arguments: Mapping[str, Sequence[str]]) -> int:
    """What may be set below a key that holds arguments, a title and its names each."""
    for title, names in arguments.items():
        print(f"\n{title}")
        print(textwrap.indent(textwrap.fill(", ".join(names) or "none", 100), "  "))
    return DONE
