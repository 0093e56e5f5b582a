"""The private names of Ray that we use exist; a failure names what breaks with this version of Ray."""

import importlib

import pytest

from search.execution.ray_internals import forget_metrics

# Module, name in it, and the consequence of its absence.
INTERNALS = (
    ("ray._private.worker", "print_to_stdstream", "logs of a node that dies fill the terminal"),
    ("ray._private.utils", "set_sigterm_handler", "Ray ends the command at SIGTERM"),
    ("ray._private.worker", "_global_node", "the loss of Ray's processes is noticed late"),
    ("ray.tune.execution.class_cache", "DEFAULT_ENV_VARS", "workers that stand ready are not used"),
    ("ray.air._internal.usage", "tag_callbacks", "a search starts later where MLflow is installed"),
)


@pytest.mark.parametrize(("module", "name", "consequence"), INTERNALS)
def test_ray_has_the_private_name(module: str, name: str, consequence: str) -> None:
    assert hasattr(importlib.import_module(module), name), f"without {module}.{name}, {consequence}"


def test_the_metrics_of_a_trial_can_be_dropped() -> None:
    from ray.tune.experiment.trial import _TrainingRunMetadata

    class Trial:
        run_metadata = _TrainingRunMetadata()

    Trial.run_metadata.update_metric("accuracy", 0.5, step=1)
    assert Trial.run_metadata.metric_analysis
    forget_metrics(Trial)
    assert not Trial.run_metadata.metric_analysis
    assert not Trial.run_metadata.metric_n_steps
