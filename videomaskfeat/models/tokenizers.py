"""Tokenizers of frames by name, and their files."""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any

import torch

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.models.dvae import DiscreteVAE
from videomaskfeat.models.frame_tokenizer import TrainedTokenizer
from videomaskfeat.models.limits import build_within_memory, checked_arguments
from videomaskfeat.models.vq import VectorQuantizer
from videomaskfeat.models.weights import created_as, load_into, read_metadata, read_state

TOKENIZERS: dict[str, type[TrainedTokenizer]] = {"dvae": DiscreteVAE, "vq": VectorQuantizer}


def create_tokenizer(kind: str, /, **arguments: Any) -> TrainedTokenizer:
    """A tokenizer with fresh weights, drawn from torch's global generator (seed it first).

    Args:
        kind: a name in :data:`TOKENIZERS`.
        arguments: what differs from that kind's own; see :class:`~videomaskfeat.models.dvae.DiscreteVAE` and
            :class:`~videomaskfeat.models.vq.VectorQuantizer`.

    Returns:
        The tokenizer in training mode. Its ``created_as`` holds kind and arguments, for
        :func:`~videomaskfeat.models.weights.save_weights`.

    Raises:
        UserError: unknown kind or argument, or a value outside its range.
    """
    if kind not in TOKENIZERS:
        raise UserError(
            f"tokenizer {kind!r} is unknown{nearest(kind, TOKENIZERS)}; there are {', '.join(TOKENIZERS)}"
        )
    known = [name for name in inspect.signature(TOKENIZERS[kind].__init__).parameters if name != "self"]
    for name in arguments:
        if name not in known:
            raise UserError(
                f"tokenizer {kind!r} has no argument {name!r}{nearest(name, known)}; it takes "
                f"{', '.join(known)}"
            )
    try:
        arguments = checked_arguments(TOKENIZERS[kind], arguments)
    except UserError as error:
        raise UserError(f"tokenizer {kind!r}: {error}") from None
    try:
        build = functools.partial(TOKENIZERS[kind], **arguments)
        tokenizer = build_within_memory(build, f"tokenizer {kind!r}")
    except TypeError as error:
        raise UserError(f"tokenizer {kind!r}: an argument of the wrong type: {error}") from error
    tokenizer.created_as = (kind, arguments)  # type: ignore[assignment]
    return tokenizer


def load_tokenizer(path: str | os.PathLike[str], *, kind: str | None = None) -> TrainedTokenizer:
    """Build the tokenizer that a file of a train-tokenizer run describes, and load its weights.

    Args:
        path: a safetensors file; remote paths are fetched.
        kind: the kind that is wanted; None takes any.

    Returns:
        The tokenizer in evaluation mode, on the CPU. No random number is drawn.

    Raises:
        UserError: no such file, a damaged one, or one of another model or another kind of tokenizer.
    """
    name = os.fspath(path)
    metadata = read_metadata(name)
    held = metadata.get("model", "")
    if held not in TOKENIZERS:
        what = f"the model {held!r}" if held else "weights without a model's name"
        raise UserError(
            f"{name}: holds {what}, and a tokenizer is needed; give the weights.safetensors of a "
            "train-tokenizer run"
        )
    if kind not in (None, held):
        raise UserError(
            f"{name}: holds a tokenizer of kind {held!r}, and one of kind {kind!r} is needed; give another "
            "file, or take the target that belongs to it"
        )
    _, arguments = created_as(name)
    try:
        with torch.random.fork_rng(devices=[]):
            tokenizer = create_tokenizer(held, **arguments)
    except UserError as error:
        raise UserError(
            f"{name}: the tokenizer that its metadata describes cannot be built: {error}"
        ) from error
    load_into(tokenizer, read_state(name), source=name)
    return tokenizer.eval()
