"""The machines of a Ray cluster: their abilities, and where trials run."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spaces.counted import counted
from spaces.errors import InputError, first_line
from spaces.schema import Precision, Space

if TYPE_CHECKING:
    from search.execution.plan import ResourcePlan
    from search.experiment.manifest import Device


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Report of one machine of a cluster.

    Attributes:
        name: host name and the start of Ray's id, because several nodes may share a host name.
        n_cpus, n_gpus: resources that Ray may assign there.
        device: name of the processor or GPU.
        bf16_reason: why it computes in bf16; None where bf16 is not fast.
        lacks: requirement of trials that is missing, in words; None where nothing is missing.
        sees_results: whether the results folder is visible there.
    """

    name: str
    n_cpus: int
    n_gpus: int
    device: str
    bf16_reason: str | None
    lacks: str | None
    sees_results: bool


def facts_of_this_node(name: str, n_cpus: int, n_gpus: int, marker: str | None) -> NodeFacts:
    """Report on the machine that this runs on; reports missing requirements instead of raising.

    Args:
        name: Ray's id of the node.
        n_cpus, n_gpus: resources that Ray may assign here.
        marker: file that all machines must see; None skips the check.
    """
    name = f"{platform.node()} ({name[:8]})"
    sees = marker is None or Path(marker).is_file()
    try:
        import trainable.ray_trainable  # noqa: F401 -- the first imports of a trial
        from trainable.compute import choose_precision, describe_device
        from trainable.fit_evaluate import FitEvaluate  # noqa: F401 -- its later imports
    except ImportError as error:
        return NodeFacts(name, n_cpus, n_gpus, "", None, str(error), sees)
    try:
        device = "cuda" if n_gpus else "cpu"
        precision, reason = choose_precision("auto", device)
        described = describe_device(device)
    except (RuntimeError, AssertionError) as error:  # Ray counts a GPU that torch cannot use
        return NodeFacts(name, n_cpus, n_gpus, "", None, first_line(error), sees)
    return NodeFacts(name, n_cpus, n_gpus, described, reason if precision == "bf16" else None, None, sees)


def must_be_usable(nodes: Sequence[NodeFacts], results: Path | None) -> None:
    """Check that every machine can train and sees the results folder.

    Args:
        nodes: of the cluster.
        results: folder that all must see; None where results are kept at a URL.

    Raises:
        InputError: names each machine that is not usable.
    """
    lines = [
        f"node {node.name}: cannot train ({node.lacks}). Every node needs this project's requirements: install "
        f"them there, or use an image that has them."
        for node in nodes
        if node.lacks
    ]
    lines += [
        f"node {node.name}: does not see {results}. --results must be a folder that all nodes mount at the same "
        f"path, or a URL such as s3://BUCKET/results."
        for node in nodes
        if not node.sees_results
    ]
    if lines:
        raise InputError(lines)
    if not any(node.n_cpus for node in nodes):
        raise InputError("--address names a cluster without a free CPU for a trial. Add nodes, or give them CPUs.")


def plan_resources_on(nodes: Sequence[NodeFacts], space: Space, began: Device | None = None) -> ResourcePlan:
    """Plan where trials run on a cluster: one trial per CPU that Ray assigns, or `trials_per_gpu` per GPU.

    Args:
        nodes: of the cluster; nodes that join later are used, but not counted.
        space: what is searched.
        began: device of the first session, for a resumed search. Its precision is kept, so that trials compare.

    Raises:
        InputError: CUDA is requested, and no node has a GPU.
    """
    from search.execution.plan import ResourcePlan
    from trainable.compute import Compute

    wanted = space.resources.device
    n_gpus = sum(node.n_gpus for node in nodes)
    if wanted == "cuda" and not n_gpus:
        raise InputError("--device is cuda, but no node of the cluster has a GPU. Use --device cpu or auto.")
    on_gpus = n_gpus > 0 and wanted != "cpu"
    used = [node for node in nodes if (node.n_gpus if on_gpus else node.n_cpus)]
    precision, reason = common_precision(used, space, began)
    n_cpus = sum(node.n_cpus for node in used)
    devices = " and ".join(sorted({node.device for node in used}))
    if on_gpus:
        share = 1 if space.resources.trials_per_gpu == "auto" else space.resources.trials_per_gpu
        at_once = min(n_gpus * share, space.search.most_trials)
        compute = Compute("cuda", precision, resident=True)
        description = f"{_count(used)}, {counted(n_gpus, 'GPU')} ({devices})"
        return ResourcePlan(compute, reason, description, n_cpus, n_gpus, at_once)
    most = n_cpus if space.resources.trials_at_once == "auto" else space.resources.trials_at_once
    description = f"{_count(used)}, {counted(n_cpus, 'core')} ({devices})"
    return ResourcePlan(Compute("cpu", precision), reason, description, n_cpus, 0, min(most, space.search.most_trials))


def common_precision(nodes: Sequence[NodeFacts], space: Space, began: Device | None) -> tuple[Precision, str]:
    """The precision of all trials and its reason: `auto` is bf16 only where every node supports it."""
    if began:
        return began.precision, "as the search began"
    if space.training.precision != "auto":
        return space.training.precision, "as the space says"
    without = [node.name for node in nodes if node.bf16_reason is None]
    if without:
        rest = "" if len(without) == 1 else f" and {len(without) - 1} others"
        return "fp32", f"node {without[0]}{rest}: no bf16 instructions"
    reasons = sorted({node.bf16_reason for node in nodes if node.bf16_reason})
    return "bf16", f"on all nodes: {', '.join(reasons)}"


def _count(nodes: Sequence[NodeFacts]) -> str:
    return counted(len(nodes), "node")
