"""The stop of a training whose features have become the same for everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from videomaskfeat.errors import RunFailed, UserError


@dataclass(frozen=True)
class Monitor:
    """A number that falls to 0 where features collapse.

    Attributes:
        name: as the log calls it.
        limit: the run stops below it; 0 never stops.
        meaning: what it says when it is that low, in a few words.
    """

    name: str
    limit: float
    meaning: str

    def __post_init__(self) -> None:
        if not self.limit >= 0:
            raise UserError(
                f"the limit {self.limit} of {self.name} must not be negative; 0 never stops a run"
            )


class CollapseStop:
    """Watches some numbers of every step, and ends the run where one of them stays below its limit.

    A network that has learnt nothing yet gives nearly the same features to everything too, so the first part
    of the training is not judged; and a number is judged by its moving average, not by single batches.

    Args:
        monitors: what is watched.
        grace: share of the training that is not judged, 0..1.
        remedy: what the user may change, as the end of the message.
        smoothing: share of itself that a moving average keeps in a step, 0..1.

    Raises:
        UserError: a share outside 0..1.
    """

    def __init__(
        self, monitors: tuple[Monitor, ...], *, grace: float, remedy: str, smoothing: float = 0.9
    ) -> None:
        if not 0 <= grace <= 1:
            raise UserError(
                f"a grace of {grace:g} of the training is not between 0 and 1; 0.1 is the default"
            )
        self._monitors, self._grace, self._remedy = monitors, grace, remedy
        self._smoothing = smoothing
        self._means: dict[str, float] = {}
        self._steps = 0

    def watch(self, values: Mapping[str, float], progress: float) -> None:
        """Take in the numbers of a step, the same on every rank.

        Args:
            values: by name; at least those that are watched.
            progress: share of the training that is done, 0..1.

        Raises:
            RunFailed: one has collapsed.
        """
        self._steps += 1
        if progress < self._grace:
            return
        for monitor in self._monitors:
            value = values[monitor.name]
            mean = value + self._smoothing * (self._means.get(monitor.name, value) - value)
            self._means[monitor.name] = mean
            if monitor.limit > 0 and mean < monitor.limit:  # what is 0 in truth may come out below it
                raise RunFailed(
                    f"step {self._steps}: the features have collapsed: {monitor.name} is {mean:.3g}, below "
                    f"its limit of {monitor.limit:g} ({monitor.meaning}); {self._remedy}"
                )

    def state_dict(self) -> dict[str, Any]:
        """The moving averages and the number of steps."""
        return {"means": dict(self._means), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._means, self._steps = dict(state["means"]), int(state["steps"])
