"""Reports trials and replicates to TensorBoard, MLflow and Weights & Biases through their own clients.

A tracker gets hyperparameters and results, and nothing of this machine. A resumed search continues its runs.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search.experiment import events
from search.experiment.folder import Experiment
from search.experiment.history import History
from spaces.errors import InputError, RunError, first_line
from spaces.parameters import Number
from spaces.printable import printable
from spaces.schema import MLflow, Track, Wandb
from trainable.metric import METRICS

Numbers = dict[str, Number]

EXPERIMENT_TAG, NAME_TAG = "experiment", "trial_name"
# Prefix of TensorBoard's tags since version 0.1, in which Ray wrote the files.
_TENSORBOARD_PREFIX = "ray/tune/"
_METRIC_COLUMNS = [metric.column for metric in METRICS.values()]
_NOT_RESULTS = ("trial", "run", "epoch", "at")
# Events are reported in the loop that serves all trials: a server that is gone must not block it for minutes.
_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_WANDB_TIMEOUT_S = 30.0


class Tracker:
    """Reports the events of a search to one tracker; a subclass calls the client.

    After the first failure, the tracker gets nothing more, and `warn` is called with one line.
    """

    title = ""
    open_run: Callable[[str, Numbers], Any]  # starts or resumes `trial_0007` or `run_0003` (a replicate)
    log: Callable[[Any, int, Numbers], None]  # gets what `open_run` returned, the epoch and its results
    close_run: Callable[[Any, bool | None], None]  # whether the run failed; None if a later session can resume it

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn: Callable[[str], None] | None = warn
        self._runs: dict[str, Any] = {}

    def on_event(self, event: events.Event, history: History) -> None:
        self._attempt(lambda: self._report(event, history))

    def close(self) -> None:
        """Close the runs that have not ended."""
        while self._runs:
            _, run = self._runs.popitem()
            self._attempt(lambda: self.close_run(run, None))  # noqa: B023 (called at once)

    def _report(self, event: events.Event, history: History) -> None:
        match event:
            case events.TrialStarted() | events.EpochDone() | events.TrialEnded():
                name, trial = f"trial_{event.trial:04d}", event.trial
            case events.ReplicateStarted() | events.ReplicateEpochDone() | events.ReplicateEnded():
                name, trial = f"run_{event.run:04d}", history.replicates[event.run].trial
            case _:
                return
        if name not in self._runs:
            self._runs[name] = self.open_run(name, history.trials[trial].config.as_dict())
        if isinstance(event, events.EpochDone | events.ReplicateEpochDone):
            fields = {field: getattr(event, field) for field in event.__dataclass_fields__ if field not in _NOT_RESULTS}
            self.log(
                self._runs[name], event.epoch, {name: value for name, value in fields.items() if value is not None}
            )
        elif isinstance(event, events.TrialEnded | events.ReplicateEnded):
            self.close_run(self._runs.pop(name), event.status == "failed")

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._warn is None:
            return
        try:
            action()
        except Exception as error:  # of any type of a client: a search must not end because of a tracker
            warn, self._warn = self._warn, None
            warn(f"{self.title} is told nothing more ({printable(first_line(error))}); the search goes on")


class TensorBoard(Tracker):
    """Writes event files at once; `SummaryWriter` blocks for ever once its thread has died of a full disk."""

    title = "TensorBoard"

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        super().__init__(warn)
        self._folder = folder

    def open_run(self, name: str, config: Numbers) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import hparams

        (self._folder / name).mkdir(parents=True, exist_ok=True)
        # The default name holds seconds: a second file within the same second would overwrite the first.
        writer = EventsWriter(str(self._folder / name / "events"), f".{time.time_ns()}")
        self._write(writer, 0, *hparams(config, {f"{_TENSORBOARD_PREFIX}{name}": 0.0 for name in _METRIC_COLUMNS}))
        return writer

    def log(self, run: Any, epoch: int, results: Numbers) -> None:
        from tensorboardX.summary import scalar

        self._write(run, epoch, *(scalar(_TENSORBOARD_PREFIX + name, value) for name, value in results.items()))

    def close_run(self, run: Any, failed: bool | None) -> None:
        run.close()

    def _write(self, writer: Any, epoch: int, *summaries: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        for summary in summaries:
            writer.write_event(Event(summary=summary, wall_time=time.time(), step=epoch))
        writer.flush()


class MLflowTracker(Tracker):
    title = "MLflow"

    def __init__(self, settings: MLflow, experiment: str, warn: Callable[[str], None]) -> None:
        super().__init__(warn)
        for variable, value in _MLFLOW_PATIENCE.items():
            os.environ.setdefault(variable, value)
        from mlflow.tracking import MlflowClient

        self._client, self._experiment = MlflowClient(settings.tracking_uri), experiment
        name = settings.experiment_name or experiment
        found = self._client.get_experiment_by_name(name)
        self._id = found.experiment_id if found else self._client.create_experiment(name)

    def open_run(self, name: str, config: Numbers) -> Any:
        from mlflow.entities import Param

        tags = {NAME_TAG: name, EXPERIMENT_TAG: self._experiment}
        begun = self._client.search_runs([self._id], " AND ".join(f"tags.{tag} = '{tags[tag]}'" for tag in tags))
        if begun:
            return begun[0].info.run_id
        run_id = self._client.create_run(self._id, tags=tags, run_name=name).info.run_id
        self._client.log_batch(run_id, params=[Param(key, str(value)) for key, value in config.items()])
        return run_id

    def log(self, run: Any, epoch: int, results: Numbers) -> None:
        from mlflow.entities import Metric

        at_ms = int(time.time() * 1000)
        self._client.log_batch(run, [Metric(name, value, at_ms, epoch) for name, value in results.items()])

    def close_run(self, run: Any, failed: bool | None) -> None:
        if failed is not None:
            self._client.set_terminated(run, "FAILED" if failed else "FINISHED")


class WandbTracker(Tracker):
    title = "wandb"

    def __init__(self, settings: Wandb, experiment: str, warn: Callable[[str], None]) -> None:
        super().__init__(warn)
        import wandb

        if settings.mode == "online" and not wandb.api.api_key:
            raise ValueError("no API key: type `wandb login`, or set WANDB_API_KEY")
        self._settings, self._experiment = settings, experiment

    def open_run(self, name: str, config: Numbers) -> Any:
        import wandb

        return wandb.init(
            **self._settings.model_dump(include={"project", "entity", "mode"}),
            group=self._experiment,
            name=name,
            id=f"{self._experiment}-{name}",
            config=config,
            resume="allow",
            reinit="create_new",  # runs of several trials are open at once
            dir=str(Path.cwd()),  # its files hold links, which an experiment's folder must not
            settings=wandb.Settings(
                console="off", silent=True, init_timeout=_WANDB_TIMEOUT_S, finish_timeout=_WANDB_TIMEOUT_S
            ),
        )

    def log(self, run: Any, epoch: int, results: Numbers) -> None:
        run.log(results, step=epoch)

    def close_run(self, run: Any, failed: bool | None) -> None:
        run.finish(exit_code=int(bool(failed)))


def trackers(track: Track, experiment: Experiment, warn: Callable[[str], None]) -> list[Tracker]:
    """The trackers that a space names; all of them are installed.

    Raises:
        RunError: a tracker does not answer.
    """
    made: list[Tracker] = [TensorBoard(experiment.ray_folder / "tensorboard", warn)] if track.tensorboard else []
    tracker: Any
    for tracker, settings in ((MLflowTracker, track.mlflow), (WandbTracker, track.wandb)):
        try:
            if settings is not None:
                made.append(tracker(settings, experiment.name, warn))
        except Exception as error:  # each client has types of its own
            reason = printable(first_line(error))
            raise RunError(
                f"{tracker.title} cannot be told of the search ({reason}). Mend that, or remove it from `track`."
            ) from error
    return made


def must_be_installed(track: Track) -> None:
    """Raise InputError, with the package to install, if a tracker of the space is missing."""
    # mlflow-skinny is MLflow without its server and pages; a full MLflow includes it.
    for package, installed_as, settings in (("mlflow", "mlflow-skinny", track.mlflow), ("wandb", "wandb", track.wandb)):
        if settings is not None and importlib.util.find_spec(package) is None:
            raise InputError(
                f"`track.{package}` is set, but {package} is not installed. Install it: "
                f"python -m pip install {installed_as}"
            )
