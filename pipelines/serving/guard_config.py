"""Settings of the guard: who may ask, and how much of what. `guard:` in configs/deployments/live.yaml.

Without a token file and without the variable nobody needs a token, and only this machine may ask. No token stands here,
in a YAML file or on a command line, where every user of the machine could read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Who may ask, and how much. Limits `per token` are shared by all clients where no token is needed."""

    token_file: Path | None = None
    """A line 'NAME TOKEN' for each client (pipelines/serving/tokens.py says how to make one); null: none."""
    token_env: str = "MASKSTREAM_TOKENS"
    """Environment variable that holds tokens too, with commas between them; empty: none is looked at."""
    hosts: tuple[str, ...] = ()
    """Names by which the server is called, as in its address: what a Host header may say. None with tokens: any. None
    without tokens: those of this machine, so that no page of elsewhere can reach it under a name of its own."""
    origins: tuple[str, ...] = ()
    """Origins of other pages that may ask, as in https://control.example.com: CORS. None: only the server's own."""
    https: bool = False
    """A proxy in front speaks HTTPS: the cookie is sent over it alone, and browsers are told to stay with it."""
    open_paths: tuple[str, ...] = ("/healthz", "/readyz")
    """Need no token, as the page's own files: probes of load balancers and of Kubernetes carry none."""
    max_body_bytes: int = 1 << 20
    """Of a request. More: larger requests pass, more memory for one that means harm."""
    upload_paths: tuple[str, ...] = ("/videos",)
    """Where a file is sent: there `max_upload_bytes` holds."""
    max_upload_bytes: int = 256 << 20
    """Of a file that is sent."""
    body_timeout_s: float = 30.0
    """Longest silence within a body. Longer: slower senders pass, a client that says nothing keeps its place longer."""
    max_header_bytes: int = 16 << 10
    """All headers of a request, names and values."""
    max_message_bytes: int = 4 << 20
    """Of a WebSocket message: one frame as an image, or a chunk of H.264. Ray Serve itself ends at 16 MiB."""
    max_messages_per_s: float = 1000.0
    """WebSocket messages per token, in the mean. 16 cameras at 30 frames/s send 480."""
    max_requests_per_s: float = 300.0
    """Requests per token, in the mean. An open page asks for 30 pictures a second."""
    max_open: int = 256
    """Requests and WebSockets per token that have not ended: each result, overlay and pushed camera is one."""
    max_streams: int = 64
    """Streams per token that are registered and not removed."""
    cookie_hours: float = 168.0
    """How long a browser need not be told the token again."""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if not 0 < value <= most:
                raise ValueError(f"{name} is {value}, expected more than 0, at most {most:.0f}.")
        for origin in self.origins:
            scheme, separator, rest = origin.partition("://")
            if scheme not in ("http", "https") or not separator or not rest or "/" in rest or "*" in rest:
                raise ValueError(f"origins holds '{origin}', expected a scheme and a host, as in https://example.com.")
        for host in self.hosts:
            if not host or any(letter in host for letter in "/*@ ") or "://" in host:
                raise ValueError(f"hosts holds '{host}', expected a name or an address, as in cameras.example.com.")
        for name in ("open_paths", "upload_paths"):
            for path in getattr(self, name):
                if not path.startswith("/"):
                    raise ValueError(f"{name} holds '{path}', expected a path, as in /healthz.")


_MOST = {
    "max_body_bytes": 1 << 30,
    "max_upload_bytes": 1 << 36,
    "body_timeout_s": 3600,
    "max_header_bytes": 1 << 20,
    "max_message_bytes": 16 << 20,
    "max_messages_per_s": 1e6,
    "max_requests_per_s": 1e6,
    "max_open": 100_000,
    "max_streams": 10_000,
    "cookie_hours": 24 * 366,
}
"""The largest value of each limit."""
