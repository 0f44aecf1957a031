"""The held-out loss of masked prediction, and of the constant that does best on the same clips."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.engine.contracts import Stateful, StepResult
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.io import is_file, is_folder
from videomaskfeat.jobs.pretrain_building import heldout_loader, recipe_of, training_loader
from videomaskfeat.models.limits import checked_arguments
from videomaskfeat.recipe import Levels, PretrainRecipe, read_clip_recipe, recipe_texts
from videomaskfeat.schemas import PretrainConfig
from videomaskfeat.targets import TARGETS
from videomaskfeat.targets.features import is_path
from videomaskfeat.targets.target import Target


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean losses over every hidden position of the held-out clips."""

    model: float
    constant: float | None  # of the best one prediction for all places, in hindsight; None: not known
    clips: int


@torch.no_grad()
def heldout_loss(
    model: nn.Module, target: Target, batches: Iterable[tuple[Tensor, Tensor]], *, autocast: torch.autocast
) -> HeldOutLoss:
    """Evaluate ``model`` on normalised clips and masks; the model's training mode is restored.

    Args:
        model: (clips [B, C, T, H, W], mask) -> predictions [B, t, h, w, K].
        target: what it predicts, with its loss.
        batches: (clips float [B, C, T, H, W], mask bool [B, t', h', w']), all on the model's device.
        autocast: the precision context that training uses.

    Raises:
        ValueError: there are no batches.
    """
    was_training = model.training
    model.eval()
    tally, clip_count = target.tally(), 0
    for clips, mask in batches:
        with autocast:
            predictions = model(clips, mask)
        tally.add(predictions, target(clips), mask)
        clip_count += clips.shape[0]
    model.train(was_training)
    if clip_count == 0:
        raise ValueError("no held-out batches")
    return HeldOutLoss(tally.model, tally.constant, clip_count)


# Targets from the words of a config or of a weights file.
_MAKERS = {
    "weights": "train the tokenizer first (videomaskfeat train-tokenizer)",
    "teacher": "run the training that makes the teacher first (its run folder's weights.safetensors)",
}
"""Arguments of targets that are files of weights, and how to come by them."""


def build_target(name: str, arguments: Mapping[str, Any], *, mean: Levels, std: Levels) -> Target:
    """The target by its name.

    Args:
        name: a key of ``TARGETS``.
        arguments: what differs from its own.
        mean: of the run's clips, given to a target that asks for ``clip_mean``.
        std: likewise, for ``clip_std``. One that asks for ``build`` is given this function.

    Raises:
        UserError: an unknown name, arguments that it does not take, or a tokenizer's or teacher's file that
            is not there.
    """
    check_name("target.name", name, TARGETS)
    build = TARGETS[name]
    asked = inspect.signature(build).parameters
    offered = {
        "clip_mean": mean,
        "clip_std": std,
        "build": functools.partial(build_target, mean=mean, std=std),
    }
    supplied = {key: value for key, value in offered.items() if key in asked}
    check_arguments("target.arguments", name, build, arguments, supplied=supplied)
    for key, remedy in _MAKERS.items():
        path = arguments.get(key) if key in asked else None
        if isinstance(path, str) and is_path(path) and not is_file(path) and not is_folder(path):
            raise UserError(
                f"target.arguments.{key} {path}: no such file of weights; {remedy}, or check the path"
            )
    if "teacher_mean" in asked:
        arguments = {**_teacher_levels(arguments.get("teacher")), **arguments}
    try:
        return build(**{key: _as_tuple(value) for key, value in arguments.items()}, **supplied)
    except TypeError as error:
        raise UserError(f"target.arguments of {name!r}: {error}") from error


def _teacher_levels(teacher: Any) -> dict[str, Levels]:
    """What the clips of a teacher of this framework are normalised with, where its file says so."""
    path = str(teacher)
    if not path.endswith(".safetensors") or not is_file(path) or not recipe_texts(path):
        return {}
    clip = read_clip_recipe(path)
    return {"teacher_mean": clip.mean, "teacher_std": clip.std}


def check_arguments(
    where: str,
    name: str,
    build: Callable[..., object],
    given: Mapping[str, Any],
    *,
    supplied: Collection[str] = (),
) -> None:
    """Refuse arguments that a constructor does not take, also by type or size, and the lack of one it needs.

    Args:
        where: the config key that holds them.
        name: what the config calls the thing to be built.
        build: builds it.
        given: by the user.
        supplied: names of arguments that are not the user's to give.

    Raises:
        UserError: names the first such argument.
    """
    parameters = inspect.signature(build).parameters
    own = [key for key in parameters if key not in supplied]
    for key in given:
        check_name(f"{where} of {name!r}: argument", key, own)
    for key in own:
        if parameters[key].default is inspect.Parameter.empty and key not in given:
            raise UserError(f"{where}: {name!r} needs {key!r}, and none is given; set {where}.{key}")
    try:
        checked_arguments(build, given)
    except UserError as error:
        raise UserError(f"{where}.{error}") from None


def _as_tuple(value: Any) -> Any:
    """Lists, as YAML and JSON bring them, become tuples all the way down."""
    return tuple(_as_tuple(entry) for entry in value) if isinstance(value, list | tuple) else value


# What ``pretrain`` asks of a method.


class Method(ABC):
    """Batch -> loss, and whatever else learns beside the optimiser.

    ``METHODS[name](config, **config.method.arguments)`` builds one: weights drawn from torch's global
    generator, all on the CPU, every setting that it uses checked.

    Attributes:
        config: of the run.
        recipe: what the weights files will know of clip, mask and target.
        student: its parameters are optimised, averaged (``optim.ema_decay``) and saved with the checkpoints.
    """

    student: nn.Module
    loss_name: str = "loss"
    """What its loss is called where held-out figures are shown."""
    unused: tuple[str, ...] = ()
    """Sections of the config that it has no use for."""
    fixed_target: bool = True
    """Whether losses of different times of a run compare: not where a teacher learns along."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.recipe: PretrainRecipe = recipe_of(config)

    @property
    def encoder(self) -> nn.Module:
        """The part of the student with ``blocks``, ``token_grid`` and ``output_grid``."""
        return self.student

    @property
    def example(self) -> tuple[Tensor, ...]:
        """What the student takes for one clip, of zeros on the CPU: to count its multiply-adds."""
        clip = self.config.clip
        return (torch.zeros(1, 3, clip.frames, clip.crop, clip.crop),)

    @property
    @abstractmethod
    def aim(self) -> str:
        """What is learnt from what, on one line of the plan, such as "hog at the positions that ..."."""

    @property
    def state(self) -> Mapping[str, Stateful]:
        """What a resumed run needs besides the student, by name: a teacher, a centre, a codebook."""
        return {}

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Facts besides the config that a resumed run must share, such as the hash of a teacher's file."""
        return {}

    def to(self, device: torch.device) -> None:  # noqa: B027 - most have nothing to move
        """Move what is not the student to a device, before the first step."""

    def training_loader(self, *, rank: int, world_size: int) -> ClipLoader[Any]:
        """The training batches of a rank, by default one random clip with its mask a sample."""
        return training_loader(self.config, rank=rank, world_size=world_size)

    def heldout_loader(self) -> ClipLoader[Any] | None:
        """The batches of the held-out list, or None where the config names none."""
        return heldout_loader(self.config)

    @abstractmethod
    def loss(self, network: nn.Module, batch: Any) -> StepResult:
        """The mean loss of a batch, what is logged with it, and what :meth:`after_step` needs of it.

        Args:
            network: the student, perhaps wrapped for several processes; call this, not ``student``.
            batch: one of :meth:`training_loader`, on the device. Runs under the run's autocast.
        """

    def make_target(self, batch: Any) -> Any:
        """What :meth:`loss` makes of a batch without gradient to compare with; to tell what it costs.

        Args:
            batch: as for :meth:`loss`.

        Returns:
            None where there is no such part.
        """
        return None

    def before_step(self) -> None:  # noqa: B027 - most learn all weights all the time
        """Called on all ranks when a step's gradients are complete; one set to None spares its weight."""

    def after_step(self, progress: float, states: Sequence[Any]) -> Mapping[str, float]:
        """Called on all ranks after every optimiser step.

        Args:
            progress: share of the run that is done, in 0..1.
            states: those of the step's micro-batches on this rank, as :meth:`loss` returned them.

        Returns:
            Numbers for the log by name, the same on every rank.

        Raises:
            RunFailed: the run cannot go on, as where it has collapsed; on all ranks alike.
        """
        return {}

    @abstractmethod
    def heldout(self, batches: Iterable[Any], *, autocast: torch.autocast) -> HeldOutLoss:
        """The loss of the student as it is now on held-out batches, which are on the device; rank 0 only."""

    def weights(self) -> Mapping[str, nn.Module]:
        """What is saved at the end: file name -> model made by ``create_model``.

        ``weights.safetensors`` is the one to fine-tune.
        """
        return {"weights.safetensors": self.student}
