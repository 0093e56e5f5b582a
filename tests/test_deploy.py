"""The examples under `deploy/`: valid for what reads them, and made of options that the commands have."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from search import run as run_command
from spaces import load_space

DEPLOY = Path(__file__).parents[1] / "deploy"

# KubeRay's own names, from ray-operator/apis/ray/v1 (rayjob_types.go, raycluster_types.go).
JOB_FIELDS = {
    "entrypoint": str,
    "submissionMode": str,
    "backoffLimit": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": dict,
}
CLUSTER_FIELDS = {"rayVersion": str, "authOptions": dict, "headGroupSpec": dict, "workerGroupSpecs": list}
GROUP_FIELDS = {"rayStartParams": dict, "template": dict}
WORKER_FIELDS = {**GROUP_FIELDS, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}
CONTAINER_FIELDS = {"name": str, "image": str, "resources": dict, "volumeMounts": list}


def read(name: str) -> dict[str, Any]:
    content = yaml.safe_load((DEPLOY / name).read_text())
    assert isinstance(content, dict)
    return content


def assert_fields(content: dict[str, Any], fields: dict[str, type]) -> None:
    assert set(content) == set(fields)
    for name, kind in fields.items():
        assert type(content[name]) is kind, f"{name} is {content[name]!r}"


def test_ray_s_launcher_accepts_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read("ray-cluster.yaml"))
    validate_config(config)
    assert config["provider"]["type"] == "local"
    assert config["max_workers"] == 2


def test_every_process_of_the_cluster_file_wants_a_token() -> None:
    config = read("ray-cluster.yaml")
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_the_kuberay_job_has_the_fields_that_kuberay_has() -> None:
    job = read("kuberay-job.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    assert_fields(job["spec"], JOB_FIELDS)
    assert job["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
    cluster = job["spec"]["rayClusterSpec"]
    assert_fields(cluster, CLUSTER_FIELDS)
    assert cluster["authOptions"] == {"mode": "token"}
    assert_fields(cluster["headGroupSpec"], GROUP_FIELDS)
    for group in cluster["workerGroupSpecs"]:
        assert_fields(group, WORKER_FIELDS)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_all_pods_of_the_kuberay_job_mount_the_results_at_one_path() -> None:
    spec = read("kuberay-job.yaml")["spec"]
    cluster = spec["rayClusterSpec"]
    paths = set()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay wants strings"
        (container,) = group["template"]["spec"]["containers"]
        assert_fields(container, CONTAINER_FIELDS)
        assert container["resources"]["requests"] == container["resources"]["limits"]
        (volume,) = group["template"]["spec"]["volumes"]
        (mount,) = container["volumeMounts"]
        assert mount["name"] == volume["name"]
        paths.add(mount["mountPath"])
    assert len(paths) == 1
    assert f"--results {paths.pop()}" in spec["entrypoint"]


def test_ray_s_version_in_the_kuberay_job_is_one_that_the_project_takes() -> None:
    import ray

    version = read("kuberay-job.yaml")["spec"]["rayClusterSpec"]["rayVersion"]
    assert version.split(".")[0] == ray.__version__.split(".")[0]


def test_the_job_s_command_is_one_that_search_run_understands(monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(read("kuberay-job.yaml")["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "search.run"]
    seen = {}

    def take(options: Any) -> int:
        seen.update(vars(options))
        return 0

    monkeypatch.setattr(run_command, "_run", take)
    assert run_command.main(words[3:]) == 0
    assert (seen["address"], str(seen["results"])) == ("auto", "/mnt/results")
    assert load_space(seen["space"], seen["set"]).dataset.train_limit == 4000
