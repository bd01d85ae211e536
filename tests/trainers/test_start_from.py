"""What a run begins with: the tensors of another network, and which stay fresh (CrossVIS specification 6.3, rule 3)."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from models.association_block import AssociationConfig
from models.calibration import CalibrationConfig
from models.condinst import CondInst, CondInstConfig
from models.crossvis import CrossVIS, CrossVISConfig
from models.fcos import FCOSConfig
from models.iai import IAI, IAIConfig
from models.inputs import InputConfig
from models.resnet import ResNetConfig
from operators.errors import CheckpointError
from operators.shapes import CATEGORIES, ShapesConfig, write_youtube_vis
from operators.weights import read_weights, save_weights, start_from
from pipelines.networks import as_plain
from tests.models.small_regions import small_regions
from trainers.curves import read_metrics
from trainers.loop import Alone, run_worker, train_alone
from trainers.train import make_job
from trainers.watch import Watcher
from trainers.watchers import watchers_of

pytestmark = pytest.mark.usefixtures("one_thread")

CLIPS = ShapesConfig(
    width=125, height=75, num_frames=6, min_objects=3, max_objects=4, min_classes=2, num_twins=0, full_occlusions=0,
    re_entries=0,
)  # fmt: skip
STILLS = CondInstConfig(
    num_classes=len(CATEGORIES), input=InputConfig(short_side=64, long_side=96),
    backbone=ResNetConfig(blocks=(1, 1, 1, 1), stem_channels=8, mid_channels=4, norm="batch", frozen_stages=0),
    channels=16, fcos=FCOSConfig(tower_convs=4, groups=4, size_bounds=(16, 32, 64, 128)), mask_channels=8,
)  # fmt: skip
PAIRS = CrossVISConfig(**{f.name: getattr(STILLS, f.name) for f in fields(STILLS)}, embedding_dim=8)
CPU = torch.device("cpu")


def built(config: CondInstConfig, seed: int, num_identities: int | None = 5) -> nn.Module:
    torch.manual_seed(seed)
    return (CrossVIS if isinstance(config, CrossVISConfig) else CondInst)(config, num_identities)


def loaded(network: nn.Module, state: dict) -> set[str]:
    """Names whose tensors are now those of `state`."""
    own = network.state_dict()
    return {name for name, value in state.items() if name in own and torch.equal(own[name], value)}


# ------------------------------------------------------------------------------------------------- tensor by tensor


def test_still_images_leave_the_27_of_the_specification_fresh():
    """16 of the id tower, 2 of the 1x1, 5 of its norm, 2 of the proxies, 2 of the class logits: 40 classes, not 80."""
    network, state = built(replace(PAIRS, num_classes=40), 0), built(replace(STILLS, num_classes=80), 1).state_dict()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fresh = start_from(network, state, "coco")
    assert len(fresh) == 27
    assert {name.rsplit(".", 1)[0] for name in fresh if not name.startswith(("embedding.", "proxies."))} == {
        "fcos.class_logits"}  # fmt: skip
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in fresh)
    assert loaded(network, state) >= state.keys() - set(fresh)


def test_equal_classes_keep_their_logits():
    network, state = built(PAIRS, 0), built(STILLS, 1).state_dict()
    fresh = start_from(network, state, "stills")
    assert len(fresh) == 25 and loaded(network, state) == state.keys()


def test_an_embedding_is_taken_and_proxies_never_are():
    """Proxies of equal number still mean the identities of another dataset."""
    network, state = built(PAIRS, 0), built(PAIRS, 1).state_dict()
    assert sorted(start_from(network, state, "pairs")) == ["proxies.proxies.bias", "proxies.proxies.weight"]
    assert loaded(network, {"proxies.proxies.weight": state["proxies.proxies.weight"]}) == set()
    assert "embedding.project.weight" in loaded(network, state)


def test_calibration_begins_fresh():
    network = built(replace(PAIRS, channels=32, fcos=replace(PAIRS.fcos, groups=8), calibration=CalibrationConfig()), 0)
    state = built(replace(PAIRS, channels=32, fcos=replace(PAIRS.fcos, groups=8)), 1).state_dict()
    fresh = set(start_from(network, state, "plain"))
    assert fresh == {name for name in network.state_dict() if name.startswith(("calibration.", "proxies."))}


def test_two_stage_networks_begin_with_another_number_of_classes_and_without_a_track_head():
    network, stills = small_regions(), small_regions(seed=1, num_classes=7).state_dict()
    state = {name: value for name, value in stills.items() if not name.startswith("track_head.")}
    fresh = set(start_from(network, state, "stills"))
    of_classes = {f"{part}.{kind}" for part in ("box_head.class_logits", "box_head.deltas", "mask_head.logits")
                  for kind in ("weight", "bias")}  # fmt: skip
    assert fresh == of_classes | {name for name in network.state_dict() if name.startswith("track_head.")}


def iai(association: AssociationConfig | None = None, num_slots: int = 4) -> IAI:
    """STILLS, with memory before its heads."""
    shared = {f.name: getattr(STILLS, f.name) for f in fields(STILLS)}
    torch.manual_seed(0)
    return IAI(IAIConfig(**shared, num_slots=num_slots, association=association or MEMORY))


MEMORY = AssociationConfig(dim=16, hidden=32, groups=4, radius=1, class_channels=96)    # 16 + 16 + 96 = 128 of C5


def test_stills_leave_memory_and_identities_fresh():
    """C5' is as wide as C5, so the pyramid's lateral convolutions fit (IAI specification 2.2)."""
    network, state = iai(), built(STILLS, 1).state_dict()
    fresh = start_from(network, state, "stills")
    assert fresh and all(name.startswith(("association.", "identity_head.")) for name in fresh)
    assert loaded(network, state) == state.keys()


def test_without_the_classification_projector_one_lateral_convolution_begins_fresh():
    network, state = iai(replace(MEMORY, use_cls_projector=False)), built(STILLS, 1).state_dict()
    fresh = {n for n in start_from(network, state, "stills") if not n.startswith(("association.", "identity_head."))}
    assert fresh == {"fpn.lateral.2.weight"}


def test_more_identities_leave_the_bank_and_the_logits_fresh():
    """From N = 20 to 25 (IAI specification 3.4); the bank's bias is taken."""
    network, state = iai(num_slots=6), iai(num_slots=4).state_dict()
    fresh = start_from(network, state, "fewer")
    assert sorted(fresh) == ["association.bank.conv.weight", "identity_head.logits.bias", "identity_head.logits.weight"]


@pytest.mark.parametrize("change, message", [
    pytest.param({"fpn.": None}, "fpn.", id="a part is missing"),
    pytest.param({"controller.weight": torch.zeros(1)}, r"controller.weight is \(1,\), expected \(169, 16, 3, 3\)",
                 id="another shape"),
])  # fmt: skip
def test_anything_else_is_an_error(change, message):
    network, state = built(PAIRS, 0), built(STILLS, 1).state_dict()
    for name, value in change.items():
        state = {n: value if n == name else t for n, t in state.items() if value is not None or not n.startswith(name)}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"stills: cannot begin this network's training: .*{message}"):
        start_from(network, state, "stills")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_the_network_does_not_have_is_left_out():
    network, state = built(STILLS, 0), built(PAIRS, 1).state_dict()
    assert start_from(network, state, "pairs") == []
    assert torch.equal(network.state_dict()["controller.weight"], state["controller.weight"])


# ---------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A training file that begins with weights of stills, beside network, dataset and those weights."""
    folder = tmp_path_factory.mktemp("start")
    write_youtube_vis(folder / "data", CLIPS, seed=5, num_clips=3)
    save_weights(folder / "stills.safetensors", built(STILLS, 1).state_dict(), "condinst", as_plain(STILLS), ("x",))
    (folder / "net.yaml").write_text(yaml.safe_dump({"network": "crossvis", "model": as_plain(PAIRS)}))
    content = {
        "network": str(folder / "net.yaml"), "start_from": str(folder / "stills.safetensors"), "steps": 3,
        "data": {"annotations": str(folder / "data" / "instances.json"),
                 "image_root": str(folder / "data" / "JPEGImages")},
        "samples_per_step": 2, "checkpoint_every": 1, "log_every": 1, "workers": {"cpus_per_worker": 1},
        "optimizer": {"learning_rate": 0.001, "warmup_steps": 0, "average_decay": 0.5}}  # fmt: skip
    (folder / "train.yaml").write_text(yaml.safe_dump(content))
    return folder / "train.yaml"


def test_weights_that_cannot_begin_the_network_are_refused_before_training(config, tmp_path):
    with pytest.raises(CheckpointError, match="gone.safetensors: no such file of weights"):
        make_job(config, [f"start_from={tmp_path / 'gone.safetensors'}"], tmp_path)
    wide = built(replace(STILLS, channels=32), 1).state_dict()
    save_weights(tmp_path / "wide.safetensors", wide, "condinst", {}, ("x",))
    with pytest.raises(CheckpointError, match="wide.safetensors: cannot begin this network's training"):
        make_job(config, [f"start_from={tmp_path / 'wide.safetensors'}"], tmp_path)


def test_of_the_weights_the_content_counts_not_the_place(config, tmp_path):
    shutil.copy(config.parent / "stills.safetensors", tmp_path / "moved.safetensors")
    save_weights(tmp_path / "other.safetensors", built(STILLS, 2).state_dict(), "condinst", as_plain(STILLS), ("x",))

    def fingerprint(*overrides: str) -> str:
        return make_job(config, overrides, tmp_path).fingerprint

    assert fingerprint(f"start_from={tmp_path / 'moved.safetensors'}") == fingerprint()
    assert len({fingerprint(), fingerprint(f"start_from={tmp_path / 'other.safetensors'}"),
                fingerprint("start_from=null")}) == 3  # fmt: skip


def cut_after(steps: int):
    """Watchers of a process that ends when so many steps are done, and their checkpoint is written."""

    class Cut(Watcher):
        def after_checkpoint(self, steps_done: int) -> None:
            if steps_done == steps:
                raise KeyboardInterrupt

    return lambda worker: [*watchers_of(worker), Cut()]


def test_a_run_alone_is_cut_and_goes_on_as_if_it_had_not_been(config, tmp_path):
    whole = read_weights(train_alone(prepared(config, tmp_path / "whole"), CPU)).state
    job = prepared(config, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        run_worker(job, Alone(CPU), cut_after(2))
    assert (job.out / "checkpoints").exists() and not (job.out / "weights.safetensors").exists()
    resumed = read_weights(train_alone(job, CPU)).state
    assert resumed.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert [row["step"] for row in read_metrics(job.out / "metrics.jsonl")] == [1, 2, 3]
    assert not (job.out / "checkpoints").exists(), "a run with its weights needs no checkpoint"


def prepared(config: Path, out: Path, *overrides: str):
    job = make_job(config, overrides, out)
    job.out.mkdir()
    return job


def test_a_run_begins_with_the_weights(config, tmp_path):
    """With steps too small to move anything, what comes out is what went in; the embedding is the seed's."""
    still = ("optimizer.learning_rate=1e-30", "optimizer.weight_decay=0.0", "steps=1")
    out = read_weights(train_alone(prepared(config, tmp_path / "run", *still), CPU)).state
    begun = read_weights(config.parent / "stills.safetensors").state
    for name, _ in built(STILLS, 0).named_parameters():
        torch.testing.assert_close(out[name], begun[name], rtol=0, atol=1e-20)
    tracks = json.loads((config.parent / "data" / "instances.json").read_text())["annotations"]
    own = built(PAIRS, 0, num_identities=len(tracks)).state_dict()
    torch.testing.assert_close(out["embedding.project.weight"], own["embedding.project.weight"])
