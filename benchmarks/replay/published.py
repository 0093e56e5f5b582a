"""The published search `results/cifar10` as a table of learning curves on real epochs of CIFAR-10.

TPE proposed most of its trials, and its rungs stopped 30 of 40. For a stopped trial, the accuracy after a later epoch
is the mean of the curve model given all curves up to that epoch. So the table has what 584 real epochs say about these
configurations; a table of random configurations that were all trained to the end would say more.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.replay.tables import Array, Table, in_unit_cube
from search.experiment.events import EpochDone, ReplicateEpochDone
from search.experiment.folder import Experiment
from search.policy.curve_model import Curve, CurveModel, from_z

FOLDER = Path(__file__).parents[2] / "results" / "cifar10"
NAME = "cifar10-published"


def published_table() -> Table:
    """The trials of the published search, with later epochs filled in where a rung stopped them.

    The replicates of a trial are `repeats` of its configuration.
    """
    experiment = Experiment(FOLDER)
    history, space = experiment.history(), experiment.space
    trials, max_epochs = list(history.trials.values()), space.training.max_epochs
    replicates = [(run.trial, _accuracies(run.epochs)) for run in history.replicates.values()]
    known = [Curve(trial.config, list(_accuracies(trial.epochs))) for trial in trials]
    known += [Curve(history.trials[number].config, list(seen)) for number, seen in replicates]
    foreseen = []
    for epoch in range(1, max_epochs + 1):
        model = CurveModel(space.searched, epoch, [Curve(one.config, one.scores[:epoch]) for one in known])
        foreseen.append(from_z(model.of_curves()[0]))
    curves = np.array(foreseen).T[: len(trials)]
    for curve, trial in zip(curves, trials, strict=True):
        curve[: trial.n_epochs] = _accuracies(trial.epochs)
    replicated = sorted({number for number, _ in replicates})
    repeats = [
        np.array([curves[number], *(seen for trial, seen in replicates if trial == number)]) for number in replicated
    ]
    unit = np.array([in_unit_cube(space, trial.suggested) for trial in trials])
    n_images = experiment.manifest.data.n_validation
    return Table(NAME, space, unit, np.round(curves * n_images) / n_images, tuple(repeats), n_images)


def _accuracies(epochs: Sequence[EpochDone | ReplicateEpochDone]) -> Array:
    return np.array([epoch.validation_accuracy for epoch in epochs])
