"""What all tests share: where the media lie, and when a test is skipped, with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")     # before torch is loaded; pipelines/cli.py says why

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
MEDIA = ROOT.parent / "shared" / "media"


@pytest.fixture(scope="session")
def media() -> Path:
    """The folder of real videos and annotated frames that lies beside the checkout; not part of the repository."""
    if not MEDIA.is_dir():
        pytest.skip(f"the real videos are not beside this checkout ({MEDIA.name}/ is absent)")
    return MEDIA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; torch sees none"))
