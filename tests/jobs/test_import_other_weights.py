"""``import-weights``: files for the other commands, and the commands of docs/how_to/other_weights.md."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from videomaskfeat import cli
from videomaskfeat.config import load_config
from videomaskfeat.errors import UserError
from videomaskfeat.interop.other_projects import FORMATS
from videomaskfeat.jobs.finetune import build_classifier
from videomaskfeat.jobs.import_weights import import_weights
from videomaskfeat.methods.build import build_method
from videomaskfeat.models.loading import load_model, load_student
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.stored_recipe import read_classify_recipe, read_recipe, read_testing_recipe

PAGE = Path(__file__).parents[2] / "docs/how_to/other_weights.md"
# Folders and files of the page -> recorded models.
FILES = {
    "videomae-base-finetuned-kinetics": "videomae_classifier",
    "videomae-base": "videomae_pretrained",
    "vjepa2-vitl-fpc64-256": "vjepa2_encoder",
    "vit_base_patch16_224": "timm_vit_token",
    "mvit_v2_s.pth": "torchvision_mvit/mvit_v2_tiny.pth",
}
SHORT = [
    *("optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=4", "optim.base_batch_size=4"),
    *("run.threads=1", "data.workers=0", "clip.stride=1"),
]
SMALL = "depth: 2, width: 32, heads: 2, mlp_ratio: 2.0, cube_stride: [2, 4, 4]"


@torch.no_grad()
@pytest.mark.parametrize("name", ["videomae_classifier", "vjepa2_classifier"])
def test_classifier_and_its_config(name: str, golden: Path, tmp_path: Path) -> None:
    source = golden / "other_projects" / name
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\n")
    outcome = import_weights(source, tmp_path / "out", class_names=names, stride=2)
    clip = torch.randn(2, 3, 4, 16, 16)
    model = load_model(outcome.weights)
    assert torch.equal(model(clip), load_model(source)(clip))
    recipe = read_classify_recipe(outcome.weights)
    assert recipe.class_names == ("one", "two", "three")
    assert recipe.clip.stride == 2
    assert "clip.stride" not in str(outcome.notes)
    config = load_config(FinetuneConfig, str(outcome.config))
    config.evaluate.views = 5
    built, report = build_classifier(config, config.data.classes)
    assert report is not None
    assert len(report.loaded) == len(built.state_dict())
    assert torch.equal(built.eval()(clip), model(clip))
    assert (config.clip.frames, config.clip.crop, config.clip.mean) == (4, 16, [0.485, 0.456, 0.406])


def test_masked_autoencoder_and_its_config(golden: Path, tmp_path: Path) -> None:
    outcome = import_weights(golden / "other_projects/videomae_pretrained", tmp_path / "out")
    assert outcome.config is not None
    assert "# not in the file, assumed: clip.stride 4\n" in outcome.config.read_text()
    assert read_recipe(outcome.weights).target_arguments == {
        "frames": "all", "per_channel": True, "output_stride": [2, 4, 4]
    }  # fmt: skip
    config = load_config(PretrainConfig, str(outcome.config), ["data.train=x.csv"])
    method = build_method(config)
    report = load_student(method.student, method.encoder, config.model)
    assert len(report.loaded) == len(method.student.state_dict())
    assert method.student.created_as[1]["decoder_positions"] == "sincos_1d"
    assert method.recipe.mask.kind == "random_tube"


def test_encoder_and_image_model(golden: Path, tmp_path: Path) -> None:
    encoder = import_weights(golden / "other_projects/vjepa2_encoder", tmp_path / "a", heads=2)
    assert read_testing_recipe(encoder.weights).clip.target_fps == 4
    config = load_config(FinetuneConfig, str(encoder.config))
    _, report = build_classifier(config, 5)
    assert report is not None
    assert set(report.new) == {"head.projection.weight", "head.projection.bias"}
    image = import_weights(golden / "other_projects/timm_mvitv2", tmp_path / "b")
    assert image.config is None
    assert "config" not in image.text()
    facts = json.loads((tmp_path / "b/import.json").read_text())
    assert facts["format"] == FORMATS["mvitv2-timm"].title
    assert not facts["weights"]["unused"]


def test_mistakes_are_refused(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = golden / "other_projects/videomae_classifier"
    import_weights(source, tmp_path / "out")
    with pytest.raises(UserError, match=r"out/weights.safetensors exists already; give another folder"):
        import_weights(source, tmp_path / "out")
    names = tmp_path / "names.txt"
    names.write_text("one\n")
    with pytest.raises(UserError, match=r"names.txt: 1 class names for 3 classes"):
        import_weights(source, tmp_path / "other", class_names=names)
    checkpoint = golden / "mvitv2_kinetics/checkpoint.pyth"
    assert cli.main(["import-weights", str(checkpoint), str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert "the format of these weights is not recognized; known formats: VideoMAE v1" in error
    assert "use `videomaskfeat import-slowfast`" in error
    assert cli.main(["import-weights", str(source), str(tmp_path / "other"), "--from", "timm"]) == 2
    assert "from 'timm' is unknown" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


SUPPORTED = [name for name, one in FORMATS.items() if one.convert is not None]


def test_readme_has_the_table_of_the_code() -> None:
    readme = (PAGE.parents[2] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (.+) \| `videomaskfeat import-weights FILE OUT --from ([\w.-]+)` \|$", readme)
    assert rows == [(FORMATS[name].title, name) for name in SUPPORTED]


def test_table_of_the_page_is_the_table_of_the_code() -> None:
    rows = re.findall(r"(?m)^\| `([\w.-]+)` \| (.*?) \| (yes|no) \|", PAGE.read_text(encoding="utf-8"))
    table = [(name, one.title, "yes" if one.convert else "no") for name, one in FORMATS.items()]
    assert rows == table
    assert all(bool(one.convert) != bool(one.reason) for one in FORMATS.values())


def test_commands_of_the_page_run(
    golden: Path, sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On recorded models and tiny videos."""
    for name, recorded in FILES.items():
        source = golden / "other_projects" / recorded
        (shutil.copytree if source.is_dir() else shutil.copy)(source, sample / name)
    rows = (sample / "train.csv").read_text().splitlines(keepends=True)[:4]
    for name in ("train.csv", "val.csv"):
        (sample / name).write_text("".join(rows))
    (sample / "my_videos").symlink_to(sample / "videos")
    monkeypatch.chdir(sample)
    text = PAGE.read_text(encoding="utf-8")
    ran = []
    for block in re.findall(r"(?ms)^```bash\n(.*?)^```", text):
        for line in filter(None, re.sub(r"\\\n *", "", block).splitlines()):
            program, *words = shlex.split(line.replace("my_videos/one.mp4", "my_videos/000000.mp4"))
            assert program == "videomaskfeat"
            short = SHORT if words[0] in ("pretrain", "finetune") else []
            short = [*short, "run.pictures=0"] if words[0] == "pretrain" else short
            if "run.folder=runs/direct" in words:  # the published size is too large for a test
                words = [word.replace("{class_token", f"{{{SMALL}, class_token") for word in words]
                short = [*short, "clip.frames=4", "clip.crop=16", "evaluate.views=1", "augment.randaugment="]
            assert cli.main([*words, *short]) == 0, (words, capsys.readouterr().err)
            ran.append(words[0])
    assert ran.count("import-weights") == 4
    assert {"predict", "pretrain", "finetune", "extract-features"} <= set(ran)
    loaded = json.loads(Path("runs/direct/weights_loaded.json").read_text())
    assert loaded["format"] == [FORMATS["videomae-transformers"].title]
    for code in re.findall(r"(?ms)^```python\n(.*?)^```", text):
        exec(code, {})
