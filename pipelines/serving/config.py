"""What is served, and how: settings of a deployment's file (`args:`) and of `maskstream serve`.

In:     a mapping, as `serve run configs/deployments/live.yaml` hands it to `build`
Out:    ServeConfig, checked
State:  none; nothing heavy is imported here, because the process that answers HTTP has no use for torch
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from operators.live.addresses import AllowList
from operators.live.states import CameraConfig, PushedConfig
from pipelines.config import build
from pipelines.serving.guard_config import GuardConfig
from pipelines.serving.streams import Policy, StreamSpec


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One application. Its address is Serve's own setting (`http_options` of the file, --host and --port)."""

    network: str = "configs/networks/tiny.yaml"
    graph: str | None = None
    """A file of configs/graphs; a stage `decode` at its start is served as `receive`. None: the network's own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    set: tuple[str, ...] = ()
    """Settings changed, as by `--set`: network.detect.min_score=0.1, associate.min_match=0.5, batching.frames=16."""
    cameras: dict[str, str] = field(default_factory=dict, hash=False)
    """Streams that are there from the start: name -> address."""
    policy: Policy = "drop_oldest"
    """Of these cameras, and of streams that are registered without one."""
    queue: int = 8
    """Frames of each of them that may wait."""
    max_streams: int = 16
    """Streams of one replica of the first group; one more is refused (503). `maskstream plan` says how many fit."""
    max_videos: int = 2
    """Videos that are worked on at once in one replica (POST /videos)."""
    max_video_bytes: int = 64 << 20
    """Of a video that is posted. It is held in memory."""
    max_video_frames: int = 3000
    min_score: float = 0.5
    """Tracks of a lower score are not drawn, and not counted as shown; records always hold all."""
    overlay_width: int = 1280
    """Widest picture that is drawn; larger frames are shrunk."""
    overlay_fps: float = 15.0
    """Most pictures a second of one watcher."""
    stall_s: float = 10.0
    """/healthz fails when a live stream had no result for so long."""
    replicas: int = 1
    """So many times the replicas that the graph says, of every group."""
    surge_percent: int = 0
    """Of the replicas, so many more while they are replaced by those of a new version. 0: each is stopped first, and
    its streams pause where there is no other; 100: a new one is ready before, which wants free CPUs and memory."""
    num_ingress: int = 1
    """Processes that answer HTTP. All of them give the same; the limits of `guard` are those of each."""
    host: str = "127.0.0.1"
    """Where Serve listens, for the guard alone: elsewhere than on this machine it wants tokens. The same as
    http_options.host of the file."""
    allow: AllowList = field(default_factory=AllowList)
    """What may be pulled."""
    camera: CameraConfig = field(default_factory=CameraConfig)
    push: PushedConfig = field(default_factory=PushedConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        limits = {"queue": (1, 4096), "max_streams": (1, 4096), "max_videos": (0, 64), "overlay_width": (64, 16384),
                  "max_video_bytes": (1, 1 << 30), "max_video_frames": (1, 1_000_000), "min_score": (0, 1),
                  "overlay_fps": (0.1, 100), "stall_s": (1, 3600), "num_ingress": (1, 64),
                  "replicas": (1, 1024), "surge_percent": (0, 100)}  # fmt: skip
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {least} to {most}.")

    def specs(self) -> list[StreamSpec]:
        """The cameras that are there from the start. Raises ConfigError, NotAllowed."""
        specs = [replace(self.spec(name, url), declared=True) for name, url in self.cameras.items()]
        for spec in specs:
            self.own_allow.check(spec.url)
        return specs

    def spec(self, name: str, url: str | None, policy: str | None = None, queue: int | None = None) -> StreamSpec:
        """A stream with this app's defaults. Raises ConfigError."""
        return StreamSpec(id=name, url=url, policy=policy or self.policy, queue=queue or self.queue)

    @property
    def own_allow(self) -> AllowList:
        """For the cameras of the settings themselves, which nobody sent."""
        return OWN


OWN = AllowList(
    schemes=("rtsp", "http", "https", "tcp", "udp", "file", "v4l2"), hosts=("public", "0.0.0.0/0", "::/0"),
    ports=("1-65535",),
)  # fmt: skip
"""Everything: who writes the settings may name any camera."""


def read_config(args: Mapping[str, Any], where: str = "args") -> ServeConfig:
    """Raises ConfigError that names the setting."""
    return build(ServeConfig, dict(args), where)
