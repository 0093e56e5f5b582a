"""The figures at the head of a report, and sentences about the state of the search and about the test images."""

from typing import NamedTuple

from search.analysis.columns import replicate_text
from search.analysis.ranking import leader, over_baseline, points_text
from search.analysis.stopping_findings import saved_epochs
from search.experiment.command_lines import command_on
from search.experiment.manifest import seconds_used, use_of_test_set_text
from search.pages.report_data import ReportData, go_on_line, is_unfinished
from search.policy.budget import epochs_trained
from spaces.counted import counted, duration_text
from trainable.metric import ACCURACY


class Stat(NamedTuple):
    """A figure of the headline."""

    label: str
    value: str
    note: str


def headline(known: ReportData) -> list[Stat]:
    """Validation accuracy, lead, test accuracy, cost and savings."""
    return [_validation_stat(known), *_lead_stats(known), _test_stat(known), _cost_stat(known), _savings_stat(known)]


def _validation_stat(known: ReportData) -> Stat:
    best, label = known.best, f"Validation {known.history.metric.title}"
    if best is None:
        why = "no winner: the best is at chance" if leader(known.ranked) else "no trial has completed yet"
        return Stat(label, "–", why)
    by = f"trial {best.trial}; "
    if best.replicates:
        runs = counted(best.replicates.n_runs, "replicate")
        interval = "" if best.replicates.half_width is None else ", 95 % interval"
        return Stat(label, replicate_text(best.replicates), f"{by}mean of {runs}{interval}")
    return Stat(label, best.result_text, f"{by}one seed, which had {best.search_text}")


def _lead_stats(known: ReportData) -> list[Stat]:
    over = over_baseline(known.history, known.ranked)
    if over is None:
        return []
    if over.lead is None:
        return [Stat("Lead over the baseline", "–", over.doubt)]
    interval = [] if over.lead.half_width is None else ["95 % interval"]
    return [Stat("Lead over the baseline", points_text(over.lead), "; ".join([*interval, over.doubt or "clear of 0"]))]


def _test_stat(known: ReportData) -> Stat:
    final, label = known.final, f"Test {known.history.metric.title}"
    if final is None:
        return Stat(label, "–", "not opened" if not known.manifest.test_openings else "see below")
    metric, mean, interval = ACCURACY, final.test_accuracy_mean, final.test_accuracy_interval_95
    if searched := final.test_metrics.get(known.history.metric.name):
        metric, mean, interval = known.history.metric, searched.mean, searched.interval_95
    ends = [metric.text(metric.value(end)) for end in interval or ()]
    seeds = counted(len(final.test_accuracy_per_seed), "seed")
    spread = f"95 % interval {' – '.join(ends)}, " if ends else ""
    other = "" if final.trial == known.winner_number else f" of trial {final.trial}"
    return Stat(f"Test {metric.title}", metric.text(metric.value(mean)), f"{spread}{seeds}{other}")


def _cost_stat(known: ReportData) -> Stat:
    replicate_epochs = sum(run.n_epochs for run in known.history.replicates.values())
    confirming = f", {replicate_epochs:,} of them replicates" if replicate_epochs else ""
    seconds = seconds_used(known.manifest.sessions, known.history)
    device = known.manifest.device
    n_epochs = known.history.n_epochs + replicate_epochs
    note = f"{counted(n_epochs, 'epoch')}{confirming}; {device.trials_at_once} at once on {device.device}"
    return Stat("Cost", duration_text(seconds), note)


def _savings_stat(known: ReportData) -> Stat:
    saved = saved_epochs(known.history, known.space)
    return Stat(
        "Saved by ASHA", counted(saved, "epoch"), f"of {epochs_trained(known.history) + saved:,} without stopping"
    )


def remarks(known: ReportData) -> list[str]:
    """Remarks about a search that runs, is not finished, or was changed."""
    found = []
    if known.is_live:
        found.append("The search was running when this page was made.")
    elif is_unfinished(known):
        found.append(f"The search is not finished; this resumes it: {go_on_line(known)}")
    n_aside = len(known.history.trials) - len(known.counting)
    if n_aside:
        lie = "lies" if n_aside == 1 else "lie"
        found.append(
            f"{counted(n_aside, 'trial')} {lie} outside the space as it was changed later; the figures leave them out."
        )
    return found


def retraining_sentences(known: ReportData) -> list[str]:
    """Sentences about the uses and results of the test images."""
    openings = [use_of_test_set_text(opening) for opening in known.manifest.test_openings]
    if known.final_problem:
        return [f"What retraining left cannot be shown: {known.final_problem}", *openings]
    if known.final is None and openings:
        return ["The test images were opened, but final/metrics.json is not here.", *openings]
    if known.final is None:
        how = (
            f" To retrain the winner and test it once: {command_on('retrain', known.experiment)}" if known.best else ""
        )
        return [f"The test images have not been opened.{how}"]
    final = known.final
    seeds = ", ".join(f"{one.accuracy:.2%}" for one in final.test_accuracy_per_seed)
    by_seed = f"Accuracy by seed: {seeds}. The interval is over seeds, not over test images."
    return [
        f"Trial {final.trial} was retrained for {counted(final.epochs, 'epoch')} and tested on "
        f"{final.tested_on.n_images:,} images. {by_seed}",
        *openings,
    ]
