"""Layers of the fused form: what networks of models/ are made of, rewritten for inference alone.

In, out: (B, C, H, W), channels last in memory
State:   none that changes a result; weights laid out anew for each size of input are kept
Source:  a norm with fixed statistics is affine, so it folds into the convolution before it (Jacob et al., CVPR 2018,
         section 3.2). Folding is done in float64, and rounded once to the form's dtype.

oneDNN, which runs convolutions on a CPU, wants weights in blocks. PyTorch's public convolution lays them out at every
call: 0.1 ms for a 3x3 of 256 channels, on P7 more than the convolution itself. `mkldnn._convolution_pointwise` takes
them laid out, and does the sum and the ReLU that follow while a value is still in a register. It is what
torch.compile's frozen graphs call, and not a documented name: where PyTorch has it no longer, or it answers otherwise
than the public convolution, `Form.prepacked` is False, the public one is called, and results stay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.association_block import HybridAssociation
from models.condinst import CondInst
from models.crossvis import CrossVIS
from models.dla import BasicBlock, Root
from models.dynamic_mask import MaskBranch
from models.embedding import EmbeddingHead
from models.fcos import FCOSHead
from models.iai import IAI, IdentityHead
from models.norms import BATCH_NORM_EPS, NORMS
from models.resnet import Bottleneck, ConvNorm

MAX_PACKED = 10
"""Input sizes for which one convolution keeps its weights laid out: five levels of frames of two sizes. Each costs the
memory of the weights once more; a size too many costs laying them out at every call, as without."""
MIN_NATIVE_GROUP_NORM = 1024
"""Cells of a map from which PyTorch's GroupNorm is fast on channels-last CPU maps; below, it is 10 times slower."""
NORM_TYPES = tuple(NORMS.values())


@dataclass(frozen=True)
class Form:
    """How a network is to be computed."""

    dtype: torch.dtype
    prepacked: bool
    """Weights laid out once, by oneDNN."""

    def exact(self) -> Form:
        """The same in float32: for layers that predict, which are small, and whose rounding is seen at once."""
        return replace(self, dtype=torch.float32)


def fold(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does both, float64.  -> (O, I, k, k), (O,)"""
    weight = conv.weight.detach().double()
    bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    if conv.bias is not None:
        bias = conv.bias.detach().double()
    if norm is None:
        return weight, bias
    eps = getattr(norm, "eps", BATCH_NORM_EPS)
    scale = norm.weight.detach().double() * (norm.running_var.double() + eps).rsqrt()
    shift = norm.bias.detach().double() - norm.running_mean.double() * scale
    return weight * scale[:, None, None, None], bias * scale + shift


class Conv(nn.Module):
    """Convolution with its norm folded in, then a sum and a ReLU where asked for.  (B, I, H, W) -> (B, O, H/s, W/s)

    Takes maps of any dtype and gives those of its own.
    """

    def __init__(self, conv: nn.Conv2d, form: Form, norm: nn.Module | None = None, relu: bool = False) -> None:
        super().__init__()
        weight, bias = fold(conv, norm)
        self.register_buffer("weight", weight.to(form.dtype).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.to(form.dtype))
        self.geometry = [*(list(v) for v in (conv.padding, conv.stride, conv.dilation)), conv.groups]
        self.relu, self.prepacked = relu, form.prepacked
        self.packed: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        x = x.to(self.weight.dtype)
        if self.prepacked:
            return self._onednn(x, added)
        padding, stride, dilation, groups = self.geometry
        y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        y = y if added is None else y + added
        return F.relu(y) if self.relu else y

    def _onednn(self, x: Tensor, added: Tensor | None) -> Tensor:
        pointwise, weight, relu = torch.ops.mkldnn._convolution_pointwise, self._weight_for(x.shape), self.relu
        if added is None:
            return pointwise(x, weight, self.bias, *self.geometry, "relu" if relu else "none", [], "")
        return pointwise.binary(
            x, added, weight, self.bias, *self.geometry, "add", 1.0, "relu" if relu else None, [], None
        )

    def _weight_for(self, shape: torch.Size) -> Tensor:
        """The layout depends on the size of the input; one made for no size can be twenty times slower."""
        if shape not in self.packed:
            if len(self.packed) == MAX_PACKED:
                self.packed.pop(next(iter(self.packed)))
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            self.packed[shape] = reorder(self.weight, *self.geometry, list(shape))
        return self.packed[shape]


@functools.cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's own convolution, and it gives what the public one gives."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 6, 5, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    source = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)
    source.weight.normal_(0, 0.1, generator=generator)
    results = []
    try:
        for prepacked in (False, True):
            conv = Conv(source, Form(dtype, prepacked), relu=True)
            results.append((conv(x), conv(x, added=x)))
    except (AttributeError, RuntimeError, TypeError, ValueError):       # no such operator, or other arguments
        return False
    public, packed = results
    return all(torch.allclose(a.float(), b.float(), atol=0.05) for a, b in zip(public, packed, strict=True))


class GroupNormReLU(nn.Module):
    """GroupNorm and the ReLU behind it; statistics and arithmetic in float32.  (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.register_buffer("weight", norm.weight.detach().float())
        self.register_buffer("bias", norm.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.shape[2] * x.shape[3] < MIN_NATIVE_GROUP_NORM:
            return self._small(x)
        weight, bias = (v if x.device.type == "cpu" else v.to(x.dtype) for v in (self.weight, self.bias))
        return F.group_norm(x, self.groups, weight, bias, self.eps).relu_()

    def _small(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        values = x.float()
        count = h * w * (c // self.groups)
        mean = values.sum((2, 3)).view(b, self.groups, -1).sum(2, keepdim=True) / count             # (B, G, 1)
        centred = values - mean.expand(-1, -1, c // self.groups).reshape(b, c, 1, 1)
        var = centred.square().sum((2, 3)).view(b, self.groups, -1).sum(2, keepdim=True) / count
        scale = (var + self.eps).rsqrt() * self.weight.view(1, self.groups, -1)                     # (B, G, C/G)
        return torch.addcmul(self.bias.view(1, c, 1, 1), centred, scale.view(b, c, 1, 1)).relu_().to(x.dtype)


class FusedBottleneck(nn.Module):
    """models/resnet.py's Bottleneck: ReLUs, and the sum with the shortcut, inside the convolutions."""

    def __init__(self, block: Bottleneck, form: Form) -> None:
        super().__init__()
        self.conv1 = Conv(block.conv1.conv, form, block.conv1.norm, relu=True)
        self.conv2 = Conv(block.conv2.conv, form, block.conv2.norm, relu=True)
        self.conv3 = Conv(block.conv3.conv, form, block.conv3.norm, relu=True)
        self.shortcut = lower(block.shortcut, form)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)), added=self.shortcut(x))


class FusedBasicBlock(nn.Module):
    """models/dla.py's BasicBlock, likewise."""

    def __init__(self, block: BasicBlock, form: Form) -> None:
        super().__init__()
        self.conv1 = Conv(block.conv1, form, block.bn1, relu=True)
        self.conv2 = Conv(block.conv2, form, block.bn2, relu=True)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.conv2(self.conv1(x), added=residual)


class FusedRoot(nn.Module):
    """models/dla.py's Root, likewise."""

    def __init__(self, root: Root, form: Form) -> None:
        super().__init__()
        self.conv = Conv(root.conv, form, root.bn, relu=True)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.conv(torch.cat(maps, dim=1))


def _sequential(layers: nn.Sequential, form: Form) -> nn.Sequential:
    """[Conv2d, norm or none, ReLU or none] -> Conv; [GroupNorm, ReLU] -> GroupNormReLU; others one by one."""
    rest, out = list(layers), []
    while rest:
        layer = rest.pop(0)
        if isinstance(layer, nn.Conv2d):
            norm = rest.pop(0) if rest and isinstance(rest[0], NORM_TYPES) else None
            relu = bool(rest) and isinstance(rest[0], nn.ReLU)
            out.append(Conv(layer, form, norm, relu))
        elif relu := isinstance(layer, nn.GroupNorm) and bool(rest) and isinstance(rest[0], nn.ReLU):
            out.append(GroupNormReLU(layer))
        else:
            relu = False
            out.append(lower(layer, form))
        if relu:
            rest.pop(0)
    return nn.Sequential(*out)


def _with_exact(*names: str) -> Callable[[nn.Module, Form], nn.Module]:
    """In place: the convolutions `names` in float32, all else in the form's dtype."""

    def lowered(module: nn.Module, form: Form) -> nn.Module:
        for name, child in module.named_children():
            setattr(module, name, lower(child, form.exact() if name in names else form))
        return module

    return lowered


def _embedding(head: EmbeddingHead, form: Form) -> EmbeddingHead:
    head.tower = lower(head.tower, form)
    head.project, head.norm = Conv(head.project, form.exact(), head.norm), nn.Identity()
    return head


_LOWERED: dict[type, Callable[[nn.Module, Form], nn.Module]] = {
    nn.Conv2d: Conv,
    nn.Sequential: _sequential,
    ConvNorm: lambda m, form: Conv(m.conv, form, m.norm),
    Bottleneck: FusedBottleneck,
    BasicBlock: FusedBasicBlock,
    Root: FusedRoot,
    EmbeddingHead: _embedding,
    FCOSHead: _with_exact("class_logits", "distances", "centerness"),
    MaskBranch: _with_exact("output"),
    CondInst: _with_exact("controller"),
    CrossVIS: _with_exact("controller", "calibration"),
    HybridAssociation: lambda m, form: m,       # float32: its rounding would come back with every frame
    IdentityHead: _with_exact("logits"),
    IAI: _with_exact("controller"),
}


def lower(module: nn.Module, form: Form) -> nn.Module:
    """The fused form of a module of models/; one without its own is kept, with its children replaced, in place.

    Raises ValueError for a norm that stands behind no convolution it could be folded into.
    """
    if isinstance(module, (*NORM_TYPES, nn.GroupNorm)):
        raise ValueError(f"fuse: a {type(module).__name__} with no convolution before it, or no ReLU behind it")
    if type(module) in _LOWERED:
        return _LOWERED[type(module)](module, form)
    for name, child in module.named_children():
        setattr(module, name, lower(child, form))
    return module
