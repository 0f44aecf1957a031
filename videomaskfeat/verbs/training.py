"""The verbs that train, with a config each: pretrain, finetune, detect-train, train-tokenizer, compare."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from videomaskfeat.io import open_file
from videomaskfeat.processes import started_by_verbs
from videomaskfeat.schemas.compare import CompareConfig
from videomaskfeat.schemas.detect import DetectConfig
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.schemas.tokenizer import TokenizerConfig
from videomaskfeat.terminal import DONE, INTERRUPTED, SOME_FAILED
from videomaskfeat.texts import printable
from videomaskfeat.verbs.verb import Verb


def _exit_code(outcome: Any) -> int:
    """The exit code of a training that ended without an error.

    A training that a signal stopped has saved its last step and ends with 0. As a step of a longer command
    it ends with 130.
    """
    if not outcome.finished and started_by_verbs():
        return INTERRUPTED
    return SOME_FAILED if outcome.failures else DONE


def pretrain(config: PretrainConfig) -> int:
    """Pre-train an encoder on videos by masked prediction; an existing run folder is resumed.

      videomaskfeat pretrain --config configs/pretrain/sample.yaml
      videomaskfeat pretrain --config configs/pretrain/k400_maskfeat_mvitv2_s.yaml \\
          data.train=k400/train.csv data.prefix=k400/videos run.folder=runs/s
      videomaskfeat pretrain --config configs/pretrain/k400_maskfeat_mvitv2_s.yaml --size l ...
      torchrun --nproc-per-node=8 -m videomaskfeat pretrain --config ... run.folder=runs/s
      videomaskfeat pretrain --keys        every key, its default and its meaning
    """
    from videomaskfeat.jobs.pretrain import pretrain

    return _exit_code(pretrain(config))


def finetune(config: FinetuneConfig) -> int:
    """Train a classifier from pre-trained weights, ours or PySlowFast's, or from scratch.

      videomaskfeat finetune --config configs/finetune/sample.yaml model.weights=demo/run/weights.safetensors
      videomaskfeat finetune --config configs/finetune/k400_maskfeat_mvitv2_s.yaml \\
          data.train=k400/train.csv data.validation=k400/val.csv model.weights=runs/s/weights.safetensors \\
          run.folder=runs/s_k400
      videomaskfeat finetune --config ... model.head=linear        a linear probe: the encoder stays frozen
      torchrun --nproc-per-node=8 -m videomaskfeat finetune --config ... run.folder=runs/s_k400
      videomaskfeat finetune --keys        every key, its default and its meaning
    """
    from videomaskfeat.jobs.finetune import finetune

    return _exit_code(finetune(config))


def detect_train(config: DetectConfig) -> int:
    """Train an action detector (actions of persons in given boxes), starting from pre-trained weights.

      videomaskfeat detect-train --config configs/detect/sample.yaml \\
          model.weights=demo/run/weights.safetensors
      videomaskfeat detect-train --config configs/detect/ava_v22_maskfeat_mvitv2_s.yaml \\
          data.videos=ava/videos model.weights=runs/s_k400/best.safetensors run.folder=runs/s_ava
      torchrun --nproc-per-node=8 -m videomaskfeat detect-train --config ... run.folder=runs/s_ava
      videomaskfeat detect-train --keys        every key, its default and its meaning
    """
    from videomaskfeat.jobs.detect import detect_train

    return _exit_code(detect_train(config))


def train_tokenizer(config: TokenizerConfig) -> int:
    """Train a tokenizer of video frames; `pretrain` can then predict its tokens (BEiT, PeCo).

      videomaskfeat train-tokenizer --config configs/tokenizer/sample_dvae.yaml
      videomaskfeat train-tokenizer --config configs/tokenizer/sample_vq.yaml \\
          perceptual.weights=demo/run/weights.safetensors perceptual.depths=[2,4]
      videomaskfeat pretrain --config configs/pretrain/sample_dvae.yaml      predicts its tokens
      videomaskfeat train-tokenizer --keys        every key, its default and its meaning
    """
    from videomaskfeat.jobs.tokenizer import train_tokenizer

    return _exit_code(train_tokenizer(config))


def compare(config: CompareConfig) -> int:
    """Pre-train with several targets under one budget, probe and fine-tune each, and write one page.

    videomaskfeat compare --config configs/compare/factors.yaml
    videomaskfeat compare --config configs/compare/factors.yaml --targets hog,pixels,ibot --seeds 3
    videomaskfeat compare --config ... compare.folder=runs/targets     the same command continues after a stop
    videomaskfeat compare --keys        every key, its default and its meaning
    """
    from videomaskfeat.jobs.compare import compare

    names = [name.strip() for names in config.compare.only for name in names.split(",") if name.strip()]
    page = compare(config, targets=names)
    with open_file(page.with_name("table.md")) as table:
        print(printable(table.read().rstrip()))
    print(printable(f"report  {page}"))
    return DONE


def inherit_clip(config: Any, own: Collection[str]) -> Mapping[str, Any]:
    """The clip settings of the initial weights of a fine-tuning or a detector."""
    if not isinstance(config, FinetuneConfig | DetectConfig) or not config.model.weights:
        return {}
    from videomaskfeat.inference.clip_settings import inherited_settings

    return inherited_settings(config, own)


def choose_size(config: Any, size: str) -> tuple[str, str]:
    """The name of the config's model in another size, and a line about it.

    Raises:
        UserError: the family of the model has no such size.
    """
    from videomaskfeat.models.zoo import arguments_of, model_of_size

    name = model_of_size(config.model.name, size)
    arguments = arguments_of(name)
    frames, height, width = arguments["clip_size"]
    decoder = ""
    if "decoder_width" in arguments:
        decoder = f", decoder of width {arguments['decoder_width']} and depth {arguments['decoder_depth']}"
    line = (
        f"size {size}: model.name is {name} (encoder of width {arguments['width']} and depth "
        f"{arguments['depth']}{decoder}), made for clips of {frames}x{height}x{width}"
    )
    if (config.clip.frames, config.clip.crop) not in ((frames, height), (frames, [height, width])):
        crop = height if height == width else [height, width]
        line += f"; clip.frames={frames} clip.crop={crop} sets that size, the config has other clips"
    return name, line


def _pretrain_arguments() -> dict[str, list[str]]:
    from videomaskfeat.methods import METHODS, method_class
    from videomaskfeat.methods.build import SUPPLIED
    from videomaskfeat.targets import TARGETS, target_class

    targets = {name: target_class(name) for name in TARGETS}
    methods = {name: method_class(name) for name in METHODS}
    return _arguments("target.arguments", targets, supplied=("build", "clip_mean", "clip_std")) | _arguments(
        "method.arguments", methods, supplied=SUPPLIED
    )


def _tokenizer_arguments() -> dict[str, list[str]]:
    from videomaskfeat.models.tokenizers import TOKENIZERS

    return _arguments("model.arguments", TOKENIZERS)


def _arguments(
    where: str, builders: Mapping[str, Callable[..., object]], *, supplied: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Title and arguments of each builder, without the ``supplied`` ones."""
    return {
        f"{where} of {name}": [
            argument.name if argument.default is argument.empty else f"{argument.name}={argument.default}"
            for argument in _parameters(build).values()
            if argument.name not in supplied
        ]
        for name, build in builders.items()
    }


def _parameters(build: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The parameters of a function or class; ``**shared`` stands for those of the base class."""
    parameters = dict(inspect.signature(build).parameters)
    rest = [name for name, one in parameters.items() if one.kind is one.VAR_KEYWORD]
    if not rest or not isinstance(build, type) or build.__base__ is None:
        return parameters
    parameters.pop(rest[0])
    return _parameters(build.__base__) | parameters


VERBS = {
    "pretrain": Verb(pretrain, ranks=True, sized=True, own_configs=True, arguments=_pretrain_arguments),
    "finetune": Verb(finetune, ranks=True, sized=True, own_configs=True),
    "detect-train": Verb(detect_train, ranks=True, sized=True, own_configs=True),
    "train-tokenizer": Verb(train_tokenizer, ranks=True, own_configs=True, arguments=_tokenizer_arguments),
    "compare": Verb(compare, own_configs=True),
}
