"""Every name of Ray that is not public. tests/search/execution/test_ray_internals.py fails where Ray renames one."""

import sys
from typing import Any


def keep_ray_to_itself() -> None:
    """Leave the terminal and SIGTERM to the command; call it before `ray.init`.

    When a node dies, Ray prints pages of that node's log into the driver's output; the display reports it in one line.
    """
    from ray._private import utils, worker

    vars(worker)["print_to_stdstream"] = lambda *given, **options: None
    vars(utils)["set_sigterm_handler"] = lambda handler: None


def node_of_this_process() -> Any:
    """Ray's record of the node that this process started or joined; None without one."""
    # Not imported here: a thread that imports it would wait for the thread that is importing Ray.
    worker = sys.modules.get("ray._private.worker")
    return getattr(worker, "_global_node", None)


def use_ready_workers() -> None:
    """Let Tune use the workers that the cluster has started.

    Tune requests a runtime environment of its own, with one variable for Lightning. Ready workers do not have it, and
    Ray would start others.
    """
    from ray.tune.execution import class_cache

    vars(class_cache).get("DEFAULT_ENV_VARS", {}).clear()


def count_no_callbacks() -> None:
    """Do not let Tune count the callbacks by their kinds: for that, it imports MLflow, W&B and Comet, for seconds."""
    from ray.air._internal import usage

    vars(usage)["tag_callbacks"] = lambda callbacks: False


def forget_metrics(trial: Any) -> None:
    """Drop the statistics of each metric of an ended trial, which Tune keeps until the search ends."""
    trial.run_metadata.metric_analysis.clear()
    trial.run_metadata.metric_n_steps.clear()
