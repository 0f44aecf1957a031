"""What a run is about to do, in the lines that it prints when it starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.engine import distributed
from videomaskfeat.errors import counted
from videomaskfeat.jobs.finetune_building import LabelledLists
from videomaskfeat.methods.method import Method
from videomaskfeat.models.cost import multiply_adds
from videomaskfeat.schemas import DetectConfig, FinetuneConfig, OptimConfig, PretrainConfig, RunConfig


def describe_plan(
    config: PretrainConfig, method: Method, loader: ClipLoader[Any], *, device: torch.device, bf16: bool
) -> str:
    """Model, cost, tokens, data, batch and schedule of a pre-training run, a line each."""
    clip = config.clip
    size = (1, 3, clip.frames, clip.crop, clip.crop)
    parameters = sum(parameter.numel() for parameter in method.student.parameters())
    encoder: Any = method.encoder
    tokens, output = encoder.token_grid(size), encoder.output_grid(size)
    records = loader.dataset.records
    lines = [
        f"model     {config.model.name}: {parameters / 1e6:.2f} M parameters, "
        f"{multiply_adds(method.student, method.example) / 1e9:.1f} G multiply-adds a clip",
        f"clip      {clip.frames} frames x stride {clip.stride}, {clip.crop}x{clip.crop} pixels: "
        f"{tokens} = {tokens.size} tokens, predictions on {output}",
        f"target    {method.aim}",
        *_unused_lines(config, method),
        f"data      {records.source}: {len(records)} videos",
        *_training_lines(config.optim, config.run, loader, device=device, bf16=bf16),
    ]
    return "\n".join(lines)


def _unused_lines(config: PretrainConfig, method: Method) -> list[str]:
    """Sections that are set and that the method does not read."""
    values = {name: getattr(config, name) for name in method.unused}
    names = [name for name, value in values.items() if value != type(value)()]
    return [f"ignored   {', '.join(names)}: method {config.method.name} has no use for it"] if names else []


def describe_finetuning(
    config: FinetuneConfig,
    model: nn.Module,
    loader: ClipLoader[Any],
    lists: LabelledLists,
    *,
    device: torch.device,
    bf16: bool,
) -> str:
    """Model, cost, tokens, data, batch and schedule of a fine-tuning run, a line each."""
    clip = config.clip
    size = (1, 3, clip.frames, clip.crop, clip.crop)
    parameters = [parameter.numel() for parameter in model.parameters()]
    learnt = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    share = f"{learnt / 1e6:.2f} M" if learnt >= 10_000 else f"{learnt / 1e3:.2f} K"
    frozen = "" if learnt == sum(parameters) else f" ({share} learnt, the encoder is frozen)"
    tokens = model.token_grid(size)  # type: ignore[operator]
    how = "segments" if clip.sampling == "segments" else f"stride {clip.stride}"
    held_out = "" if lists.validation is None else f", {len(lists.validation)} held out"
    lines = [
        f"model     {config.model.name}: {sum(parameters) / 1e6:.2f} M parameters{frozen}, "
        f"{multiply_adds(model, (torch.zeros(size),)) / 1e9:.1f} G multiply-adds a view",
        f"clip      {clip.frames} frames x {how}, {clip.crop}x{clip.crop} pixels: {tokens} = {tokens.size} "
        f"tokens, {clip.samples_per_video} from each opening of a video",
        f"data      {lists.train.source}: {len(lists.train)} videos{held_out}, {lists.classes} classes",
        *_training_lines(config.optim, config.run, loader, device=device, bf16=bf16),
        *_mixing_lines(config),
    ]
    return "\n".join(lines)


def describe_detection(
    config: DetectConfig,
    model: nn.Module,
    loader: ClipLoader[Any],
    *,
    boxes: int,
    classes: int,
    held_out: int | None,
    device: torch.device,
    bf16: bool,
) -> str:
    """Model, cost, tokens, data, batch and schedule of training a detector, a line each."""
    clip = config.clip
    size = (1, 3, clip.frames, clip.crop, clip.crop)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    inputs = (torch.zeros(size), torch.tensor([[0.0, 0.0, 0.0, clip.crop, clip.crop]]))
    tokens, maps = model.token_grid(size), model.output_grid(size)  # type: ignore[operator]
    tested = "" if held_out is None else f", {held_out} held out"
    lines = [
        f"model     {config.model.name}: {parameters / 1e6:.2f} M parameters, "
        f"{multiply_adds(model, inputs) / 1e9:.1f} G multiply-adds a clip of one box",
        f"clip      {clip.frames} frames x stride {clip.stride}, {clip.crop}x{clip.crop} pixels: {tokens} = "
        f"{tokens.size} tokens, boxes are cut from maps of {maps}",
        f"data      {loader.dataset.records.source}: {len(loader.dataset)} key frames with {boxes} boxes"
        f"{tested}, {classes} actions",
        *_training_lines(config.optim, config.run, loader, device=device, bf16=bf16),
    ]
    return "\n".join(lines)


def _mixing_lines(config: FinetuneConfig) -> list[str]:
    """Where mixing is asked for and can change no label, since no two videos meet, a line that says so."""
    mix, optim = config.mix, config.optim
    clips = optim.batch_size // distributed.world_size() // optim.accumulate
    if clips > config.clip.samples_per_video or not ((mix.mixup or mix.cutmix) and mix.probability):
        return []
    return [
        "mixing    never of two videos: a micro-batch holds one; lower optim.accumulate or the number of "
        "processes, or raise optim.batch_size"
    ]


def _training_lines(
    optim: OptimConfig, run: RunConfig, loader: ClipLoader[Any], *, device: torch.device, bf16: bool
) -> list[str]:
    """Batch, schedule, device and folder."""
    ranks = distributed.world_size()
    micro = optim.batch_size // ranks // optim.accumulate
    steps = loader.batches_per_epoch // optim.accumulate
    scale = optim.batch_size / optim.base_batch_size
    return [
        f"batch     {optim.batch_size} clips a step: {ranks} (processes) x {optim.accumulate} "
        f"(micro-batches) x {micro}",
        f"plan      {optim.epochs:g} epochs x {steps} steps, warm-up {optim.warmup_epochs:g}; "
        f"learning rate {optim.learning_rate * scale:.3g} = {optim.learning_rate:g} x {optim.batch_size} / "
        f"{optim.base_batch_size} clips",
        f"device    {device}, {'bf16 autocast' if bf16 else 'fp32'}, "
        f"{counted(torch.get_num_threads(), 'thread')}"
        f"{', compiled' if run.compile else ''}",
        f"run       {run.folder}",
    ]
