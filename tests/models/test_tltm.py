"""TLTM: sizes, what its frames and references mean, its losses against loops, and where their gradients go.

Source of what is expected: TLTM specification 2.9 to 2.11, 3.2 to 3.5 and acceptance tests 1, 2, 4, 6.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import NETWORKS
from models.object_encoder import ObjectEncoder
from models.resnet import ResNetConfig
from models.targets import PairBatch, StillBatch
from models.tltm import TLTM, TLTMConfig
from operators.preprocess import pad_to, resize_to
from pipelines.networks import read_network
from tests.models import tltm_oracle as oracle
from tests.models.oracles import conv
from tests.models.small import frame, images, pairs, shake
from tests.models.small_tltm import SMALL_TLTM, small_centermask, small_tltm, three_pairs

DETECTION = {"class", "box", "centerness", "mask"}


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("blocks, total", [((3, 4, 6, 3), 46_705_997), ((3, 4, 23, 3), 65_645_901)], ids=["50", "101"])
def test_size_is_the_specified_one(blocks, total):
    with torch.device("meta"):
        network = TLTM(TLTMConfig(backbone=ResNetConfig(blocks=blocks)))
    parts = {name: count(part) for name, part in network.named_children() if name != "backbone"}
    assert parts == {"fpn": 3_868_672, "fcos": 4_828_466, "mask_head": 2_633_018, "fuser": 8_849_920,
                     "encoder": 2_610_336, "graph": 460_673}                                              # fmt: skip
    assert count(network) == total and NETWORKS["tltm"] == (TLTM, TLTMConfig)


@pytest.mark.parametrize("source, resized", [
    pytest.param((720, 1280), (750, 1333), id="720p"), pytest.param((480, 854), (749, 1333), id="DAVIS"),
])  # fmt: skip
def test_features_have_the_specified_sizes(source, resized):
    """1.5's table: 800 and 1333 at test, padded to whole 32s; P3 to P7 of them."""
    config = TLTMConfig()
    assert resize_to(*source, config.input.short_side, config.input.long_side) == resized
    padded = pad_to(*resized, config.input.divisor)
    with torch.device("meta"):
        levels = TLTM(config).eval().features(torch.empty(1, 3, *padded))
    assert padded == (768, 1344)
    assert [tuple(level.shape) for level in levels] == [
        (1, 256, 96, 168), (1, 256, 48, 84), (1, 256, 24, 42), (1, 256, 12, 21), (1, 256, 6, 11)]  # fmt: skip


@pytest.mark.parametrize("name, settings", [
    ("tltm_r50", {}),
    ("tltm_r101", {"backbone": ResNetConfig(blocks=(3, 4, 23, 3))}),
    ("tltm_r50_paper", {"train_reference": "previous", "regions": "proposals"}),
])
def test_shipped_files_say_what_the_classes_say(name, settings):
    spec = read_network(f"configs/networks/{name}.yaml")
    assert spec.config == TLTMConfig(**settings) and spec.association == "edges"


# ------------------------------------------------------------------------------------------ the encoder


@torch.no_grad()
def test_encoder_layer_by_layer():
    encoder, regions = ObjectEncoder(3, 32), torch.randn(4, 3, 14, 14)
    shake(encoder, 0)
    x = conv(regions, encoder.conv1.weight, encoder.conv1.bias).clamp(min=0)
    x = torch.stack([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)                # 7 x 7
    x = conv(x, encoder.conv2.weight, encoder.conv2.bias).clamp(min=0)
    x = conv(x, encoder.conv3.weight, encoder.conv3.bias).clamp(min=0)                            # (4, 2, 7, 7)
    flat = torch.stack([torch.cat([channel.reshape(-1) for channel in one]) for one in x])
    out = encoder(regions)
    assert torch.allclose(out.double(), flat @ encoder.fc.weight.double().T + encoder.fc.bias.double(), atol=1e-4)
    assert (out < 0).any() and encoder(regions[:0]).shape == (0, 32)


# ------------------------------------------------------------------------------------------ one frame after another


def same(a, b) -> bool:
    return all(torch.allclose(getattr(a, name), getattr(b, name), atol=1e-6)
               for name in ("class_logits", "distances", "centerness"))                                   # fmt: skip


@torch.no_grad()
def test_the_first_frame_is_its_own_reference():
    network = small_tltm().eval()
    now, before = network.features(images(1)), network.features(images(1, seed=1))
    assert same(network.heads(now), network.heads(now, (now,)))
    assert not same(network.heads(now), network.heads(now, (before,)))
    assert not same(network.heads(before, (now,)), network.heads(now, (before,)))


@torch.no_grad()
@pytest.mark.parametrize("scope, raw", [("det", True), ("all", False)])
def test_who_reads_fused_maps(scope, raw):
    network = small_tltm(fuser_scope=scope).eval()
    now, before = network.features(images(1)), network.features(images(1, seed=1))
    found = network.heads(now, (before,)).levels
    assert [torch.equal(a, b) for a, b in zip(found, now, strict=False)] == 3 * [raw]
    assert raw or all(torch.equal(a, b) for a, b in zip(found, network.fuser(before, now), strict=False))


@torch.no_grad()
def test_without_relations_it_is_centermask():
    network, stills = small_tltm(fuser="none", relations=False).eval(), small_centermask().eval()
    stills.load_state_dict(network.state_dict())
    now, before = network.features(images(1)), network.features(images(1, seed=1))
    assert same(network.heads(now, (before,)), stills.heads(now))
    assert network.objects(torch.zeros(4, 8, 14, 14)).shape == (4, 0)
    assert network.edges(torch.zeros(3, 0), torch.zeros(2, 0)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_two_references_are_refused():
    network = small_tltm()
    now = network.features(images(1))
    with pytest.raises(ValueError, match="2 references of a frame"):
        network.heads(now, (now, now))


@torch.no_grad()
def test_edges_have_a_row_for_each_object_of_this_frame():
    network, known, current = small_tltm(), torch.randn(3, 16), torch.randn(2, 16)
    expected = oracle.graph(network.graph, known.double().numpy(), current.double().numpy())
    np.testing.assert_allclose(network.edges(known, current).numpy(), expected.T, atol=1e-4)
    assert network.edges(known[:0], current).shape == (2, 0) and network.edges(known, current[:0]).shape == (0, 3)


@torch.no_grad()
def test_a_batch_of_two_is_two_of_one():
    network, now, before = small_tltm().eval(), images(2), images(2, seed=1)
    together = network.heads(network.features(now), (network.features(before),))
    for b in range(2):
        one = slice(b, b + 1)
        alone = network.heads(network.features(now[one]), (network.features(before[one]),))
        for name in ("class_logits", "distances", "centerness"):
            assert torch.allclose(getattr(together, name)[one], getattr(alone, name), atol=1e-5), name


# ------------------------------------------------------------------------------------------ losses


def edge_loss(network: TLTM, batch: PairBatch) -> tuple[float, int, int]:
    """2.10 and 3.4, true boxes on both sides, edge by edge: the mean, positives, edges."""
    encoder, total = copy.deepcopy(network.encoder).double(), []
    with torch.no_grad():
        maps = [network.features(pictures)[:3] for pictures, _ in batch.slots]
    for b, into in enumerate(batch.counterparts[0]):
        nodes = []
        for levels, (_, targets) in zip(maps, batch.slots, strict=True):
            vectors = []
            for box in targets[b].boxes.tolist():
                k = oracle.level(box, 64.0 * 64)
                region = oracle.roi_align(levels[k - 3][b].double().numpy(), box, 14, 1 / 2**k)
                vectors.append(encoder(torch.from_numpy(region)[None])[0].detach().numpy())
            nodes.append(np.array(vectors).reshape(-1, 16))
        logits = oracle.graph(network.graph, nodes[1], nodes[0])
        for i in range(len(nodes[1])):
            for j in range(len(nodes[0])):
                total.append((int(into[j] == i), logits[i, j]))
    losses = [oracle.cross_entropy(np.array([z]), np.array([y])) for y, z in total]
    return sum(losses) / len(losses), sum(y for y, _ in total), len(total)


def test_edge_loss_is_the_loop():
    network, batch = small_tltm(), three_pairs()
    expected, positives, edges = edge_loss(network, batch)
    assert (positives, edges) == (2, 4) and network(batch)["edge"].item() == pytest.approx(expected, rel=1e-4)


def test_identities_1_2_and_2_3_make_one_of_four_edges_true():
    boxes = [(3, 3, 40, 33), (20, 18, 62, 61)]
    batch = pairs(([frame(boxes, [1, 2])], [frame(boxes, [2, 3], seed=3)]), ([[-1, 0]], [[1, -1]]))
    network = small_tltm()
    expected, positives, edges = edge_loss(network, batch)
    assert (positives, edges) == (1, 4) and network(batch)["edge"].item() == pytest.approx(expected, rel=1e-4)



@pytest.mark.parametrize("reference", ["own", "previous"])
def test_detection_of_single_is_that_of_the_later_frame(reference):
    """As of stills whose pyramid is fused with itself, or with the frame before."""
    network, batch = small_tltm(train_reference=reference, relations=False), three_pairs()
    (now, targets), (before, _) = batch.slots
    raw = network.features(now)
    out = network.heads(raw, (raw if reference == "own" else network.features(before),))
    regions, features = network._sampled(out, targets, None)
    expected = network._frame_losses(out, targets, regions, features, lambda x: x)
    losses = network(batch)
    assert losses.keys() == DETECTION
    assert all(losses[name].item() == pytest.approx(expected[name].item(), rel=1e-6) for name in DETECTION)


def test_without_a_fuser_both_frames_count_as_stills():
    network, batch = small_tltm(fuser="none"), three_pairs()
    stills = small_centermask(regions="truth")
    stills.load_state_dict({name: x for name, x in network.state_dict().items()
                            if not name.startswith(("encoder", "graph"))})                                # fmt: skip
    alone = [stills(StillBatch(*slot)) for slot in batch.slots]
    losses = network(batch)
    for name in DETECTION:
        assert losses[name].item() == pytest.approx(alone[0][name].item() + alone[1][name].item(), rel=1e-5), name


def test_double_fuses_the_earlier_frame_with_the_later_one():
    network, batch = small_tltm(fuser="double", train_reference="previous"), three_pairs()
    single = small_tltm(train_reference="previous")
    single.load_state_dict(network.state_dict())
    turned = PairBatch(batch.images[::-1], batch.targets[::-1], batch.counterparts[::-1])
    both = single(batch), single(turned)
    losses = network(batch)
    for name in DETECTION:
        assert losses[name].item() == pytest.approx(both[0][name].item() + both[1][name].item(), rel=1e-5), name
    assert losses["edge"].item() == pytest.approx(both[0]["edge"].item(), rel=1e-5)


def test_nothing_in_either_frame():
    batch = pairs(([frame([])], [frame([])]), ([[]], [[]]))
    losses = small_tltm(fuser="double", regions="proposals")(batch)
    assert losses["edge"].item() == 0 and losses["mask"].item() == 0 and losses["class"] > 0
    sum(losses.values()).backward()


def test_sizes_choose_the_levels():
    network, batch = small_tltm(), three_pairs()
    told = replace(batch, sizes=([(64, 64)] * 3, [(50, 34)] * 3))
    assert network(batch)["mask"].item() == pytest.approx(network(told)["mask"].item(), rel=1e-6)
    assert network(batch)["edge"].item() != pytest.approx(network(told)["edge"].item(), rel=1e-4)


# ------------------------------------------------------------------------------------------ gradients


def gradient(network: TLTM, batch: PairBatch, names: set[str], slot: int) -> torch.Tensor:
    """Of the sum of the losses named, by the images of a slot."""
    pictures = [x.clone().requires_grad_() for x in batch.images]
    losses = network(replace(batch, images=tuple(pictures)))
    sum(losses[name] for name in names).backward()
    grad = pictures[slot].grad
    return torch.zeros_like(pictures[slot]) if grad is None else grad


@pytest.mark.parametrize("reference, reached", [("own", False), ("previous", True)])
def test_the_earlier_frame_learns_from_detection_only_where_it_is_fused(reference, reached):
    network, batch = small_tltm(train_reference=reference), three_pairs()
    assert bool(gradient(network, batch, DETECTION, 1).any()) == reached
    assert gradient(network, batch, DETECTION, 0).any()


def test_edges_teach_both_frames():
    network, batch = small_tltm(), three_pairs()
    for slot in (0, 1):
        grad = gradient(network, batch, {"edge"}, slot)
        assert [bool(g.any()) for g in grad] == [True, False, True], "the second pair has no edge, and none crosses"


@pytest.mark.parametrize("fuser, form", [
    ("none", "plain"), ("single", "plain"), ("double", "plain"), ("single", "twice"), ("single", "correlated"),
])
def test_every_parameter_learns(fuser, form):
    network = small_tltm(fuser=fuser, fuser_form=form, regions="proposals", train_reference="previous")
    sum(network(three_pairs()).values()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("changes, message", [
    ({"fuser": "off"}, "fuser is 'off', expected"), ({"fuser_scope": "none"}, "fuser_scope"),
    ({"fuser_form": "v2"}, "fuser_form is 'v2', expected one of plain, twice"),
    ({"train_reference": "next"}, "train_reference"), ({"object_dim": 40}, "multiple of 16"),
    ({"graph_rounds": 0}, "at least 1"), ({"regions": "both"}, "regions"),
])  # fmt: skip
def test_settings_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL_TLTM, **changes)
