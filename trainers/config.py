"""Settings of a training run: one YAML file is enough to repeat it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trainers.augment import JitterConfig, PhotometricConfig, ScaleConfig
from trainers.pseudo import PseudoConfig
from trainers.step import OptimizerConfig

MAX_REPEAT = 1000


@dataclass(frozen=True, kw_only=True)
class StillsConfig:
    """Images seen beside the videos, each for itself."""

    annotations: str
    """A JSON of COCO instances, or of YouTube-VIS, each frame of which is a still."""
    image_root: str
    """The folder that its file names are relative to."""
    format: Literal["coco", "youtube_vis"] = "coco"
    classes: Literal["same", "coco", "open-images"] = "same"
    """What its classes are: those of the videos by name, `same`; or by a table, COCO's or Open Images' to those of
    YouTube-VIS 2019 (operators/datasets/class_maps.py). Objects of classes that the videos lack are left out, and
    count as background."""
    repeat: int = 1
    """Times that an epoch shows each image."""
    made_by: str = ""
    """The command that makes it, for the error when it is absent."""

    def __post_init__(self) -> None:
        if not 1 <= self.repeat <= MAX_REPEAT:
            raise ValueError(f"repeat is {self.repeat}, expected 1 to {MAX_REPEAT}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which frames are seen, how samples are drawn from them, and what is done to their pixels."""

    annotations: str
    """A JSON of YouTube-VIS, or of COCO instances: see `format`."""
    image_root: str | None = None
    """The folder that its file names are relative to; null where frames come out of `videos`."""
    videos: str | None = None
    """A folder with a file for each video, named as the folder of its frames: clip_00000.mp4 for clip_00000/00000.jpg.
    """
    video_numbers: Literal["place", "name"] = "place"
    """Which picture of the file an annotated frame is: the first is the first, or as its file name says: 00025.jpg is
    the 25th from 0, for sets that store every fifth."""
    video_decoder: Literal["pyav", "dali"] = "pyav"
    """PyAV decodes everywhere; DALI by a GPU's video engine, on a CPU VP9 and MJPEG alone."""
    format: Literal["youtube_vis", "coco"] = "youtube_vis"
    """Of the annotations. Each image of COCO is a video of one frame."""
    kind: Literal["pairs", "clips", "stills"] = "pairs"
    """What a sample is: `pairs` of frames near each other, either way in time, mirrored together (CrossVIS, MaskTrack
    R-CNN); `clips` of frames in order of time (IAI); `stills`, single frames. The network says which it learns from."""
    max_interval: int | None = 20
    """Of pairs: the reference lies at most this many stored frames from the key frame; null: anywhere in the video.
    Higher: harder pairs, embeddings that survive longer gaps."""
    direction: Literal["either", "forward"] = "either"
    """Of pairs: `either`, the reference before the key frame or after it; `forward`, before it, as frames come to a
    network that keeps the last one (TLTM)."""
    clip_sampling: Literal["gaps", "consecutive", "around"] = "gaps"
    """Of clips: `gaps`, five for each video in an epoch, frames with gaps between them (IAI); or each annotated frame
    once an epoch as the query (CiCo): `consecutive`, in the middle of frames in a row; `around`, as released, with
    others of those just before it and behind."""
    clip_frames: int = 5
    """Of clips: how many frames. More: longer memory is learnt; memory of the machine and time grow with it."""
    pseudo: PseudoConfig | None = None
    """Pairs and clips are made of one frame each, by moving it (`{}` takes the ranges of TLTM); null: of videos. With
    `stills`, those are moved alone."""
    repeat: int = 1
    """Times that an epoch shows each frame of `annotations`. Higher: more of them among the samples beside `stills`."""
    stills: tuple[StillsConfig, ...] = ()
    """Images seen beside the frames of `annotations`, whose classes count. Their pairs are made by `pseudo`."""
    flip: float = 0.5
    """Probability that a sample is mirrored; of clips, each frame for itself."""
    flip_sync: bool = False
    """Of clips: mirror all frames alike. As released with IAI, each is mirrored for itself, so objects change sides."""
    flip_axis: Literal["horizontal", "vertical"] = "horizontal"
    """`vertical`, as CiCo's release: upside down in place of mirrored."""
    scale: ScaleConfig | None = None
    """Draw the size of each sample (`{}` takes the ranges of IAI); null: the network's `model.input`."""
    photometric: PhotometricConfig | None = None
    """Change colours, of all frames of a sample alike; null: leave them."""
    jitter: JitterConfig | None = None
    """Shrink within the size, or enlarge and cut, all frames of a sample alike (`{}` takes the ranges of CiCo)."""
    boxes: Literal["annotated", "inclusive", "masks"] = "annotated"
    """The annotated boxes, transformed as the frame is; these up to their last pixel, x + w - 1, as CiCo's release; or
    those of the masks that come out, tight."""
    masks: Literal["nearest", "bilinear"] = "nearest"
    """How masks are resized: to the nearest pixel; or, as CiCo's, as 0/1 maps by the plain bilinear rule of its images,
    soft until the loss holds them against a half. Of frames that do not move by `pseudo`."""
    group_shapes: bool = False
    """The samples of a step are all of frames that lie or all of frames that stand: less padding, where both occur."""
    threads: int = 1
    """Of DALI, beside the network's own."""
    made_by: str = ""
    """The command that makes the dataset, for the error when it is absent."""

    def __post_init__(self) -> None:
        if self.max_interval is not None and self.max_interval < 0:
            raise ValueError(f"max_interval is {self.max_interval}, expected 0 or more, or null")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}, expected a probability, 0 to 1")
        if not 1 <= self.threads <= 64:
            raise ValueError(f"threads is {self.threads}, expected 1 to 64")
        if not 1 <= self.clip_frames <= 64:
            raise ValueError(f"clip_frames is {self.clip_frames}, expected 1 to 64")
        if not 1 <= self.repeat <= MAX_REPEAT:
            raise ValueError(f"repeat is {self.repeat}, expected 1 to {MAX_REPEAT}")
        self._check_sources()
        self._check_kind()
        self._check_stills()

    def _check_sources(self) -> None:
        if (self.image_root is None) == (self.videos is None):
            raise ValueError("expected either image_root, for frames that are files, or videos, for encoded ones")
        if self.format == "coco" and self.videos is not None:
            raise ValueError("videos go with format: youtube_vis; COCO has images: name their folder as image_root")
        if self.format == "coco" and self.kind != "stills" and self.pseudo is None:
            raise ValueError(f"COCO has no videos to draw {self.kind} from: set kind: stills, or make pseudo-videos by "
                             "pseudo: {}")  # fmt: skip

    def _check_kind(self) -> None:
        each = self.scale is not None and self.scale.each == "frame"
        if self.clip_sampling != "gaps" and (self.kind != "clips" or self.pseudo is not None):
            raise ValueError(f"clip_sampling: {self.clip_sampling} is of clips of videos: leave it out, or set kind: "
                             "clips, without pseudo")  # fmt: skip
        if self.kind != "clips" and (self.flip_sync or each):
            raise ValueError("flip_sync, and scale.each: frame, are of clips: leave them out, or set kind: clips")
        if self.pseudo is not None and (self.kind == "stills" or self.kind == "clips" and self.clip_frames < 2):
            raise ValueError("pseudo makes pairs, or clips of two frames or more: leave it out, or set kind: pairs")
        if self.pseudo is not None and self.masks == "bilinear":
            raise ValueError("masks: bilinear is of frames that do not move: leave it out, or leave out pseudo")

    def _check_stills(self) -> None:
        if self.direction == "forward" and self.kind != "pairs":
            raise ValueError("direction: forward is of pairs: leave it out, or set kind: pairs")
        if not self.stills:
            return
        if self.videos is not None:
            raise ValueError("stills go beside frames that are files: name image_root in place of videos")
        if self.kind == "clips" or self.kind == "pairs" and (self.direction != "forward" or self.pseudo is None):
            raise ValueError("stills go with kind: stills; or with kind: pairs, direction: forward and pseudo: {}, by "
                             "which they move")  # fmt: skip

    @property
    def frames(self) -> int:
        """Of a sample."""
        return {"stills": 1, "pairs": 2, "clips": self.clip_frames}[self.kind]

    @property
    def paths(self) -> dict[str, str]:
        """What has to be there: name of the setting -> path."""
        named = {"annotations": self.annotations, "image_root": self.image_root, "videos": self.videos}
        return {name: path for name, path in named.items() if path is not None}


MAX_WAIT_S = 7 * 86400.0


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """How many processes train together, and what each takes from the cluster."""

    num_workers: int = 1
    min_workers: int | None = None
    """Where machines were lost and none came in their place: as few as this go on; null: none but `num_workers`."""
    wait_s: float = 600.0
    """How long the run waits for lost machines before it goes on with fewer workers, or ends. Higher: lost machines
    come back in time more often, the others idle longer."""
    cpus_per_worker: int = 2
    use_gpu: bool = False
    """One GPU for each worker."""

    def __post_init__(self) -> None:
        if self.num_workers < 1 or self.cpus_per_worker < 1:
            raise ValueError("num_workers and cpus_per_worker must be at least 1")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ValueError(f"min_workers is {self.min_workers}, expected 1 to num_workers ({self.num_workers})")
        if not 0 <= self.wait_s <= MAX_WAIT_S:
            raise ValueError(f"wait_s is {self.wait_s}, expected 0 to {MAX_WAIT_S:.0f} seconds")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Videos kept apart, on which the network is scored while it trains."""

    annotations: str
    """A YouTube-VIS JSON with annotations, of the same categories."""
    image_root: str
    """The folder that its file names are relative to."""
    every: int = 1000
    """Steps between two evaluations; one more follows the last step. Lower: the best step is found more closely, more
    time is spent on it: worker 0 runs all videos, the others wait."""
    graph: str | None = None
    """A file of configs/graphs; null: the one that goes with the network."""
    pictures: int = 4
    """Frames, of as many videos, shown with truth and prediction side by side after each evaluation."""
    made_by: str = ""
    """The command that makes the dataset, for the error when it is absent."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}, expected 1 or more steps")
        if not 0 <= self.pictures <= 64:
            raise ValueError(f"pictures is {self.pictures}, expected 0 to 64")


MAX_STEPS, MAX_SAMPLES = 10**9, 1 << 16
"""Of a run, of a step: more can only be a slip."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run."""

    network: str
    """A file of configs/networks."""
    data: DataConfig
    start_from: str | None = None
    """A safetensors file of ours whose tensors the run begins with; null begins from scratch. What stills cannot teach
    (`embedding.*`, `proxies.*`), and class logits of another number of classes, begin fresh."""
    steps: int = 23000
    samples_per_step: int = 16
    """Pairs or clips, over all workers; must be a multiple of their number. Higher: calmer gradients, dearer steps."""
    batch_for_workers: int | None = None
    """The number of workers that `samples_per_step`, `steps` and the learning rate are meant for: with twice as many, a
    step takes twice the samples at twice the rate, and there are half as many steps (Goyal et al. 2017). All that is
    told in steps, as warm-up and decays, keeps its place among the samples. null: any number of workers share
    `samples_per_step`, so the run is the same on one machine and on eight."""
    accumulate: int = 1
    """Batches that a worker's share of a step comes in, one after the other, their gradients added up: the step of as
    many times the workers. Higher: less memory, more time; norms over a batch see fewer samples."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """bfloat16 runs convolutions in half the bits where the processor has them; losses stay in float32. float16 is for
    GPUs without bfloat16: the loss is scaled so that small gradients do not vanish, and steps whose gradients overflow
    are left out."""
    seed: int = 0
    deterministic: bool = True
    """On a GPU, kernels that add in a fixed order: two equal runs are equal to the bit. false: faster, equal but for
    rounding. On a CPU runs are equal in any case."""
    log_every: int = 20
    """Steps between two lines of metrics.jsonl and two points of the curves."""
    checkpoint_every: int = 200
    """Steps between checkpoints. Lower: less is lost when cut, more time spent writing."""
    checkpoints_kept: int = 2
    """The last so many are kept. With one alone, nothing is left if a disk damages it."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    evaluation: EvaluationConfig | None = None
    """Scores while training, and the best weights kept beside the last; null: neither."""

    def __post_init__(self) -> None:
        if min(self.steps, self.samples_per_step, self.log_every, self.checkpoint_every) < 1:
            raise ValueError("steps, samples_per_step, log_every and checkpoint_every must be at least 1")
        if self.steps > MAX_STEPS or self.samples_per_step > MAX_SAMPLES:
            raise ValueError(f"steps is {self.steps}, samples_per_step {self.samples_per_step}; expected at most "
                             f"{MAX_STEPS} and {MAX_SAMPLES}")  # fmt: skip
        if not 0 <= self.seed < 1 << 32:        # times a million it is still a seed of torch
            raise ValueError(f"seed is {self.seed}, expected 0 to {(1 << 32) - 1}")
        if self.accumulate < 1 or self.checkpoints_kept < 1 or (self.batch_for_workers or 1) < 1:
            raise ValueError("accumulate, checkpoints_kept and batch_for_workers must be at least 1")
        if self.precision == "float16" and not self.workers.use_gpu:
            raise ValueError("precision is float16, which takes a GPU: set workers.use_gpu, or precision: bfloat16")
        self.batch(self.workers.num_workers)

    def step_of(self, workers: int) -> int:
        """Samples of a step of so many workers together."""
        return self.samples_per_step * workers // (self.batch_for_workers or workers)

    def steps_of(self, workers: int) -> int:
        """Steps of a whole run of so many workers."""
        return -(-self.steps * self.samples_per_step // self.step_of(workers))

    def batch(self, workers: int) -> int:
        """Samples of one batch of each of so many workers. Raises ValueError where the shares are not whole."""
        shared, name = (workers, "workers.num_workers") if self.batch_for_workers is None else (
            self.batch_for_workers, "batch_for_workers")  # fmt: skip
        if self.samples_per_step % (shared * self.accumulate):
            by = f"{name} ({shared})" + (f" times accumulate ({self.accumulate})" if self.accumulate > 1 else "")
            raise ValueError(
                f"samples_per_step is {self.samples_per_step}, not a multiple of {by}: every worker must get equally "
                "many"
            )
        return self.samples_per_step // (shared * self.accumulate)
