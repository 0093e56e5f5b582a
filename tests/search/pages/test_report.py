"""The report: what it says, that it holds together by itself, and that folders from elsewhere stay text in it."""

import base64
import contextlib
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from search import Experiment as NotebookExperiment
from search import report
from search.analysis.diagnosis import diagnose
from search.analysis.ranking import lead_sentence, rank
from search.analysis.rung_statistics import rung_survival
from search.experiment.events import SpaceSet, TrialEnded, TrialStarted
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.pages import plots
from search.pages.page import (
    BLUE,
    GREY,
    LINE,
    MUTED,
    ORANGE,
    PALE_BLUE,
    PANEL,
    PAPER,
    PURPLE,
    SHADES,
    TEXT,
    dark_by_light,
)
from search.pages.pictures import mistake_pictures
from search.pages.report import report_html
from search.pages.report_data import read_all
from search.policy.state import SearchState
from spaces import Space
from tests.support import foreign, shown_experiment
from tests.support.shown_experiment import HOSTILE
from tests.support.simulation import simulate


class Page(HTMLParser):
    """Elements with their attributes, texts of scripts, and all that is shown."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.shown: list[str] = []
        self._raw: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._raw = None

    def handle_data(self, data: str) -> None:
        if self._raw == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        elif self._raw is None:
            self.shown.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.shown).split())

    def test_images(self) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.elements if str(attributes.get("alt")).startswith("A test image")]

    def figures(self) -> dict[str, Any]:
        return {
            str(attributes["id"]).removeprefix("figure-"): json.loads(text)
            for attributes, text in self.scripts
            if str(attributes.get("id", "")).startswith("figure-")
        }


@pytest.fixture(scope="module")
def page(report_file: Path) -> Page:
    return Page(report_file.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _without_importance(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages but `page` are made without the importance, which takes a second and a half."""
    for module in ("search.pages.report", "search.analysis.space_findings"):
        monkeypatch.setattr(f"{module}.importance_at", lambda *_: None)


@pytest.fixture
def copy(shown: Experiment, tmp_path: Path) -> Experiment:
    return Experiment(Path(shutil.copytree(shown.folder, tmp_path / "results" / "copy")))


def test_the_headline_is_the_leaderboard_s_own_words(page: Page, shown: Experiment) -> None:
    assert lead_sentence(shown.history(), rank(shown.history())) in page.text
    metrics = json.loads((shown.final_folder / "metrics.json").read_text())
    assert f"{metrics['test_accuracy_mean']:.2%}" in page.text
    saved = sum(9 - trial.n_epochs for trial in shown.history().trials.values() if trial.status == "stopped")
    assert saved > 0
    assert f"{saved} epochs of {saved + shown.history().n_epochs} without stopping" in page.text


def test_every_trial_is_in_the_leaderboard_with_what_it_is_sorted_by(page: Page, shown: Experiment) -> None:
    buttons = [attributes for tag, attributes in page.elements if tag == "button"]
    heads = [attributes for tag, attributes in page.elements if tag == "th" and "aria-sort" in attributes]
    assert len(buttons) == len(heads) == 19
    assert [head["aria-sort"] for head in heads] == ["ascending"] + ["none"] * 18
    cells = [attributes for tag, attributes in page.elements if tag == "td" and "data-key" in attributes]
    ranks = [int(str(cell["data-key"])) for cell in cells if str(cell["data-key"]).isdecimal()]
    assert set(range(1, 21)) <= set(ranks)


def test_nothing_is_loaded_from_anywhere_and_no_script_runs_but_its_own(page: Page) -> None:
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split(";")[1]
    assert "unsafe-eval" not in policy
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, value)
    running = [text for attributes, text in page.scripts if "type" not in attributes]
    assert len(running) == 1


def test_the_curves_hold_every_epoch_and_the_rungs(page: Page, shown: Experiment) -> None:
    figure = page.figures()["curves"]
    n_points = sum(sum(point != "" for point in trace["text"]) for trace in figure["data"])
    assert n_points == shown.history().n_epochs
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [1, 3]
    assert {trace["name"].split(" (")[0] for trace in figure["data"]} == {"stopped", "completed", "baseline", "winner"}
    grey = next(trace for trace in figure["data"] if trace["name"].startswith("stopped"))
    assert grey["line"]["color"] == GREY.light


def test_all_that_was_asked_for_is_on_the_page(page: Page, space: Space) -> None:
    slices = {f"slice-{name}" for name in space.searched}
    wanted = {"curves", "rungs", "history", "parallel", "importance", "confusion", "replicates", "timeline"} | slices
    assert set(page.figures()) == wanted
    drawn_places = {attributes["data-figure"] for _, attributes in page.elements if "data-figure" in attributes}
    assert drawn_places == wanted
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(page.test_images()) == 16
    assert len(images) == 16 + 6 * 8
    assert all(image["alt"] for image in images)
    assert "torch" in page.text
    assert "python -m search.retrain shown" in page.text


def test_the_findings_are_those_of_diagnose(page: Page, shown: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # with the importance, as `page`
    data = shown.manifest.data
    findings = diagnose(shown.history(), shown.space, data.n_validation, data.chance)
    assert {"To change", "Fine as it is", "Cannot be told yet"} & set(page.shown)
    assert len(findings) > 5
    for finding in findings:
        assert f"{finding.sentence} {finding.advice}".strip() in page.text


def test_rungs_are_counted_from_what_trials_did(space: Space, shown: Experiment) -> None:
    trials = shown.history().trials.values()
    rungs = rung_survival(trials, space)
    assert [rung.epoch for rung in rungs] == [1, 3, 9]
    assert rungs[0].entered == 20
    for rung, following in itertools.pairwise(rungs):
        assert rung.entered == rung.passed + rung.stopped + rung.failed
        assert rung.passed == following.entered
    assert rungs[-1].passed == sum(trial.status == "completed" for trial in trials)
    assert sum(rung.stopped for rung in rungs) == sum(trial.status == "stopped" for trial in trials)


def test_text_from_a_folder_stays_text(copy: Experiment, space: Space) -> None:
    foreign.drop_checksums(copy.folder)
    journal = copy.folder / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    ended = next(line for line in lines if line["event"] == "trial_ended" and line["status"] == "stopped")
    ended["reason"] = f"\x1b[2J {HOSTILE} \u2028 {{{{ 7 * 7 }}}}"
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(copy.folder / ".backup")
    manifest = copy.manifest
    versions = {**manifest.versions, HOSTILE: HOSTILE}
    copy.write_manifest(manifest.model_copy(update={"versions": versions, "git_commit": HOSTILE, "space": HOSTILE}))
    folder = copy.folder.rename(copy.folder.with_name(HOSTILE.replace("/", "∕")))
    html = report_html(Experiment(folder))
    hostile = Page(html)
    assert HOSTILE in hostile.text, "as text, it is all there"
    assert "\\x1b[2J" in hostile.text
    assert "{{ 7 * 7 }}" in hostile.text
    assert "\x1b" not in html
    assert "<script>document" not in html
    assert "<img src=x" not in html
    assert len(hostile.scripts) == len(hostile.figures()) + 3
    names = hostile.figures()["confusion"]["data"][0]["x"]
    assert names[0].startswith("&lt;/script&gt;&lt;script&gt;"), "plotly takes tags for its own"


def test_an_unfinished_search_without_a_winner_says_so(tiny_space: Space, tmp_path: Path) -> None:
    empty = Page(report_html(shown_experiment.searched(tmp_path, "empty", _with_trials(tiny_space, 1))))
    assert "no searched configuration ranks above it" in empty.text
    made = foreign.make_experiment(tmp_path, "begun", tiny_space)
    begun = Page(report_html(made))
    assert "The search is not finished; this resumes it" in begun.text
    assert "The test images have not been opened." in begun.text
    assert "The training images of this search are not on this machine" in begun.text
    assert "importance" not in begun.figures()
    (made.folder / "journal.jsonl").write_text("")
    bare = Page(report_html(made))
    assert "No trial has completed yet." in bare.text
    assert not bare.figures()


@pytest.mark.parametrize(
    "edit",
    [
        {"space": {"lr": {"loguniform": [0.002, 0.05]}}},
        {"space": {"weight_decay": {"loguniform": [1e-5, 1e-2]}}, "baseline": {"weight_decay": 1e-4}},
        {"training": {"max_epochs": 3}},
    ],
)
def test_a_space_that_was_edited_after_the_search_is_reported(edit: dict[str, Any], copy: Experiment) -> None:
    path = copy.folder / "experiment.yaml"
    content = yaml.safe_load(path.read_text())
    for section, values in edit.items():
        content[section] |= values
    for name in content["space"].keys() & content["training"].keys():
        del content["training"][name]
    path.write_text(yaml.safe_dump(content))
    trials = copy.history().trials.values()
    n_outside = sum(not copy.space.contains(trial.config) for trial in trials)
    assert bool(n_outside) == ("space" in edit)
    page = Page(report_html(copy))
    assert (f"{n_outside} trials lie outside the space as it was changed later" in page.text) == bool(n_outside)
    assert "Optimisation history" in page.text
    shown_in_a_notebook = NotebookExperiment(copy.folder)
    assert ("learning_curves" in shown_in_a_notebook.figures) == (n_outside < len(trials))
    assert len(shown_in_a_notebook.trials) == len(trials)


def test_trials_that_failed_or_diverged_are_shown(tiny_space: Space, tmp_path: Path) -> None:
    made = foreign.make_experiment(tmp_path, "failed", tiny_space)
    made.journal().append(TrialEnded(1, "failed", "the worker died", 2.0))
    page = Page(report_html(made))
    assert "the worker died" in page.text
    assert "failed or diverged (1)" in {trace["name"] for trace in page.figures()["curves"]["data"]}


def _older(metrics: dict[str, Any]) -> None:
    del metrics["surest_mistakes"]


def _too_large(metrics: dict[str, Any]) -> None:
    metrics["confusion_matrix"] = [[1] * 10] * 9


def _outside(metrics: dict[str, Any]) -> None:
    metrics["surest_mistakes"][0]["file"] = "../manifest.json"


def _elsewhere(metrics: dict[str, Any]) -> None:
    metrics["surest_mistakes"][0]["file"] = "mistakes/../../precious.png"


def _impossible(metrics: dict[str, Any]) -> None:
    metrics["test_accuracy_mean"] = 1.5


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (_older, "retrained by a version that did not keep the images"),
        (_too_large, "its confusion matrix is not of its classes"),
        (_outside, "../manifest.json: is not a name that retraining gives."),
        (_elsewhere, "mistakes/../../precious.png: is not a name that retraining gives."),
        (_impossible, "is not the result of a retraining (test_accuracy_mean"),
    ],
)
def test_an_old_or_damaged_result_takes_one_sentence(
    edit: Callable[[dict[str, Any]], None], sentence: str, copy: Experiment
) -> None:
    Image.new("RGB", (20, 20)).save(copy.folder.parent / "precious.png")
    path = copy.final_folder / "metrics.json"
    metrics = json.loads(path.read_text())
    edit(metrics)
    path.write_text(json.dumps(metrics))
    page = Page(report_html(copy))
    assert sentence in page.text
    assert ("confusion" in page.figures()) == (edit in (_older, _outside, _elsewhere))
    assert not page.test_images()


def test_pictures_that_are_none_of_ours_are_not_embedded(copy: Experiment, tmp_path: Path) -> None:
    mistake = sorted((copy.final_folder / "mistakes").iterdir())[0]
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious.txt").write_text("precious")
    for content, sentence in (
        (b"<svg onload=alert(1)>", "is not a picture of ours"),
        (_png((1500, 20)), "is 1500 x 20 pixels, more than any image of ours"),
        (_png((20, 20))[:45], "is not a picture of ours"),
    ):
        mistake.write_bytes(content)
        pictures, caption = mistake_pictures(read_all(copy))
        assert not pictures
        assert sentence in caption
    for kind in ("link to a file", "link to a device", "FIFO", "folder"):
        foreign.put(kind, mistake, tmp_path / "victim")
        assert mistake_pictures(read_all(copy))[1].startswith("The images cannot be shown: "), kind
    shutil.rmtree(copy.final_folder)
    copy.final_folder.symlink_to(tmp_path / "victim")
    assert "What retraining left cannot be shown" in Page(report_html(copy)).text


def test_embedded_pictures_hold_pixels_and_nothing_else(copy: Experiment) -> None:
    mistake = sorted((copy.final_folder / "mistakes").iterdir())[0]
    info = PngInfo()
    info.add_text("comment", "a long secret " * 20)
    Image.new("RGB", (1000, 1000), "red").save(mistake, pnginfo=info)
    pictures, _ = mistake_pictures(read_all(copy))
    content = base64.b64decode(pictures[0][0].partition(",")[2])
    assert b"secret" not in content
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (160, 160)
        assert not image.text  # type: ignore[attr-defined]


def test_the_test_split_is_not_read_and_no_image_outside_the_cache(
    shown: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a report opens no source of images")

    monkeypatch.setattr("trainable.data.sources.open_source", refuse)
    monkeypatch.setattr("trainable.data.cache.open_source", refuse)
    assert len([tag for tag, _ in Page(report_html(shown)).elements if tag == "img"]) == 16 + 6 * 8
    program = (
        "import sys; from pathlib import Path; from search import Experiment; "
        "from search.pages.report import report_html; report_html(Experiment(Path(sys.argv[1]))); "
        "print(sorted({'trainable.data.test_set', 'torch', 'ray'} & set(sys.modules)))"
    )
    folder = shutil.copytree(shown.folder, shown.folder.parent / "without-images")
    other = Experiment(folder)
    data = other.manifest.data.model_copy(update={"content_sha256": "1" * 64})
    other.write_manifest(other.manifest.model_copy(update={"data": data}))
    command = [sys.executable, "-c", program, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert result.stdout == "[]\n", "what shows results needs neither torch nor Ray, and never the test set"


def test_the_command_writes_the_page_into_the_experiment(
    copy: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda uri: opened.append(uri) or True)
    monkeypatch.chdir(copy.folder.parent.parent)
    assert report.main(["copy", "--open"]) == 0
    written = copy.folder / "report.html"
    assert capsys.readouterr().out == f"Wrote {Path('results') / 'copy' / 'report.html'}\n"
    assert opened == [written.resolve().as_uri()]
    assert written.read_text().startswith("<!doctype html>")
    (copy.folder / "ray").mkdir()
    (copy.folder / "ray" / "link").symlink_to("/")
    assert report.main(["copy"]) == 2, "nothing is written where links lie"
    assert report.main(["copy", "--output", "elsewhere.html"]) == 0
    assert Path("elsewhere.html").is_file()
    assert report.main(["copy", "--output", "nowhere/x.html"]) == 2
    assert not list(Path.cwd().glob(".*"))


def test_large_searches_are_drawn_in_part_with_winner_and_baseline(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "MOST_CURVES", 30)
    large = _with_trials(space, 60)
    state = SearchState(large, History([SpaceSet(large.as_dict(), [], 0.0)]))
    simulate(state, seed=0)
    trials = list(state.history.trials.values())
    some = plots.drawn(trials, 47, 30)
    assert len(some) == 30
    assert {0, 47} <= {trial.number for trial in some}
    curves = plots.learning_curves(trials, 47, large.rung_epochs, is_live=False)
    assert sum(list(trace.x).count(None) for trace in curves.data) == 30
    counts = [int(trace.name.partition("(")[2].rstrip(")")) for trace in curves.data if "(" in trace.name]
    assert sum(counts) == len(trials) - 2, "of all trials but the winner and the baseline, drawn or not"
    assert len(curves.data) <= 6, "one trace for each kind, however many trials"
    figure = plots.parallel_coordinates(large, trials, 47)
    assert figure is not None
    assert len(figure.data) == 4


@pytest.mark.parametrize("dark", [False, True])
def test_colours_have_the_contrast_that_wcag_asks_for(dark: bool) -> None:
    def colour(shade: Any) -> str:
        return str(shade.dark if dark else shade.light)

    for background in (PAPER, PANEL, PALE_BLUE):
        for text in (TEXT, MUTED):
            assert contrast(colour(text), colour(background)) >= 4.5, (text, background)
    for text in (BLUE, ORANGE, PURPLE):
        assert contrast(colour(text), colour(PAPER)) >= 4.5, text
    assert contrast(colour(BLUE), colour(PANEL)) >= 4.5
    assert contrast(colour(GREY), colour(PAPER)) >= 3, "of lines and symbols"
    assert contrast(colour(LINE), colour(PAPER)) < 2, "a grid stays behind what it is for"


def test_every_colour_of_a_plot_has_its_dark_one(page: Page) -> None:
    assert len(dark_by_light()) == len(SHADES)
    used = set(re.findall(r'"(#[0-9a-fA-F]{6})"', json.dumps(list(page.figures().values()))))
    assert used <= set(dark_by_light())


def test_the_journal_is_read_once_and_the_lock_asked_once(copy: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = copy.journal()
    for number in (20, 21, 22):
        journal.append(
            TrialStarted(number, copy.space.searched_values(copy.space.baseline), copy.space.baseline, False, 1e5)
        )
    copy.write_manifest(copy.manifest.model_copy(update={"state": "running"}))
    asked: list[str] = []
    for name in ("history", "is_live"):
        ask = getattr(Experiment, name)
        monkeypatch.setattr(Experiment, name, lambda self, ask=ask, name=name: asked.append(name) or ask(self))
    report_html(copy)
    assert sorted(asked) == ["history", "is_live"], "at a URL, each is a request"


def test_a_trial_that_does_not_run_is_called_unfinished_in_table_and_plots(tiny_space: Space, tmp_path: Path) -> None:
    made = foreign.make_experiment(tmp_path, "begun", tiny_space)
    for word, other in (("unfinished", "running"), ("running", "unfinished")):
        with made.exclusive() if word == "running" else contextlib.nullcontext():
            page = Page(report_html(made))
            figures = {
                **page.figures(),
                **{name: json.loads(f.to_json()) for name, f in NotebookExperiment(made.folder).figures.items()},
            }
        cells = [attributes.get("data-key") for tag, attributes in page.elements if tag == "td"]
        assert word in cells
        assert other not in cells
        for name in ("curves", "history", "slice-lr", "learning_curves", "optimisation_history", "slice_lr"):
            kinds = {trace["name"].partition(" (")[0] for trace in figures[name]["data"]}
            assert word in kinds, name
            assert other not in kinds, name


def contrast(one: str, other: str) -> float:
    """By WCAG 2.2: 1 to 21."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _with_trials(space: Space, n: int) -> Space:
    return replace(space, search=space.search.model_copy(update={"trials": n}))


def _png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, format="PNG")
    return buffer.getvalue()
