"""Frames of a few tracks with masks drawn by hand, for the tests of what is written of them."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco

from operators.formats import Categories
from operators.records import FrameInfo, FrameTracks

CATEGORIES = Categories(("dog", "cat"), (4, 9))


def rle(*rows: str) -> dict:
    """A mask drawn by hand, '#' where it is, as a record holds it."""
    drawn = np.array([[c == "#" for c in row] for row in rows], np.uint8)
    encoded = coco.encode(np.asfortranarray(drawn))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def tracks_of(index: int, *found: tuple, height: int = 2, width: int = 3) -> FrameTracks:
    """A frame out of (track id, label, score, mask) tuples."""
    ids, labels, scores, masks = zip(*found, strict=True) if found else ((), (), (), ())
    return FrameTracks(
        info=FrameInfo("a", index, index / 8, height, width),
        track_ids=np.array(ids, np.int64),
        labels=np.array(labels, np.int64),
        scores=np.array(scores, np.float32),
        boxes=np.array([[0, 0, 1, 1]] * len(found), np.float32).reshape(-1, 4),
        masks=tuple(masks),
    )


FULL, EMPTY, LEFT = rle("###", "###"), rle("...", "..."), rle("#..", "#..")
