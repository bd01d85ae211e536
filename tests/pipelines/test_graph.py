"""The graph's description: what is accepted, and the error for everything else."""

from __future__ import annotations

import pytest

from operators.errors import ConfigError, GraphError
from pipelines.graph import load_graph, parse_graph
from pipelines.placement import Batching, Recovery
from tests.pipelines.small_stages import KINDS, STAGES, TotalConfig, graph

NAMES = ("unpack", "paint", "window", "total")
EVERY, FIRST, REST = {"stages": NAMES}, {"stages": NAMES[:1]}, {"stages": NAMES[1:]}


def test_without_placement_all_stages_share_a_group():
    read = graph()
    assert [stage.name for stage in read.stages] == list(NAMES)
    assert [group.stages for group in read.placement] == [NAMES]
    assert read.batching == Batching()
    assert [stage.keyed_by for stage in read.stages] == ["stream", None, "stream", "stream"]


def test_groups_know_their_stages_and_whether_they_remember():
    read = graph([{"stages": ["unpack"]}, {"stages": ["paint"], "replicas": 2}, {"stages": ["window", "total"]}])
    names = [[stage.name for stage in read.group(placement)] for placement in read.placement]
    assert names == [["unpack"], ["paint"], ["window", "total"]]
    assert [read.keyed(p) for p in read.placement] == [True, False, True]


def _with(name: str, **changes) -> dict:
    """The stages, one of them changed; a change to None takes the key out."""
    entry = {key: value for key, value in (STAGES[name] | changes).items() if value is not None}
    return STAGES | {name: entry}


def _only(*names: str) -> dict:
    return {name: STAGES[name] for name in names}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        pytest.param({}, "stages: empty; expected at least a stage that decodes and one that gives tracks.", id="none"),
        pytest.param(
            _with("paint", network="pant"),
            "paint.network: no such stage 'pant'. Did you mean paint?",
            id="misspelt-kind",
        ),
        pytest.param(
            _with("paint", network=None, operator="paint"),
            "paint.operator: no such stage 'paint'. Known: total, unpack, window.",
            id="operator-for-network",
        ),
        pytest.param(
            _with("paint", network=None),
            "paint: expected 'operator: ...' or 'network: ...', got neither.",
            id="no-kind",
        ),
        pytest.param(
            _with("paint", operator="total"),
            "paint: expected 'operator: ...' or 'network: ...', got both.",
            id="two-kinds",
        ),
        pytest.param(
            _with("total", keyed_by=None),
            "total: 'total' remembers its streams, so it must say 'keyed_by: stream'.",
            id="memory-without-key",
        ),
        pytest.param(
            _with("total", keyed_by="class"),
            "total: 'total' remembers its streams, so it must say 'keyed_by: stream'.",
            id="wrong-key",
        ),
        pytest.param(
            _with("paint", keyed_by="stream"),
            "paint.keyed_by: 'paint' remembers nothing; remove keyed_by.",
            id="needless-key",
        ),
        pytest.param(
            _only("paint", "total"),
            "paint: the first stage must decode a source; this one takes Frame.",
            id="nothing-decodes",
        ),
        pytest.param(
            _only("unpack", "window"),
            "window: the last stage must give FrameTracks, not Frame.",
            id="no-tracks",
        ),
        pytest.param(
            _only("unpack", "total", "paint"),
            "paint: takes Frame, but 'total' before it gives FrameTracks. "
            "Change their order, or put the missing stage between them.",
            id="wrong-order",
        ),
        pytest.param(
            {"network": STAGES["unpack"]},
            "stages.network: 'network' has a meaning of its own; give the stage another name.",
            id="reserved-name",
        ),
    ],
)
def test_stages_that_do_not_fit(stages, message):
    with pytest.raises(GraphError) as raised:
        parse_graph({"stages": stages}, KINDS, "g.yaml")
    assert str(raised.value) == f"g.yaml, {message}"


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        pytest.param([{"stages": ["unpack", "totl"]}], "[0]: no stage 'totl'. Did you mean total?", id="misspelt"),
        pytest.param(
            [{"stages": ["unpack", "paint"]}, {"stages": ["paint", "window", "total"]}],
            "[1]: 'paint' is placed twice; a stage belongs to one group.",
            id="twice",
        ),
        pytest.param(
            [{"stages": ["unpack", "paint", "total"]}],
            ": 'window' is in no group. Add it to one, or leave placement out.",
            id="missing",
        ),
        pytest.param(
            [{"stages": ["unpack", "window"]}, {"stages": ["paint", "total"]}],
            ": the groups hold ['unpack', 'window', 'paint', 'total'], expected the order of stages",
            id="no-neighbours",
        ),
        pytest.param([{"stages": []}], "[0]: stages is empty; name at least one.", id="empty-group"),
        pytest.param([EVERY | {"replicas": 0}], "[0]: replicas is 0, expected 1 to 1024.", id="no-replica"),
        pytest.param([EVERY | {"num_cpus": 0}], "[0]: num_cpus is 0.0, expected more than 0", id="no-cpu"),
        pytest.param([EVERY | {"num_gpus": -1}], "[0]: num_gpus is -1.0, expected 0 to 64.", id="minus-one-gpu"),
        pytest.param([EVERY | {"num_cpu": 1}], "[0].num_cpu: no such setting. Did you mean num_cpus?", id="key"),
        pytest.param([EVERY | {"num_cpus": "all"}], "[0].num_cpus: expected a number or 'auto', got 'all'.", id="text"),
        pytest.param(
            [EVERY | {"resources": {"GPU": 1}}],
            "[0]: resources.GPU: has a setting of its own; say num_gpus instead.",
            id="gpu-as-a-custom-resource",
        ),
        pytest.param(
            [EVERY | {"resources": {"rack": 0}}], "[0]: resources.rack is 0.0, expected more than 0", id="none-of-it"
        ),
        pytest.param(
            [EVERY | {"resources": {"rack": "x"}}], "[0].resources.rack: expected a number, got 'x'.", id="no-amount"
        ),
        pytest.param(
            [EVERY | {"transport": "mpi"}],
            "[0].transport: expected 'object_store' or 'gloo' or 'nccl', got 'mpi'.",
            id="unknown-transport",
        ),
    ],
)
def test_placements_that_do_not_fit(placement, message):
    with pytest.raises((GraphError, ConfigError)) as raised:
        graph(placement)
    assert str(raised.value).startswith(f"test.yaml, placement{message}")


def test_a_wrong_setting_of_a_stage_is_named_without_detours():
    with pytest.raises(ConfigError, match=r"^test.yaml, total.fail_att: no such setting. Did you mean fail_at\?$"):
        graph(total={"fail_att": 3})
    with pytest.raises(ConfigError, match=r"^test.yaml, batching: frames is 0, expected 1 to 4096.$"):
        graph(batching={"frames": 0})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        pytest.param({"batching": {"max_wait_s": -1}}, "batching: max_wait_s is -1.0, expected 0 to 60.", id="wait"),
        pytest.param({"batching": {"in_flight": 65}}, "batching: in_flight is 65, expected 1 to 64.", id="in-flight"),
        pytest.param(
            {"strategy": "scatter"},
            "strategy: expected 'pack' or 'spread' or 'strict_pack' or 'strict_spread', got 'scatter'.",
            id="strategy",
        ),
        pytest.param(
            {"recovery": {"snapshot_every": 0}}, "recovery: snapshot_every is 0, expected 1 to 1000000.", id="every"
        ),
        pytest.param({"recovery": {"max_kills": 0}}, "recovery: max_kills is 0, expected 1 to 100.", id="kills"),
        pytest.param({"recovery": {"store": " "}}, "recovery: store is empty; expected object_store, a", id="store"),
        pytest.param({"recovery": {"evry": 3}}, "recovery.evry: no such setting. Known: max_kills, snapshot", id="key"),
    ],
)
def test_how_a_graph_runs_is_checked(setting, message):
    with pytest.raises(ConfigError) as raised:
        parse_graph({"stages": STAGES} | setting, KINDS, "g.yaml")
    assert str(raised.value).startswith(f"g.yaml, {message}")


def test_how_a_graph_runs():
    mapping = {
        "placement": [EVERY | {"resources": {"rack": 2}, "transport": "gloo"}],
        "strategy": "spread",
        "recovery": {"snapshot_every": 8, "store": "s3://bucket/states", "max_kills": 3},
    }
    read = parse_graph({"stages": STAGES} | mapping, KINDS, "g.yaml")
    assert (read.placement[0].resources, read.placement[0].transport) == ({"rack": 2.0}, "gloo")
    assert (read.strategy, read.recovery) == (
        "spread",
        Recovery(snapshot_every=8, store="s3://bucket/states", max_kills=3),
    )
    plain = parse_graph({"stages": STAGES}, KINDS, "g.yaml")
    assert (plain.strategy, plain.recovery) == ("pack", Recovery())
    assert hash(read.placement[0]) != hash(plain.placement[0])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "g.yaml"
    lines = [f"  {name}: {{{', '.join(f'{k}: {v}' for k, v in entry.items())}}}" for name, entry in STAGES.items()]
    path.write_text("stages:\n" + "\n".join(lines) + "\n")
    return path


def test_overrides_reach_stages_and_how_they_run(file):
    overrides = ["total.fail_at=7", "batching.streams=2", "recovery.snapshot_every=8", "strategy=spread"]
    read = load_graph(file, KINDS, overrides)
    assert read.stages[-1].settings == TotalConfig(fail_at=7)
    assert read.batching == Batching(streams=2)
    assert (read.recovery, read.strategy) == (Recovery(snapshot_every=8), "spread")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("totl.fail_at=3", "'totl.fail_at=3': no stage 'totl'. Did you mean total?", id="stage"),
        pytest.param("total.fail=3", "total.fail: no such setting. Did you mean fail_at?", id="setting"),
        pytest.param("total.fail_at=x", "total.fail_at: expected a whole number, got 'x'.", id="value"),
    ],
)
def test_overrides_that_fit_nowhere(file, override, message):
    with pytest.raises(ConfigError) as raised:
        load_graph(file, KINDS, [override])
    assert str(raised.value).endswith(message)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(
    ("placement", "cpus", "gpus", "expected"),
    [
        pytest.param([EVERY], 2, 0, [(2, 0)], id="one-group-has-all"),
        pytest.param([EVERY], 16, 4, [(16, 1)], id="one-process-one-gpu"),
        pytest.param([FIRST, REST | {"replicas": 3}], 10, 1, [(2, 0), (2, 0.3333)], id="gpu-for-networks-alone"),
        pytest.param([FIRST, REST], 1, 0, [(0.5, 0), (0.5, 0)], id="less-than-one-each"),
        pytest.param([FIRST | {"num_cpus": 1}, REST], 4, 0, [(1, 0), (3, 0)], id="what-others-leave"),
        pytest.param([FIRST | {"num_cpus": 4}, REST], 4, 0, [(4, 0), (0.4, 0)], id="others-leave-nothing"),
    ],
)
def test_auto_shares_out_what_there_is(placement, cpus, gpus, expected):
    read = graph(placement).placed(cpus, gpus)
    assert [(p.num_cpus, p.num_gpus) for p in read.placement] == expected
