"""Base classes of methods in which a student learns from a teacher, its own moving average."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from videomaskfeat.data.clips import MaskDraw, VideoClips
from videomaskfeat.data.operations import ColorJitter, RandomColor
from videomaskfeat.data.pair_clips import LocalCrops, PairClips
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import clip_indices_random
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.engine.average import Teacher
from videomaskfeat.engine.contracts import Stateful, StepResult
from videomaskfeat.engine.distributed import gathered
from videomaskfeat.engine.optim import CosineRamp
from videomaskfeat.engine.teacher import (
    START_LIMIT,
    CollapseStop,
    Monitor,
    RunningCenter,
    fit_momentum,
    mean_of_rows,
    start_share,
    sum_of_rows,
)
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.methods.method import MeanTally, Method
from videomaskfeat.metrics.accuracy import direction_std
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.limits import check_arguments

T = TypeVar("T")
SAVED = ("student", "teacher")
REMEDY = (
    "lower optim.learning_rate, lengthen optim.warmup_epochs, raise method.arguments.momentum toward 1, or "
    "continue regardless with limits of 0 (method.arguments.collapse_...)"
)


@dataclass(frozen=True)
class Comparison:
    """Result of a batch.

    Attributes:
        loss: 0-d, float32.
        metrics: further 0-d tensors for the log.
        rows: float [n, K] by name; the method uses their means over the step.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]


@dataclass
class Position:
    """The completed share of the run, 0..1, for the schedules."""

    progress: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The share."""
        return {"progress": self.progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress = float(state["progress"])


class TeacherMethod(Method):
    """A student that learns to agree with its own moving average.

    Args:
        followed: the part of the student that has a teacher.
        momentum: momentum of the teacher at the start; None: ``published_momentum``, or less if the run is so
            short that more than 0.0001 of the teacher's random start would be left.
        momentum_end: momentum of the teacher at the end.
        published_momentum: momentum at the start in the published recipe.
        ramp: (momentum at the start, at the end) -> completed share of the run, 0..1 -> momentum.
        saved: encoder in weights.safetensors, "student" or "teacher".
        monitors: limits of :meth:`figures` that indicate a collapse.
        grace: see :class:`~videomaskfeat.engine.teacher.CollapseStop`.
        centers: the teacher's running centers, by the names of their rows.
        method: arguments of :class:`~videomaskfeat.methods.method.Method`.

    Raises:
        UserError: the momentum or the grace is out of range.
    """

    unused: tuple[str, ...] = ("target",)
    fixed_target = False

    def __init__(
        self,
        *,
        followed: nn.Module,
        momentum: float | None,
        momentum_end: float,
        saved: str,
        published_momentum: float,
        ramp: Callable[[float, float], Callable[[float], float]] = CosineRamp,
        monitors: tuple[Monitor, ...],
        grace: float,
        centers: Mapping[str, RunningCenter] | None = None,
        **method: Any,
    ) -> None:
        super().__init__(**method)
        self.followed = followed
        check_name("method.arguments.saved", saved, SAVED)
        self._saved = saved
        self._momentum, self._published_momentum = momentum, published_momentum
        self._schedule = lambda start: ramp(start, momentum_end)
        start = published_momentum if momentum is None else momentum
        self.teacher = Teacher(followed, momentum=self._schedule(start))
        self.centers = dict(centers or {})
        self._position = Position()
        self._stop = CollapseStop(monitors, grace=grace, remedy=REMEDY)
        self._forward = self.compile(forward)

    @abstractmethod
    def compare(self, network: nn.Module, batch: Any, *, progress: float) -> Comparison:
        """The loss of a batch with the schedules at a completed share of the run, 0..1."""

    @property
    @abstractmethod
    def teacher_encoder(self) -> Encoder:
        """The teacher's encoder."""

    def figures(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """0-d metrics of a step, by name, from the means [K] of its rows over all ranks.

        The default is the standard deviation of directions, for the rows named ``..._std``.
        """
        return {name: direction_std(mean) for name, mean in means.items() if name.endswith("_std")}

    @property
    def state(self) -> Mapping[str, Stateful]:
        return {"teacher": self.teacher, "position": self._position, "collapse": self._stop, **self.centers}

    @property
    def followers(self) -> Sequence[nn.Module]:
        return (self.teacher.module,)

    def set_length(self, steps: int) -> list[str]:
        """Choose the momentum if it is None, and report the share of the random start at the end."""
        schedule, automatic = self._schedule, self._momentum is None
        start = self._momentum
        if start is None:
            start = fit_momentum(schedule, self._published_momentum, steps)
        self.teacher.momentum = schedule(start)
        left = start_share(self.teacher.momentum, steps)
        source = f"chosen for {steps} steps" if automatic else f"as configured; {steps} steps"
        lines = [
            f"teacher   momentum {start:g} to {schedule(start)(1.0):g} ({source}): {left:.2g} of its random "
            "start is left at the end"
        ]
        if left > START_LIMIT:
            lines.append(
                f"warning   method.arguments.momentum {start:g} leaves more than {START_LIMIT:g} of the "
                "teacher's random start; leave it out (null), lower it or train longer"
            )
        return lines

    @property
    def progress(self) -> float:
        """The completed share of the run."""
        return self._position.progress

    def follow_loaded_weights(self) -> None:
        """The teacher starts from the student's weights."""
        self.teacher.load_state_dict(self.followed.state_dict())

    def set_progress(self, progress: float) -> None:
        self._position.progress = progress

    def to(self, device: torch.device) -> None:
        self.teacher.module.to(device)
        for center in self.centers.values():
            center.to(device)

    def loss(self, network: nn.Module, batch: Any) -> StepResult:
        """The loss of a batch; its state is the sums of the rows, by name."""
        with gathered(self.teacher.module):
            compared = self.compare(network, batch, progress=self.progress)
        sums = {name: sum_of_rows(rows) for name, rows in compared.rows.items()}
        return StepResult(compared.loss, compared.metrics, sums)

    def after_step(
        self, progress: float, states: Sequence[Mapping[str, Tensor]]
    ) -> Mapping[str, float | Tensor]:
        """Update teacher and centers, and return the figures of the step for the log."""
        momentum = self.teacher.momentum(self.progress)  # of this step, as its learning rate
        self.teacher.follow(self.followed, self.progress)
        self._position.progress = progress
        means = {name: mean_of_rows([sums[name] for sums in states]) for name in states[0]}
        for name, center in self.centers.items():
            center.update(means[name])
        return {**self.figures(means), "teacher_momentum": momentum}

    def watch(self, figures: Mapping[str, float], progress: float) -> None:
        """See :meth:`~videomaskfeat.methods.method.Method.watch`.

        Raises:
            RunFailed: the features have collapsed.
        """
        self._stop.watch(figures, progress)

    def tally(self) -> ComparisonTally:
        return ComparisonTally(self.best_constant)

    def heldout_batch(self, network: nn.Module, batch: Any) -> tuple[Any, ...]:
        """The comparison with the schedules at the end of the run."""
        compared = self.compare(network, batch, progress=1.0)
        with torch.autocast(compared.loss.device.type, enabled=False):
            rows = self.constant_rows(batch, compared.rows)
        return compared.loss, len(batch.index), rows

    def constant_rows(self, batch: Any, rows: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Rows [B, K] by name, one per held-out clip, that determine the best constant prediction.

        Empty if it is unknown.
        """
        return {}

    def best_constant(self, means: Mapping[str, Tensor]) -> float | None:
        """The loss of the best constant prediction, from the means [K] of :meth:`constant_rows`."""
        return None

    def weights(self) -> Mapping[str, nn.Module]:
        encoder = self.teacher_encoder if self._saved == "teacher" else self.encoder
        return {"weights.safetensors": encoder}


class ComparisonTally(MeanTally):
    """The mean loss of held-out comparisons, and that of the best constant prediction.

    Args:
        best_constant: :meth:`TeacherMethod.best_constant`.
    """

    sums = (*MeanTally.sums, "_sums")

    def __init__(self, best_constant: Callable[[Mapping[str, Tensor]], float | None]) -> None:
        super().__init__()
        self._best_constant = best_constant
        self._sums: dict[str, Tensor] = {}

    def add(self, loss: Tensor, clips: int, rows: Mapping[str, Tensor] | None = None) -> None:
        """Add a batch with its :meth:`TeacherMethod.constant_rows`."""
        super().add(loss, clips)
        for name, values in (rows or {}).items():
            self._sums[name] = self._sums.get(name, 0.0) + values.double().sum(dim=0)

    @property
    def constant(self) -> float | None:
        means = {name: value / self.clips for name, value in self._sums.items()}
        return self._best_constant(means) if means else None


@dataclass(frozen=True)
class Colors:
    """Random changes of the colors of a view, BYOL's and iBOT's by default.

    Attributes:
        brightness, contrast, saturation: maximum relative change.
        hue: maximum rotation of the hue, 0..0.5 of the color circle.
        chance: probability of these changes, 0..1.
        gray: probability of a view without colors, 0..1.
        blur: probability of a Gaussian blur of the first and of the second clip, 0..1.
        solarize: probability that bright pixels of the first and of the second clip are inverted, 0..1.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    chance: float = 0.8
    gray: float = 0.2
    blur: Sequence[float] = (1.0, 0.1)
    solarize: Sequence[float] = (0.0, 0.2)

    def of_view(self, *, blur: float, solarize: float) -> RandomColor:
        """The changes of a view with its own probabilities."""
        jitter = ColorJitter(
            brightness=self.brightness, contrast=self.contrast, saturation=self.saturation, hue=self.hue
        )
        return RandomColor(jitter, chance=self.chance, gray=self.gray, blur=blur, solarize=solarize)


@dataclass(frozen=True)
class Local:
    """Small crops that only the student sees.

    Attributes:
        count: crops per video.
        size: height and width in pixels.
        area: minimum and maximum share of the frame.
        blur: probability of a Gaussian blur, 0..1.
    """

    count: int = 0
    size: int = 96
    area: Sequence[float] = (0.05, 0.25)
    blur: float = 0.5


class PairMethod(TeacherMethod):
    """A method that compares two clips of each video with random frames, crop and colors.

    The batch size is the number of clips without local crops, two per video.

    Args:
        colors: changes of the colors.
        crop_area: minimum and maximum share of the frame of the two clips; None: that of ``clip.crop_area``,
            or ``published_area`` if ``clip.crop_area`` has its default.
        local: small crops.
        teaching: arguments of :class:`TeacherMethod`.
    """

    clips_per_video = 2
    published_area: tuple[float, float]
    """Minimum and maximum share of the frame in the published recipe."""

    def __init__(
        self,
        *,
        colors: Colors,
        crop_area: Sequence[float] | None = None,
        local: Local | None = None,
        **teaching: Any,
    ) -> None:
        super().__init__(**teaching)
        self.colors, self.crop_area, self.local = colors, crop_area, local or Local()

    def mask_draw(self) -> MaskDraw | None:
        """Draws the mask of a clip; None: nothing is hidden."""
        return None

    def dataset(
        self,
        records: Records,
        *,
        crop: RandomResizedCrop,
        heldout: bool = False,
        samples_per_video: int = 1,
        **reading: Any,
    ) -> VideoClips[Any, Any]:
        """Pairs of random clips; held-out ones are always the same.

        Raises:
            UserError: the clip or an argument is impossible.
        """
        if samples_per_video not in (1, 2):
            raise UserError(
                f"clip.samples_per_video {samples_per_video}: method {self.recipe.method!r} cuts two clips "
                "from each video; leave it at 1"
            )
        area = _two("local.area", self.local.area, "fractions of the frame, the minimum and the maximum")
        colors, views = self.colors, "probabilities, of the first and of the second clip"
        blur = _two("color.blur", colors.blur, views)
        solarize = _two("color.solarize", colors.solarize, views)
        local = None
        if self.local.count:
            small = dataclasses.replace(crop, size=self.local.size, area=area)
            local = LocalCrops(self.local.count, small, colors.of_view(blur=self.local.blur, solarize=0.0))
        if self.crop_area is not None:
            crop = dataclasses.replace(crop, area=_two("crop_area", self.crop_area, "fractions of the frame"))
        elif crop.area == RandomResizedCrop.area:
            crop = dataclasses.replace(crop, area=self.published_area)
        return PairClips(
            records,
            sampler=self.recipe.clip.frame_sampler(clip_indices_random),
            transform=crop,
            colors=(
                colors.of_view(blur=blur[0], solarize=solarize[0]),
                colors.of_view(blur=blur[1], solarize=solarize[1]),
            ),
            mask=self.mask_draw(),
            local=local,
            **reading,
        )


def _two(name: str, values: Sequence[float], meaning: str) -> tuple[float, float]:
    """An argument of two numbers."""
    if len(values) != 2:
        raise UserError(f"method.arguments.{name} {list(values)} must be two {meaning}")
    return float(values[0]), float(values[1])


def build_group(kind: type[T], name: str, values: Mapping[str, Any] | None) -> T:
    """A group of a method's arguments.

    Args:
        kind: dataclass of the group.
        name: name of the argument.
        values: differences from the defaults.

    Raises:
        UserError: the argument is no mapping, or a key is unknown.
    """
    if values is None:
        return kind()
    where = f"method.arguments.{name}"
    if not isinstance(values, Mapping):
        raise UserError(f"{where} {values!r} must be a mapping of names to values")
    check_arguments(where, kind, values)
    return kind(**values)


def forward(network: nn.Module, *inputs: Any) -> Any:
    """A network's outputs, which are compiled together."""
    return network(*inputs)
