"""The released checkpoints' keys as the specification's section 6 writes them, each with our name for it and its shape.

Written out by loops from 6.2 and 6.4, not derived from the importers. Sizes are arguments, so that the real ones can be
counted and small ones filled with numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Key = tuple[str, "str | None", tuple[int, ...]]
"""(their name, ours or None for what is not used, shape)."""
BN4 = ("weight", "bias", "running_mean", "running_var")
R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)


@dataclass(frozen=True)
class Sizes:
    """The specification's, by default."""

    blocks: tuple[int, int, int, int] = R50
    stem: int = 64
    mid: int = 64
    channels: int = 256
    mask: int = 128
    dim: int = 256
    classes: int = 40
    identities: int = 3774


SMALL = Sizes(stem=6, mid=4, channels=8, mask=6, dim=5, classes=3, identities=7)


def norm(theirs: str, ours: str, width: int) -> Iterator[Key]:
    for name in BN4:
        yield f"{theirs}.{name}", f"{ours}.{name}", (width,)


def affine(theirs: str, ours: str | None, *shape: int) -> Iterator[Key]:
    yield f"{theirs}.weight", ours and f"{ours}.weight", shape
    yield f"{theirs}.bias", ours and f"{ours}.bias", shape[:1]


def counter(theirs: str, ours: str) -> Key:
    return f"{theirs}.num_batches_tracked", f"{ours}.num_batches_tracked", ()


def resnet(s: Sizes, prefix: str = "") -> Iterator[Key]:
    yield f"{prefix}stem.conv1.weight", "backbone.stem.conv.weight", (s.stem, 3, 7, 7)
    yield from norm(f"{prefix}stem.conv1.norm", "backbone.stem.norm", s.stem)
    inputs = s.stem
    for stage, depth in enumerate(s.blocks, start=2):
        mid = s.mid * 2 ** (stage - 2)
        for j in range(depth):
            theirs, ours = f"{prefix}res{stage}.{j}", f"backbone.res{stage}.{j}"
            shapes = {"conv1": (mid, inputs, 1, 1), "conv2": (mid, mid, 3, 3), "conv3": (4 * mid, mid, 1, 1)}
            if j == 0:
                shapes["shortcut"] = (4 * mid, inputs, 1, 1)
            for name, shape in shapes.items():
                yield f"{theirs}.{name}.weight", f"{ours}.{name}.conv.weight", shape
                yield from norm(f"{theirs}.{name}.norm", f"{ours}.{name}.norm", shape[0])
            inputs = 4 * mid


def pyramid(s: Sizes, inputs: Sequence[int]) -> Iterator[Key]:
    for i, width in enumerate(inputs):
        yield from affine(f"backbone.fpn_lateral{i + 3}", f"fpn.lateral.{i}", s.channels, width, 1, 1)
        yield from affine(f"backbone.fpn_output{i + 3}", f"fpn.output.{i}", s.channels, s.channels, 3, 3)


def heads(s: Sizes, levels: int, embedding: bool) -> Iterator[Key]:
    c, fcos = s.channels, "proposal_generator.fcos_head"
    towers = {"cls": "fcos.class_tower", "bbox": "fcos.box_tower"} | ({"reid": "embedding.tower"} if embedding else {})
    for theirs, ours in towers.items():
        for i in (0, 3, 6, 9):
            yield from affine(f"{fcos}.{theirs}_tower.{i}", f"{ours}.{i}", c, c, 3, 3)
            yield from affine(f"{fcos}.{theirs}_tower.{i + 1}", f"{ours}.{i + 1}", c)
    yield from affine(f"{fcos}.cls_logits", "fcos.class_logits", s.classes, c, 3, 3)
    yield from affine(f"{fcos}.bbox_pred", "fcos.distances", 4, c, 3, 3)
    yield from affine(f"{fcos}.ctrness", "fcos.centerness", 1, c, 3, 3)
    for i in range(levels):
        yield f"{fcos}.scales.{i}.scale", f"fcos.scales[{i}]", (1,)
    if embedding:
        yield from affine(f"{fcos}.reid_pred", "embedding.project", s.dim, c, 1, 1)
        yield from norm(f"{fcos}.reid_pred_bn", "embedding.norm", s.dim)
        yield counter(f"{fcos}.reid_pred_bn", "embedding.norm")
    for part, count, width in (("refine", 3, c), ("tower", 4, s.mask)):
        for i in range(count):
            yield f"mask_branch.{part}.{i}.0.weight", f"mask_branch.{part}.{i}.0.weight", (s.mask, width, 3, 3)
            yield from norm(f"mask_branch.{part}.{i}.1", f"mask_branch.{part}.{i}.1", s.mask)
            yield counter(f"mask_branch.{part}.{i}.1", f"mask_branch.{part}.{i}.1")
    yield from affine("mask_branch.tower.4", "mask_branch.output", 8, s.mask, 1, 1)
    yield from affine("controller", "controller", 169, c, 3, 3)
    yield "mask_head.sizes_of_interest", None, (levels,)
    yield "mask_head._iter", None, (1,)
    if embedding:
        yield from affine("cls", "proxies.proxies", s.identities, s.dim)


def crossvis(s: Sizes = Sizes(), embedding: bool = True) -> list[Key]:
    """Specification 6.2; without embedding: CondInst's files."""
    top = [k for p in (6, 7) for k in affine(f"backbone.top_block.p{p}", f"fpn.p{p}", s.channels, s.channels, 3, 3)]
    inputs = [4 * s.mid * 2**i for i in (1, 2, 3)]
    return [*resnet(s, "backbone.bottom_up."), *pyramid(s, inputs), *top, *heads(s, 5, embedding)]


def caffe(s: Sizes = Sizes()) -> list[Key]:
    """Rule 6 of 6.3: no running statistics."""
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    keys: list[Key] = []
    for theirs, ours, shape in resnet(s):
        if "running" in theirs:
            continue
        _, _, tensor = theirs.partition(".norm.")
        suffix = {"weight": "bn_s", "bias": "bn_b", "": "w"}[tensor]
        if theirs.startswith("stem"):
            name = "conv1_w" if suffix == "w" else f"res_conv1_{suffix}"
        else:
            stage, block, conv = theirs.split(".")[:3]
            name = f"{stage}_{block}_{branches[conv]}_{suffix}"
        keys.append((name, ours, shape))
    return [*keys, ("fc1000_w", None, (10, 32 * s.mid)), ("fc1000_b", None, (10,))]


def torchvision(s: Sizes = Sizes(), prefix: str = "", classifier: bool = True) -> list[Key]:
    """layer1..4, bn1..3, downsample.0 and .1; every norm has a counter."""
    keys: list[Key] = []
    for theirs, ours, shape in resnet(s):
        parts = theirs.split(".")
        if parts[0] == "stem":
            where, conv = "", "1"
        else:
            where, conv = f"layer{int(parts[0][3]) - 1}.{parts[1]}.", parts[2].removeprefix("conv")
        is_norm, tensor = "norm" in parts, parts[-1]
        if conv == "shortcut":
            name = f"{where}downsample.{int(is_norm)}.{tensor}"
        else:
            name = f"{where}{'bn' if is_norm else 'conv'}{conv}.{tensor}"
        keys.append((prefix + name, ours, shape))
        if tensor == "running_var":
            keys.append((prefix + name.replace("running_var", "num_batches_tracked"),
                         ours.replace("running_var", "num_batches_tracked"), ()))
    return keys + ([("fc.weight", None, (10, 32 * s.mid)), ("fc.bias", None, (10,))] if classifier else [])


def dla34(prefix: str = "", widths: Sequence[int] = (16, 32, 64, 128, 256, 512)) -> list[Key]:
    """Specification 6.4 and, for the shapes, 2.2."""
    w = widths
    convs: list[tuple[str, str, tuple[int, ...]]] = [          # (convolution, its norm, shape)
        ("base_layer.0", "base_layer.1", (w[0], 3, 7, 7)),
        ("level0.0", "level0.1", (w[0], w[0], 3, 3)),
        ("level1.0", "level1.1", (w[1], w[0], 3, 3)),
    ]

    def block(name: str, inputs: int, outputs: int) -> None:
        convs.append((f"{name}.conv1", f"{name}.bn1", (outputs, inputs, 3, 3)))
        convs.append((f"{name}.conv2", f"{name}.bn2", (outputs, outputs, 3, 3)))

    def root(name: str, inputs: int, outputs: int) -> None:
        convs.append((f"{name}.conv", f"{name}.bn", (outputs, inputs, 1, 1)))

    def project(name: str, inputs: int, outputs: int) -> None:
        convs.append((f"{name}.0", f"{name}.1", (outputs, inputs, 1, 1)))

    for level, root_inputs in ((2, 2 * w[2]), (5, 2 * w[5] + w[4])):
        block(f"level{level}.tree1", w[level - 1], w[level])
        block(f"level{level}.tree2", w[level], w[level])
        root(f"level{level}.root", root_inputs, w[level])
        project(f"level{level}.project", w[level - 1], w[level])
    for level in (3, 4):
        inputs, out = w[level - 1], w[level]
        for tree in ("tree1", "tree2"):
            block(f"level{level}.{tree}.tree1", inputs if tree == "tree1" else out, out)
            block(f"level{level}.{tree}.tree2", out, out)
        root(f"level{level}.tree1.root", 2 * out, out)                     # 256 and 512
        root(f"level{level}.tree2.root", 3 * out + inputs, out)            # 448 and 896
        project(f"level{level}.tree1.project", inputs, out)
        project(f"level{level}.project", inputs, out)                      # in the files, read by nothing
    keys: list[Key] = []
    for conv, bn, shape in convs:
        keys.append((f"{prefix}{conv}.weight", f"backbone.{conv}.weight", shape))
        keys += norm(f"{prefix}{bn}", f"backbone.{bn}", shape[0])
        keys.append(counter(f"{prefix}{bn}", f"backbone.{bn}"))
    return keys


def masktrack(s: Sizes = Sizes(), hidden: int = 1024) -> list[Key]:
    """Specification 6.4 and, for the shapes, 5.2."""
    c, regions = s.channels, 49 * s.channels
    keys = torchvision(s, "backbone.", classifier=False)
    for i in range(4):
        keys += affine(f"neck.lateral_convs.{i}.conv", f"fpn.lateral.{i}", c, 4 * s.mid * 2**i, 1, 1)
        keys += affine(f"neck.fpn_convs.{i}.conv", f"fpn.output.{i}", c, c, 3, 3)
        keys += affine(f"mask_head.convs.{i}.conv", f"mask_head.convs.{i}", c, c, 3, 3)
    keys += affine("rpn_head.rpn_conv", "rpn.conv", c, c, 3, 3)
    keys += affine("rpn_head.rpn_cls", "rpn.logits", 3, c, 1, 1)
    keys += affine("rpn_head.rpn_reg", "rpn.deltas", 12, c, 1, 1)
    for head, ours in (("bbox_head.shared_fcs", "box_head"), ("track_head.fcs", "track_head")):
        keys += affine(f"{head}.0", f"{ours}.fc1", hidden, regions)
        keys += affine(f"{head}.1", f"{ours}.fc2", hidden, hidden)
    keys += affine("bbox_head.fc_cls", "box_head.class_logits", s.classes + 1, hidden)
    keys += affine("bbox_head.fc_reg", "box_head.deltas", 4 * (s.classes + 1), hidden)
    keys += affine("mask_head.upsample", "mask_head.upsample", c, c, 2, 2)
    keys += affine("mask_head.conv_logits", "mask_head.logits", s.classes + 1, c, 1, 1)
    return keys


def filled(keys: Sequence[Key], seed: int = 0) -> dict[str, Tensor]:
    """Their names -> random numbers; counters are whole, the sizes of interest those of 6.2."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, _, shape in keys:
        state[name] = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.randint(1, 999, (), generator=generator)
        elif name.endswith("sizes_of_interest"):
            state[name] = torch.tensor([64, 128, 256, 512, 1024][: shape[0]])
    return state


def by_our_names(keys: Sequence[Key], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a right import makes of `state`: each of ours, the single scales as one vector."""
    ours = {mine: state[theirs] for theirs, mine, _ in keys if mine and not mine.endswith("]")}
    scales = [state[theirs] for theirs, mine, _ in keys if mine and mine.endswith("]")]
    return ours | ({"fcos.scales": torch.cat(scales)} if scales else {})
