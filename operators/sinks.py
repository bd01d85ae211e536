"""Step 8: where the results of one stream end, a class for each kind of output.

In:     FrameTracks and FrameFaults of one stream, in order, then its StreamEnd, or none where the run was cut
Out:    files in DIR/<source name>/, see SINKS; those of an earlier run are replaced
State:  open files; `ytvis` and `davis` hold the video's masks as RLE (formats.VideoTracks, proposals.py); of `video`,
        `masks` and `davis` see picture_sinks.py
Limits: a cut run leaves whole JSONL lines, a video that plays, whole PNGs, and results.json of the frames so far
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from operators.errors import ConfigError, did_you_mean
from operators.formats import Categories, CategoryRule, VideoTracks, write_results
from operators.jsonl import fault_line, track_line
from operators.label_maps import frame_names, remove_maps, writing
from operators.matching import Association
from operators.picture_sinks import FrameStream, MasksSink, OverlaySink, ProposalsSink, counted
from operators.proposals import ProposalsConfig
from operators.records import FrameFault, FrameTracks, StreamEnd
from operators.sources import Source


class SinkKind(NamedTuple):
    """One kind of output, as `--save` names it."""

    file: str
    """What it writes, inside the folder of the source."""
    help: str


SINKS = {
    "jsonl": SinkKind("tracks.jsonl", "a line of JSON a frame: track ids, classes, scores, boxes, masks as RLE"),
    "ytvis": SinkKind("results.json", "YouTube-VIS results, an entry a track, as the evaluation server takes them"),
    "video": SinkKind("overlay.mp4", "the video with masks, outlines, boxes and labels in the tracks' colours"),
    "masks": SinkKind("masks", "a DAVIS palette PNG a frame, its value track id + 1 where the track is"),
    "davis": SinkKind("davis", "the same of a video's 20 best tracks, numbered from 1, once it has ended (DAVIS 2019)"),
}

CATEGORY_RULES: dict[Association, CategoryRule] = {
    "cosine_iou": "first", "masktrack": "majority", "identities": "ranked", "edges": "majority", "boxes": "majority",
    "clips": "majority",
}  # fmt: skip
"""Class of a whole track, for each association: CrossVIS specification 4.4, IAI specification 4, TLTM specification
4.6, CiCo specification 4.5."""


@dataclass(frozen=True, kw_only=True)
class SinkConfig:
    """How results are drawn, and summed up over a video. `jsonl` depends on none of it."""

    min_score: float = 0.5
    """Tracks of a lower score in a frame are left out of `video` and `masks`, 0..1. Higher: calmer pictures, in which
    weak but true detections are absent too. `jsonl` and `ytvis` always hold all."""
    alpha: float = 0.45
    """How far masks cover the picture in `video`, 0..1. Higher: masks are seen better, the objects under them less."""
    category: Literal["first", "majority", "network"] = "network"
    """Class of a whole track in `ytvis`: that of its first record, or of most of them (`majority`; the lowest id where
    votes are equal), or what goes with the association in use: see CATEGORY_RULES. `majority` outvotes a first glance
    that was wrong; with `cosine_iou` both are the same, because there a track has one class. Of IAI's `identities`
    `network` ranks all pairs of track and class, and either of the others gives one entry a track."""
    max_per_video: int = 10
    """Entries that a video may have where pairs are ranked. Higher: more weak ones. As released: as many as instances a
    frame, 10, and 50 for OVIS."""
    min_video_score: float = 0.05
    """Entries of this score and below are left out where pairs are ranked, 0..1. Higher: fewer weak ones."""
    davis: ProposalsConfig = field(default_factory=ProposalsConfig)
    """Which tracks are DAVIS proposals."""

    def __post_init__(self) -> None:
        for name in ("min_score", "alpha", "min_video_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1.")
        if self.max_per_video < 1:
            raise ValueError(f"max_per_video is {self.max_per_video}, expected at least 1.")

    def category_rule(self, association: Association | None = None) -> CategoryRule:
        """The rule in use for tracks of this association; None for tracks of some other origin."""
        if self.category != "network":
            return self.category
        return "first" if association is None else CATEGORY_RULES[association]


class Sink(Protocol):
    """One output of one stream. Frames come in order, each by `write` or by `fault`; `close` comes last.

    Raises StageError where a file cannot be written (a full disk, say); what was written before stays valid.
    """

    path: Path

    def write(self, tracks: FrameTracks) -> None: ...

    def fault(self, fault: FrameFault) -> None: ...

    def close(self, end: StreamEnd | None) -> None:
        """Finish the files; None says that the run was cut. A second call does nothing."""

    def summary(self) -> str:
        """What was written, in a few words, and what had to be left out."""


def open_sinks(
    directory: Path | str,
    kinds: Sequence[str],
    source: Source,
    categories: Categories,
    *,
    frames: Callable[[Source], FrameStream],
    config: SinkConfig | None = None,
    number: int = 1,
    association: Association | None = None,
) -> list[Sink]:
    """A sink for each of `kinds`, in `directory`/<source name>/, which is made; no kinds give [].

    frames   opens the source once more, from its start; called for "video" alone
    number   the running number of the source: its video_id in results.json, unless the source has one
    association   the rule that gives the tracks, which `config.category` may follow

    Raises ConfigError for an unknown kind, or a folder or file that cannot be made.
    """
    for kind in kinds:
        if kind not in SINKS:
            raise ConfigError(f"--save {','.join(kinds)}: no output is called '{kind}'.{did_you_mean(kind, SINKS)}")
    config = config or SinkConfig()
    folder = Path(directory, source.name)
    if not folder.resolve().is_relative_to(Path(directory).resolve()):
        raise ConfigError(f"source '{source.name}': its outputs would lie outside of {directory}. Rename the source.")
    video_id = number if source.video_id is None else source.video_id
    category = config.category_rule(association)
    make: dict[str, Callable[[Path], Sink]] = {
        "jsonl": lambda path: JsonlSink(path, categories),
        "ytvis": lambda path: ResultsSink(path, categories, video_id, category=category, config=config),
        "video": lambda path: OverlaySink(
            path, frames(source), categories, fps=source.fps, alpha=config.alpha, min_score=config.min_score
        ),
        "masks": lambda path: MasksSink(path, min_score=config.min_score),
        "davis": lambda path: ProposalsSink(path, frame_names(source), config.davis),
    }
    sinks: list[Sink] = []
    with ExitStack() as undo:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for kind in dict.fromkeys(kinds):
                sinks.append(make[kind](folder / SINKS[kind].file))
                undo.callback(sinks[-1].close, None)
        except OSError as error:
            raise ConfigError(f"{folder}: outputs cannot be written there: {error.strerror or error}.") from error
        undo.pop_all()
    return sinks


def remove_outputs(folder: Path, kinds: Sequence[str]) -> None:
    """Remove what sinks of these kinds wrote into the folder of a source, and nothing else. Raises OSError."""
    for kind in kinds:
        path = folder / SINKS[kind].file
        if path.is_dir():
            remove_maps(path, named=kind == "davis")
            if not any(path.iterdir()):
                path.rmdir()
        else:
            path.unlink(missing_ok=True)


class JsonlSink:
    """tracks.jsonl: a line a frame, faulty ones included, on the disk as soon as it is known."""

    def __init__(self, path: Path, categories: Categories) -> None:
        self.path = path
        self._categories = categories
        self._num_lines = 0
        self._file = path.open("wb", buffering=0)

    def write(self, tracks: FrameTracks) -> None:
        self._append(track_line(tracks, self._categories), tracks)

    def fault(self, fault: FrameFault) -> None:
        self._append(fault_line(fault), fault)

    def close(self, end: StreamEnd | None) -> None:
        self._file.close()

    def summary(self) -> str:
        return counted(self._num_lines, "line")

    def _append(self, line: str, record: FrameTracks | FrameFault) -> None:
        # One call of the operating system a line: a kill between two calls leaves whole lines.
        data, start = line.encode("ascii"), self._file.tell()
        with writing(self.path, record.info):
            if (written := self._file.write(data)) != len(data):
                self._file.truncate(start)
                self._file.seek(start)
                raise OSError(f"only {written} of {len(data)} bytes of a line were taken; is the disk full?")
        self._num_lines += 1


class ResultsSink:
    """results.json: the whole video's tracks, written at the end; of a cut run, those of the frames so far."""

    def __init__(
        self, path: Path, categories: Categories, video_id: int, *, category: CategoryRule = "first",
        config: SinkConfig | None = None,
    ) -> None:
        self.path, config = path, config or SinkConfig()
        self._categories, self._video_id, self._category = categories, video_id, category
        self._limits = config.max_per_video, config.min_video_score
        self._tracks = VideoTracks()
        self._closed = False
        path.unlink(missing_ok=True)  # killed half-way, this run shall not leave the results of the one before

    def write(self, tracks: FrameTracks) -> None:
        self._tracks.add(tracks)

    def fault(self, fault: FrameFault) -> None:
        self._tracks.skip(fault.info)

    def close(self, end: StreamEnd | None) -> None:
        if self._closed:
            return
        self._closed = True
        num_frames = None if end is None else end.num_frames
        with writing(self.path):
            categories, category = self._categories, self._category
            entries = self._tracks.results(self._video_id, categories, num_frames, category, *self._limits)
            write_results(self.path, entries)

    def summary(self) -> str:
        return f"{counted(len(self._tracks), 'track')} over {counted(self._tracks.num_frames, 'frame')}"
