"""A short video that a client posts: through the same stages as the live streams, and back as JSON or as a video.

In:     the bytes of a file
Out:    {"frames": [lines of tracks.jsonl], "results": [YouTube-VIS entries], "error": why it is not whole or null,
        "damaged": number, "dropped": {reason: number}} as JSON; or an MP4 with masks, ids and labels drawn. Of both,
        headers say whether it is whole
State:  a stream of its own while it runs, and a temporary folder
Limits: the settings' `max_video_frames`; frames wait for the stages (`block`), so that none is dropped
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from operators.errors import ConfigError, SourceError, did_you_mean
from operators.formats import Categories
from operators.live.addresses import AllowList
from operators.live.camera import Camera
from operators.live.queue import LiveQueue
from operators.live.states import CameraConfig
from operators.records import Frame, FrameTracks, StreamEnd
from operators.sinks import SinkConfig, open_sinks
from operators.sources import Source
from pipelines.serving.config import ServeConfig
from pipelines.serving.engine import Engine
from pipelines.serving.streams import Opening, StreamSpec
from pipelines.stream_outputs import SourceSummary, StreamOutputs, frames

Result = Literal["json", "overlay"]
_KINDS: dict[str, tuple[str, ...]] = {"json": ("jsonl", "ytvis"), "overlay": ("video",)}
LOOK_S = 0.05
MAX_SAID = 500
"""Letters of a sentence that goes into a header."""


@dataclass(frozen=True)
class VideoAnswer:
    """What is answered to a video that gave at least one frame."""

    body: bytes
    """JSON, or an MP4."""
    num_frames: int
    """Frames with a result."""
    damaged: int
    """Packets that could not be decoded, and frames that the decoder marked as damaged."""
    dropped: dict[str, int]
    """Frames without a result, by reason: damaged (they did not decode), failed (a stage could not go on)."""
    error: str | None
    """Why the result is not that of the whole video, a sentence; None where it is."""

    def headers(self) -> dict[str, str]:
        """An MP4 cannot say of itself that frames are missing."""
        counts = {"X-Video-Frames": self.num_frames, "X-Video-Damaged": self.damaged,
                  "X-Video-Dropped": sum(self.dropped.values())}  # fmt: skip
        said = {name: str(count) for name, count in counts.items()}
        if self.error is not None:
            plain = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in self.error)
            said["X-Video-Error"] = plain[:MAX_SAID]
        return said


class VideoJob:
    """One video. Run it once."""

    def __init__(self, data: bytes, result: str, categories: Categories, config: ServeConfig) -> None:
        """Raises ConfigError for a result that is none."""
        if result not in get_args(Result):
            raise ConfigError(f"There is no result '{result}'.{did_you_mean(result, get_args(Result))}")
        self.stream = f"video-{uuid.uuid4().hex[:12]}"
        self._data, self._result, self._categories, self._config = data, result, categories, config
        self.too_long = False

    async def run(self, engine: Engine) -> VideoAnswer:
        """The result. Raises SourceError for bytes that are no video or of which no frame could be decoded, and for a
        longer video than is taken."""
        with tempfile.TemporaryDirectory(prefix="maskstream-") as folder:
            path = Path(folder, "video")
            await asyncio.to_thread(path.write_bytes, self._data)
            self._data = b""
            return await self._run(engine, Path(folder), path)

    async def _run(self, engine: Engine, folder: Path, path: Path) -> VideoAnswer:
        source = Source(self.stream, "video", str(path))
        config = SinkConfig(min_score=self._config.min_score)
        sinks = open_sinks(folder, _KINDS[self._result], source, self._categories, frames=frames, config=config)
        outputs, summary = StreamOutputs(sinks, SourceSummary(self.stream), config.min_score), None
        channel = Collected(outputs, self._config.max_video_frames)
        spec = StreamSpec(id=self.stream, url=path.as_uri(), policy="block", queue=8)
        stream = await asyncio.to_thread(engine.open, Opening(spec), self._source, channel)
        try:
            while stream.phase != "over" and not channel.too_long:
                await asyncio.sleep(LOOK_S)
            verdict = stream.verdict or ("ended", "")
        finally:
            await asyncio.to_thread(engine.remove, self.stream)
            while stream.phase != "over":
                await asyncio.sleep(LOOK_S)
            engine.forget(self.stream)
        summary = StreamEnd(self.stream, stream.out, error=verdict[1] or None, fatal=verdict[0] == "failed")
        await asyncio.to_thread(outputs.end, summary)
        if channel.too_long:
            raise SourceError(f"The video has more than the {self._config.max_video_frames} frames that are taken.")
        reason = verdict[1].replace(f"'{path}'", "the upload").replace(str(path), "the upload")
        if not stream.out:
            raise SourceError(f"The video gave no frame: {reason or 'it is empty.'}")
        damaged, dropped = stream.source.state().damaged, stream.dropped()
        error = reason[:1].upper() + reason[1:] or _missing(dropped)
        told = {"error": error, "damaged": damaged, "dropped": dropped}
        body = await asyncio.to_thread(self._read, folder / self.stream, told)
        return VideoAnswer(body, stream.out, **told)

    def _source(self, spec: StreamSpec, queue: LiveQueue) -> Camera:
        allow = AllowList(schemes=("file",), folders=(tempfile.gettempdir(),))
        return Camera(spec.id, spec.url, CameraConfig(paced=False), allow, queue)

    def _read(self, folder: Path, told: dict[str, Any]) -> bytes:
        if self._result == "overlay":
            return (folder / "overlay.mp4").read_bytes()
        lines = (folder / "tracks.jsonl").read_text(encoding="ascii").splitlines()
        results = json.loads((folder / "results.json").read_text(encoding="ascii"))
        answer = {"frames": [json.loads(line) for line in lines], "results": results, **told}
        return json.dumps(answer, separators=(",", ":")).encode("ascii")


def _missing(dropped: dict[str, int]) -> str | None:
    """A sentence for frames that a stage lost; None where all have their result."""
    counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    return f"Frames of the upload have no result: {counts}." if counts else None


class Collected:
    """In the place of a live stream's channel: every result goes into the outputs."""

    def __init__(self, outputs: StreamOutputs, max_frames: int) -> None:
        self._outputs, self._max_frames = outputs, max_frames
        self.last_index, self.last_at, self.shown, self.too_long = -1, None, 0, False

    def give(
        self, tracks: FrameTracks, captured_at: float | None, dropped: dict[str, int], frame: Frame | None
    ) -> None:
        self.too_long = self.too_long or tracks.info.index >= self._max_frames
        if not self.too_long:
            self.last_index = tracks.info.index
            self._outputs.take(tracks)

    def rates(self) -> tuple[float, float | None, float | None]:
        return 0.0, None, None
