"""Where trials run on a cluster, from what its nodes say of themselves. No Ray."""

import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from search.execution.joined_cluster import must_be_joinable, why_not_joined
from search.execution.nodes import NodeFacts, facts_of_this_node, must_be_usable, plan_resources_on
from search.experiment.manifest import Device
from spaces import InputError, Space

NODE = NodeFacts("a (0123abcd)", 4, 0, "CPU (AVX512)", "the processor has AVX512-BF16", None, True)
OLD = replace(NODE, name="b (4567cdef)", n_cpus=2, device="CPU (AVX2)", bf16_reason=None)
GPU = replace(NODE, name="c", n_gpus=2, device="NVIDIA H200", bf16_reason="the GPU has bf16 instructions")


def with_resources(space: Space, **values: object) -> Space:
    return replace(space, resources=space.resources.model_copy(update=values))


def with_trials(space: Space, n_trials: int) -> Space:
    return replace(space, search=space.search.model_copy(update={"trials": n_trials}))


def test_a_trial_runs_on_each_cpu_of_all_nodes(tiny_space: Space) -> None:
    resource_plan = plan_resources_on([NODE, OLD], with_trials(tiny_space, 40))
    assert resource_plan.trials_at_once == 6
    assert resource_plan.resources_per_trial == {"cpu": 1}
    assert resource_plan.description == "2 nodes, 6 cores (CPU (AVX2) and CPU (AVX512))"
    assert resource_plan.slots == "6 cores"


def test_no_more_places_than_trials_and_as_many_as_the_space_asks_for(tiny_space: Space) -> None:
    assert plan_resources_on([NODE, NODE], with_trials(tiny_space, 3)).trials_at_once == 3
    asked = with_resources(with_trials(tiny_space, 40), trials_at_once=12)
    assert plan_resources_on([NODE, NODE], asked).trials_at_once == 12, "an autoscaler adds nodes for what waits"


def test_bf16_only_where_every_node_has_it(tiny_space: Space) -> None:
    assert plan_resources_on([NODE, NODE], tiny_space).compute.precision == "bf16"
    mixed = plan_resources_on([NODE, OLD], tiny_space)
    assert mixed.compute.precision == "fp32"
    assert mixed.precision_reason == "node b (4567cdef): no bf16 instructions"


def test_a_precision_that_is_asked_for_or_was_begun_with_is_kept(tiny_space: Space) -> None:
    wanted = replace(tiny_space, training=tiny_space.training.model_copy(update={"precision": "bf16"}))
    assert plan_resources_on([OLD], wanted).compute.precision == "bf16"
    began = Device(device="cpu", name="CPU", trials_at_once=2, precision="fp32")
    assert plan_resources_on([NODE], tiny_space, began).compute.precision == "fp32"


def test_gpus_are_used_where_there_are_some_unless_the_space_says_cpu(tiny_space: Space) -> None:
    space = with_trials(with_resources(tiny_space, trials_per_gpu=3), 40)
    resource_plan = plan_resources_on([NODE, GPU], space)
    assert resource_plan.compute.device_type == "cuda"
    assert resource_plan.trials_at_once == 6
    assert resource_plan.resources_per_trial["gpu"] == pytest.approx(1 / 3, abs=1e-4)
    assert resource_plan.description == "1 node, 2 GPUs (NVIDIA H200)"
    assert plan_resources_on([NODE, GPU], with_resources(space, device="cpu")).n_gpus == 0
    with pytest.raises(InputError, match="no node of the cluster has a GPU"):
        plan_resources_on([NODE], with_resources(space, device="cuda"))


def test_nodes_that_cannot_train_or_see_no_results_are_named_all_at_once() -> None:
    bare = replace(NODE, name="bare", lacks="No module named 'torch'")
    blind = replace(NODE, name="blind", sees_results=False)
    with pytest.raises(InputError) as raised:
        must_be_usable([NODE, bare, blind], Path("/data/results"))
    assert [line.partition(".")[0] for line in raised.value.lines] == [
        "node bare: cannot train (No module named 'torch')",
        "node blind: does not see /data/results",
    ]
    with pytest.raises(InputError, match="without a free CPU"):
        must_be_usable([], Path("/data/results"))
    must_be_usable([NODE, OLD], Path("/data/results"))


def test_a_node_says_what_it_is(tmp_path: Path) -> None:
    marker = tmp_path / "seen"
    marker.touch()
    facts = facts_of_this_node("0123456789", 2, 0, str(marker))
    assert (facts.n_cpus, facts.n_gpus, facts.lacks, facts.sees_results) == (2, 0, None, True)
    assert facts.name.endswith(" (01234567)")
    assert facts.device.startswith("CPU (")
    assert not facts_of_this_node("0123456789", 2, 0, str(tmp_path / "elsewhere")).sees_results


@pytest.mark.parametrize(
    "address, why",
    [
        ("ray://head:10001", "cannot be run from outside"),
        ("http://head:8265", "cannot be run from outside"),
        ("head", "must be `auto` or HOST:PORT"),
        (":6379", "must be `auto` or HOST:PORT"),
        ("head:port", "must be `auto` or HOST:PORT"),
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


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\0\0"])
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


def test_what_ray_says_of_a_failed_join_becomes_one_line() -> None:
    mismatch = RuntimeError(
        "Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.12.1\n"
        "This process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.9\n"
    )
    line = why_not_joined("auto", mismatch)
    assert "that cluster has Ray: 2.50.0, Python: 3.12.1 and this command Ray: 2.60.0, Python: 3.11.9" in line
    outside = ConnectionError("Failed to connect to Ray cluster at 10.0.0.5:6379")
    outside.__cause__ = RuntimeError("No node info found matching attributes: '' when trying to resolve node")
    assert "this machine is not a node of that cluster" in why_not_joined("10.0.0.5:6379", outside)
    for error in (mismatch, outside, ValueError(""), ConnectionError("a\nb")):
        assert "\n" not in why_not_joined("auto", error)
