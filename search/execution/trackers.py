"""TensorBoard, MLflow and Weights & Biases, through Ray's own callbacks: what each is told of a search.

Ray's callbacks would log all that a worker is told (paths of this machine, seeds of streams), begin anew where a search
was resumed, and end the search when their server is gone. `Tracker` stands between.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ray import tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.logger import LoggerCallback, TBXLoggerCallback

from search.experiment.folder import Experiment
from spaces.errors import RunError
from spaces.printable import printable
from spaces.schema import MLflow, Track, Wandb

# The epoch is the step.
_SHOWN = (
    "lr",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "train_s",
    "validation_s",
)
EXPERIMENT_TAG = "experiment"
_NAME_TAG_OF_RAY = "trial_name"
_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_WANDB_UPLOAD_S = 120


@dataclass(eq=False)
class TrackedTrial:
    """What a tracker sees of a trial or replicate: as much of Ray's `Trial` as Ray's callbacks use.

    Attributes:
        name: `trial_0007`, `run_0003`.
        experiment: its name.
        config: its hyperparameters.
        ray: Ray's own, which may be another after a failure.
    """

    name: str
    experiment: str
    config: dict[str, Any]
    ray: RayTrial

    def __str__(self) -> str:
        return self.name

    @property
    def trial_id(self) -> str:
        return f"{self.experiment}-{self.name}"

    @property
    def evaluated_params(self) -> dict[str, Any]:
        return self.config

    @property
    def local_path(self) -> str | None:
        return self.ray.local_path

    @property
    def experiment_dir_name(self) -> str:
        return str(self.ray.experiment_dir_name)

    @property
    def for_ray(self) -> RayTrial:
        """Itself, which has all that Ray's callbacks read of a trial."""
        return cast(RayTrial, self)

    def init_local_path(self) -> None:
        self.ray.init_local_path()  # type: ignore[no-untyped-call]


class Tracker(tune.Callback):
    """Tells one tracker of a search, for as long as it listens.

    Args:
        title: of the tracker, for people.
        told: Ray's callback.
        experiment: the experiment's name.
        on_trouble: called with a line when it failed; it is told nothing more then.
        find_earlier: called with a trial or run before the tracker hears of it in this session.
    """

    def __init__(
        self,
        title: str,
        told: LoggerCallback,
        experiment: str,
        on_trouble: Callable[[str], None],
        find_earlier: Callable[[TrackedTrial], None] = lambda trial: None,
    ) -> None:
        self._title = title
        self._warned: LoggerCallback | None = told
        self._on_trouble = on_trouble
        self._experiment = experiment
        self._find_earlier = find_earlier
        self._trials: dict[str, TrackedTrial] = {}

    def on_trial_start(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        name = _name(trial)
        seen = self._trials.get(name)
        if seen is None:
            config = dict(trial.config["hyperparameters"])
            seen = self._trials[name] = TrackedTrial(name, self._experiment, config, trial)
            self._tell(lambda told: self._find_earlier(seen))
        seen.ray = trial
        self._tell(lambda told: told.log_trial_start(seen.for_ray))

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        shown = {name: result[name] for name in _SHOWN if name in result}
        shown["training_iteration"] = result["epoch"]
        self._tell_of(trial, lambda told, seen: told.log_trial_result(iteration, seen.for_ray, shown))

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        self._tell_of_end(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        self._tell_of_end(trial, failed=True)

    def on_experiment_end(self, trials: list[RayTrial], **info: Any) -> None:
        self._tell(lambda told: told.on_experiment_end(trials, **info))

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return (tune.Callback, ())

    def _tell_of_end(self, trial: RayTrial, failed: bool) -> None:
        self._tell_of(trial, lambda told, seen: told.log_trial_end(seen.for_ray, failed=failed))
        # One that goes on later is begun anew, as in another session.
        self._trials.pop(_name(trial), None)

    def _tell_of(self, trial: RayTrial, action: Callable[[LoggerCallback, TrackedTrial], None]) -> None:
        seen = self._trials.get(_name(trial))
        if seen:  # else it failed before it was started
            self._tell(lambda told: action(told, seen))

    def _tell(self, action: Callable[[LoggerCallback], None]) -> None:
        if self._warned is None:
            return
        try:
            action(self._warned)
        except Exception as error:  # whatever a server or its client may raise: a search must not end for it
            self._warned = None
            self._on_trouble(f"{self._title} is told nothing more ({_first_line(error)}); the search goes on")


def trackers(track: Track, experiment: Experiment, on_trouble: Callable[[str], None]) -> list[tune.Callback]:
    """Callbacks for what is to be told.

    Args:
        track: what that is; all of it is installed.
        experiment: names what is told.
        on_trouble: called with a line when a tracker failed on the way.

    Raises:
        RunError: a tracker does not answer.
    """
    made: list[tune.Callback] = []
    if track.tensorboard:
        from search.execution.event_file import EventFile

        told = TBXLoggerCallback()  # type: ignore[no-untyped-call]
        told._summary_writer_cls = EventFile
        made.append(Tracker("TensorBoard", told, experiment.name, on_trouble))
    if track.mlflow:
        made.append(_mlflow_tracker(track.mlflow, experiment, on_trouble))
    if track.wandb:
        made.append(_wandb_tracker(track.wandb, experiment, on_trouble))
    return made


def _mlflow_tracker(settings: MLflow, experiment: Experiment, on_trouble: Callable[[str], None]) -> Tracker:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    # Ray tells it from the loop that serves all trials: a server that is gone must not hold that for minutes.
    for name, value in _MLFLOW_PATIENCE.items():
        os.environ.setdefault(name, value)
    told = MLflowLoggerCallback(
        tracking_uri=settings.tracking_uri,
        experiment_name=settings.experiment_name or experiment.name,
        tags={EXPERIMENT_TAG: experiment.name},
    )
    with _refusal_in_one_line("MLflow", settings.tracking_uri):
        told.setup()  # type: ignore[no-untyped-call]

    def find_earlier(trial: TrackedTrial) -> None:
        """Go on with the run that an earlier session began for it."""
        import mlflow

        named = mlflow.MlflowClient(settings.tracking_uri).search_runs(
            [str(told.mlflow_util.experiment_id)], f"tags.{_NAME_TAG_OF_RAY} = '{trial.name}'"
        )
        earlier = next((run for run in named if run.data.tags.get(EXPERIMENT_TAG) == experiment.name), None)
        if earlier:
            told._trial_runs[trial] = earlier.info.run_id

    return Tracker("MLflow", told, experiment.name, on_trouble, find_earlier)


def _wandb_tracker(settings: Wandb, experiment: Experiment, on_trouble: Callable[[str], None]) -> Tracker:
    from ray.air.integrations.wandb import WandbLoggerCallback

    if settings.mode == "offline":
        # Ray asks for a key unless this says that none is needed.
        os.environ["WANDB_MODE"] = "offline"
    told = WandbLoggerCallback(
        project=settings.project,
        group=experiment.name,
        upload_timeout=_WANDB_UPLOAD_S,
        entity=settings.entity,
        mode=settings.mode,
        resume="allow",
        # Its files hold links, which an experiment's folder must not.
        dir=str(Path.cwd()),
    )
    with _refusal_in_one_line("wandb", settings.project):
        told.setup()  # type: ignore[no-untyped-call]
    return Tracker("wandb", told, experiment.name, on_trouble)


def _name(trial: RayTrial) -> str:
    """`trial_0007`, also where it was promoted and its folder is `trial_0007_2`."""
    return "_".join(str(trial.config["name"]).split("_")[:2])


@contextlib.contextmanager
def _refusal_in_one_line(title: str, where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each client has types of its own
        raise RunError(
            f"{title} cannot be told of the search at {where} ({_first_line(error)}). Mend that, or remove it from "
            f"`track`."
        ) from error


def _first_line(error: Exception) -> str:
    return printable(str(error).strip().partition("\n")[0][:200]) or type(error).__name__
