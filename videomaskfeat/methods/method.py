"""The base class of pre-training methods, and held-out losses."""

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
    constant: float | None  # of the best constant prediction; None if it is unknown
    clips: int


class HeldOutTally(Protocol):
    """Sums the losses of held-out batches."""

    sums: tuple[str, ...]
    """Names of attributes to add up over ranks: numbers, tensors, mappings of them, or None if empty."""
    tallies: Sequence[Any]
    """Tallies inside this one."""

    @property
    def model(self) -> float:
        """The mean loss."""
        ...

    @property
    def constant(self) -> float | None:
        """The mean loss of the best constant prediction; None if it is unknown."""
        ...

    @property
    def add(self) -> Callable[..., None]:
        """Adds the result of :meth:`Method.heldout_batch`."""
        ...


class MeanTally:
    """The mean loss over clips; the best constant prediction is unknown."""

    sums: tuple[str, ...] = ("_total", "clips")
    tallies: Sequence[Any] = ()

    def __init__(self) -> None:
        self._total, self.clips = 0.0, 0

    def add(self, loss: Tensor, clips: int) -> None:
        """Add the mean loss of a batch, 0-d, and its number of clips."""
        self._total += float(loss) * clips
        self.clips += clips

    @property
    def model(self) -> float:
        """The mean loss."""
        return self._total / self.clips

    @property
    def constant(self) -> float | None:
        """Unknown."""
        return None


def add_other_ranks(tally: HeldOutTally) -> None:
    """Add the sums of the other ranks to a tally; all ranks must call it."""
    for inner in tally.tallies:
        add_other_ranks(inner)
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
    """Computes the loss of a batch, and updates everything that the optimizer does not.

    ``METHODS`` names the classes. :func:`~videomaskfeat.methods.build.build_method` builds them on the CPU.
    It passes ``recipe``, ``compiled``, ``epochs`` (length of the run), ``encoder``, ``target`` and
    ``student`` if ``__init__`` has arguments of these names, and ``method.arguments`` of the config.

    Args:
        recipe: clip, mask and target, as stored in the weights files.
        student: the model that is optimized, averaged (``optim.ema_decay``) and saved with the checkpoints.
        encoder: the part of the student with ``blocks``, ``token_grid`` and ``output_grid``.
        masked: whether the student's inputs are clips and masks instead of clips alone.
        compiled: mode of torch.compile for the computation of the step; empty: it is not compiled.
    """

    loss_name: str = "loss"
    """Name of the loss in held-out results."""
    unused: tuple[str, ...] = ()
    """Sections of the config that the method does not read."""
    fixed_target: bool = True
    """Whether losses at different times of a run are comparable; False if the target changes."""
    clips_per_video: int = 1
    """Clips per video in a batch."""

    def __init__(
        self,
        *,
        recipe: PretrainRecipe,
        student: nn.Module,
        encoder: nn.Module,
        masked: bool = True,
        compiled: str = "",
    ) -> None:
        self.recipe, self.student, self.encoder = recipe, student, encoder
        self._masked, self._compiled = masked, compiled

    @property
    @abstractmethod
    def description(self) -> str:
        """The target, for the plan, such as "hog at the positions that ..."."""

    @property
    def masked_positions(self) -> str:
        """The positions of the loss, for :attr:`description`."""
        mask = self.recipe.mask
        return f"at the positions that a {mask.kind} mask of {self.recipe.mask_grid} cells hides"

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the student for one clip, on the CPU, to count multiply-adds."""
        clip = torch.zeros(1, 3, *self.recipe.clip.size)
        return (clip, self.example_mask()[None]) if self._masked else (clip,)

    def example_mask(self) -> Tensor:
        """A mask bool [t', h', w']."""
        return torch.zeros(self.recipe.mask_grid.shape, dtype=torch.bool)

    @property
    def state(self) -> Mapping[str, Stateful]:
        """State that a resumed run needs besides the student, by name, such as a teacher."""
        return {}

    @property
    def followers(self) -> Sequence[nn.Module]:
        """Networks that follow the student's weights element by element, such as a teacher."""
        return ()

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Facts that a resumed run must share besides the config, such as the hash of a teacher's file."""
        return {}

    def follow_loaded_weights(self) -> None:  # noqa: B027
        """Called after weights were loaded into the student, before the first step."""

    def set_progress(self, progress: float) -> None:  # noqa: B027
        """Set schedules to the completed share of the run, 0..1, after a resume."""

    def to(self, device: torch.device) -> None:  # noqa: B027 - most have nothing to move
        """Move everything except the student to a device, before the first step."""

    def set_length(self, steps: int) -> list[str]:
        """Fit schedules to the number of optimizer steps of the run; returns lines for the plan."""
        return []

    def check_batch(self, batch_size: int, *, accumulate: int, world_size: int) -> None:  # noqa: B027
        """Refuse a batch size that the method cannot learn from.

        Raises:
            UserError: names the batch size and the smallest one.
        """

    def dataset(
        self,
        records: Records,
        *,
        crop: RandomResizedCrop,
        heldout: bool = False,
        samples_per_video: int = 1,
        **reading: Any,
    ) -> VideoClips[Any, Any]:
        """Random clips of a list with masks; held out, the middle clip and center crop of each video.

        Args:
            records: the list.
            crop: crop of a training clip.
            heldout: the list is for evaluation.
            samples_per_video: clips per opening of a video in training.
            reading: ``reader`` (see `open_video`) and ``seed`` of the random draws.

        Raises:
            UserError: the clip or the mask is impossible.
        """
        clip = self.recipe.clip
        transform: ClipTransform = UniformCrop(clip.crop, clip.short_side) if heldout else crop
        return PretrainClips(
            records,
            sampler=clip.frame_sampler(clip_indices_middle if heldout else clip_indices_random),
            transform=transform,
            mask=functools.partial(self.recipe.mask_policy, self.recipe.mask_grid, self.recipe.mask.ratio),
            samples_per_video=1 if heldout else samples_per_video,
            **reading,
        )

    @abstractmethod
    def loss(self, network: nn.Module, batch: Any) -> StepResult:
        """The mean loss of a batch under autocast, metrics, and the state for :meth:`after_step`.

        Args:
            network: the student, perhaps in a wrapper for several processes, which must be called.
            batch: a batch of :meth:`dataset` on the device.
        """

    def make_target(self, batch: Any) -> Any:
        """The target of a batch without gradient, to measure its cost; None if there is no target."""
        return None

    def before_step(self) -> None:  # noqa: B027 - most methods always train all weights
        """Called on all ranks when a step's gradients are complete; a gradient of None freezes a weight."""

    def after_step(self, progress: float, states: Sequence[Any]) -> Mapping[str, float | Tensor]:
        """Called on all ranks after every optimizer step.

        Args:
            progress: completed share of the run, 0..1.
            states: results of :meth:`loss` for the step's micro-batches on this rank.

        Returns:
            Numbers for the log by name, or 0-d tensors on the device; the same on every rank.
        """
        return {}

    def watch(self, figures: Mapping[str, float], progress: float) -> None:  # noqa: B027
        """Called on all ranks with the numbers of :meth:`after_step` of each step, once the host has them.

        Raises:
            RunFailed: on all ranks, if the run cannot continue.
        """

    @torch.no_grad()
    def heldout_loss(
        self, network: nn.Module, batches: Iterable[Any], *, autocast: torch.autocast
    ) -> HeldOutLoss:
        """The loss on the held-out batches of all ranks; all ranks must call it. Restores the training mode.

        Args:
            network: the student, perhaps in a wrapper for several processes.
            batches: batches of this rank on the device, of :meth:`dataset` with ``heldout``.
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
        """An empty tally for :meth:`heldout_loss`; the default is the mean over clips."""
        return MeanTally()

    def heldout_batch(self, network: nn.Module, batch: Any) -> tuple[Any, ...]:
        """Arguments of the tally's ``add`` for a batch, computed under autocast and without gradient."""
        return self.loss(network, batch).loss, len(batch.index)

    def train(self, network: nn.Module, mode: bool) -> None:
        """Switch the network and modules that belong to it to training or evaluation mode."""
        network.train(mode)

    def weights(self) -> Mapping[str, nn.Module]:
        """Models to save: file name -> result of ``create_model``; to fine-tune: ``weights.safetensors``."""
        return {"weights.safetensors": self.student}

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled if the run is; for functions of network and loss."""
        from videomaskfeat.engine.compiling import compile_function

        return compile_function(function, self._compiled)

    def pixels(self, clips: Tensor) -> Tensor:
        """uint8 [B, T, H, W, C] -> float32 [B, C, T, H, W], normalized."""
        return normalize(clips, mean=self.recipe.clip.mean, std=self.recipe.clip.std)


def check_mask_grid(recipe: PretrainRecipe, output: TokenGrid, *, model: str = "the model") -> None:
    """Refuse a mask grid that does not divide the grid of a network's output.

    Raises:
        UserError: it does not.
    """
    grid = recipe.mask_grid
    if not grid.divides(output):
        raise UserError(
            f"mask.cell {list(recipe.mask.cell)} results in a mask of {grid} cells, which does not divide "
            f"the {output} positions that {model} hides or predicts; each axis of them must be a multiple "
            "of the mask's"
        )
