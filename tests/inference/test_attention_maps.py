"""Attention maps: weights of a block against the softmax by definition, rollout, and the films."""

from __future__ import annotations

import itertools
from operator import floordiv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import videomaskfeat
from tests.data.clip_data import write_videos
from tests.jobs.weights_files import CLIP, NAMES, write_classifier, write_pretrained
from tests.reference.attention import slow_attention_weights
from videomaskfeat.cli import main
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.inference.attention_maps import attention_maps, block_attention
from videomaskfeat.stored_recipe import ClassifyRecipe

MVIT: dict[str, Any] = {"depth": 3, "width": 8, "widen_at": (1,), "q_pool_at": (1,), "clip_size": (4, 32, 32)}
# Two blocks attend within units of 1x4x4 tokens, the third one to all tokens. The second one pools.
HIERA: dict[str, Any] = {"stages": (1, 1, 1), "q_pool": 1, "width": 8, "unit_attention": (True, True, False)}
HIERA |= {"mask_unit": (1, 4, 4), "clip_size": (4, 32, 32)}
VIT: dict[str, Any] = {"depth": 3, "width": 24, "heads": 2, "clip_size": (4, 16, 16)}
# Blocks 1 and 3 of the MViT pool keys, block 2 pools queries.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mvit": ("maskfeat_mvitv2_nano", MVIT),
    "mvit classifier, mean": ("maskfeat_mvitv2_nano_classifier", MVIT),
    "mvit classifier, token": ("mvitv2_nano", MVIT),
    "vit": ("maskfeat_vit_nano", VIT),
    "vit with bias": ("vit_nano", {**VIT, "relative_bias": True, "head": "token"}),
    "hiera": ("hiera_pico", HIERA),
    "mae on hiera": ("mae_hiera_pico", HIERA),
    "vit with rotary positions": ("vit_nano", {**VIT, "rotary": True, "class_token": False}),
}


def build(case: str) -> Any:
    torch.manual_seed(0)
    name, arguments = CASES[case]
    model = videomaskfeat.create_model(name, **arguments).eval()
    for parameter in model.parameters():  # so that no row is near the uniform one
        nn.init.normal_(parameter, std=0.4)
    return model


def random_clips(model: Any) -> Tensor:
    return torch.randn(2, 3, *model.clip_size, generator=torch.Generator().manual_seed(1))


def slow_weights(block: Any, tokens: Tensor, grid: TokenGrid) -> Tensor:
    """The softmax of q k^T of a block by the definition, [B, M, P+N', P+N"]."""
    normed = block.norm1(tokens)
    if hasattr(block.attn, "within"):
        return slow_unit_weights(block, normed, grid)
    if hasattr(block.attn, "pool_q"):
        return slow_attention_weights(block.attn, normed, grid)
    heads = block.attn.heads
    q, k, _ = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in block.attn.qkv(normed).chunk(3, dim=-1))
    if block.rotary:
        q, k = (slow_rotation(x, grid) for x in (q, k))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    (bias,) = block._relative_bias
    return (scores if bias is None else scores + bias(grid)).softmax(dim=-1)


def slow_unit_weights(block: Any, normed: Tensor, grid: TokenGrid) -> Tensor:
    """The softmax of a Hiera block, one query after another; tokens are ordered by units."""
    attn, unit = block.attn, block.unit
    units = [range(n // u) for n, u in zip(grid.shape, unit, strict=True)]
    order = [  # the place on the grid of each token
        tuple(a * u + b for a, u, b in zip(which, unit, place, strict=True))
        for which in itertools.product(*units)
        for place in itertools.product(*map(range, unit))
    ]
    q, k, _ = (x.unflatten(-1, (attn.heads, -1)) for x in attn.qkv(normed).chunk(3, dim=-1))  # [B, N, M, d]
    queries = [range(n // p) for n, p in zip(grid.shape, attn.pool, strict=True)]
    places = list(itertools.product(*map(range, grid.shape)))
    rows = []
    for query in itertools.product(*queries):
        cells = [n for n, at in enumerate(order) if tuple(map(floordiv, at, attn.pool)) == query]
        own = tuple(map(floordiv, order[cells[0]], unit))
        pooled = q[:, cells].amax(dim=1)  # [B, M, d]
        scores = (k * pooled[:, None]).sum(dim=-1) * q.shape[-1] ** -0.5  # [B, N, M]
        for n, at in enumerate(order):
            if attn.within and tuple(map(floordiv, at, unit)) != own:
                scores[:, n] = -torch.inf
        share = scores.softmax(dim=1)
        rows.append(share[:, [order.index(place) for place in places]])
    return torch.stack(rows, dim=1).permute(0, 3, 1, 2)


def slow_rotation(x: Tensor, grid: TokenGrid) -> Tensor:
    """Rotate the pairs of channels of vectors [B, M, N, d], one position and pair after another."""
    turned, channels = x.clone(), 2 * (x.shape[-1] // 6)
    for place, position in enumerate(itertools.product(*map(range, grid.shape))):
        for axis, pair in itertools.product(range(3), range(channels // 2)):
            angle = torch.tensor(position[axis] * 10000.0 ** (-2 * pair / channels))
            first = axis * channels + 2 * pair
            a, b = x[:, :, place, first], x[:, :, place, first + 1]
            turned[:, :, place, first] = a * angle.cos() - b * angle.sin()
            turned[:, :, place, first + 1] = a * angle.sin() + b * angle.cos()
    return turned


def entering(model: Any, clips: Tensor, number: int) -> tuple[Tensor, TokenGrid]:
    """What enters a block, in the order of the block, recorded by a hook."""
    caught: list[Any] = []
    handle = model.blocks[number - 1].register_forward_pre_hook(lambda block, inputs: caught.extend(inputs))
    model.features(clips)
    handle.remove()
    return caught[0], caught[1]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("number", [1, 2, 3])
@torch.no_grad()
def test_weights_are_the_softmax_of_the_block(case: str, number: int) -> None:
    model = build(case)
    clips = random_clips(model)
    attention = block_attention(model, clips, block=number)
    tokens, grid = entering(model, clips, number)
    assert attention.inputs == grid
    # Float32 sums in another order.
    torch.testing.assert_close(
        attention.weights, slow_weights(model.blocks[number - 1], tokens, grid), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        attention.weights.sum(dim=-1), torch.ones(attention.weights.shape[:3]), atol=1e-5, rtol=0
    )
    # Mean over heads; the class token's query, or the mean over the grid's; no key of the class token.
    rows = attention.weights.mean(dim=1)
    prefix = model.prefix
    token = getattr(model, "head_kind", "") == "token"
    row = rows[:, 0] if token else rows[:, prefix:].mean(dim=1)
    maps = attention_maps(model, clips, block=number)
    assert maps.shape == (2, *model.token_grid(clips.shape).shape)
    volume = row[:, prefix:].unflatten(1, attention.keys.shape)[:, None]
    expected = nn.functional.interpolate(volume, maps.shape[1:], mode="trilinear")[:, 0]
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_rollout_is_the_product_of_the_matrices(case: str) -> None:
    model = build(case)
    clips, prefix = random_clips(model), model.prefix

    def spread(source: TokenGrid, target: TokenGrid) -> Tensor:
        """Matrix [P + N", P + N]: each pooled token is an equal mixture of the tokens of its cell."""
        matrix = torch.zeros(source.size, target.size)
        places = list(itertools.product(*map(range, source.shape)))
        for column, place in enumerate(itertools.product(*map(range, target.shape))):
            cell = tuple(p * s // t for p, s, t in zip(place, source.shape, target.shape, strict=True))
            matrix[places.index(cell), column] = 1
        return torch.block_diag(torch.eye(prefix), matrix / matrix.sum(dim=1, keepdim=True))

    product = torch.eye(prefix + model.token_grid(clips.shape).size)
    for number in (1, 2, 3):
        attention = block_attention(model, clips, block=number)
        attended = attention.weights.mean(dim=1) @ spread(attention.keys, attention.inputs)
        product = (attended + spread(attention.queries, attention.inputs)) / 2 @ product
    torch.testing.assert_close(product.sum(dim=-1), torch.ones(product.shape[:2]), atol=1e-5, rtol=0)
    rows = product[:, 0] if getattr(model, "head_kind", "") == "token" else product[:, prefix:].mean(dim=1)
    maps = attention_maps(model, clips, rollout=True)
    torch.testing.assert_close(maps.flatten(1), rows[:, prefix:], atol=1e-6, rtol=1e-4)


def test_film_has_the_size_of_the_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_videos(tmp_path, 1)
    video, out = str(tmp_path / "000.mp4"), tmp_path / "out"
    weights = write_pretrained(tmp_path / "pretrained.safetensors")
    for words, suffix in ((["--block", "2"], "attention"), (["--map", "rollout"], "rollout")):
        assert main(["visualize", str(weights), video, "--attention", "--out", str(out), *words]) == 0
        with videomaskfeat.open_video(out / f"000_{suffix}.mp4") as film:
            assert (film.frames, film.info.height, film.info.width) == (4, 160, 320)
        assert (out / f"000_{suffix}.png").is_file()
    attention = videomaskfeat.load_encoder(weights, device="cpu").attention_map(video, block=2)
    assert (attention.frames.shape, attention.values.shape) == ((4, 32, 32, 3), (2, 4, 4))
    assert (float(attention.values.min()), float(attention.values.max())) == (0.0, 1.0)
    assert (attention.name, attention.note) == ("attention", "block 2 of 4")
    capsys.readouterr()
    command = ["visualize", str(weights), video, "--out", str(out), "--overwrite"]
    for words, message in (
        (["--attention", "--block", "5"], "block 5: the encoder has blocks 1..4"),
        (["--block", "1"], "block is an option of --attention; add --attention"),
        (["--attention", "--map", "rollout", "--label", "1"], "label is the class of the map gradcam"),
        (["--attention", "--map", "gradcam", "--block", "1"], "block has no meaning for the map gradcam"),
    ):
        assert main([*command, *words]) == 2
        assert message in capsys.readouterr().err


def test_films_of_a_hiera(tmp_path: Path) -> None:
    write_videos(tmp_path, 1)
    torch.manual_seed(0)
    model = videomaskfeat.create_model("hiera_pico", num_classes=7, head_scale=40.0)
    recipe = ClassifyRecipe(CLIP, views=1, crops=1, short_side=32, class_names=NAMES)
    videomaskfeat.save_model(model, tmp_path / "hiera.safetensors", recipe=recipe)
    command = ["visualize", str(tmp_path / "hiera.safetensors"), str(tmp_path / "000.mp4"), "--attention"]
    for kind in ("gradcam", "attention", "rollout"):
        assert main([*command, "--map", kind, "--out", str(tmp_path / "out")]) == 0
    films = sorted(path.name for path in (tmp_path / "out").glob("*.mp4"))
    assert films == ["000_attention.mp4", "000_class.mp4", "000_rollout.mp4"]


def test_map_of_a_classifier_can_be_its_attention(tmp_path: Path) -> None:
    write_videos(tmp_path, 1)
    weights = write_classifier(tmp_path / "classifier.safetensors")
    command = [
        "visualize",
        str(weights),
        str(tmp_path / "000.mp4"),
        "--attention",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*command, "--map", "attention"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "000_attention.mp4",
        "000_attention.png",
    ]


def test_other_blocks_and_lists_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build("vit")
    model.blocks[1] = nn.Identity()
    with pytest.raises(UserError, match="block 2 is a Identity, which has no attention weights"):
        attention_maps(model, random_clips(model))
    (tmp_path / "train.csv").write_text("videos/a.mp4 3\n")
    pretrained = write_pretrained(tmp_path / "pretrained.safetensors")
    assert main(["visualize", str(pretrained), str(tmp_path / "train.csv")]) == 2
    assert "train.csv is a list file, not a video; give the videos themselves" in capsys.readouterr().err
