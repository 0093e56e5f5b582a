"""The content of a report, for its template. Reads the experiment's folder; writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go

from search.analysis.importance import MIN_TRIALS, N_SHUFFLED, Importance, importance_at
from search.analysis.ranking import lead_sentence, n_by_replicates
from search.analysis.rung_statistics import RungSurvival, rung_survival
from search.analysis.stopping_findings import savings
from search.experiment.folder import Experiment
from search.experiment.manifest import timestamp
from search.pages import plots as report_plots
from search.pages.augmentation import Picture, augmented_pictures
from search.pages.headline import Stat, headline, remarks
from search.pages.next_commands import Command, commands
from search.pages.page import Column, Row, render
from search.pages.report_data import ReportData, read_all
from search.pages.tables import MOST_ROWS, WinnerRow, facts, trial_columns, trial_rows, winner_rows
from search.pages.testing import MistakePicture, mistake_pictures, tested_sentences
from search.policy.budget import progress_text
from search.policy.study import study_of
from spaces.counted import counted
from spaces.parameters import Hyperparameters

MOST_NARROW_CLASSES = 12  # columns of a confusion matrix that fit a telephone


@dataclass(frozen=True)
class Report:
    """Content of the template, which escapes the texts."""

    kind: str
    name: str
    lead: str
    remarks: list[str]
    stats: list[Stat]
    leaderboard_caption: str
    columns: list[Column]
    rows: list[Row]
    winner_rows: list[WinnerRow]
    curves_caption: str
    rungs: list[RungSurvival]
    rungs_caption: str
    importance_caption: str
    slices: list[str]
    test_sentences: list[str]
    confusion_caption: str
    confusion_is_wide: bool
    mistakes: list[MistakePicture]
    mistakes_caption: str
    augmentation: list[list[Picture]]
    augmentation_caption: str
    commands: list[Command]
    facts: list[tuple[str, str]]
    footer: str
    figures: Mapping[str, go.Figure] = field(default_factory=dict)


def report_html(experiment: Experiment) -> str:
    """The page; works while the search runs.

    Raises:
        InputError: the experiment cannot be read. Damaged files of `final/` give a sentence on the page instead.
    """
    report = make_report(read_all(experiment))
    return render("report.html", f"{report.name}: report of a search", report.figures, report=report)


def make_report(known: ReportData) -> Report:
    """Sentences, tables and figures of an experiment."""
    space, n_trials = known.space, len(known.history.trials)
    rungs = rung_survival(known.counting, space)
    importance = importance_at(space.rung_epochs[0], known.counting, space)
    figures = _figures(known, rungs, importance)
    mistakes, mistakes_caption = mistake_pictures(known)
    augmentation, augmentation_caption = augmented_pictures(
        known.manifest.data, space.dataset.image_size, _winner_config(known)
    )
    return Report(
        kind=f"Search of {known.manifest.space} on {space.dataset.name}, begun {_utc(known.manifest.created_at)}",
        name=known.experiment.name,
        lead=lead_sentence(known.history, known.ranked, known.manifest.data.chance),
        remarks=remarks(known),
        stats=headline(known),
        leaderboard_caption=_leaderboard_caption(known, n_trials),
        columns=trial_columns(known),
        rows=trial_rows(known),
        winner_rows=winner_rows(known),
        curves_caption=_curves_caption(known),
        rungs=rungs,
        rungs_caption=_rungs_caption(known),
        importance_caption=_importance_caption(importance, known),
        slices=[name for name in figures if name.startswith("slice-")],
        test_sentences=tested_sentences(known),
        confusion_caption="Of the exported seed. Figures are images, colours are shares of the true class.",
        confusion_is_wide=known.final is not None and len(known.final.class_names) > MOST_NARROW_CLASSES,
        mistakes=mistakes,
        mistakes_caption=mistakes_caption,
        augmentation=augmentation,
        augmentation_caption=augmentation_caption,
        commands=commands(known),
        facts=facts(known),
        footer=f"Made {_utc(timestamp())} by python -m search.report. This page fetches nothing, and sends nothing.",
        figures=figures,
    )


def _figures(known: ReportData, rungs: Sequence[RungSurvival], importance: Importance | None) -> dict[str, go.Figure]:
    space, trials, best, is_live = known.space, known.counting, known.winner_number, known.is_live
    figures: dict[str, go.Figure] = {}
    if any(trial.n_epochs for trial in trials):
        figures["curves"] = report_plots.learning_curves(trials, best, space.rung_epochs, is_live)
        figures["rungs"] = report_plots.rung_bars(rungs)
        figures["history"] = report_plots.optimisation_history(trials, best, study_of(space, known.history), is_live)
        figures |= {f"slice-{name}": plot for name, plot in report_plots.slices(space, trials, best, is_live).items()}
    parallel = report_plots.parallel_coordinates(space, trials, best)
    if parallel is not None:
        figures["parallel"] = parallel
    if importance is not None:
        figures["importance"] = report_plots.importance_bars(importance)
    if known.final is not None:
        figures["confusion"] = report_plots.confusion(known.final)
    return figures


def _leaderboard_caption(known: ReportData, n_trials: int) -> str:
    shown = "" if n_trials <= MOST_ROWS else f" The first {MOST_ROWS:,} of {n_trials:,} are here."
    n = n_by_replicates(known.ranked)
    by = f" Of the ranks, the first {n} rest on replicates, and those below on the accuracy in the search." if n else ""
    return (
        f"{progress_text(known.history, known.space)}. Accuracy is of the validation images, after a trial’s last "
        f"epoch: stopped trials had fewer.{by}{shown}"
    )


def _utc(at: str) -> str:
    """`2026-11-23 07:43:41 UTC`."""
    return at.replace("T", " ").replace("+00:00", " UTC")


def _winner_config(known: ReportData) -> Hyperparameters | None:
    return known.best.config if known.best else None


def _curves_caption(known: ReportData) -> str:
    n_all, n_most = len(known.counting), report_plots.MOST_CURVES
    some = f" {n_most} of the {n_all:,} trials are drawn, evenly chosen." if n_all > n_most else ""
    rungs = ", ".join(str(epoch) for epoch in known.space.rung_epochs[:-1])
    lines = f"Dotted lines are ASHA’s rungs (epochs {rungs}); " if rungs else ""
    return f"A line is a trial. {lines}grey lines ended there.{some}" if lines else f"A line is a trial.{some}"


def _rungs_caption(known: ReportData) -> str:
    if known.space.search.asha == "off":
        return "ASHA is off: every trial is trained to the end."
    factor = known.space.search.reduction_factor
    rule = "go on from" if known.space.search.asha == "promote" else "pass"
    found = savings(known.history, known.space)
    return (
        f"About one in {factor} should {rule} each rung. The baseline and audit trials go to the end whatever a "
        f"rung says. {found.sentence}"
    )


def _importance_caption(importance: Importance | None, known: ReportData) -> str:
    if importance is None:
        return (
            f"What mattered cannot be told from {counted(len(known.counting), 'trial')} and "
            f"{counted(len(known.space.searched), 'parameter')}: it takes {MIN_TRIALS} trials of different accuracy, "
            "and 2 parameters."
        )
    found = importance.found
    names = ", ".join(found)
    verdict = f"{names} mattered more than chance explains" if found else "none explains more than chance does"
    return (
        f"Which hyperparameters explain the accuracies of {importance.n} trials after epoch {importance.epoch}, where "
        f"all can be compared (fANOVA): {verdict}. The dashed line is the largest share that {N_SHUFFLED} shufflings "
        f"of the values gave."
    )
