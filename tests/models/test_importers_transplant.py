"""Rows of classes copied one by one: to their places, the others as they were; and files that have no such rows."""

from __future__ import annotations

import pytest
import torch

from models.importers import Allowance, Renamed, fit, transplanted

OWN = {"head.weight": -torch.ones(4, 2), "head.bias": torch.full((4,), -7.0), "trunk.weight": torch.zeros(3)}
ROWS = {2: 0, 0: 3}


def file(**changes: torch.Tensor | None) -> Renamed:
    """Of three classes, row k full of k + 1."""
    tensors = {"head.weight": torch.tensor([[1.0, 1], [2, 2], [3, 3]]), "head.bias": torch.tensor([1.0, 2, 3]),
               "trunk.weight": torch.ones(3)} | changes                                                   # fmt: skip
    state = {name: value for name, value in tensors.items() if value is not None}
    return Renamed(state, {name: (f"their.{name}",) for name in state}, {})


@pytest.mark.parametrize("rows, weight, bias", [
    pytest.param({}, [[-1, -1]] * 4, [-7, -7, -7, -7], id="no class in common"),
    pytest.param(ROWS, [[3, 3], [-1, -1], [-1, -1], [1, 1]], [3, -7, -7, 1], id="two, crossed"),
])
def test_rows_at_their_places(rows, weight, bias):
    before = {name: value.clone() for name, value in OWN.items()}
    renamed = transplanted(file(), OWN, ("head.",), 3, rows)
    assert renamed.state["head.weight"].tolist() == weight and renamed.state["head.bias"].tolist() == bias
    assert torch.equal(renamed.state["trunk.weight"], torch.ones(3))
    assert all(torch.equal(OWN[name], value) for name, value in before.items()), "nothing is changed in place"


def test_the_account_names_both_sides():
    state, report = fit(transplanted(file(), OWN, ("head.",), 3, ROWS), OWN, Allowance(resizable=("head.",)))
    assert report.complete and not report.fresh and not report.unused
    assert report.used == {"trunk.weight": ("their.trunk.weight",)}
    names = ("head.weight", "head.bias")
    assert report.partial == {name: f"2 of 4 rows from the 3 of their.{name}" for name in names}
    assert state["head.bias"].tolist() == [3, -7, -7, 1]


def test_numbers_of_another_width_and_damage():
    """Halves become the network's own type; a row that is not finite spoils the tensor only where it is copied."""
    half = file(**{"head.bias": torch.tensor([1.0, torch.nan, 3]).half()})
    state, report = fit(transplanted(half, OWN, ("head.",), 3, ROWS), OWN, Allowance())
    assert report.complete and state["head.bias"].dtype == torch.float32
    spoilt = file(**{"head.bias": torch.tensor([torch.inf, 2.0, 3])})
    _, report = fit(transplanted(spoilt, OWN, ("head.",), 3, ROWS), OWN, Allowance())
    assert report.faulty == {"head.bias": "has values that are not finite"} and not report.complete


@pytest.mark.parametrize("change, message", [
    pytest.param({"head.bias": None}, "has no head.bias, whose rows of classes were asked for", id="missing"),
    pytest.param({"head.bias": torch.zeros(4)}, r"their.head.bias is \(4,\), expected \(3,\)", id="other classes"),
    pytest.param({"head.weight": torch.zeros(3, 5)}, r"\(3, 5\), expected \(3, 2\)", id="another width"),
    pytest.param({"head.weight": torch.tensor(0.0)}, r"is \(\), expected \(3, 2\)", id="a number"),
    pytest.param({"head.bias": torch.zeros(3, dtype=torch.long)}, "is int64, expected floating", id="whole numbers"),
])
def test_files_that_have_no_such_rows(change, message):
    with pytest.raises(ValueError, match=message):
        transplanted(file(**change), OWN, ("head.",), 3, ROWS)
