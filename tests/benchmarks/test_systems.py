from __future__ import annotations

import pytest

from benchmarks.graph import Reading
from benchmarks.systems import SYSTEMS, Row, parse, table
from operators.detectors import DETECTORS
from pipelines.networks import read_network


def test_both_networks_of_a_system_are_of_one_kind():
    for published, small in SYSTEMS.values():
        one, other = read_network(published), read_network(small)
        assert one.name == other.name and one.name in DETECTORS


def test_a_row_has_the_median_and_the_memory_of_all_stages():
    readings = [Reading(rate, [], 0.0, {"windows": 1_500_000, "track_tubes": 500}) for rate in (1.0, 4.0, 2.0)]
    (row,) = table({"CiCo": Row(53.4567, readings)}).splitlines()[2:]
    assert row == "| CiCo | `cico_condinst_r50` | 53.5 | 2.00 | 1.500 | `mini_cico` | not scored: no weights | | |"


@pytest.mark.parametrize("words, message", [
    (["--systems", "CrossVIS,VisTR"], "unknown are VisTR; expected some of CrossVIS"),
    (["--weights", "CiCo=nowhere.safetensors"], "'nowhere.safetensors' does not exist"),
    (["--weights", "DETR=x"], "unknown are DETR"),
    (["--frames", "4"], "8 to 10000 frames"),
    (["--size", "360"], "height x width"),
])
def test_wrong_words(words, message, capsys):
    with pytest.raises(SystemExit):
        parse(words)
    assert message in capsys.readouterr().err
