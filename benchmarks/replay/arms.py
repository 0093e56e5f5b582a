"""The arms of the replayed searches, and which of them a run takes.

All but those with `_SPREAD_LATER` were written down before the first result.
"""

from dataclasses import dataclass, replace
from typing import Literal

from spaces import Space
from spaces.schema import MOST_TRIALS, rung_epochs

Rule = Literal["ours", "rays"]


@dataclass(frozen=True, slots=True)
class OwnArm:
    """A search of the project: what its space file would say.

    Attributes:
        name: for tables.
        sampler, startup_trials, asha, grace_epochs, reduction_factor: as in `search` of a space.
        rule: of a stopping rung.
        workers: trials at once.
        most_seeds: fewer than the others have, where a proposal takes long.
    """

    name: str
    sampler: Literal["random", "tpe", "gp"] = "random"
    startup_trials: int = 10
    asha: Literal["off", "stop", "promote"] = "off"
    grace_epochs: int = 1
    reduction_factor: int = 3
    rule: Rule = "ours"
    workers: int = 4
    most_seeds: int | None = None


@dataclass(frozen=True, slots=True)
class RayArm:
    """Ray's own `OptunaSearch` and `ASHAScheduler` with their defaults but for the length of a trial.

    Attributes:
        name: for tables.
        random: whether Optuna's random sampler proposes instead of the default.
        baseline: whether the baseline is the first point to evaluate.
        workers: trials at once.
    """

    name: str
    random: bool = False
    baseline: bool = False
    workers: int = 4
    most_seeds: int | None = None


Arm = OwnArm | RayArm

REFERENCES: tuple[Arm, ...] = (OwnArm("random"), RayArm("ray-random", random=True), RayArm("ray-stock"))
REFERENCE_NAMES = tuple(arm.name for arm in REFERENCES)

FIRST_RUN: tuple[Arm, ...] = (
    *REFERENCES,
    RayArm("ray-stock+baseline", baseline=True),
    OwnArm("random-ray-1", asha="stop", rule="rays"),
    OwnArm("random-stop-1", asha="stop"),
    OwnArm("random-stop-3", asha="stop", grace_epochs=3),
    OwnArm("random-promote-1", asha="promote"),
    OwnArm("tpe", sampler="tpe"),
    OwnArm("tpe-stop-1", sampler="tpe", asha="stop"),
    OwnArm("tpe-stop-3", sampler="tpe", asha="stop", grace_epochs=3),
    OwnArm("tpe-promote-1", sampler="tpe", asha="promote"),
)

# As `spaces/cifar10.yaml` has it, and as a space file is taken that says nothing of it.
DEFAULT = "tpe-stop-9"
# After the first run: the references, what is the default now, and what it was chosen from.
_SHIPPED_NAMES = (
    *REFERENCE_NAMES,
    "random-ray-1",
    "random-stop-1",
    "random-stop-3",
    "random-stop-9",
    "random-promote-3",
    "tpe",
    "tpe-stop-3",
    DEFAULT,
    "tpe-promote-3",
)

# Of Gaussian processes: a proposal takes a fifth of a second.
GP_SEEDS = 10


def full_arms() -> tuple[Arm, ...]:
    """All that there are."""
    arms = [*FIRST_RUN, *_every_sampler_and_stopping(), *_reductions(), *_workers(), *_gaussian_processes()]
    named: dict[str, Arm] = {}
    for arm in arms:
        named.setdefault(arm.name, arm)
    return tuple(named.values())


def shipped_arms() -> tuple[Arm, ...]:
    """What a run takes that names no arm."""
    return tuple(arm for arm in full_arms() if arm.name in _SHIPPED_NAMES)


def _every_sampler_and_stopping() -> list[OwnArm]:
    arms = []
    samplers: tuple[Literal["random", "tpe"], ...] = ("random", "tpe")
    for sampler in samplers:
        for grace in (1, 3, 9):
            start = OwnArm("", sampler, grace_epochs=grace)
            arms.append(replace(start, name=f"{sampler}-ray-{grace}", asha="stop", rule="rays"))
            arms.append(replace(start, name=f"{sampler}-stop-{grace}", asha="stop"))
            arms.append(replace(start, name=f"{sampler}-promote-{grace}", asha="promote"))
    return arms


def _reductions() -> list[OwnArm]:
    return [
        OwnArm(f"{sampler}-{asha}-1-by-{reduction}", sampler, asha=asha, reduction_factor=reduction)
        for sampler in ("random", "tpe")
        for asha in ("stop", "promote")
        for reduction in (2, 4)
    ]


def _workers() -> list[Arm]:
    several: list[Arm] = []
    for workers in (2, 8, 16):
        suffix = f"-{workers}-workers"
        arms = [arm for arm in (*FIRST_RUN, *_every_sampler_and_stopping()) if arm.name in (*_SPREAD, *_SPREAD_LATER)]
        several += [replace(arm, name=arm.name + suffix, workers=workers) for arm in dict.fromkeys(arms)]
    return several


_SPREAD = ("random", "ray-stock", "random-stop-1", "random-promote-1", "tpe-stop-3", "tpe-promote-1")
# Added when the default had been chosen.
_SPREAD_LATER = ("ray-random", DEFAULT, "tpe-promote-3")


def _gaussian_processes() -> list[OwnArm]:
    gp = OwnArm("gp", "gp", most_seeds=GP_SEEDS)
    return [gp, replace(gp, name="gp-stop-9", asha="stop", grace_epochs=9)]


class ReplaySpace(Space):
    """A space whose last epoch need not be `grace × reduction^k`, so that reductions can be compared."""

    @property
    def rung_epochs(self) -> tuple[int, ...]:
        if self.search.asha == "off":
            return (self.training.max_epochs,)
        rungs = rung_epochs(self.search.grace_epochs, self.search.reduction_factor, self.training.max_epochs)
        return (*(epoch for epoch in rungs if epoch < self.training.max_epochs), self.training.max_epochs)


def space_of(arm: OwnArm, space: Space, epochs: int, seed: int) -> Space:
    """The space of a table as an arm searches it.

    Args:
        arm: how it is searched.
        space: of the table.
        epochs: of a trial that nothing stops.
        seed: of the search.
    """
    search = {
        **space.search.model_dump(),
        "trials": MOST_TRIALS,
        "grace_epochs": arm.grace_epochs,
        "reduction_factor": arm.reduction_factor,
        "asha": arm.asha,
        "sampler": arm.sampler,
        "startup_trials": arm.startup_trials,
        "seed": seed,
        "audit_fraction": 0.0,
    }
    return ReplaySpace(
        name=space.name,
        dataset=space.dataset,
        training=space.training.model_copy(update={"max_epochs": epochs}),
        search=type(space.search).model_validate(search),
        confirm=space.confirm,
        track=space.track,
        resources=space.resources,
        parameters=space.parameters,
        baseline=space.baseline,
    )
