"""Step 8: the sinks whose files people look at: label maps, proposals, and the video with everything drawn in.

In:     FrameTracks and FrameFaults of one stream, in order, then its StreamEnd, or none where the run was cut
Out:    palette PNGs, each whole or not at all; a video that plays, also when the run was cut
State:  MasksSink the faults before the first known size; ProposalsSink every mask of the video as RLE (proposals.py);
        OverlaySink an encoder, and one decoded frame ahead
Limits: a label map holds MAX_INDEX tracks
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np

from operators.draw import draw_tracks, letterbox
from operators.formats import MAX_INDEX, Categories, label_map
from operators.label_maps import remove_maps, save_label_map, writing
from operators.proposals import Proposals, ProposalsConfig
from operators.records import Frame, FrameFault, FrameTracks, StreamEnd
from operators.video_writer import VideoWriter

FrameStream = Generator[Frame | FrameFault | StreamEnd, None, None]
"""The frames of a source, decoded anew: large as they are, they do not travel through the graph."""


class MasksSink:
    """masks/00000.png and on: label maps in the colours of DAVIS, each written whole or not at all.

    A faulty frame has an empty map of its own size, or of the last known one; before any size is known it waits.
    """

    def __init__(self, path: Path, *, min_score: float = 0.5) -> None:
        self.path = path
        self._min_score = min_score
        self._num_written = 0
        self._waiting: list[FrameFault] = []
        self._size: tuple[int, int] | None = None
        self._dropped: set[int] = set()  # one number a track that did not fit
        path.mkdir(exist_ok=True)
        remove_maps(path)

    def write(self, tracks: FrameTracks) -> None:
        labels, dropped = label_map(tracks, self._min_score)
        self._dropped.update(dropped)
        self._size = labels.shape
        self._write_waiting()
        self._save(labels, tracks)

    def fault(self, fault: FrameFault) -> None:
        self._waiting.append(fault)
        if fault.info.height and fault.info.width:
            self._size = fault.info.height, fault.info.width
        if self._size:
            self._write_waiting()

    def close(self, end: StreamEnd | None) -> None:
        """Every map is on the disk already."""

    def summary(self) -> str:
        text = counted(self._num_written, "label map")
        if self._dropped:
            text += f", {counted(len(self._dropped), 'track')} left out: a map holds the ids 0 to {MAX_INDEX - 1}"
        if self._waiting:
            text += f", none for {counted(len(self._waiting), 'faulty frame')}: the size is not known"
        return text

    def _write_waiting(self) -> None:
        for fault in self._waiting:
            self._save(np.zeros(self._size, np.uint8), fault)
        self._waiting.clear()

    def _save(self, labels: np.ndarray, record: FrameTracks | FrameFault) -> None:
        save_label_map(self.path / f"{record.info.index:05d}.png", labels, record.info)
        self._num_written += 1


class ProposalsSink:
    """davis/00000.png and on: DAVIS label maps of at most 20 proposals, written when the video has ended or was cut.

    A map is called as its image is, so that a ground truth finds it; of a video, and where two images have one name, it
    is the frame's number. Faulty frames have empty maps.
    """

    def __init__(self, path: Path, names: Sequence[str], config: ProposalsConfig) -> None:
        self.path, self._names = path, names
        self._proposals = Proposals(config)
        self._num_written = 0
        self._closed = False
        path.mkdir(exist_ok=True)
        remove_maps(path, named=True)

    def write(self, tracks: FrameTracks) -> None:
        self._proposals.add(tracks)

    def fault(self, fault: FrameFault) -> None:
        self._proposals.add(fault)

    def close(self, end: StreamEnd | None) -> None:
        if self._closed:
            return
        self._closed = True
        for info, labels in self._proposals.maps():
            name = self._names[info.index] if info.index < len(self._names) else f"{info.index:05d}"
            save_label_map(self.path / f"{name}.png", labels, info)
            self._num_written += 1

    def summary(self) -> str:
        proposals, tracks = len(self._proposals.numbers()), len(self._proposals)
        left_out = f", {tracks - proposals} of {counted(tracks, 'track')} left out" if tracks > proposals else ""
        return f"{counted(self._num_written, 'label map')}, {counted(proposals, 'proposal')}{left_out}"


class OverlaySink:
    """overlay.mp4: the source's own frames, read once more, with what was found drawn in, at their own times.

    A frame that decodes but has no result is shown as it is; one that does not decode is left out. Frames of another
    size than the first are fitted into that. `fps` is the rate in the file's header when there is one frame alone.
    """

    def __init__(
        self, path: Path, frames: FrameStream, categories: Categories, *, fps: float, alpha: float, min_score: float
    ) -> None:
        self.path = path
        self._frames, self._pictures = frames, _Peekable(frames)
        self._categories, self._fps, self._alpha, self._min_score = categories, fps, alpha, min_score
        self._writer: VideoWriter | None = None
        self._next_index = 0
        self._num_unread = 0
        self._closed = False
        path.unlink(missing_ok=True)

    def write(self, tracks: FrameTracks) -> None:
        self._show_until(tracks.info.index)
        frame = self._pictures.peek()
        if frame is None or frame.info.index != tracks.info.index:
            self._num_unread += 1
            return
        next(self._pictures)
        drawn = draw_tracks(frame.image, tracks, self._categories, alpha=self._alpha, min_score=self._min_score)
        self._show(frame, drawn)

    def fault(self, fault: FrameFault) -> None:
        self._show_until(fault.info.index + 1)

    def close(self, end: StreamEnd | None) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if end is not None:
                self._show_until(end.num_frames)
        finally:
            self._frames.close()
            if self._writer is not None:
                with writing(self.path):
                    self._writer.close()

    def summary(self) -> str:
        text = counted(self._writer.num_frames if self._writer else 0, "frame")
        return text + (f", {self._num_unread} could not be read a second time" if self._num_unread else "")

    def _show_until(self, index: int) -> None:
        # no look ahead without need: a source that did not open for the graph does not open here either
        while self._next_index < index and (frame := self._pictures.peek()) and frame.info.index < index:
            next(self._pictures)
            self._show(frame, frame.image)

    def _show(self, frame: Frame, image: np.ndarray) -> None:
        if self._writer is None:
            rate = self._rate(frame)
            with writing(self.path, frame.info):
                self._writer = VideoWriter(self.path, frame.info.width, frame.info.height, rate)
        with writing(self.path, frame.info):
            self._writer.write(letterbox(image, self._writer.height, self._writer.width), frame.info.time_s)
        self._next_index = frame.info.index + 1

    def _rate(self, first: Frame) -> float:
        """Frames a second between the first two; frames are timed one by one, so this is but the header's."""
        second = self._pictures.peek()
        step = 0.0 if second is None else second.info.time_s - first.info.time_s
        return min(max(1 / step, 1.0), 120.0) if step > 0 else self._fps


class _Peekable(Iterator[Frame]):
    """The decoded frames of a stream, with a look at the next one before it is taken."""

    def __init__(self, frames: FrameStream) -> None:
        self._frames = (event for event in frames if isinstance(event, Frame))
        self._ahead: Frame | None = None

    def peek(self) -> Frame | None:
        if self._ahead is None:
            self._ahead = next(self._frames, None)
        return self._ahead

    def __next__(self) -> Frame:
        frame = self.peek()
        if frame is None:
            raise StopIteration
        self._ahead = None
        return frame


def counted(number: int, noun: str) -> str:
    """1 frame, 2 frames."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
