"""Training a tokenizer: a tiny run end to end, resuming it, two ranks, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import simplejson
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.engine.toy import metrics
from tests.jobs.conftest import Verb
from tests.jobs.ranks import run_verb
from tests.models.test_published_vit import dino_state
from videomaskfeat.config import load_config
from videomaskfeat.data.batches import PretrainBatch
from videomaskfeat.engine import distributed
from videomaskfeat.engine.optim import CosineRamp
from videomaskfeat.jobs.tokenizer import (
    DvaeStep,
    Relaxation,
    VqStep,
    build_perceptual,
    final_lines,
    frames_of,
    heldout_frames,
    sum_over_ranks,
)
from videomaskfeat.models import create_model
from videomaskfeat.models.published_vit import MEAN
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.tokenizers import (
    Codebook,
    CodeStatistics,
    DiscreteVAE,
    VectorQuantizer,
    create_tokenizer,
    load_tokenizer,
)
from videomaskfeat.recipe import METADATA_KEY, ClipRecipe, PretrainRecipe
from videomaskfeat.schemas.tokenizer import TokenizerConfig

TINY = [
    "frames.size=16",
    "frames.per_video=8",
    "frames.flip=0",
    "optim.epochs=3",
    "optim.warmup_epochs=0",
    "optim.batch_size=32",
    "optim.base_batch_size=32",
    "optim.learning_rate=5e-3",
    "data.workers=0",
    "run.pictures=0",
]
ARGUMENTS = {
    "dvae": "{vocabulary: 16, stride: 4, width: 32, blocks: 1, code_width: 8}",
    "vq": "{vocabulary: 16, stride: 4, width: 32, blocks: 1, code_width: 4, decay: 0.8}",
}
Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(sample: Path, tmp_path: Path, verb: Verb) -> Train:
    """``train(kind, *overrides) -> (exit code, stderr)`` of a tiny run in ``tmp_path / "run"``."""

    def run_training(kind: str, *overrides: str) -> tuple[int, str]:
        data = [f"data.train={sample / 'train.csv'}", f"run.folder={tmp_path / 'run'}"]
        model = [f"model.name={kind}", f"model.arguments={ARGUMENTS.get(kind, '{}')}"]
        code, _, err = verb("train-tokenizer", *TINY, *model, *data, *overrides)
        return code, err

    return run_training


@pytest.mark.parametrize("kind", ["dvae", "vq"])
def test_run_learns_to_reconstruct_and_leaves_what_is_needed(
    kind: str, train: Train, sample: Path, tmp_path: Path
) -> None:
    """80 steps: the decoder learns what the tokens stand for."""
    code, text = train(kind, f"data.validation={sample / 'val.csv'}", "optim.epochs=20", "run.pictures=2")
    assert code == 0, text
    run = tmp_path / "run"
    for name in ("config.yaml", "log.txt", "summary.json", "report.html", "pictures/reconstructions.png"):
        assert (run / name).exists(), name
    summary = simplejson.loads((run / "summary.json").read_text())
    assert summary["heldout_frames"] == 2
    assert summary["heldout_trained"] < 0.95 * summary["heldout_untrained"]  # of two frames
    assert 1 <= summary["heldout_perplexity"] <= summary["heldout_used_codes"] <= 16
    logged = metrics(run)
    assert logged[-1]["reconstruction"] < 0.8 * logged[0]["reconstruction"]
    names = {"dvae": {"kl", "temperature"}, "vq": {"commitment"}}[kind]
    assert names | {"reconstruction", "perplexity", "used_codes"} <= set(logged[0])
    page = (run / "report.html").read_text()
    for word in (
        "Held-out reconstruction",
        "Codes in use",
        "Perplexity of the codes",
        "frames, tokens and reconstructions",
    ):
        assert word in page
    for word in ("best single color", "trained tokenizer", "perplexity", "codes used there", "report.html"):
        assert word in text
    with safe_open(str(run / "weights.safetensors"), "pt") as file:
        metadata = file.metadata()
    recipe = json.loads(metadata["tokenizer"])
    assert {key: recipe[key] for key in ("kind", "vocabulary", "stride", "size")} == {
        "kind": kind, "vocabulary": 16, "stride": 4, "size": 16,
    }  # fmt: skip
    assert recipe["mean"] == [pytest.approx(0.45)]
    tokenizer = load_tokenizer(run / "weights.safetensors", kind=kind)
    assert tokenizer.tokens(torch.rand(1, 3, 16, 16)).shape == (1, 4, 4)


@pytest.mark.parametrize("kind", ["dvae", "vq"])
def test_interrupted_run_equals_the_uninterrupted_one(
    kind: str, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: weights, codebook, counts, and every number in the log, temperature and draws included."""
    overrides = ["optim.accumulate=2", "optim.epochs=2"]
    assert train(kind, *overrides, f"run.folder={tmp_path / 'whole'}")[0] == 0
    step_class = {"dvae": DvaeStep, "vq": VqStep}[kind]
    calls = 0
    own = step_class.__call__

    def stop_once(self: Any, batch: PretrainBatch) -> Any:
        nonlocal calls
        calls += 1
        if calls == 10:  # in the second micro-batch of step 5 of 8
            raise KeyboardInterrupt
        return own(self, batch)

    monkeypatch.setattr(step_class, "__call__", stop_once)
    every = [*overrides, f"run.folder={tmp_path / 'cut'}", "run.checkpoint_minutes=0"]
    assert train(kind, *every)[0] == 130
    assert len(metrics(tmp_path / "cut")) == 4
    assert train(kind, *every)[0] == 0
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    if kind == "vq":
        assert one["codebook.counts"].sum() > 0
    else:
        temperatures = [row["temperature"] for row in metrics(tmp_path / "whole")]
        expected = [CosineRamp(1.0, 0.0625)(step / 8) for step in range(8)]
        assert temperatures == pytest.approx(expected, rel=1e-6)


def test_perceptual_loss_takes_a_dino_checkpoint(tmp_path: Path) -> None:
    torch.save(dino_state(), tmp_path / "dino.pth")
    keys = [f"perceptual.weights={tmp_path}/dino.pth", "perceptual.depths=[1,3]"]
    config = load_config(TokenizerConfig, None, [*keys, "perceptual.depth_weights=[1,0.5]"])
    perceptual = build_perceptual(config)
    assert perceptual is not None
    assert (perceptual.depths, perceptual.weights) == ((1, 3), (1, 0.5))
    assert (perceptual.size, perceptual.frames) == (32, 1)
    torch.testing.assert_close(perceptual.mean.flatten(), torch.tensor(MEAN))


def test_perceptual_loss_takes_a_frozen_encoder_of_ours(train: Train, tmp_path: Path) -> None:
    weights = tmp_path / "encoder.safetensors"
    encoder = create_model("maskfeat_mvitv2_nano", depth=2, width=8, widen_at=(1,), clip_size=(4, 32, 32))
    recipe = PretrainRecipe(ClipRecipe(frames=4, stride=2, crop=32))
    save_model(encoder, weights, metadata={METADATA_KEY: recipe.to_json()})
    before = weights.read_bytes()
    perceptual = [f"perceptual.weights={weights}", "perceptual.depths=[1,2]", "optim.epochs=1"]
    code, text = train("vq", *perceptual)
    assert code == 0, text
    assert "of the features of" in text
    assert "after block 1, 2" in text
    logged = metrics(tmp_path / "run")[-1]
    total = logged["reconstruction"] + logged["perceptual"] + 0.25 * logged["commitment"]
    assert logged["loss"] == pytest.approx(total, rel=1e-5)
    assert weights.read_bytes() == before
    names = load_file(tmp_path / "run" / "weights.safetensors")
    assert not [name for name in names if "patch_embed" in name]  # the encoder is not saved with it


def batch(frames: int = 4) -> PretrainBatch:
    clips = torch.randint(0, 256, (frames, 1, 16, 16, 3), dtype=torch.uint8)
    return PretrainBatch(clips, torch.zeros(frames, 1, 1, 1, dtype=torch.bool), torch.arange(frames))


def test_relaxation_in_closed_form() -> None:
    """Half a cosine from 1 to 1/16 over half of the run; the KL weight rises over a fifth of it. 1e-12."""
    relaxation = Relaxation(CosineRamp(1.0, 0.0625), anneal=0.5, kl_weight=0.2, kl_warmup=0.2)
    assert relaxation.at(0.0) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert relaxation.at(0.1) == pytest.approx(
        (0.0625 + 0.9375 * (1 + 0.8090169943749475) / 2, 0.1), abs=1e-9
    )
    assert relaxation.at(0.25) == pytest.approx((0.53125, 0.2), abs=1e-12)
    assert relaxation.at(0.5) == pytest.approx((0.0625, 0.2), abs=1e-12)
    assert relaxation.at(1.0) == pytest.approx((0.0625, 0.2), abs=1e-12)
    assert Relaxation(CosineRamp(1.0, 1.0), kl_weight=3.0).at(0.0) == (1.0, 3.0)


def test_dvae_step_sums_its_parts() -> None:
    """float32, 1e-5."""
    torch.manual_seed(0)
    tokenizer = DiscreteVAE(vocabulary=16, stride=4, width=16, blocks=1, code_width=8)
    relaxation = Relaxation(CosineRamp(2.0, 0.5), kl_weight=0.3)
    step = DvaeStep(tokenizer, tokenizer, relaxation=relaxation)
    step.after_step(1.0, [])
    frames = batch()
    torch.manual_seed(1)
    loss, figures, _ = step(frames)
    torch.manual_seed(1)
    pictures = frames_of(frames.clips)
    assert pictures[2, 1, 5, 7] == frames.clips[2, 0, 5, 7, 1] / 255
    coding = tokenizer(pictures, 0.5)
    error = (coding.reconstruction - (pictures - 0.45) / 0.225).square().mean()
    shares = torch.softmax(coding.logits, 1)
    divergence = (shares * (shares * 16).log()).sum(1).mean()
    assert figures["temperature"] == 0.5
    assert loss.item() == pytest.approx((error + 0.3 * divergence).item(), rel=1e-5)
    assert figures["kl"].item() == pytest.approx(divergence.item(), rel=1e-5)


def test_codes_move_once_a_step_by_all_its_micro_batches() -> None:
    """Two micro-batches and one of both: the same counts and sums; float32 sums in another order, 1e-5."""
    whole = batch(4)
    books: list[Codebook] = []
    for micro in (1, 2):
        torch.manual_seed(0)
        tokenizer = VectorQuantizer(vocabulary=6, stride=4, width=16, blocks=1, code_width=4)
        step = VqStep(tokenizer, tokenizer, commitment=0.25)
        tokenizer.codebook.counts.fill_(1.0)
        before = tokenizer.codebook.codes.clone()
        micro_batches = zip(
            whole.clips.chunk(micro), whole.mask.chunk(micro), whole.index.chunk(micro), strict=True
        )
        states = [step(PretrainBatch(*micro_batch)).state for micro_batch in micro_batches]
        assert torch.equal(tokenizer.codebook.codes, before)
        step.after_step(0.5, states)
        assert not torch.equal(tokenizer.codebook.codes, before)
        books.append(tokenizer.codebook)
    torch.testing.assert_close(books[0].counts, books[1].counts, atol=1e-5, rtol=0)
    torch.testing.assert_close(books[0].sums, books[1].sums, atol=1e-5, rtol=1e-5)


def test_heldout_constant_is_the_variance_of_the_pixels() -> None:
    """The error of the mean color; float64, 1e-6."""
    tokenizer = create_tokenizer("vq", vocabulary=4, stride=4, width=8, blocks=1, code_width=2)
    pictures = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    heldout = heldout_frames(tokenizer, [pictures[:2], pictures[2:]])
    truth = ((pictures - 0.45) / 0.225).double()
    assert heldout.frames == 5
    assert heldout.constant == pytest.approx(truth.var((0, 2, 3), correction=0).mean().item(), rel=1e-6)
    with torch.no_grad():
        decoded = tokenizer.decode(tokenizer.tokens(pictures)).double()
    assert heldout.reconstruction == pytest.approx((decoded - truth).square().mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.name=vqvae", "tokenizer 'vqvae' is unknown; did you mean 'dvae'?"),
        ("model.arguments={vocabulay: 8}", "argument 'vocabulay' is unknown; did you mean 'vocabulary'?"),
        ("frames.size=18", "frames.size 18 is not a multiple of the tokenizer's stride 4"),
        ("gumbel.end_temperature=0", "gumbel.end_temperature 0 must be above 0"),
        ("gumbel.anneal=0", "gumbel.anneal 0 must be above 0 and at most 1"),
        ("gumbel.kl_weight=-1", "gumbel.kl_weight -1 must be at least 0"),
        ("optim.ema_decay=0.9", "optim.ema_decay is not used in training a tokenizer"),
        ("run.compile=true", "run.compile is not used"),
        ("perceptual.depths=[1]", "perceptual.depths is set but perceptual.weights is not"),
        ("perceptual.weights=gone.safetensors", "gone.safetensors: no such file"),
        ("data.train=", "data.train is not set"),
        ("run.folder=", "run.folder is not set"),
        ("run.evaluate_frames=0", "run.evaluate_frames 0 must be at least 1"),
        ("gumble.anneal=1", "unknown section 'gumble'; did you mean 'gumbel'?"),
    ],
)
def test_impossible_settings_are_named(train: Train, sample: Path, override: str, words: str) -> None:
    validation = [f"data.validation={sample / 'val.csv'}"] if "evaluate_frames" in override else []
    code, text = train("dvae", *validation, override)
    assert code == 2
    line = text.strip().splitlines()[-1]
    assert line.startswith("videomaskfeat train-tokenizer: ")
    assert words in line


def test_statistics_of_ranks_and_micro_batches_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of two micro-batches: sums of all, and each code's candidate from exactly one of the four."""
    statistics = [
        CodeStatistics(*(torch.rand(shape) + 1 for shape in ((6,), (6, 3), (6, 3)))) for _ in range(4)
    ]
    shares = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "mean_over_ranks", lambda values: values)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(sum_over_ranks(statistics[2 * rank : 2 * rank + 2]))  # what this rank adds, twice
    counts, sums, candidates = (
        sum(getattr(share, name) for share in shares) / 2 for name in ("counts", "sums", "candidates")
    )
    torch.testing.assert_close(counts, sum(one.counts for one in statistics))
    torch.testing.assert_close(sums, sum(one.sums for one in statistics))
    sources = [
        [
            number
            for number, one in enumerate(statistics)
            if torch.equal(one.candidates[code], candidates[code])
        ]
        for code in range(6)
    ]
    assert all(len(numbers) == 1 for numbers in sources)
    assert {numbers[0] for numbers in sources} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("used", "tokens", "few"), [(63, 1000, True), (64, 1000, False), (24, 100, True), (25, 100, False)]
)
def test_few_codes_in_use_are_remarked_on(used: int, tokens: int, few: bool) -> None:
    summary = {
        "heldout_frames": 4,
        "heldout_tokens": tokens,
        "heldout_constant": 1.0,
        "heldout_untrained": 3.0,
        "heldout_trained": 0.5,
        "heldout_perplexity": 20.0,
        "heldout_used_codes": used,
        "vocabulary": 256,
    }
    text = "\n".join(final_lines(summary))
    assert f"codes used there       {used} of 256, perplexity 20.0" in text
    assert ("few codes are in use" in text) == few


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_move_the_codes_as_one_does(parallel: str, sample: Path, tmp_path: Path) -> None:
    """Sums in another order: figures and weights equal to 1e-3, with steps too small for a token to change
    by rounding. Both go on from one step of one rank, since at the first step the codes are drawn from the
    latents of each rank; after it none is revived."""
    arguments = ARGUMENTS["vq"].replace("}", ", revive_below: 0}")
    overrides = [
        *TINY,
        "model.name=vq",
        f"model.arguments={arguments}",
        "optim.learning_rate=1e-5",
        "run.checkpoint_epochs=1",
        f"data.train={sample / 'train.csv'}",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    run_verb(1, "train-tokenizer", *overrides, f"run.folder={one}")
    (two / "checkpoints").mkdir(parents=True)
    shutil.copy(one / "checkpoints" / "step_00000004.pt", two / "checkpoints")
    run_verb(2, "train-tokenizer", *overrides, f"run.folder={two}", f"run.parallel={parallel}")
    assert len(metrics(one)) == 12
    for first, second in zip(metrics(one)[4:], metrics(two), strict=True):
        for rows in (first, second):
            del rows["grad_norm"]
        assert first == pytest.approx(second, rel=1e-3)
    weights = [load_file(run / "weights.safetensors") for run in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4, msg=name)
