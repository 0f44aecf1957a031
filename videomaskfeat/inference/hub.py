"""Models as folders with a model card, and repositories of the Hugging Face Hub with these folders."""

from __future__ import annotations

import importlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from videomaskfeat import __version__
from videomaskfeat.errors import UserError
from videomaskfeat.io import file_sha256, is_file, is_folder, make_folder, whole_file
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.loading import load_model
from videomaskfeat.models.saving import Recipe, save_model
from videomaskfeat.models.weights import created_as
from videomaskfeat.stored_recipe import DETECT_KEY, recipe_texts
from videomaskfeat.texts import parse_json, read_text
from videomaskfeat.viz.model_card import model_card

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
SHA256 = f"{WEIGHTS}.sha256"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def save_pretrained(
    model: Encoder,
    folder: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    run: str | os.PathLike[str] | None = None,
    license: str | None = None,
    title: str | None = None,
) -> Path:
    """Write a model as a folder that :func:`from_pretrained` reads and that can be uploaded as it is.

    The folder has the weights with their recipe (``model.safetensors``), their SHA-256, the model's name and
    arguments (``config.json``), and a model card (``README.md``). Files of the same names are replaced.

    Args:
        model: created by :func:`~videomaskfeat.models.zoo.create_model`.
        folder: the folder; created if it is missing.
        recipe: how clips are cut, such as ``VideoDataset.recipe``; None: that of the run.
        run: folder of the run that trained the model; the card describes its data, recipe and results.
        license: identifier of the license of the weights, such as "apache-2.0".
        title: heading of the card; None: the name of the folder.

    Raises:
        UserError: the model was not created by ``create_model``, the run is of another model, or an argument
            is wrong.
        RunFailed: the folder cannot be written.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        raise UserError(
            f"license {license!r} is not an identifier such as apache-2.0, mit, cc-by-nc-4.0 or other"
        )
    texts = {} if run is None else _texts_of_run(model, Path(run))
    if recipe is not None:
        texts = {recipe.key: recipe.to_json()}
    folder = Path(folder)
    name, arguments = getattr(model, "created_as", ("", {}))
    card = model_card(
        title or folder.resolve().name,
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        task=_task_of(model, texts),
        license=license,
        run=run,
    )
    make_folder(folder)
    save_model(model, folder / WEIGHTS, metadata=texts)
    recipes = {key: parse_json(text, key) for key, text in texts.items()}
    config = {"model": name, "arguments": arguments, "recipe": recipes, "videomaskfeat": __version__}
    for file_name, text in (
        (SHA256, f"{file_sha256(folder / WEIGHTS)}  {WEIGHTS}\n"),
        (CONFIG, json.dumps(config, indent=2) + "\n"),
        (CARD, card),
    ):
        with whole_file(folder / file_name) as file:
            file.write(text)
    return folder


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Encoder:
    """Load a model from a folder of :func:`save_pretrained`, or from a repository of the Hugging Face Hub.

    The SHA-256 of the weights is compared if the folder has one. A folder of another project that
    :func:`~videomaskfeat.models.loading.load_model` recognizes is converted.

    Args:
        source: the folder; or a repository ``OWNER/NAME`` if there is no such folder.
        device: device of the model.
        revision: branch, tag or commit of the repository; None: the newest commit of its main branch.
        token: access token of a private repository; None: that of ``hf auth login``, if any.
        cache_dir: folder of downloads; None: that of huggingface_hub.

    Returns:
        The model, in evaluation mode.

    Raises:
        UserError: there is neither such a folder nor such a repository, the extra ``hub`` is missing, or the
            weights are damaged or of an unknown format.
    """
    text = os.fspath(source)
    if not is_folder(text):
        if os.path.exists(text) or not _REPOSITORY.fullmatch(text):
            raise UserError(
                f"{text!r} is neither a folder with {WEIGHTS} nor a repository OWNER/NAME; for a weights "
                "file use load_model"
            )
        return _download(text, device, revision=revision, token=token, cache_dir=cache_dir)
    _check_sha256(Path(text))
    return load_model(text, device=device)


def push_to_hub(
    model: Encoder,
    repository: str,
    *,
    recipe: Recipe | None = None,
    run: str | os.PathLike[str] | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    message: str = "Add the model",
) -> str:
    """Upload the folder of :func:`save_pretrained` to a repository of the Hugging Face Hub (extra ``hub``).

    Args:
        model, recipe, run, license: as for :func:`save_pretrained`.
        repository: ``OWNER/NAME``; created if it is missing.
        private: whether a new repository is private; None: the default of its owner.
        token: access token; None: that of ``hf auth login``.
        branch: branch to write; None: the main branch.
        message: message of the commit.

    Returns:
        Address of the commit.

    Raises:
        UserError: as :func:`save_pretrained`, the extra is missing, or the Hub refuses the upload.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"repository {repository!r} must have the form OWNER/NAME")
    options = {"recipe": recipe, "run": run, "license": license, "title": repository}
    hub_model = _hub_class(repository)(model, options)
    try:
        return str(
            hub_model.push_to_hub(
                repository, commit_message=message, private=private, token=token, branch=branch
            )
        )
    except (OSError, ValueError) as error:  # of the network, or of the Hub's answer
        raise _refused(repository, error) from error


def _download(text: str, device: str | torch.device, **options: Any) -> Encoder:
    try:
        loaded = _hub_class(text).from_pretrained(text, **options)
    except (OSError, ValueError) as error:
        raise _refused(text, error) from error
    model: Encoder = loaded.network
    return model.to(device)


def _refused(repository: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    first = next(iter(str(error).strip().splitlines()), "no message")
    return UserError(
        f"{repository}: {first} ({type(error).__name__}); check the name, the network and `hf auth login`"
    )


def _hub_class(repository: str) -> Any:
    """A class with huggingface_hub's mixin that holds a model."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError(
            f"{repository}: a repository of the Hugging Face Hub needs the package huggingface_hub; "
            "pip install 'videomaskfeat[hub]'"
        ) from error

    class HubModel(hub.ModelHubMixin):  # type: ignore[name-defined]
        """The files of :func:`save_pretrained`, transferred by the mixin."""

        def __init__(self, network: Encoder, options: dict[str, Any]) -> None:
            self.network, self._options = network, options

        def _save_pretrained(self, save_directory: Path) -> None:
            save_pretrained(self.network, save_directory, **self._options)

        @classmethod
        def _from_pretrained(cls, *, model_id: str, **options: Any) -> HubModel:
            known = ("revision", "cache_dir", "token", "force_download", "local_files_only")
            folder = hub.snapshot_download(
                model_id,
                allow_patterns=[WEIGHTS, SHA256, CONFIG],
                **{name: options[name] for name in known if options.get(name) is not None},
            )
            return cls(from_pretrained(folder), {})

    return HubModel


def _check_sha256(folder: Path) -> None:
    if not is_file(folder / SHA256):
        return
    expected = read_text(folder / SHA256, what="a SHA-256").split(maxsplit=1)[:1]
    actual = file_sha256(folder / WEIGHTS)
    if expected != [actual]:
        raise UserError(
            f"{folder / WEIGHTS} has the SHA-256 {actual[:12]}..., but {SHA256} has another one: the file is "
            "damaged or was replaced; download or copy both files again"
        )


def _texts_of_run(model: Encoder, run: Path) -> dict[str, str]:
    """The recipe in the weights of a run, whose model must be the same."""
    files = [run / name for name in ("best.safetensors", "weights.safetensors") if is_file(run / name)]
    if not files:
        raise UserError(
            f"run {os.fspath(run)!r} has no weights.safetensors; give the folder of a finished run"
        )
    trained, own = created_as(str(files[0]))[0], getattr(model, "created_as", ("", {}))[0]
    if trained != own:
        raise UserError(f"run {os.fspath(run)!r} trained the model {trained}, not {own}; give its own run")
    return recipe_texts(files[0])


def _task_of(model: Encoder, texts: dict[str, str]) -> str | None:
    """The task of the Hub."""
    if DETECT_KEY in texts:
        return None
    return "video-classification" if hasattr(model, "reset_classifier") else "feature-extraction"
