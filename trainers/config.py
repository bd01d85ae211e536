"""Settings of a training run: one YAML file is enough to repeat it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trainers.clips import ScaleConfig
from trainers.step import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which frames are seen, and how pairs or clips are drawn from them."""

    annotations: str
    """A YouTube-VIS JSON."""
    image_root: str
    """The folder that its file names are relative to."""
    kind: Literal["pairs", "clips"] = "pairs"
    """What a sample is: `pairs` of frames near each other, either way in time, mirrored together (CrossVIS, MaskTrack
    R-CNN); `clips` of frames in order of time (IAI). The network says which it learns from."""
    max_interval: int | None = 20
    """Of pairs: the reference lies at most this many stored frames from the key frame; null: anywhere in the video.
    Higher: harder pairs, embeddings that survive longer gaps."""
    clip_frames: int = 5
    """Of clips: how many frames. More: longer memory is learnt; memory of the machine and time grow with it."""
    flip: float = 0.5
    """Probability that a pair, or each frame of a clip, is mirrored."""
    flip_sync: bool = False
    """Of clips: mirror all frames alike. As released, each is mirrored for itself, so objects change sides."""
    scale: ScaleConfig | None = None
    """Of clips: draw the size of each (`{}` takes the released ranges); null: the network's `model.input`."""
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
        if self.kind == "pairs" and (self.flip_sync or self.scale is not None):
            raise ValueError("flip_sync and scale are of clips: leave them out, or set kind: clips")


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """How many processes train together, and what each takes from the cluster."""

    num_workers: int = 1
    cpus_per_worker: int = 2
    use_gpu: bool = False
    """One GPU for each worker."""

    def __post_init__(self) -> None:
        if self.num_workers < 1 or self.cpus_per_worker < 1:
            raise ValueError("num_workers and cpus_per_worker must be at least 1")


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
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs convolutions in half the bits where the processor has them; losses stay in float32."""
    seed: int = 0
    log_every: int = 20
    """Steps between two lines of metrics.jsonl and two points of the curves."""
    checkpoint_every: int = 200
    """Steps between checkpoints. Lower: less is lost when cut, more time spent writing."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        if min(self.steps, self.samples_per_step, self.log_every, self.checkpoint_every) < 1:
            raise ValueError("steps, samples_per_step, log_every and checkpoint_every must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")
        if self.samples_per_step % self.workers.num_workers:
            raise ValueError(
                f"samples_per_step is {self.samples_per_step}, not a multiple of workers.num_workers "
                f"({self.workers.num_workers}): every worker must get equally many"
            )
