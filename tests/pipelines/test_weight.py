"""What a record weighs, and that it carries no more than itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from operators.records import Features, Frame, FrameInfo, FrameTracks, Image
from pipelines.weight import compact, num_bytes

INFO = FrameInfo("a", 0, 0.0, 2, 4)
LINE = FrameInfo("a", 0, 0.0, 1, 4)
NONE = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 4), np.float32)


@pytest.mark.parametrize("rows", [8, 1], ids=["view", "whole"])
def test_what_leaves_a_group_carries_no_more_than_itself(rows):
    pixels = torch.arange(rows * 4.0).reshape(rows, 4)
    record = Image(LINE, pixels[0], (1, 4))
    sent = compact(record)
    assert torch.equal(sent.pixels, pixels[0])
    assert sent.pixels.untyped_storage().nbytes() == 16
    assert (sent.info, sent.size) == (record.info, record.size)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        pytest.param(FrameTracks(INFO, *NONE, ()), 1, id="no-instance"),  # the stream's name
        pytest.param(Frame(INFO, np.zeros((2, 4, 3), np.uint8)), 1 + 24, id="frame"),
        pytest.param(Image(INFO, torch.zeros(8, 3)[0], (1, 1)), 1 + 12, id="a-view-is-what-it-shows"),
        pytest.param(Features(INFO, (torch.zeros(2, 3), torch.zeros(1)), (1, 1), (1, 1)), 1 + 24 + 4, id="levels"),
        pytest.param({"size": [2, 4], "counts": "abcd"}, 4, id="mask"),
    ],
)
def test_a_record_weighs_its_arrays_and_texts(record, expected):
    assert num_bytes(record) == expected
