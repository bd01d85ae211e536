"""How many CPUs there are, and how many threads a replica gets: every executor asks the same function."""

from __future__ import annotations

import pytest

from pipelines.local import num_threads, usable_cpus


@pytest.mark.parametrize(
    ("text", "most"),
    [
        pytest.param("max 100000\n", None, id="no-limit"),
        pytest.param("100000 100000\n", 1, id="one-cpu"),
        pytest.param("50000 100000\n", 1, id="half-a-cpu-is-one-thread"),
        pytest.param("900000000 100000\n", None, id="more-than-there-are"),
        pytest.param("", None, id="empty"),
    ],
)
def test_a_container_has_the_cpus_it_pays_for(text, most, tmp_path):
    there = usable_cpus(tmp_path / "absent")
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cpus(tmp_path / "cpu.max") == (most or there)


@pytest.mark.parametrize(
    ("num_cpus", "expected"),
    [(0.25, 1), (1, 1), (1.9, 1), (1e6, usable_cpus())],
    ids=["a-share", "one", "below-two", "more-than-there-are"],
)
def test_threads_of_a_replica(num_cpus, expected):
    assert num_threads(num_cpus) == expected
