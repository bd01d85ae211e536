"""A short video that a client posts: through the same stages as the live streams, and back as JSON or as a video.

In:     the bytes of a file
Out:    {"frames": [lines of tracks.jsonl], "results": [YouTube-VIS entries], "error": why it is not whole or null} as
        JSON; or an MP4 with masks, ids and labels drawn
State:  a stream of its own while it runs, and a temporary folder
Limits: the settings' `max_video_frames`; frames wait for the stages (`block`), so that none is dropped
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import uuid
from pathlib import Path
from typing import Literal, get_args

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


class VideoJob:
    """One video. Run it once."""

    def __init__(self, data: bytes, result: str, categories: Categories, config: ServeConfig) -> None:
        """Raises ConfigError for a result that is none."""
        if result not in get_args(Result):
            raise ConfigError(f"There is no result '{result}'.{did_you_mean(result, get_args(Result))}")
        self.stream = f"video-{uuid.uuid4().hex[:12]}"
        self._data, self._result, self._categories, self._config = data, result, categories, config
        self.too_long = False

    async def run(self, engine: Engine) -> bytes:
        """The result. Raises SourceError for bytes that are no video, or a longer one than is taken."""
        with tempfile.TemporaryDirectory(prefix="maskstream-") as folder:
            path = Path(folder, "video")
            await asyncio.to_thread(path.write_bytes, self._data)
            self._data = b""
            return await self._run(engine, Path(folder), path)

    async def _run(self, engine: Engine, folder: Path, path: Path) -> bytes:
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
        return await asyncio.to_thread(self._read, folder / self.stream, reason[:1].upper() + reason[1:] or None)

    def _source(self, spec: StreamSpec, queue: LiveQueue) -> Camera:
        allow = AllowList(schemes=("file",), folders=(tempfile.gettempdir(),))
        return Camera(spec.id, spec.url, CameraConfig(paced=False), allow, queue)

    def _read(self, folder: Path, error: str | None) -> bytes:
        if self._result == "overlay":
            return (folder / "overlay.mp4").read_bytes()
        lines = (folder / "tracks.jsonl").read_text(encoding="ascii").splitlines()
        results = json.loads((folder / "results.json").read_text(encoding="ascii"))
        answer = {"frames": [json.loads(line) for line in lines], "results": results, "error": error}
        return json.dumps(answer, separators=(",", ":")).encode("ascii")


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
