"""Step 2 of training, frames of encoded videos: any frame of any file, exactly.

In:     a dataset whose videos are files: folder/NAME.mp4 for frames NAME/00000.jpg, ..., as `maskstream shapes --video`
        writes them
Out:    RGB (H, W, 3) by PyAV, or the bytes of files and places in them, for DALI's own decoder
State:  the last MAX_OPEN files read, with the times of their frames
Limits: files of at most MAX_FILE_BYTES where DALI decodes; MPEG transport streams have to be rewritten first
Source: ISO/IEC 14496-12 and FFmpeg's seeking, measured: jump to the last key frame shown no later than the wanted one,
        and where its first picture comes later still, to the one before it; to seek by time alone gives wrong frames
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from operators.errors import DatasetError, SourceError
from operators.probe import open_container, orientation, upright, video_stream
from operators.youtube_vis_data import Video
from trainers.frames import FrameAnnotations, FrameIndex
from trainers.pixels import Stored

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
MAX_OPEN = 8
MAX_FILE_BYTES = 1 << 28

Numbers = Literal["place", "name"]
"""Which picture of the file an annotated frame is: the k-th is the k-th, or as its file name says, 00025.jpg the 25th
from 0."""


class EncodedVideos:
    """A file for each video. `decoder`: PyAV, on every machine; or DALI: on a GPU its video engine, on a CPU VP9 and
    MJPEG alone, and the file's bytes anew for every frame."""

    def __init__(self, folder: Path, *, numbers: Numbers = "place", decoder: Literal["pyav", "dali"] = "pyav") -> None:
        self.folder, self.numbers = Path(folder), numbers
        self.stored: Stored = "frame" if decoder == "pyav" else "video"
        self._open: OrderedDict[Path, VideoFile] = OrderedDict()

    def read(self, frames: Sequence[FrameAnnotations]) -> dict[str, list[np.ndarray]]:
        paths = [file_of(self.folder, frame.video) for frame in frames]
        places = [self._place(frame) for frame in frames]
        if self.stored == "video":
            return {"video": [_file_bytes(path) for path in paths], "wanted": [np.array([p], np.int32) for p in places]}
        return {"frame": [self._file(path).frame(place) for path, place in zip(paths, places, strict=True)]}

    def close(self) -> None:
        """Give back all files."""
        while self._open:
            self._open.popitem()[1].close()

    def _place(self, frame: FrameAnnotations) -> int:
        if self.numbers == "place":
            return frame.frame
        stem = Path(frame.file_name).stem
        if not stem.isdecimal() or len(stem) > 9:
            raise DatasetError(f"video {frame.video.id}: '{frame.file_name}' has no number for a name; expected one as "
                               "00025.jpg, or set data.video_numbers: place.")  # fmt: skip
        return int(stem)

    def _file(self, path: Path) -> VideoFile:
        found = self._open.pop(path, None) or VideoFile(path)
        self._open[path] = found                            # the last one used comes last
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        return found


class VideoFile:
    """One file: any frame by its place in the order of showing. Raises DatasetError for what cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._times, self._keys = _times(path)
        self._container, self._stream = _opened(path)
        self._reformatter = VideoReformatter()

    def __len__(self) -> int:
        return len(self._times)

    def frame(self, place: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, upright."""
        if not 0 <= place < len(self._times):
            raise DatasetError(f"{self.path}: has {len(self._times)} frames, but frame {place} is annotated, counted "
                               "from 0.")  # fmt: skip
        wanted = self._times[place]
        try:
            for key in range(bisect.bisect_right(self._keys, wanted) - 1, -1, -1):
                found = self._from(self._keys[key], wanted)
                if found is not None:
                    rgb = self._reformatter.reformat(found, format="rgb24", threads=1).to_ndarray()
                    return upright(rgb, orientation(found))
        except av.error.FFmpegError as error:
            raise DatasetError(f"{self.path}: frame {place} cannot be decoded: {error.strerror}.") from error
        raise DatasetError(f"{self.path}: frame {place} does not come out of the decoder; damaged?")

    def close(self) -> None:
        self._container.close()

    def _from(self, key: int, wanted: int) -> av.VideoFrame | None:
        """The frame shown at `wanted`, decoding from the key frame at `key` on; None where that begins too late."""
        self._container.seek(key, stream=self._stream)
        for frame in self._container.decode(self._stream):
            if frame.pts is not None and frame.pts >= wanted:
                return frame if frame.pts == wanted else None
        return None


def file_of(folder: Path, video: Video) -> Path:
    """The file of a video. Raises DatasetError where there is none."""
    for suffix in SUFFIXES:
        if (folder / (video.name + suffix)).is_file():
            return folder / (video.name + suffix)
    raise DatasetError(f"{folder}: no file of video {video.id}; expected {video.name}{{{','.join(SUFFIXES)}}}.")


def check_videos(index: FrameIndex, folder: Path) -> None:
    """Raises DatasetError for the first video with frames to learn from that has no file."""
    for frames in index.videos:
        file_of(folder, frames[0].video)


def _opened(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    try:
        container = open_container(str(path))
        stream = video_stream(container, str(path))
    except SourceError as error:
        raise DatasetError(str(error)) from error
    stream.codec_context.thread_count = 1
    return container, stream


def _times(path: Path) -> tuple[list[int], list[int]]:
    """When frames are shown, and those of them that decoding can begin with, both rising."""
    container, stream = _opened(path)
    with container:
        if container.format.name == "mpegts":
            raise DatasetError(f"{path}: frames of a transport stream cannot be found again. Rewrite it without loss: "
                               f"ffmpeg -i {path.name} -c copy {path.stem}.mp4")  # fmt: skip
        try:
            packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None]
        except av.error.FFmpegError as error:
            raise DatasetError(f"{path}: cannot be read to its end: {error.strerror}.") from error
    if not packets:
        raise DatasetError(f"{path}: holds no frame with a time.")
    return sorted(pts for pts, _ in packets), sorted(pts for pts, is_key in packets if is_key)


def _file_bytes(path: Path) -> np.ndarray:
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_FILE_BYTES:
            raise DatasetError(f"{path}: {size} bytes, expected 1 to {MAX_FILE_BYTES}. Cut it into shorter videos, or "
                               "set data.video_decoder: pyav.")  # fmt: skip
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}.") from error
