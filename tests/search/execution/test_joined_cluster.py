"""When a cluster that was joined counts as lost, on a pretended Ray."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from search.execution import joined_cluster
from search.execution.joined_cluster import SILENCE_S, _NodesWatch, has_ended, process_with_argument
from tests.support.processes import wait_until

OWN = "own-node"


class PretendedRay:
    """Answers with a list of nodes, or not at all."""

    def __init__(self) -> None:
        self.alive = {OWN: True, "other": True}
        self.answers = True
        self.n_asked = 0

    def nodes(self) -> list[dict[str, Any]]:
        self.n_asked += 1
        if not self.answers:
            raise ConnectionError("no GCS")
        return [{"NodeID": name, "Alive": alive} for name, alive in self.alive.items()]


@pytest.fixture
def raylet() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", "import time; time.sleep(100)", "--raylet_socket_name=/tmp/pretended.sock"]
    with subprocess.Popen(command) as process:
        wait_until(lambda: process_with_argument(command[-1]) is not None)
        yield process
        process.kill()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, raylet: subprocess.Popen[bytes]) -> PretendedRay:
    pretended = PretendedRay()
    modules = {name: ModuleType(name) for name in ("ray", "ray._private", "ray._private.worker")}
    context = type("Context", (), {"get_node_id": lambda self: OWN})
    vars(modules["ray"]).update(nodes=pretended.nodes, get_runtime_context=context)
    node = type("Node", (), {"raylet_socket_name": "/tmp/pretended.sock"})()
    vars(modules["ray._private.worker"])["_global_node"] = node
    vars(modules["ray._private"])["worker"] = modules["ray._private.worker"]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(joined_cluster, "LIST_EVERY_S", 0.01)
    return pretended


@pytest.fixture
def watch(ray: PretendedRay) -> Iterator[_NodesWatch]:
    made = _NodesWatch()
    yield made
    made.end()


def wait_for_lists(ray: PretendedRay, n: int = 3) -> None:
    wanted = ray.n_asked + n
    wait_until(lambda: ray.n_asked >= wanted)


def test_the_loss_of_another_node_is_not_the_loss_of_the_cluster(ray: PretendedRay, watch: _NodesWatch) -> None:
    ray.alive["other"] = False
    wait_for_lists(ray)
    assert watch.what_is_gone(1.0) is None


def test_a_cluster_is_lost_when_this_machine_is_no_longer_one_of_its_nodes(
    ray: PretendedRay, watch: _NodesWatch
) -> None:
    ray.alive[OWN] = False
    wait_for_lists(ray)
    assert watch.what_is_gone(1.0) == "this machine is no longer one of its nodes"


def test_a_head_may_be_silent_for_a_while_and_not_for_longer(ray: PretendedRay, watch: _NodesWatch) -> None:
    wait_for_lists(ray)
    ray.answers = False
    wait_for_lists(ray)
    assert [watch.what_is_gone(1.0) for _ in range(int(SILENCE_S) - 2)] == [None] * (int(SILENCE_S) - 2)
    ray.answers = True
    wait_for_lists(ray)
    assert watch.what_is_gone(1.0) is None
    ray.answers = False
    wait_for_lists(ray)
    answers = [watch.what_is_gone(1.0) for _ in range(int(SILENCE_S) + 1)]
    assert answers[-1] == f"its head has not answered for {SILENCE_S:.0f} s"


def test_a_cluster_is_lost_when_this_machines_raylet_is_killed(
    ray: PretendedRay, watch: _NodesWatch, raylet: subprocess.Popen[bytes]
) -> None:
    raylet.kill()
    # It has ended, and nobody has fetched its exit code.
    wait_until(lambda: has_ended(Path(f"/proc/{raylet.pid}")))
    gone = watch.what_is_gone(1.0)
    assert gone is not None
    assert "raylet" in gone
    raylet.wait()
    assert watch.what_is_gone(1.0) == gone


def test_a_process_that_cannot_be_seen_from_here_is_not_found() -> None:
    assert process_with_argument("--no-process-has-this-argument") is None
