"""Debian's RTSP server as a process of its own that can be killed, and started again at its port; tests are skipped
where it is not installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PYTHON = "/usr/bin/python3"
PACKAGES = "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
NO_H264 = "GStreamer has no openh264enc here: apt-get install gstreamer1.0-plugins-bad"


class RealRtsp:
    """`with RealRtsp(folder) as server:`; what it shows stands in rtsp_server.py."""

    def __init__(self, folder: Path | None = None, needs_h264: bool = False) -> None:
        """`folder`: of /clip."""
        self.port = self.guarded = 0
        self.has_h264 = False
        self._folder, self._needs_h264 = [] if folder is None else [str(folder)], needs_h264
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Skips the test where there is no such server."""
        if not Path(PYTHON).exists():
            pytest.skip(f"the RTSP server of these tests runs under {PYTHON}, which is not there")
        command = [PYTHON, str(Path(__file__).with_name("rtsp_server.py")), str(self.port), *self._folder]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = self._process.stdout.readline().split()
        if not line:
            self.kill()
            pytest.skip(f"Debian's RTSP server is not installed: apt-get install {PACKAGES}")
        self.port, self.guarded, self.has_h264 = int(line[0]), int(line[1]), line[2] == "1"
        if self._needs_h264 and not self.has_h264:
            self.kill()
            pytest.skip(NO_H264)

    def kill(self) -> None:
        """As a camera dies that loses its power."""
        self._process.kill()
        self._process.wait(10)
        self._process.stdout.close()

    def url(self, path: str, scheme: str = "rtsp") -> str:
        return f"{scheme}://127.0.0.1:{self.port}/{path}"

    def __enter__(self) -> RealRtsp:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
