"""The association block against loops: positions, window attention, the whole block, memory and its schedule."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.association_block import AssociationConfig, Entry, HybridAssociation, Memory, Read, erase, write
from models.local_attention import LocalAttention, window
from models.transformer import ChannelGate, drop_tokens, sine_positions
from tests.models import iai_oracle as oracle
from tests.models.small_iai import BLOCK, small_association

SIZE, TOKENS = (3, 4), 12
"""Of the small maps: 96 x 128 pixels."""
BATCH_BOUND = 1e-6
"""A row in company against alone, relative to the largest value, where memories are padded or rows share products."""


def c5(rows: int, seed: int = 0, channels: int = 10, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(rows, channels, *size, generator=torch.Generator().manual_seed(seed))


def painted(seed: int = 0, size: tuple[int, int] = (96, 128)) -> Tensor:
    """Labels of 5 slots in squares of 32 pixels off the grid of tokens."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 6, (size[0] // 32 + 1, size[1] // 32 + 1), generator=generator)
    return coarse.repeat_interleave(32, 0).repeat_interleave(32, 1)[11 : 11 + size[0], 7 : 7 + size[1]]


def remembered(association: HybridAssociation, frames: int, seed: int = 0) -> Memory:
    """Memory after some frames of a stream of its own, each a new object: all are stored."""
    memory = None
    for t in range(1, frames + 1):
        read = association.read(c5(1, seed + t), [memory])
        memory = write(memory, association.entry(read, 0, painted(seed + t), t), True, 3)
    return memory


def worst(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


# ------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize("h, w", [(3, 4), (1, 5), (12, 20)])
def test_positions(h, w):
    found = sine_positions(h, w, 8, torch.device("cpu"))
    assert np.abs(oracle.positions(h, w, 8) - found.numpy()).max() < 1e-6


@pytest.mark.parametrize("size, radius", [
    pytest.param((3, 4), 1, id="window inside the map"),
    pytest.param((2, 5), 3, id="window larger than the map"),
    pytest.param((1, 1), 2, id="one token"),
])  # fmt: skip
def test_local_attention_by_loops(size, radius):
    local, n = LocalAttention(8, 2, radius).double(), size[0] * size[1]
    for parameter in local.parameters():
        torch.nn.init.normal_(parameter)
    q, k, v = torch.randn(3, 2, n, 8, dtype=torch.float64)
    found = local(q, k, v, size)
    for b in range(2):
        arrays = (x[b].numpy() for x in (q, k, v))
        expected = oracle.local(*arrays, size, 2, radius, oracle.parameters(local), "")
        assert np.abs(found[b].detach().numpy() - expected).max() < 1e-10


def by_unfold(local: LocalAttention, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int]) -> Tensor:
    """The same with every window gathered, heads one by one."""
    (h, w), r, dim = size, local.radius, q.shape[2]
    d, columns = dim // local.heads, F.unfold(torch.ones(1, 1, h, w), 2 * r + 1, padding=r)[0].T > 0      # (n, o)
    outs = []
    for a in range(local.heads):
        part = slice(a * d, (a + 1) * d)
        ks, vs = (F.unfold(x[..., part].transpose(1, 2).reshape(-1, d, h, w), 2 * r + 1, padding=r)
                  .reshape(len(x), d, -1, h * w).permute(0, 3, 2, 1) for x in (k, v))                     # (B, n, o, d)
        query = q[..., part]
        relative = query @ local.relative_keys[a].T + local.relative_bias[a]
        logits = (ks @ query[..., None]).squeeze(3) / math.sqrt(d) + relative
        weights = logits.masked_fill(~columns, -torch.inf).softmax(2)
        outs.append(((vs + local.relative_values[a]) * weights[..., None]).sum(2))
    return local.projection(torch.cat(outs, dim=2))


@pytest.mark.parametrize("size", [(12, 20), (15, 27)])
def test_local_attention_at_full_size_equals_an_unfold_loop(size):
    local, n = LocalAttention(256, 2, 7), size[0] * size[1]
    torch.nn.init.normal_(local.relative_keys, std=0.1)
    torch.nn.init.normal_(local.relative_values)
    q, k, v = torch.randn(3, 1, n, 256)
    with torch.no_grad():
        expected = by_unfold(local, q, k, v, size)
        assert (local(q, k, v, size) - expected).abs().max() < 1e-5
    assert expected.std() > 0.1


def test_windows_at_the_corner_and_in_the_middle():
    _, inside = window(15, 27, 7, torch.device("cpu"))
    assert inside[0].sum() == 8 * 8 and inside[-1].sum() == 8 * 8
    assert inside[7 * 27 + 13].sum() == 15 * 15
    assert window(2, 3, 7, torch.device("cpu"))[1].sum(1).tolist() == [6] * 6


def test_gradients_of_local_attention():
    local = LocalAttention(4, 2, 1).double()
    for parameter in local.parameters():
        torch.nn.init.normal_(parameter)
    inputs = [torch.randn(1, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weights = list(local.parameters())
    assert torch.autograd.gradcheck(lambda q, k, v, *_: local(q, k, v, (2, 3)), (*inputs, *weights))


def test_gradients_of_the_gate():
    gate = ChannelGate(3).double()
    u = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u, *_: gate(u), (u, *gate.parameters()))


def test_dropped_tokens_are_shared_by_batch_and_channels():
    torch.manual_seed(3)
    x = torch.rand(4, 1000, 6) + 1
    first, second = drop_tokens(x, 0.1), drop_tokens(x, 0.1)
    kept = first[0, :, 0] != 0
    assert torch.allclose(first, x * kept[:, None] / 0.9)
    assert 850 < kept.sum() < 950
    assert not torch.equal(first, second), "drawn anew each time"
    torch.manual_seed(3)
    torch.rand(4, 1000, 6)
    assert torch.equal(drop_tokens(x, 0.1), first), "the seed alone decides"


def test_tokens_are_dropped_in_training_alone():
    association, maps = small_association(drop_path=0.5), c5(2)
    once, again = (association.read(maps, [None, None]).mapped for _ in range(2))
    assert torch.equal(once, again)
    association.train()
    once, again = (association.read(maps, [None, None]).mapped for _ in range(2))
    assert not torch.equal(once, again)
    assert torch.equal(once[:, :8], again[:, :8]) and torch.equal(once[:, 16:], again[:, 16:]), "X and K see no drop"


# ------------------------------------------------------------------------------------------ the block


def expected_maps(association: HybridAssociation, maps: Tensor, memory: Memory | None) -> np.ndarray:
    """2.2 and 2.3 of one row, by loops.  (C', h, w)"""
    p = oracle.parameters(association.block)
    project = {name: oracle.array(getattr(association, name).weight)[:, :, 0, 0] for name in
               ("encoder_projector", "backbone_projector")}                                           # fmt: skip
    tokens = oracle.array(maps).reshape(maps.shape[0], -1).T
    x0 = tokens @ project["encoder_projector"].T + oracle.array(association.encoder_projector.bias)
    k = tokens @ project["backbone_projector"].T + oracle.array(association.backbone_projector.bias)
    x, u, q = oracle.offer(x0, SIZE, BLOCK.self_heads, p)
    if memory is None:
        stored = [(q, oracle.value(u, oracle.array(association.bank.conv.bias), p))]
        previous = stored[0]
    else:
        stored = [(oracle.array(e.keys), oracle.array(e.values)) for e in memory.stored]
        previous = (oracle.array(memory.local.keys), oracle.array(memory.local.values))
    a = oracle.block(x, q, SIZE, stored, previous, p, BLOCK.memory_heads, BLOCK.radius, BLOCK.groups)
    return np.concatenate([x0, a, k], axis=1).T.reshape(-1, *SIZE)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_rows_with_memories_of_different_length_by_loops(training):
    association = small_association().train(training)
    memories = [None, remembered(association, 1), remembered(association, 3, seed=20)]
    maps = c5(3, seed=50)
    read = association.read(maps, memories)
    for row, memory in enumerate(memories):
        expected = expected_maps(association, maps[row], memory)
        assert np.abs(read.mapped[row].numpy() - expected).max() < 1e-5 * np.abs(expected).max()
    assert read.mapped[:, 8:16].std() > 0.3, "A says the same everywhere, so nothing was compared"


@torch.no_grad()
def test_what_an_entry_holds():
    association, labels = small_association(), painted()
    read = association.read(c5(2), [None, None])
    entry = association.entry(read, 1, labels, 7)
    weight, bias = (oracle.array(value) for value in association.bank.conv.parameters())
    e = oracle.bank(labels.numpy(), weight, bias)
    expected = oracle.value(oracle.array(read.offered_u[1]), e, oracle.parameters(association.block))
    assert np.abs(entry.values.numpy() - expected).max() < 1e-5
    assert torch.equal(entry.keys, read.offered_q[1]) and entry.frame == 7
    assert entry.labels.dtype == torch.int8 and torch.equal(entry.labels.long(), labels)
    together = association.entries(read, torch.stack([painted(1), labels]), 7)[1]
    assert torch.equal(together.values, entry.values) and torch.equal(together.labels, entry.labels)


@torch.no_grad()
def test_painting_changes_the_next_frame_and_never_this_one_nor_the_keys():
    association = small_association()
    first = association.read(c5(1, 1), [None])
    one, other = (association.entry(first, 0, painted(seed), 1) for seed in (1, 2))
    assert torch.equal(one.keys, other.keys) and not torch.equal(one.values, other.values)
    assert torch.equal(first.mapped, association.read(c5(1, 1), [None]).mapped)
    nexts = [association.read(c5(1, 2), [write(None, e, False, 3)]) for e in (one, other)]
    assert not torch.allclose(nexts[0].mapped[:, 8:16], nexts[1].mapped[:, 8:16], atol=1e-3)
    for part in (slice(0, 8), slice(16, None)):
        assert torch.equal(nexts[0].mapped[:, part], nexts[1].mapped[:, part]), "X and K do not see memory"
    assert torch.equal(nexts[0].offered_q, nexts[1].offered_q) and torch.equal(nexts[0].offered_u, nexts[1].offered_u)


@torch.no_grad()
@pytest.mark.parametrize("pad_memory", [False, True])
def test_a_row_is_what_it_is_alone(pad_memory):
    association = small_association(dim=64, pad_memory=pad_memory)
    memories = [remembered(association, 2), None, remembered(association, 7, seed=30)]
    maps = c5(3, seed=60)
    together = association.read(maps, memories)
    for row in range(3):
        alone = association.read(maps[row : row + 1], [memories[row]])
        assert worst(together.mapped[row], alone.mapped[0]) <= BATCH_BOUND
        assert worst(together.offered_q[row], alone.offered_q[0]) <= BATCH_BOUND
    other = association.read(maps, [memories[0], memories[2], memories[2]])
    if not pad_memory:
        assert torch.equal(other.mapped[0], together.mapped[0]), "the others' memories do not show in any bit"


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@torch.no_grad()
def test_half_precision_masks_without_nan(dtype, bound):
    association = small_association(pad_memory=True)
    memories = [None, remembered(association, 3)]
    expected = association.read(c5(2), memories).mapped
    found = association.to(dtype).read(c5(2).to(dtype), memories).mapped
    assert found.dtype == dtype and worst(found.float(), expected) < bound


def test_autocast_trains():
    association = small_association().train()
    with torch.autocast("cpu", torch.bfloat16):
        read = association.read(c5(2), [None, None])
        entries = association.entries(read, torch.stack([painted(1), painted(2)]), 1)
        second = association.read(c5(2, 1), [write(None, e, False, 3) for e in entries])
    second.mapped.float().square().sum().backward()
    missing = [n for n, p in association.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


def test_every_parameter_learns_through_memory():
    association = small_association().train()
    read = association.read(c5(2), [None, None])
    entries = association.entries(read, torch.stack([painted(1), painted(2)]), 1)
    second = association.read(c5(2, 1), [write(None, e, False, 3) for e in entries])
    towards = torch.randn(second.mapped.shape)
    (second.mapped * towards).sum().backward()
    assert [n for n, p in association.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_tables_made_in_inference_serve_training():
    association, maps = small_association(), c5(1, size=(2, 7))
    with torch.inference_mode():
        association.read(maps, [None])
    association.read(maps, [None]).mapped.sum().backward()
    assert association.block.local.relative_keys.grad is not None


# ------------------------------------------------------------------------------------------ switches


@pytest.mark.parametrize("changes, channels, without", [
    pytest.param(dict(use_local=False), 22, ("block.local.",), id="global and class"),
    pytest.param(dict(use_global=False), 22, ("block.global_projection.",), id="local and class"),
    pytest.param(dict(use_cls_projector=False), 16, ("backbone_projector.",), id="local and global"),
    pytest.param(dict(use_local=False, use_global=False), 10, ("",), id="no block"),
])  # fmt: skip
@torch.no_grad()
def test_switches(changes, channels, without):
    association = small_association(**changes)
    assert association.out_channels == channels
    whole = {name for name, _ in small_association().named_parameters()}
    assert {name for name, _ in association.named_parameters()} == {n for n in whole if not n.startswith(without)}
    memory = remembered(association, 2)
    read = association.read(c5(2, 9), [None, memory])
    assert read.mapped.shape == (2, channels, *SIZE)
    if changes == dict(use_local=False, use_global=False):
        assert torch.equal(read.mapped, c5(2, 9)) and memory.local.keys.shape == (TOKENS, 0)
        assert association.erase(memory.local, 1) is memory.local


@torch.no_grad()
def test_without_identities_memory_knows_frames_alone():
    association = small_association(num_slots=None)
    assert association.bank is None
    read = association.read(c5(1), [None])
    one, other = (association.entry(read, 0, painted(seed), 1) for seed in (1, 2))
    assert torch.equal(one.values, other.values)
    other_frame = write(None, association.entry(association.read(c5(1, 5), [None]), 0, painted(), 1), False, 3)
    assert not torch.equal(association.read(c5(1, 3), [write(None, one, False, 3)]).mapped,
                           association.read(c5(1, 3), [other_frame]).mapped)  # fmt: skip


# ------------------------------------------------------------------------------------------ memory


def blank(frame: int, tokens: int = 2) -> Entry:
    return Entry(torch.zeros(tokens, 4), torch.zeros(tokens, 4), None, frame)


@pytest.mark.parametrize("new_at, expected", [
    pytest.param((), [12, 9, 6, 3, 1], id="no new object"),
    pytest.param((5,), [11, 8, 5, 3, 1], id="a new object restarts the interval"),
    pytest.param((2, 3, 4), [13, 10, 7, 4, 3, 2, 1], id="new objects in a row"),
])
@pytest.mark.parametrize("origin", [0, 1, 100])
def test_the_schedule(new_at, expected, origin):
    memory = None
    for t in range(1, 14):
        memory = write(memory, blank(t - 1 + origin), t in new_at, 3)
        assert memory.local.frame == t - 1 + origin and memory.frames_seen == t
        assert [e.frame - origin + 1 for e in memory.stored] == oracle.stored_frames(t, new_at, 3)
    assert [e.frame - origin + 1 for e in memory.stored] == expected


def test_writing_leaves_the_memory_before_as_it_was():
    first = write(None, blank(1), True, 3)
    write(first, blank(2), True, 3)
    assert [e.frame for e in first.stored] == [1] and first.local.frame == 1 and first.frames_seen == 1


@pytest.mark.parametrize("entry, message", [
    (blank(1), "frame 1 came after frame 1; frames must rise"),
    (blank(2, tokens=3), "a change of frame size begins a new memory"),
])  # fmt: skip
def test_entries_that_cannot_follow(entry, message):
    with pytest.raises(ValueError, match=message):
        write(write(None, blank(1), False, 3), entry, False, 3)


@torch.no_grad()
@pytest.mark.parametrize("slot", range(5))
def test_erasing_equals_repainting(slot):
    association = small_association()
    read = association.read(c5(1), [None])
    labels = painted(4)
    assert (labels == 2).any()
    erased = association.erase(association.entry(read, 0, labels, 1), slot)
    repainted = association.entry(read, 0, torch.where(labels == slot, 5, labels), 1)
    assert worst(erased.values, repainted.values) < 1e-5
    assert torch.equal(erased.labels, repainted.labels) and torch.equal(erased.keys, repainted.keys)


@torch.no_grad()
def test_erasing_what_is_not_there_or_not_known():
    association = small_association()
    entry = association.entry(association.read(c5(1), [None]), 0, torch.full((96, 128), 5), 3)
    assert association.erase(entry, 1) is entry
    half = replace(entry, values=entry.values.bfloat16(), labels=torch.zeros_like(entry.labels))
    assert association.erase(half, 0).values.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="frame 3 kept no label map, so slot 1 cannot be erased"):
        erase(replace(entry, labels=None), 1, association.bank, association.block.value.weight)


def test_memories_that_do_not_fit():
    association = small_association()
    with pytest.raises(ValueError, match="1 memories for 2 frames"):
        association.read(c5(2), [None])
    memory = remembered(association, 1)
    with pytest.raises(ValueError, match="row 1 has 6 tokens, its memory 12; a change of frame size"):
        association.read(c5(2, size=(2, 3)), [None, memory])


def test_half_stored_entries_are_read_in_the_networks_precision():
    association = small_association()
    memory = remembered(association, 2)
    half = Memory(
        tuple(replace(e, keys=e.keys.bfloat16(), values=e.values.bfloat16()) for e in memory.stored),
        replace(memory.local, keys=memory.local.keys.bfloat16(), values=memory.local.values.bfloat16()), 0, 2,
    )  # fmt: skip
    found, expected = (association.read(c5(1), [m]).mapped for m in (half, memory))
    assert found.dtype == torch.float32 and worst(found, expected) < 0.05


# ------------------------------------------------------------------------------------------ settings and beginning


def test_beginning():
    """2.7: every parameter of the block with more than one axis Xavier uniform, by the shapes of the release."""
    association = HybridAssociation(AssociationConfig(), 16, 20)
    block, bounds = association.block, {}
    for name, fans in {
        "query.weight": (256, 256), "self_attention.key.weight": (256, 256), "feed_forward.expand.weight": (256, 1024),
        "feed_forward.mix.weight": (25, 25 * 1024), "feed_forward.gate.alpha": (1024, 1),
        "feed_forward.gate.beta": (1024, 1), "local.relative_keys": (128, 450), "local.projection.weight": (256, 256),
        "local.relative_values": (2 * 128 * 225, 128 * 225), "global_projection.weight": (256, 256),
    }.items():  # fmt: skip
        bounds[name] = math.sqrt(6 / sum(fans))
        largest = block.get_parameter(name).abs().max().item()
        assert 0.97 * bounds[name] < largest <= bounds[name] * (1 + 1e-6), name
    assert bounds["local.relative_values"] == pytest.approx(8.3e-3, rel=0.01)
    assert bounds["feed_forward.gate.alpha"] == pytest.approx(0.077, rel=0.01)
    assert (block.norm_self.weight == 1).all() and (block.norm_self.bias == 0).all()
    assert association.encoder_projector.weight.abs().max() <= 0.25, "PyTorch's own: 1 / sqrt(16)"


@pytest.mark.parametrize("settings, message", [
    (dict(dim=10), "dim is 10, expected a multiple of 4"),
    (dict(dim=12, self_heads=2, memory_heads=5), "dim is 12"),
    (dict(hidden=1000), "hidden is 1000, expected a multiple of groups, 32"),
    (dict(radius=0), "radius and class_channels are at least 1"),
    (dict(drop_path=1.0), "drop_path from 0 to below 1"),
])  # fmt: skip
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        AssociationConfig(**settings)


def test_read_is_what_the_contract_says():
    association = HybridAssociation(AssociationConfig(), 2048, 20).eval()
    with torch.inference_mode():
        read = association.read(torch.randn(1, 2048, 12, 20), [None])
    assert isinstance(read, Read)
    assert read.mapped.shape == (1, 2048, 12, 20) and association.out_channels == 2048
    assert read.offered_u.shape == read.offered_q.shape == (1, 240, 256)
