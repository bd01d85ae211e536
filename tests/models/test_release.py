"""Our networks with released weights, against the second implementation in release_oracle.py and release_losses.py.

Thin networks (same names, fewer channels) but for one test at full size. "Equal" is 1e-4 of the value, plus 1e-5 of the
largest value of the tensor: sums of a thousand terms in float32 leave that much where they cancel.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.condinst import CondInst, CondInstConfig, DenseOutputs
from models.crossvis import CrossVIS, CrossVISConfig
from models.importers import RELEASES, fit
from models.outputs import Detections
from models.resnet import ResNetConfig
from models.targets import FrameTargets, PairBatch
from operators.detect import DetectConfig, detect, select
from tests.models import release_losses, releases
from tests.models import release_oracle as oracle
from tests.models.release_losses import Truth

THIN = dict(width=8, channels=64, mask_width=16, classes=40, identities=60)
THIN_STILLS = {**THIN, "classes": 80, "identities": None}
NAMES = {"classes": "class_logits", "boxes": "distances", "centers": "centerness", "filters": "filters",
         "embeddings": "embeddings"}
DEFAULTS = DetectConfig()


def network_of(state: oracle.State) -> CondInst:
    """The network whose sizes are the state's, with the state in it by way of the importer."""
    channels, classes = len(state["backbone.fpn_lateral3.bias"]), len(state[f"{oracle.HEAD}.cls_logits.bias"])
    width = len(state["backbone.bottom_up.stem.conv1.weight"])
    depths = tuple(sum(f"res{s}.{j}.conv1.weight" in key for key in state for j in range(40)) for s in (2, 3, 4, 5))
    sizes = dict(num_classes=classes, channels=channels, mask_channels=len(state["mask_branch.tower.0.0.weight"]),
                 backbone=ResNetConfig(blocks=depths, stem_channels=width, mid_channels=width))
    if "cls.weight" in state:
        network = CrossVIS(CrossVISConfig(**sizes, embedding_dim=channels), len(state["cls.weight"]))
    else:
        network = CondInst(CondInstConfig(**sizes))
    release = RELEASES["crossvis" if "cls.weight" in state else "adelaidet-condinst"]
    loaded, report = fit(release.rename(state), network.state_dict(), release.allowed)
    assert report.complete and not report.fresh and not report.filled
    network.load_state_dict(loaded)
    return network.eval()


def pictures(count: int, height: int, width: int, seed: int) -> Tensor:
    """Smooth random pictures of 0..255, the mean taken off."""
    coarse = torch.rand(count, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    mean = torch.tensor([103.530, 116.280, 123.675])[:, None, None]
    return F.interpolate(coarse, size=(height, width), mode="bilinear").mul(255).round() - mean


def assert_close(ours: Tensor, expected: Tensor, what: str = "") -> None:
    assert ours.shape == expected.shape, what
    if expected.numel():
        error = (ours.double() - expected).abs()
        allowed = 1e-4 * expected.abs() + 1e-5 * expected.abs().max()
        assert (error <= allowed).all(), f"{what}: off by {error.max():.2e} of {expected.abs().max():.2e}"


class Both:
    """One state, two implementations, the same pictures."""

    def __init__(self, state: oracle.State, images: Tensor) -> None:
        self.images, self.network = images, network_of(state)
        wide = oracle.float64(state)
        with torch.no_grad():
            self.levels = self.network.features(images)
            self.dense = self.network.heads(self.levels)
            self.expected_levels = oracle.features(wide, images.double())
            self.expected = oracle.heads(wide, self.expected_levels)
            self.expected_masks = oracle.mask_features(wide, self.expected_levels)

    def detections(self, image: int) -> Detections:
        with torch.no_grad():
            return detect(self.network, self.dense, image, tuple(self.images.shape[-2:]), DEFAULTS)


@pytest.fixture(scope="module", params=["crossvis", "condinst", "crossvis R-101, thin"])
def both(request: pytest.FixtureRequest) -> Both:
    settings = {"crossvis": THIN, "condinst": THIN_STILLS}.get(request.param, {**THIN, "blocks": releases.R101})
    return Both(oracle.released_state(3, **settings, class_bias=-6.5), pictures(2, 128, 192, seed=4))


# ------------------------------------------------------------------------------------------ the files


@pytest.mark.parametrize("settings, keys, count", [
    pytest.param({}, releases.crossvis(), 397, id="CrossVIS R-50"),
    pytest.param({"blocks": releases.R101}, releases.crossvis(releases.Sizes(blocks=releases.R101)), 652,
                 id="CrossVIS R-101"),
    pytest.param({"classes": 80, "identities": None}, releases.crossvis(releases.Sizes(classes=80), embedding=False),
                 372, id="CondInst R-50"),
])
def test_two_lists_of_the_release_made_apart_are_one(settings, keys, count):
    state = oracle.released_state(**settings)
    assert {key: tuple(value.shape) for key, value in state.items()} == {key: shape for key, _, shape in keys}
    assert len(state) == count


# ------------------------------------------------------------------------------------------ inference


def test_features(both):
    for level, ours, expected in zip(oracle.LEVELS, both.levels, both.expected_levels, strict=True):
        assert_close(ours, expected, f"P{level}")


def test_heads(both):
    for name in both.expected[0]:
        rows = torch.cat([level[name].flatten(2) for level in both.expected], dim=2).transpose(1, 2)
        ours = getattr(both.dense, NAMES[name])
        assert_close(ours, rows.squeeze(2) if ours.dim() == 2 else rows, name)
    assert_close(both.dense.mask_features, both.expected_masks, "mask features")


def assert_detections(both: Both, image: int) -> None:
    found, expected = both.detections(image), oracle.detect(both.expected, image)
    assert 20 <= len(expected) < 100 and len({one.label for one in expected}) >= 5, "all above the threshold shows"
    assert found.labels.tolist() == [one.label for one in expected]
    assert_close(found.scores, torch.tensor([one.score for one in expected]).double(), "scores")
    assert_close(found.boxes, torch.tensor([one.box for one in expected]).double(), "boxes")
    if expected[0].embedding is not None:
        assert_close(found.embeddings, torch.stack([one.embedding for one in expected]), "embeddings")
    features = both.expected_masks[image]
    masks = [oracle.mask_logits(features, one.theta, one.x, one.y, one.level) for one in expected]
    assert_close(found.mask_logits, torch.stack(masks), "mask logits")


@pytest.mark.parametrize("image", [0, 1])
def test_detections_embeddings_and_masks(both, image):
    assert_detections(both, image)


@pytest.mark.parametrize("per_level, per_frame", [(1000, 100), (30, 100)])
def test_suppression_and_both_caps(per_level, per_frame):
    """Thousands of candidates a level; scores come in steps, so that many are equal, at the cuts too."""
    both = Both(oracle.released_state(5, **THIN, class_bias=-1.0), pictures(1, 128, 192, seed=6))
    stepped = replace(both.dense, class_logits=(both.dense.class_logits * 4).round() / 4,
                      centerness=both.dense.centerness.round())
    levels, begin = [], 0
    for level in both.levels:
        h, w = level.shape[-2:]
        rows = slice(begin, begin + h * w)
        levels.append({ours: getattr(stepped, theirs)[:, rows].double().reshape(1, h, w, -1).permute(0, 3, 1, 2)
                       for ours, theirs in NAMES.items()})
        begin += h * w
    expected = oracle.detect(levels, 0, per_level, per_frame)
    found = select(stepped, 0, DetectConfig(max_per_level=per_level, max_per_frame=per_frame))
    assert len(expected) > min(per_frame, 2 * per_level), "some tie with the last, or several levels are cut"
    assert found.labels.tolist() == [one.label for one in expected]
    assert_close(found.boxes, torch.tensor([one.box for one in expected]).double(), "boxes")
    assert stepped.at.points[found.locations].tolist() == [[one.x, one.y] for one in expected]


@pytest.mark.slow
def test_resnet_50_at_full_size():
    both = Both(oracle.released_state(7, class_bias=-6.0), pictures(1, 64, 96, seed=8))
    test_features(both)
    test_heads(both)
    assert_detections(both, 0)


# ------------------------------------------------------------------------------------------ batches


def fields_of(dense: DenseOutputs) -> dict[str, Tensor]:
    return {name: getattr(dense, name) for name in (*NAMES.values(), "mask_features")}


@pytest.mark.parametrize("settings", [THIN, THIN_STILLS], ids=["crossvis", "condinst"])
@pytest.mark.parametrize("mate", [
    pytest.param(lambda: pictures(1, 64, 96, seed=10), id="another picture"),
    pytest.param(lambda: 1e4 * pictures(1, 64, 96, seed=11), id="one of huge values"),
    pytest.param(lambda: torch.full((1, 3, 64, 96), torch.nan), id="one that is broken"),
])
@torch.no_grad()
def test_a_batch_of_two_equals_two_of_one(settings, mate):
    network, picture, other = network_of(oracle.released_state(9, **settings)), pictures(1, 64, 96, seed=12), mate()
    alone, together = network.features(picture), network.features(torch.cat([picture, other]))
    for level, single in zip(together, alone, strict=True):
        assert torch.allclose(level[:1], single, rtol=1e-6, atol=1e-5)
    expected, dense = network.heads(alone), network.heads(together)
    for name, value in fields_of(expected).items():
        assert torch.allclose(fields_of(dense)[name][:1], value, rtol=1e-4, atol=1e-4), name
    ours, theirs = (detect(network, d, 0, (64, 96), DEFAULTS) for d in (dense, expected))
    assert len(ours) > 5 and torch.equal(ours.labels, theirs.labels)
    assert torch.allclose(ours.boxes, theirs.boxes, atol=1e-4)
    assert torch.allclose(ours.mask_logits, theirs.mask_logits, atol=1e-4)


# ------------------------------------------------------------------------------------------ training

SIZES = (128, 256), (160, 288)
"""Of the key frames and of the references: each slot is padded by itself."""
ON_P3, ON_P4, ON_P5 = (41, 41, 47, 47), (10, 20, 140, 28), (20, 77, 200, 83)
"""Thin boxes whose masks lie at their left: one point of one level each."""


def truth(size: tuple[int, int], boxes: list[tuple[float, ...]], identities: list[int], seed: int) -> Truth:
    """Masks are random pixels of the ten left columns of their box, or all over it where it is over 20 high."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        part = mask[int(y1) : int(y2) + 1, int(x1) : int(x2 if y2 - y1 > 20 else min(x2, x1 + 10)) + 1]
        part[:] = torch.rand(part.shape, generator=generator) < 0.8
    return Truth(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), (torch.tensor(identities) * 7) % 40,
                 torch.tensor(identities), masks)


KEY = [
    truth(SIZES[0], [ON_P3, ON_P4, ON_P5, (5, 5, 7, 7)], [3, 1, 4, 9], seed=1),
    truth(SIZES[0], [(100, 40, 180.5, 110), (137, 73, 143, 79), (89, 9, 95, 15)], [58, 59, 10], seed=2),
]
REFERENCE = [
    truth(SIZES[1], [(50, 109, 250, 115), (65, 49, 71, 55), (26, 36, 160, 44), (81, 81, 87, 87)], [4, 3, 1, 9], seed=3),
    truth(SIZES[1], [(6.5, 20, 250, 120), (177, 97, 183, 103), (5, 5, 7, 7)], [30, 59, 10], seed=4),
]
"""Two pairs: instances seen twice have one point where they are painted; those seen once (58, 30) have many; 9 and 10
are in both frames and without a point in one. 58 and 59 want the same location of the key frame."""


def pair_batch(looks: list[Tensor]) -> PairBatch:
    def counterparts(these: list[Truth], those: list[Truth]) -> list[Tensor]:
        return [torch.tensor([b.identities.tolist().index(i) if i in b.identities else -1 for i in a.identities])
                for a, b in zip(these, those, strict=True)]

    slots = tuple([FrameTargets(t.boxes, t.classes, t.identities, t.masks) for t in slot] for slot in (KEY, REFERENCE))
    return PairBatch(tuple(looks), slots, (counterparts(KEY, REFERENCE), counterparts(REFERENCE, KEY)))


class Step:
    """One training step, here and in the oracle; the oracle's state has its gradients."""

    def __init__(self) -> None:
        state = oracle.released_state(13, **THIN)
        looks = [pictures(2, *SIZES[0], seed=14), pictures(2, *SIZES[1], seed=15)]
        self.network, self.exact = network_of(state).train(), network_of(state).double().train()
        self.losses = self.network(pair_batch(looks))
        sum(self.exact(pair_batch([look.double() for look in looks])).values()).backward()
        self.state = oracle.float64(state)
        self.inputs = {key: value.requires_grad_() for key, value in oracle.float64(state).items()
                       if value.is_floating_point() and "running" not in key}
        self.state.update(self.inputs)
        self.expected = release_losses.train_step(self.state, looks, [KEY, REFERENCE])
        self.expected["total"].backward()
        self.ours = {theirs: ours for ours, sources in RELEASES["crossvis"].rename(state).sources.items()
                     for theirs in sources}


@pytest.fixture(scope="module")
def step() -> Step:
    torch.manual_seed(0)
    return Step()


def test_the_pairs_are_worth_comparing():
    sizes = [[tuple(-(-side // 2**level) for side in size) for level in oracle.LEVELS] for size in SIZES]
    key, reference = (release_losses.positives(*slot) for slot in zip((KEY, REFERENCE), sizes, strict=True))
    assert [(p.instance, p.level) for p in key if p.image == 0] == [(0, 3), (1, 4), (2, 5)]
    assert [(p.instance, p.level) for p in reference if p.image == 0] == [(1, 3), (3, 3), (2, 4), (0, 5)]
    for many in ([p for p in slot if p.image == 1 and p.instance == 0] for slot in (key, reference)):
        assert len(many) >= 5
    assert {p.instance for p in key if p.image == 1} == {0, 1, 2}, "58 gives one location to 59, which is smaller"


@pytest.mark.parametrize("name", ["class", "box", "centerness", "mask", "crossover", "identity"])
def test_losses(step, name):
    assert step.losses.keys() == step.expected.keys() - {"total"}
    assert step.losses[name].item() == pytest.approx(step.expected[name].item(), rel=1e-4)


def test_total_is_the_plain_sum(step):
    assert sum(step.losses.values()).item() == pytest.approx(step.expected["total"].item(), rel=1e-4)


def test_running_statistics_after_a_step(step):
    """Ten updates of the identity norm, P3 to P7 of the key frames and then of the references; two of the others."""
    own = step.network.state_dict()
    checked = [key for key in step.state if "running" in key or "num_batches" in key]
    for key in checked:
        assert_close(own[step.ours[key]], step.state[key].double(), key)
    assert own["embedding.norm.num_batches_tracked"] == 7 + 10 and own["mask_branch.tower.0.1.num_batches_tracked"] == 9
    assert len(checked) == 53 * 2 + 8 * 3


def test_gradients_of_a_step(step):
    """Of every parameter that learns. In float64: in float32 a rounding error turns a ReLU now and then."""
    parameters = dict(step.exact.named_parameters())
    learning = {name for name, p in parameters.items() if p.requires_grad}
    checked = set()
    for theirs, ours in step.ours.items():
        if ours not in learning:
            continue
        grad, expected = parameters[ours].grad, step.inputs[theirs].grad
        if ours == "fcos.scales":
            grad = grad[int(theirs.split(".")[-2])].reshape(1)
        expected = torch.zeros_like(grad) if expected is None else expected         # scales of levels without positives
        assert (grad - expected).norm() <= 1e-6 * expected.norm() + 1e-12, ours
        checked.add(ours)
    assert checked == learning
    assert not any(name.startswith(("backbone.stem", "backbone.res2")) for name in learning)
