"""Step 2, of videos: the other decoders, each only for files on which it gives the frames that PyAV gives.

In:     the path of a video file
Out:    as `operators/video.py`, within the rounding of the conversion to RGB
State:  the decoder's place in the file; one time per frame
Limits: decord: whole 8-bit MP4 and Matroska files, not interlaced. DALI on the CPU: VP8, VP9 and Motion JPEG in colours
        of BT.601. DALI on the GPU (nvdec): whole 8-bit files, not interlaced; written from DALI's documentation, its
        graph is checked without a GPU, its frames never were. DALI holds the file in memory: at most MAX_MEMORY_BYTES
Source: measured against PyAV on the test media; elsewhere decord skips and misnumbers frames

Both are opened after a pass over the file's packets, which tells how many frames there are and when each is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import av
import numpy as np

from operators.errors import SourceError
from operators.probe import BT601, VideoInfo, open_container, probe_video, upright, video_stream
from operators.sources import Source
from operators.video import Tally, VideoFrames

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

MAX_MEMORY_BYTES = 1 << 30
DECORD_CONTAINERS = {"mov", "matroska"}
DALI_CODECS = {"vp8", "vp9", "mjpeg"}
NVDEC_CODECS = DALI_CODECS | {"h264", "hevc", "av1", "mpeg4"}
INSTEAD = "Use the backend pyav, which reads every file."
DALI_SEQUENCE = 4
"""Frames that DALI decodes at once. More use more memory and save little: one run costs 0.2 ms."""


class BackendReader(VideoFrames):
    """Frames of one decoder, with index, time and end. Built by `open_decord` and `open_dali`."""

    def __init__(
        self,
        source: Source,
        info: VideoInfo,
        images: Iterator[np.ndarray],
        times: list[float | None],
        tally: Tally,
        failure: type[Exception],
    ) -> None:
        """`images` are upright, (H, W, 3); `failure` is what taking the next one raises when the decoder fails."""
        super().__init__(source, info, tally)
        self._failure = failure
        self._images = images
        self._times = iter(times)

    def close(self) -> None:
        super().close()
        self._images = iter(())

    def _next(self) -> tuple[np.ndarray, int, float] | None:
        try:
            image = next(self._images, None)
        except self._failure:                   # its text names lines of the decoder's own source, nothing of use
            self._tally.failure = "the decoder gave up; the backend pyav skips what is damaged"
            return None
        return None if image is None else self._numbered(image, next(self._times, None))

    def _image(self, frame: np.ndarray) -> np.ndarray:
        return frame


def open_decord(source: Source, threads: int) -> BackendReader:
    """Read with decord. Raises SourceError, naming the alternative, where its frames would be wrong or are not to be
    had: another container, a damaged file, over 8 bits, interlaced, mirrored, leading frames that are not shown."""
    try:
        import decord  # here, because it is an option: nothing else needs it
    except ImportError as error:
        raise SourceError(f"'{source.path}': decord is not installed ({error}). {INSTEAD}") from error
    info = probe_video(source.path)
    refusals = {
        f"its container is {info.container}, not MP4 or Matroska": not _in_container(info, DECORD_CONTAINERS),
        "the file is damaged": info.num_missing > 0,
        f"it has {info.bits} bits a colour": info.bits > 8,
        "it is interlaced": info.interlaced,
        "it is shown mirrored": info.orientation.mirrored,
    }
    _refuse("decord", source, refusals)
    times, tally, hidden = _packets(source.path)
    _refuse("decord", source, {"it has frames that are not to be shown": hidden > 0})
    try:
        reader = decord.VideoReader(source.path, ctx=decord.cpu(0), num_threads=threads)
    except (RuntimeError, decord.base.DECORDError) as error:
        raise SourceError(f"'{source.path}': decord cannot read its {info.codec} video. {INSTEAD}") from error
    counts = f"decord counts {len(reader)} frames, the file has {len(times)}"
    _refuse("decord", source, {counts: len(reader) != len(times)})
    images = (reader.next().asnumpy() for _ in times)      # (H, W, 3) each; decord turns frames upright itself
    return BackendReader(source, info, images, times, tally, decord.base.DECORDError)


def open_dali(source: Source, threads: int) -> BackendReader:
    """Read with DALI's decoder for the CPU. Raises SourceError, naming the alternative, for a codec that it does not
    have, colours that it would get wrong, and a file too large for memory."""
    info = probe_video(source.path)
    num_bytes = _num_bytes(source.path)
    refusals = {
        f"its codec is {info.codec}; DALI decodes {', '.join(sorted(DALI_CODECS))} on the CPU":
            info.codec not in DALI_CODECS,
        f"its colour matrix is number {info.color_matrix} of H.273; DALI converts as BT.601 on the CPU":
            info.color_matrix not in BT601,
        f"it has {num_bytes} bytes, and DALI holds a whole file in memory, at most {MAX_MEMORY_BYTES}":
            num_bytes > MAX_MEMORY_BYTES,
    }
    _refuse("dali", source, refusals)
    times, tally, hidden = _packets(source.path)
    _refuse("dali", source, {"it has frames that are not to be shown": hidden > 0})
    pipeline = video_pipeline("cpu", None, threads)
    images = (upright(image, info.orientation) for image in _dali_images(pipeline, source.path, len(times)))
    return BackendReader(source, info, images, times, tally, RuntimeError)


def open_nvdec(source: Source, threads: int) -> BackendReader:
    """Read with DALI on the GPU's video engine. Raises SourceError, naming the alternative, without a GPU, for a codec
    that the engine does not have, for a damaged, interlaced or deeper file, and for one too large for memory."""
    import torch

    if not torch.cuda.is_available():
        raise SourceError(f"'{source.path}': the backend nvdec needs a GPU, and torch sees none. {INSTEAD}")
    info, container_bytes = probe_video(source.path), _num_bytes(source.path)
    refusals = {
        f"its codec is {info.codec}; the engine decodes {', '.join(sorted(NVDEC_CODECS))}":
            info.codec not in NVDEC_CODECS,
        "the file is damaged": info.num_missing > 0,
        f"it has {info.bits} bits a colour": info.bits > 8,
        "it is interlaced": info.interlaced,
        f"it has {container_bytes} bytes, and DALI holds a whole file in memory, at most {MAX_MEMORY_BYTES}":
            container_bytes > MAX_MEMORY_BYTES,
    }
    _refuse("nvdec", source, refusals)
    times, tally, hidden = _packets(source.path)
    _refuse("nvdec", source, {"it has frames that are not to be shown": hidden > 0})
    pipeline = video_pipeline("mixed", torch.cuda.current_device(), threads)
    images = (upright(image, info.orientation) for image in _dali_images(pipeline, source.path, len(times)))
    return BackendReader(source, info, images, times, tally, RuntimeError)


def video_pipeline(device: str, device_id: int | None, threads: int) -> Pipeline:
    """DALI graph: the bytes of a file, fed as "file", to sequences (T, H, W, 3) uint8 RGB as stored, on the host.

    `device` "cpu", or "mixed" for the GPU's video engine; the same graph otherwise.
    """
    from nvidia.dali import Pipeline, fn  # here, because it takes over a second and PyAV does without

    pipeline = Pipeline(1, threads, device_id, prefetch_queue_depth=1, exec_dynamic=True)
    with pipeline:
        frames = fn.experimental.inputs.video(
            name="file", device=device, sequence_length=DALI_SEQUENCE, last_sequence_policy="partial"
        )
        pipeline.set_outputs(frames.cpu() if device == "mixed" else frames)
    return pipeline


def _dali_images(pipeline: Pipeline, path: str, num_frames: int) -> Iterator[np.ndarray]:
    """`num_frames` images (H, W, 3) of the file: DALI reports the end of its data as an error."""
    pipeline.build()
    pipeline.feed_input("file", [np.fromfile(path, np.uint8)])
    given = 0
    while given < num_frames:
        (frames,) = pipeline.run()
        for image in np.array(frames[0]):       # a copy (T, H, W, 3): the pipeline may reuse its buffer
            given += 1
            yield image


def _packets(path: str) -> tuple[list[float | None], Tally, int]:
    """The times of all frames in order of showing, how far the file goes, and how many frames are not to be shown."""
    times: list[float] = []
    tally, without, hidden = Tally(), 0, 0
    with open_container(path) as container:
        stream = video_stream(container, path)
        try:
            for packet in container.demux():
                tally.saw(packet)
                if packet.stream.index != stream.index or not packet.size:
                    continue
                if packet.is_discard:
                    hidden += 1
                elif packet.pts is None:
                    without += 1
                else:
                    times.append(float(packet.pts * packet.time_base))
        except av.error.FFmpegError as error:
            tally.failure = error.strerror
    return [*sorted(times), *[None] * without], tally, hidden


def _num_bytes(path: str) -> int:
    with open(path, "rb") as file:
        return file.seek(0, 2)


def _in_container(info: VideoInfo, names: set[str]) -> bool:
    return bool(names & set(info.container.split(",")))


def _refuse(backend: str, source: Source, refusals: dict[str, bool]) -> None:
    reasons = [reason for reason, holds in refusals.items() if holds]
    if reasons:
        raise SourceError(f"'{source.path}': the backend {backend} does not give its frames right: "
                          f"{'; '.join(reasons)}. {INSTEAD}")
