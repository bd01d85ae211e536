"""HLS: a playlist that is read again and again, and the segments it names, as one stream of bytes.

In:     the answer to the playlist's address
Out:    the bytes of its segments, each behind its initialisation where it has one; b"" after the last of a recording
State:  which segment comes next, and over connections which was the last (Played); one segment in memory
Limits: playlists of MAX_PLAYLIST bytes and MAX_SEGMENTS segments, segments of MAX_SEGMENT bytes; every address in a
        playlist is checked as the playlist's own is. Encrypted segments are refused
Source: RFC 8216 (HTTP Live Streaming)
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from operators.errors import SourceError
from operators.live.addresses import Address
from operators.live.http import Getter, Response, redirected
from operators.live.stop import Stop, Stopped

MAX_PLAYLIST = 1 << 20
MAX_SEGMENTS = 20_000
MAX_SEGMENT = 1 << 26
FROM_END = 3
"""Segments before the end of a live playlist at which to begin (RFC 8216, 6.3.3)."""
KINDS = ("application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl", "audio/x-mpegurl")
MARK = b"#EXTM3U"


@dataclass(frozen=True)
class Part:
    """A file, or `count` bytes of it from `begin`."""

    uri: str
    begin: int | None = None
    count: int | None = None


@dataclass(frozen=True)
class Segment:
    part: Part
    sequence: int
    start: Part | None = None
    """Its initialisation (EXT-X-MAP)."""


@dataclass(frozen=True)
class Variant:
    """One of several playlists of the same pictures."""

    uri: str
    bandwidth: int
    pixels: int
    """0 where it does not say."""


@dataclass(frozen=True)
class Playlist:
    """What a playlist says. One that names variants names no segments."""

    variants: tuple[Variant, ...] = ()
    segments: tuple[Segment, ...] = ()
    target_s: float = 6.0
    """Longest segment."""
    ended: bool = False
    encrypted: bool = False


@dataclass
class Played:
    """How far a playlist was played, over all connections to it: a server whose encoder died goes on naming the last
    segments, which are not to be played again and again."""

    last: tuple[int, str, int | None] | None = None

    def took(self, segment: Segment) -> None:
        self.last = self._key(segment)

    def next_of(self, segments: tuple[Segment, ...], ended: bool) -> int:
        """The sequence number with which to go on in what a playlist names now: of one that `ended` with the first, or
        where it was left, of a live one at most FROM_END before its end."""
        named = segments if ended else segments[-FROM_END:]
        after = max([named[0].sequence, *(one.sequence + 1 for one in named if self._key(one) == self.last)])
        return min(after, segments[-1].sequence) if ended else after

    def _key(self, segment: Segment) -> tuple[int, str, int | None]:
        # an encoder that starts anew counts from 0 again, and queries hold tokens that change with every playlist
        return segment.sequence, segment.part.uri.partition("?")[0], segment.part.begin


def read_playlist(data: bytes, where: str) -> Playlist:
    """Raises SourceError for bytes that are no playlist, or one that is too long. Unknown lines are passed over."""
    lines = [line.strip() for line in data.decode("utf-8-sig", "replace").splitlines()]
    if not lines or not lines[0].startswith(MARK.decode()):
        raise SourceError(f"{where}: is no HLS playlist.")
    variants: list[Variant] = []
    segments: list[Segment] = []
    state = _Reading()
    for line in lines[1:]:
        tag, _, value = line.partition(":")
        if line.startswith("#"):
            state.tag(tag, value)
        elif line and state.variant is not None:
            variants.append(Variant(line, *state.variant))
            state.variant = None
        elif line:
            segments.append(state.segment(line))
        if len(segments) + len(variants) > MAX_SEGMENTS:
            raise SourceError(f"{where}: its playlist has more than the {MAX_SEGMENTS} segments allowed.")
    return Playlist(tuple(variants), tuple(segments), state.target_s, state.ended, state.encrypted)


class _Reading:
    """What the tags say of the lines to come."""

    def __init__(self) -> None:
        self.variant: tuple[int, int] | None = None
        self.target_s, self.ended, self.encrypted = 6.0, False, False
        self._sequence = 0
        self._start: Part | None = None
        self._range: str | None = None
        self._end_of: dict[str, int] = {}

    def tag(self, tag: str, value: str) -> None:
        if tag == "#EXT-X-STREAM-INF":
            size = re.search(r"RESOLUTION=(\d{1,6})x(\d{1,6})", value)
            self.variant = _number(value, r"(?:^|,)BANDWIDTH=(\d{1,15})"), \
                int(size.group(1)) * int(size.group(2)) if size else 0
        elif tag == "#EXT-X-TARGETDURATION":
            self.target_s = float(min(max(_number(value, r"^(\d{1,9})"), 1), 600))
        elif tag == "#EXT-X-MEDIA-SEQUENCE":
            self._sequence = _number(value, r"^(\d{1,18})")
        elif tag == "#EXT-X-ENDLIST":
            self.ended = True
        elif tag == "#EXT-X-KEY":
            self.encrypted = "METHOD=NONE" not in value
        elif tag == "#EXT-X-BYTERANGE":
            self._range = value
        elif tag == "#EXT-X-MAP":
            uri = re.search(r'URI="([^"]*)"', value)
            byte_range = re.search(r'BYTERANGE="([^"]*)"', value)
            self._start = None if uri is None else self._part(uri.group(1), byte_range and byte_range.group(1))

    def segment(self, uri: str) -> Segment:
        found = Segment(self._part(uri, self._range), self._sequence, self._start)
        self._sequence, self._range = self._sequence + 1, None
        return found

    def _part(self, uri: str, byte_range: str | None) -> Part:
        found = re.match(r"(\d{1,15})(?:@(\d{1,15}))?$", byte_range.strip()) if byte_range else None
        if found is None:
            return Part(uri)
        count = int(found.group(1))
        begin = int(found.group(2)) if found.group(2) else self._end_of.get(uri, 0)
        self._end_of[uri] = begin + count
        return Part(uri, begin, count)


def _number(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def choose(variants: tuple[Variant, ...], max_pixels: int) -> Variant:
    """The best one that is not too large; the smallest where all are."""
    fits = [variant for variant in variants if variant.pixels <= max_pixels]
    return max(fits, key=lambda one: one.bandwidth) if fits else min(variants, key=lambda one: one.pixels)


class Segments:
    """The segments of a playlist as one stream of bytes; follows it while it grows."""

    def __init__(
        self, getter: Getter, answer: Response, stop: Stop, max_pixels: int, until_s: float,
        played: Played | None = None,
    ) -> None:
        """`answer` is the playlist's; it is closed here. Raises SourceError for a playlist that is no use."""
        self._getter, self._stop, self._played = getter, stop, played or Played()
        self.until_s = until_s
        self._playlist, self._where = self._read(answer)
        if self._playlist.variants:
            best = choose(self._playlist.variants, max_pixels)
            self._playlist, self._where = self._load(redirected(self._where, best.uri))
        if not self._playlist.segments:
            raise SourceError(f"{self._where.public}: its playlist names no segments.")
        self._next = self._played.next_of(self._playlist.segments, self._playlist.ended)
        self._began: Part | None = None
        self._data = memoryview(b"")

    @property
    def patience_s(self) -> float:
        """How long nothing new may come: segments come whole, and a server may be one late."""
        return 2 * self._playlist.target_s + 1

    def read(self, count: int) -> bytes:
        """The next bytes; b"" after the last segment of a playlist that ended. Raises SourceError, Stopped."""
        while not self._data:
            segment = self._awaited()
            if segment is None:
                return b""
            start = b""
            if segment.start is not None and segment.start != self._began:
                start = self._fetch(segment.start)
                self._began = segment.start
            self._data = memoryview(start + self._fetch(segment.part))
            self._next = segment.sequence + 1
            self._played.took(segment)
        taken, self._data = self._data[:count], self._data[count:]
        return bytes(taken)

    def close(self) -> None:
        """No connection is held between two reads."""

    def _awaited(self) -> Segment | None:
        """The next segment, once the playlist names it; None after the end."""
        while True:
            coming = [segment for segment in self._playlist.segments if segment.sequence >= self._next]
            if coming:
                return coming[0]
            if self._playlist.ended:
                return None
            if self._playlist.segments and self._playlist.segments[-1].sequence < self._next - 1:
                raise SourceError(f"{self._where.public}: its playlist began anew.")
            if time.monotonic() > self.until_s:
                raise SourceError(f"{self._where.public}: its playlist names nothing new.")
            if self._stop.wait(min(self._playlist.target_s / 2, 3.0)):
                raise Stopped
            self._playlist, self._where = self._load(self._where)

    def _load(self, where: Address) -> tuple[Playlist, Address]:
        return self._read(self._getter.get(where))

    def _read(self, answer: Response) -> tuple[Playlist, Address]:
        try:
            playlist = read_playlist(answer.all(MAX_PLAYLIST, self.until_s), answer.where.public)
        finally:
            answer.close()
        if playlist.encrypted:
            raise SourceError(f"{answer.where.public}: its segments are encrypted, which is not supported.")
        return playlist, answer.where

    def _fetch(self, part: Part) -> bytes:
        answer = self._getter.get(redirected(self._where, part.uri), begin=part.begin, count=part.count)
        try:
            return answer.all(MAX_SEGMENT, self.until_s)
        finally:
            answer.close()
