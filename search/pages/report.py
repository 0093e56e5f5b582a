"""The content of a report, for its template. Reads the experiment's folder; writes nothing."""

import plotly.graph_objects as go

from search.analysis.diagnosis import diagnose
from search.analysis.findings import HEADINGS
from search.analysis.importance import N_SHUFFLED, Importance, importance_at
from search.analysis.ranking import lead_sentence, n_by_replicates
from search.analysis.rung_statistics import rung_survival
from search.analysis.space_findings import importance_epoch
from search.experiment.command_lines import command_line
from search.experiment.folder import Experiment
from search.experiment.manifest import timestamp
from search.pages import plots, run_plots
from search.pages.headline import headline, remarks, retraining_sentences
from search.pages.page import render
from search.pages.pictures import augmented_pictures, mistake_pictures
from search.pages.report_data import ReportData, commands, read_all
from search.pages.tables import MOST_ROWS, facts, leaderboard, winner_rows
from search.policy.budget import progress_text

MOST_NARROW_CLASSES = 12  # columns of a confusion matrix that fit a telephone


def report_html(experiment: Experiment) -> str:
    """The page; works while the search runs.

    Raises:
        InputError: the experiment cannot be read. Damaged files of `final/` give a sentence on the page instead.
    """
    known = read_all(experiment)
    space, manifest, final = known.space, known.manifest, known.final
    importance = importance_at(importance_epoch(space), known.counting, space)
    findings = diagnose(known.history, space, manifest.data.n_validation, importance)
    figures = _figures(known, importance)
    columns, rows = leaderboard(known)
    mistakes, mistakes_caption = mistake_pictures(known)
    config = known.best.config if known.best else None
    augmentation, augmentation_caption = augmented_pictures(manifest.data, space.dataset.image_size, config)
    return render(
        f"{experiment.name}: report of a search",
        figures,
        kind=f"Search of {manifest.space} on {space.dataset.name}, begun {_utc(manifest.created_at)}",
        name=experiment.name,
        metric=known.history.metric.title,
        lead=lead_sentence(known.history, known.ranked),
        remarks=remarks(known),
        stats=headline(known),
        leaderboard_caption=_leaderboard_caption(known),
        columns=columns,
        rows=rows,
        winner_rows=winner_rows(known),
        findings=[
            (heading, [one for one in findings if one.verdict == verdict]) for verdict, heading in HEADINGS.items()
        ],
        curves_caption=_curves_caption(known),
        rungs_caption=_rungs_caption(known),
        n_shuffled=N_SHUFFLED,
        slices=[name for name in figures if name.startswith("slice-")],
        test_sentences=retraining_sentences(known),
        confusion_is_wide=final is not None and len(final.class_names) > MOST_NARROW_CLASSES,
        mistakes=mistakes,
        mistakes_caption=mistakes_caption,
        augmentation=augmentation,
        augmentation_caption=augmentation_caption,
        commands=commands(known),
        facts=facts(known),
        footer=f"Made {_utc(timestamp())} by python -m search.report. This page fetches nothing, and sends nothing.",
    )


def report_figures(experiment: Experiment) -> dict[str, go.Figure]:
    """The figures of the page, by their names there; a figure that has no data yet is left out."""
    known = read_all(experiment)
    return _figures(known, importance_at(importance_epoch(known.space), known.counting, known.space))


def _figures(known: ReportData, importance: Importance | None) -> dict[str, go.Figure]:
    space, trials, best, is_live = known.space, known.counting, known.winner_number, known.is_live
    figures: dict[str, go.Figure] = {}
    if any(trial.n_epochs for trial in trials):
        figures["curves"] = plots.learning_curves(trials, best, space.rung_epochs, is_live)
        figures["rungs"] = run_plots.rung_bars(rung_survival(trials, space))
        figures["history"] = plots.optimisation_history(trials, best, is_live)
        figures |= {f"slice-{name}": plot for name, plot in plots.slices(space, trials, best, is_live).items()}
    more = {
        "replicates": run_plots.replicate_plot(known),
        "timeline": run_plots.timeline(known),
        "parallel": plots.parallel_coordinates(space, trials, best),
        "importance": importance and plots.importance_bars(importance),
        "confusion": known.final and plots.confusion(known.final),
    }
    return figures | {name: figure for name, figure in more.items() if figure}


def _leaderboard_caption(known: ReportData) -> str:
    n_trials, title = len(known.ranked), known.history.metric.title
    shown = "" if n_trials <= MOST_ROWS else f" The first {MOST_ROWS:,} of {n_trials:,} are here."
    n = n_by_replicates(known.ranked)
    by = f" Of the ranks, the first {n} rest on replicates, and those below on forecasts from the search." if n else ""
    return (
        f"{progress_text(known.history, known.space)}. The {title} is of the validation images, after a trial’s "
        f"last epoch: stopped trials had fewer.{by}{shown}"
    )


def _utc(at: str) -> str:
    """`2026-11-23 07:43:41 UTC`."""
    return at.replace("T", " ").replace("+00:00", " UTC")


def _curves_caption(known: ReportData) -> str:
    n_all, n_most = len(known.counting), plots.MOST_CURVES
    some = f" {n_most} of the {n_all:,} trials are drawn, evenly chosen." if n_all > n_most else ""
    rungs = ", ".join(str(epoch) for epoch in known.space.rung_epochs[:-1])
    lines = f"Dotted lines are ASHA’s rungs (epochs {rungs}); " if rungs else ""
    return f"A line is a trial. {lines}grey lines ended there.{some}" if lines else f"A line is a trial.{some}"


def _rungs_caption(known: ReportData) -> str:
    if known.space.search.asha == "off":
        return "ASHA is off: every trial is trained to the end."
    search, early = known.space.search, ", ".join(str(epoch) for epoch in known.space.rung_epochs[:-2])
    if search.asha == "adaptive" and early:
        which = f"the last rung, and of {early} too while they order the trials as the last one does"
    else:
        which = "each rung"
    command = command_line("why", known.experiment.name, "TRIAL", results=known.experiment.results)
    return (
        f"About one in {search.reduction_factor} should pass {which}. The baseline and audit trials go to the end "
        f"whatever a rung says. What it compared a trial with: {command}"
    )
