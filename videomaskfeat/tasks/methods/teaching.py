"""What methods share whose student learns from a teacher that is its own moving average."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from videomaskfeat.config import PretrainConfig
from videomaskfeat.engine.collapse import CollapseStop, Monitor
from videomaskfeat.engine.contracts import Stateful
from videomaskfeat.engine.step_mean import RunningCentre, StepMean
from videomaskfeat.engine.teacher import Teacher
from videomaskfeat.errors import UserError, nearest
from videomaskfeat.metrics.spread import direction_std
from videomaskfeat.models import arguments_of, create_model_from
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.zoo import MODELS
from videomaskfeat.tasks.methods.method import Method
from videomaskfeat.tasks.pretraining.heldout import HeldOutLoss
from videomaskfeat.tasks.pretraining.target_parts import check_arguments
from videomaskfeat.tasks.recipe import normalise

T = TypeVar("T")

REMEDY = (
    "lower optim.learning_rate, lengthen optim.warmup_epochs, raise method.arguments.momentum towards 1, or "
    "go on regardless with limits of 0 (method.arguments.collapse_...)"
)


@dataclass(frozen=True)
class Comparison:
    """What a student and a teacher say of a batch.

    Attributes:
        loss: 0-d, float32.
        metrics: further 0-d tensors for the log.
        rows: float [n, K] a name, of which the method wants the mean over the step.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]


@dataclass
class Position:
    """The share of the run that is done, 0..1, on which schedules depend."""

    progress: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The share."""
        return {"progress": self.progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.progress = float(state["progress"])


class TeacherMethod(Method):
    """A student that learns to agree with its own moving average.

    A class below sets ``student``, then calls :meth:`_teach`; it says how a batch is compared, what the
    teacher's encoder is, and which figures of a step go to the log and are watched for a collapse.

    Attributes:
        teacher: the moving average.
        followed: the part of the student that it follows.
    """

    teacher: Teacher
    followed: nn.Module
    unused: tuple[str, ...] = ("target",)
    fixed_target = False

    @abstractmethod
    def compare(self, network: nn.Module, batch: Any, *, progress: float) -> Comparison:
        """The loss of a batch with the schedules as they are at a share of the run, 0..1."""

    @abstractmethod
    def teacher_encoder(self) -> Encoder:
        """The teacher's encoder: what is saved to be fine-tuned."""

    @abstractmethod
    def figures(self) -> dict[str, Tensor]:
        """0-d tensors about the step that has just been made, by name; all ranks call it."""

    @property
    def state(self) -> Mapping[str, Stateful]:
        """Teacher, share of the run, and what watches for a collapse."""
        return {"teacher": self.teacher, "position": self._position, "collapse": self._stop, **self._centres}

    @property
    def progress(self) -> float:
        """The share of the run that is done."""
        return self._position.progress

    def to(self, device: torch.device) -> None:
        """Move the teacher, and start means and centres there."""
        self.teacher.module.to(device)
        self._means = {name: StepMean(size, device=device) for name, size in self._sizes.items()}
        for centre in self._centres.values():
            centre.to(device)

    def loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch; what the step's means need of it is kept."""
        compared = self.compare(network, batch, progress=self.progress)
        for name, rows in compared.rows.items():
            (self._centres[name] if name in self._centres else self._means[name]).add(rows)
        return compared.loss, compared.metrics

    def after_step(self, progress: float) -> Mapping[str, float]:
        """Let teacher and centres follow, and watch for a collapse.

        Returns:
            The figures of the step for the log.

        Raises:
            RunFailed: the features have collapsed.
        """
        self.teacher.follow(self.followed, progress)
        self._position.progress = progress
        for centre in self._centres.values():
            centre.update()
        tensors = self.figures()
        values = torch.stack([value.float().reshape(()) for value in tensors.values()]).tolist()
        figures = dict(zip(tensors, values, strict=True))
        self._stop.watch(figures, progress)
        return {**figures, "teacher_momentum": self.teacher.momentum(progress)}

    @torch.no_grad()
    def heldout(self, batches: Iterable[Any], *, autocast: torch.autocast) -> HeldOutLoss:
        """The mean loss of held-out batches, with the schedules as they are at the end of the run."""
        was_training = self.student.training
        self._train(False)
        total, clips = 0.0, 0
        sums: dict[str, Tensor] = {}
        for batch in batches:
            with autocast:
                compared = self.compare(self.student, batch, progress=1.0)
            total += float(compared.loss) * len(batch.index)
            clips += len(batch.index)
            for name, rows in self.wanted(batch, compared.rows).items():
                sums[name] = sums.get(name, 0.0) + rows.double().sum(dim=0)
        self._train(was_training)
        if not clips:
            raise ValueError("no held-out batches")
        constant = self.best_constant({name: value / clips for name, value in sums.items()}) if sums else None
        return HeldOutLoss(total / clips, constant, clips)

    def wanted(self, batch: Any, rows: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the teacher wants of each clip of a held-out batch, [B, K] a name; nothing, where the constant
        that would do best is not known.
        """
        return {}

    def best_constant(self, wanted: Mapping[str, Tensor]) -> float | None:
        """The loss of the one prediction that does best everywhere, from the means [K] of what is wanted."""
        return None

    def weights(self) -> Mapping[str, nn.Module]:
        """The teacher's encoder."""
        return {"weights.safetensors": self.teacher_encoder()}

    def _teach(
        self,
        followed: nn.Module,
        *,
        momentum: Callable[[float], float],
        means: Mapping[str, int],
        monitors: tuple[Monitor, ...],
        grace: float,
        centres: Mapping[str, RunningCentre] | None = None,
    ) -> None:
        """Make the teacher and what goes with it.

        Args:
            followed: the part of the student that has a teacher.
            momentum: see :class:`~videomaskfeat.engine.teacher.Teacher`.
            means: the size of the rows of each of the step's means.
            monitors: what is watched, among the names of :meth:`figures`.
            grace: share of the run that is not judged.
            centres: the teacher's running centres, by the names of their rows.

        Raises:
            UserError: a momentum or a share out of its range.
        """
        self.followed = followed
        self.teacher = Teacher(followed, momentum=momentum)
        self._position = Position()
        self._stop = CollapseStop(monitors, grace=grace, remedy=REMEDY)
        self._sizes = dict(means)
        self._centres = dict(centres or {})
        self._means = {name: StepMean(size) for name, size in means.items()}

    def _train(self, training: bool) -> None:
        """Switch between training and evaluation mode; a teacher with batch normalisation switches too."""
        self.student.train(training)

    def _std(self, name: str) -> Tensor:
        """The standard deviation of the step's directions that were kept under this name."""
        return direction_std(self._means[name].take())

    def _pixels(self, clips: Tensor) -> Tensor:
        """uint8 [B, T, H, W, C] -> float32 [B, C, T, H, W], normalised."""
        return normalise(clips, mean=self.recipe.clip.mean, std=self.recipe.clip.std)


def build_encoder(config: PretrainConfig) -> Encoder:
    """The encoder of the config's model, with a final norm and without a head, for the config's clips.

    Raises:
        UserError: an unknown name or argument, or a clip that the cubes do not tile.
    """
    clip, name = config.clip, config.model.name
    if name not in MODELS:
        raise UserError(
            f"model.name {name!r} is unknown{nearest(name, MODELS)}; there are {', '.join(MODELS)}"
        )
    encoder_name = MODELS[name].build.encoder_name  # type: ignore[attr-defined]
    known = arguments_of(encoder_name)
    arguments = {key: value for key, value in arguments_of(name).items() if key in known}
    size = (clip.frames, clip.crop, clip.crop)
    arguments |= {
        "clip_size": size,
        "final_norm": True,
        "mean_first": False,
        "checkpoint_blocks": config.run.activation_checkpointing,
    }
    encoder = create_model_from(encoder_name, {**arguments, **config.model.arguments})
    assert isinstance(encoder, Encoder)
    return encoder


def settings(kind: type[T], name: str, given: Mapping[str, Any] | None) -> T:
    """A group of a method's arguments.

    Args:
        kind: its dataclass.
        name: of the argument.
        given: what differs from the defaults; None: nothing.

    Raises:
        UserError: it is no mapping, or has a key that the group has not.
    """
    if given is None:
        return kind()
    where = f"method.arguments.{name}"
    if not isinstance(given, Mapping):
        raise UserError(f"{where} is a mapping of names to values, and got {given!r}")
    check_arguments(where, name, kind, given)
    return kind(**given)


def compiled(function: Callable[..., T], config: PretrainConfig) -> Callable[..., T]:
    """The function, compiled where the config says so."""
    return torch.compile(function) if config.run.compile else function


def call(network: nn.Module, *inputs: Any) -> Any:
    """A network's outputs; what is compiled of a step."""
    return network(*inputs)
