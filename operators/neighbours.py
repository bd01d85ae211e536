"""Between steps 5 and 6: gives each frame the pyramids of the frames around it, for networks with calibration.

In:     Features   one stream's frames in order
Out:    the same records with `references` set: pyramids of up to `past` frames before and `future` frames after, in
        order of time; each frame once, in order, `future` frames late. `close` gives out what was held back.
State:  per stream, at most past + future pyramids between two calls. For R-50 at 384x640 a pyramid is 5115 cells x 256
        x 4 bytes = 5.2 MB: a snapshot is at most 52.4 MB with 5 and 5, and 26.2 MB with the causal 5 and 0.
Limits: distance counts stored frames (`info.index`), so a damaged frame leaves a gap. Frames of another size are no
        references: after a change of size mid-way, older ones serve no more. Records grow to past + future + 1
        pyramids: keep this stage and the heads in one placement group, so that they are never copied.
Source: CrossVIS specification 5.4: every frame within 5 on both sides at test, which is not strictly online;
        `future: 0` is the causal switch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from operators.kept_features import as_plain, from_plain, kept
from operators.records import Features
from operators.states import check_open, check_order, pack, refuse_closed, refuse_open, unpacked

MOST = 64


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """The defaults are the OVIS paper's."""

    past: int = 5
    """Frames before the current one that lend their features. More: longer occlusions are bridged; memory, and the time
    in the heads, grow with past + future."""
    future: int = 5
    """Frames after it. More: what appears later helps too, and the output comes that many frames late. 0 is causal,
    for live streams."""

    def __post_init__(self) -> None:
        if not 0 <= self.past <= MOST or not 0 <= self.future <= MOST:
            raise ValueError(f"past {self.past} and future {self.future}: expected 0 to {MOST} each")


@dataclass
class _Window:
    """Of one stream: frames that later ones may refer to, the last `waiting` of which are still to be given out."""

    frames: list[Features] = field(default_factory=list)
    waiting: int = 0
    last: int = -1

    @property
    def oldest(self) -> int:
        """Index of the next frame to be given out; if none waits, the smallest that may still come."""
        return self.frames[-self.waiting].info.index if self.waiting else self.last + 1


class Neighbours:
    """Keeps one window of frames per stream."""

    def __init__(self, config: NeighboursConfig) -> None:
        self.config = config
        self._windows: dict[str, _Window] = {}

    def open(self, stream: str) -> None:
        refuse_open("neighbours", stream, self._windows, "it begins anew")
        self._windows[stream] = _Window()

    def __call__(self, batch: list[Features]) -> list[Features]:
        """The frames whose later neighbours have all come. Raises StageError for a stream not open, or out of order."""
        return [given for record in batch for given in self._take(record)]

    def _take(self, record: Features) -> list[Features]:
        info, cfg = record.info, self.config
        check_open("neighbours", info, self._windows)
        window = self._windows[info.stream]
        check_order("neighbours", info, window.last)
        window.frames.append(kept(record))
        window.waiting, window.last = window.waiting + 1, info.index
        given = []
        while window.waiting and window.oldest + cfg.future <= info.index:
            given.append(self._give(window))
        window.frames = [frame for frame in window.frames if frame.info.index >= window.oldest - cfg.past]
        return given

    def _give(self, window: _Window) -> Features:
        """The oldest frame that waits, with its references."""
        frame = window.frames[-window.waiting]
        window.waiting -= 1
        references = tuple(other.levels for other in window.frames if self._refers(frame, other))
        return replace(frame, references=references)

    def _refers(self, frame: Features, other: Features) -> bool:
        ahead = other.info.index - frame.info.index
        same_size = (other.size, other.padded) == (frame.size, frame.padded)
        return ahead != 0 and -self.config.past <= ahead <= self.config.future and same_size

    def snapshot(self, stream: str) -> bytes:
        refuse_closed("neighbours", stream, self._windows)
        window = self._windows[stream]
        frames = [as_plain(frame) for frame in window.frames]
        return pack({"last": window.last, "waiting": window.waiting, "frames": frames})

    def restore(self, stream: str, state: bytes) -> None:
        """Take up where `snapshot` was taken; pyramids come back on the host. Raises StageError for other bytes, and
        for an open stream."""
        with unpacked(state, f"neighbours, stream '{stream}'") as content:
            frames = [from_plain(stream, frame) for frame in content["frames"]]
            window = _Window(frames, int(content["waiting"]), int(content["last"]))
            if not 0 <= window.waiting <= len(frames):
                raise ValueError(f"{window.waiting} of {len(frames)} frames wait")
        refuse_open("neighbours", stream, self._windows, "it is restored")
        self._windows[stream] = window

    def close(self, stream: str) -> list[Features]:
        """The frames held back, with what neighbours they have; then the stream is forgotten."""
        window = self._windows.pop(stream, _Window())
        return [self._give(window) for _ in range(window.waiting)]
