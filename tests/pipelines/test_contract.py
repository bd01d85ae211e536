"""One contract for all stages with memory: every stateful stage of the graph has an entry in CASES, and keeps it.

A new stage with memory is an entry here: how it is made, batches of one stream, and what bounds its state in a stream
without end. Without one, the first test fails.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.outputs import Detections
from operators.association import Associate
from operators.box_tracks import BoxTracksConfig
from operators.clip_tracking import ClipTrackConfig
from operators.decode import Decode, DecodeConfig
from operators.identities import IdentityDetectConfig
from operators.identity_memory import IdentifyConfig
from operators.live.queue import LiveFrame, LiveQueue
from operators.live.stage import Receive
from operators.matching import AssociateConfig
from operators.neighbours import Neighbours, NeighboursConfig
from operators.object_graph import ObjectGraphConfig
from operators.previous import Previous
from operators.records import ClipTubes, Features, Frame, FrameDetections, FrameInfo, Pull, StreamEnd
from operators.sources import Source
from operators.states import unpacked
from operators.track_tubes import TrackTubes
from operators.windows import Windows, WindowsConfig
from pipelines.stage import StreamStage
from pipelines.stages import STAGES
from tests.models.small_cico import SMALL as SMALL_CICO
from tests.operators.small_clips import clip_of, tubes
from tests.operators.small_identities import frame as identity_frame
from tests.operators.small_identities import small_iai
from tests.operators.small_identities import stage as identify_stage
from tests.operators.small_objects import CPU, clip, finding_tltm, of_stream, relate
from tests.operators.small_videos import X264, write_video
from tests.pipelines.contract import check_misuse, check_stream_stage, plain

STREAM = "a stream"
ENDLESS = 300
"""Frames after which a state that grows with its stream is far above its bound."""
KIB = 1024


@dataclass(frozen=True)
class Case:
    """A stage in one of its settings."""

    stage: str
    make: Callable[[], StreamStage]
    batches: Callable[[Path], list[list[Any]]]
    """Some ten frames of STREAM, batched unevenly; the folder is for files."""
    most_bytes: int | None = None
    """What its snapshot never exceeds in a stream without end. None: these settings are for files."""
    length: int = ENDLESS


class Draining(Decode):
    """Decode that gives all that is asked for, in as many calls as it takes: with prefetch one gives what is there."""

    def __call__(self, batch: list[Pull]) -> list[Any]:
        given: list[Any] = []
        for pull in batch:
            stop = len(given) + pull.count
            while len(given) < stop and not (given and isinstance(given[-1], StreamEnd)):
                records = super().__call__([replace(pull, count=stop - len(given))])
                given += records
                if not records:
                    break
        return given


class Fed(Receive):
    """Receive whose source loses nothing: wherever the stream goes on, what comes next is there, numbered from 0."""

    def open(self, stream: str) -> None:
        super().open(stream)
        self.attach(stream, waiting(0))

    def restore(self, stream: str, state: bytes) -> None:
        super().restore(stream, state)
        with unpacked(state, stream) as content:
            self.attach(stream, waiting(content["next_index"]))


def waiting(begin: int) -> LiveQueue:
    """What a source gives from the moment of frame `begin`, up to its end; times are whole eighths of seconds."""
    queue = LiveQueue(ENDLESS)
    for index in range(begin, ENDLESS):
        info = FrameInfo(STREAM, index - begin, (index - begin) / 8, 2, 3)
        queue.put(LiveFrame(Frame(info, np.full((2, 3, 3), index % 256, np.uint8)), 1000 + index / 8))
    queue.close("the last frame came")
    return queue


def images(folder: Path, count: int = 11) -> Source:
    """A folder of images, the third of them damaged."""
    folder.mkdir(exist_ok=True)
    names = [f"{i:03}.png" for i in range(count)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((6, 8, 3), i, np.uint8)).save(folder / name)
    (folder / names[2]).write_bytes(b"")
    return Source(STREAM, "images", str(folder), tuple(names))


@functools.cache
def video(folder: Path, count: int) -> Source:
    return Source(STREAM, "video", str(write_video(folder / f"{count}.mp4", count=count, options={**X264, "bf": "2"})))


def pulls(source: Source) -> list[list[Pull]]:
    return [[Pull(source, count)] for count in (1, 3)] + [[], [Pull(source, 0)], [Pull(source, 5)], [Pull(source, 9)]]


def uneven(records: list[Any]) -> list[list[Any]]:
    return [records[:1], records[1:4], [], records[4:9], records[9:]]


def pyramids(count: int) -> list[Features]:
    info = FrameInfo(STREAM, 0, 0.0, 48, 80)
    generator = torch.Generator().manual_seed(0)
    levels = torch.randn(count, 2, 8, 10, generator=generator), torch.randn(count, 2, 4, 5, generator=generator)
    gaps = [index + index // 7 for index in range(count)]                 # every eighth frame could not be decoded
    infos = [replace(info, index=index, time_s=index / 10) for index in gaps]
    return [
        Features(info, tuple(level[row] for level in levels), (24, 40), (32, 64)) for row, info in enumerate(infos)
    ]


def strangers(count: int) -> list[FrameDetections]:
    """In each frame five objects, two of which were there before: memory without a limit grows by three a frame."""
    rng = np.random.default_rng(0)
    looks = rng.normal(0, 1, (3 * count + 10, 64)).astype(np.float32)
    records = []
    for index in range(count):
        seen = [3 * index + k for k in range(5)]
        corner = torch.tensor([[97.0 * k % 1000, 31.0 * k % 700] for k in seen])
        found = Detections(
            boxes=torch.cat([corner, corner + 20], dim=1), scores=torch.linspace(0.9, 0.5, 5),
            labels=torch.tensor(seen) % 3, embeddings=torch.from_numpy(looks[seen]), mask_logits=torch.zeros(5, 2, 2),
        )  # fmt: skip
        records.append(FrameDetections(FrameInfo(STREAM, index, index / 10, 720, 1020), found, (64, 64), (64, 64)))
    return records


def clips(count: int) -> list[ClipTubes]:
    """In each clip five objects, two of which were there before, each with a place and looks of its own: memory
    without a limit grows by three a clip."""
    looks = np.random.default_rng(0).normal(0, 1, (3 * count + 10, 4)).astype(np.float32)
    records = []
    for number in range(count):
        seen = [3 * number + k for k in range(5)]
        corners = [(0.19 * (k % 5), 0.12 * (k % 7)) for k in seen]
        found = tubes([[x, y, x + 0.18, y + 0.2] for x, y in corners], embeddings=looks[seen].tolist(),
                      labels=[k % 3 for k in seen])  # fmt: skip
        records.append(clip_of(found, [2 * number + k for k in range(3)], new=2, stream=STREAM))
    return records


def tracking(**settings: Any) -> TrackTubes:
    return TrackTubes(ClipTrackConfig(**settings), SMALL_CICO.masks, torch.device("cpu"))


@functools.cache
def network():
    torch.set_num_threads(1)
    return small_iai(seed=6)


@functools.cache
def identities(count: int) -> list[Features]:
    """A still picture under noise, which changes every ten frames: objects stay, go, and new ones come."""
    generator = torch.Generator().manual_seed(1)
    stills = torch.randn(count // 10 + 1, 3, 64, 64, generator=generator).repeat_interleave(10, dim=0)[:count]
    with torch.inference_mode():
        levels = network().features(stills + 0.5 * torch.randn(stills.shape, generator=generator))
    return [replace(identity_frame(t, STREAM), levels=tuple(level[t] for level in levels)) for t in range(count)]


def identify(**settings: Any) -> StreamStage:
    detect = IdentityDetectConfig(min_class=0.05, min_identity=0.05, max_iou=0.7, max_per_frame=5)
    return identify_stage(network(), detect, **settings)


@functools.cache
def relating():
    torch.set_num_threads(1)
    return finding_tltm(fuser="none")


@functools.cache
def objects(count: int) -> list[Features]:
    return of_stream(clip(relating(), 3, frames=count), STREAM)


def related(**settings: Any) -> StreamStage:
    """Few boxes overlap so much: tracks that never go on begin in every frame."""
    return relate(relating(), ObjectGraphConfig(min_iou=0.9), **settings)


def case_of_decode(prefetch: int, of: Callable[[Path], Source]) -> Case:
    make = lambda: Draining(DecodeConfig(prefetch=prefetch))  # noqa: E731
    return Case("decode", make, lambda folder: pulls(of(folder)), most_bytes=2 * KIB, length=60)


CASES = {
    "decode: images": case_of_decode(0, images),
    "decode: video": case_of_decode(0, lambda folder: video(folder, 14)),
    "decode: video, ahead": case_of_decode(3, lambda folder: video(folder, 14)),
    "decode: images, ahead": case_of_decode(1, images),
    "receive": Case(
        "receive", Fed, lambda _: pulls(Source(STREAM, "video", "")) + [[Pull(Source(STREAM, "video", ""), ENDLESS)]],
        2 * KIB,
    ),
    "neighbours": Case(
        # three pyramids of 200 float32 and the archive around them
        "neighbours", lambda: Neighbours(NeighboursConfig(past=2, future=1)), lambda _: uneven(pyramids(12)), 8 * KIB,
    ),
    "neighbours: causal": Case(
        "neighbours", lambda: Neighbours(NeighboursConfig(past=3, future=0)), lambda _: uneven(pyramids(12)), 8 * KIB,
    ),
    "previous": Case(
        # one pyramid of 200 float32 and the archive around it
        "previous", lambda: Previous(CPU), lambda _: uneven(pyramids(12)), 3 * KIB,
    ),
    "relate: as published": Case("relate", related, lambda _: uneven(objects(12))),
    "relate: without end": Case(
        # 15 tracks of 16 + 4 float32 and 3 int64, and the archive around them
        "relate", lambda: related(max_tracks=15, max_unseen=2), lambda _: uneven(objects(12)), 6 * KIB, 40,
    ),
    "relate: boxes": Case(
        # of two frames at most 2 * 12 boxes
        "relate", lambda: related(rule="boxes", boxes=BoxTracksConfig(max_unseen=1)), lambda _: uneven(objects(12)),
        6 * KIB, 40,
    ),
    "windows": Case(
        # two frames of 200 float32 and the archive around them
        "windows", lambda: Windows(3, WindowsConfig(overlap=1)), lambda _: uneven(pyramids(12)), 5 * KIB,
    ),
    "windows: of five, three shared": Case(
        "windows", lambda: Windows(5, WindowsConfig(overlap=3)), lambda _: uneven(pyramids(12)), 7 * KIB,
    ),
    "track_tubes: tracks expire": Case(
        # of 3 clips at most 5 + 2 * 5 tracks, of 144 bytes of mask and 164 of the rest, and the archive around them
        "track_tubes", lambda: tracking(max_unseen=1), lambda _: uneven(clips(12)), 8 * KIB,
    ),
    "track_tubes: as released": Case("track_tubes", tracking, lambda _: uneven(clips(12))),
    "associate: tracks expire": Case(
        # of 4 frames at most 5 + 3 * 3 tracks, of 64 + 4 float32 and 3 int64, and the archive around them
        "associate", lambda: Associate(AssociateConfig(max_unseen=2)), lambda _: uneven(strangers(12)), 8 * KIB,
    ),
    "associate: as released": Case(
        "associate", lambda: Associate(AssociateConfig()), lambda _: uneven(strangers(12)),
    ),
    "associate: masktrack": Case(
        "associate", lambda: Associate(AssociateConfig(rule="masktrack", max_unseen=1)),
        lambda _: uneven(strangers(12)), 8 * KIB,
    ),
    "identify: as released": Case("identify", identify, lambda _: uneven(identities(12))),
    "identify: without end": Case(
        # three entries stored, four of the last 0.4 s at 6 frames/s, of 5.3 KiB each with the archive around them
        "identify", lambda: identify(mode="stream", max_stored=3, stale_s=0.5, local_age_s=0.4),
        lambda _: uneven(identities(12)), 44 * KIB, 80,
    ),
}  # fmt: skip


def test_every_stage_with_memory_has_an_entry():
    stateful = {name for name, kind in STAGES.items() if kind.stateful}
    assert {case.stage for case in CASES.values()} == stateful, "give each stage with memory an entry in CASES"
    bounded = {case.stage for case in CASES.values() if case.most_bytes is not None}
    assert bounded == stateful, "each stage with memory needs settings for streams without end, and a stated bound"


@pytest.mark.parametrize("name", CASES)
def test_what_is_stopped_half_way_goes_on_elsewhere(name, tmp_path):
    case = CASES[name]
    assert isinstance(case.make(), StreamStage)
    check_stream_stage(case.make, case.batches(tmp_path), STREAM)


@pytest.mark.parametrize("name", CASES)
def test_wrong_calls_and_damaged_snapshots_are_refused(name, tmp_path):
    check_misuse(CASES[name].make, CASES[name].batches(tmp_path), STREAM)


def _renamed(record: Any, stream: str) -> Any:
    if isinstance(record, Pull):
        return replace(record, source=replace(record.source, name=stream))
    if isinstance(record, ClipTubes):
        return replace(record, infos=tuple(replace(info, stream=stream) for info in record.infos))
    return replace(record, info=replace(record.info, stream=stream))


@pytest.mark.parametrize("name", CASES)
def test_streams_in_one_instance_do_not_see_each_other(name, tmp_path):
    """Two streams of the same frames, one of them late, closed and begun anew: each gives what one alone gives."""
    case = CASES[name]
    batches = case.batches(tmp_path)
    alone = case.make()
    alone.open(STREAM)
    expected = [plain(alone(batch)) for batch in batches] + [plain(alone.close(STREAM))]
    stage = case.make()
    stage.open("other")
    for batch in batches[:2]:
        stage([_renamed(record, "other") for record in batch])
    stage.open(STREAM)
    given = []
    for number, batch in enumerate(batches):
        given.append(plain(stage(batch)))
        if number == 1:
            stage.close("other")
            stage.open("other")
        stage([_renamed(record, "other") for record in batch] if number in (1, 2) else [])
    assert given + [plain(stage.close(STREAM))] == expected
    stage.close("other")


def _endless(case: Case, folder: Path) -> Iterator[list[Any]]:
    if case.stage in ("decode", "receive"):
        source = video(folder, case.length if case.stage == "decode" else 1)
        yield from ([Pull(source, 4)] for _ in range(case.length // 4))
        return
    frames = {
        "neighbours": pyramids, "windows": pyramids, "associate": strangers, "track_tubes": clips,
        "identify": identities, "previous": pyramids, "relate": objects,
    }[case.stage](case.length)  # fmt: skip
    yield from (frames[begin : begin + 4] for begin in range(0, case.length, 4))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.most_bytes is not None])
def test_the_state_of_a_stream_without_end_is_bounded(name, tmp_path):
    case = CASES[name]
    stage, sizes = case.make(), []
    stage.open(STREAM)
    for batch in _endless(case, tmp_path):
        stage(batch)
        sizes.append(len(stage.snapshot(STREAM)))
    stage.close(STREAM)
    print(f"{name}: {min(sizes)} to {max(sizes)} bytes a stream")
    assert max(sizes) <= case.most_bytes
    half = len(sizes) // 2
    assert max(sizes[half:]) <= max(sizes[:half]) + 64, "64: numbers get longer, and archives are padded"


@pytest.mark.parametrize("name", ["associate: as released", "identify: as released", "relate: as published",
                                  "track_tubes: as released"])  # fmt: skip
def test_what_is_for_files_would_have_shown_growth(name, tmp_path):
    """The test above can fail: the papers' settings, which forget nothing, exceed every bound."""
    case = CASES[name]
    stage = case.make()
    stage.open(STREAM)
    for batch in _endless(replace(case, length=160), tmp_path):
        stage(batch)
    bound = max(one.most_bytes for one in CASES.values() if one.stage == case.stage and one.most_bytes)
    assert len(stage.snapshot(STREAM)) > bound


def test_identities_bound_their_memory_by_their_mode():
    assert IdentifyConfig(mode="stream").cap == 10 and IdentifyConfig().cap == 0
