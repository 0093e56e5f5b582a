"""What the caller asks of a session: typed arguments instead of the options of a command."""

from dataclasses import dataclass
from pathlib import Path

from search.experiment.folder import Experiment


@dataclass(frozen=True, kw_only=True)
class SessionRequest:
    """What new and resumed searches have in common.

    Attributes:
        started_s: time of the command, by the monotonic clock; the time budget counts from it.
        results: folder of the experiments on this machine.
        results_url: URL that `results` is a copy of; None without one.
        space: name or path of a space or experiment; None for the default, or for the experiment's own.
        overrides: `SECTION.KEY=VALUE`; a later one wins.
        address: of a Ray cluster, `auto` or `HOST:PORT`; None starts Ray on this machine.
        quiet: print the result only.
        plain: print one line per event, in a terminal too.
    """

    started_s: float
    results: Path
    results_url: str | None = None
    space: str | None = None
    overrides: tuple[str, ...] = ()
    address: str | None = None
    quiet: bool = False
    plain: bool = False


@dataclass(frozen=True, kw_only=True)
class SearchRequest(SessionRequest):
    """A new search. `name` is the experiment's; None derives it from the space's name and the time."""

    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class ResumeRequest(SessionRequest):
    """The next session of an existing experiment.

    Attributes:
        add_trials, add_epochs: raise this limit of the search by a number; None leaves it.
        time_budget: of the whole search, such as `1h30m`, for this session; None for the experiment's own.
        allow_changed_space: resume although the searched space was changed.
    """

    experiment: Experiment
    add_trials: int | None = None
    add_epochs: int | None = None
    time_budget: str | None = None
    allow_changed_space: bool = False
