"""The whole network: the specification's counts and shapes, batches, settings, and a step of training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models import NETWORKS
from models.cico import CiCo
from models.cico_masks import Window
from models.cico_tubes import TubeConfig
from models.importers.cico import inflated
from models.importers.renaming import Renamed
from models.swin import SwinConfig
from models.targets import StillBatch
from operators.detectors import DETECTORS
from operators.errors import ConfigError
from pipelines.graph import RunContext
from pipelines.networks import read_network
from pipelines.stages import STAGES
from tests.models.small_cico import GAUSS, OFFSETS, SIZE, SMALL, clip_batch, clip_images, drawn, small_cico

FIFO = {"box_tower": "2d", "track_tower": "2d", "cls_tower": "2d", "cmh": "2d"}
STILL = {**FIFO, "clip_length": 1, "tracking": False}
SWIN = SwinConfig(embed_dim=4, depths=(1, 2, 1, 1), heads=(1, 1, 2, 2))


# ------------------------------------------------------------------------------------------ the specification's counts


YOLACT_HEADS, HEADS_169, HEADS_161 = (17_548_479, 7_681_312), (18_495_834, 7_675_144), (18_440_514, 7_675_144)
R50, R101 = (23_508_032, 3_868_672), (42_500_160, 3_868_672)


@pytest.mark.parametrize("file, parts, total", [
    ("cico_yolact_r50", (*R50, *YOLACT_HEADS), 52_606_495),
    ("cico_yolact_r50_release", (*R50, *YOLACT_HEADS), 52_606_495),
    ("cico_yolact_r50_paper", (*R50, 17_548_479 + 6_915, 7_681_312 + 262_400), 52_606_495 + 6_915 + 262_400),
    ("cico_yolact_r101", (*R101, *YOLACT_HEADS), 71_598_623),
    ("cico_yolact_swint", (27_520_698, 3_295_232, 17_548_479, 5_429_792), 53_794_201),
    ("cico_condinst_r50", (*R50, *HEADS_169), 53_547_682),
    ("cico_condinst_r50_release", (*R50, *HEADS_161), 53_492_362),
    ("cico_condinst_r101", (*R101, *HEADS_169), 72_539_810),
    ("cico_condinst_swint", (27_520_698, 1_918_464, 10_775_514, 4_318_664), 44_533_340),
])
def test_counts_of_the_shipped_settings(file, parts, total):
    spec = read_network(f"configs/networks/{file}.yaml")
    with torch.device("meta"):
        network = NETWORKS[spec.name][0](spec.config)
    modules = (network.backbone, network.fpn, network.clip_heads, network.prototypes)
    assert tuple(sum(p.numel() for p in module.parameters()) for module in modules) == parts
    assert sum(p.numel() for p in network.parameters()) == total, "the paper's cross-entropy has a class more"


@pytest.mark.parametrize("file, total", [
    ("cico_condinst_r50", 53_492_362), ("cico_condinst_r101", 72_484_490), ("cico_condinst_swint", 44_491_844),
])
def test_counts_with_one_map_of_coordinates(file, total):
    """161 mask parameters, as published weights have them."""
    config = read_network(f"configs/networks/{file}.yaml").config
    with torch.device("meta"):
        network = CiCo(replace(config, masks=replace(config.masks, rel_coord="gauss1")))
    assert sum(p.numel() for p in network.parameters()) == total


LEVELS = [(48, 80), (24, 40), (12, 20), (6, 10), (3, 5)]


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("file, trunk, width, classes, prototypes, parameters", [
    ("cico_yolact_r50", (512, 1024, 2048), 256, 40, 32, 32), ("cico_yolact_r101", (512, 1024, 2048), 256, 40, 32, 32),
    ("cico_yolact_r50_ovis", (512, 1024, 2048), 256, 26, 32, 32),
    ("cico_yolact_swint", (192, 384, 768), 256, 40, 32, 32),
    ("cico_condinst_r50", (512, 1024, 2048), 256, 40, 8, 169),
    ("cico_condinst_r50_release", (512, 1024, 2048), 256, 40, 8, 161),
    ("cico_condinst_swint", (192, 384, 768), 192, 40, 8, 169),
])  # fmt: skip
@torch.no_grad()
def test_shapes_at_full_size(file, trunk, width, classes, prototypes, parameters, frames):
    """Acceptance check 1, table 2.1: two clips at 384 x 640, without any arithmetic."""
    config, images = read_network(f"configs/networks/{file}.yaml").config, 2 * frames
    with torch.device("meta"):
        network = CiCo(replace(config, clip_length=frames)).eval()
        seen = torch.zeros(images, 3, 384, 640)
        stages, maps = network.backbone(seen), network.features(seen)
        out = network.heads(maps)
    assert [tuple(c.shape) for c in stages] == [(images, c, *side) for c, side in zip(trunk, LEVELS, strict=False)]
    assert [tuple(p.shape) for p in maps] == [(images, width, *side) for side in (*LEVELS, (48, 80))]
    tubes = (2, frames, 15345)
    assert {name: tuple(value.shape) for name, value in vars(out.tubes).items()} == {
        "deltas": (*tubes, frames, 4), "centerness": tubes, "class_logits": (*tubes, classes),
        "embeddings": (*tubes, 64), "parameters": (*tubes, parameters)}  # fmt: skip
    assert out.anchors.boxes.shape == (15345, 4)
    assert out.prototypes.shape == (2, 96, 160, frames, prototypes)


def test_what_the_profiles_say():
    """Section 8, as far as networks and detection go."""
    release, paper = (read_network(f"configs/networks/cico_condinst_r50_{p}.yaml") for p in ("release", "paper"))
    default = read_network("configs/networks/cico_condinst_r50.yaml")
    said = [(c.masks.rel_coord, c.cmh_upsample, c.crop_test, c.cls_loss, c.quality, c.average_boxes, c.match.box,
             c.match.gain, detect.nms_union, c.input.mean[0])
            for c, detect in ((s.config, s.detect) for s in (paper, release, default))]  # fmt: skip
    assert said == [
        ("offset2", "deconv", None, "ce", False, False, "union3_unguarded", "all", "rows_only", 103.53),
        ("gauss1", "interpolate", 1.5, "focal", True, True, "current", "all", "rows_only", 103.53),
        ("offset2", "interpolate", 1.5, "focal", True, True, "union3", "small", "aligned", 123.675),
    ]


@pytest.mark.parametrize("file, frames", [("fifo_yolact_r50", 1), ("fifo_condinst_r50_clips", 3)])
def test_baselines_look_at_single_frames(file, frames):
    config = read_network(f"configs/networks/{file}.yaml").config
    assert (config.box_tower, config.track_tower, config.cls_tower, config.cmh) == ("2d",) * 4
    assert config.clip_length == frames and config.tracking


def test_stills_begin_clips():
    """Their tensors differ from those of clips in what grows, and in what stills have not."""
    still, clip = (read_network(f"configs/networks/mini_cico{s}.yaml").config for s in ("_stills", ""))
    network = CiCo(clip)
    renamed = Renamed(CiCo(still).state_dict(), {}, {})
    grown = inflated(renamed, network.state_dict()).state
    missing, unexpected = network.load_state_dict(grown, strict=False)
    assert not unexpected and all(name.startswith(("clip_heads.track", "clip_heads.embeddings")) for name in missing)


def test_no_stage_gives_it_windows_yet():
    spec = read_network("configs/networks/mini_cico.yaml")
    with pytest.raises(ConfigError, match="speaks of clips"):
        STAGES["heads"].build(STAGES["heads"].settings(), RunContext(spec, "cpu"))
    assert DETECTORS[spec.name].settings() == spec.detect == TubeConfig()


# ------------------------------------------------------------------------------------------ forward


@pytest.mark.parametrize("changes", [
    pytest.param({}, id="yolact"), pytest.param({"masks": OFFSETS}, id="condinst"),
    pytest.param({"clip_length": 1, **FIFO}, id="one frame"), pytest.param(FIFO, id="frame-in frame-out"),
    pytest.param({"backbone": SWIN}, id="swin"), pytest.param(STILL, id="stills"),
    pytest.param({"cls_loss": "ohem", "cmh_upsample": "deconv"}, id="with background"),
])  # fmt: skip
@torch.no_grad()
def test_shapes(changes):
    network = small_cico(**changes).eval()
    frames = network.config.clip_length
    maps = network.features(clip_images(2, frames))
    assert [tuple(m.shape[-2:]) for m in maps] == [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1), (8, 12)]
    out = network.heads(maps)
    count = 3 * (96 + 24 + 6 + 2 + 1)
    assert out.tubes.deltas.shape == (2, frames, count, frames, 4)
    assert out.tubes.class_logits.shape[-1] == 3 + (network.config.cls_loss == "ohem")
    assert out.tubes.embeddings.shape[-1] == (4 if network.config.tracking else 0)
    assert out.prototypes.shape == (2, 16, 24, frames, network.config.masks.prototypes)
    assert out.anchors.boxes.shape == (count, 4)
    assert network.class_probabilities(out.tubes.class_logits).shape[-1] == 3


@torch.no_grad()
def test_a_batch_of_two_clips_is_two_of_one():
    network = small_cico(masks=OFFSETS).eval()
    images = clip_images(2)
    both = network.heads(network.features(images))
    for b, one in enumerate(images.split(3)):
        alone = network.heads(network.features(one))
        for name, value in vars(alone.tubes).items():
            assert torch.allclose(getattr(both.tubes, name)[b : b + 1], value, atol=1e-4), name
        assert torch.allclose(both.prototypes[b : b + 1], alone.prototypes, atol=1e-4)


@torch.no_grad()
def test_features_of_shared_frames_may_be_kept():
    """Acceptance check 5: the second clip begins with the first one's last frame."""
    network = small_cico().eval()
    images = clip_images(1, 5)
    kept = [network.features(frame[None]) for frame in images]
    for begin in (0, 2):
        clip = network.heads(tuple(torch.cat(maps) for maps in zip(*kept[begin : begin + 3], strict=True)))
        fresh = network.heads(network.features(images[begin : begin + 3]))
        for name, value in vars(fresh.tubes).items():
            assert torch.allclose(getattr(clip.tubes, name), value, atol=1e-4), name


def test_frames_that_make_no_clip():
    network = small_cico().eval()
    with pytest.raises(ValueError, match="4 frames came, expected a multiple of T = 3"):
        network.heads(network.features(clip_images(4, 1)))


def test_classes_without_background():
    logits = torch.tensor([2.0, 1, 0, -1])
    expected = logits.exp()[1:] / logits.exp().sum()
    assert torch.allclose(small_cico(cls_loss="ohem").class_probabilities(logits), expected)
    assert torch.allclose(small_cico().class_probabilities(logits[1:]), logits[1:].sigmoid())


@pytest.mark.parametrize("change, message", [
    ({"clip_length": 0}, "at least 1"), ({"crop_test": 0.0}, "crop_test 0.0: expected above 0"),
])  # fmt: skip
def test_settings_that_are_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_windows_at_test():
    assert small_cico(crop_test=1.5).test_window() == Window(1.5, 0.1)
    assert small_cico(crop_test=None).test_window() is None


# ------------------------------------------------------------------------------------------ training


ALL = {"class", "box", "diou", "centerness", "mask", "tracking"}
PAPER = {
    "cls_loss": "ce", "quality": False, "average_boxes": False, "cmh_upsample": "deconv", "masks": OFFSETS,
    "crop_train": None,
}  # fmt: skip


def moving(frames: int = 3):
    """A large object that moves, a small one that leaves."""
    boxes = [[(10 + 4 * t, 8, 60 + 4 * t, 50), (70, 40, 80, 56)][: 2 if t < 2 else 1] for t in range(frames)]
    return [drawn(b) for b in boxes]


@pytest.mark.parametrize("changes, parts", [
    pytest.param({}, ALL, id="yolact"),
    pytest.param({"masks": GAUSS, "backbone": SWIN}, ALL, id="condinst on swin"),
    pytest.param(PAPER, ALL - {"diou", "centerness"}, id="paper"),
    pytest.param({"cls_loss": "ohem", **FIFO}, ALL, id="frame-in frame-out"),
])  # fmt: skip
def test_every_parameter_learns(changes, parts):
    """But for those of what nobody is asked about: coarse levels without positives or hard negatives, centre-ness."""
    network = small_cico(**changes).train()
    losses = network(clip_batch([moving(), [drawn([])] * 3]))
    assert losses.keys() == parts
    assert all(loss.isfinite() and loss >= 0 for loss in losses.values())
    sum(losses.values()).backward()
    silent = {n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    unasked = {"ohem": ("fpn.p6", "fpn.p7"), "ce": ("clip_heads.centerness",), "focal": ()}[network.config.cls_loss]
    assert not [name for name in silent if not name.startswith(unasked)]


def test_stills_are_clips_of_one_frame():
    network = small_cico(**STILL).eval()
    frame = moving()[0]
    images = clip_images(2, 1)
    stills = network(StillBatch(images, [frame, drawn([])]))
    clips = network(replace(clip_batch([[frame], [drawn([])]]), images=(images,)))
    assert stills.keys() == {"class", "box", "diou", "centerness", "mask"}
    assert all(torch.equal(value, clips[name]) for name, value in stills.items())


def test_clips_without_objects_teach_nothing():
    network = small_cico().train()
    losses = network(clip_batch([[drawn([])] * 3] * 2))
    total = sum(losses.values())
    assert total == 0
    total.backward()
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())
    assert network.clip_heads.boxes.weight.grad is not None, "still joined to the graph"


def test_clips_of_another_length():
    with pytest.raises(ValueError, match="clips of 2 frames came, built for 3"):
        small_cico()(clip_batch([moving(2)]))


def test_a_clip_does_not_change_the_shares_of_another():
    """Class and box losses are sums over all clips over all positives; mask and tracking losses are means of clips."""
    network = small_cico().eval()
    one, other = moving(), [drawn([(5, 5, 40, 30), (30, 20, 90, 60)])] * 3
    batch = clip_batch([one, other])
    both = network(batch)
    alone = [network(replace(clip_batch([clip]), images=tuple(i[b : b + 1] for i in batch.images)))
             for b, clip in enumerate((one, other))]
    for name in ("mask", "tracking"):
        assert both[name].item() == pytest.approx((alone[0][name] + alone[1][name]).item() / 2, rel=1e-4)


def test_a_few_steps_find_the_object():
    """The losses fall together, so their signs and targets fit each other."""
    network = small_cico(tower_convs=1).train()
    batch = clip_batch([moving()])
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    totals = []
    for _ in range(12):
        losses = network(batch)
        totals.append(sum(losses.values()).item())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert totals[-1] < 0.6 * totals[0]


def test_size_of_the_small_network():
    assert SIZE[0] % 32 == 0 and sum(p.numel() for p in small_cico().parameters()) < 30_000


def test_a_trunk_in_half_as_many_bits_gives_whole_features():
    """As the fused form's, where the processor has bfloat16: the mask head's convolutions stay in float32."""
    network = small_cico().eval()
    images = clip_images(1)
    with torch.inference_mode():
        plain = network.features(images)[-1]
        network.fpn.register_forward_hook(lambda module, given, levels: tuple(x.bfloat16() for x in levels))
        half = network.features(images)[-1]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.05, atol=0.02 * float(plain.abs().max()))
