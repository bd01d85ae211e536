"""What a live source is told, and what it says of itself: settings, state, and how long it waits before it tries again.

In:     settings; a source's failures
Out:    SourceState, for status pages; delays in seconds
State:  of Backoff the number of failures in a row
Limits: none
Source: "full jitter": M. Brooker, Exponential Backoff and Jitter, 2015
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from operators.errors import ConfigError, SourceError
from operators.probe import MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class PushedConfig:
    """What a client may push."""

    max_bytes: int = 8 << 20
    """Of a message, and of a frame of H.264. Higher: larger pictures; more memory for what is hostile."""
    max_pixels: int = 1 << 24
    """Of a frame. 16 Mpixel is twice 4K, 48 MiB as RGB."""
    max_rate: float = 120.0
    """Messages a second in the long run; twice as many at once."""
    silence_s: float = 8.0
    """After so long without a frame the stream does not count as live."""

    def __post_init__(self) -> None:
        if not 1024 <= self.max_bytes <= 1 << 29:
            raise ConfigError(f"max_bytes is {self.max_bytes}; expected 1024 to {1 << 29}.")
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise ConfigError(f"max_pixels is {self.max_pixels}; expected 1 to {MAX_PIXELS}.")
        for name in ("max_rate", "silence_s"):
            if not 0.01 <= getattr(self, name) <= 1e6:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0.01 to 1000000.")


class Refused(SourceError):
    """The server wants other credentials."""


State = Literal["connecting", "live", "reconnecting", "ended", "stopped"]


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """How a source is read. The defaults promise: a dead one is noticed within 10 s, and its frames flow within 5 s of
    its return."""

    connect_s: float = 2.0
    """Longest wait for a connection to be made (TCP, and TLS again). Higher: suits distant cameras; one that comes back
    may be noticed that much later."""
    silence_s: float = 8.0
    """Longest time without a byte, and, once frames came, without a frame: then the source counts as dead. Higher:
    suits cameras of less than a frame in a few seconds; dead ones are noticed later."""
    first_frame_s: float = 20.0
    """Longest wait for the first frame of a connection that sends bytes: encoders give key frames every 1 to 10 s."""
    retry_first_s: float = 0.5
    """Longest first wait before another try; it doubles with each failure up to `retry_max_s`, and the wait is a random
    part of it, so that many cameras behind one switch do not all come at once."""
    retry_max_s: float = 2.5
    """Longest wait between two tries. With `connect_s` it bounds how late a camera's return is noticed."""
    refused_s: float = 30.0
    """Wait after the server refused the credentials: many cameras lock accounts that keep trying."""
    steady_s: float = 5.0
    """Time of life after which failures count from none again."""
    max_pixels: int = 1 << 24
    """Of a frame: larger ones are refused before they are decoded. 16 Mpixel is twice 4K, 48 MiB as RGB."""
    rtsp_transport: Literal["tcp", "udp"] = "tcp"
    """How pictures of RTSP travel where the address does not say it (rtspt, rtspu). tcp: through firewalls, whole;
    udp: nothing waits for lost packets."""
    threads: int = 1
    """Decoding threads. More: large pictures are decoded faster, less is left for the network."""
    hwaccel: Literal["none", "cuda"] = "none"
    """cuda decodes on the GPU's video engine (NVDEC), where PyAV finds one; not yet tried on one. Files always decode
    on the CPU, as offline."""
    verify_tls: bool = True
    """Whether https wants a certificate of a known authority. False: for cameras with one of their own making; whoever
    sits in between can then read and change everything, credentials too."""
    paced: bool = True
    """Of files and HLS: played at their own rate. False: as fast as they can be read and taken."""
    loop: bool = False
    """Of files: begin again at the end, for ever."""

    def __post_init__(self) -> None:
        for name in (name for name in self.__dataclass_fields__ if name.endswith("_s")):
            seconds = getattr(self, name)
            if not 0.01 <= seconds <= 86_400:      # NaN is refused too
                raise ConfigError(f"{name} is {seconds}; expected 0.01 to 86400 seconds.")
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise ConfigError(f"max_pixels is {self.max_pixels}; expected 1 to {MAX_PIXELS}.")
        if not 1 <= self.threads <= 64:
            raise ConfigError(f"threads is {self.threads}; expected 1 to 64.")
        if self.hwaccel not in ("none", "cuda"):
            raise ConfigError(f"hwaccel is '{self.hwaccel}'; expected none or cuda.")
        if self.rtsp_transport not in ("tcp", "udp"):
            raise ConfigError(f"rtsp_transport is '{self.rtsp_transport}'; expected tcp or udp.")


@dataclass(frozen=True)
class SourceState:
    """A live source at one moment."""

    state: State
    """connecting: no frame yet; live: frames come; reconnecting: there were some, or a first try failed; ended: it gave
    its last frame; stopped: it was removed."""
    reason: str = ""
    """Of reconnecting: what happened last, a sentence without credentials. Of ended: why, where the end was no proper
    one."""
    retry_in_s: float | None = None
    """Of reconnecting: seconds until the next try; None while one is under way."""
    width: int = 0
    height: int = 0
    """Of the last frame; 0 before the first."""
    fps: float = 0.0
    """Frames a second that came over the last few seconds."""
    reconnects: int = 0
    """Tries after the first one."""
    damaged: int = 0
    """Packets that could not be decoded, and frames that the decoder marked as damaged."""


class Backoff:
    """Waits between tries: random in [0, limit], where the limit doubles from `first_s` up to `max_s`."""

    def __init__(self, first_s: float, max_s: float, rng: random.Random | None = None) -> None:
        self._first_s, self._max_s = first_s, max_s
        self._rng = rng or random.Random()
        self._failures = 0

    def next(self) -> float:
        """The wait after one more failure, in seconds."""
        limit = min(self._max_s, self._first_s * 2.0 ** min(self._failures, 60))
        self._failures += 1
        return self._rng.uniform(0.0, limit)

    def reset(self) -> None:
        """The source was well for a while."""
        self._failures = 0
