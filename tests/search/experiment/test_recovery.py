"""Damaged state files: the last good copy is used, the user is told, and nothing starts afresh in silence."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from search.experiment.events import EpochRedone
from search.experiment.folder import Experiment, create_experiment
from search.experiment.history import History
from search.experiment.journal import Journal, backup_of, read_history
from search.experiment.manifest import Data, Device, new_manifest
from search.policy.state import SearchState
from spaces import InputError, Space
from spaces.printable import warn_once
from spaces.removed import REMOVED_KEYS
from tests.support.foreign import drop_checksums
from tests.support.simulation import simulate


@pytest.fixture(scope="module")
def searched(tiny_space: Space, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = Data(n_train=320, n_validation=80, class_names=["0", "1"], mean=[0.3], std=[0.3], content_sha256="0" * 64)
    device = Device(device="cpu", name="CPU", trials_at_once=2)
    results = tmp_path_factory.mktemp("searched")
    made = create_experiment(results, "mine", tiny_space, new_manifest(tiny_space, "mine", device, data))
    simulate(SearchState(tiny_space, made.history(), made.journal()), seed=0, max_results=9)
    return made.folder


@pytest.fixture
def experiment(searched: Path, tmp_path: Path) -> Experiment:
    return Experiment(shutil.copytree(searched, tmp_path / "mine"))


def as_text(history: History) -> str:
    return repr([history.space, list(history.trials.values()), history.results_in_order])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] = 0
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a byte": flip_a_byte,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["journal.jsonl", "manifest.json", "experiment.yaml"])
def test_a_damaged_file_is_read_from_its_copy_and_the_user_told_once(
    experiment: Experiment, tiny_space: Space, name: str, damage: Callable[[Path], object], told: list[str]
) -> None:
    before, manifest = as_text(experiment.history()), experiment.manifest
    damage(experiment.folder / name)
    damaged = Experiment(experiment.folder)
    for _ in range(2):
        assert as_text(damaged.history()) == before
        assert damaged.manifest == manifest
        assert damaged.space.as_dict() == tiny_space.as_dict()
    assert len(told) == 1
    assert name in told[0]


def flip(path: Path, bit: int) -> bytes:
    """Turn one bit of a file over; its content before."""
    before = path.read_bytes()
    content = bytearray(before)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return before


@pytest.mark.parametrize("name", ["journal.jsonl", "manifest.json"])
def test_no_flipped_bit_changes_what_is_read_in_silence(experiment: Experiment, name: str, told: list[str]) -> None:
    path = experiment.folder / name
    history, manifest = as_text(experiment.history()), experiment.manifest
    for bit in range(0, path.stat().st_size * 8, 1009):
        before = flip(path, bit)
        told.clear()
        warn_once.cache_clear()
        damaged = Experiment(experiment.folder)
        assert as_text(damaged.history()) == history, bit
        assert damaged.manifest == manifest, bit
        # A manifest is whole where the flip hides the checksum's own name.
        assert len(told) == 1 or b'"crc32": "' not in path.read_bytes(), bit
        path.write_bytes(before)


def test_a_changed_number_in_file_and_copy_is_refused(experiment: Experiment) -> None:
    for path in (experiment.folder / "journal.jsonl", backup_of(experiment.folder / "journal.jsonl")):
        text = path.read_text()
        assert '"train_s": 0.5' in text
        path.write_text(text.replace('"train_s": 0.5', '"train_s": 0.7', 1))
    with pytest.raises(InputError, match=r"journal\.jsonl:\d+: .*its checksum does not match"):
        experiment.history()


def test_where_file_and_copy_are_damaged_in_different_lines_nothing_is_dropped(experiment: Experiment) -> None:
    path = experiment.folder / "journal.jsonl"
    for one, line in ((path, 2), (backup_of(path), 4)):
        lines = one.read_bytes().splitlines(keepends=True)
        one.write_bytes(b"".join([*lines[:line], b"x\n", *lines[line + 1 :]]))
    before = path.read_bytes(), backup_of(path).read_bytes()
    with pytest.raises(InputError, match=r"journal\.jsonl:3: .*, nor is .*\.backup/journal\.jsonl:5: "):
        Journal(path)
    assert (path.read_bytes(), backup_of(path).read_bytes()) == before


def test_files_without_checksums_are_read_and_gone_on_with(
    experiment: Experiment, tiny_space: Space, told: list[str]
) -> None:
    before, manifest = as_text(experiment.history()), experiment.manifest
    drop_checksums(experiment.folder)
    path = experiment.folder / "experiment.yaml"
    path.write_text(path.read_text().partition("# crc32")[0])
    shutil.copy(experiment.folder / "journal.jsonl", backup_of(experiment.folder / "journal.jsonl"))
    old = Experiment(experiment.folder)
    assert (as_text(old.history()), old.manifest, old.space.as_dict()) == (before, manifest, tiny_space.as_dict())
    simulate(SearchState(tiny_space, old.history(), old.journal()), seed=1)
    assert len(old.history().trials) == tiny_space.search.trials
    assert told == []


def test_a_space_that_is_not_as_it_was_written_is_used_and_the_user_told_what_differs(
    experiment: Experiment, told: list[str]
) -> None:
    path = experiment.folder / "experiment.yaml"
    text = path.read_text()
    path.write_text(text.replace("trials: 8", "trials: 9"))
    assert Experiment(experiment.folder).space.search.trials == 9
    (line,) = told
    assert "experiment.yaml: was changed since the search wrote it (`search.trials` was 8 and is 9)" in line
    path.write_text("# mine\n" + text)
    assert Experiment(experiment.folder).space.search.trials == 8
    assert len(told) == 1, "an edit that changes nothing is nothing to tell"


def test_a_torn_last_line_is_no_damage(experiment: Experiment, told: list[str]) -> None:
    path = experiment.folder / "journal.jsonl"
    whole = experiment.history()
    with path.open("ab") as file:
        file.write(b'{"event": "epoch_d')
    assert as_text(read_history(path)) == as_text(whole)
    assert told == []


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("which", ["file", "copy"])
def test_opening_the_journal_mends_both_files(
    experiment: Experiment, which: str, damage: Callable[[Path], object]
) -> None:
    path = experiment.folder / "journal.jsonl"
    before = path.read_bytes()
    damage(path if which == "file" else backup_of(path))
    Journal(path)
    assert path.read_bytes() == backup_of(path).read_bytes() == before
    kept = list(experiment.folder.glob("journal.jsonl.damaged-*"))
    assert len(kept) == (which == "file" and damage is not DAMAGES["gone"]), "a damaged file is kept, not overwritten"


def test_a_search_goes_on_from_the_copy_as_it_would_have(
    experiment: Experiment, tiny_space: Space, told: list[str]
) -> None:
    path = experiment.folder / "journal.jsonl"
    before = experiment.history()
    DAMAGES["a byte"](path)
    simulate(SearchState(tiny_space, read_history(path), Journal(path)), seed=1)
    after = read_history(path)
    assert len(told) == 1
    assert len(after.trials) == tiny_space.search.trials
    for number, trial in before.trials.items():
        assert after.trials[number].epochs[: trial.n_epochs] == trial.epochs


def test_where_the_copy_is_damaged_too_the_line_is_named(experiment: Experiment) -> None:
    for path in (experiment.folder / "journal.jsonl", experiment.folder / ".backup" / "journal.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([lines[0], b"nonsense\n", *lines[2:]]))
    (experiment.folder / ".backup" / "journal.jsonl").unlink()
    with pytest.raises(InputError, match=r"journal\.jsonl:2: is not an event of a search"):
        experiment.history()


def test_a_reader_beside_a_running_search_is_told_nothing(
    experiment: Experiment, tiny_space: Space, told: list[str]
) -> None:
    journal = experiment.folder / "journal.jsonl"

    class Watched(Journal):
        def append(self, event: object) -> None:
            super().append(event)  # type: ignore[arg-type]
            read_history(journal)

    simulate(SearchState(tiny_space, experiment.history(), Watched(journal)), seed=1)
    assert told == []


def test_an_edit_that_does_not_load_is_kept_aside(experiment: Experiment, tiny_space: Space, told: list[str]) -> None:
    path = experiment.folder / "experiment.yaml"
    path.write_text(path.read_text().replace("trials: 8", "trials: many"))
    edited = Experiment(experiment.folder)
    edited.mend_space()
    assert "`search.trials` is 'many'" in told[0]
    assert "the space as the search journaled it is used" in told[0]
    assert edited.space.as_dict() == tiny_space.as_dict()
    (kept,) = experiment.folder.glob("experiment.yaml.damaged-*")
    assert "trials: many" in kept.read_text()


@pytest.mark.parametrize("removed", REMOVED_KEYS)
def test_an_experiment_with_removed_keys_is_read_and_a_value_that_mattered_is_said_in_one_line(
    removed: str, experiment: Experiment, tiny_space: Space, told: list[str]
) -> None:
    for value in (REMOVED_KEYS[removed].default, "something"):
        write_into_space(experiment, removed, value)
        old = Experiment(experiment.folder)
        for _ in range(2):
            assert old.space.as_dict() == tiny_space.as_dict()
        assert len(old.history().trials) == len(experiment.history().trials) > 0
        if value != "something":
            assert old.history().space == tiny_space.as_dict(), "so that a resume sees no change and writes none"
            assert told == []
    (line,) = told
    assert f"`{removed}` was removed" in line
    assert "the space as the search journaled it is used" in line


def write_into_space(experiment: Experiment, key: str, value: object) -> None:
    """Write `section.key` into the space of both files, as an earlier version did."""
    drop_checksums(experiment.folder)  # earlier versions wrote none
    section, _, name = key.partition(".")
    path = experiment.folder / "experiment.yaml"
    content = yaml.safe_load(path.read_text())
    content[section][name] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    for journal in (experiment.folder / "journal.jsonl", backup_of(experiment.folder / "journal.jsonl")):
        first, rest = journal.read_text().split("\n", 1)
        event = json.loads(first)
        event["space"][section][name] = value
        journal.write_text(json.dumps(event) + "\n" + rest)


def test_a_new_experiment_is_there_whole_or_not_at_all(
    tiny_space: Space, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "append", full)
    with pytest.raises(OSError, match="No space left"):
        create_experiment(tmp_path, "other", tiny_space, experiment.manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_journal_that_was_removed_meanwhile_is_not_begun_anew(experiment: Experiment) -> None:
    journal = experiment.journal()
    shutil.rmtree(experiment.folder)
    experiment.folder.mkdir()  # as Ray does, which writes beside the journal
    with pytest.raises(FileNotFoundError, match="was removed while the search ran"):
        journal.append(EpochRedone(0, 1, 1.0))
    assert not list(experiment.folder.iterdir())


def test_of_two_searches_that_begin_with_one_name_the_slower_is_refused(
    experiment: Experiment, tiny_space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "mine" and os.path.lexists(path))
    with pytest.raises(InputError, match="mine exists"):
        create_experiment(tmp_path, "mine", tiny_space, experiment.manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
