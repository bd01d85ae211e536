"""IAI trained on clips through the same loop as every network: its loss falls, a cut run goes on as if it had not been.

Source of what is expected: IAI specification 3.
"""

from __future__ import annotations

from itertools import repeat
from pathlib import Path

import pytest
import torch
import yaml

from models.iai import IAI
from models.iai_maskrcnn import IAIMaskRCNN
from operators.errors import ConfigError
from operators.shapes import CATEGORIES, ShapesConfig, write_youtube_vis
from operators.weights import read_weights
from pipelines.networks import load_network, read_network
from trainers.clips import ClipSampler
from trainers.curves import read_metrics
from trainers.data import ClipLoader
from trainers.feeding import read_index
from trainers.job import Job
from trainers.loop import Alone, run_worker, train_alone
from trainers.step import make_optimizer, update
from trainers.train import make_job
from trainers.watch import Watcher
from trainers.watchers import watchers_of

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
NUM_CLIPS = 20
CLIPS = ShapesConfig(
    width=125, height=75, num_frames=6, min_objects=3, max_objects=4, min_classes=2, num_twins=0, full_occlusions=0,
    re_entries=0,
)  # fmt: skip
BACKBONE = {"blocks": [1, 1, 1, 1], "stem_channels": 8, "mid_channels": 4, "stride_in": "3x3", "norm": "batch",
            "frozen_stages": 0}  # fmt: skip
SMALL = {
    "num_classes": len(CATEGORIES), "num_slots": 6, "input": {"short_side": 64, "long_side": 96}, "backbone": BACKBONE,
    "channels": 16, "mask_channels": 8,
    "fcos": {"tower_convs": 1, "groups": 4, "tower_bias": False, "size_bounds": [16, 32, 64, 128]},
    "association": {"dim": 16, "hidden": 32, "groups": 4, "radius": 1, "class_channels": 96}}  # fmt: skip
PARTS = ("class", "identity", "box", "centerness", "mask")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A training file with its network and 20 generated clips; settings as IAI's released ones, but for the numbers."""
    folder = tmp_path_factory.mktemp("clips")
    write_youtube_vis(folder / "data", CLIPS, seed=5, num_clips=NUM_CLIPS)
    (folder / "net.yaml").write_text(
        yaml.safe_dump({"network": "iai_condinst", "association": "identities", "model": SMALL}))
    content = {
        "network": str(folder / "net.yaml"), "steps": 4, "samples_per_step": 2, "log_every": 1, "checkpoint_every": 1,
        "data": {"annotations": str(folder / "data" / "instances.json"), "kind": "clips", "clip_frames": 3,
                 "image_root": str(folder / "data" / "JPEGImages"),
                 "scale": {"short_side": [56, 72], "long_side": [90, 120]}},
        "optimizer": {"name": "adamw", "learning_rate": 0.002, "decay_norms": True, "warmup_steps": 2,
                      "decay_at": [0.5],
                      "parts": [{"contains": "backbone", "learning_rate": 0.1, "weight_decay": 0.9}]},
        "workers": {"cpus_per_worker": 1}}  # fmt: skip
    (folder / "train.yaml").write_text(yaml.safe_dump(content))
    return folder / "train.yaml"


def prepared(config: Path, out: Path, *overrides: str) -> Job:
    job = make_job(config, overrides, out)
    job.out.mkdir()
    return job


def test_the_loss_of_one_batch_falls_in_all_its_parts(config, tmp_path):
    """30 steps on the same clip of five frames: what cannot be learnt by heart has no gradient."""
    job = make_job(config, ["data.clip_frames=5", "data.scale=null"], tmp_path)
    cfg, index = job.config, read_index(job.config.data)
    assert len(index.videos) == NUM_CLIPS
    sampler = ClipSampler(index, frames=5, flip=0.5, flip_sync=False, scale=None, seed=0)
    draws = repeat(next(sampler.draws(0)))
    loader = ClipLoader(draws, index, job.network.config.input, batch=1, frames=5, device=CPU)
    batch = next(loader)
    loader.close()
    torch.manual_seed(0)
    network = IAI(job.network.config).train()
    optimizer = make_optimizer(network, cfg.optimizer)
    losses = []
    for step in range(30):
        torch.manual_seed(step)
        losses.append(update(network, network, optimizer, [batch], 0.005, None))
    assert all(set(one) == {*PARTS, "total", "gradient_norm"} for one in losses)
    first, last = losses[0], losses[-1]
    assert last["total"] < 0.8 * first["total"]
    assert all(last[part] < first[part] for part in PARTS), (first, last)


def cut_after(steps: int):
    """Watchers of a process that ends when so many steps are done, and their checkpoint is written."""

    class Cut(Watcher):
        def after_checkpoint(self, steps_done: int) -> None:
            if steps_done == steps:
                raise KeyboardInterrupt

    return lambda worker: [*watchers_of(worker), Cut()]


def test_a_cut_run_goes_on_as_if_it_had_not_been(config, tmp_path):
    """To the bit: the same clips, sizes and mirroring, the same dropped tokens, rates of all parts."""
    whole = read_weights(train_alone(prepared(config, tmp_path / "whole"), CPU)).state
    job = prepared(config, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        run_worker(job, Alone(CPU), cut_after(2))
    resumed = read_weights(train_alone(job, CPU)).state
    assert resumed.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    rows = read_metrics(job.out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row, same in zip(rows, read_metrics(tmp_path / "whole" / "metrics.jsonl"), strict=True):
        assert [row[part] for part in PARTS] == [same[part] for part in PARTS]
        assert row["samples_per_s"] > 0


def test_its_weights_can_be_used(config, tmp_path):
    weights = train_alone(prepared(config, tmp_path / "run", "steps=1"), CPU)
    path = tmp_path / "use.yaml"
    path.write_text(yaml.safe_dump({"network": "iai_condinst", "model": SMALL, "weights": str(weights)}))
    network = load_network(read_network(path), CPU)
    with torch.inference_mode():
        pyramid, _ = network.associate(network.features(torch.zeros(1, 3, 64, 96)), [None])
        dense = network.heads(pyramid)
    assert dense.identity_logits.shape[2] == 6 and dense.identity_logits.isfinite().all()


def test_two_stages_learn_from_clips_through_the_same_loop(config, tmp_path):
    """The shipped small form, three steps: all losses, weights that can be used, pixels and rates as in the file."""
    file = "configs/networks/mini_iai_maskrcnn.yaml"
    job = prepared(config, tmp_path / "run", f"network={file}", "steps=3", "samples_per_step=1")
    weights = train_alone(job, CPU)
    rows = read_metrics(job.out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    parts = ("rpn_class", "rpn_box", "class", "box", "mask", "identity")
    for row in rows:
        assert all(row[part] > 0 for part in parts)
        assert row["total"] == pytest.approx(sum(row[part] for part in parts), rel=1e-3)
    begun = IAIMaskRCNN(job.network.config)
    network = load_network(read_network(file, (f"weights={weights}",)), CPU)
    assert network.state_dict().keys() == begun.state_dict().keys()
    with torch.inference_mode():
        pyramid, _ = network.associate(network.features(torch.zeros(1, 3, 96, 160)), [None])
        said = network.identified(network.heads(pyramid), 0, torch.tensor([[0.0, 0.0, 50.0, 40.0]]), (96, 160))
    assert said.identities.shape == (1, 20) and said.identities.isfinite().all()


@pytest.mark.parametrize("overrides, message", [
    pytest.param(["data.kind=pairs", "data.scale=null"],
                 "data.kind: 'pairs', but the network 'iai_condinst' learns from 'clips'", id="IAI takes no pairs"),
    pytest.param(["data.kind=pairs", "data.scale.each=frame"], "scale.each: frame, are of clips",
                 id="a pair has one size"),
    pytest.param(["data.clip_frames=0"], "clip_frames is 0", id="no frame"),
    pytest.param(["data.scale.short_side=[9, 3]"], "short_side is [9, 3]", id="a range the wrong way round"),
    pytest.param(["data.scale.each=video"], "data.scale.each: expected 'clip' or 'frame'", id="drawn for what?"),
    pytest.param(["optimizer.parts=[{contains: bakbone}]"], "no trainable parameter's name contains 'bakbone'",
                 id="a part that is none"),
    pytest.param(["optimizer.parts=[{contains: backbone, learning_rate: 0}]"], "learning_rate must be positive",
                 id="a part that stands still"),
])  # fmt: skip
def test_settings_that_are_wrong(config, tmp_path, overrides, message):
    with pytest.raises(ConfigError) as caught:
        make_job(config, overrides, tmp_path / "run")
    assert message in str(caught.value)


def test_networks_of_pairs_do_not_take_clips(config, tmp_path):
    small = {key: SMALL[key] for key in ("num_classes", "input", "backbone", "channels", "mask_channels", "fcos")}
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump({"network": "crossvis", "model": small}))
    with pytest.raises(ConfigError, match="data.kind: 'clips', but the network 'crossvis' learns from 'pairs'"):
        make_job(config, [f"network={tmp_path / 'pairs.yaml'}", "optimizer.parts=[]"], tmp_path)


def test_what_is_drawn_belongs_to_the_settings_of_a_run(config, tmp_path):
    def fingerprint(*overrides: str) -> str:
        return make_job(config, overrides, tmp_path).fingerprint

    other = ("data.clip_frames=5", "data.flip_sync=true", "data.scale=null", "data.scale.each=frame",
             "optimizer.parts=[]", "optimizer.decay_norms=false", "optimizer.decay_biases=false")  # fmt: skip
    assert len({fingerprint(), *map(fingerprint, other)}) == 1 + len(other)
