"""The files of configs/clusters: by Ray's own schema, by KubeRay's rules, and by each other.

Source of what is expected: ray/autoscaler/ray-schema.json; the reference of KubeRay's ray.io/v1 resources.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml

from pipelines.cli import _parser
from pipelines.config import apply_overrides, build, load_yaml
from pipelines.networks import read_network
from trainers.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "configs" / "clusters"
GUIDE = (ROOT / "docs" / "cluster.md").read_text()


def loaded(name: str) -> dict:
    return yaml.safe_load((CLUSTERS / name).read_text())


def ray_clusters() -> dict[str, dict]:
    """The specification of every Kubernetes cluster."""
    return {"kuberay_cluster.yaml": loaded("kuberay_cluster.yaml")["spec"],
            "kuberay_train.yaml": loaded("kuberay_train.yaml")["spec"]["rayClusterSpec"]}  # fmt: skip


def ray_pin() -> str:
    return re.search(r"^ray(?:\[.*\])?==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)[1]


# ------------------------------------------------------------------------------------------------------ Ray's launcher


def test_the_launcher_takes_the_file():
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(loaded("aws.yaml"), schema)


def test_nodes_of_the_launcher_s_file():
    config = loaded("aws.yaml")
    types = config["available_node_types"]
    assert config["head_node_type"] in types and types["head"]["resources"]["CPU"] == 0
    workers = [one for name, one in types.items() if name != config["head_node_type"]]
    assert sum(one["max_workers"] for one in workers) <= config["max_workers"]
    assert all(one["min_workers"] <= one["max_workers"] for one in workers)
    assert "--head" in config["head_start_ray_commands"][-1]
    port = re.search(r"--port=(\d+)", config["head_start_ray_commands"][-1])[1]
    assert f"--address=$RAY_HEAD_IP:{port}" in config["worker_start_ray_commands"][-1]


# -------------------------------------------------------------------------------------------------------------- KubeRay


@pytest.mark.parametrize("name, kind", [("kuberay_cluster.yaml", "RayCluster"), ("kuberay_train.yaml", "RayJob")])
def test_what_kubernetes_is_told(name, kind):
    content = loaded(name)
    assert set(content) == {"apiVersion", "kind", "metadata", "spec"}
    assert (content["apiVersion"], content["kind"]) == ("ray.io/v1", kind)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?", content["metadata"]["name"]), "part of names of services"


@pytest.mark.parametrize("spec", ray_clusters().values(), ids=ray_clusters().keys())
def test_a_cluster(spec):
    assert set(spec) == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert spec["authOptions"] == {"mode": "token"}
    head, (group,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert set(head) == {"rayStartParams", "template"}
    assert head["rayStartParams"]["num-cpus"] == "0", "no worker beside the driver: the head must not run out of memory"
    assert set(group) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for one in (head, group):
        assert all(isinstance(value, str) for value in one["rayStartParams"].values()), "KubeRay takes text alone"
        check_pod(one["template"]["spec"])
    ports = {port["name"]: port["containerPort"] for port in head["template"]["spec"]["containers"][0]["ports"]}
    assert ports == {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}


def check_pod(spec: dict) -> None:
    (container,) = spec["containers"]
    assert set(container) <= {"name", "image", "ports", "resources", "volumeMounts"}
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert requests == limits, "else Ray counts CPUs that the pod does not get"
    assert all(isinstance(value, str) for value in limits.values())
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert set(volumes) == {mount["name"] for mount in container["volumeMounts"]}
    assert volumes["shared"]["persistentVolumeClaim"] == {"claimName": "maskstream-shared"}
    assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]


def test_the_job():
    spec = loaded("kuberay_train.yaml")["spec"]
    known = {"entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
             "rayClusterSpec"}  # fmt: skip
    assert set(spec) == known and spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode")
    assert "--begin-or-resume" in spec["entrypoint"], "a second try must not refuse the folder of the first"


# --------------------------------------------------------------------------------------------------------- all together


def images() -> set[str]:
    found = {loaded("aws.yaml")["docker"]["image"]}
    for spec in ray_clusters().values():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            found |= {container["image"] for container in group["template"]["spec"]["containers"]}
    return found


def test_one_image_and_one_version_of_ray():
    (image,) = images()
    dockerfile = (CLUSTERS / "Dockerfile").read_text()
    assert f"-t {image} " in dockerfile
    assert re.search(r'version="(.*?)"', (ROOT / "setup.py").read_text())[1] == image.rpartition(":")[2]
    assert re.search(r"FROM rayproject/ray:([\d.]+)-py3", dockerfile)[1] == ray_pin()
    assert {spec["rayVersion"] for spec in ray_clusters().values()} == {ray_pin()}


def test_the_image_gets_all_that_is_installed():
    copied = re.findall(r"^COPY --chown=ray:users (.*) \S+$", (CLUSTERS / "Dockerfile").read_text(), re.M)
    names = [name for line in copied for name in line.split()]
    assert all((ROOT / name).exists() for name in names)
    assert {"models", "operators", "pipelines", "trainers", "configs", "setup.py", "constraints.txt"} <= set(names)


def submitted() -> list[str]:
    """Every command that is to run on a cluster: of the guide, and of the Kubernetes job."""
    of_guide = re.findall(r"^ray job submit .* --working-dir \. -- (maskstream train .*)$", GUIDE, re.M)
    return [*of_guide, loaded("kuberay_train.yaml")["spec"]["entrypoint"]]


@pytest.mark.parametrize("command", submitted())
def test_what_is_submitted_can_be_read(command):
    """By the command line's own parser, with settings that exist."""
    args = _parser().parse_args(shlex.split(command)[1:])
    config = build(TrainConfig, apply_overrides(load_yaml(ROOT / args.config), args.overrides, "line"), "line")
    read_network(config.network)
    assert args.out.startswith("/"), "on storage that all machines see"
    assert all(str(path).startswith(("/", "$PWD/")) for path in (config.data.annotations, config.data.image_root))


def test_the_guide_has_a_line_for_every_way():
    assert len(submitted()) == 4
    assert all(f"configs/clusters/{path.name}" in GUIDE for path in CLUSTERS.iterdir())


def test_the_full_size_run_fits_every_cluster():
    config = build(TrainConfig, load_yaml(ROOT / "configs" / "training" / "crossvis_r50_ytvis19.yaml"), "crossvis")
    types = loaded("aws.yaml")["available_node_types"]
    machines = [(types["gpu"]["min_workers"], types["gpu"]["resources"]["CPU"], types["gpu"]["resources"]["GPU"])]
    for spec in ray_clusters().values():
        (group,) = spec["workerGroupSpecs"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        machines.append((group["minReplicas"], int(limits["cpu"]), int(limits["nvidia.com/gpu"])))
    for count, cpus, gpus in machines:
        assert config.workers.num_workers <= count * min(gpus, cpus // config.workers.cpus_per_worker)
