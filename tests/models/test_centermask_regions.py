"""Regions by their share of the image: levels, features and true masks, against loops; boxes of any size.

Source of what is expected: TLTM specification 2.6, 3.4 and acceptance test 3.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import models.area_regions
from models.area_regions import aligned_masks, area_features, area_levels
from models.region_losses import Regions
from tests.models import tltm_oracle as oracle

AREA = 100.0 * 64.0


@pytest.mark.parametrize("share, level", [
    pytest.param(0.0, 0, id="no area"),
    pytest.param(0.01, 0, id="small"),
    pytest.param(0.25, 0, id="a quarter is still P3"),
    pytest.param(0.26, 1, id="above a quarter"),
    pytest.param(0.5, 1, id="half is still P4"),
    pytest.param(0.51, 2, id="above half"),
    pytest.param(1.2, 2, id="larger than the image"),
])
def test_level_of_a_box(share, level):
    boxes = torch.tensor([[7.0, 9.0, 7 + 100 * share, 9 + 64.0]])
    assert area_levels(boxes, torch.tensor([AREA])).tolist() == [level]
    assert oracle.level(boxes[0].double().tolist(), AREA) == level + 3


def levels() -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, 3, 64 // stride, 96 // stride) for stride in (8, 16, 32))


BOXES = torch.tensor([
    [0, 0, 20, 20], [-9, 3, 70, 75], [5, 5, 60, 40], [40, 20, 40, 20], [90, 60, 130, 90], [-60, -40, 150, 110],
    [3, 30, 95, 33], [2.5, 1.25, 60.75, 40.5],
])  # fmt: skip
IMAGE = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])
AREAS = torch.tensor([64.0 * 96.0, 60.0 * 70.0])


def test_features_against_the_loop():
    """Beyond the rim, over the whole image, no area: as it comes, not clipped."""
    maps = levels()
    found = area_features(maps, BOXES, IMAGE, AREAS, size=4)
    used = set()
    for r, (box, b) in enumerate(zip(BOXES.double().tolist(), IMAGE.tolist(), strict=True)):
        k = oracle.level(box, AREAS[b].item())
        used.add(k)
        expected = oracle.roi_align(maps[k - 3][b].double().numpy(), box, 4, 1 / 2**k)
        np.testing.assert_allclose(found[r].numpy(), expected, atol=1e-5, err_msg=str(box))
    assert used == {3, 4, 5}


def test_no_box():
    assert area_features(levels(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), AREAS).shape == (0, 3, 14, 14)


def test_a_region_does_not_depend_on_its_company():
    maps, together = levels(), None
    together = area_features(maps, BOXES, IMAGE, AREAS)
    for r in range(len(BOXES)):
        alone = area_features(tuple(m[IMAGE[r]][None] for m in maps), BOXES[r : r + 1], torch.tensor([0]),
                              AREAS[IMAGE[r]][None])                                                      # fmt: skip
        assert torch.allclose(together[r], alone[0], atol=1e-6)


def test_gradient_by_differences():
    maps = tuple(torch.randn(1, 1, 32 // s, 32 // s, dtype=torch.float64, requires_grad=True) for s in (8, 16, 32))
    boxes = torch.tensor([[1, 2, 12, 9], [3, 1, 22, 22], [0, 0, 30, 31.0]])
    image, areas = torch.zeros(3, dtype=torch.int64), torch.tensor([1024.0])
    assert area_levels(boxes, areas).tolist() == [0, 1, 2]
    assert torch.autograd.gradcheck(lambda *m: area_features(m, boxes, image, areas, size=2), maps)


# ------------------------------------------------------------------------------------------ true masks


def halves() -> torch.Tensor:
    """The left half of an 8 x 8 square in a frame of 16 x 16."""
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, 4:12, 4:8] = True
    return mask


def region(*boxes: tuple[float, ...], image: list[int] | None = None, instance: list[int] | None = None) -> Regions:
    return Regions(torch.tensor(boxes, dtype=torch.float32), torch.tensor(image or [0] * len(boxes)),
                   torch.tensor(instance or [0] * len(boxes)))                                            # fmt: skip


@pytest.mark.parametrize("box, rows", [
    pytest.param((4, 4, 12, 12), ["1100"] * 4, id="its own square"),
    pytest.param((0, 0, 16, 16), ["0000", "0100", "0100", "0000"], id="the whole frame"),
    pytest.param((4, 4, 8, 8), ["1111"] * 4, id="inside"),
    pytest.param((20, 20, 30, 30), ["0000"] * 4, id="outside"),
    pytest.param((-4, 4, 12, 12), ["0010"] * 4, id="over the rim"),
])
def test_masks_by_hand(box, rows):
    """Four cells a side; at (0, 0, 16, 16) a cell is 4 pixels wide, so columns 4..7 are exactly the second one."""
    found = aligned_masks([halves()], region(box), 4)
    assert found[0].tolist() == [[float(c) for c in row] for row in rows]


@pytest.mark.parametrize("some", [1 << 24, 1], ids=["at once", "one by one"])
def test_masks_against_the_loop(monkeypatch, some):
    monkeypatch.setattr(models.area_regions, "MOST_CELLS", some)
    masks = [torch.rand(2, 40, 48) < 0.6, torch.zeros(0, 40, 48, dtype=torch.bool), torch.rand(1, 40, 48) < 0.4]
    boxes = [(3.3, 2.1, 30.7, 38.2), (-5, -7, 60, 55), (10, 10, 13, 12), (0, 0, 48, 40), (20, 5, 20, 30)]
    regions = region(*boxes, image=[0, 0, 2, 2, 0], instance=[1, 0, 0, 0, 1])
    found = aligned_masks(masks, regions, 28)
    for r, box in enumerate(regions.boxes.double().tolist()):
        mask = masks[regions.image[r]][regions.instance[r]].numpy()
        share = oracle.roi_align(mask[None].astype(float), box, 28, 1.0)[0]
        clear = abs(share - 0.5) > 1e-5                             # else the last bit of a sum decides
        assert (found[r].numpy() == oracle.mask_target(mask, box))[clear].all() and clear.mean() > 0.9
        assert 0 < found[r].mean() < 1 or r == 4, "a box without width"


def test_no_region_has_no_mask():
    none = Regions(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert aligned_masks([halves()], none, 28).shape == (0, 28, 28)
    assert aligned_masks([halves()[:0]], none, 28).shape == (0, 28, 28)
