"""`from search import Experiment` as it is used in a notebook."""

import subprocess
import sys
from pathlib import Path

import pytest

from search import Experiment
from search.analysis.csv_files import write_tables
from search.experiment.events import ReplicateStarted, TrialEnded, TrialStarted
from search.pages.report import report_figures
from spaces import InputError, Space
from tests.support.foreign import make_experiment
from tests.support.simulation import run_result


@pytest.fixture
def experiment(tiny_space: Space, tmp_path: Path) -> Experiment:
    return Experiment(make_experiment(tmp_path / "results", "mine", tiny_space).folder)


def test_trials_and_curves_are_frames(experiment: Experiment) -> None:
    given = Experiment(str(experiment.folder))
    trials = given.trials
    assert trials["status"].to_dict() == {0: "completed", 1: "running"}
    assert trials.loc[0, "validation_accuracy"] == 0.7
    assert trials.loc[1, "lr"] == experiment.space.baseline.lr
    curves = given.curves
    assert curves.groupby("trial")["epoch"].max().to_dict() == {0: 3, 1: 1}
    assert given.replicates.empty
    assert "validation_accuracy" in given.replicates.columns
    assert given.best is not None
    assert (given.best.trial, given.best.config) == (0, experiment.space.baseline)


def test_frames_say_what_the_csv_files_say(experiment: Experiment) -> None:
    import pandas as pd

    journal = experiment.journal()
    journal.append(ReplicateStarted(0, 0, 1, 5.0))
    journal.append(run_result(0, 1, 0.6))
    write_tables(experiment, experiment.history())
    for name, frame in (("curves", experiment.curves), ("replicates", experiment.replicates)):
        pd.testing.assert_frame_equal(pd.read_csv(experiment.folder / f"{name}.csv"), frame)
    written = pd.read_csv(experiment.folder / "trials.csv").set_index("trial")
    assert list(written.columns) == list(experiment.trials.columns)
    assert list(written["validation_accuracy"]) == list(experiment.trials["validation_accuracy"])


def test_a_notebook_shows_a_table_in_which_nothing_is_html(experiment: Experiment, tmp_path: Path) -> None:
    experiment.journal().append(TrialEnded(1, "failed", "<script>alert(1)</script>\x1b[2J", 2.0))
    renamed = tmp_path / "results" / "<img src=x>"
    experiment.folder.rename(renamed)
    shown = Experiment(renamed)._repr_html_()
    assert "<table" in shown
    assert "70.00%" in shown
    assert "Trial 0 leads with 70.00% validation accuracy" in shown
    assert "<script" not in shown
    assert "<img" not in shown
    assert "\x1b" not in shown


def test_an_experiment_has_a_name_in_results_or_a_path(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Experiment("mine").folder == Path("results/mine")
    assert Experiment("mine", experiment.folder.parent).folder == experiment.folder
    assert Experiment("results/mine").name == Experiment(Path("results", "mine")).name == "mine"
    with pytest.raises(InputError, match="`nobody` is not an experiment: results/ has mine"):
        Experiment("nobody")
    with pytest.raises(InputError, match="nobody` is not an experiment"):
        Experiment(tmp_path / "nobody")


def test_the_tab_key_offers_what_a_user_may_call(experiment: Experiment) -> None:
    reading = ["best", "curves", "figures", "predictor", "replicates", "trials"]
    assert dir(experiment) == sorted([*reading, "folder", "name", "space"])
    assert all(hasattr(experiment, name) for name in dir(experiment))


def test_a_search_that_has_not_begun_is_empty(tiny_space: Space, experiment: Experiment, tmp_path: Path) -> None:
    from search.experiment.folder import create_experiment

    begun = Experiment(create_experiment(tmp_path / "results", "begun", tiny_space, experiment.manifest).folder)
    assert begun.trials.empty
    assert begun.curves.empty
    assert begun.best is None
    assert "No trial has completed yet." in begun._repr_html_()


def test_trials_without_an_epoch_have_empty_cells(tiny_space: Space, experiment: Experiment, tmp_path: Path) -> None:
    from search.experiment.folder import create_experiment

    begun = Experiment(create_experiment(tmp_path / "results", "begun", tiny_space, experiment.manifest).folder)
    for number in range(2):
        suggested = tiny_space.searched_values(tiny_space.baseline)
        begun.journal().append(TrialStarted(number, suggested, tiny_space.baseline, number == 0, 0.0))
    begun.journal().append(ReplicateStarted(0, 0, 1, 5.0))
    shown = begun._repr_html_()
    assert "None" not in shown
    assert "nan" not in shown.lower()
    results = ["validation_accuracy", "validation_loss", "replicate_accuracy", "replicate_half_width"]
    assert {str(kind) for kind in begun.trials[results].dtypes} == {"float64"}


def test_the_figures_are_the_report_s(experiment: Experiment) -> None:
    figures, in_the_report = experiment.figures, report_figures(experiment)
    assert {"learning_curves", "optimisation_history", "rungs", "slice_lr"} <= figures.keys()
    assert [each.to_json() for each in figures.values()] == [each.to_json() for each in in_the_report.values()]


def test_the_package_itself_imports_nothing_heavy() -> None:
    program = "import sys, search; print([n for n in ('pandas', 'numpy', 'yaml', 'pydantic') if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "[]\n"
    with pytest.raises(ImportError, match="Experimnt"):
        from search import Experimnt  # noqa: F401
