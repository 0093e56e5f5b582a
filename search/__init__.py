"""The commands of a search. In a notebook: `from search import Experiment`."""

from typing import TYPE_CHECKING, Any

from trainable import must_be_ours

if TYPE_CHECKING:
    from search.notebook import Experiment

__all__ = ["Experiment"]

must_be_ours("trainable", "fit_evaluate.py")


def __getattr__(name: str) -> Any:
    # Every command imports this package, and must answer `--help` at once.
    if name == "Experiment":
        from search.notebook import Experiment

        return Experiment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
