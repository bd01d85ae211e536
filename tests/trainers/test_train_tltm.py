"""TLTM trained as a user trains it: CenterMask on stills, then pairs of frames and of moved stills from its weights.

Source of what is expected: TLTM specification 1.2, 3.1 to 3.4.
"""

from __future__ import annotations

import json
import math
from itertools import repeat
from pathlib import Path

import pytest
import torch
import yaml

from models.tltm import TLTM
from operators.class_names import CLASS_NAMES
from operators.errors import CheckpointError, ConfigError, DatasetError
from operators.weights import read_weights
from pipelines.config import build, load_yaml, resolve
from pipelines.graph import load_graph
from pipelines.networks import load_network, read_network
from pipelines.stages import STAGES, association_of
from pipelines.weights import import_release, save_import
from tests.models.releases import Sizes, filled
from tests.models.test_importers_tltm import centermask
from tests.trainers.small_runs import NETWORK, write_run
from tests.trainers.test_train_clips import cut_after, prepared
from trainers.ablate import _mark
from trainers.ablation_config import Changes, planned, read_ablation, write_settings
from trainers.config import TrainConfig
from trainers.curves import read_metrics
from trainers.data import PairLoader
from trainers.feeding import make_sampler, parts_of, read_index
from trainers.loop import Alone, run_worker, train_alone
from trainers.step import learning_rate, update
from trainers.train import make_job

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SHARED = {key: NETWORK["model"][key] for key in ("num_classes", "input", "backbone", "channels", "fcos")}
STILLS = {"network": "centermask", "model": {**SHARED, "mask_convs": 1}}
PAIRS = {"network": "tltm", "association": "edges", "model": {
    **SHARED, "mask_convs": 1, "train_reference": "previous", "regions": "proposals", "object_dim": 16,
    "graph_hidden": 8, "proposals": {"min_class": 0.01, "max_per_frame": 20}}}  # fmt: skip
OF_RELEASE = {**SHARED, "num_classes": 40, "fcos": {**SHARED["fcos"], "tower_convs": 4}, "mask_convs": 4}
"""As many layers and classes as the released networks."""
PARTS = ("class", "box", "centerness", "mask", "edge")


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> tuple[Path, Path]:
    """Training files of the stills and of the pairs, of one generated dataset, some of it taken as stills once more."""
    folder = tmp_path_factory.mktemp("tltm")
    path = write_run(folder, steps=4, samples_per_step=2)
    content = yaml.safe_load(path.read_text())
    files = {"annotations": content["data"]["annotations"], "image_root": content["data"]["image_root"]}

    def save(name: str, network: dict, **data) -> Path:
        (folder / f"{name}_net.yaml").write_text(yaml.safe_dump(network))
        more = {"network": str(folder / f"{name}_net.yaml"), "data": {**files, **data}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**content, **more}))
        return folder / f"{name}.yaml"

    stills = save("stills", STILLS, kind="stills")
    pairs = save("pairs", PAIRS, kind="pairs", direction="forward", max_interval=3, repeat=2, pseudo={},
                 stills=[{**files, "format": "youtube_vis"}])  # fmt: skip
    return stills, pairs


def test_the_loss_of_one_batch_falls_in_all_its_parts(configs, tmp_path):
    """Twenty steps on two pairs: what cannot be learnt by heart has no gradient."""
    job = make_job(configs[1], (), tmp_path)
    data, index = job.config.data, read_index(job.config.data)
    draws = make_sampler(data, index, seed=3, rank=0, world_size=1, step=2).draws(0)
    loader = PairLoader(repeat(next(draws)), index, job.network.config.input, batch=2, device=CPU, parts=parts_of(data))
    batch = next(loader)
    loader.close()
    assert all(len(sizes) == 2 for sizes in batch.sizes)
    torch.manual_seed(0)
    network = TLTM(job.network.config).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.005)
    losses = []
    for step in range(20):
        torch.manual_seed(step)
        losses.append(update(network, network, optimizer, [batch], 0.005, None))
    assert all(set(one) == {*PARTS, "total", "gradient_norm"} for one in losses)
    first, last = losses[0], losses[-1]
    assert all(last[part] < first[part] for part in PARTS), (first, last)


def test_stills_begin_pairs_and_the_weights_can_be_used(configs, tmp_path):
    stills, pairs = configs
    weights = train_alone(prepared(stills, tmp_path / "stills", "steps=2"), CPU)
    job = prepared(pairs, tmp_path / "pairs", f"start_from={weights}", "steps=2")
    trained = train_alone(job, CPU)
    rows = read_metrics(job.out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and all(row[part] > 0 for row in rows for part in PARTS)
    begun, found = read_weights(weights).state, read_weights(trained).state
    assert begun.keys() < found.keys()
    assert {name.partition(".")[0] for name in found.keys() - begun.keys()} == {"fuser", "encoder", "graph"}
    path = tmp_path / "use.yaml"
    path.write_text(yaml.safe_dump({**PAIRS, "weights": str(trained)}))
    network = load_network(read_network(path), CPU)
    with torch.inference_mode():
        pyramid = network.features(torch.zeros(1, 3, 64, 96))
        assert network.heads(pyramid, (pyramid,)).class_logits.isfinite().all()


@pytest.fixture
def coco_weights(tmp_path) -> Path:
    """CenterMask2's file of COCO, of few channels and small numbers, imported with the rows that YouTube-VIS shares."""
    sizes = Sizes(blocks=(1, 1, 1, 1), stem=8, mid=4, channels=16, classes=80)
    torch.save({name: (0.1 * value).abs() + 0.01 if "running_var" in name else 0.1 * value
                for name, value in filled(centermask(sizes)).items()}, tmp_path / "coco.pth")             # fmt: skip
    (tmp_path / "net.yaml").write_text(yaml.safe_dump({"network": "centermask", "model": OF_RELEASE}))
    done = import_release(tmp_path / "coco.pth", "centermask2", str(tmp_path / "net.yaml"), transplant_classes=True)
    save_import(done, tmp_path / "coco.safetensors")
    return tmp_path / "coco.safetensors"


def with_classes(config: Path, folder: Path, network: dict, names: tuple[str, ...]) -> Path:
    """The training file `config` of another network, on videos alone, whose first classes are called otherwise."""
    content = yaml.safe_load(config.read_text())
    dataset = json.loads(Path(content["data"]["annotations"]).read_text())
    dataset["categories"] = [{"id": id, "name": name} for id, name in enumerate(names, start=1)]
    folder.mkdir()
    (folder / "instances.json").write_text(json.dumps(dataset))
    (folder / "net.yaml").write_text(yaml.safe_dump(network))
    data = {**content["data"], "annotations": str(folder / "instances.json"), "stills": []}
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump({**content, "network": str(folder / "net.yaml"), "data": data}))
    return path


def test_coco_weights_with_shared_classes_begin_both_trainings(configs, coco_weights, tmp_path):
    """A step of CenterMask on stills and one of TLTM on pairs; both score with the file's rows."""
    names, begun = CLASS_NAMES["youtube-vis-2019"], read_weights(coco_weights).state
    of_pairs = {**PAIRS, "model": {**PAIRS["model"], **OF_RELEASE}}
    for config, network in zip(configs, ({**STILLS, "model": OF_RELEASE}, of_pairs), strict=True):
        path = with_classes(config, tmp_path / network["network"], network, names)
        job = prepared(path, tmp_path / f"run-{network['network']}", f"start_from={coco_weights}", "steps=1",
                       "optimizer.average_decay=null", "optimizer.learning_rate=1e-9")                    # fmt: skip
        found = read_weights(train_alone(job, CPU))
        (row,) = read_metrics(job.out / "metrics.jsonl")
        assert all(math.isfinite(row[part]) for part in PARTS if part in row) and found.classes == names
        for name in ("fcos.class_logits.weight", "mask_head.logits.weight", "fcos.class_logits.bias"):
            assert torch.allclose(found.state[name], begun[name], atol=1e-6), name


def test_rows_of_classes_are_not_taken_for_those_of_others(configs, coco_weights, tmp_path):
    for names, told in ((CLASS_NAMES["youtube-vis-2021"], "'person', but .* has 'airplane' as class 1"),
                        (CLASS_NAMES["youtube-vis-2019"][:1] + CLASS_NAMES["youtube-vis-2019"][::-1][:39],
                         "'giant_panda', but .* has 'tennis_racket' as class 2")):                        # fmt: skip
        path = with_classes(configs[0], tmp_path / names[1], {**STILLS, "model": OF_RELEASE}, names)
        with pytest.raises(CheckpointError, match=f"were copied for {told}.*again without --transplant-classes"):
            make_job(path, [f"start_from={coco_weights}"], tmp_path / "out")


def test_a_cut_run_goes_on_as_if_it_had_not_been(configs, tmp_path):
    """To the bit: the same pairs and motions, and of their proposals the same draws."""
    whole = read_weights(train_alone(prepared(configs[1], tmp_path / "whole"), CPU)).state
    job = prepared(configs[1], tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        run_worker(job, Alone(CPU), cut_after(2))
    resumed = read_weights(train_alone(job, CPU)).state
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_settings_that_are_wrong(configs, tmp_path):
    with pytest.raises(ConfigError, match="'stills', but the network 'tltm' learns from 'pairs'"):
        make_job(configs[1], ["data.kind=stills", "data.direction=either", "data.pseudo=null"], tmp_path)
    missing = "data.stills=[{annotations: gone.json, image_root: ., format: youtube_vis, made_by: make it}]"
    with pytest.raises(DatasetError, match=r"data.stills\[0\].annotations: .*gone.json does not exist. Make it by: m"):
        make_job(configs[1], [missing], tmp_path)


def test_what_is_seen_belongs_to_the_settings_of_a_run_but_not_where_it_lies(configs, tmp_path):
    def fingerprint(*overrides: str) -> str:
        return make_job(configs[1], overrides, tmp_path).fingerprint

    other = ("data.repeat=3", "data.max_interval=1", "data.pseudo.translate=0.1")
    assert len({fingerprint(), *map(fingerprint, other)}) == 1 + len(other)
    moved = tmp_path / "moved"
    content = yaml.safe_load(configs[1].read_text())
    moved.symlink_to(Path(content["data"]["image_root"]).parent)
    stills = [{**content["data"]["stills"][0], "annotations": str(moved / "instances.json"),
               "image_root": str(moved / "JPEGImages")}]  # fmt: skip
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump({**content, "data": {**content["data"], "stills": stills}}))
    assert make_job(path, (), tmp_path).fingerprint == fingerprint()


def shipped(name: str) -> TrainConfig:
    path = resolve(f"configs/training/{name}.yaml")
    return build(TrainConfig, load_yaml(path), str(path))


def test_the_shipped_settings():
    """Specification 1.2 to 1.5, 3.1: the full schedules, sources, motion; numbers by hand."""
    before, after = shipped("tltm_r50_pretrain"), shipped("tltm_r50_finetune")
    for cfg in (before, after):
        assert cfg.data.repeat == 8 and [(one.classes, one.repeat) for one in cfg.data.stills] == [
            ("coco", 1), ("open-images", 1)]  # fmt: skip
        assert cfg.data.scale.short_sides == (640, 672, 704, 736, 768, 800) and cfg.data.scale.long_side == (1333, 1333)
        assert cfg.data.flip == 0.5 and cfg.data.group_shapes and cfg.samples_per_step == 16
        assert (cfg.optimizer.name, cfg.optimizer.momentum, cfg.optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
        assert (cfg.optimizer.warmup_steps, cfg.optimizer.warmup_factor) == (1000, 1e-3)
        assert not cfg.optimizer.decay_norms
    assert (before.data.kind, before.steps) == ("stills", 90000) and read_network(before.network).name == "centermask"
    assert (after.data.kind, after.data.direction, after.data.max_interval) == ("pairs", "forward", 3)
    pseudo = after.data.pseudo
    assert (pseudo.translate, pseudo.rotate, pseudo.scale, pseudo.blur) == (0.2, 20, (1, 1), 0.5)
    assert pseudo.blur_sizes == (7, 9) and pseudo.exclusive and pseudo.photometric.pick == "some"
    steps = (999, 1000, 99999, 100000, 149999, 150000)
    rates = [learning_rate(step, after.steps, after.optimizer) for step in steps]
    assert rates == pytest.approx([0.005 * (1 - 0.001 * 0.999), 0.005, 0.005, 0.0005, 0.0005, 0.00005])
    network = read_network(after.network).config
    assert (network.train_reference, network.regions, network.fuser) == ("previous", "proposals", "single")
    released = read_network("configs/networks/tltm_r50.yaml").config
    assert (released.train_reference, released.regions) == ("own", "truth")


def test_the_shipped_miniatures():
    mini = shipped("tltm_mini_finetune")
    assert mini.data.direction == "forward" and mini.data.pseudo is not None and mini.data.repeat == 8
    names = ("tltm_mini_pretrain", "tltm_mini_finetune")
    stills, pairs = (read_network(shipped(name).network).config for name in names)
    shared = ("num_classes", "input", "backbone", "channels", "fcos", "mask_convs", "proposals", "sampling")
    assert [getattr(stills, name) for name in shared] == [getattr(pairs, name) for name in shared]


def test_the_shipped_ablation(tmp_path):
    """The three networks of table 3 with their associations; two more uses of the last one's weights, not trained."""
    config = read_ablation("configs/ablations/tltm.yaml", Changes.of(()))
    runs = planned(config, tmp_path)
    assert [run.name for run in runs[:3]] == ["baseline, seed 0", "fuser, seed 0", "graph, seed 0"] and len(runs) == 15
    found, marks = {}, set()
    for run in runs:
        write_settings(config, Changes.of(()), run, None)
        spec = read_network(run.folder / "network.yaml")
        found[run.variant] = (spec.association, spec.config.fuser, spec.config.relations, spec.edges.min_iou)
        assert association_of(load_graph(run.graph, STAGES), spec) is not None, run.name
        marks.add(_mark(config, run, shipped("tltm_mini_finetune"), spec))
        assert (run.trained_in is None) == (run.variant in ("baseline", "fuser", "graph"))
    assert found == {
        "baseline": ("boxes", "none", False, 0.3), "fuser": ("boxes", "single", False, 0.3),
        "graph": ("edges", "single", True, 0.3), "no_edges": ("edges", "single", True, 0.3),
        "anywhere": ("edges", "single", True, None),
    }  # fmt: skip
    assert len(marks) == 5, "scores by other weights of edges are not taken for those by these"
    assert [row.paper for row in config.tables["parts"].rows] == [34.3, 34.9, 35.8] and config.seeds == 3
