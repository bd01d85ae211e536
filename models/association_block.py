"""Step 5, before the neck: a frame's coarsest map reads the frames before it, and the identities painted in them.

In:     C5 (B, C, h, w) raw, and per row the `Memory` of its stream, None before the first frame
Out:    `Read`: C5' = [X, A, K], which takes C5's place in the pyramid, and what the frame offers to memory
            X  (B, 256, h, w)   C5 projected
            A  (B, 256, h, w)   X after self-attention, attention to memory and a feed-forward part
            K  (B, 1536, h, w)  C5 projected again: what a frame says of classes, untouched by memory
State:  none: memories come in, entries go out (`entry`, models/iai_memory.py)
Source: IAI specification 2.2, 2.3: one block of the Long Short-Term Transformer of AOT (Yang et al., NeurIPS 2021).
        What the ablations switch off is left out with all its weights; K without the others is no association at all,
        so with neither local nor global memory C5' is C5 (specification 7, table 5, "no block").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.iai_memory import Entry, Memory, erase, write
from models.identity_bank import IdentityBank
from models.local_attention import LocalAttention
from models.transformer import GatedFeedForward, SelfAttention, drop_tokens, heads_of, linear, sine_positions

__all__ = [
    "AssociationBlock", "AssociationConfig", "Entry", "HybridAssociation", "Memory", "Read", "Recalled",
    "erase", "mapped_channels", "write",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AssociationConfig:
    """The default is IAI as released."""

    dim: int = 256
    """Width of tokens, keys and values; memory of a stream grows with it. A multiple of 4, and of both head counts."""
    self_heads: int = 4
    memory_heads: int = 2
    hidden: int = 1024
    """Width of the feed-forward part; a multiple of `groups`."""
    groups: int = 32
    """Of its GroupNorm."""
    radius: int = 7
    """Reach of local attention, in tokens of 32 pixels. Larger: follows faster motion, costs its square."""
    class_channels: int = 1536
    """Width of K. With 2048 - 2 * dim, weights of the pyramid trained on C5 keep their shape."""
    drop_path: float = 0.1
    """Share of tokens that skip a branch, in training. Higher: regularises more, learns slower."""
    use_local: bool = True
    """Read the previous frame."""
    use_global: bool = True
    """Read all stored frames. Costs 29.5 M multiplications per stored frame, at 384x640."""
    use_cls_projector: bool = True
    """K: without it the pyramid's top sees classes through 2 * dim channels alone."""
    pad_memory: bool = False
    """Rows of a batch may have memories of different length. True reads all in one product, the shorter padded and
    masked: fewer launches on a GPU, and the last bits of a row depend on the other rows. Training always does."""

    def __post_init__(self) -> None:
        if self.dim < 4 or self.dim % 4 or self.dim % self.self_heads or self.dim % self.memory_heads:
            raise ValueError(f"association: dim is {self.dim}, expected a multiple of 4, {self.self_heads} and "
                             f"{self.memory_heads}")  # fmt: skip
        if self.hidden % self.groups:
            raise ValueError(f"association: hidden is {self.hidden}, expected a multiple of groups, {self.groups}")
        if min(self.radius, self.class_channels) < 1 or not 0 <= self.drop_path < 1:
            raise ValueError("association: radius and class_channels are at least 1, drop_path from 0 to below 1")

    @property
    def has_block(self) -> bool:
        return self.use_local or self.use_global


def mapped_channels(config: AssociationConfig, in_channels: int) -> int:
    """Width of C5'."""
    if not config.has_block:
        return in_channels
    return 2 * config.dim + (config.class_channels if config.use_cls_projector else 0)


@dataclass(frozen=True)
class Read:
    """A batch of frames, associated. The two `offered` go into memory once the frame is finished (`entry`)."""

    mapped: Tensor
    """(B, C', h, w): C5'."""
    offered_u: Tensor
    """(B, n, D): what values are made of, once identities are known; D = 0 without a block."""
    offered_q: Tensor
    """(B, n, D): queries, and keys of the memory to be."""


@dataclass(frozen=True)
class Recalled:
    """What B rows find in memory."""

    keys: list[Tensor]
    """Global, per row (m_b, D), m_b = stored frames * n."""
    values: list[Tensor]
    local_keys: Tensor
    """(B, n, D)."""
    local_values: Tensor


class AssociationBlock(nn.Module):
    """One transformer block over tokens x (B, n, D): `offer`, then `forward` with what memory holds."""

    def __init__(self, config: AssociationConfig) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        self.norm_self, self.self_attention = nn.LayerNorm(dim), SelfAttention(dim, config.self_heads)
        self.norm_memory, self.query, self.value = nn.LayerNorm(dim), linear(dim, dim), linear(dim, dim)
        self.global_projection = linear(dim, dim) if config.use_global else None
        self.local = LocalAttention(dim, config.memory_heads, config.radius) if config.use_local else None
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.feed_forward = GatedFeedForward(dim, config.hidden, config.groups)
        self.norm_out = nn.LayerNorm(dim)

    def offer(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Self-attention, then what does not depend on memory: x, u, q, (B, n, D) each; q are the keys to store too."""
        positions = sine_positions(*size, self.config.dim, x.device).to(x.dtype)
        x = x + self._dropped(self.self_attention(self.norm_self(x), positions))
        u = self.norm_memory(x)
        return x, u, self.query(u)

    def values(self, u: Tensor, embedded: Tensor | float) -> Tensor:
        """u (B, n, D) with identities E (B, n, D) -> values to store."""
        return self.value(u + embedded)

    def forward(self, x: Tensor, q: Tensor, recalled: Recalled, size: tuple[int, int]) -> Tensor:
        """-> A (B, n, D)"""
        read = x
        if self.global_projection is not None:
            read = read + self.global_projection(self._global(q, recalled))
        if self.local is not None:
            read = read + self._dropped(self.local(q, recalled.local_keys, recalled.local_values, size))
        out = read + self._dropped(self.feed_forward(self.norm_feed_forward(read), size))
        return self.norm_out(out)

    def _dropped(self, x: Tensor) -> Tensor:
        return drop_tokens(x, self.config.drop_path) if self.training else x

    def _global(self, q: Tensor, recalled: Recalled) -> Tensor:
        """Plain attention of every token to all stored ones.  (B, n, D)"""
        heads, keys, values = self.config.memory_heads, recalled.keys, recalled.values
        if not (self.training or self.config.pad_memory):
            rows = [_attend(q[b : b + 1], keys[b][None], values[b][None], heads) for b in range(len(q))]
            return torch.cat(rows)
        lengths = [len(k) for k in keys]
        mask = None
        if min(lengths) < max(lengths):
            ends = torch.tensor(lengths, device=q.device)
            mask = (torch.arange(max(lengths), device=q.device) < ends[:, None])[:, None, None]        # (B, 1, 1, m)
        padded = nn.utils.rnn.pad_sequence
        return _attend(q, padded(keys, batch_first=True), padded(values, batch_first=True), heads, mask)


def _attend(q: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """(B, n, D), (B, m, D) x2, mask (B, 1, 1, m) of keys that count -> (B, n, D)"""
    parts = (heads_of(x, heads) for x in (q, keys, values))
    out = F.scaled_dot_product_attention(*parts, attn_mask=mask)                               # (B, a, n, d)
    return out.transpose(1, 2).flatten(2)


class HybridAssociation(nn.Module):
    """C5 and memories -> C5'. `num_slots` None leaves the identity bank out: memory knows frames, not identities."""

    def __init__(self, config: AssociationConfig, in_channels: int, num_slots: int | None) -> None:
        super().__init__()
        self.config, self.bank = config, None
        self.out_channels = mapped_channels(config, in_channels)
        if not config.has_block:
            return
        self.encoder_projector = nn.Conv2d(in_channels, config.dim, 1)
        self.block = AssociationBlock(config)
        if num_slots is not None:
            self.bank = IdentityBank(num_slots, config.dim)
        if config.use_cls_projector:
            self.backbone_projector = nn.Conv2d(in_channels, config.class_channels, 1)

    def read(self, c5: Tensor, memories: Sequence[Memory | None]) -> Read:
        """Associate B frames, each of another stream. Rows may have different numbers of stored frames.

        A stream's first frame (None) is its own global and local memory, nothing painted in it.
        Raises ValueError for a memory of another frame size, or another number of memories than rows.
        """
        if len(memories) != len(c5):
            raise ValueError(f"IAI association: {len(memories)} memories for {len(c5)} frames")
        if not self.config.has_block:
            nothing = c5.new_zeros(len(c5), c5.shape[2] * c5.shape[3], 0)
            return Read(c5, nothing, nothing)
        c5 = c5.to(self.encoder_projector.weight.dtype)
        size = c5.shape[2], c5.shape[3]
        projected = self.encoder_projector(c5)                                                 # (B, D, h, w)
        x, u, q = self.block.offer(projected.flatten(2).transpose(1, 2), size)
        recalled = self._recall(u, q, memories)
        associated = self.block(x, q, recalled, size).transpose(1, 2).unflatten(2, size)       # (B, D, h, w)
        maps = [projected, associated]
        if self.config.use_cls_projector:
            maps.append(self.backbone_projector(c5))
        return Read(torch.cat(maps, dim=1), u, q)

    def entry(self, read: Read, row: int, labels: Tensor, frame: int) -> Entry:
        """The finished frame `row` of a batch as memory; labels (Hp, Wp) of any integer type: slots 0..N-2, N for the
        background, -1 for nothing. Raises ValueError for other labels."""
        one = Read(read.mapped[row : row + 1], read.offered_u[row : row + 1], read.offered_q[row : row + 1])
        return self.entries(one, labels[None], frame)[0]

    def entries(self, read: Read, labels: Tensor, frame: int) -> list[Entry]:
        """`entry` for all B rows; labels (B, Hp, Wp)."""
        values = read.offered_u
        if self.config.has_block:
            values = self.block.values(values, 0.0 if self.bank is None else self.bank(labels))
        small = labels.to(torch.int8)
        return [Entry(read.offered_q[b], values[b], small[b], frame) for b in range(len(values))]

    def erase(self, entry: Entry, slot: int) -> Entry:
        """The entry as if the pixels of `slot` had been background (specification 9.3 item 5)."""
        if self.bank is not None:
            return erase(entry, slot, self.bank, self.block.value.weight)
        return entry

    def _recall(self, u: Tensor, q: Tensor, memories: Sequence[Memory | None]) -> Recalled:
        if any(memory is None for memory in memories):
            fresh = self.block.values(u, 0.0 if self.bank is None else self.bank.conv.bias)
        stored, local = [], []
        for b, memory in enumerate(memories):
            itself = Entry(q[b], fresh[b], None, 0) if memory is None else None
            stored.append((itself,) if memory is None else memory.stored)
            local.append(itself if memory is None else memory.local)
            if local[-1].keys.shape != q[b].shape:
                raise ValueError(
                    f"IAI association: row {b} has {len(q[b])} tokens, its memory {len(local[-1].keys)}; a change of "
                    "frame size begins a new memory"
                )
        return Recalled(
            [torch.cat([e.keys.to(q.dtype) for e in row]) for row in stored],
            [torch.cat([e.values.to(q.dtype) for e in row]) for row in stored],
            torch.stack([e.keys.to(q.dtype) for e in local]),
            torch.stack([e.values.to(q.dtype) for e in local]),
        )
