"""Rows of classes that a file and a network share, where the two have other classes: shapes alone would give none.

In:     tensors by our names (`Renamed`), the network's own as freshly initialised, pairs of rows (theirs, ours)
Out:    `Renamed`, whose tensors of classes are the network's own with the file's rows in the places of theirs
State:  none; nothing is changed in place and nothing drawn: a row without a source is as the network was initialised
Source: TLTM specification 6: of CenterMask2's 80 classes of COCO, 19 into YouTube-VIS 2019; the others begin anew
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from models.importers.renaming import Renamed


def transplanted(
    renamed: Renamed, own: Mapping[str, Tensor], parts: tuple[str, ...], num_theirs: int, rows: Mapping[int, int]
) -> Renamed:
    """`renamed`, in which every tensor of `own` whose name begins as one of `parts` has the file's row k at rows[k].

    Raises ValueError where the file lacks such a tensor, or its own is of other than `num_theirs` classes, of another
    shape behind the first axis, or of another type of number.
    """
    names = [name for name in own if name.startswith(parts)]
    state = dict(renamed.state)
    for name in names:
        if name not in state:
            raise ValueError(f"it has no {name}, whose rows of classes were asked for")
        state[name] = _mixed(renamed.sources[name][0], state[name], own[name], num_theirs, rows)
    told = {name: f"{len(rows)} of {len(own[name])} rows from the {num_theirs} of {renamed.sources[name][0]}"
            for name in names}                                                                            # fmt: skip
    return replace(renamed, state=state, partial=renamed.partial | told)


def _mixed(source: str, theirs: Tensor, mine: Tensor, num_theirs: int, rows: Mapping[int, int]) -> Tensor:
    wanted = (num_theirs, *mine.shape[1:])
    if theirs.shape != wanted:
        raise ValueError(f"{source} is {tuple(theirs.shape)}, expected {wanted}, a row for each class")
    if not theirs.is_floating_point():
        raise ValueError(f"{source} is {theirs.dtype}, expected floating point numbers".replace("torch.", ""))
    mixed, places = mine.clone(), torch.tensor(list(rows.values()), dtype=torch.long)
    mixed[places] = theirs[list(rows)].to(mine.dtype)
    return mixed
