"""Where trials run, on this machine and on a cluster, from what its nodes say of themselves. No Ray."""

import types
from dataclasses import replace
from typing import Any

import pytest
import torch

from search.analysis.plan_cost import plan_cost
from search.execution import plan
from search.execution.gpu_sharing import MakeTraining, Sharing
from search.execution.joined_cluster import NodeFacts
from search.execution.plan import plan_resources_on
from search.experiment.manifest import Device
from search.terminal.plan_text import plan_text
from spaces import Dataset, Hyperparameters, InputError, Space
from trainable.compute import Compute
from trainable.data.datasets import prepare_training_data
from trainable.optimizer import EagerSGD

NODE = NodeFacts("a (0123abcd)", 4, 0, "CPU (AVX512)", "the processor has AVX512-BF16")
OLD = replace(NODE, name="b (4567cdef)", n_cpus=2, device="CPU (AVX2)", bf16_reason=None)
GPU = replace(NODE, name="c", n_gpus=2, device="NVIDIA H200", bf16_reason="the GPU has bf16 instructions")


def changed(space: Space, n_trials: int = 40, precision: str = "auto", **resources: Any) -> Space:
    return replace(
        space,
        search=space.search.model_copy(update={"trials": n_trials}),
        training=space.training.model_copy(update={"precision": precision}),
        resources=space.resources.model_copy(update=resources),
    )


def test_auto_places_as_many_trials_on_each_gpu_as_paid_off(
    tiny_digits: Dataset, tiny_space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(n_trials: int, make_training: MakeTraining, device: str) -> Sharing:
        assert device == "cuda"
        return Sharing(n_trials, {1: 1000.0, 2: 1800.0, 4: 2500.0, 8: 2550.0}[n_trials])

    monkeypatch.setattr(plan, "measure_sharing", measured)
    monkeypatch.setattr(plan, "choose_compute", lambda *_: (Compute("cuda", resident=True), "made up"))
    monkeypatch.setattr(plan, "describe_device", lambda _: "GPU")
    monkeypatch.setattr(plan, "count_cores", lambda: 16)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    data, space = prepare_training_data(tiny_digits), changed(tiny_space)

    resource_plan = plan.plan_resources(space, data)
    assert resource_plan.trials_at_once == 2 * 4
    assert resource_plan.resources_per_trial["gpu"] == 0.25
    assert plan.seconds_per_epoch(space, data, resource_plan) == pytest.approx(
        4 * (len(data.train) + len(data.validation) / 4) / 2500
    )
    n_at_once, n_bytes = resource_plan.trials_at_once, plan.checkpoint_bytes(data)
    cost = plan_cost(space, n_at_once, resource_plan.trials_side_by_side, 1.0, n_bytes)
    together = [(sharing.n_trials, sharing.images_per_s) for sharing in resource_plan.measured]
    text = plan_text(space, data, resource_plan.for_manifest, resource_plan.slots, cost, together)
    assert "8 trials at once" in text
    assert "4 trials on one GPU: 2,500 images/s together" in text
    assert "on 2 GPUs" in text
    assert plan.plan_resources(changed(space, trials_per_gpu=3), data).trials_at_once == 6


def test_timing_trains_the_baseline_s_steps_and_scales_their_median_to_an_epoch(
    tiny_digits: Dataset, tiny_space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = []
    step = EagerSGD.step
    monkeypatch.setattr(EagerSGD, "step", lambda self: (stepped.append(1), step(self))[1])
    monkeypatch.setattr(plan, "STEPS_PER_WAIT", 2)
    data = prepare_training_data(tiny_digits)
    # Not fused: nothing has to be compiled.
    compute = Compute(fused=False)
    train = plan.baseline_training(data.decoded.folder, tiny_digits, Hyperparameters(batch_size=8), compute)
    assert train() == 8 * len(stepped) == 8 * 2

    ends_s = iter([100.0, 101.0, 103.0, 105.0, 107.0, 108.0])
    monkeypatch.setattr(plan, "_evaluation_s", lambda run, sample: 0.0)
    monkeypatch.setattr(plan, "time", types.SimpleNamespace(perf_counter=lambda: next(ends_s)))
    resource_plan = plan.ResourcePlan(compute, "made up", "CPU", 2, 0, 2)
    # A step of the median takes two seconds, whatever the first one took.
    expected_s = 2.0 * len(data.train) / tiny_space.baseline.batch_size
    assert plan.seconds_per_epoch(tiny_space, data, resource_plan) == pytest.approx(expected_s)
    assert not list(ends_s)


def test_a_trial_runs_on_each_cpu_of_all_nodes_or_as_the_space_asks(tiny_space: Space) -> None:
    resource_plan = plan_resources_on([NODE, OLD], changed(tiny_space))
    assert resource_plan.trials_at_once == 6
    assert resource_plan.resources_per_trial == {"cpu": 1}
    assert resource_plan.description == "2 nodes, 6 cores (CPU (AVX2) and CPU (AVX512))"
    assert resource_plan.slots == "6 cores"
    assert plan_resources_on([NODE, NODE], changed(tiny_space, 3)).trials_at_once == 3
    asked = changed(tiny_space, trials_at_once=12)
    assert plan_resources_on([NODE, NODE], asked).trials_at_once == 12, "an autoscaler adds nodes for what waits"


def test_bf16_where_every_node_has_it_the_space_asks_for_it_or_the_search_began_with_it(tiny_space: Space) -> None:
    assert plan_resources_on([NODE, NODE], tiny_space).compute.precision == "bf16"
    mixed = plan_resources_on([NODE, OLD], tiny_space)
    assert (mixed.compute.precision, mixed.precision_reason) == ("fp32", "node b (4567cdef): no bf16 instructions")
    assert plan_resources_on([OLD], changed(tiny_space, precision="bf16")).compute.precision == "bf16"
    began = Device(device="cpu", name="CPU", trials_at_once=2, precision="fp32")
    assert plan_resources_on([NODE], tiny_space, began).compute.precision == "fp32"


def test_gpus_are_used_where_there_are_some_unless_the_space_says_cpu(tiny_space: Space) -> None:
    space = changed(tiny_space, trials_per_gpu=3)
    resource_plan = plan_resources_on([NODE, GPU], space)
    assert resource_plan.compute.device_type == "cuda"
    assert resource_plan.trials_at_once == 6
    assert resource_plan.resources_per_trial["gpu"] == pytest.approx(1 / 3, abs=1e-4)
    assert resource_plan.description == "1 node, 2 GPUs (NVIDIA H200)"
    assert plan_resources_on([NODE, GPU], changed(space, device="cpu")).n_gpus == 0
    with pytest.raises(InputError, match="no node of the cluster has a GPU"):
        plan_resources_on([NODE], changed(space, device="cuda"))
