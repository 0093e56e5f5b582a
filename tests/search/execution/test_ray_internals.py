"""The private names of Ray that we use exist; a failure names what breaks with this version of Ray."""

import importlib

import pytest

from search.execution.ray_internals import INTERNALS, forget_metrics


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
