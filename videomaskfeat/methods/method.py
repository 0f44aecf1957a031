"""What ``pretrain`` asks of a method."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from videomaskfeat.data.clips import PretrainClips, VideoClips
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import clip_indices_middle, clip_indices_random
from videomaskfeat.data.transforms import ClipTransform, RandomResizedCrop, UniformCrop
from videomaskfeat.engine import distributed
from videomaskfeat.engine.contracts import Stateful, StepResult
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.recipe import PretrainRecipe, normalize


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean losses over the held-out clips."""

    model: float
    constant: float | None  # of the best constant prediction in hindsight; None if it is unknown
    clips: int


class HeldOutTally(Protocol):
    """Sums the losses of held-out batches."""

    sums: tuple[str, ...]
    """Attributes that add up over ranks: numbers, tensors, mappings of them, or None for nothing yet."""
    parts: Sequence[Any]
    """Tallies inside this one."""

    @property
    def model(self) -> float:
        """The mean loss."""
        ...

    @property
    def constant(self) -> float | None:
        """The mean loss of the best constant prediction in hindsight; None if it is unknown."""
        ...

    @property
    def add(self) -> Callable[..., None]:
        """Takes in what :meth:`Method.heldout_batch` returned."""
        ...


class MeanTally:
    """The mean loss of batches, each clip weighted alike; the best constant is unknown."""

    sums: tuple[str, ...] = ("_total", "clips")
    parts: Sequence[Any] = ()

    def __init__(self) -> None:
        self._total, self.clips = 0.0, 0

    def add(self, loss: Tensor, clips: int) -> None:
        """Take in the mean loss of a batch, 0-d, and its number of clips."""
        self._total += float(loss) * clips
        self.clips += clips

    @property
    def model(self) -> float:
        """The mean loss."""
        return self._total / self.clips

    @property
    def constant(self) -> float | None:
        """The mean loss of the best constant prediction; None: unknown."""
        return None


def add_other_ranks(tally: HeldOutTally) -> None:
    """Add the sums of the other ranks to a tally; all ranks must call it, and all get the same sums."""
    for part in tally.parts:
        add_other_ranks(part)
    if distributed.world_size() == 1:
        return
    ranks = distributed.gather_objects({name: _on_cpu(getattr(tally, name)) for name in tally.sums})
    for name in tally.sums:
        setattr(tally, name, functools.reduce(_add, [sums[name] for sums in ranks]))


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _on_cpu(inner) for name, inner in value.items()}
    return value.cpu() if isinstance(value, Tensor) else value


def _add(one: Any, two: Any) -> Any:
    if one is None or two is None:
        return two if one is None else one
    if isinstance(one, Mapping):
        return {name: _add(one.get(name), two.get(name)) for name in (*one, *(two.keys() - one.keys()))}
    return one + two


class Method(ABC):
    """Batch -> loss, and whatever else learns beside the optimizer.

    ``METHODS`` names the classes. :func:`~videomaskfeat.methods.build.build_method` passes each of them those
    of ``recipe``, ``compiled``, ``epochs`` (length of the run), ``encoder``, ``target`` and ``student`` that
    its ``__init__`` takes, and the config's ``method.arguments`` for the others. All is built on the CPU,
    with weights from torch's global generator.

    Args:
        recipe: clip, mask and target, as the weights files will store them.
        student: its parameters are optimized, averaged (``optim.ema_decay``) and saved with the checkpoints.
        encoder: the part of the student with ``blocks``, ``token_grid`` and ``output_grid``.
        masked: the student takes clips and masks instead of clips alone.
        compiled: compile what the step computes.
    """

    loss_name: str = "loss"
    """Name of the loss beside held-out figures."""
    unused: tuple[str, ...] = ()
    """Sections of the config that the method does not read."""
    fixed_target: bool = True
    """Whether losses at different times of a run compare; False if the target changes with a teacher."""
    clips_per_video: int = 1
    """Clips in a batch that come from one record of the list."""

    def __init__(
        self,
        *,
        recipe: PretrainRecipe,
        student: nn.Module,
        encoder: nn.Module,
        masked: bool = True,
        compiled: bool = False,
    ) -> None:
        self.recipe, self.student, self.encoder = recipe, student, encoder
        self._masked, self._compiled = masked, compiled

    @property
    @abstractmethod
    def description(self) -> str:
        """What is predicted from what, a line of the plan, such as "hog at the positions that ..."."""

    @property
    def masked_positions(self) -> str:
        """Where a prediction is compared with its target, for :attr:`description`."""
        mask = self.recipe.mask
        return f"at the positions that a {mask.kind} mask of {self.recipe.mask_grid} cells hides"

    @property
    def example(self) -> tuple[Tensor, ...]:
        """What the student takes for one clip, on the CPU, to count its multiply-adds."""
        clip = torch.zeros(1, 3, *self.recipe.clip.size)
        return (clip, self.example_mask()[None]) if self._masked else (clip,)

    def example_mask(self) -> Tensor:
        """A mask bool [t', h', w'] as the student may get it."""
        return torch.zeros(self.recipe.mask_grid.shape, dtype=torch.bool)

    @property
    def state(self) -> Mapping[str, Stateful]:
        """What a resumed run needs besides the student, by name: a teacher, a center, a codebook."""
        return {}

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Facts besides the config that a resumed run must share, such as the hash of a teacher's file."""
        return {}

    def to(self, device: torch.device) -> None:  # noqa: B027 - most have nothing to move
        """Move what is not the student to a device, before the first step."""

    def check_batch(self, batch_size: int, *, accumulate: int, world_size: int) -> None:  # noqa: B027
        """Refuse a batch that the method cannot learn from.

        Raises:
            UserError: names the batch and the smallest one.
        """

    def dataset(
        self,
        records: Records,
        *,
        crop: RandomResizedCrop,
        heldout: bool = False,
        samples_per_video: int = 1,
        reader: str = "auto",
        seed: int = 0,
    ) -> VideoClips[Any, Any]:
        """Random clips of a list with their masks; held out, the middle clip and center crop of each video.

        Args:
            records: the list.
            crop: of a training clip.
            heldout: the list is evaluated, not learned from.
            samples_per_video: clips cut from one opening of a video in training.
            reader: auto, decord or pyav.
            seed: of whatever is drawn.

        Raises:
            UserError: a clip or mask that cannot be.
        """
        clip = self.recipe.clip
        transform: ClipTransform = UniformCrop(clip.crop, clip.crop) if heldout else crop
        return PretrainClips(
            records,
            sampler=clip.frame_sampler(clip_indices_middle if heldout else clip_indices_random),
            transform=transform,
            mask=functools.partial(self.recipe.mask_policy, self.recipe.mask_grid, self.recipe.mask.ratio),
            reader=reader,
            seed=seed,
            samples_per_video=1 if heldout else samples_per_video,
        )

    @abstractmethod
    def loss(self, network: nn.Module, batch: Any) -> StepResult:
        """The mean loss of a batch, what is logged with it, and what :meth:`after_step` needs of it.

        Args:
            network: the student, perhaps wrapped for several processes; call this, not ``student``.
            batch: of :meth:`dataset`, on the device. Runs under the run's autocast.
        """

    def make_target(self, batch: Any) -> Any:
        """What :meth:`loss` compares predictions with, made without gradient, to measure its cost.

        Args:
            batch: as for :meth:`loss`.

        Returns:
            None if there is no such part.
        """
        return None

    def before_step(self) -> None:  # noqa: B027 - most learn all weights all the time
        """Called on all ranks when a step's gradients are complete; one set to None spares its weight."""

    def after_step(self, progress: float, states: Sequence[Any]) -> Mapping[str, float]:
        """Called on all ranks after every optimizer step.

        Args:
            progress: share of the run that is done, in 0..1.
            states: those of the step's micro-batches on this rank, as :meth:`loss` returned them.

        Returns:
            Numbers for the log by name, the same on every rank.

        Raises:
            RunFailed: the run cannot go on, as when it has collapsed; on all ranks alike.
        """
        return {}

    @torch.no_grad()
    def heldout_loss(
        self, network: nn.Module, batches: Iterable[Any], *, autocast: torch.autocast
    ) -> HeldOutLoss:
        """The loss on held-out batches; the network's training mode is restored.

        All ranks must call it, each with its own batches; the loss is that of the batches of all.

        Args:
            network: the student, perhaps wrapped for several processes.
            batches: of this rank, of :meth:`dataset` with ``heldout``, on the device.
            autocast: the precision context of the training.

        Raises:
            ValueError: there are no batches.
        """
        was_training = network.training
        self.train(network, False)
        tally, clips = self.tally(), 0
        for batch in batches:
            with autocast:
                outcome = self.heldout_batch(network, batch)
            tally.add(*outcome)
            clips += len(batch.index)
        self.train(network, was_training)
        add_other_ranks(tally)
        clips = sum(distributed.gather_objects(clips))
        if not clips:
            raise ValueError("no held-out batches")
        return HeldOutLoss(tally.model, tally.constant, clips)

    def tally(self) -> HeldOutTally:
        """An empty tally for :meth:`heldout_loss`, by default of the mean over the clips."""
        return MeanTally()

    def heldout_batch(self, network: nn.Module, batch: Any) -> tuple[Any, ...]:
        """What the tally takes in of a batch, computed under autocast and without gradient."""
        return self.loss(network, batch).loss, len(batch.index)

    def train(self, network: nn.Module, mode: bool) -> None:
        """Switch network, and what belongs to it, to training mode or evaluation mode."""
        network.train(mode)

    def weights(self) -> Mapping[str, nn.Module]:
        """What is saved at the end: file name -> model made by ``create_model``.

        ``weights.safetensors`` is the one to fine-tune.
        """
        return {"weights.safetensors": self.student}

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled if the run is."""
        return torch.compile(function) if self._compiled else function

    def pixels(self, clips: Tensor) -> Tensor:
        """uint8 [B, T, H, W, C] -> float32 [B, C, T, H, W], normalized."""
        return normalize(clips, mean=self.recipe.clip.mean, std=self.recipe.clip.std)


def check_mask_grid(recipe: PretrainRecipe, output: TokenGrid, *, model: str = "the model") -> None:
    """Refuse masks that do not fit the grid of a network's output.

    Raises:
        UserError: the mask grid does not divide it.
    """
    grid = recipe.mask_grid
    if not grid.divides(output):
        raise UserError(
            f"mask.cell {list(recipe.mask.cell)} gives a mask of {grid} cells, which does not divide the "
            f"{output} positions that {model} predicts; each axis of the positions must be a multiple of the "
            "mask's"
        )
