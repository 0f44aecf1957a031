"""``export``: outputs of every format, metadata, refusals, and files that are not kept."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from torch import Tensor, nn

from videomaskfeat.cli import main
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.inference.classifiers import load_encoder
from videomaskfeat.interop import export as export_module
from videomaskfeat.interop import load_slowfast
from videomaskfeat.interop.export import Graph
from videomaskfeat.jobs import export as task
from videomaskfeat.jobs.export import export
from videomaskfeat.models import create_model
from videomaskfeat.models.loading import load_into, load_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.weights import read_state
from videomaskfeat.recipe import METADATA_KEY, ClipRecipe, MaskRecipe, PretrainRecipe
from videomaskfeat.stored_recipe import (
    CLASSIFY_KEY,
    DETECT_KEY,
    ENCODER_KEY,
    ClassifyRecipe,
    DetectRecipe,
    read_testing_recipe,
    recipe_texts,
)

ROOT = Path(__file__).parent.parent.parent
CLIP = ClipRecipe(frames=8, stride=2, crop=64)
NAMES = ("left", "right", "up", "down", "none")
CLASSIFY = ClassifyRecipe(CLIP, views=3, class_names=NAMES)
# Another size than the model's own, so that its position tables are interpolated inside the graph.
SMALL_CLIP = ClipRecipe(frames=4, stride=2, crop=32)
DETECT = DetectRecipe(SMALL_CLIP, {1: "walk"}, 3)
SMALL: dict[str, Any] = {"depth": 2, "width": 16}
# float32: 1e-6 of the largest value is what sums in another order make, see docs/how_to/export.md.
CLOSE = {"atol": 1e-4, "rtol": 1e-5}


def write(path: Path, name: str, recipe: ClassifyRecipe | PretrainRecipe | None, **arguments: Any) -> Path:
    """A weights file of a fresh model in which every parameter affects the output."""
    torch.manual_seed(0)
    model = create_model(name, **arguments)
    for key, value in model.named_parameters():
        if "norm" in key or key.endswith("bias"):
            nn.init.normal_(value, mean=float(key.endswith("weight")), std=0.2)
    texts = {}
    if recipe is not None:
        key = CLASSIFY_KEY if isinstance(recipe, ClassifyRecipe) else METADATA_KEY
        texts = {key: recipe.to_json()}
    save_model(model, path, metadata=texts)
    return path


def write_detector(folder: Path, **arguments: Any) -> tuple[Path, nn.Module]:
    """A weights file of a nano detector, and the model."""
    torch.manual_seed(0)
    model = create_model("maskfeat_mvitv2_nano_detector", classes=3, **arguments, **SMALL).eval()
    save_model(model, folder / "best.safetensors", metadata={DETECT_KEY: DETECT.to_json()})
    return folder / "best.safetensors", model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a nano classifier and a nano pre-training model, and the classifier's without graphs."""
    folder = tmp_path_factory.mktemp("export")
    write(folder / "best.safetensors", "maskfeat_mvitv2_nano_classifier", CLASSIFY, classes=5, **SMALL)
    recipe = PretrainRecipe(CLIP, MaskRecipe(cell=(2, 16, 16)))
    write(folder / "weights.safetensors", "maskfeat_mvitv2_nano", recipe, **SMALL)
    export(folder / "best.safetensors", folder / "classifier.pyth")
    export(folder / "best.safetensors", folder / "encoder.safetensors", part="encoder")
    return folder


@pytest.fixture(scope="module")
def graphs(folder: Path) -> tuple[Path, Path]:
    """The nano classifier as an ONNX file and as a program."""
    paths = (folder / "classifier.onnx", folder / "classifier.pt2")
    for path in paths:
        assert main(["export", str(folder / "best.safetensors"), str(path)]) == 0
    return paths


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Weights of a model that is exported in a second or two."""
    recipe = ClassifyRecipe(SMALL_CLIP, class_names=NAMES)
    return write(tmp_path / "small.safetensors", "mvitv2_nano", recipe, classes=5, **SMALL)


def frames(batch: int, clip: ClipRecipe = CLIP) -> np.ndarray:
    """Random frames uint8 [B, T, H, W, 3]."""
    shape = (batch, clip.frames, clip.crop, clip.crop, 3)
    return np.random.default_rng(batch).integers(0, 256, shape, dtype=np.uint8)


def normalized(pixels: np.ndarray, mean: float = 0.45, std: float = 0.225) -> Tensor:
    """[B, 3, T, H, W] by the formula, in numpy."""
    return torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32)).permute(0, 4, 1, 2, 3)


def onnx_run(path: Path, **inputs: np.ndarray) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, inputs)]


@functools.cache
def program(path: Path) -> nn.Module:
    return torch.export.load(str(path)).module()


def program_run(path: Path, *inputs: Tensor) -> list[Tensor]:
    outputs = program(path)(*inputs)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def run_graph(path: Path, **inputs: np.ndarray) -> list[Tensor]:
    """Outputs of an ONNX file or a program."""
    if path.suffix == ".onnx":
        return onnx_run(path, **inputs)
    return program_run(path, *map(torch.from_numpy, inputs.values()))


def texts_of(path: Path) -> dict[str, str]:
    """Metadata of an ONNX file or a program."""
    if path.suffix == ".onnx":
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    extra = dict.fromkeys(("model", "arguments", "part", "input", "classify", "pretrain", "encoder"), "")
    torch.export.load(str(path), extra_files=extra)
    return {key: value for key, value in extra.items() if value}


def test_nano_classifier_gives_the_same_logits_as_a_graph(folder: Path, graphs: tuple[Path, Path]) -> None:
    weights = folder / "best.safetensors"
    for path in graphs:
        texts = texts_of(path)
        assert ClassifyRecipe.from_json(texts.pop("classify")) == CLASSIFY
        assert set(texts) == {"model", "arguments", "part", "input"}
        assert (texts["part"], texts["input"]) == ("model", "uint8")
        rebuilt = create_model(texts["model"], **json.loads(texts["arguments"]))
        assert rebuilt.created_as == load_model(weights).created_as
    for batch in (1, 2, 5):
        pixels = frames(batch)
        with torch.inference_mode():
            expected = load_model(weights)(normalized(pixels))
        assert expected.abs().max() > 0.1
        for path in graphs:
            torch.testing.assert_close(run_graph(path, clips=pixels), [expected], **CLOSE)


def test_nano_encoder_gives_the_same_features_as_a_graph(folder: Path, tmp_path: Path) -> None:
    weights, graphs = folder / "weights.safetensors", (tmp_path / "a.onnx", tmp_path / "a.pt2")
    export(weights, graphs[0], part="encoder", opset=18)
    export(weights, graphs[1], part="encoder", input="float")
    for path, kind in zip(graphs, ("uint8", "float"), strict=True):
        texts = texts_of(path)
        recipe = ClassifyRecipe(CLIP, views=1, crops=1, short_side=64)
        assert ClassifyRecipe.from_json(texts.pop(ENCODER_KEY)) == recipe
        assert set(texts) == {"model", "arguments", "part", "input"}
        assert (texts["part"], texts["input"]) == ("encoder", kind)
    for batch in (1, 4):
        pixels = frames(batch)
        model, clips = load_model(weights), normalized(pixels)
        with torch.inference_mode():
            expected = [model.features(clips), model.features(clips, pooled=False)]
        assert expected[1].shape == (batch, 4, 4, 4, 32)
        torch.testing.assert_close(onnx_run(graphs[0], clips=pixels), expected, **CLOSE)
        torch.testing.assert_close(program_run(graphs[1], clips), expected, **CLOSE)


def test_encoder_of_a_classifier_is_a_file_of_its_own(folder: Path) -> None:
    whole, clips = load_model(folder / "best.safetensors"), normalized(frames(2))
    encoder = load_model(folder / "encoder.safetensors")
    assert not [name for name in encoder.state_dict() if "head" in name]
    for pooled in (True, False):
        assert torch.equal(encoder.features(clips, pooled=pooled), whole.features(clips, pooled=pooled))
    assert read_testing_recipe(folder / "encoder.safetensors") == ClassifyRecipe(CLIP, views=3)
    # The next verbs take it: features of a video, and another head on top.
    video = np.random.default_rng(0).integers(0, 256, (20, 70, 90, 3), dtype=np.uint8)
    own = load_encoder(folder / "encoder.safetensors", device="cpu").features(video, fps=30)
    theirs = load_encoder(folder / "best.safetensors", device="cpu").features(video, fps=30)
    assert torch.equal(own, theirs)
    classifier = create_model("maskfeat_mvitv2_nano_classifier", classes=3, **SMALL)
    report = load_into(classifier, read_state(folder / "encoder.safetensors"), allow_missing=("head.*",))
    assert set(report.new) == {"head.projection.weight", "head.projection.bias"}


def test_model_is_exported_to_pyslowfast(folder: Path) -> None:
    checkpoint = torch.load(folder / "classifier.pyth", weights_only=True)
    assert set(checkpoint) == {"model_state"}
    own = read_state(folder / "best.safetensors")
    assert checkpoint["model_state"].keys() == own.keys()
    assert all(torch.equal(checkpoint["model_state"][name], value) for name, value in own.items())
    imported = load_slowfast(folder / "classifier.yaml", folder / "classifier.pyth")
    assert not imported.report.ignored_keys
    clips, model = normalized(frames(2)), load_model(folder / "best.safetensors")
    assert torch.equal(imported.model(clips), model(clips))
    recipe = imported.clip.recipe
    clip = recipe.clip
    assert (clip.frames, clip.stride, clip.target_fps, clip.crop) == (8, 2, 30, 64)
    assert (clip.mean, clip.std, imported.clip.channels) == (0.45, 0.225, "rgb")
    assert (recipe.sampling, recipe.views, recipe.crops) == ("clip", 3, 1)


def test_segments_go_back_to_pyslowfast_in_its_order_of_channels(tmp_path: Path) -> None:
    """Its SSv2 frames are BGR; our models expect RGB."""
    clip = ClipRecipe(
        frames=4, stride=1.5, crop=32, target_fps=None, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    recipe = ClassifyRecipe(clip, sampling="segments", views=1, crops=3, short_side=32)
    weights = write(
        tmp_path / "a.safetensors", "mvitv2_nano", recipe, classes=5, clip_size=(4, 32, 32), **SMALL
    )
    assert export(weights, tmp_path / "a.pyth").paths == (tmp_path / "a.pyth", tmp_path / "a.yaml")
    options = yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert options["DATA"]["REVERSE_INPUT_CHANNEL"] is True
    assert options["DATA"]["MEAN"] == [0.3, 0.4, 0.5]
    assert "SAMPLING_RATE" not in options["DATA"]  # PySlowFast has no fractional stride
    imported = load_slowfast(tmp_path / "a.yaml", tmp_path / "a.pyth").clip
    assert (imported.recipe.clip.mean, imported.recipe.clip.std, imported.channels) == (
        clip.mean,
        clip.std,
        "rgb",
    )
    assert (imported.recipe.sampling, imported.recipe.views, imported.recipe.crops) == ("segments", 1, 3)


@pytest.mark.parametrize(
    "keys",
    [
        {"views": 3, "crops": 1, "short_side": 40},
        {"views": 2, "crops": 3, "short_side": 32, "average": "logits"},
        {"views": 1, "crops": 3, "short_side": 32, "sampling": "segments"},
    ],
    ids=["one crop", "three crops", "segments"],
)
def test_pyslowfast_round_trip_keeps_all_but_the_class_names(tmp_path: Path, keys: dict[str, Any]) -> None:
    statistics = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    recipe = ClassifyRecipe(dataclasses.replace(SMALL_CLIP, **statistics), class_names=NAMES, **keys)
    weights = write(
        tmp_path / "a.safetensors", "mvitv2_nano", recipe, classes=5, clip_size=(4, 32, 32), **SMALL
    )
    assert main(["export", str(weights), str(tmp_path / "c.pyth")]) == 0
    files = ["--config", str(tmp_path / "c.yaml"), "--checkpoint", str(tmp_path / "c.pyth")]
    assert main(["import-slowfast", *files, str(tmp_path / "out")]) == 0
    back = tmp_path / "out/weights.safetensors"
    assert read_testing_recipe(back) == dataclasses.replace(recipe, class_names=())
    clips = normalized(frames(2, SMALL_CLIP))
    with torch.inference_mode():
        assert torch.equal(load_model(back)(clips), load_model(weights)(clips))


@pytest.mark.parametrize(
    ("name", "arguments", "ending"),
    [
        ("mvitv2_nano", {"class_token": False, "head": "mean", "absolute_positions": "joint"}, "pt2"),
        ("maskfeat_mvitv2_nano_classifier", {"head": "attentive"}, "onnx"),
        ("maskfeat_mvitv2_nano_classifier", {"head": "linear"}, "pt2"),
    ],
)
def test_every_kind_of_classifier_is_exported(
    tmp_path: Path, name: str, arguments: dict[str, Any], ending: str
) -> None:
    recipe = ClassifyRecipe(SMALL_CLIP)
    weights = write(tmp_path / "a.safetensors", name, recipe, classes=7, **{**SMALL, **arguments})
    exported = export(weights, tmp_path / f"a.{ending}")
    assert exported.inputs == {"clips": "uint8 [batch, 4, 32, 32, 3]"}
    assert exported.outputs == {"logits": "float32 [batch, 7]"}
    assert exported.batches == (1, 3)
    assert exported.difference.output == "logits"
    assert 0 <= exported.difference.relative < 1e-5
    pixels = frames(2, SMALL_CLIP)
    with torch.inference_mode():
        expected = load_model(weights)(normalized(pixels))
    torch.testing.assert_close(run_graph(exported.paths[0], clips=pixels), [expected], **CLOSE)


@pytest.mark.parametrize("name", ["mvitv2_nano", "maskfeat_mvitv2_nano_classifier"])
def test_encoder_of_a_classifier_is_a_graph_with_its_norm(tmp_path: Path, name: str) -> None:
    """The norm comes after the mean in one of the two models, and before it in the other."""
    weights = write(tmp_path / "a.safetensors", name, ClassifyRecipe(SMALL_CLIP), classes=5, **SMALL)
    export(weights, tmp_path / "a.pt2", part="encoder")
    pixels, model = frames(2, SMALL_CLIP), load_model(weights)
    with torch.inference_mode():
        expected = [model.features(normalized(pixels), pooled=pooled) for pooled in (True, False)]
    torch.testing.assert_close(program_run(tmp_path / "a.pt2", torch.from_numpy(pixels)), expected, **CLOSE)


@pytest.mark.parametrize("ending", [pytest.param("onnx", marks=pytest.mark.slow), "pt2"])
def test_pretraining_model_is_exported_with_its_mask(tmp_path: Path, ending: str) -> None:
    recipe = PretrainRecipe(SMALL_CLIP, MaskRecipe(cell=(4, 16, 16)))
    weights = write(tmp_path / "a.safetensors", "maskfeat_mvitv2_nano", recipe, blank_hidden=True, **SMALL)
    exported = export(weights, tmp_path / f"a.{ending}", batch=2)
    assert exported.inputs == {"clips": "uint8 [2, 4, 32, 32, 3]", "mask": "bool [2, 1, 2, 2]"}
    assert exported.outputs == {"predictions": "float32 [2, 2, 2, 2, 108]"}
    assert exported.batches == (2,)
    pixels = frames(2, SMALL_CLIP)
    mask = np.array([[[[True, False], [False, False]]], [[[False, True], [True, False]]]])
    with torch.inference_mode():
        expected = load_model(weights)(normalized(pixels), torch.from_numpy(mask))
    torch.testing.assert_close(run_graph(exported.paths[0], clips=pixels, mask=mask), [expected], **CLOSE)


def test_pixels_are_normalized_per_channel(tmp_path: Path) -> None:
    clip = ClipRecipe(frames=4, stride=2, crop=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    weights = write(tmp_path / "a.safetensors", "mvitv2_nano", ClassifyRecipe(clip), classes=5, **SMALL)
    (result,) = program_run(
        export(weights, tmp_path / "a.pt2").paths[0], torch.from_numpy(frames(3, SMALL_CLIP))
    )
    clips = normalized(frames(3, SMALL_CLIP), np.array(clip.mean), np.array(clip.std))
    torch.testing.assert_close(result, load_model(weights)(clips).detach(), **CLOSE)


def test_verb_prints_what_it_wrote(tmp_path: Path, small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "a.pt2"
    assert main(["export", str(small), str(out), "--batch", "dynamic", "--input", "float"]) == 0
    output = capfd.readouterr()
    assert output.err == f"writing {out} and comparing it with the model\n"
    head, inputs, outputs, difference = output.out.splitlines()
    assert re.fullmatch(rf"{re.escape(str(out))}  \(0\.\d MB\)", head)
    assert inputs == "  input   clips: float32 [batch, 3, 4, 32, 32]"
    assert outputs == "  output  logits: float32 [batch, 5]"
    assert re.fullmatch(
        r"  largest difference from the model: [\d.e-]+ in logits, relative to values up to [\d.]+ "
        r"\(batches of 1 and 3\)",
        difference,
    )
    assert [path.name for path in out.parent.iterdir()] == ["a.pt2"]


def test_weights_without_recipe_are_exported_for_floats(tmp_path: Path) -> None:
    weights = write(tmp_path / "a.safetensors", "mvitv2_nano", None, clip_size=(4, 32, 48), **SMALL)
    for ending in ("pt2", "onnx"):
        with pytest.raises(
            UserError, match=r"a.safetensors contains weights without a recipe, .* use --input float"
        ):
            export(weights, tmp_path / f"b.{ending}")
    assert export(weights, tmp_path / "b.pt2", input="float").inputs == {
        "clips": "float32 [batch, 3, 4, 32, 48]"
    }
    export(weights, tmp_path / "c.safetensors", part="encoder")
    with pytest.raises(UserError, match="weights without a recipe"):
        read_testing_recipe(tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="PySlowFast supports square clips only"):
        export(weights, tmp_path / "d.pyth")
    names = ["a.safetensors", "b.pt2", "c.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            1e-3,
            r"its logits differ from the model's by 0\.001 relative to values up to [\d.]+; the tolerance",
        ),
        (float("nan"), "its logits differ from the model's by nan"),
    ],
)
@pytest.mark.parametrize(("ending", "format"), [("pt2", "program"), ("onnx", "onnx")])
def test_file_with_other_outputs_is_not_kept(
    tmp_path: Path,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ending: str,
    format: str,
    change: float,
    words: str,
) -> None:
    written: dict[Path, Graph] = {}

    def save(path: Path, graph: Graph, example: Any, **options: Any) -> None:
        path.write_bytes(b"a graph")
        written[path] = graph

    def load(path: Path) -> Any:
        return lambda inputs: tuple(output + change for output in written[path].run(inputs))

    monkeypatch.setattr(task, f"save_{format}", save)
    monkeypatch.setattr(task, f"load_{format}", load)
    out = tmp_path / f"a.{ending}"
    assert main(["export", str(small), str(out)]) == 1
    assert re.search(words, capsys.readouterr().err)
    assert not out.exists()
    out.write_bytes(b"an earlier, good one")
    assert main(["export", str(small), str(out), "--overwrite"]) == 1
    assert out.read_bytes() == b"an earlier, good one"
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, small.name]
    change = 0.0
    assert main(["export", str(small), str(out), "--overwrite"]) == 0
    assert out.read_bytes() == b"a graph"


@pytest.mark.parametrize("format", ["safetensors", "pyth"])
def test_weights_that_were_written_wrong_are_not_kept(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    def spoil(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            model.get_parameter("blocks.0.attn.rel_pos_h")[0, 0] += 0.1
        return model

    if format == "pyth":
        state = task.slowfast_state
        monkeypatch.setattr(task, "slowfast_state", lambda model: state(spoil(load_model(small))))
    else:
        save = task.save_model
        monkeypatch.setattr(
            task, "save_model", lambda model, path, **texts: save(spoil(load_model(small)), path, **texts)
        )
    with pytest.raises(RunFailed, match=r"its logits differ .* \(--tolerance\)"):
        export(small, tmp_path / f"a.{format}")
    assert [path.name for path in tmp_path.iterdir()] == [small.name]
    assert export(small, tmp_path / f"a.{format}", tolerance=0.9).difference.relative > 1e-4


def test_model_without_finite_output_is_not_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("mvitv2_nano", classes=5, **SMALL)
    # Finite weights whose products are not.
    nn.init.constant_(model.get_parameter("head.projection.weight"), 3e38)
    recipe = ClassifyRecipe(SMALL_CLIP)
    save_model(model, tmp_path / "a.safetensors", metadata={CLASSIFY_KEY: recipe.to_json()})
    with pytest.raises(RunFailed, match=r"the model's logits of random clips are not finite; .* damaged"):
        export(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_existing_file_is_replaced_only_on_request(tmp_path: Path, small: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"a\.safetensors exists: .*--overwrite to replace it"):
        export(small, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == b"precious"
    export(small, tmp_path / "a.safetensors", overwrite=True)
    assert load_model(tmp_path / "a.safetensors").created_as == load_model(small).created_as
    (tmp_path / "b.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"b\.yaml exists: "):
        export(small, tmp_path / "b.pyth")
    assert not (tmp_path / "b.pyth").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["a.tflite"],
            r"a\.tflite: unknown file extension '\.tflite'; use one of \.safetensors \(safetensors\), ",
        ),
        (["a.onnx", "--format", "onyx"], r"format 'onyx' is unknown; did you mean 'onnx'"),
        (
            ["a.pt", "--format", "torch"],
            r"a\.pt: a file of --format torch has the extension \.pt2; change the name",
        ),
        (["a.pt2", "--part", "head"], r"part 'head' is unknown; choose from model, encoder"),
        (["a.pt2", "--input", "int8"], r"input 'int8' is unknown; did you mean 'uint8'"),
        (["a.pt2", "--batch", "0"], "export.batch 0 must be at least 1"),
        (["a.pt2", "--opset", "18"], r"--opset has no effect with --format torch: leave it out, or use onnx"),
        (
            ["a.pyth", "--batch", "2"],
            r"--batch has no effect with --format slowfast: leave it out, or use torch",
        ),
        (["a.safetensors", "--input", "float"], r"--input has no effect with --format safetensors"),
        (["a.onnx", "--opset", "9"], r"opset 9 is not supported; use one of 18 to 23"),
        (["a.pt2", "--tolerance", "0"], "export.tolerance 0 must be above 0 and below 1"),
        (["."], r"unknown file extension ''"),
        (["folder.onnx"], r"folder\.onnx is a folder; give the name of the file to write"),
    ],
)
def test_wrong_argument_is_named(
    tmp_path: Path,
    small: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(small), *arguments]) == 2
    assert re.search(rf"^videomaskfeat export: .*{words}", capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.onnx", small.name]


def test_batch_that_is_not_a_number_is_named(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(small), "a.onnx", "--batch", "many"]) == 2
    words = "argument '--batch many': export.batch 'many' must be an integer, or dynamic"
    assert capsys.readouterr().err == f"videomaskfeat export: {words}\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.safetensors", None, ": no such file"),
        ("step_10.pt", None, " is a PyTorch checkpoint, .*import-slowfast"),
        ("cut.safetensors", b"\x10\0\0", " is not a safetensors file"),
    ],
)
def test_weights_that_cannot_be_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["export", str(tmp_path / name), str(tmp_path / "a.pt2")]) == 2
    assert re.search(rf"^videomaskfeat export: .*{name}{words}", capsys.readouterr().err)
    assert not (tmp_path / "a.pt2").exists()


def test_missing_extra_is_named_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    assert main(["export", str(tmp_path / "none.safetensors"), str(tmp_path / "a.onnx")]) == 2
    output = capsys.readouterr().err
    assert "ONNX files need onnxscript, which is not installed; pip install 'videomaskfeat[export]'" in output


@pytest.mark.parametrize("head", ["linear", "attentive"])
def test_probe_does_not_go_back_to_pyslowfast(tmp_path: Path, head: str) -> None:
    recipe = ClassifyRecipe(SMALL_CLIP)
    name = "maskfeat_mvitv2_nano_classifier"
    weights = write(tmp_path / "a.safetensors", name, recipe, classes=5, head=head, **SMALL)
    with pytest.raises(UserError, match=f"cannot export head '{head}' to PySlowFast"):
        export(weights, tmp_path / "a.pyth")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    export(weights, tmp_path / "a.pyth", part="encoder")
    assert not [key for key in read_state(tmp_path / "a.pyth") if "head" in key]


@pytest.mark.parametrize("format", ["safetensors", "pyth"])
def test_full_disk_leaves_nothing_behind(
    tmp_path: Path, small: Path, format: str, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    with full_disk(20_000):
        assert main(["export", str(small), str(tmp_path / f"a.{format}")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == [small.name]


def test_documented_code_runs(
    graphs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(graphs[0].parent)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/how_to/export.md").read_text(), re.M | re.S)
    assert len(blocks) == 2
    messages = []
    for block in blocks:
        exec(block, {})
        messages.append(capsys.readouterr().out)
    assert messages[0] == messages[1]
    assert re.fullmatch(rf"\['({'|'.join(NAMES)})', '\1'\]\n", messages[0])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("ending", ["onnx", "pt2", "pyth"])
@pytest.mark.parametrize("part", ["model", "encoder"])
def test_full_size_is_exported(tmp_path: Path, part: str, ending: str) -> None:
    recipe = ClassifyRecipe(ClipRecipe(frames=16, stride=4, crop=224))
    name = "maskfeat_mvitv2_s_classifier"
    weights = write(tmp_path / "a.safetensors", name, recipe, drop_path=0.1)
    exported = export(weights, tmp_path / f"a.{ending}", part=part, batch=1 if ending != "pyth" else None)
    assert exported.difference.relative < 1e-5


@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_detector_takes_clips_and_any_number_of_boxes(tmp_path: Path, format: str) -> None:
    weights, model = write_detector(tmp_path, scene=True)
    path = tmp_path / ("detector.pt2" if format == "torch" else "detector.onnx")
    exported = export(weights, path)
    assert exported.inputs == {"clips": "uint8 [batch, 4, 32, 32, 3]", "boxes": "float32 [boxes, 5]"}
    assert exported.outputs == {"logits": "float32 [boxes, 3]"}
    run = export_module.load_program(path) if format == "torch" else export_module.load_onnx(path)
    pixels = frames(2, SMALL_CLIP)
    boxes = torch.tensor([[1.0, 2, 3, 20, 30], [0, 0, 0, 31, 9], [1, 5.5, 5, 9, 28], [0, 8, 8, 24, 24]])
    for count in (1, 2, 4):
        with torch.no_grad():
            expected = model(normalized(pixels), boxes[:count])
        (result,) = run((torch.from_numpy(pixels), boxes[:count]))
        torch.testing.assert_close(result, expected, **CLOSE)
    if format == "torch":
        assert run((torch.from_numpy(pixels), boxes[:0]))[0].shape == (0, 3)


def test_detector_is_exported_to_other_formats_or_refused(tmp_path: Path) -> None:
    weights, _ = write_detector(tmp_path)
    copy = tmp_path / "copy.safetensors"
    assert export(weights, copy).difference.output == "logits"
    assert recipe_texts(copy) == {DETECT_KEY: DETECT.to_json()}
    with pytest.raises(UserError, match=r"cannot export an action detector to PySlowFast; use format onnx"):
        export(weights, tmp_path / "detector.pyth")
    assert export(weights, tmp_path / "encoder.pyth", part="encoder").difference.relative == 0
