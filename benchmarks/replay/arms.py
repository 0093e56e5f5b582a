"""The kinds of search that are replayed: the references, the default, and the arms that it was chosen from."""

from dataclasses import dataclass, replace
from typing import Literal

from spaces import Space
from spaces.schema import MOST_TRIALS


@dataclass(frozen=True, slots=True)
class OwnArm:
    """A search of the project.

    Attributes:
        name: name in tables.
        sampler, asha, grace_epochs: values of `search` in a space.
        memory: `shipped` without the searches on the images of the table; `wrong`: the same with negative scores.
    """

    name: str
    sampler: Literal["random", "tpe", "curves"] = "random"
    asha: Literal["off", "adaptive", "stop"] = "off"
    grace_epochs: int = 1
    memory: Literal["none", "shipped", "wrong"] = "none"


@dataclass(frozen=True, slots=True)
class RayArm:
    """Ray's `OptunaSearch` and `ASHAScheduler` with their defaults, except for the epochs of a trial.

    Attributes:
        name: name in tables.
        random: whether Optuna's random sampler replaces the default sampler.
    """

    name: str
    random: bool = False


Arm = OwnArm | RayArm

REFERENCES: tuple[Arm, ...] = (OwnArm("random"), RayArm("ray-random", random=True), RayArm("ray-stock"))
REFERENCE_NAMES = tuple(arm.name for arm in REFERENCES)
# Default of a space file, and of `spaces/cifar10.yaml`.
DEFAULT = "curves-adaptive-memory"
ARMS: tuple[Arm, ...] = (
    *REFERENCES,
    OwnArm("tpe", "tpe"),
    OwnArm("tpe-stop-9", "tpe", "stop", 9),
    OwnArm("tpe-adaptive", "tpe", "adaptive"),
    OwnArm("curves-adaptive", "curves", "adaptive"),
    OwnArm("tpe-stop-9-memory", "tpe", "stop", 9, "shipped"),
    OwnArm("tpe-adaptive-memory", "tpe", "adaptive", 1, "shipped"),
    OwnArm(DEFAULT, "curves", "adaptive", 1, "shipped"),
    OwnArm("tpe-adaptive-wrong", "tpe", "adaptive", 1, "wrong"),
    OwnArm("curves-adaptive-wrong", "curves", "adaptive", 1, "wrong"),
)


def space_of(arm: OwnArm, space: Space, epochs: int, seed: int) -> Space:
    """The space of a table with the settings of an arm.

    Args:
        arm: source of the settings.
        space: space of the table.
        epochs: epochs of a completed trial.
        seed: seed of the search.
    """
    search = {
        **space.search.model_dump(),
        "trials": MOST_TRIALS,
        "grace_epochs": arm.grace_epochs,
        "reduction_factor": 3,
        "asha": arm.asha,
        "sampler": arm.sampler,
        "startup_trials": 10,
        "seed": seed,
        "audit_fraction": 0.0,
    }
    return replace(
        space,
        training=space.training.model_copy(update={"max_epochs": epochs}),
        search=type(space.search).model_validate(search),
    )
