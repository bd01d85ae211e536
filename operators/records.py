"""What travels through the graph: one record per frame, at each point of its way.

A batch is a plain list of records. Frames of several streams stand in one list; those of one stream in order.
A stage may put events (`FrameFault`, `StreamEnd`) among the records it gives: they go straight to the caller, not to
the next stage.

    Pull ─► decode ─► Frame ─► preprocess ─► Image ─► backbone ─► Features ─► heads ─► FrameDetections
                                                                     ─► associate ─► FrameDetections with ids
                                                                     ─► encode ─► FrameTracks ─► sinks
    of networks that see clips:  Features ─► windows ─► ClipFeatures ─► tubes ─► ClipTubes ─► track_tubes ─► the same

Every record after `Pull` carries the `FrameInfo` of its frame, so that a stage may hold frames back, give out several
at once, or mix streams, and nobody has to count. Letters of shapes: `models/outputs.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from models.cico_tubes import Tubes
from models.outputs import Detections
from operators.sources import Source

UNSHOWN = -1
"""Track id of an instance that has no track to be shown under, IAI's sink: it keeps its pixels from later instances,
and takes part in the ranking of a video's tracks, but is not given out. Of several in a frame the last one's scores
count."""


@dataclass(frozen=True)
class FrameInfo:
    """Which frame this is, and how large it is when shown (rotation applied)."""

    stream: str
    index: int
    """0-based, counted in frames that the source gave, damaged ones of a folder included."""
    time_s: float
    """Presentation time in the source, in seconds; not `index / fps`."""
    height: int
    width: int

    def __str__(self) -> str:
        return f"stream '{self.stream}', frame {self.index}"


@dataclass(frozen=True)
class Pull:
    """Ask the decode stage for the next `count` frames of a source; its name is the stream's name."""

    source: Source | str
    """The source; or its name alone, where the stage has had a pull of this stream with the source since the stream was
    opened or restored there: the list of a folder's files need not travel with every few frames."""
    count: int

    @property
    def stream(self) -> str:
        return self.source if isinstance(self.source, str) else self.source.name


@dataclass(frozen=True)
class Frame:
    """A decoded frame.  image (H, W, 3) uint8, RGB, upright"""

    info: FrameInfo
    image: np.ndarray

    def __post_init__(self) -> None:
        shape = (self.info.height, self.info.width, 3)
        if self.image.shape != shape or self.image.dtype != np.uint8:
            raise ValueError(f"{self.info}: image is {self.image.dtype} {self.image.shape}, expected uint8 {shape}")


@dataclass(frozen=True)
class Image:
    """Network input.  pixels (3, Hp, Wp) float32, normalised, padded at the right and bottom; the frame fills `size`"""

    info: FrameInfo
    pixels: Tensor
    size: tuple[int, int]
    """(h, w) of the resized frame inside the padded pixels."""


@dataclass(frozen=True)
class Features:
    """Feature maps of one frame, finest first.  levels[i] (C, Hp / stride_i, Wp / stride_i)"""

    info: FrameInfo
    levels: tuple[Tensor, ...]
    size: tuple[int, int]
    padded: tuple[int, int]
    """(Hp, Wp): what the strides divide."""
    references: tuple[tuple[Tensor, ...], ...] = ()
    """Pyramids of neighbouring frames, in order of time, for a network that calibrates; each shaped as `levels`."""


@dataclass(frozen=True)
class ClipFeatures:
    """T frames of one stream, in order, that a network sees together. The last clips of a stream are filled up with
    frames of their own, from the first one on."""

    frames: tuple[Features, ...]
    """All of one size."""
    real: int
    """Frames that are not there to fill up; the first ones."""
    new: int
    """Frames that leave with this clip; the first ones. Those behind them leave with later clips."""

    @property
    def info(self) -> FrameInfo:
        """Of the first frame, the oldest that has not left yet."""
        return self.frames[0].info

    @property
    def padded(self) -> tuple[int, int]:
        return self.frames[0].padded


@dataclass(frozen=True)
class ClipTubes:
    """What the heads found in one clip of T frames; `real` and `new` as in ClipFeatures."""

    infos: tuple[FrameInfo, ...]
    """Of all T frames."""
    real: int
    new: int
    tubes: Tubes
    prototypes: Tensor
    """(Hp/4, Wp/4, T, k): what the masks of older tracks are painted on."""
    size: tuple[int, int]
    padded: tuple[int, int]

    @property
    def info(self) -> FrameInfo:
        return self.infos[0]


@dataclass(frozen=True)
class ClipPlace:
    """Where in its clip a frame stood."""

    number: int
    """0-based. A track's class and score are those of the clip, so in the results of a video they count at 0 alone."""
    delay: int
    """Frames of the stream that had to come after this one before it could leave."""


@dataclass(frozen=True)
class FrameDetections:
    """What the heads found in one frame; after association `detections.track_ids` is set."""

    info: FrameInfo
    detections: Detections
    size: tuple[int, int]
    padded: tuple[int, int]
    clip: ClipPlace | None = None
    """Of networks that see clips."""


@dataclass(frozen=True)
class FrameTracks:
    """The result for one frame, small and off the device: N instances in the order in which they were found."""

    info: FrameInfo
    track_ids: np.ndarray
    """(N,) int64, unique within the stream and within the frame."""
    labels: np.ndarray
    """(N,) int64, 0-based class."""
    scores: np.ndarray
    """(N,) float32, 0..1."""
    boxes: np.ndarray
    """(N, 4) float32, xyxy in pixels of the original frame."""
    masks: tuple[dict, ...]
    """N COCO compressed RLEs of the original size: {"size": [H, W], "counts": str}."""
    class_scores: np.ndarray | None = None
    """(N, K) float32: whole class vectors, where a video's tracks are ranked by them; else None."""
    unshown_scores: np.ndarray | None = None
    """(K,) float32: the class vector of an UNSHOWN instance of the frame; None where there is none."""
    clip: ClipPlace | None = None
    """Of networks that see clips."""

    def __len__(self) -> int:
        return len(self.track_ids)


@dataclass(frozen=True)
class FrameFault:
    """A frame that is known of but could not be decoded: it is reported, the stream goes on."""

    info: FrameInfo
    reason: str


@dataclass(frozen=True)
class StreamEnd:
    """A stream gave its last frame."""

    stream: str
    num_frames: int
    """Frames given, faulty ones of a folder included."""
    num_skipped: int = 0
    """Damaged packets of a video that gave no frame."""
    error: str | None = None
    """Why it stopped before its end, or was damaged on the way; None when all was well."""
    fatal: bool = False
    """True when the stream counts as failed (exit code 1): it did not open, or broke off before its end."""
