"""Folders of ``save_pretrained``: weights, SHA-256, model card; transfers to the Hub without a network."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import videomaskfeat
from tests.jobs.weights_files import NAMES, RECIPE, write_classifier, write_pretrained
from videomaskfeat.errors import UserError
from videomaskfeat.inference.hub import from_pretrained
from videomaskfeat.inference.results import describe_weights
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.viz.evaluation import confidence_interval

SUMMARY = {
    **{"kind": "finetune", "steps": 120, "seconds": 61.0, "listed": 51, "videos": 50, "classes": 7},
    **{"views": 2, "crops": 1, "top1": 62.0, "top5": 90.0, "mean_class": 58.5},
}
CONFIG = """
data: {train: /home/me/lists/train.csv, validation: val.csv}
clip: {frames: 4, stride: 2.0}
model: {name: maskfeat_mvitv2_nano_classifier, weights: /home/me/runs/first/weights.safetensors}
optim: {epochs: 3, learning_rate: 0.0006}
run: {folder: /home/me/runs/second, device: cpu}
"""


def write_run(folder: Path) -> Path:
    """The files of a run that a card reads."""
    folder.mkdir()
    write_classifier(folder / "best.safetensors")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    provenance = {"videomaskfeat": "0.1.0", "commit": "abc123", "torch": "2.13.0"}
    (folder / "environment.json").write_text(json.dumps({"provenance": provenance}))
    return folder


def clips() -> torch.Tensor:
    return torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(5))


def test_folder_gives_the_same_model_and_recipe(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    model = videomaskfeat.load_model(run / "best.safetensors")
    folder = model.save_pretrained(tmp_path / "shared", run=run, license="apache-2.0")
    names = ["README.md", "config.json", "model.safetensors", "model.safetensors.sha256"]
    assert sorted(path.name for path in folder.iterdir()) == names
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (folder / "model.safetensors.sha256").read_text() == f"{digest}  model.safetensors\n"
    loaded = videomaskfeat.from_pretrained(folder)
    assert torch.equal(loaded(clips()), model(clips()))
    assert not loaded.training
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == "maskfeat_mvitv2_nano_classifier"
    assert config["recipe"]["classify"]["class_names"] == list(NAMES)
    # Functions and commands that need the recipe accept the folder, too.
    assert videomaskfeat.load_classifier(folder, device="cpu").recipe == RECIPE
    assert describe_weights(folder)["weights_sha256"] == digest


def test_card_has_data_recipe_results_and_license(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    model = videomaskfeat.load_model(run / "best.safetensors")
    card = (model.save_pretrained(tmp_path / "mine", run=run, license="cc-by-4.0") / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "videomaskfeat",
        "license": "cc-by-4.0",
        "pipeline_tag": "video-classification",
        "tags": ["video", "masked-video-pretraining", "maskfeat_mvitv2_nano_classifier"],
    }
    assert "/home/me" not in card  # folders of the machine
    for line in ("| training | `train.csv` |", "| held out | `val.csv` |", "from_pretrained('mine')"):
        assert line in text
    assert "| initial weights | `weights.safetensors` |" in text
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe["optim"] == {"epochs": 3, "learning_rate": 0.0006}
    assert recipe["model"] == {"name": "maskfeat_mvitv2_nano_classifier"}
    assert "120 steps, 1 min" in text
    assert "commit abc123" in text
    # Wilson's interval of 31 of 50, as published tables have it: 0.482 to 0.741.
    assert "| top-1 accuracy | 62.00 % | 48.2 to 74.1 % | 14.3 % |" in text
    low, high = confidence_interval(0.9, 50)
    assert f"| top-5 accuracy | 90.00 % | {100 * low:.1f} to {100 * high:.1f} % | 71.4 % |" in text
    assert "| mean class accuracy | 58.50 % |  |  |" in text
    assert "50 of 51 held-out videos, 2 x 1 views per video" in text
    assert text.endswith("## License\n\ncc-by-4.0\n")
    bare = (model.save_pretrained(tmp_path / "bare") / "README.md").read_text()
    assert "license: unknown" in bare
    assert "## Results" not in bare


def test_mistakes_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run")
    model = videomaskfeat.load_model(run / "best.safetensors")
    other = videomaskfeat.load_model(write_pretrained(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="trained the model maskfeat_mvitv2_nano_classifier, not maskfeat_mv"):
        other.save_pretrained(tmp_path / "out", run=run)
    with pytest.raises(UserError, match=r"license 'Apache 2' is not an identifier such as apache-2\.0"):
        model.save_pretrained(tmp_path / "out", license="Apache 2")
    with pytest.raises(UserError, match=r"has no weights\.safetensors; give the folder of a finished run"):
        model.save_pretrained(tmp_path / "out", run=tmp_path)
    assert not (tmp_path / "out").exists()
    folder = model.save_pretrained(tmp_path / "out", recipe=RECIPE)
    model.head.projection.bias.data += 1
    videomaskfeat.save_model(model, folder / "model.safetensors")
    with pytest.raises(UserError, match="the file is damaged or was replaced"):
        from_pretrained(folder)
    with pytest.raises(
        UserError, match=r"neither a folder with model\.safetensors nor a repository OWNER/NAME"
    ):
        from_pretrained(tmp_path / "missing" / "folder")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    for transfer in (lambda: from_pretrained("me/model"), lambda: model.push_to_hub("me/model")):
        with pytest.raises(UserError, match=r"me/model: .* pip install 'videomaskfeat\[hub\]'"):
            transfer()


def stand_in(server: Path) -> Any:
    """A module like huggingface_hub, whose server is a folder; the mixin's calls are those of version 1.0."""
    hub: Any = types.ModuleType("huggingface_hub")

    class ModelHubMixin:
        def _save_pretrained(self, save_directory: Path) -> None:
            raise NotImplementedError

        def push_to_hub(self, repo_id: str, *, commit_message: str, **options: Any) -> str:
            assert set(options) == {"private", "token", "branch"}
            self._save_pretrained(server / repo_id)
            return f"{server / repo_id} {commit_message}"

        @classmethod
        def from_pretrained(cls, name: str, *, token: Any, revision: Any, cache_dir: Any) -> Any:
            shared = {"token": token, "revision": revision, "cache_dir": cache_dir}
            more = {"force_download": False, "local_files_only": False, "config": {}}
            return cls._from_pretrained(model_id=name, **shared, **more)  # type: ignore[attr-defined]

    def snapshot_download(name: str, **options: Any) -> str:
        if not (server / name).is_dir():
            raise OSError(f"404 Client Error: {name} not found\nmore")
        return str(server / name)

    hub.ModelHubMixin, hub.snapshot_download = ModelHubMixin, snapshot_download
    return hub


def check_transfer(model: Encoder, run: Path, server: Path) -> None:
    """Upload a model, and load it again by the name of its repository."""
    address = model.push_to_hub("me/model", run=run, license="mit", message="First")
    assert address
    assert "# me/model\n" in (server / "me/model/README.md").read_text()
    assert torch.equal(from_pretrained("me/model")(clips()), model(clips()))


def test_transfer_by_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run")
    model = videomaskfeat.load_model(run / "best.safetensors")
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in(tmp_path / "server"))
    check_transfer(model, run, tmp_path / "server")
    with pytest.raises(UserError, match=r"me/other: 404 Client Error: me/other not found \(OSError\); check"):
        from_pretrained("me/other")
    with pytest.raises(UserError, match="must have the form OWNER/NAME"):
        model.push_to_hub("model")


def test_transfer_by_the_mixin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, with its requests replaced by copies of files."""
    hub = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    server = tmp_path / "server"

    def upload(self: Any, *, repo_id: str, folder_path: Any, **options: Any) -> Any:
        shutil.copytree(folder_path, server / repo_id)
        return types.SimpleNamespace(commit_url="address")

    monkeypatch.setattr(
        hub.HfApi, "create_repo", lambda self, repo_id, **rest: types.SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: str(server / name))
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.hf_hub_download",
        lambda repo_id, filename, **rest: str(server / repo_id / filename),
    )
    run = write_run(tmp_path / "run")
    model = videomaskfeat.load_model(run / "best.safetensors")
    check_transfer(model, run, server)
    card = hub.ModelCard.load(server / "me/model/README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "videomaskfeat")
