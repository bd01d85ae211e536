"""Between steps 5 and 6: frames of a stream to the clips of T that a network sees together.

In:     Features      one stream's frames in order
Out:    ClipFeatures  clip c holds frames c * n to c * n + T - 1, n = T - overlap, and its first n leave with it: each
                      frame leaves once, in order, at most T - 1 frames late. `close` gives out the frames that wait, in
                      clips that are filled up with their own: [a, b] becomes [a, b, a]
State:  per stream, at most T - 1 frames between two calls. For R-50 at 384x640 pyramid and merged map are 8955 cells x
        256 x 4 bytes = 9.2 MB a frame: a snapshot is at most 18.4 MB at T = 3
Limits: frames are counted as they come, so one that could not be decoded is not in any clip. Where frames change their
        size mid-way, what waits leaves as at the end of a stream, and clips begin anew. Clips that overlap share their
        maps as long as they stay in one process: keep this stage and the heads in one placement group
Source: Li & Zhang, CiCo, 2022, 3.4; CiCo specification 4.1, as released: overlapping frames are not averaged

    T = 3, overlap 1:   0 1 2            frames 0 and 1 leave when 2 has come: 2 and 1 late
                            2 3 4        2 and 3 leave when 4 has come
                                4 5 4    4 and 5 leave at the end
"""

from __future__ import annotations

from dataclasses import dataclass, field

from operators.kept_features import as_plain, from_plain, kept
from operators.records import ClipFeatures, Features
from operators.states import check_open, check_order, pack, refuse_closed, refuse_open, unpacked


@dataclass(frozen=True, kw_only=True)
class WindowsConfig:
    """T is the network's (`model.clip_length`)."""

    overlap: int | None = None
    """Frames that a clip shares with the next. More: tracks are told apart better (AP 33.5, 34.3 and 34.8 with 0, 1 and
    2 of 3, table 2), and each frame goes through the heads T / (T - overlap) times. null: 1, as published, and 0 for
    clips of one frame."""

    def __post_init__(self) -> None:
        if self.overlap is not None and self.overlap < 0:
            raise ValueError(f"overlap is {self.overlap}, expected 0 or more, or null")

    def of(self, clip_length: int) -> int:
        """The overlap of clips of so many frames. Raises ValueError for one that leaves no new frame."""
        overlap = min(1, clip_length - 1) if self.overlap is None else self.overlap
        if overlap >= clip_length:
            raise ValueError(f"overlap is {overlap}, expected less than the network's clip_length, {clip_length}")
        return overlap


@dataclass
class _Waiting:
    """Of one stream: frames that have not left yet."""

    frames: list[Features] = field(default_factory=list)
    last: int = -1
    """Index of the newest frame that came."""


class Windows:
    """Keeps the frames of each stream that have not left yet."""

    def __init__(self, clip_length: int, config: WindowsConfig) -> None:
        """Raises ValueError for an overlap that leaves no new frame."""
        self.clip_length = clip_length
        self.new = clip_length - config.of(clip_length)
        self._streams: dict[str, _Waiting] = {}

    def open(self, stream: str) -> None:
        refuse_open("windows", stream, self._streams, "it begins anew")
        self._streams[stream] = _Waiting()

    def __call__(self, batch: list[Features]) -> list[ClipFeatures]:
        """The clips that are full. Raises StageError for a stream not open, or out of order; then nothing is kept of
        the batch."""
        self._check(batch)
        return [clip for record in batch for clip in self._take(record)]

    def _check(self, batch: list[Features]) -> None:
        last: dict[str, int] = {}
        for info in (record.info for record in batch):
            check_open("windows", info, self._streams)
            before = last.get(info.stream, self._streams[info.stream].last)
            check_order("windows", info, before)
            last[info.stream] = info.index

    def _take(self, record: Features) -> list[ClipFeatures]:
        waiting = self._streams[record.info.stream]
        given = []
        if waiting.frames and _form(waiting.frames[-1]) != _form(record):
            given += self._filled_up(waiting.frames)
            waiting.frames = []
        waiting.frames.append(kept(record))
        waiting.last = record.info.index
        if len(waiting.frames) == self.clip_length:
            given.append(ClipFeatures(tuple(waiting.frames), self.clip_length, self.new))
            del waiting.frames[: self.new]
        return given

    def _filled_up(self, frames: list[Features]) -> list[ClipFeatures]:
        """The clips of frames after which none will come; of no frame none."""
        clips = []
        for first in range(0, len(frames), self.new):
            real = frames[first:]
            filled = tuple(real[place % len(real)] for place in range(self.clip_length))
            clips.append(ClipFeatures(filled, len(real), min(self.new, len(real))))
        return clips

    def snapshot(self, stream: str) -> bytes:
        refuse_closed("windows", stream, self._streams)
        waiting = self._streams[stream]
        return pack({"last": waiting.last, "frames": [as_plain(frame) for frame in waiting.frames]})

    def restore(self, stream: str, state: bytes) -> None:
        """Take up where `snapshot` was taken; maps come back on the host. Raises StageError for other bytes, and for an
        open stream."""
        with unpacked(state, f"windows, stream '{stream}'") as content:
            frames = [from_plain(stream, frame) for frame in content["frames"]]
            waiting = _Waiting(frames, int(content["last"]))
            if len(frames) >= self.clip_length:
                raise ValueError(f"{len(frames)} frames wait, and {self.clip_length} make a clip")
        refuse_open("windows", stream, self._streams, "it is restored")
        self._streams[stream] = waiting

    def close(self, stream: str) -> list[ClipFeatures]:
        """The frames that wait, in clips that are filled up; then the stream is forgotten."""
        return self._filled_up(self._streams.pop(stream, _Waiting()).frames)


def _form(frame: Features) -> tuple[int, int, tuple[int, int], tuple[int, int]]:
    """Frames that differ in this are not in one clip."""
    return frame.info.height, frame.info.width, frame.size, frame.padded
