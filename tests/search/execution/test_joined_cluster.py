"""Which clusters can be joined, and when one that was joined counts as lost, on a pretended Ray."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from search.execution import joined_cluster
from search.execution.joined_cluster import (
    SILENCE_S,
    HeadWatch,
    NodeFacts,
    facts_of_this_node,
    must_be_joinable,
    must_be_usable,
    why_not_joined,
)
from spaces import InputError
from tests.support.processes import wait_until

NODE = NodeFacts("a (0123abcd)", 4, 0, "CPU (AVX512)", "the processor has AVX512-BF16")


class PretendedRay:
    """Answers with a list of nodes, or not at all."""

    def __init__(self) -> None:
        self.answers = True
        self.n_asked = 0

    def nodes(self) -> list[dict[str, Any]]:
        self.n_asked += 1
        if not self.answers:
            raise ConnectionError("no GCS")
        return []


@pytest.fixture
def raylet() -> Iterator[subprocess.Popen[bytes]]:
    socket = "--raylet_socket_name=/tmp/pretended.sock"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)", socket]) as process:
        wait_until(lambda: joined_cluster._process_with_argument(socket) is not None)
        yield process
        process.kill()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> PretendedRay:
    pretended, module = PretendedRay(), ModuleType("ray")
    vars(module).update(nodes=pretended.nodes)
    monkeypatch.setitem(sys.modules, "ray", module)
    node = type("Node", (), {"raylet_socket_name": "/tmp/pretended.sock"})()
    monkeypatch.setattr(joined_cluster, "node_of_this_process", lambda: node)
    monkeypatch.setattr(joined_cluster, "ASK_EVERY_S", 0.01)
    return pretended


def wait_for_answers(ray: PretendedRay) -> None:
    wanted = ray.n_asked + 3
    wait_until(lambda: ray.n_asked >= wanted)


def test_a_cluster_is_lost_when_its_head_is_silent_for_long_or_this_machines_raylet_has_ended(
    ray: PretendedRay, raylet: subprocess.Popen[bytes]
) -> None:
    watch, n_tolerated = HeadWatch(), int(SILENCE_S) - 2
    for _ in range(2):
        wait_for_answers(ray)
        assert watch.what_is_gone() is None
        ray.answers = False
        wait_for_answers(ray)
        assert [watch.what_is_gone() for _ in range(n_tolerated)] == [None] * n_tolerated
        ray.answers = True
    wait_for_answers(ray)
    ray.answers = False
    wait_for_answers(ray)
    assert [watch.what_is_gone() for _ in range(60)][-1] == f"its head has not answered for {SILENCE_S:.0f} s"
    raylet.kill()
    # It has ended, and nobody has fetched its exit code yet.
    wait_until(lambda: "raylet" in str(watch.what_is_gone()))
    raylet.wait()
    assert "raylet" in str(watch.what_is_gone())
    watch.end()


def test_nodes_on_which_no_trial_can_run_are_named_all_at_once() -> None:
    bare = replace(NODE, name="bare", problem="cannot train (No module named 'torch').")
    blind = replace(NODE, name="blind", problem="does not see /data/results.")
    with pytest.raises(InputError) as raised:
        must_be_usable((NODE, bare, blind))
    assert raised.value.lines == (
        "node bare: cannot train (No module named 'torch').",
        "node blind: does not see /data/results.",
    )
    with pytest.raises(InputError, match="without a free CPU"):
        must_be_usable(())
    must_be_usable((NODE,))


def test_a_node_says_what_it_is_and_what_it_lacks(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "seen"
    marker.touch()
    facts = facts_of_this_node("0123456789", 2, 0, str(marker))
    assert (facts.n_cpus, facts.n_gpus, facts.problem) == (2, 0, None)
    assert facts.name.endswith(" (01234567)")
    assert facts.device.startswith("CPU (")
    blind = facts_of_this_node("0123456789", 2, 0, str(tmp_path / "elsewhere"))
    assert str(blind.problem).startswith(f"does not see {tmp_path}. --results must be a folder")
    monkeypatch.setitem(sys.modules, "trainable.fit_evaluate", None)
    assert str(facts_of_this_node("0123456789", 2, 0, None).problem).startswith("cannot train (")


@pytest.mark.parametrize(
    "address, why",
    [
        ("ray://head:10001", "cannot be run from outside"),
        ("http://head:8265", "cannot be run from outside"),
        ("head", "must be `auto` or HOST:PORT"),
        (":6379", "must be `auto` or HOST:PORT"),
        ("head:99999", "must be `auto` or HOST:PORT"),
        ("127.0.0.1:1", "nothing answers there"),
        ("no-such-host.invalid:6379", "nothing answers there"),
    ],
)
def test_an_address_that_cannot_be_right_is_refused_before_ray_is_asked(address: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as raised:
        must_be_joinable(address)
    (line,) = raised.value.lines
    assert address in line


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0"])
def test_a_server_of_another_kind_is_refused_before_ray_is_asked(greeting: bytes) -> None:
    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(100)
            connection.sendall(greeting)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        with pytest.raises(InputError, match="is not the head of a Ray cluster"):
            must_be_joinable(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize(
    ("error", "cause", "reason"),
    [
        (
            "Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.12.1\n"
            "This process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.9\n",
            None,
            "that cluster has Ray: 2.50.0, Python: 3.12.1 and this command Ray: 2.60.0, Python: 3.11.9. Use the same",
        ),
        (
            "Failed to connect to Ray cluster at 10.0.0.5:6379",
            "No node info found matching attributes: '' when trying to resolve node",
            "this machine is not a node of that cluster",
        ),
        ("Could not find any running Ray instance", None, "no Ray cluster runs on this machine"),
        ("Invalid auth token", None, "that cluster refuses us without its token"),
        ("", None, "the cluster there cannot be joined (RuntimeError)."),
        ("a\nb", None, "the cluster there cannot be joined (a)."),
    ],
)
def test_what_ray_says_of_a_failed_join_becomes_one_line(error: str, cause: str | None, reason: str) -> None:
    raised = RuntimeError(error)
    raised.__cause__ = RuntimeError(cause) if cause else None
    assert why_not_joined(raised).startswith(reason)
    assert "\n" not in why_not_joined(raised)
