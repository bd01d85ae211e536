"""Which runs an ablation makes, in which order, and what their files of settings say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from operators.errors import ConfigError
from pipelines.graph import load_graph
from pipelines.networks import read_network
from pipelines.stages import STAGES, association_of
from trainers.ablation_config import Changes, planned, read_ablation, write_pretraining, write_settings

SHIPPED = "configs/ablations/crossvis.yaml"
NONE = Changes.of(())


def content(**more) -> dict:
    """A small ablation of three variants in two tables, one of them in both."""
    return {
        "training": "configs/training/mini_crossvis.yaml",
        "held_out": {"folder": "data/x", "clips": 2, "seed": 2},
        "seeds": 2,
        "variants": {
            "a": {"label": "A", "set": ["network.model.crossover=false", "training.data.max_interval=3"]},
            "b": {"label": "B"},
            "c": {"label": "C", "set": ["network.association=masktrack"]},
        },
        "tables": {
            "one": {"title": "One", "rows": [{"variant": "a", "paper": 1.0}, {"variant": "b", "paper": 2}]},
            "two": {"title": "Two", "rows": [{"variant": "b", "paper": 2.0}, {"variant": "c", "paper": 3.0}]},
        },
        **more,
    }


def written(folder: Path, **more) -> Path:
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(content(**more)))
    return path


@pytest.mark.parametrize("seeds, only, runs", [
    pytest.param(1, (), ["a-0", "b-0", "c-0"], id="one seed, a shared variant once"),
    pytest.param(None, (), ["a-0", "b-0", "a-1", "b-1", "c-0", "c-1"], id="table by table, seed by seed"),
    pytest.param(None, ("two",), ["b-0", "b-1", "c-0", "c-1"], id="a table: all its variants, wherever they stand"),
    pytest.param(1, ("c", "a"), ["a-0", "c-0"], id="variants, in the order of the tables"),
])  # fmt: skip
def test_runs_in_their_order(tmp_path, seeds, only, runs):
    config = read_ablation(written(tmp_path), NONE)
    made = planned(config, tmp_path, seeds, only)
    assert sorted(run.folder.name for run in made) == sorted(runs)
    if only != ("two",):
        assert [run.folder.name for run in made] == runs


@pytest.mark.parametrize("more, message", [
    pytest.param({"seeds": 0}, "seeds is 0, expected 1 to 1000", id="no seed"),
    pytest.param({"tables": {"t": {"title": "T", "rows": []}}}, "rows is empty", id="an empty table"),
    pytest.param({"tables": {"t": {"title": "T", "rows": [{"variant": "aa", "paper": 1.0}]}}},
                 "tables.t: no variant is called 'aa'. Did you mean a?", id="an unknown variant"),
    pytest.param({"variants": {"a": {"label": "A", "set": ["model.crossover=false"]}}, "tables": {}},
                 "variants.a: 'model.crossover=false' must begin with network. or training.", id="a change of nothing"),
    pytest.param({"variant": {}}, "variant: no such setting. Did you mean variants?", id="an unknown setting"),
])  # fmt: skip
def test_settings_that_are_wrong(tmp_path, more, message):
    with pytest.raises(ConfigError) as caught:
        read_ablation(written(tmp_path, **more), NONE)
    assert message in str(caught.value)


@pytest.mark.parametrize("seeds, only, runs", [
    pytest.param(None, (), ["a-0", "b-0", "b-1", "b-2", "c-0", "c-1", "c-2"], id="the most of a variant's tables"),
    pytest.param(None, ("one",), ["a-0", "b-0"], id="of the table asked for"),
    pytest.param(2, (), ["a-0", "a-1", "b-0", "b-1", "c-0", "c-1"], id="the command line's before all"),
])  # fmt: skip
def test_a_table_may_have_seeds_of_its_own(tmp_path, seeds, only, runs):
    tables = content()["tables"]
    tables["one"]["seeds"] = 1
    config = read_ablation(written(tmp_path, seeds=3, tables=tables), NONE)
    assert sorted(run.folder.name for run in planned(config, tmp_path, seeds, only)) == runs


def test_a_variant_may_be_scored_in_another_graph(tmp_path):
    more = {"graph": "here.yaml", "variants": {**content()["variants"], "b": {"label": "B", "graph": "there.yaml"}}}
    config = read_ablation(written(tmp_path, **more), NONE)
    assert {run.variant: run.graph for run in planned(config, tmp_path)} == {
        "a": "here.yaml", "b": "there.yaml", "c": "here.yaml"}  # fmt: skip
    assert {run.graph for run in planned(read_ablation(SHIPPED, NONE), tmp_path)} == {"configs/graphs/offline.yaml"}


def test_an_unknown_name_is_refused(tmp_path):
    config = read_ablation(written(tmp_path), NONE)
    with pytest.raises(ConfigError, match=r"--only tow: no variant or table is called that. Did you mean two\?"):
        planned(config, tmp_path, only=("tow",))


def test_changes_are_told_apart_by_their_first_word():
    changes = Changes.of(["seeds=2", "training.steps=3", "network.model.channels=8", "pretraining.seed=1",
                          "training=other.yaml", "held_out.clips=1"])
    assert changes.ablation == ("seeds=2", "training=other.yaml", "held_out.clips=1")
    assert (changes.network, changes.training, changes.pretraining) == (
        ("model.channels=8",), ("steps=3",), ("seed=1",))  # fmt: skip


def test_the_files_of_a_run_say_all_of_it(tmp_path):
    """Base, then the command line, then the variant; paths absolute."""
    config = read_ablation(written(tmp_path), NONE)
    changes = Changes.of(["training.steps=7", "training.data.max_interval=9", "network.model.channels=16"])
    run = planned(config, tmp_path, only=("a",))[1]
    write_settings(config, changes, run, tmp_path / "begin.safetensors")
    training = yaml.safe_load((tmp_path / "a-1" / "training.yaml").read_text())
    assert (training["steps"], training["seed"], training["data"]["max_interval"]) == (7, 1, 3)
    assert training["start_from"] == str(tmp_path / "begin.safetensors")
    assert Path(training["data"]["annotations"]).is_absolute() and Path(training["data"]["image_root"]).is_absolute()
    spec = read_network(training["network"])
    assert spec.where == str(tmp_path / "a-1" / "network.yaml")
    assert (spec.config.crossover, spec.config.channels) == (False, 16)
    assert spec.weights == tmp_path / "a-1" / "weights.safetensors"


def test_without_pre_training_a_run_begins_from_scratch(tmp_path):
    config = read_ablation(written(tmp_path), NONE)
    run = planned(config, tmp_path, only=("c",))[0]
    write_settings(config, NONE, run, None)
    assert "start_from" not in yaml.safe_load((tmp_path / "c-0" / "training.yaml").read_text())
    assert read_network(tmp_path / "c-0" / "network.yaml").association == "masktrack"


def test_the_shipped_ablation_compares_what_the_paper_compares(tmp_path):
    """Eight networks, three seeds; paper's figures as in its tables 6 to 8 (specification 7.3)."""
    config = read_ablation(SHIPPED, NONE)
    assert len(planned(config, tmp_path)) == 24
    assert [run.variant for run in planned(config, tmp_path)[:4]] == ["baseline", "crossover", "embedding", "both"]
    paper = {name: [row.paper for row in table.rows] for name, table in config.tables.items()}
    assert paper == {"components": [32.1, 33.1, 33.5, 34.8], "embeddings": [33.1, 33.3, 33.4, 34.8],
                     "intervals": [33.6, 34.6, 34.8]}
    assert [row.paper_std for row in config.tables["embeddings"].rows] == [0.78, 0.72, 0.27, 0.25]
    wanted = {  # crossover, targets, loss, association, T
        "baseline": (False, "pairwise", "ce", "masktrack", 20),
        "crossover": (True, "pairwise", "ce", "masktrack", 20),
        "embedding": (False, "global", "focal", "cosine_iou", 20),
        "both": (True, "global", "focal", "cosine_iou", 20),
        "pairwise_focal": (True, "pairwise", "focal", "masktrack", 20),
        "global_ce": (True, "global", "ce", "cosine_iou", 20),
        "interval_1": (True, "global", "focal", "cosine_iou", 1),
        "interval_5": (True, "global", "focal", "cosine_iou", 5),
    }
    assert config.variants.keys() == wanted.keys()
    for run in planned(config, tmp_path, seeds=1):
        write_settings(config, NONE, run, None)
        spec = read_network(run.folder / "network.yaml")
        training = yaml.safe_load((run.folder / "training.yaml").read_text())
        identity = spec.config.identity
        assert wanted[run.variant] == (
            spec.config.crossover, identity.targets, identity.loss, spec.association, training["data"]["max_interval"]
        )  # fmt: skip


IAI = "configs/ablations/iai.yaml"


def test_the_shipped_ablation_of_iai_compares_what_its_paper_compares(tmp_path):
    """Eight networks; the paper's figures as in its tables 4, 5 and 7 (IAI specification 7); 3 seeds for table 4."""
    config = read_ablation(IAI, NONE)
    paper = {name: [row.paper for row in table.rows] for name, table in config.tables.items()}
    assert paper == {"modules": [24.0, 12.6, 24.5, 37.9], "block": [12.6, 32.9, 34.9, 36.9, 37.9], "loss": [36.4, 37.9]}
    runs = planned(config, tmp_path)
    modules = {row.variant for row in config.tables["modules"].rows}
    assert {run.seed for run in runs if run.variant in modules} == {0, 1, 2}
    wanted = {  # identities, local, global, class, loss, tracks by
        "none": (False, False, False, True, False, "cosine_iou"),
        "identification": (True, False, False, True, "focal", "identities"),
        "association": (False, True, True, True, False, "cosine_iou"),
        "both": (True, True, True, True, "focal", "identities"),
        "local_class": (True, True, False, True, "focal", "identities"),
        "global_class": (True, False, True, True, "focal", "identities"),
        "local_global": (True, True, True, False, "focal", "identities"),
        "cross_entropy": (True, True, True, True, "ce", "identities"),
    }
    assert config.variants.keys() == wanted.keys() == {run.variant for run in runs}
    for run in planned(config, tmp_path, seeds=1):
        write_settings(config, NONE, run, None)
        spec = read_network(run.folder / "network.yaml")
        block = spec.config.association
        rule = association_of(load_graph(run.graph, STAGES), spec)
        assert wanted[run.variant] == (
            spec.config.use_id, block.use_local, block.use_global, block.use_cls_projector,
            spec.config.use_id and spec.config.id_loss, rule,
        ), run.variant  # fmt: skip


def scored_too(**of_b) -> dict:
    """`content` with a variant that scores the weights of b."""
    return {**content()["variants"], "b2": {"label": "B, used otherwise", "weights_of": "b", **of_b}}


def rows_of(*variants: str) -> dict:
    return {"t": {"title": "T", "rows": [{"variant": variant} for variant in variants]}}


@pytest.mark.parametrize("rows, only, runs", [
    pytest.param(("b", "b2"), (), ["b-0", "b2-0", "b-1", "b2-1"], id="after the run whose weights it takes"),
    pytest.param(("b2", "a"), (), ["b-0", "b2-0", "a-0", "b-1", "b2-1", "a-1"], id="which is made, in a table or not"),
    pytest.param(("a", "b2"), ("b2",), ["b-0", "b2-0", "b-1", "b2-1"], id="asked for alone"),
])  # fmt: skip
def test_weights_may_be_scored_more_than_once(tmp_path, rows, only, runs):
    config = read_ablation(written(tmp_path, variants=scored_too(), tables=rows_of(*rows)), NONE)
    made = planned(config, tmp_path, only=only)
    assert [run.folder.name for run in made] == runs
    assert {run.folder.name: run.home.name for run in made if run.variant == "b2"} == {"b2-0": "b-0", "b2-1": "b-1"}


def test_a_run_that_is_only_scored_has_the_settings_of_the_trained_one(tmp_path):
    variants = {**content()["variants"], "a2": {"label": "A", "weights_of": "a",
                                               "set": ["network.association=masktrack"]}}  # fmt: skip
    config = read_ablation(written(tmp_path, variants=variants, tables=rows_of("a2")), NONE)
    run = planned(config, tmp_path, seeds=1)[1]
    write_settings(config, NONE, run, None)
    spec = read_network(run.folder / "network.yaml")
    assert (spec.config.crossover, spec.association) == (False, "masktrack")
    assert spec.weights == tmp_path / "a-0" / "weights.safetensors"


@pytest.mark.parametrize("of_b, message", [
    pytest.param({"weights_of": "bb"}, "variants.b2.weights_of: 'bb' is no variant that is trained. Did you mean b?",
                 id="of nothing"),
    pytest.param({"weights_of": "b2"}, "'b2' is no variant that is trained.", id="of itself"),
    pytest.param({"set": ["training.steps=3"]}, "variants.b2: weights_of says that it is not trained", id="trained"),
])  # fmt: skip
def test_weights_of_others_that_are_wrong(tmp_path, of_b, message):
    with pytest.raises(ConfigError) as caught:
        read_ablation(written(tmp_path, variants=scored_too(**of_b), tables=rows_of("b2")), NONE)
    assert message in str(caught.value)


CICO = "configs/ablations/cico.yaml"
CICO_VARIANTS = {  # T, towers of boxes, tracks, classes, mask head, matching
    **{f"fifo_{t}": (t, "2d 2d 2d 2d current") for t in (1, 2, 3, 4)},
    "box_3d": (3, "3d 2d 2d 2d current"),
    "box_track_3d": (3, "3d 3d 2d 2d current"),
    "all_3d": (3, "3d 3d 3d 2d current"),
    "union": (3, "3d 3d 2d 2d union3"),
    "long_current": (7, "3d 3d 2d 2d current"),
    "long_union": (7, "3d 3d 2d 2d union3"),
    "masks_2d_4": (4, "3d 3d 2d 2d union3"),
    **{name: (3, "3d 3d 2d 3d union3") for name in ("cico", "overlap_0", "overlap_2")},
    **{f"length_{t}": (t, "3d 3d 2d 3d union3") for t in (1, 2, 4, 5, 6, 7)},
}


def test_the_shipped_ablation_of_cico_compares_what_its_paper_compares(tmp_path):
    """The paper's tables 1a to 1d, 2, and its figure 5 (CiCo specification 7); 3 seeds for 1a and 1b."""
    config = read_ablation(CICO, NONE)
    assert {name: [row.paper for row in table.rows] for name, table in config.tables.items()} == {
        "loss": [30.7, 33.0, 32.7, 29.5], "towers": [32.7, 35.9, 36.8, 35.5], "matching": [36.8, 37.1],
        "matching_long": [33.8, 35.6], "masks": [36.8, 37.1], "masks_long": [36.1, 36.6],
        "overlap": [33.5, 34.3, 34.8], "length": [None, None, 37.1, *[None] * 4]}  # fmt: skip
    runs = planned(config, tmp_path)
    several = {row.variant for name in ("loss", "towers") for row in config.tables[name].rows}
    assert {run.seed for run in runs if run.variant in several} == {0, 1, 2} and len(several) == 7
    assert config.variants.keys() == CICO_VARIANTS.keys() == {run.variant for run in runs}
    overlaps = {}
    for run in planned(config, tmp_path, seeds=1):
        write_settings(config, NONE, run, None)
        training = yaml.safe_load((run.folder / "training.yaml").read_text())
        model = read_network(run.folder / "network.yaml").config
        towers = " ".join((model.box_tower, model.track_tower, model.cls_tower, model.cmh, model.match.box))
        assert (model.clip_length, towers) == CICO_VARIANTS[run.variant], run.variant
        assert training["data"]["clip_frames"] == model.clip_length and training["samples_per_step"] == 4
        if run.variant in ("cico", "overlap_0", "overlap_2"):
            windows = next(s for s in load_graph(run.graph, STAGES).stages if s.name == "windows")
            overlaps[run.variant] = windows.settings.of(model.clip_length)
            assert run.home == tmp_path / "cico-0"
    assert overlaps == {"overlap_0": 0, "cico": 1, "overlap_2": 2}


def test_the_shipped_network_of_cico_grows_out_of_the_pre_trained_one(tmp_path):
    config = read_ablation(CICO, NONE)
    write_pretraining(config, NONE, tmp_path)
    stills = read_network(yaml.safe_load((tmp_path / "training.yaml").read_text())["network"]).config
    clips = read_network("configs/networks/mini_cico.yaml").config
    for name in ("num_classes", "input", "backbone", "channels", "mask_channels", "tower_convs", "masks", "cls_loss"):
        assert getattr(stills, name) == getattr(clips, name), name
    assert (stills.clip_length, stills.tracking, stills.box_tower, stills.cmh) == (1, False, "2d", "2d")


@pytest.mark.parametrize("shipped, network", [(SHIPPED, "mini_crossvis"), (IAI, "iai_tiny")])
def test_the_shipped_networks_begin_with_all_of_the_pre_trained_one(tmp_path, shipped, network):
    """Same trunk, pyramid, heads and mask branch: every setting that both networks have is equal."""
    config = read_ablation(shipped, NONE)
    write_pretraining(config, NONE, tmp_path)
    stills = read_network(yaml.safe_load((tmp_path / "training.yaml").read_text())["network"])
    clips = read_network(f"configs/networks/{network}.yaml")
    for name in ("num_classes", "input", "backbone", "channels", "fcos", "mask_channels", "coordinates"):
        assert getattr(stills.config, name) == getattr(clips.config, name), name
