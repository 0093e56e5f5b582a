"""The figures at the head of a report, and what a reader must know before believing them."""

from dataclasses import dataclass

from search.estimates import duration_text
from search.fresh_statistics import lead
from search.manifest import seconds_used
from search.ranking import fresh_text
from search.report_known import Known
from search.stopping_findings import savings
from spaces.printable import shell_word


@dataclass(frozen=True, slots=True)
class Stat:
    """A figure of the headline."""

    label: str
    value: str
    note: str


def headline(known: Known) -> list[Stat]:
    """Validation, lead, test, cost and what stopping saved."""
    return [*_validation_stats(known), _test_stat(known), _cost_stat(known), _savings_stat(known)]


def _validation_stats(known: Known) -> list[Stat]:
    best, baseline = known.best, known.baseline
    if best is None or best.validation_accuracy is None:
        return [Stat("Validation accuracy", "–", "no trial has completed yet")]
    by = f"trial {best.trial}; "
    if best.fresh:
        runs = "1 fresh run" if best.fresh.n_runs == 1 else f"{best.fresh.n_runs} fresh runs"
        stats = [Stat("Validation accuracy", fresh_text(best.fresh), f"{by}mean of {runs}, 95 % interval")]
    else:
        note = f"{by}one seed, on the images that chose it"
        stats = [Stat("Validation accuracy", f"{best.validation_accuracy:.2%}", note)]
    if baseline is None or best.baseline:
        note = "the hand-picked configuration is the best" if best.baseline else "there is none to compare with"
        return [*stats, Stat("Lead over the baseline", "–", note)]
    ahead = lead(known.history, best.trial, baseline.number)
    if best.fresh and ahead.half_width is not None:
        spread = f" ± {100 * ahead.half_width:.2f}"
        note = "95 % interval, " + ("which is clear of 0" if ahead.is_clear else "not distinguishable")
        return [*stats, Stat("Lead over the baseline", f"{100 * ahead.mean:+.2f}{spread} points", note)]
    if baseline.status == "completed" and baseline.last:
        points = 100 * (best.validation_accuracy - baseline.last.validation_accuracy)
        return [*stats, Stat("Lead over the baseline", f"{points:+.2f} points", "one seed each: how sure is not known")]
    return [*stats, Stat("Lead over the baseline", "–", "the baseline has not completed")]


def _test_stat(known: Known) -> Stat:
    final = known.final
    if final is None:
        return Stat("Test accuracy", "–", "not opened" if not known.manifest.test_openings else "see below")
    interval, n_seeds = final.test_accuracy_interval_95, len(final.test_accuracy_per_seed)
    seeds = "1 seed" if n_seeds == 1 else f"{n_seeds} seeds"
    spread = f"95 % interval {interval[0]:.2%} – {interval[1]:.2%}, " if interval else ""
    other = "" if final.trial == known.winner_number else f" of trial {final.trial}"
    return Stat("Test accuracy", f"{final.test_accuracy_mean:.2%}", f"{spread}{seeds}{other}")


def _cost_stat(known: Known) -> Stat:
    fresh = sum(run.n_epochs for run in known.history.runs.values())
    confirming = f", {fresh:,} of them fresh runs" if fresh else ""
    seconds = seconds_used(known.manifest.sessions, known.history)
    device = known.manifest.device
    note = f"{known.history.n_epochs + fresh:,} epochs{confirming}; {device.trials_at_once} at once on {device.device}"
    return Stat("Cost", duration_text(seconds), note)


def _savings_stat(known: Known) -> Stat:
    numbers = savings(known.history, known.space).numbers
    saved, trained = int(numbers["saved"]), int(numbers["trained"])
    return Stat("Saved by ASHA", f"{saved:,} epochs", f"of {saved + trained:,} without stopping")


def remarks(known: Known) -> list[str]:
    """What else to know: that the search still runs, is not finished, or was changed on the way."""
    found = []
    if known.manifest.state == "running" and known.experiment.is_live():
        found.append("The search was running when this page was made.")
    elif known.manifest.state == "running" or known.history.unfinished:
        name = shell_word(known.experiment.name)
        found.append(f"The search is not finished; this goes on with it: python -m search.run --resume {name}")
    n_aside = len(known.history.trials) - len(known.counting)
    if n_aside:
        found.append(f"{n_aside} trials lie outside the space as it was changed later; the figures leave them out.")
    return found
