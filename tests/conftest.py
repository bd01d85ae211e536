"""What all tests share: where the media lie, when a test is skipped, one local Ray cluster for all that need no other,
and a limit on how long a test may wait for it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")     # before torch is loaded; pipelines/cli.py says why

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
MEDIA = ROOT.parent / "shared" / "media"

TIMEOUT_S = 300

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")    # Hypothesis allows an example 0.2 s: a busy machine now and then lets it wait


@pytest.fixture(scope="session")
def media() -> Path:
    """The folder of real videos and annotated frames that lies beside the checkout; not part of the repository."""
    if not MEDIA.is_dir():
        pytest.skip(f"the real videos are not beside this checkout ({MEDIA.name}/ is absent)")
    return MEDIA


def pytest_configure() -> None:
    """A shell that starts tests in the background has them ignore Ctrl-C, and with them every command they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files with slow tests come first: the last of them would leave the other processes of tests without work. Those of
    # the cluster come last, since one that only waits takes four hundredths of a core in each of these processes.
    slow = {item.path for item in items if "slow" in item.keywords}
    on_cluster = {item.path for item in items if "cluster" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (item.path in on_cluster, item.path not in slow))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; torch sees none"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Four logical CPUs, whatever the machine has: what is tested is who gets what, not how fast."""
    import ray

    from pipelines.cluster import init_ray

    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")    # Serve's proxies, on a busy machine
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "pipelines.serving.slow:middlewares")
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    system = {"worker_niceness": 0, "metrics_report_interval_ms": 1000}  # ten seconds are Ray's default
    # Of an actor that dies Ray knows why a moment later, but asks for it no longer than a second.
    system["timeout_ms_task_wait_for_death_info"] = 10_000
    init_ray(address="local", num_cpus=4, num_gpus=0, _system_config=system, **quiet)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """s3://bucket on a server of this machine that speaks S3 over HTTP, as the environment says from now on."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs, the driver of s3://, is not installed")
    reason = "moto[server], an S3 server for tests, is not installed"
    server = pytest.importorskip("moto.server", reason=reason).ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch with one thread, as workers of one CPU have: with more, last bits may differ, and on a busy machine they
    wait for each other longer than small networks compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_time() -> Iterator[None]:
    """A test that waits for another process fails after five minutes; it never hangs."""

    def too_late(number: int, frame: object) -> None:
        raise TimeoutError(f"the test did not end within {TIMEOUT_S} s")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(TIMEOUT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
