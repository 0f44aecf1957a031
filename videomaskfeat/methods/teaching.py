"""Pairs of clips for methods that compare views: their loaders, from the config and a method's arguments."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from videomaskfeat.data.clips import LocalCrops, MaskDraw, PairClips
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.operations import ColourJitter, RandomColour
from videomaskfeat.data.sampling import clip_indices_random
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.engine.contracts import Stateful, StepResult
from videomaskfeat.engine.teacher import (
    CollapseStop,
    Monitor,
    RunningCentre,
    Teacher,
    mean_of_rows,
    sum_of_rows,
)
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.jobs.pretrain_building import (
    HELDOUT_BATCH,
    check_heldout_clips,
    frame_sampler,
    records_of,
    training_crop,
)
from videomaskfeat.methods.method import HeldOutLoss, Method, check_arguments
from videomaskfeat.models import arguments_of, create_model_from
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.zoo import MODELS
from videomaskfeat.recipe import normalize
from videomaskfeat.schemas import PretrainConfig


@dataclass(frozen=True)
class Colours:
    """How the colours of a view change.

    Attributes:
        brightness, contrast, saturation: greatest change, a share.
        chance: that they change at all, 0..1.
        grey: chance that a view loses its colours, 0..1.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    chance: float = 0.8
    grey: float = 0.2


@dataclass(frozen=True)
class Local:
    """Small crops that only the student sees.

    Attributes:
        count: crops a video; 0: none.
        size: pixels of their side; frames are those of the clips.
        area: least and greatest share of the frame.
    """

    count: int = 0
    size: int = 96
    area: Sequence[float] = (0.05, 0.4)


def pair_dataset(
    config: PretrainConfig, path: str, *, colours: Colours, mask: MaskDraw | None, local: Local
) -> PairClips:
    """Pairs of the videos of a list, each clip with random frames, crop and colours.

    Raises:
        UserError: the list, a clip setting or an argument is wrong.
    """
    clip = config.clip
    if clip.samples_per_video not in (1, 2):
        raise UserError(
            f"clip.samples_per_video {clip.samples_per_video}: method {config.method.name!r} cuts two clips "
            "from each video; leave it at 1"
        )
    crops = None
    if len(local.area) != 2:
        raise UserError(
            f"method.arguments.local.area {list(local.area)} must be two shares of the frame, the least and "
            "the greatest, such as [0.05, 0.4]"
        )
    if local.count:
        transform = RandomResizedCrop(
            local.size,
            area=(local.area[0], local.area[1]),
            aspect=(clip.crop_aspect[0], clip.crop_aspect[1]),
            flip=clip.flip,
        )
        crops = LocalCrops(local.count, transform)
    jitter = ColourJitter(
        brightness=colours.brightness, contrast=colours.contrast, saturation=colours.saturation
    )
    return PairClips(
        records_of(config, path),
        sampler=frame_sampler(config, clip_indices_random),
        transform=training_crop(clip),
        colour=RandomColour(jitter, chance=colours.chance, grey=colours.grey),
        mask=mask,
        local=crops,
        reader=config.data.reader,
        seed=config.run.seed,
    )


def training_pairs(config: PretrainConfig, *, rank: int, world_size: int, **parts: Any) -> ClipLoader[Any]:
    """The training batches of a rank; ``parts`` are those of :func:`pair_dataset`.

    ``optim.batch_size`` counts clips, two a video; local crops do not count.

    Raises:
        UserError: see :func:`pair_dataset`; or a batch that does not divide.
    """
    return ClipLoader(
        pair_dataset(config, config.data.train, **parts),
        batch_size=config.optim.batch_size,
        accumulate=config.optim.accumulate,
        workers=config.data.workers,
        read_seconds=config.data.read_seconds,
        rank=rank,
        world_size=world_size,
        pin_memory=config.run.device != "cpu",
    )


def heldout_pairs(config: PretrainConfig, **parts: Any) -> ClipLoader[Any] | None:
    """Pairs of the held-out videos in the list's order, always the same; None where there is no list.

    Raises:
        UserError: see :func:`pair_dataset`; or no clips to evaluate.
    """
    if not config.data.validation:
        return None
    check_heldout_clips(config)
    dataset = pair_dataset(config, config.data.validation, **parts)
    videos = min(max(config.run.evaluate_clips // 2, 1), len(dataset))
    return ClipLoader(
        dataset,
        batch_size=2 * max(size for size in range(1, HELDOUT_BATCH // 2 + 1) if videos % size == 0),
        workers=config.data.workers,
        read_seconds=config.data.read_seconds,
        shuffle=False,
        read_ahead=False,
    )


# What methods share whose student learns from a teacher that is its own moving average.
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
    def figures(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """0-d tensors about a step, by name, from the means [K] of its rows over all ranks."""

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
        for centre in self._centres.values():
            centre.to(device)

    def loss(self, network: nn.Module, batch: Any) -> StepResult:
        """The loss of a batch; its state are the sums of the rows, by name."""
        compared = self.compare(network, batch, progress=self.progress)
        sums = {name: sum_of_rows(rows) for name, rows in compared.rows.items()}
        return StepResult(compared.loss, compared.metrics, sums)

    def after_step(self, progress: float, states: Sequence[Mapping[str, Tensor]]) -> Mapping[str, float]:
        """Let teacher and centres follow, and watch for a collapse.

        Returns:
            The figures of the step for the log.

        Raises:
            RunFailed: the features have collapsed.
        """
        self.teacher.follow(self.followed, progress)
        self._position.progress = progress
        means = {name: mean_of_rows([sums[name] for sums in states]) for name in states[0]}
        for name, centre in self._centres.items():
            centre.update(means[name])
        tensors = self.figures(means)
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
        monitors: tuple[Monitor, ...],
        grace: float,
        centres: Mapping[str, RunningCentre] | None = None,
    ) -> None:
        """Make the teacher and what goes with it.

        Args:
            followed: the part of the student that has a teacher.
            momentum: see :class:`~videomaskfeat.engine.teacher.Teacher`.
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
        self._centres = dict(centres or {})

    def _train(self, training: bool) -> None:
        """Switch between training and evaluation mode; a teacher with batch normalisation switches too."""
        self.student.train(training)

    def _pixels(self, clips: Tensor) -> Tensor:
        """uint8 [B, T, H, W, C] -> float32 [B, C, T, H, W], normalised."""
        return normalize(clips, mean=self.recipe.clip.mean, std=self.recipe.clip.std)


def build_encoder(config: PretrainConfig) -> Encoder:
    """The encoder of the config's model, with a final norm and without a head, for the config's clips.

    Raises:
        UserError: an unknown name or argument, or a clip that the cubes do not tile.
    """
    clip, name = config.clip, config.model.name
    check_name("model.name", name, MODELS)
    encoder_name = MODELS[name].build.encoder_name
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
