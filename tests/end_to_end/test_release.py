"""A released checkpoint's way: .pth, `maskstream weights import`, a network from its file, a video through the stages.

Compared with the second implementation of tests/models/release_oracle.py on the tensors as they lie in the .pth: tracks
and their ids over five frames, masks pixel by pixel at the original size, scores and categories of the video.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from operators.association import Associate
from operators.detectors import DETECTORS
from operators.formats import Categories, VideoTracks
from operators.masks import EncodeMasks, decode_masks
from operators.matching import AssociateConfig
from operators.network import Backbone, BatchConfig, Heads
from operators.records import FrameInfo, FrameTracks, Image
from pipelines.networks import load_network, read_network
from tests.models import release_oracle as oracle

CPU = torch.device("cpu")
THIN = dict(width=8, channels=64, mask_width=16)
SIZE, PADDED, ORIGINAL = (120, 184), (128, 192), (150, 230)
"""Of the resized frame, of the network's input, of the video."""


def settings_file(path: Path, network: str, shipped: str, weights: Path) -> Path:
    """The shipped file of a network with the thin sizes."""
    settings = yaml.safe_load(Path(shipped).read_text())
    model = settings["model"]
    model["channels"], model["mask_channels"] = THIN["channels"], THIN["mask_width"]
    model["backbone"] |= {"stem_channels": THIN["width"], "mid_channels": THIN["width"]}
    if network == "crossvis":
        model["embedding_dim"] = THIN["channels"]
    path.write_text(yaml.safe_dump(settings | {"weights": str(weights)}))
    return path


def moving_pictures(count: int) -> Tensor:
    """A smooth random picture that moves by some pixels a frame and changes a little; zeros beyond `SIZE`."""
    generator = torch.Generator().manual_seed(21)
    looks = [F.interpolate(torch.rand(1, 3, 24, 32, generator=generator), size=(192, 256), mode="bilinear")[0]
             for _ in range(count)]
    frames = [(0.8 * looks[0].roll((2 * t, 3 * t), (1, 2)) + 0.2 * look) * 255 - 115 for t, look in enumerate(looks)]
    inside = torch.stack(frames)[:, :, : SIZE[0], : SIZE[1]]
    return F.pad(inside, (0, PADDED[1] - SIZE[1], 0, PADDED[0] - SIZE[0]))


class Video(NamedTuple):
    """Our frames and video entries, and what the oracle found: detections, identities, tracks, and masks by demand."""

    ours: list[FrameTracks]
    entries: list[dict]
    found: list[list[oracle.Found]]
    ids: list[list[int | None]]
    tracks: list[oracle.Track]
    probability: Callable[[int, int], Tensor]


def through_our_stages(settings: Path, pictures: Tensor) -> list[FrameTracks]:
    spec = read_network(settings)
    network = load_network(spec, CPU)
    backbone = Backbone(network, BatchConfig(batch=2), CPU)
    heads = Heads(network, BatchConfig(batch=2), DETECTORS[spec.name].of(spec.detect), CPU)
    associate, encode = Associate(AssociateConfig(), spec.association), EncodeMasks()
    associate.open("video")
    images = [Image(FrameInfo("video", t, t / 5, *ORIGINAL), picture, SIZE) for t, picture in enumerate(pictures)]
    return encode(associate(heads(backbone(images))))


@pytest.fixture(scope="module")
def video(maskstream, tmp_path_factory: pytest.TempPathFactory) -> Video:
    folder, pictures = tmp_path_factory.mktemp("release"), moving_pictures(5)
    state = oracle.released_state(22, **THIN, identities=60, class_bias=-4.0)
    torch.save({"model": state, "optimizer": {}, "iteration": 23000}, folder / "released.pth")
    weights = folder / "imported.safetensors"
    settings = settings_file(folder / "thin.yaml", "crossvis", "configs/networks/crossvis_r50.yaml", weights)
    done = maskstream("weights", "import", "--release", "crossvis", folder / "released.pth", "--network", settings,
                      "--out", weights)
    assert done.returncode == 0, done.stderr
    ours = through_our_stages(settings, pictures)
    tracks = VideoTracks()
    for frame in ours:
        tracks.add(frame)
    return Video(ours, tracks.results(1, Categories.numbered(str(k) for k in range(40))), *expected_of(state, pictures))


def expected_of(state: oracle.State, pictures: Tensor) -> tuple:
    wide = oracle.float64(state)
    levels = oracle.features(wide, pictures.double())
    dense, masks = oracle.heads(wide, levels), oracle.mask_features(wide, levels)
    found = [oracle.to_original(oracle.detect(dense, t), SIZE, ORIGINAL) for t in range(len(pictures))]

    def probability(frame: int, place: int) -> Tensor:
        one = found[frame][place]
        logits = oracle.mask_logits(masks[frame], one.theta, one.x, one.y, one.level)
        return oracle.binary_mask(logits, SIZE, ORIGINAL)

    return found, *oracle.associate(found), probability


def kept(video: Video, frame: int) -> list[int]:
    """Places of the oracle's detections that have an identity."""
    return [d for d, k in enumerate(video.ids[frame]) if k is not None]


def test_the_video_is_worth_comparing(video):
    later = [k for ids in video.ids[1:] for k in ids]
    first = set(video.ids[0])
    assert later.count(None) >= 5, "detections that lost their track to a better one"
    assert sum(k in first for k in later) >= 20 and sum(k is not None and k not in first for k in later) >= 10
    assert any(sorted(t.records) != list(range(min(t.records), max(t.records) + 1)) for t in video.tracks), "a gap"


def test_track_ids(video):
    for t, frame in enumerate(video.ours):
        assert frame.track_ids.tolist() == [video.ids[t][d] for d in kept(video, t)], f"frame {t}"


def test_classes_scores_and_boxes(video):
    for t, frame in enumerate(video.ours):
        expected = [video.found[t][d] for d in kept(video, t)]
        assert frame.labels.tolist() == [one.label for one in expected]
        assert np.allclose(frame.scores, [one.score for one in expected], rtol=1e-4, atol=0)
        assert np.allclose(frame.boxes, [one.box for one in expected], rtol=1e-4, atol=1e-3)


def test_masks_at_the_original_size(video):
    """Pixel by pixel, but where the probability is within 1e-4 of one half."""
    areas = []
    for t, frame in enumerate(video.ours):
        masks = decode_masks(frame.masks, *ORIGINAL)
        for i, d in enumerate(kept(video, t)):
            p = video.probability(t, d)
            sure = (p - 0.5).abs() > 1e-4
            assert torch.equal((p > 0.5)[sure], torch.from_numpy(masks[:, :, i] > 0)[sure]), f"frame {t}, mask {i}"
            areas.append((p > 0.5).double().mean().item())
    assert sum(0.05 < area < 0.95 for area in areas) >= 20, "too few masks with an edge"


def test_scores_and_categories_of_the_video(video):
    assert len(video.entries) == len(video.tracks)
    for entry, track in zip(video.entries, video.tracks, strict=True):
        assert entry["category_id"] == track.label + 1
        assert entry["score"] == pytest.approx(track.score, rel=1e-4)
        assert [mask is not None for mask in entry["segmentations"]] == [t in track.records for t in range(5)]


def test_condinst_from_its_file(maskstream, tmp_path):
    state = oracle.released_state(23, **THIN, classes=80, identities=None)
    torch.save({"model": state}, tmp_path / "released.pth")
    weights = tmp_path / "imported.safetensors"
    settings = settings_file(tmp_path / "thin.yaml", "condinst", "configs/networks/condinst_r50.yaml", weights)
    done = maskstream("weights", "import", "--release", "adelaidet-condinst", tmp_path / "released.pth", "--network",
                      settings, "--out", weights)
    assert done.returncode == 0, done.stderr
    spec, picture = read_network(settings), moving_pictures(1)
    network = load_network(spec, CPU)
    with torch.no_grad():
        dense = network.heads(network.features(picture))
        found = DETECTORS[spec.name].of(spec.detect)(network, dense, 0, SIZE)
    wide = oracle.float64(state)
    expected = oracle.detect(oracle.heads(wide, oracle.features(wide, picture.double())), 0)
    assert len(expected) >= 10 and found.labels.tolist() == [one.label for one in expected]
    assert np.allclose(found.scores, [one.score for one in expected], rtol=1e-4, atol=0)
    assert np.allclose(found.boxes, [one.box for one in expected], rtol=1e-4, atol=1e-3)
