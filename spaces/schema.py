"""The sections of a space file as frozen, validated objects."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    create_model,
    field_validator,
    model_validator,
)

from spaces.parameters import (
    HYPERPARAMETER_NAMES,
    Fixed,
    Hyperparameters,
    Number,
    Parameter,
    Searched,
    checked,
    parse_parameter,
)

# Each of the network's 4 blocks shrinks an image by 4 pixels; a test compares this number with the network.
SMALLEST_IMAGE_PX = 17
LARGEST_IMAGE_PX = 1024
MOST_TRIALS = 1_000_000

_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", re.ASCII)

# URIs without a user's name and password, because the file stays with the experiment.
_TRACKING_URI = re.compile(r"https?://[^@\s/?#]+(/[^@\s]*)?|sqlite:///[^?#\s]+", re.ASCII)

Precision = Literal["fp32", "bf16"]
MetricName = Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"]
Sampler = Literal["curves", "random", "tpe", "gp"]
ClassWeights = Literal["none", "balanced"]
Pooling = Literal["average", "max"]


class Section(BaseModel):
    """Base of all sections: refuses unknown keys and implicit conversions (such as `"3"` or `true` for 3).

    The ValueError of a field's validator only names the rule, such as "a duration", and the loader adds the rest of the
    sentence. That of a whole section continues a sentence that starts with the section's name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Dataset(Section):
    """The images and their split.

    Attributes:
        name: `digits` (scikit-learn's), `cifar10` (torchvision's) or `folder` (`train/<class>/*`, `test/<class>/*`).
        root: folder of the images; `~` is expanded. None: the cache folder, for `cifar10`. `digits` does not use it.
        download: whether `cifar10` may be downloaded if it is not in `root`.
        image_size: side of the square to which images are resized, in pixels.
        train_limit: size of a stratified subset of the training images (with validation); None: all images.
        images_per_epoch: number of images in an epoch; None: each training image once. An epoch may be a part of a
            pass over the images (the next epoch continues it) or more than one pass.
        validation_fraction: share of the images that is held out for validation, per class.
        split_seed: seed of the subset and of the split, which all trials share.
    """

    name: Literal["digits", "cifar10", "folder"]
    root: str | None = None
    download: bool = False
    image_size: int = Field(default=32, ge=SMALLEST_IMAGE_PX, le=LARGEST_IMAGE_PX)
    train_limit: int | None = Field(default=None, ge=10, le=1_000_000_000)
    images_per_epoch: int | None = Field(default=None, ge=2, le=1_000_000_000)
    validation_fraction: float = Field(default=0.2, gt=0, le=0.5)
    split_seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _a_folder_has_a_root(self) -> Self:
        if self.name == "folder" and self.root is None:
            raise ValueError("has no `root`, but a folder data set must say where its images are.")
        return self


class Training(Section):
    """Training of one configuration.

    Attributes:
        max_epochs: epochs of a completed trial; `grace_epochs × reduction_factor^k`, unless ASHA is off.
        batch_size, dropout, weight_decay: values for all trials, unless `space` searches them.
        precision: precision of activations; `auto` is bf16 if the processor has bf16 instructions, otherwise fp32.
        class_weights: weights of the classes in the training loss; `balanced` is n / (k n_c) for n images of k classes
            of which n_c show class c. The validation loss has no weights.
        pooling: what the classifier gets of each of the last feature maps: its average, or its maximum, which learns
            more slowly (`results/README.md`) and is there for searches of version 0.1.
    """

    max_epochs: int = Field(ge=1, le=100_000)
    batch_size: int = Field(default=64, ge=2, le=65_536)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    class_weights: ClassWeights = "none"
    pooling: Pooling = "average"


# Values of `search.memory` that are no experiments.
SHIPPED, OWN = "shipped", "own"


def _names(value: Any) -> tuple[str, ...]:
    """Names in a file: a list, one name, or `none`."""
    names = [] if value in (None, "none") else [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise ValueError("a list of names, one name, or none")
    return tuple(names)


Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_names, json_schema_input_type=str | list[str] | None),
    PlainSerializer(list, return_type=list[str]),
]


class Search(Section):
    """Size of the search, sampler and early stopping.

    At least one of `trials`, `epoch_budget` and `time_budget` is given; the first that is reached ends the search.

    Attributes:
        trials: number of trials, including the baseline; None: limited by the budgets only.
        epoch_budget: total number of epochs after which no trial is started; running trials finish.
            Epochs of replicates do not count. None: no limit.
        grace_epochs: epochs that every trial gets, and the first rung of ASHA. Default: `max_epochs /
            reduction_factor^k` for the largest k that makes it a whole number (k = 1 if `asha` is not `adaptive`); 1 if
            there is none.
        reduction_factor: ratio of epochs between two rungs; about one in `reduction_factor` trials passes a rung.
        asha: `stop` stops or continues a trial as soon as it reaches a rung; `adaptive` does so at the last rung, and
            at the earlier ones while they order the trials as the last one does; `off` trains all trials to the end.
        sampler: `curves` (a model of all partial learning curves and Optuna's TPE, which propose in turn), `random`,
            Optuna's `tpe`, or Optuna's `gp` (which does not learn from stopped trials).
        startup_trials: number of trials, including the baseline, before the sampler replaces random proposals.
        seed: seed of proposals, weights, order of the images, dropout and augmentation.
        time_budget: duration after which the search stops, such as `30m`, `1h30m` or `90s`; None: no limit.
        audit_fraction: probability that a trial is an audit trial, which no rung stops; audit trials measure what
            early stopping loses.
        metric: what trials are ranked by, on the validation images; `loss` is the mean negative log-likelihood.
        memory: earlier searches, from which the first trials after the baseline are taken: `shipped` (those in the
            package), `own` (the finished experiments in the results folder), and names or paths of experiments. In a
            file, one of them need not be a list, and `none` is the empty list.
    """

    trials: int | None = Field(default=None, ge=1, le=MOST_TRIALS)
    epoch_budget: int | None = Field(default=None, ge=1, le=1_000_000_000)
    grace_epochs: int = Field(default=1, ge=1, le=100_000)
    reduction_factor: int = Field(default=3, ge=2, le=100_000)
    asha: Literal["adaptive", "stop", "off"] = "adaptive"
    sampler: Sampler = "curves"
    startup_trials: int = Field(default=10, ge=1, le=MOST_TRIALS)
    seed: int = Field(default=0, ge=0, lt=2**32)
    time_budget: str | None = None
    audit_fraction: float = Field(default=0.0, ge=0, le=1)
    metric: MetricName = "accuracy"
    memory: Names = (SHIPPED, OWN)

    @field_validator("asha", mode="before")
    @classmethod
    def _off_is_no_boolean(cls, value: Any) -> Any:
        # YAML 1.1 reads `off` as false.
        return "off" if value is False else value

    @field_validator("time_budget", mode="before")
    @classmethod
    def _must_be_a_duration(cls, text: Any) -> Any:
        if text is not None:
            duration_s(str(text))
        return text

    @property
    def most_trials(self) -> int:
        """Largest number of trials that the search can start."""
        if self.trials is not None:
            return self.trials
        # Each trial trains at least one epoch. The limit also ends a search in which all trials fail before that.
        return MOST_TRIALS if self.epoch_budget is None else min(MOST_TRIALS, self.epoch_budget)

    @property
    def time_budget_s(self) -> float | None:
        return None if self.time_budget is None else duration_s(self.time_budget)


class Confirm(Section):
    """Replicates of the best trials: trainings with fresh random streams, before a winner is chosen.

    Attributes:
        top: number of the best trials to replicate, in addition to the baseline; 0: no replicates.
        seeds: number of replicates per trial; fewer if the order is clear before, more for tied trials.
        budget: largest number of epochs of replicates, as a share of the epochs of the search.
    """

    top: int = Field(default=3, ge=0, le=100)
    seeds: int = Field(default=3, ge=2, le=100)
    budget: float = Field(default=0.33, ge=0, le=1000)


class Resources(Section):
    """Devices and parallel trials of the search.

    Attributes:
        device: `auto` is CUDA if torch finds a CUDA device, otherwise the CPU.
        trials_at_once: number of parallel trials on a CPU; `auto` is one per core.
        trials_per_gpu: number of trials that share one GPU; `auto` times a few steps of 1, 2, 4 … parallel trials.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    trials_at_once: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    trials_per_gpu: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = "auto"


class MLflow(Section):
    """Tracking by MLflow.

    Attributes:
        tracking_uri: URI of a server or of an SQLite file; relative paths start at the working folder of the search.
        experiment_name: name of the experiment in MLflow; None: the name of the search's experiment.
    """

    tracking_uri: str
    experiment_name: str | None = Field(default=None, min_length=1, max_length=250)

    @field_validator("tracking_uri")
    @classmethod
    def _must_be_a_server_or_a_file(cls, uri: str) -> str:
        # MLflow would load a plug-in for any other scheme, and the space file may be untrusted.
        if not _TRACKING_URI.fullmatch(uri):
            raise ValueError("http://HOST:PORT, https://HOST or sqlite:///PATH, without a name and password")
        return uri


class Wandb(Section):
    """Tracking by Weights & Biases, whose key comes from `wandb login` or WANDB_API_KEY, never from a space file.

    Attributes:
        project: name of the project.
        entity: user or team; None: the user's default.
        mode: `offline` writes files to `./wandb` in the working folder of the search, for `wandb sync`.
    """

    project: str = Field(min_length=1, max_length=128)
    entity: str | None = Field(default=None, min_length=1, max_length=128)
    mode: Literal["online", "offline"] = "online"


class Track(Section):
    """Trackers that receive each epoch of each trial and replicate.

    Attributes:
        tensorboard: whether to write event files to the experiment's `ray/`, for `tensorboard --logdir`.
        mlflow, wandb: settings of the tracker; None: not used.
    """

    tensorboard: bool = True
    mlflow: MLflow | None = None
    wandb: Wandb | None = None


# Hyperparameters that `training` sets for all trials, unless `space` searches them.
SHARED_PARAMETERS = ("batch_size", "dropout", "weight_decay")
TRACKERS: Mapping[str, type[Section]] = {"mlflow": MLflow, "wandb": Wandb}
SECTIONS: Mapping[str, type[Section]] = {
    "dataset": Dataset,
    "training": Training,
    "search": Search,
    "confirm": Confirm,
    "resources": Resources,
    "track": Track,
}


def _section_of_hyperparameters(title: str, read: Callable[[str, Any], Any]) -> type[Section]:
    """A section with a key for each hyperparameter, whose value is `read(name, value)`."""
    keys: dict[str, Any] = {
        name: (Annotated[Any, PlainValidator(partial(read, name))], None) for name in HYPERPARAMETER_NAMES
    }
    return create_model(title, __base__=Section, __doc__=Hyperparameters.__doc__, **keys)


# A value of `space` becomes a `Parameter`, a value of `baseline` a number.
PARAMETERS: Mapping[str, type[Section]] = {
    "space": _section_of_hyperparameters("SpaceSection", parse_parameter),
    "baseline": _section_of_hyperparameters("Baseline", checked),
}
MODELS: Mapping[str, type[Section]] = {**SECTIONS, **PARAMETERS}
# A list of configurations, not a section: each has the keys of `baseline`, which completes it.
TRY_FIRST = "try_first"
# Sections that a file may omit.
OPTIONAL_SECTIONS = frozenset({"confirm", "resources", "track", "baseline"})


@dataclass(frozen=True)
class Space:
    """A validated space file.

    Attributes:
        name: name of the file without its suffix, for names of experiments and messages only.
        parameters: the hyperparameters that the file gives, searched or fixed, by name.
        baseline: the hand-picked configuration, which is the first trial and always completes.
        try_first: configurations that run right after the baseline, in this order; all lie in the space.
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
    try_first: tuple[Hyperparameters, ...] = ()

    @property
    def searched(self) -> dict[str, Searched]:
        """The parameters that the sampler proposes, in the order of the file."""
        return {name: p for name, p in self.parameters.items() if not isinstance(p, Fixed)}

    @property
    def rung_epochs(self) -> tuple[int, ...]:
        """Epochs at which ASHA compares trials, ascending; the last is `max_epochs`."""
        if self.search.asha == "off":
            return (self.training.max_epochs,)
        return rung_epochs(self.search.grace_epochs, self.search.reduction_factor, self.training.max_epochs)

    def complete(self, suggested: Mapping[str, Number]) -> Hyperparameters:
        """The complete configuration for a proposal of the sampler.

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

    def searched_values(self, config: Hyperparameters) -> dict[str, Number]:
        """Values of the searched parameters in a configuration."""
        return {name: getattr(config, name) for name in self.searched}

    def contains(self, config: Hyperparameters) -> bool:
        """Whether a configuration lies in the searched ranges and equals the baseline elsewhere."""
        searched = self.searched
        return all(
            searched[name].contains(value) if name in searched else value == getattr(self.baseline, name)
            for name, value in config.as_dict().items()
        )

    def as_dict(self) -> dict[str, Any]:
        """Content of the file for YAML, with all defaults written out.

        Each hyperparameter has exactly one source: a fixed value in `space`, a value in `training`, or `baseline`.
        """
        sections = {name: getattr(self, name).model_dump() for name in SECTIONS}
        for name in self.parameters:
            sections["training"].pop(name, None)
        elsewhere = {*sections["training"], *(self.parameters.keys() - self.searched.keys())}
        listed = [self.searched_values(config) for config in self.try_first]
        return {
            **sections,
            "space": {name: parameter.as_yaml() for name, parameter in self.parameters.items()},
            "baseline": {name: value for name, value in self.baseline.as_dict().items() if name not in elsewhere},
            **({TRY_FIRST: listed} if listed else {}),
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
        ValueError: the text is not of that form; names the rule only.
    """
    match = _DURATION.fullmatch(text)
    hours, minutes, seconds = (int(group or 0) for group in match.groups()) if match else (0, 0, 0)
    total_s = 3600.0 * hours + 60.0 * minutes + seconds
    if not total_s:
        raise ValueError("a duration such as 30m, 1h30m or 90s")
    return total_s
