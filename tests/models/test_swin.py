"""Swin: the specification's count and sizes; a block in float64 loops over single tokens beside it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.backbones import make_backbone
from models.swin import PatchMerging, Swin, SwinBlock, SwinConfig, drop_path, from_windows, shift_mask, to_windows

SMALL = SwinConfig(embed_dim=6, depths=(1, 2, 1, 1), heads=(1, 2, 3, 2), window=3, mlp_ratio=2)


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a size that keeps activations near 1, attention far from even."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.dim() > 1:
                value.normal_(0, 1 if name.endswith("relative_bias") else value[0].numel() ** -0.5, generator=generator)
            else:
                value.normal_(float(name.endswith("weight")), 0.3, generator=generator)
    return network.eval()


# ------------------------------------------------------------------------------------------ the specification's numbers


def test_swin_tiny():
    with torch.device("meta"):
        network = Swin(SwinConfig())
    assert sum(p.numel() for p in network.parameters()) == 27_520_698
    assert network.channels == (192, 384, 768) and network.strides == (8, 16, 32)


@pytest.mark.parametrize("first_output, channels", [(2, (6, 12, 24, 48)), (3, (12, 24, 48)), (5, (48,))])
def test_channels_and_strides_tell_what_comes_out(first_output, channels):
    network = Swin(SMALL, first_output)
    maps = network(torch.zeros(1, 3, 64, 96))
    assert network.channels == channels
    assert [tuple(x.shape) for x in maps] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(channels, network.strides, strict=True)
    ]


def test_norms_that_nobody_reads_do_not_train():
    assert [norm.weight.requires_grad for norm in Swin(SMALL, 4).norms] == [False, False, True, True]


def test_settings_make_it_as_any_backbone():
    assert type(make_backbone(SMALL)) is Swin and SMALL.name == "swin"


@pytest.mark.parametrize("change, message", [
    ({"embed_dim": 0}, "at least 1"), ({"window": 1}, "window at least 2"),
    ({"heads": (4, 2, 3, 2)}, "expected divisors of the widths"), ({"drop_path": 1.0}, "drop_path is 1.0"),
])  # fmt: skip
def test_settings_that_are_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize("first_output", [1, 6])
def test_maps_that_there_are_not(first_output):
    with pytest.raises(ValueError, match="expected 2..5"):
        Swin(SMALL, first_output)


# ------------------------------------------------------------------------------------------ a block, token by token


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    x = x.double()
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * norm.weight.double() + norm.bias.double()


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    out = x.double() @ layer.weight.double().T
    return out if layer.bias is None else out + layer.bias.double()


def plain_attention(x: Tensor, block: SwinBlock) -> Tensor:
    """(H, W, C), whole windows: tokens attend to those between the same lines of the grid, which begins at `shift`."""
    h, w, c = x.shape
    side, shift, heads = block.side, block.shift, block.attention.heads
    q, k, v = linear(x, block.attention.qkv).reshape(h, w, 3, heads, c // heads).unbind(2)
    out = torch.zeros(h, w, c, dtype=torch.float64)
    for y in range(h):
        for x_ in range(w):
            beside = [(i, j) for i in range(h) for j in range(w)
                      if (i - shift) // side == (y - shift) // side and (j - shift) // side == (x_ - shift) // side]
            for a in range(heads):
                scores = []
                for i, j in beside:
                    row = (y - i + side - 1) * (2 * side - 1) + x_ - j + side - 1
                    bias = block.attention.relative_bias[row, a].item()
                    scores.append((q[y, x_, a] @ k[i, j, a]).item() / math.sqrt(c // heads) + bias)
                weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
                out[y, x_, a * (c // heads) : (a + 1) * (c // heads)] = sum(
                    weight * v[i, j, a] for weight, (i, j) in zip(weights, beside, strict=True))
    return linear(out, block.attention.proj)


def plain_block(x: Tensor, block: SwinBlock) -> Tensor:
    """(H, W, C): the first norm, then zeros to whole windows."""
    h, w, c = x.shape
    padded = torch.zeros(-(-h // block.side) * block.side, -(-w // block.side) * block.side, c, dtype=torch.float64)
    padded[:h, :w] = layer_norm(x, block.norm1)
    x = x.double() + plain_attention(padded, block)[:h, :w]
    hidden = linear(layer_norm(x, block.norm2), block.expand)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(hidden, block.contract)


@pytest.mark.parametrize("shifted", [False, True], ids=["windows", "shifted windows"])
@pytest.mark.parametrize("height, width", [(3, 3), (6, 3), (5, 7)], ids=["one window", "two windows", "padded"])
@torch.no_grad()
def test_block_is_its_plain_form(shifted, height, width):
    block = lively(SwinBlock(6, 2, shifted, 0.5, SMALL), 3)
    x = torch.randn(2, height, width, 6)
    expected = torch.stack([plain_block(image, block) for image in x])
    assert torch.allclose(block(x).double(), expected, atol=1e-5)


@torch.no_grad()
def test_merging_joins_four_tokens_column_by_column():
    merge = lively(PatchMerging(4), 1)
    x = torch.randn(1, 4, 6, 4)
    out = merge(x)
    for i in range(2):
        for j in range(3):
            four = [x[0, 2 * i + a, 2 * j + b] for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]
            expected = linear(layer_norm(torch.cat(four), merge.norm), merge.reduction)
            assert torch.allclose(out[0, i, j].double(), expected, atol=1e-5)


@torch.no_grad()
def test_whole_network_is_its_plain_composition():
    network = lively(Swin(SMALL, 2), 4)
    image = torch.randn(1, 3, 32, 64)
    patches = image[0].double().reshape(3, 8, 4, 16, 4).permute(1, 3, 0, 2, 4).reshape(8, 16, 48)
    x = patches @ network.embed.weight.double().reshape(6, 48).T + network.embed.bias.double()
    x = layer_norm(x, network.embed_norm)
    for i, (stage, found) in enumerate(zip(network.stages, network(image), strict=True)):
        if i:
            x = network.merges[i - 1].double()(x[None])[0]
        for block in stage:
            x = plain_block(x, block)
        assert torch.allclose(found[0].double(), layer_norm(x, network.norms[i]).permute(2, 0, 1), atol=2e-5)


def test_every_second_block_is_shifted():
    network = Swin(SwinConfig(depths=(2, 2, 6, 2), embed_dim=6, heads=(1, 1, 1, 1)))
    assert [[block.shift for block in stage] for stage in network.stages] == [[0, 3], [0, 3], [0, 3] * 3, [0, 3]]


def test_windows_there_and_back():
    x = torch.arange(2 * 4 * 6.0).reshape(2, 4, 6, 1)
    windows = to_windows(x, 2)
    assert windows.shape == (12, 4, 1) and windows[1].flatten().tolist() == [2, 3, 8, 9]
    assert torch.equal(from_windows(windows, 2, 4, 6), x)


def test_mask_of_a_shifted_map():
    mask = shift_mask(4, 2, 2, 1, torch.device("cpu"))                 # two windows, one above the other
    parted = mask < 0
    assert parted[0].tolist() == [[a != b for b in (0, 1, 0, 1)] for a in (0, 1, 0, 1)], "columns meet at the border"
    assert parted[1].tolist() == [[a != b for b in range(4)] for a in range(4)], "rows too"


# ------------------------------------------------------------------------------------------ training


def test_batch_independence_and_gradients():
    network = lively(Swin(SMALL))
    images = torch.randn(2, 3, 32, 64)
    together = network(images)
    for i in range(2):
        alone = network(images[i : i + 1])
        assert all(torch.allclose(a[i : i + 1], b, atol=1e-5) for a, b in zip(together, alone, strict=True))
    sum(x.square().sum() for x in together).backward()
    missing = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not missing


def test_dropped_paths_are_of_whole_images_and_rise_with_depth():
    x = torch.ones(4000, 2, 3)
    assert drop_path(x, 0.2, False) is x and drop_path(x, 0.0, True) is x
    dropped = drop_path(x, 0.2, True)
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    rates = [block.drop for stage in Swin(SMALL).stages for block in stage]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
