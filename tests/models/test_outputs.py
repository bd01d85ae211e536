"""The record of one frame's detections: its rows stay together, and it says what it holds without printing it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from models.outputs import Detections

TENSORS = [field.name for field in fields(Detections) if field.name not in ("mask_frame", "exclusive")]


def detections(count: int, tracked: bool = True) -> Detections:
    row = torch.arange(count)
    return Detections(
        boxes=row[:, None] + torch.tensor([0.0, 1, 2, 3]),
        scores=1 - row / 10,
        labels=row % 3,
        embeddings=row[:, None] * torch.ones(5),
        mask_logits=row[:, None, None] * torch.ones(2, 3),
        track_ids=row + 100 if tracked else None,
        class_scores=row[:, None] / torch.arange(1.0, 4),
    )


@pytest.mark.parametrize("index, rows", [
    pytest.param(slice(0, 0), [], id="none"),
    pytest.param(torch.zeros(4, dtype=torch.bool), [], id="none, by flags"),
    pytest.param(slice(1, 3), [1, 2], id="slice"),
    pytest.param(torch.tensor([3, 0]), [3, 0], id="picked, in the order asked for"),
    pytest.param(torch.tensor([True, False, False, True]), [0, 3], id="flags"),
])
def test_indexing_indexes_every_field(index, rows):
    whole, part = detections(4), detections(4)[index]
    assert len(part) == len(rows)
    for name in TENSORS:
        assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name


def test_what_masks_lie_in_stays_with_them():
    whole = replace(detections(3), mask_frame="box", exclusive=True)
    parts = whole[:1], whole.to("cpu"), whole.with_track_ids(torch.arange(3))
    assert [(part.mask_frame, part.exclusive) for part in parts] == [("box", True)] * 3


def test_ids_that_are_not_there_stay_so():
    assert detections(3, tracked=False)[:2].track_ids is None


def test_with_track_ids():
    given = detections(2, tracked=False).with_track_ids(torch.tensor([8, 9]))
    assert given.track_ids.tolist() == [8, 9] and torch.equal(given.boxes, detections(2).boxes)


@pytest.mark.parametrize("name", ["scores", "labels", "embeddings", "mask_logits", "track_ids", "class_scores"])
@pytest.mark.parametrize("rows", [0, 2, 4], ids=["none", "too few", "too many"])
def test_fields_of_another_length_are_refused(name, rows):
    values = {f.name: getattr(detections(3), f.name) for f in fields(Detections)}
    values[name] = getattr(detections(rows), name)
    with pytest.raises(ValueError, match=f"{name} has {rows} rows, boxes have 3"):
        Detections(**values)


def test_ids_of_another_length_are_refused_later_too():
    with pytest.raises(ValueError, match="track_ids has 1 rows, boxes have 2"):
        detections(2).with_track_ids(torch.tensor([1]))


@pytest.mark.parametrize("count, tracked, ids", [(0, True, "(0,)"), (3, False, "None")])
def test_printing_shows_shapes_not_pixels(count, tracked, ids):
    assert repr(detections(count, tracked)) == (
        f"Detections(boxes=({count}, 4), scores=({count},), labels=({count},), embeddings=({count}, 5), "
        f"mask_logits=({count}, 2, 3), track_ids={ids}, mask_frame=image, class_scores=({count}, 3), exclusive=False)"
    )


def test_moving_keeps_everything():
    there = detections(2, tracked=False).to("meta")
    assert there.track_ids is None and len(there) == 2
    assert all(getattr(there, f).is_meta for f in TENSORS if f != "track_ids")


def test_the_record_does_not_change():
    with pytest.raises(FrozenInstanceError):
        detections(1).scores = torch.zeros(1)
