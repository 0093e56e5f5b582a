import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spaces import InputError, load_space, shipped_spaces
from spaces.loader import dump_space, space_from_text
from spaces.parameters import HYPERPARAMETER_NAMES, LIMITS, LogUniform
from spaces.removed import REMOVED_KEYS
from spaces.schema import Training

VALID = """\
dataset: {name: digits}
training: {max_epochs: 9}
search: {trials: 4, grace_epochs: 1, reduction_factor: 3}
space:
  lr: {loguniform: [0.01, 0.5]}
baseline: {lr: 0.05}
"""


def lines_of(tmp_path: Path, text: str, *overrides: str) -> tuple[str, ...]:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_space(str(path), overrides)
    return caught.value.lines


@pytest.mark.parametrize("name", shipped_spaces())
def test_a_shipped_space_survives_being_written_and_read_again(name: str, tmp_path: Path) -> None:
    space = load_space(name)
    path = tmp_path / f"{name}.yaml"
    path.write_text(dump_space(space))
    again = load_space(str(path))
    assert dataclasses.replace(again, name=space.name) == space
    assert space.rung_epochs[-1] == space.training.max_epochs
    assert {"lr", "momentum", "gamma", "step_size"} <= set(space.searched)


def test_every_error_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    lines = lines_of(
        tmp_path,
        """\
dataset: {name: digit}
training:
  max_epochs: 10
  batch_sise: 64
search: {trials: 0, grace_epochs: 1}
space:
  lr: {loguniform: [0.5, 0.01]}
  momentun: 0.9
""",
    )
    text = "\n".join(lines)
    assert "mine.yaml:1: `dataset.name` is 'digit', but must be one of" in text
    assert "mine.yaml:4: `training.batch_sise` is not a key" in text
    assert "Did you mean `batch_size`?" in text
    assert "mine.yaml:5: `search.trials` is 0, but must be at least 1." in text
    assert "mine.yaml:7: `space.lr` goes from 0.5 to 0.01" in text
    assert "mine.yaml:8: `space.momentun` is not a hyperparameter" in text
    assert "Did you mean `momentum`?" in text
    assert len(lines) == 5


def test_an_exponent_without_a_decimal_point_is_a_number() -> None:
    text = VALID.replace("0.01, 0.5", "1e-2, 5E-1").replace("name: digits", "name: cifar10, root: '1e5'")
    space = space_from_text(text, "mine.yaml", "mine", ["training.weight_decay=1e-5"])
    assert space.parameters["lr"] == LogUniform(0.01, 0.5)
    assert (space.training.weight_decay, space.dataset.root) == (1e-5, "1e5")
    assert space_from_text(dump_space(space), "again.yaml", "mine") == space


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("search.trial=3", "Did you mean `trials`?"),
        ("serch.trials=3", "Did you mean `search`?"),
        ("search.trials", "must have the form section.key=value"),
        ("max_epochs=10", "such as search.trials=32. Write training.max_epochs."),
        ("max_epoch=10", "Write training.max_epochs."),
        ("gamma=0.5", "Write space.gamma or baseline.gamma."),
        ("search.trials=3\ntrials: 5", "not valid YAML"),
        ("search.trials=[1,", "not valid YAML"),
        ("search.trials=2.5", "must be a whole number"),
        ("search.seed=true", "must be a whole number"),
        ("search.time_budget=5 minutes", "must be a duration such as 30m"),
        ("search.audit_fraction=1.5", "`search.audit_fraction` is 1.5, but must be at most 1."),
        ("training.max_epochs=10", "`training.max_epochs` is 10, but must be `search.grace_epochs` (1) × "),
        ("training.max_epochs=26", "the nearest are 9 and 27."),
        ("training.max_epochs=2", "the nearest are 1 and 3."),
        ("search.grace_epochs=40", "must be between 1 and `training.max_epochs` (9)"),
        ("dataset.name=folder", "`dataset` has no `root`, but a folder data set must say where its images are."),
        ("dataset.image_size=16", "must be at least 17"),
        ("training.max_epochs=.inf", "must be a whole number"),
        ("space.lr={uniform: [0.1]}", "has 1 values in `uniform`, but must have two"),
        ("space.lr={normal: [0.1, 0.2]}", "must have exactly one of uniform, loguniform, randint, choice"),
        ("space.lr={log_uniform: [0.1, 0.2]}", "loguniform, randint, choice. Did you mean `loguniform`?"),
        ("space.dropout=[0.1, 0.5]", "is [0.1, 0.5], but a list must say how values are drawn from it: write"),
        ("space.dropout=[0.1, 0.5]", "write {uniform: [0.1, 0.5]}."),
        ("space.batch_size=[16, 64]", "write {randint: [16, 64]}."),
        ("space.batch_size=[16, 32, 64]", "write {choice: [16, 32, 64]}."),
        ("space.dropout=[0.5, 0.1]", "`space.dropout` goes from 0.5 to 0.1"),
        ("space.step_size={uniform: [1, 5]}", "Use randint or choice"),
        ("space.momentum={loguniform: [0.0, 0.5]}", "loguniform must start above 0"),
        ("space.flip_p={uniform: [0.0, 1.5]}", "must be at least 0 and at most 1"),
        ("space.batch_size={choice: [32, 32]}", "must name each option once"),
        ("space.lr=1" + "0" * 400, "must be greater than 0 and at most 10"),
        ("space.step_size=1" + "0" * 400, "must be a whole number, at least 1"),
        ("dataset.validation_fraction=1" + "0" * 400, "`dataset.validation_fraction` is"),
        ("space.lr=0.05", "`space` searches nothing, but `search.trials` is 4"),
        ("baseline.lr=0.9", "must lie in the searched loguniform [0.01, 0.5]"),
        ("baseline.weight_decay=0.1", "`training.weight_decay` is 0.0 for all trials"),
        ("resources.trials_at_once=some", "must be 'auto' or a whole number"),
    ],
)
def test_a_bad_override_gives_one_line_that_says_what_to_do(override: str, expected: str, tmp_path: Path) -> None:
    lines = lines_of(tmp_path, VALID, override)
    assert any(expected in line for line in lines), lines
    assert all(line.startswith(("--set", "mine.yaml:")) for line in lines)
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize(
    "option",
    ["search.trials=" + "z" * 9000, "z" * 9000 + "=3", "search." + "z" * 9000 + "=1", "space.lr=[" + "1," * 4000 + "]"],
)
def test_a_long_option_is_not_repeated_whole(option: str, tmp_path: Path) -> None:
    lines = lines_of(tmp_path, VALID, option)
    assert all(len(line) < 400 for line in lines)


def test_a_rule_across_keys_is_told_beside_errors_of_other_sections(tmp_path: Path) -> None:
    text = VALID.replace("max_epochs: 9", "max_epochs: 8").replace("grace_epochs: 1", "grace_epochs: 2")
    lines = lines_of(tmp_path, text.replace("name: digits", "name: digits, image_size: 2"))
    assert [line.split("` is")[0] for line in lines] == [
        "mine.yaml:1: `dataset.image_size",
        "mine.yaml:2: `training.max_epochs",
    ]


@pytest.mark.parametrize(
    "search",
    [
        "{trials: 4, grace_epoch: 3, reduction_factor: 3}",
        "{trials: 4, grace_epochs: x}",
        "{trails: 4, grace_epochs: 1}",
    ],
)
def test_a_rule_across_keys_is_not_applied_to_a_value_that_is_unknown(search: str, tmp_path: Path) -> None:
    epochs = 9 if "trails" in search else 12  # 12 epochs fit a grace period of 4, which may have been meant
    text = VALID.replace("max_epochs: 9", f"max_epochs: {epochs}")
    lines = lines_of(tmp_path, text.replace("{trials: 4, grace_epochs: 1, reduction_factor: 3}", search))
    assert len(lines) == 1, lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must hold sections"),
        ("- 1\n- 2\n", "must hold sections"),
        ("dataset: {name: digits\n", "is not valid YAML"),
        ("a: &x [1]\nb: *x\n", "uses an alias"),
        ("dataset: {name: digits, name: folder}\n", "repeats `name`"),
        ("dataset: !!python/object/apply:os.system ['true']\n", "uses a tag"),
        ("a: " + "[" * 50 + "]" * 50, "is nested over"),
        ("# " + "x" * 70_000, "is over 64 KiB"),
        ("? [1, 2]\n: 3\n", "has a list or mapping as a key"),
        ("dataset: 2001-99-99\n", "is not valid YAML"),
        ("baseline: [0.05]\n", "`baseline` is [0.05], but must be a section of its own, one `key: value` a line."),
        ("dataset: null\n", "`dataset` is empty"),
        (b"dataset: {name: digits}\n\x00", "is not valid YAML"),
        ("dataset: {name: digits}\n".encode("utf-16"), "is not UTF-8"),
        (b"dataset: {name: d\xe9gits}\n", "is not UTF-8"),
        ("a: " + "[" * 30_000, "is nested over 8 deep"),
        ("\n".join(" " * i + "a:" for i in range(300)), "is nested over 8 deep"),
        ("x" * 60_000 + ": " * 1000, "is not"),
        ("space: 3\n", "`space` is 3, but must be a section of its own, one `key: value` a line."),
    ],
)
def test_hostile_or_broken_yaml_is_refused(text: str | bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        load_space(str(path))
    assert any(expected in line for line in caught.value.lines), caught.value.lines[0][:200]


def test_a_file_that_is_not_there_names_the_shipped_spaces() -> None:
    with pytest.raises(InputError, match=r"one of cifar10, quickstart, wide\. Did you mean `quickstart`\?"):
        load_space("quickstrat")


def test_parameters_that_no_section_names_keep_the_original_values(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(VALID + "\n")
    space = load_space(str(path), ["training.weight_decay=0.001", "space.gamma=0.3"])
    config = space.complete({"lr": 0.2})
    assert (config.lr, config.gamma, config.weight_decay, config.momentum) == (0.2, 0.3, 0.001, 0.9)


def test_what_an_option_searches_need_not_be_removed_from_training() -> None:
    space = load_space("quickstart", ["space.batch_size={choice: [16, 32]}", "baseline.batch_size=16"])
    assert space.complete({**space.searched_values(space.baseline), "batch_size": 32}).batch_size == 32
    with pytest.raises(InputError, match="stands in `training` and in `space`"):
        load_space("quickstart", ["space.batch_size={choice: [16, 32]}", "training.batch_size=8"])


@pytest.mark.parametrize("suggested", [{}, {"lr": 0.9}, {"lr": 0.1, "gamma": 0.5}])
def test_a_suggestion_outside_the_space_is_an_error(suggested: dict[str, float], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(VALID)
    with pytest.raises(ValueError, match="suggested"):
        load_space(str(path)).complete(suggested)


def values_of(name: str) -> st.SearchStrategy[float]:
    limits = LIMITS[name]
    if limits.whole:
        return st.integers(int(limits.low), int(limits.high))
    return st.floats(limits.low, limits.high, exclude_min=not limits.includes_low, exclude_max=not limits.includes_high)


@st.composite
def space_contents(draw: st.DrawFn) -> dict[str, Any]:
    """A valid space file as a dict: each hyperparameter is fixed, searched, or set by another section."""
    content: dict[str, Any] = {
        "dataset": {
            "name": draw(st.sampled_from(["digits", "cifar10"])),
            "root": draw(st.none() | st.text(max_size=9)),
        },
        "training": {"max_epochs": 9},
        "search": {
            "trials": draw(st.integers(1, 99)),
            "asha": draw(st.sampled_from(["adaptive", "stop", "off"])),
        },
        "space": {"lr": {"uniform": [0.1, 0.2]}},
        "baseline": {"lr": 0.15},
    }
    for name in draw(st.sets(st.sampled_from(HYPERPARAMETER_NAMES[1:]))):
        values = sorted(draw(st.sets(values_of(name), min_size=2, max_size=3)))
        where = draw(st.sampled_from(["fixed", "choice", "range", "training", "baseline"]))
        if where == "training" and name in Training.model_fields:
            content["training"][name] = values[0]
        elif where == "fixed":
            content["space"][name] = values[0]
        elif where in ("choice", "range"):
            kind = "choice" if where == "choice" else "randint" if LIMITS[name].whole else "uniform"
            content["space"][name] = {kind: values if where == "choice" else values[:2]}
            content["baseline"][name] = values[1]
        elif name not in Training.model_fields:
            content["baseline"][name] = values[0]
    return content


@settings(max_examples=40, deadline=None)
@given(content=space_contents())
def test_every_space_survives_being_written_and_read_again(content: dict[str, Any]) -> None:
    space = space_from_text(yaml.safe_dump(content, allow_unicode=True), "mine.yaml", "mine")
    assert space_from_text(dump_space(space), "again.yaml", "mine") == space


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    section=st.sampled_from(["dataset", "training", "search", "space", "baseline", "resources"]),
    key=st.sampled_from(["name", "max_epochs", "trials", "lr", "step_size", "seed", "root", "x"]),
    value=yaml_values,
)
def test_any_value_anywhere_loads_or_gives_lines(section: str, key: str, value: object, tmp_path: Path) -> None:
    content = yaml.safe_load(VALID)
    content.setdefault(section, {})[key] = value
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    try:
        load_space(str(path))
    except InputError as error:
        assert error.lines
        assert all(line.strip() and "\n" not in line for line in error.lines)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.sampled_from("abl:-[]{}&*!?|>'\"#%@,. \n\t0123e\x00\x85\u2028é"), max_size=80))
def test_any_text_loads_or_gives_lines(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        load_space(str(path))


@pytest.mark.parametrize("kind", ["FIFO", "folder", "device", "nothing"])
def test_a_space_that_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
            os.mkfifo(path / "experiment.yaml")
        case "device":
            path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"mine\.yaml` is not a space: give a path to a YAML file, or one of"):
        load_space(str(path))


def test_a_huge_space_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with path.open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(InputError, match=r"mine\.yaml: is over 64 KiB"):
        load_space(str(path))


def test_a_space_may_be_a_link_of_the_user_s_own(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text(VALID)
    (tmp_path / "mine.yaml").symlink_to("real.yaml")
    assert load_space(str(tmp_path / "mine.yaml")).search.trials == 4


HUGE = "0x" + "f" * 20_000  # Python refuses to write such numbers in decimals


@pytest.mark.parametrize(
    "key",
    [
        *("search.trials", "search.time_budget", "dataset.validation_fraction", "dataset.root"),
        *("resources.trials_at_once", "space.lr", "space.step_size", "baseline.lr"),
    ],
)
@pytest.mark.parametrize("form", ["{}", "[{}]", "{{uniform: [0.1, {}]}}", "{{choice: [[{}]]}}"])
def test_a_number_of_thousands_of_digits_is_one_line(key: str, form: str, tmp_path: Path) -> None:
    lines = lines_of(tmp_path, VALID, f"{key}={form.format(HUGE)}")
    assert all("\n" not in line for line in lines)


def test_bytes_on_the_command_line_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (line,) = lines_of(tmp_path, VALID, "space.lr=\udcff")
    assert "has a value that is not valid YAML" in line


@pytest.mark.parametrize(
    ("max_epochs", "search", "expected"),
    [
        (27, "{trials: 4}", 1),
        (12, "{trials: 4}", 4),
        (27, "{trials: 4, asha: stop}", 9),
        (8, "{trials: 4, asha: stop, reduction_factor: 2}", 4),
        (1, "{trials: 4}", 1),
        (27, "{trials: 4, grace_epochs: 3}", 3),
        (27, "{trials: 4, asha: off}", 1),
    ],
)
def test_a_trial_gets_its_share_of_the_epochs_before_it_is_judged(max_epochs: int, search: str, expected: int) -> None:
    text = f"""\
dataset: {{name: digits}}
training: {{max_epochs: {max_epochs}}}
search: {search}
space: {{lr: {{loguniform: [0.01, 0.5]}}}}
"""
    space = space_from_text(text, "some.yaml", "some")
    assert space.search.grace_epochs == expected
    assert space_from_text(dump_space(space), "again.yaml", "some") == space


@pytest.mark.parametrize("key", REMOVED_KEYS)
def test_a_removed_key_is_refused_with_what_became_of_it_where_a_user_gives_it(key: str, tmp_path: Path) -> None:
    default = json.dumps(REMOVED_KEYS[key].default)
    sentence = f"`{key}` was removed: {REMOVED_KEYS[key].reason}. Take the line out."
    option = f"{key}={default}"
    assert lines_of(tmp_path, VALID, option) == (f"--set {option}: {sentence}",)
    text, line_number = with_key(VALID, key, default)
    assert lines_of(tmp_path, text) == (f"mine.yaml:{line_number}: {sentence}",)


@pytest.mark.parametrize("key", REMOVED_KEYS)
def test_an_experiment_s_own_file_may_hold_the_default_of_a_removed_key_and_no_other_value(
    key: str, tmp_path: Path
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(VALID)
    expected = load_space(str(path))
    path.write_text(with_key(VALID, key, json.dumps(REMOVED_KEYS[key].default))[0])
    assert load_space(str(path)) == expected
    assert load_space(str(tmp_path)) == expected
    with pytest.raises(InputError, match=f"--set {key}=.*`{key}` was removed"):
        load_space(str(path), [f"{key}={json.dumps(REMOVED_KEYS[key].default)}"])
    path.write_text(with_key(VALID, key, "something")[0])
    with pytest.raises(InputError, match=f"^experiment.yaml:[0-9]+: `{key}` was removed"):
        load_space(str(path))


def with_key(text: str, key: str, value: str) -> tuple[str, int]:
    """A space with one more key, and the key's line in it."""
    content = yaml.safe_load(text)
    section, _, name = key.partition(".")
    content.setdefault(section, {})[name] = yaml.safe_load(value)
    written = yaml.safe_dump(content)
    return written, 1 + next(n for n, line in enumerate(written.splitlines()) if line.strip().startswith(f"{name}:"))


def test_configurations_to_try_first_are_completed_from_the_baseline_and_survive_writing(tmp_path: Path) -> None:
    space = space_from_text(f"{VALID}try_first:\n  - {{lr: 0.1}}\n  - lr: 0.2\n  - {{lr: 0.1}}\n", "mine.yaml", "mine")
    assert space.try_first == tuple(dataclasses.replace(space.baseline, lr=lr) for lr in (0.1, 0.2))
    assert space_from_text(dump_space(space), "mine.yaml", "mine") == space
    assert "try_first" not in dump_space(dataclasses.replace(space, try_first=()))


@pytest.mark.parametrize(
    "listed, sentences",
    [
        ("3", ["8: `try_first` is 3, but must be a list of configurations."]),
        ("[x]", ["8: `try_first[0]` is 'x', but must be a section of its own, one `key: value` a line."]),
        ("[5]", ["8: `try_first[0]` is 5, but must be a section of its own, one `key: value` a line."]),
        ("[[]]", ["8: `try_first[0]` is [], but must be a section of its own, one `key: value` a line."]),
        ("[null]", ["8: `try_first[0]` is None, but must be a section of its own, one `key: value` a line."]),
        (
            "\n  - {lr: 9, momentum: 0.5}\n  - {lr: 100, gama: 1}",
            [
                "9: `try_first[0].lr` is 9, but must lie in the searched loguniform [0.01, 0.5]. Change one of them.",
                "9: `try_first[0].momentum` is 0.5, but must lie in the searched value 0.9. Change one of them.",
                "10: `try_first[1].lr` is 100, but must be greater than 0 and at most 10.",
                "10: `try_first[1].gama` is not a hyperparameter: there are lr, momentum, gamma, step_size, flip_p, "
                "shift_scale_rotate_p, coarse_dropout_p, batch_size, dropout, weight_decay. Did you mean `gamma`?",
            ],
        ),
    ],
)
def test_wrong_configurations_to_try_first_are_named_with_their_lines(
    listed: str, sentences: list[str], tmp_path: Path
) -> None:
    assert lines_of(tmp_path, f"{VALID}\ntry_first: {listed}\n") == tuple(f"mine.yaml:{line}" for line in sentences)
