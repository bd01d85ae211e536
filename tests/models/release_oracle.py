"""Oracle of the released CrossVIS: a second network in float64, from the formulas alone, on a released state dict.

In:     released_state(seed): tensors under the names of the release; sizes follow from the tensors, so thin ones do
Out:    features, heads, mask_features, detect, mask_logits, binary_mask, associate: all that the release does at test
Limits: loops and plain formulas; nothing of models/ or operators/ is used, so that both cannot share a mistake
Source: crossvis.md 2.2-2.9 (network), 4.1 (detections, masks), 4.2 and 4.4 (identities), 6.2 (names)
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
LEVELS = (3, 4, 5, 6, 7)
DIVISORS = {3: 64.0, 4: 128.0, 5: 256.0, 6: 512.0, 7: 1024.0}
HEAD = "proposal_generator.fcos_head"


class Draw:
    """The random values of a state: lively, and of a size that keeps every map near 1."""

    def __init__(self, seed: int) -> None:
        self.state: State = {}
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, key: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> None:
        self.state[key] = torch.randn(shape, generator=self._generator) * std + mean

    def uniform(self, key: str, shape: tuple[int, ...], low: float, high: float) -> None:
        self.state[key] = torch.rand(shape, generator=self._generator) * (high - low) + low

    def conv(self, key: str, out: int, inputs: int, size: int, gain: float = 1.0, bias: float | None = None) -> None:
        self.normal(f"{key}.weight", (out, inputs, size, size), gain * math.sqrt(2 / (inputs * size * size)))
        if bias is not None:
            self.normal(f"{key}.bias", (out,), 0.1, bias)

    def norm(self, key: str, width: int, *, gain: float = 1.0, running: bool = True, counter: bool = False) -> None:
        self.uniform(f"{key}.weight", (width,), 0.7 * gain, 1.3 * gain)
        self.normal(f"{key}.bias", (width,), 0.1)
        if running:
            self.normal(f"{key}.running_mean", (width,), 0.1)
            self.uniform(f"{key}.running_var", (width,), 0.6, 1.6)
        if counter:
            self.state[f"{key}.num_batches_tracked"] = torch.tensor(7)


def released_state(seed: int = 0, *, blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, channels: int = 256,
                   mask_width: int = 128, classes: int = 40, identities: int | None = 3774,
                   class_bias: float = -5.0) -> State:
    """The tensors of a released file; `width` of the stem and of res2's middle. `identities` None: CondInst."""
    draw = Draw(seed)
    _backbone(draw, blocks, width, channels)
    _heads(draw, channels, classes, class_bias, identities is not None)
    for i in range(3):
        draw.conv(f"mask_branch.refine.{i}.0", mask_width, channels, 3)
        draw.norm(f"mask_branch.refine.{i}.1", mask_width, counter=True)
    for i in range(4):
        draw.conv(f"mask_branch.tower.{i}.0", mask_width, mask_width, 3)
        draw.norm(f"mask_branch.tower.{i}.1", mask_width, counter=True)
    draw.conv("mask_branch.tower.4", 8, mask_width, 1, gain=0.5, bias=0.0)
    draw.state["mask_head.sizes_of_interest"] = torch.tensor([64, 128, 256, 512, 1024])
    draw.state["mask_head._iter"] = torch.tensor([90000.0])
    draw.conv("controller", 169, channels, 3, gain=0.35, bias=0.0)
    if identities is not None:
        draw.normal("cls.weight", (identities, channels), 0.05)
        draw.normal("cls.bias", (identities,), 0.1, -4.0)
    return draw.state


def _backbone(draw: Draw, blocks: tuple[int, ...], width: int, channels: int) -> None:
    bottom_up = "backbone.bottom_up"
    draw.normal(f"{bottom_up}.stem.conv1.weight", (width, 3, 7, 7), 0.002)
    draw.norm(f"{bottom_up}.stem.conv1.norm", width)
    before = width
    for stage, count in enumerate(blocks, start=2):
        middle = width * 2 ** (stage - 2)
        for j in range(count):
            block = f"{bottom_up}.res{stage}.{j}"
            sides = [("conv1", middle, before, 1, 1.0), ("conv2", middle, middle, 3, 1.0),
                     ("conv3", 4 * middle, middle, 1, 0.4)]
            for name, out, inputs, size, gain in sides + [("shortcut", 4 * middle, before, 1, 0.7)] * (j == 0):
                draw.conv(f"{block}.{name}", out, inputs, size)
                draw.norm(f"{block}.{name}.norm", out, gain=gain)
            before = 4 * middle
        if stage > 2:
            draw.conv(f"backbone.fpn_lateral{stage}", channels, before, 1, gain=0.7, bias=0.0)
            draw.conv(f"backbone.fpn_output{stage}", channels, channels, 3, gain=0.7, bias=0.0)
    for level in (6, 7):
        draw.conv(f"backbone.top_block.p{level}", channels, channels, 3, bias=0.0)


def _heads(draw: Draw, channels: int, classes: int, class_bias: float, embedding: bool) -> None:
    for tower in ("cls", "bbox") + ("reid",) * embedding:
        for i in range(4):
            draw.conv(f"{HEAD}.{tower}_tower.{3 * i}", channels, channels, 3, bias=0.0)
            draw.norm(f"{HEAD}.{tower}_tower.{3 * i + 1}", channels, running=False)
    draw.conv(f"{HEAD}.cls_logits", classes, channels, 3, gain=1.5, bias=class_bias)
    draw.conv(f"{HEAD}.bbox_pred", 4, channels, 3, bias=1.5)
    draw.conv(f"{HEAD}.ctrness", 1, channels, 3, bias=0.5)
    for i in range(5):
        draw.uniform(f"{HEAD}.scales.{i}.scale", (1,), 0.8, 1.5)
    if embedding:
        draw.conv(f"{HEAD}.reid_pred", channels, channels, 1, bias=0.0)
        draw.norm(f"{HEAD}.reid_pred_bn", channels, counter=True)


def float64(state: State) -> State:
    """A copy to compute with (and to change: running statistics), floats widened."""
    return {key: value.double() if value.is_floating_point() else value.clone() for key, value in state.items()}


# --- 2.2, 2.3: trunk and pyramid -------------------------------------------------------------------------------------

def features(state: State, images: Tensor) -> list[Tensor]:
    """P3 to P7 of images (B, 3, H, W): BGR, mean subtracted, sides multiples of 32."""
    x = _frozen(state, "backbone.bottom_up.stem.conv1", images, stride=2, padding=3).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    maps = {}
    for stage in (2, 3, 4, 5):
        j = 0
        while f"backbone.bottom_up.res{stage}.{j}.conv1.weight" in state:
            block, stride = f"backbone.bottom_up.res{stage}.{j}", 2 if j == 0 and stage > 2 else 1
            y = _frozen(state, f"{block}.conv1", x, stride=stride).relu()
            y = _frozen(state, f"{block}.conv2", y, padding=1).relu()
            y = _frozen(state, f"{block}.conv3", y)
            x = (y + (_frozen(state, f"{block}.shortcut", x, stride=stride) if j == 0 else x)).relu()
            j += 1
        maps[stage] = x
    merged = None
    pyramid = []
    for stage in (5, 4, 3):
        side = _conv(state, f"backbone.fpn_lateral{stage}", maps[stage])
        merged = side if merged is None else side + merged.repeat_interleave(2, 2).repeat_interleave(2, 3)
        pyramid.insert(0, _conv(state, f"backbone.fpn_output{stage}", merged, padding=1))
    p6 = _conv(state, "backbone.top_block.p6", pyramid[2], stride=2, padding=1)
    p7 = _conv(state, "backbone.top_block.p7", p6.relu(), stride=2, padding=1)
    return [*pyramid, p6, p7]


def _conv(state: State, key: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, state[f"{key}.weight"], state.get(f"{key}.bias"), stride, padding)


def _frozen(state: State, key: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    x = F.conv2d(x, state[f"{key}.weight"], None, stride, padding)
    weight, bias, mean, var = (state[f"{key}.norm.{name}"][:, None, None]
                               for name in ("weight", "bias", "running_mean", "running_var"))
    return x * weight / (var + 1e-5).sqrt() + bias - mean * weight / (var + 1e-5).sqrt()


# --- 2.4-2.7, 2.9: heads and mask branch -----------------------------------------------------------------------------

def batch_norm(state: State, key: str, x: Tensor, train: bool) -> Tensor:
    """With batch statistics (and running averages moved by 0.1 in `state`) while training, else with the averages."""
    mean, var = state[f"{key}.running_mean"], state[f"{key}.running_var"]
    if train:
        count = x.shape[0] * x.shape[2] * x.shape[3]
        mean = x.mean((0, 2, 3))
        var = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
        state[f"{key}.running_mean"] = 0.9 * state[f"{key}.running_mean"] + 0.1 * mean.detach()
        state[f"{key}.running_var"] = 0.9 * state[f"{key}.running_var"] + 0.1 * var.detach() * count / (count - 1)
        state[f"{key}.num_batches_tracked"] = state[f"{key}.num_batches_tracked"] + 1
    unit = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    return unit * state[f"{key}.weight"][:, None, None] + state[f"{key}.bias"][:, None, None]


def _tower(state: State, name: str, x: Tensor) -> Tensor:
    for i in range(4):
        x = _conv(state, f"{HEAD}.{name}_tower.{3 * i}", x, padding=1)
        groups = x.reshape(x.shape[0], 32, -1)
        mean, var = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
        x = ((groups - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
        affine = f"{HEAD}.{name}_tower.{3 * i + 1}"
        x = (x * state[f"{affine}.weight"][:, None, None] + state[f"{affine}.bias"][:, None, None]).relu()
    return x


def heads(state: State, pyramid: list[Tensor], train: bool = False) -> list[dict[str, Tensor]]:
    """For each level: classes (B, C, h, w), boxes (B, 4, h, w) in strides, centers, filters, embeddings."""
    outputs = []
    for i, level in enumerate(pyramid):
        classes, boxes = _tower(state, "cls", level), _tower(state, "bbox", level)
        out = {
            "classes": _conv(state, f"{HEAD}.cls_logits", classes, padding=1),
            "boxes": (_conv(state, f"{HEAD}.bbox_pred", boxes, padding=1) * state[f"{HEAD}.scales.{i}.scale"]).relu(),
            "centers": _conv(state, f"{HEAD}.ctrness", boxes, padding=1),
            "filters": _conv(state, "controller", boxes, padding=1),
        }
        if f"{HEAD}.reid_pred.weight" in state:
            raw = _conv(state, f"{HEAD}.reid_pred", _tower(state, "reid", level))
            out["embeddings"] = batch_norm(state, f"{HEAD}.reid_pred_bn", raw, train)
        outputs.append(out)
    return outputs


def mask_features(state: State, pyramid: list[Tensor], train: bool = False) -> Tensor:
    """(B, 8, H/8, W/8) from P3, P4, P5."""
    x: Tensor | None = None
    for i in range(3):
        side = _conv(state, f"mask_branch.refine.{i}.0", pyramid[i], padding=1)
        side = upsample(batch_norm(state, f"mask_branch.refine.{i}.1", side, train).relu(), 2 ** i)
        x = side if x is None else x + side
    for i in range(4):
        x = _conv(state, f"mask_branch.tower.{i}.0", x, padding=1)
        x = batch_norm(state, f"mask_branch.tower.{i}.1", x, train).relu()
    return _conv(state, "mask_branch.tower.4", x)


def upsample(x: Tensor, factor: int) -> Tensor:
    """U_f on the last two axes: out[j] = lerp(in, clamp((j - f // 2) / f, 0, n - 1))."""
    return _aligned(x.shape[-2], factor) @ x @ _aligned(x.shape[-1], factor).T


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Ordinary bilinear on the last two axes: cell centres at halves, clamped at the first."""
    return _half_pixel(x.shape[-2], height) @ x @ _half_pixel(x.shape[-1], width).T


@functools.cache
def _aligned(n: int, factor: int) -> Tensor:
    return _taps([min(max((j - factor // 2) / factor, 0), n - 1) for j in range(factor * n)], n)


@functools.cache
def _half_pixel(n: int, out: int) -> Tensor:
    return _taps([max((j + 0.5) * n / out - 0.5, 0) for j in range(out)], n)


def _taps(places: list[float], n: int) -> Tensor:
    rows = torch.zeros(len(places), n, dtype=torch.float64)
    for j, place in enumerate(places):
        low = min(math.floor(place), n - 1)
        rows[j, low] += 1 - (place - low)
        rows[j, min(low + 1, n - 1)] += place - low
    return rows


# --- 2.8: the dynamic head -------------------------------------------------------------------------------------------

def mask_logits(features_of_image: Tensor, theta: Tensor, x: float, y: float, level: int) -> Tensor:
    """(2h, 2w) logits at stride 4 from (8, h, w) features, 169 numbers, and the instance's point and level."""
    _, h, w = features_of_image.shape
    v, u = torch.meshgrid(8 * torch.arange(h) + 4.0, 8 * torch.arange(w) + 4.0, indexing="ij")
    places = torch.stack([(x - u) / DIVISORS[level], (y - v) / DIVISORS[level]]).double()
    z = torch.cat([places, features_of_image]).reshape(10, h * w)
    w1, w2, w3 = theta[:80].reshape(8, 10), theta[80:144].reshape(8, 8), theta[144:152].reshape(1, 8)
    z = (w1 @ z + theta[152:160, None]).relu()
    z = (w2 @ z + theta[160:168, None]).relu()
    return upsample((w3 @ z + theta[168]).reshape(h, w), 2)


def binary_mask(logits: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Probabilities (H0, W0) at the original size from stride-4 logits; the mask is where they exceed 0.5."""
    return resize(upsample(logits.sigmoid(), 4)[:size[0], :size[1]], *original)


# --- 4.1: detections -------------------------------------------------------------------------------------------------

class Found(NamedTuple):
    """One detection: box in pixels of the network's input, unclipped."""

    score: float
    label: int
    box: tuple[float, float, float, float]
    x: float
    y: float
    level: int
    theta: Tensor
    embedding: Tensor | None


def detect(outputs: list[dict[str, Tensor]], image: int, per_level: int = 1000, per_frame: int = 100) -> list[Found]:
    """Steps 1 to 4 for one image of the batch; descending score, equal scores in order of level, location, class."""
    candidates: list[Found] = []
    for level, out in zip(LEVELS, outputs, strict=True):
        here = _candidates({key: value[image] for key, value in out.items()}, level)
        candidates += sorted(here, key=lambda found: -found.score)[:per_level]
    kept: list[Found] = []
    for found in sorted(candidates, key=lambda found: -found.score):
        if all(other.label != found.label or iou(other.box, found.box) <= 0.6 for other in kept):
            kept.append(found)
    return kept if len(kept) <= per_frame else [found for found in kept if found.score >= kept[per_frame - 1].score]


def _candidates(out: dict[str, Tensor], level: int) -> list[Found]:
    stride, found = 2 ** level, []
    scores = out["classes"].sigmoid() * out["centers"].sigmoid()
    for i in range(scores.shape[1]):
        for j in range(scores.shape[2]):
            x, y = stride * j + stride / 2, stride * i + stride / 2
            left, top, right, bottom = (stride * float(side) for side in out["boxes"][:, i, j])
            for label in (scores[:, i, j] > 0.05).nonzero()[:, 0].tolist():
                found.append(Found(math.sqrt(scores[label, i, j]), label, (x - left, y - top, x + right, y + bottom),
                                   x, y, level, out["filters"][:, i, j],
                                   out["embeddings"][:, i, j] if "embeddings" in out else None))
    return found


def iou(a: tuple[float, ...], b: tuple[float, ...], eps: float = 0.0) -> float:
    """Intersection over union, 0 for two empty boxes; `eps` is added to the union."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(wide, 0.0) * max(high, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter + eps
    return inter / union if union > 0 else 0.0


def to_original(found: list[Found], size: tuple[int, int], original: tuple[int, int]) -> list[Found]:
    """Step 5 for boxes: scaled from the resized frame to the original one, clipped, empty ones dropped."""
    (h, w), (height, width) = size, original
    scaled = []
    for one in found:
        x1, y1, x2, y2 = one.box
        x1, x2 = (min(max(x * width / w, 0.0), width) for x in (x1, x2))
        y1, y2 = (min(max(y * height / h, 0.0), height) for y in (y1, y2))
        if x2 > x1 and y2 > y1:
            scaled.append(one._replace(box=(x1, y1, x2, y2)))
    return scaled


# --- 4.2, 4.4: identities --------------------------------------------------------------------------------------------

class Track(NamedTuple):
    """One entry of a results file: category from 0, mean score, frame -> place of the record in that frame."""

    label: int
    score: float
    records: dict[int, int]


def associate(frames: list[list[Found]]) -> tuple[list[list[int | None]], list[Track]]:
    """Mode A over the frames of a video: the identity of every detection (None: discarded), and the tracks."""
    latest: dict[int, Found] = {}
    history: dict[int, list[tuple[int, int, Found]]] = {}
    answers: list[list[int | None]] = []
    for t, frame in enumerate(frames):
        ids, claims, before = [None] * len(frame), {}, dict(latest)
        for d, found in enumerate(frame):
            matches = [(_match(found, one), k) for k, one in before.items()]
            best = max((m for m, _ in matches), default=-math.inf)
            if best < 0.4:
                ids[d] = len(latest)
                latest[ids[d]] = found
                continue
            claimed = next(k for m, k in matches if m == best)
            if claimed not in claims or best > claims[claimed][0]:
                claims[claimed] = (best, d)
        for k, (_, d) in claims.items():
            ids[d], latest[k] = k, frame[d]
        for d, k in enumerate(ids):
            if k is not None:
                history.setdefault(k, []).append((t, d, frame[d]))
        answers.append(ids)
    tracks = [Track(rows[0][2].label, sum(row[2].score for row in rows) / len(rows), {t: d for t, d, _ in rows})
              for _, rows in sorted(history.items())]
    return answers, tracks


def _match(a: Found, b: Found) -> float:
    if a.label != b.label:
        return -1.0
    cosine = float(a.embedding @ b.embedding / (a.embedding.norm() * b.embedding.norm()))
    return cosine + iou(a.box, b.box, eps=1e-5)
