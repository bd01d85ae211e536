"""From an address to the feed that reads it: what each scheme means, and each kind of answer over HTTP.

In:     an address, an allow list
Out:    a Feed, connected; or SourceError with the reason
State:  none
Limits: those of the feed

    rtsp          H.264, H.265, Motion JPEG, ... over TCP or UDP         rtsp.py
    http, https   Motion JPEG (multipart), HLS, MPEG-TS, FLV, fragmented MP4, recordings
    tcp           the same formats as over HTTP, without the HTTP
    udp           MPEG-TS in datagrams, to this machine or to a multicast group
    v4l2          a webcam
    file          a video file
"""

from __future__ import annotations

import time

from operators.errors import SourceError
from operators.live.addresses import Address, AllowList
from operators.live.feeds import Feed, FileFeed
from operators.live.hls import KINDS, MARK, Played, Segments
from operators.live.http import Getter
from operators.live.rtsp import open_rtsp
from operators.live.states import CameraConfig
from operators.live.stop import Stop
from operators.live.streams import Bytes, StreamFeed, open_bytes, open_place
from operators.live.wire import Datagrams, connect

FORMATS = {"multipart/x-mixed-replace": "mpjpeg", "video/mp2t": "mpegts"}
"""Content-Type -> FFmpeg's name of the format; others are told by their first bytes."""

NO_VIDEO = ("application/json", "application/xml", "image/jpeg", "image/png", "image/gif")


def open_feed(
    name: str, address: Address, config: CameraConfig, allow: AllowList, stop: Stop, played: Played | None = None
) -> Feed:
    """Connect. `played` is what earlier connections left behind. Raises SourceError where that fails, Refused for wrong
    credentials, NotAllowed, Stopped."""
    if address.scheme == "rtsp":
        return open_rtsp(name, address, config, allow, stop)
    if address.scheme in ("http", "https"):
        return _open_http(address, config, allow, stop, played)
    endpoints = allow.endpoints(address)
    if address.scheme == "file":
        return FileFeed(name, address.path, config)
    if address.scheme == "v4l2":
        return open_place(address.path, address.public, config, kind="v4l2", options={}, protocols="file")
    if address.scheme == "udp":
        source: Bytes = Datagrams(endpoints[0], stop, config.silence_s, address.public)
        return _closing(source, address, config, kind="mpegts")
    wire = connect(endpoints, stop, config.connect_s, config.silence_s, address.public)
    return _closing(wire, address, config)


def _open_http(
    address: Address, config: CameraConfig, allow: AllowList, stop: Stop, played: Played | None
) -> StreamFeed:
    getter = Getter(config, allow, stop)
    answer = getter.get(address)
    try:
        answer.until_s = time.monotonic() + config.silence_s
        if answer.kind in KINDS or answer.peek().lstrip().startswith(MARK):
            until_s = time.monotonic() + config.first_frame_s
            segments = Segments(getter, answer, stop, config.max_pixels, until_s, played)
            return open_bytes(segments, address.public, config, recording=True, patience_s=segments.patience_s)
        if answer.kind.startswith("text/") or answer.kind in NO_VIDEO:
            raise SourceError(f"{address.public}: the server gives {answer.kind[:60]}, expected moving pictures.")
        kind = FORMATS.get(answer.kind)
        return open_bytes(answer, address.public, config, kind=kind,
                          recording=answer.length is not None and kind != "mpjpeg")
    except BaseException:
        answer.close()
        raise


def _closing(source: Bytes, address: Address, config: CameraConfig, kind: str | None = None) -> StreamFeed:
    try:
        return open_bytes(source, address.public, config, kind=kind)
    except BaseException:
        source.close()
        raise
