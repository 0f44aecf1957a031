"""What ``pretrain`` asks of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.config import PretrainConfig
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.engine.contracts import Stateful
from videomaskfeat.tasks.pretraining.heldout import HeldOutLoss
from videomaskfeat.tasks.pretraining.pretrain_parts import heldout_loader, recipe_of, training_loader
from videomaskfeat.tasks.recipe import PretrainRecipe


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
    def loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The mean loss of a batch, and 0-d tensors to be logged by name, the same names for every batch.

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

    def after_step(self, progress: float) -> Mapping[str, float]:
        """Called on all ranks after every optimiser step with the share of the run that is done, in 0..1.

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
