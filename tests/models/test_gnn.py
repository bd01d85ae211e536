"""The object graph: against a loop over every edge, what each node may hear, tables of unequal rows, and the loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.gnn import ObjectGraph, edge_loss, of_pairs, side_by_side
from tests.models import tltm_oracle as oracle
from tests.models.small import shake


def lively(rounds: int = 1, dim: int = 6, hidden: int = 5) -> ObjectGraph:
    graph = ObjectGraph(dim, hidden, rounds)
    shake(graph, 0)
    return graph


def test_counts():
    with torch.device("meta"):
        graph = ObjectGraph(512, 128)
    parts = [sum(p.numel() for p in part.parameters()) for part in (graph.edge_mlp, graph.node_mlp, graph.scorer)]
    assert parts == [164_480, 164_864, 131_329]


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("n, m", [
    pytest.param(0, 0, id="nobody"), pytest.param(0, 3, id="nobody known"), pytest.param(3, 0, id="nobody here"),
    pytest.param(1, 1, id="one edge"), pytest.param(4, 7, id="all with all"),
])  # fmt: skip
def test_against_the_loop_over_edges(n, m, rounds):
    graph, known, current = lively(rounds), torch.randn(n, 6), torch.randn(m, 6)
    out = graph(known, current)
    expected = oracle.graph(graph, known.double().numpy(), current.double().numpy(), rounds)
    assert out.shape == (n, m)
    np.testing.assert_allclose(out.detach().numpy(), expected, atol=2e-5)


def test_a_layer_of_pairs_is_the_layer_of_joined_rows():
    layer, a, b = torch.nn.Linear(7, 4), torch.randn(3, 5), torch.randn(2, 2)
    joined = torch.cat([a[:, None].expand(3, 2, 5), b[None].expand(3, 2, 2)], dim=2)
    assert torch.allclose(of_pairs(layer, a, b), layer(joined), atol=1e-6)


def test_order_of_the_objects_is_no_matter():
    graph, known, current = lively(), torch.randn(4, 6), torch.randn(5, 6)
    columns, rows = torch.randperm(5), torch.randperm(4)
    out = graph(known, current)
    assert torch.allclose(graph(known, current[columns]), out[:, columns], atol=1e-5)
    assert torch.allclose(graph(known[rows], current), out[rows], atol=1e-5)


def test_messages_are_summed_not_averaged():
    """Twice the same objects say everything twice; and a known one hears of what is here, not of the others known."""
    graph, known, current = lively(), torch.randn(2, 6), torch.randn(3, 6)
    once = graph(known, current)
    assert not torch.allclose(graph(known, current.repeat(2, 1))[:, :3], once, atol=1e-3)
    assert torch.allclose(graph(known[:1], current), once[:1], atol=1e-5)


def test_pairs_of_frames_in_one_table_do_not_meet():
    graph = lively(rounds=2)
    counts = [(2, 3), (0, 2), (4, 0), (1, 4)]
    known, current = ([torch.randn(pair[side], 6) for pair in counts] for side in (0, 1))
    image = [torch.arange(4).repeat_interleave(torch.tensor([len(x) for x in part])) for part in (known, current)]
    nodes, there = side_by_side(torch.cat(known), image[0], 4)
    others, present = side_by_side(torch.cat(current), image[1], 4)
    assert nodes.shape == (4, 4, 6) and others.shape == (4, 4, 6)
    together = graph(nodes, others, present)
    for b, (n, m) in enumerate(counts):
        assert there[b].tolist() == [k < n for k in range(4)] and present[b].tolist() == [k < m for k in range(4)]
        assert torch.allclose(together[b, :n, :m], graph(known[b], current[b]), atol=1e-5)


@pytest.mark.parametrize("image, expected", [
    pytest.param([], [[], []], id="nothing"),
    pytest.param([1, 1], [[0, 0], [10, 20]], id="an image without rows"),
    pytest.param([0, 0, 1], [[10, 20], [30, 0]], id="filled up with zeros"),
])
def test_side_by_side(image, expected):
    rows = torch.tensor([10, 20, 30])[: len(image)]
    table, there = side_by_side(rows, torch.tensor(image, dtype=torch.int64), 2)
    assert table.tolist() == expected and there.tolist() == [[v > 0 for v in row] for row in expected]


def test_edge_loss_by_hand():
    logits = torch.tensor([[0.0, 2.0], [-1.0, 9.0]])
    same, real = torch.tensor([[True, False], [False, False]]), torch.tensor([[True, True], [True, False]])
    expected = (math.log(2) + math.log(1 + math.exp(2)) + math.log(1 + math.exp(-1))) / 3
    assert edge_loss(logits, same, real).item() == pytest.approx(expected, rel=1e-6)
    assert edge_loss(logits[0, :1], same[0, :1], real[0, :1]).item() == pytest.approx(math.log(2)), "of a single edge"


def test_no_edge_costs_nothing_and_stays_in_the_graph():
    logits = torch.zeros(2, 0, requires_grad=True)
    loss = edge_loss(logits, torch.zeros(2, 0, dtype=torch.bool), torch.zeros(2, 0, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0


def test_gradient_by_differences():
    graph = lively(rounds=2, dim=3, hidden=4).double()
    nodes = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (2, 3)]
    assert torch.autograd.gradcheck(lambda a, b: graph(a, b), nodes)
    same = torch.eye(2, 3, dtype=torch.bool)
    edge_loss(graph(*nodes), same, torch.ones_like(same)).backward()
    assert all(p.grad is not None and p.grad.any() for p in graph.parameters())
