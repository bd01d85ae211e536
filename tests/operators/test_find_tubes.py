"""Tubes of clips: the network's own answer, whoever shares the call, with maps that were computed frame by frame."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

import pytest
import torch

from models.cico_tubes import Tubes, find_tubes
from models.fused import fuse
from operators.find_tubes import ClipBatchConfig
from operators.records import ClipTubes
from pipelines.weight import compact, num_bytes
from tests.models.small_cico import GAUSS
from tests.operators.small_clips import DETECT, PADDED, info_of, network, seen_by, stages
from tests.pipelines.contract import plain


@pytest.fixture(scope="module")
def small():
    torch.set_num_threads(1)
    return network()


def clips_of(small, count: int, **named):
    windows = stages(small)[0]
    stream = named.get("stream", "s")
    windows.open(stream)
    return windows(seen_by(small, count, **named)) + windows.close(stream)


def assert_close(found: Tubes, expected: Tubes) -> None:
    assert len(found) == len(expected) > 0
    for f in fields(Tubes):
        torch.testing.assert_close(getattr(found, f.name), getattr(expected, f.name), rtol=1e-4, atol=1e-5)


def test_no_clip(small):
    assert stages(small)[1]([]) == []


def test_a_clip_of_maps_kept_from_earlier_clips_gives_what_its_images_give(small):
    """Frame by frame through the trunk, clip by clip through the heads: the same as all of each clip at once."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(5, 3, *PADDED, generator=generator)
    windows, find, _ = stages(small, batch=1)
    windows.open("s")
    with torch.inference_mode():
        singles = [small.features(image[None]) for image in images]
        frames = [replace(one, levels=tuple(level[0] for level in levels))
                  for one, levels in zip(seen_by(small, 5), singles, strict=True)]  # fmt: skip
        found = find(windows(frames) + windows.close("s"))
        for clip, places in zip(found, [[0, 1, 2], [2, 3, 4], [4, 4, 4]], strict=True):
            out = small.heads(small.features(images[places]))
            assert_close(clip.tubes, find_tubes(small, out, 0, DETECT))
            torch.testing.assert_close(clip.prototypes, out.prototypes[0], rtol=1e-4, atol=1e-5)
            assert clip.infos == tuple(info_of(place) for place in places)


@pytest.mark.parametrize("form", [
    pytest.param({}, id="yolact"), pytest.param({"masks": GAUSS, "crop_test": 1.5}, id="condinst"),
    pytest.param({"clip_length": 1, "box_tower": "2d", "track_tower": "2d", "cmh": "2d"}, id="clips of one frame"),
    pytest.param({"box_tower": "2d", "track_tower": "2d", "cmh": "2d"}, id="frame in, frame out, clips"),
    pytest.param({"clip_length": 1, "tracking": False, "box_tower": "2d", "cmh": "2d"}, id="the form for stills"),
])  # fmt: skip
def test_company_changes_no_bit(form):
    """Clips of three streams in batches of two, against each in a batch whose rest is empty."""
    torch.set_num_threads(1)
    small = network(seed=5, **form)
    find = stages(small, batch=2)[1]
    clips = [clip for seed, stream in enumerate("abc") for clip in clips_of(small, 4, stream=stream, seed=seed)]
    together = find(clips)
    assert [clip.info for clip in together] == [clip.info for clip in clips]
    alone = [one for clip in clips for one in find([clip])]
    assert plain(together) == plain(alone)
    assert sum(len(clip.tubes) for clip in together) > len(clips)


def test_the_fused_form_finds_the_same(small):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(3, 3, *PADDED, generator=generator)
    fused = fuse(small, torch.float32)
    with torch.inference_mode():
        found, expected = (find_tubes(each, each.heads(each.features(images)), 0, DETECT) for each in (fused, small))
    assert_close(found, expected)


def test_what_else_a_clip_carries_stays(small):
    *_, last = stages(small)[1](clips_of(small, 4))
    assert isinstance(last, ClipTubes) and (last.real, last.new, last.size, last.padded) == (2, 2, (60, 90), PADDED)


def test_clips_travel_with_no_more_than_themselves(small):
    """From process to process a clip takes its own rows of the batch, and comes as it was."""
    clips = clips_of(small, 4)
    for clip in (clips[-1], *stages(small)[1](clips)):
        sent = pickle.dumps(compact(clip))
        assert plain(pickle.loads(sent)) == plain(clip)
        assert len(sent) < num_bytes(clip) + 12_000


def test_sizes_that_differ_do_not_share_a_call(small):
    wide = [replace(clip, frames=tuple(
        replace(one, levels=tuple(torch.cat([level, level], dim=2) for level in one.levels), padded=(64, 192))
        for one in clip.frames)) for clip in clips_of(small, 3)]  # fmt: skip
    narrow = clips_of(small, 3)
    find = stages(small)[1]
    mixed = find([wide[0], narrow[0], wide[1], narrow[1]])
    assert plain(mixed) == plain([one for clip in (wide[0], narrow[0], wide[1], narrow[1]) for one in find([clip])])
    assert mixed[0].prototypes.shape[:2] == (16, 48) and mixed[1].prototypes.shape[:2] == (16, 24)


@pytest.mark.parametrize("batch", [0, 2000])
def test_batches_out_of_range(batch):
    with pytest.raises(ValueError, match=f"batch is {batch}"):
        ClipBatchConfig(batch=batch)
