"""One search with hostile names, retrained and tested, and its report, for all tests of pages."""

from pathlib import Path

import pytest

from search.experiment.folder import Experiment
from search.pages.report import report_html
from spaces import Space, load_space
from tests.support import shown_experiment


@pytest.fixture(scope="package")
def space() -> Space:
    return load_space("quickstart", ["search.trials=20", "dataset.image_size=17", "dataset.train_limit=200"])


@pytest.fixture(scope="package")
def shown(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Not to be changed."""
    return shown_experiment.tested(tmp_path_factory.mktemp("results"), "shown", space)


@pytest.fixture(scope="package")
def report_file(shown: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "report.html"
    path.write_text(report_html(shown), encoding="utf-8")
    return path
