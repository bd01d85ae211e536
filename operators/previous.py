"""Between steps 5 and 6, TLTM: gives each frame the raw pyramid of the frame before it in its stream.

In:     Features   one stream's frames in order
Out:    the same records with one reference: the levels of the stream's last frame, or of the frame itself where there
        is none, as in a stream's first frame and after a change of size
State:  per stream the last pyramid, on the stage's device, whatever was found in its frame. A snapshot of TLTM R-50 at
        750x1333 (padded 768x1344) is 22.0 MB: 21,486 cells x 256 x 4 bytes
Limits: one pyramid a stream, however long that is. Records grow to two pyramids: keep this stage in one placement
        group with the stages on both sides, so that they are never copied
Source: TLTM specification 2.3, 4.1, 4.2. What is kept is raw, not fused: the frames of a stream may then share a
        network call, and the network stays what it was trained to be. "Before" is the last frame that came: a damaged
        one is stepped over.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from operators.kept_features import as_plain, from_plain, kept
from operators.records import Features
from operators.states import check_open, check_order, pack, refuse_closed, refuse_open, unpacked


class Previous:
    """Keeps the last frame of each stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last: dict[str, Features | None] = {}

    def open(self, stream: str) -> None:
        refuse_open("previous", stream, self._last, "it begins anew")
        self._last[stream] = None

    def __call__(self, batch: list[Features]) -> list[Features]:
        """Raises StageError for a stream that is not open, or frames out of order; then nothing has changed."""
        last, out = dict(self._last), []
        for record in batch:
            info = record.info
            check_open("previous", info, last)
            frame, before = self._placed(record), last[info.stream]
            if before is not None:
                check_order("previous", info, before.info.index)
            alike = before is not None and _sizes(before) == _sizes(frame)
            out.append(replace(frame, references=(before.levels if alike else frame.levels,)))
            last[info.stream] = frame
        for stream in {record.info.stream for record in batch}:     # copies of those that stay, not of all that came
            last[stream] = kept(last[stream])
        self._last = last
        return out

    def _placed(self, record: Features) -> Features:
        return replace(record, levels=tuple(level.to(self.device) for level in record.levels))

    def snapshot(self, stream: str) -> bytes:
        refuse_closed("previous", stream, self._last)
        frame = self._last[stream]
        return pack({"frame": None if frame is None else as_plain(frame)})

    def restore(self, stream: str, state: bytes) -> None:
        """Take up where `snapshot` was taken; the pyramid comes back onto the device. Raises StageError for other
        bytes, and for an open stream."""
        with unpacked(state, f"previous, stream '{stream}'") as content:
            plain = content["frame"]
            frame = None if plain is None else self._placed(from_plain(stream, plain))
        refuse_open("previous", stream, self._last, "it is restored")
        self._last[stream] = frame

    def close(self, stream: str) -> list[Features]:
        self._last.pop(stream, None)
        return []


def _sizes(frame: Features) -> tuple[int, ...]:
    return frame.info.height, frame.info.width, *frame.size, *frame.padded
