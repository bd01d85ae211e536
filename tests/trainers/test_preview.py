"""What the network is going to see, as a picture: drawn, and by the command."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.inputs import InputConfig
from models.targets import FrameTargets
from operators.errors import ConfigError
from pipelines.cli import main
from tests.trainers.small_runs import write_run
from trainers.preview import draw_frame, preview


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def targets(*masks: torch.Tensor) -> FrameTargets:
    stacked = torch.stack(masks) if masks else torch.zeros(0, 320, 352, dtype=torch.bool)
    count = len(masks)
    boxes = torch.tensor([[100.0, 60.0, 200.0, 160.0]] * count).reshape(-1, 4)
    return FrameTargets(boxes, torch.zeros(count, dtype=torch.int64), torch.arange(count), stacked)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_frame_is_shown_as_it_was_and_its_padding_hatched(order):
    """300 x 340 of one orange, padded to 320 x 352."""
    cfg = InputConfig(channel_order=order, mean=(10, 20, 30), std=(2, 4, 8))
    orange = torch.tensor([250.0, 130.0, 20.0])[:, None, None].expand(3, 300, 340)
    pixels = orange if order == "rgb" else orange.flip(0)
    image = torch.zeros(3, 320, 352)
    mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (cfg.mean, cfg.std))
    image[:, :300, :340] = (pixels - mean) / std
    shown = draw_frame(image, targets(), cfg, ("cat",))
    assert shown.shape == (320, 352, 3) and (shown[:300, :340] == [250, 130, 20]).all()
    assert set(shown[300:].ravel().tolist()) == {64, 96} == set(shown[:, 340:].ravel().tolist())


def test_masks_and_boxes_are_drawn_where_they_are():
    cfg = InputConfig(channel_order="rgb", mean=(1, 1, 1))
    grey, mask = torch.full((3, 320, 352), 99.0), torch.zeros(320, 352, dtype=torch.bool)
    mask[70:150, 110:190] = True
    shown = draw_frame(grey, targets(mask), cfg, ("cat",))
    plain = draw_frame(grey, targets(), cfg, ("cat",))
    changed = (shown != plain).any(2)
    assert changed[70:150, 110:190].all() and changed[60, 100:200].all() and changed[60:160, 100].all()
    assert not changed[165:].any() and not changed[:, 205:].any()


def test_small_frames_are_enlarged():
    cfg = InputConfig(channel_order="rgb", mean=(1, 1, 1))
    none = FrameTargets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64),
                        torch.zeros(0, 96, 160, dtype=torch.bool))  # fmt: skip
    assert draw_frame(torch.full((3, 96, 160), 99.0), none, cfg, ("cat",)).shape == (384, 640, 3)


def test_the_command_draws_and_does_nothing_else(config, tmp_path, capsys):
    out = tmp_path / "seen" / "samples.png"
    before = sorted(config.parent.rglob("*"))
    assert main(["train", str(config), "--preview", str(out), "--set", "data.pseudo={}", "--set",
                 "start_from=runs/not_there.safetensors"]) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].startswith("row 1: video ") and lines[-1] == str(out)
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.size == (2 * 480 + 6, 4 * 320 + 18), "64 x 96, five times"
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["samples.png"]
    assert sorted(config.parent.rglob("*")) == before


def test_the_same_settings_give_the_same_picture(config, tmp_path):
    digests = []
    for name, settings in (("a", []), ("b", []), ("c", ["seed=8"])):
        preview(config, settings, tmp_path / f"{name}.png", samples=2)
        digests.append(hashlib.sha256(np.asarray(Image.open(tmp_path / f"{name}.png")).tobytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_only_png_is_written(config, tmp_path):
    with pytest.raises(ConfigError, match="ending in .png"):
        preview(config, [], tmp_path / "samples.jpg")
    assert list(tmp_path.iterdir()) == []
