"""The folder of a run: its config, files and failures; and whether a config belongs to the run in it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import simplejson

from videomaskfeat.config_keys import config_text, current_values, flat, free_keys
from videomaskfeat.engine.checkpoint import LENGTH_KEY, CheckpointFolder
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.io import append_text, is_file, make_folder, remove_temporary_files, whole_file

logger = logging.getLogger(__name__)

# A section that only the configs of one training have.
_JOBS = {"mask": "pretrain", "augment": "finetune", "boxes": "detect-train", "gumbel": "train-tokenizer"}


class RunFolder:
    """The folder of a run, with the config that a resumed run must share.

    Args:
        path: path of the folder.
        config: config of the training.
    """

    def __init__(self, path: str | os.PathLike[str], config: Any) -> None:
        self.path = Path(path)
        self._config = config

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The config keys that change what is learned, which a resumed run must share."""
        return _without_free_keys(flat(self._config), type(self._config))

    def upgrade_fingerprint(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """The fingerprint of an older checkpoint with the present names, without keys that are free now.

        Keys that did not exist then have their defaults, as in the config of the run folder. If the config
        extends the run, its length is that of the config.
        """
        from videomaskfeat.engine.resume import is_longer

        schema = type(self._config)
        present = _without_free_keys(current_values(schema, saved), schema)
        parents = {".".join(key.split(".")[:2]) for key in present}  # an empty mapping is a key of its own
        defaults = _without_free_keys(flat(schema()), schema).items()
        upgraded = {**{key: value for key, value in defaults if key not in parents}, **present}
        if self._config.run.extend and is_longer(self.fingerprint, upgraded):
            upgraded[LENGTH_KEY] = self.fingerprint[LENGTH_KEY]
        return upgraded

    def open(self, environment: Callable[[], str] | None = None) -> None:
        """Write the config, and the text of environment.json; only rank 0 calls it.

        Raises:
            UserError: the folder contains a run of another config or of another job.
        """
        config = self.path / "config.yaml"
        # Earlier versions left it empty if they were killed while writing; checkpoints have the config too.
        written = is_file(config) and config.stat().st_size > 0
        if written and CheckpointFolder(self.path / "checkpoints").steps():
            self.check()
        make_folder(self.path)
        for folder in (self.path, self.path / "pictures", self.path / "score"):
            remove_temporary_files(folder)
        self.write("config.yaml", config_text(self._config))
        if environment is not None:
            self.write("environment.json", environment())
        Path(self.path, "summary.json").unlink(missing_ok=True)  # the run continues

    def check(self) -> None:
        """Compare the config in the folder with this one.

        Raises:
            UserError: it is a config of another run or another job.
        """
        from videomaskfeat.config import load_config  # a new run has no earlier config
        from videomaskfeat.engine.resume import check_fingerprint

        config_path = self.path / "config.yaml"
        try:
            earlier = load_config(type(self._config), str(config_path))
        except UserError as error:
            from videomaskfeat.yaml_files import read_yaml

            sections = read_yaml(config_path, what="a config") or {}
            job = next((_JOBS[name] for name in _JOBS if name in sections), "")
            kind = f"of {job}" if job and _JOBS.keys() & sections - vars(self._config).keys() else ""
            kind = kind or f"of another job or version ({error})"
            raise UserError(f"{self.path} contains a run {kind}; choose another run.folder") from error
        check_fingerprint(self.upgrade_fingerprint(flat(earlier)), self.fingerprint, config_path)

    def write(self, name: str, text: str) -> None:
        """Write a text file of the folder."""
        if not self.path.is_dir():
            raise RunFailed(f"{self.path}: the run folder was removed during the run")
        with whole_file(self.path / name) as file:
            file.write(text)

    def write_json(self, name: str, value: Any) -> None:
        """Write plain data as JSON."""
        self.write(name, simplejson.dumps(value, indent=2, ignore_nan=True))

    def write_failures(self, name: str, failures: Iterable[Any]) -> None:
        """Write the ``path`` and ``cause`` of each failure as a line of JSON."""
        rows = ({"path": failure.path, "cause": failure.cause} for failure in failures)
        self.write(name, "".join(simplejson.dumps(row) + "\n" for row in rows))

    def log(self, text: str) -> None:
        """Log a text, also to log.txt, which the loop opens only while it runs."""
        logger.info(text)
        append_text(self.path / "log.txt", text + "\n")


def stored_run_section(config: Any) -> Any:
    """Section ``run`` of the config of the run to resume; None if there is no such run."""
    folder = Path(config.run.folder)
    if not (CheckpointFolder(folder / "checkpoints").steps() and is_file(folder / "config.yaml")):
        return None
    from videomaskfeat.config import load_config

    try:
        return load_config(type(config), str(folder / "config.yaml")).run
    except UserError:
        return None  # opening the run folder reports the mistake


def _without_free_keys(values: Mapping[str, Any], schema: type) -> dict[str, Any]:
    """The keys that are not free; a key with a mapping as its value is several keys of a flat config."""
    free = free_keys(schema)
    prefixes = tuple(f"{name}." for name in free)
    return {key: value for key, value in values.items() if key not in free and not key.startswith(prefixes)}
