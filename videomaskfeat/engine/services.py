"""Loggers of experiment trackers: Weights & Biases, MLflow. A service that fails never stops a run."""

from __future__ import annotations

import importlib
import logging
import os
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import simplejson

from videomaskfeat.config_keys import flat_values
from videomaskfeat.engine.log import Record, StepLogger
from videomaskfeat.errors import UserError
from videomaskfeat.io import is_file, whole_file
from videomaskfeat.texts import read_json
from videomaskfeat.yaml_files import read_yaml

logger = logging.getLogger(__name__)

IDENTITIES = "loggers.json"
"""File of the run folder with the name that a service has given to the run, by logger; for resumed runs."""
_PROJECT = "videomaskfeat"
_SECONDS_BETWEEN_SENDS = 5.0  # of MLflow, whose client waits for its server
_MOST_METRICS = 1000  # per request of MLflow
_MOST_PARAMS = 100
_LONGEST_PARAM = 500  # characters; the limit of older servers


class ServiceLogger(StepLogger):
    """The base of loggers that need a package and maybe a network.

    The first error of the service is logged as a warning, and nothing more is sent.

    Raises:
        UserError: the package is not installed.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    """Package to import; the extra has the name of the logger."""

    def __init__(self, folder: Path, first_step: int) -> None:
        super().__init__(folder, first_step)
        try:
            package = importlib.import_module(self.package)
        except ImportError as error:
            raise UserError(
                f"run.loggers={self.name} needs the package {self.package}, which is not installed; "
                f"pip install 'videomaskfeat[{self.name}]'"
            ) from error
        self._fails = False
        self._try(lambda: self.start(package))

    @abstractmethod
    def start(self, package: Any) -> None:
        """Open the run of the service; ``package`` is the imported one."""

    @abstractmethod
    def send(self, numbers: Mapping[str, float], step: int) -> None:
        """Send the numbers of a step."""

    @abstractmethod
    def send_pictures(self, pictures: Sequence[Path], step: int) -> None:
        """Send pictures."""

    @abstractmethod
    def finish(self) -> None:
        """Send what is left, and close the run of the service."""

    def write(self, record: Record, step: int) -> None:
        """See :meth:`StepLogger.write`."""
        numbers = {
            key: float(value)
            for key, value in record.items()
            if key != "step" and isinstance(value, int | float)
        }
        self._try(lambda: self.send(numbers, step))

    def write_pictures(self, pictures: Sequence[Path], step: int) -> None:
        """See :meth:`StepLogger.write_pictures`."""
        self._try(lambda: self.send_pictures(pictures, step))

    def close(self) -> None:
        """See :meth:`StepLogger.close`."""
        self._try(self.finish)

    def identity(self, create: Callable[[], str]) -> str:
        """The name of the run in the service: that of an earlier part of this run, or a new one."""
        path = self.folder / IDENTITIES
        known = read_json(path, what="names of runs") if is_file(path) else {}
        if self.first_step and self.name in known:
            return str(known[self.name])
        known[self.name] = create()
        with whole_file(path) as file:
            file.write(simplejson.dumps(known))
        return str(known[self.name])

    def config(self) -> dict[str, Any]:
        """``section.key`` -> value of the run's config."""
        path = self.folder / "config.yaml"
        return flat_values(read_yaml(path, what="a config")) if is_file(path) else {}

    def _try(self, action: Callable[[], None]) -> None:
        if self._fails:
            return
        try:
            action()
        except Exception as error:  # of the service's package: it can raise anything
            self._fails = True
            text = next(iter(str(error).strip().splitlines()), "no message")
            logger.warning(
                "run.loggers: %s failed and gets no more records (%s: %s); the run continues, and "
                "metrics.jsonl is complete",
                self.name,
                type(error).__name__,
                text,
            )


class WeightsAndBiases(ServiceLogger):
    """Weights & Biases; its files are in ``wandb/`` of the run folder.

    Its environment variables choose project (WANDB_PROJECT), key (WANDB_API_KEY) and mode
    (WANDB_MODE=offline).
    """

    name = "wandb"
    package = "wandb"

    def start(self, package: Any) -> None:
        """Open the run; a resumed run continues its curves."""
        self._package = package
        self._run = package.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            name=self.folder.resolve().name,
            id=self.identity(lambda: uuid.uuid4().hex[:12]),
            resume="allow",
            dir=str(self.folder),
            config=self.config(),
            settings={"console": "off"},  # the console belongs to the progress bar
        )
        # Steps that a resumed run repeats would be refused if they were the step of the service.
        self._run.define_metric("*", step_metric="step")

    def send(self, numbers: Mapping[str, float], step: int) -> None:
        """Log at once; the package sends in another process."""
        self._run.log({"step": step, **numbers})

    def send_pictures(self, pictures: Sequence[Path], step: int) -> None:
        """Log as images named ``pictures/NAME``."""
        images = {f"pictures/{path.stem}": self._package.Image(str(path)) for path in pictures}
        self._run.log({"step": step, **images})

    def finish(self) -> None:
        """Wait until everything is sent or, offline, written."""
        self._run.finish()


class MLflow(ServiceLogger):
    """MLflow; without MLFLOW_TRACKING_URI in files of ``mlruns/`` beside the run folder.

    MLFLOW_EXPERIMENT_NAME chooses the experiment.
    """

    name = "mlflow"
    package = "mlflow"

    def start(self, package: Any) -> None:
        """Open the run; a resumed run continues its curves."""
        tracking, self._entities = (
            importlib.import_module(f"{self.package}.{part}") for part in ("tracking", "entities")
        )
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            uri = (self.folder.resolve().parent / "mlruns").as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 refuses files otherwise
        self._client = tracking.MlflowClient(tracking_uri=uri)
        self._metrics: list[Any] = []
        self._last_send = time.monotonic()
        self._id = self.identity(self._create_run)

    def _create_run(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = (
            self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        )
        created = self._client.create_run(experiment_id, run_name=self.folder.resolve().name)
        identity = str(created.info.run_id)
        values = self.config().items()
        params = [self._entities.Param(key, str(value)[:_LONGEST_PARAM]) for key, value in values]
        for first in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(identity, params=params[first : first + _MOST_PARAMS])
        return identity

    def send(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep the numbers, and send them every few seconds."""
        now = int(1000 * time.time())
        self._metrics += [self._entities.Metric(key, value, now, step) for key, value in numbers.items()]
        waited = time.monotonic() - self._last_send
        if waited >= _SECONDS_BETWEEN_SENDS or len(self._metrics) >= _MOST_METRICS:
            self._send_metrics()

    def _send_metrics(self) -> None:
        metrics, self._metrics = self._metrics, []
        for first in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[first : first + _MOST_METRICS])
        self._last_send = time.monotonic()

    def send_pictures(self, pictures: Sequence[Path], step: int) -> None:
        """Store as artifacts below ``pictures``."""
        for path in pictures:
            self._client.log_artifact(self._id, str(path), "pictures")

    def finish(self) -> None:
        """Send the last numbers, and end the run."""
        self._send_metrics()
        self._client.set_terminated(self._id)
