"""The opening of the test set: on record before any of its images can be seen."""

from pathlib import Path
from typing import Any, cast

import pytest

from search import retraining
from search.manifest import Manifest
from search.retraining import Retraining
from spaces import Dataset, Space
from spaces.errors import RunError
from tests.search.foreign import make_experiment
from trainable.compute import Compute


def plan_of(results: Path, space: Space) -> Retraining:
    experiment = make_experiment(results, "mine", space)
    return Retraining(
        experiment=experiment,
        space=space,
        trial=experiment.history().trials[0],
        data=cast(Any, None),
        n_seeds=3,
        epochs=2,
        compute=Compute(),
        n_cores=1,
        again=None,
        guarded=cast(Any, None),
    )


def test_the_test_set_is_opened_after_that_is_on_record(
    tmp_path: Path, tiny_space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, tiny_space)
    n_on_record = []
    monkeypatch.setattr(
        retraining,
        "open_test_set",
        lambda dataset: n_on_record.append(len(plan.experiment.manifest.test_openings)),
    )
    opening, _ = retraining._opened_test_set(plan)
    assert n_on_record == [1]
    assert plan.experiment.manifest.test_openings == [opening]


def test_the_test_set_stays_shut_where_that_cannot_be_recorded(
    tmp_path: Path, tiny_space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, tiny_space)

    def publish(manifest: Manifest) -> None:
        raise RunError("no route to host")

    def open_test_set(dataset: Dataset) -> None:
        pytest.fail("it was opened")

    monkeypatch.setattr(plan.experiment, "publish_manifest", publish)
    monkeypatch.setattr(retraining, "open_test_set", open_test_set)
    with pytest.raises(RunError, match="no route to host"):
        retraining._opened_test_set(plan)
