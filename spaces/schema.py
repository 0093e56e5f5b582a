"""The sections of a space file as frozen, validated objects."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from spaces.parameters import Fixed, Hyperparameters, Number, Parameter, Searched

# The network shrinks an image by 16 pixels; a test holds this number against the network itself.
SMALLEST_IMAGE_PX = 17
LARGEST_IMAGE_PX = 1024
MOST_TRIALS = 1_000_000

_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", re.ASCII)

# No user's name and password: the file stays with the experiment.
_TRACKING_URI = re.compile(r"https?://[^@\s/?#]+(/[^@\s]*)?|sqlite:///[^?#\s]+", re.ASCII)

Precision = Literal["fp32", "bf16"]


class Section(BaseModel):
    """Refuses unknown keys and silent conversions (no `"3"` or `true` for 3).

    A validator's ValueError says what the value must be, as in "must be a duration": the loader says the rest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Dataset(Section):
    """Which images, and how they are split.

    Attributes:
        name: `digits` (embedded), `cifar10` (torchvision's) or `folder` (`train/<class>/*`, `test/<class>/*`).
        root: where the images are; `~` is expanded. None: `cifar10` is in the cache folder. Not used by `digits`.
        download: whether `cifar10` may be fetched from the network when it is not under `root`.
        image_size: side of the square that every image is resized to, in pixels.
        train_limit: take a stratified subset of at most this many training images (validation included); None: all.
        images_per_epoch: how many images make an epoch; None: each training image once. An epoch may be a part of
            a pass over the images (the next epoch goes on where it ended) or more than one.
        validation_fraction: part of those that is held out for validation, per class.
        split_seed: fixes the subset and the split, for every trial alike.
    """

    name: Literal["digits", "cifar10", "folder"]
    root: str | None = None
    download: bool = False
    image_size: int = Field(default=32, ge=SMALLEST_IMAGE_PX, le=LARGEST_IMAGE_PX)
    train_limit: int | None = Field(default=None, ge=10, le=1_000_000_000)
    images_per_epoch: int | None = Field(default=None, ge=2, le=1_000_000_000)
    validation_fraction: float = Field(default=0.2, gt=0, le=0.5)
    split_seed: int = Field(default=0, ge=0, lt=2**32)


class Training(Section):
    """How one configuration is trained.

    Attributes:
        max_epochs: epochs of a trial that nothing stops; `grace_epochs × reduction_factor^k`, unless ASHA is off.
        batch_size, dropout, weight_decay: for all trials, unless they stand in `space`.
        precision: of activations; `auto` is bf16 where the processor has instructions for it.
    """

    max_epochs: int = Field(ge=1, le=100_000)
    batch_size: int = Field(default=64, ge=2, le=65_536)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"


class Search(Section):
    """How many configurations are tried, who proposes them, and how early weak ones are stopped.

    At least one of `trials`, `epoch_budget` and `time_budget` is given; the first that is reached ends the search.

    Attributes:
        trials: configurations to try, the baseline among them; None: as many as the budgets allow.
        epoch_budget: start trials until so many epochs have been trained; those that run then go on. Replicates do
            not count. None: no limit.
        grace_epochs: ASHA's grace period: epochs that every trial gets, and the first rung. A space file that does not
            say gets `max_epochs / reduction_factor` where that is whole (`benchmarks.replay` says why).
        reduction_factor: each further rung lies this many times higher; about one in so many trials passes it.
        asha: `stop` ends a trial at a rung at once, or never; `promote` lets each pause at a rung and go on
            when it is among the best there; `off` trains all to the end.
        sampler: who proposes: `random`, Optuna's `tpe`, or its `gp` (which learns nothing from stopped trials).
        startup_trials: number of trials, the baseline among them, that are proposed at random before `tpe` or `gp`
            proposes.
        seed: of proposals, weights, order of the images, dropout and augmentation.
        time_budget: stop after this long, such as `30m`, `1h30m` or `90s`; None: no limit.
        audit_fraction: chance of each trial to be trained to the end whatever a rung says, so that what stopping loses
            can be measured.
    """

    trials: int | None = Field(default=None, ge=1, le=MOST_TRIALS)
    epoch_budget: int | None = Field(default=None, ge=1, le=1_000_000_000)
    grace_epochs: int = Field(default=1, ge=1, le=100_000)
    reduction_factor: int = Field(default=3, ge=2, le=100_000)
    asha: Literal["stop", "promote", "off"] = "stop"
    sampler: Literal["random", "tpe", "gp"] = "tpe"
    startup_trials: int = Field(default=10, ge=1, le=MOST_TRIALS)
    seed: int = Field(default=0, ge=0, lt=2**32)
    time_budget: str | None = None
    audit_fraction: float = Field(default=0.0, ge=0, le=1)

    @field_validator("asha", mode="before")
    @classmethod
    def _off_is_no_boolean(cls, value: Any) -> Any:
        # YAML 1.1 reads `off` as false.
        return "off" if value is False else value

    @field_validator("time_budget", mode="before")
    @classmethod
    def _must_be_a_duration(cls, text: Any) -> Any:
        if text is not None:
            try:
                duration_s(str(text))
            except ValueError:
                raise ValueError("a duration such as 30m, 1h30m or 90s") from None
        return text

    @property
    def most_trials(self) -> int:
        """How many trials are started at most."""
        if self.trials is not None:
            return self.trials
        # Each trains an epoch at least. One that fails before would be followed by others for ever.
        return MOST_TRIALS if self.epoch_budget is None else min(MOST_TRIALS, self.epoch_budget)

    @property
    def time_budget_s(self) -> float | None:
        return None if self.time_budget is None else duration_s(self.time_budget)


class Confirm(Section):
    """How the best trials are trained again, with fresh random streams, before one is called the winner.

    Attributes:
        top: how many of the best completed trials, the baseline not counted, which always takes part; 0: none.
        seeds: replicates of each, unless the order is clear before; trials that are tied then get more.
        budget: epochs that replicates may take, as a share of what the search itself trained.
    """

    top: int = Field(default=3, ge=0, le=100)
    seeds: int = Field(default=3, ge=2, le=100)
    budget: float = Field(default=0.33, ge=0, le=1000)


class Resources(Section):
    """What the search may use.

    Attributes:
        device: `auto` takes CUDA where there is one.
        trials_at_once: on a CPU; `auto` is one a core.
        trials_per_gpu: trials that share one GPU; `auto` times a few steps of 1, 2, 4 … at once.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    trials_at_once: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    trials_per_gpu: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = "auto"


class MLflow(Section):
    """Where MLflow keeps what it is told.

    Attributes:
        tracking_uri: of a server, or of an SQLite file of one's own; relative paths are of the folder that the
            search is started in.
        experiment_name: in MLflow; None: the experiment's own.
    """

    tracking_uri: str
    experiment_name: str | None = Field(default=None, min_length=1, max_length=250)

    @field_validator("tracking_uri")
    @classmethod
    def _must_be_a_server_or_a_file(cls, uri: str) -> str:
        # MLflow would load a plug-in for any other kind, and this file may have come from elsewhere.
        if not _TRACKING_URI.fullmatch(uri):
            raise ValueError("http://HOST:PORT, https://HOST or sqlite:///PATH, without a name and password")
        return uri


class Wandb(Section):
    """Which project of Weights & Biases is told; its key comes from `wandb login` or WANDB_API_KEY, never from here.

    Attributes:
        project: its name.
        entity: user or team; None: the user's own.
        mode: `offline` leaves files in `./wandb`, where the search was started, for `wandb sync`.
    """

    project: str = Field(min_length=1, max_length=128)
    entity: str | None = Field(default=None, min_length=1, max_length=128)
    mode: Literal["online", "offline"] = "online"


class Track(Section):
    """What else is told of each epoch of each trial and replicate.

    Attributes:
        tensorboard: event files in the experiment's `ray/`, for `tensorboard --logdir`.
        mlflow, wandb: None: not used.
    """

    tensorboard: bool = True
    mlflow: MLflow | None = None
    wandb: Wandb | None = None


# Sections that a file may leave out.
OPTIONAL_SECTIONS = frozenset({"confirm", "resources", "track"})
SECTIONS: Mapping[str, type[Section]] = {
    "dataset": Dataset,
    "training": Training,
    "search": Search,
    "confirm": Confirm,
    "resources": Resources,
    "track": Track,
}


@dataclass(frozen=True)
class Space:
    """A whole space file, validated.

    Attributes:
        name: the file's name without its ending; for names of experiments and messages only.
        parameters: for each hyperparameter that the file gives, what is searched.
        baseline: the hand-picked configuration that runs first and to the end.
    """

    name: str
    dataset: Dataset
    training: Training
    search: Search
    confirm: Confirm
    resources: Resources
    track: Track
    parameters: Mapping[str, Parameter]
    baseline: Hyperparameters

    @property
    def searched(self) -> dict[str, Searched]:
        """The parameters that a sampler decides, in the file's order."""
        return {name: p for name, p in self.parameters.items() if not isinstance(p, Fixed)}

    @property
    def rung_epochs(self) -> tuple[int, ...]:
        """Epochs at which ASHA compares trials, ascending; the last is `max_epochs`."""
        if self.search.asha == "off":
            return (self.training.max_epochs,)
        return rung_epochs(self.search.grace_epochs, self.search.reduction_factor, self.training.max_epochs)

    def complete(self, suggested: Mapping[str, Number]) -> Hyperparameters:
        """The whole configuration for what a sampler suggested.

        Args:
            suggested: a value for each of `searched`.

        Raises:
            ValueError: a name is missing or not searched, or a value is not in its range.
        """
        if set(suggested) != set(self.searched):
            raise ValueError(f"suggested {sorted(suggested)}, but {sorted(self.searched)} are searched.")
        for name, value in suggested.items():
            if not self.searched[name].contains(value):
                raise ValueError(f"suggested {name} {value!r}, but the space is {self.searched[name]}.")
        return Hyperparameters.from_mapping({**self.baseline.as_dict(), **suggested})

    def baseline_suggestion(self) -> dict[str, Number]:
        """The baseline's values of the searched parameters."""
        return {name: getattr(self.baseline, name) for name in self.searched}

    def as_dict(self) -> dict[str, Any]:
        """The file's content with every default written out, ready for YAML.

        Each hyperparameter has exactly one source: a fixed value in `space`, a value in `training`, or `baseline`.
        """
        sections = {name: getattr(self, name).model_dump() for name in SECTIONS}
        for name in self.parameters:
            sections["training"].pop(name, None)
        elsewhere = {*sections["training"], *(self.parameters.keys() - self.searched.keys())}
        return {
            **sections,
            "space": {name: parameter.as_yaml() for name, parameter in self.parameters.items()},
            "baseline": {name: value for name, value in self.baseline.as_dict().items() if name not in elsewhere},
        }


def rung_epochs(grace_epochs: int, reduction_factor: int, max_epochs: int) -> tuple[int, ...]:
    """grace, grace × reduction, grace × reduction² … up to and including `max_epochs`."""
    rungs = [grace_epochs]
    while rungs[-1] * reduction_factor <= max_epochs:
        rungs.append(rungs[-1] * reduction_factor)
    return tuple(rungs)


def duration_s(text: str) -> float:
    """Seconds in a duration such as `1h30m`, `30m` or `90s`.

    Raises:
        ValueError: the text is not of that form.
    """
    match = _DURATION.fullmatch(text)
    hours, minutes, seconds = (int(group or 0) for group in match.groups()) if match else (0, 0, 0)
    total_s = 3600.0 * hours + 60.0 * minutes + seconds
    if not total_s:
        raise ValueError(f"{text!r} is not a duration such as 30m, 1h30m or 90s.")
    return total_s
