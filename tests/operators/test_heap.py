from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CODE = """
import mmap, resource, sys
import torch
from operators.heap import keep_large_blocks
if sys.argv[1] == "kept":
    assert keep_large_blocks() and keep_large_blocks()
torch.empty(64 * 2**20, dtype=torch.uint8).zero_()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.empty(64 * 2**20, dtype=torch.uint8).zero_()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, 64 * 2**20 // mmap.PAGESIZE)
"""


def faults(how: str) -> float:
    """Pages that the system had to clear for a block of 64 MB that was there before, as a share of its pages."""
    done = subprocess.run([sys.executable, "-c", CODE, how], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    seen, pages = map(int, done.stdout.split())
    return seen / pages


def test_a_block_that_was_freed_is_used_again():
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("only glibc can be told to keep blocks")
    assert faults("kept") < 0.01 < faults("given back")
