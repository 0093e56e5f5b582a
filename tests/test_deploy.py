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


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def assert_fields(content: dict[str, Any], fields: dict[str, type]) -> None:
    assert {name: type(value) for name, value in content.items()} == fields


def test_ray_s_launcher_accepts_the_cluster_file_and_every_process_wants_a_token() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read("ray-cluster.yaml"))
    validate_config(config)
    assert (config["provider"]["type"], config["max_workers"]) == ("local", 2)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_the_kuberay_job_has_kuberay_s_fields_and_all_pods_mount_the_results_at_one_path() -> None:
    import ray

    job = read("kuberay-job.yaml")
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert_fields(job["spec"], JOB_FIELDS)
    cluster = job["spec"]["rayClusterSpec"]
    assert_fields(cluster, CLUSTER_FIELDS)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"].split(".")[0] == ray.__version__.split(".")[0]
    assert_fields(cluster["headGroupSpec"], GROUP_FIELDS)
    for group in cluster["workerGroupSpecs"]:
        assert_fields(group, WORKER_FIELDS)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay wants strings"
        (container,), (volume,) = (group["template"]["spec"][name] for name in ("containers", "volumes"))
        (mount,) = container["volumeMounts"]
        assert mount["name"] == volume["name"]
        assert f"--results {mount['mountPath']}" in job["spec"]["entrypoint"]


def test_the_job_s_command_is_one_that_search_run_understands(monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(read("kuberay-job.yaml")["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "search.run"]
    seen: dict[str, Any] = {}
    monkeypatch.setattr(run_command, "_run", lambda options: seen.update(vars(options)) or 0)
    assert run_command.main(words[3:]) == 0
    assert (seen["address"], str(seen["results"])) == ("auto", "/mnt/results")
    assert load_space(seen["space"], seen["set"]).dataset.train_limit == 4000
