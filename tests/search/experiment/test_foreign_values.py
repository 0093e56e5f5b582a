"""Numbers that no search writes, and models that are none of ours, are one line each."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from search import predict
from search.experiment.folder import Experiment
from search.experiment.journal import read_history
from spaces import InputError
from tests.support.foreign import Call, assert_refused, bomb, model, outside_weights


def journal_with(folder: Path, line: int, change: str) -> None:
    path = folder / "journal.jsonl"
    lines = path.read_text().splitlines()
    content = lines[line].rstrip("}")
    lines[line] = f"{content}, {change}}}"  # of a repeated key, JSON takes the last
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (3, '"validation_accuracy": 1e999'),
        (3, '"validation_accuracy": -1'),
        (3, f'"validation_accuracy": 1{"0" * 400}'),
        (3, f'"validation_loss": 1{"0" * 400}'),
        (3, '"train_loss": 1e300'),
        (3, '"train_loss": [[]]'),
        (3, '"train_s": 1e308'),
        (3, '"at": 1e20'),
        (3, f'"at": 1{"0" * 400}'),
        (3, '"at": -1e10'),
        (3, f'"epoch": 1{"0" * 5000}'),
        (3, '"epoch": true'),
        (3, '"lr": NaN'),
        (3, f'"lr": {"[" * 20000}'),
        (0, '"space": []'),
        (0, '"space": {"dataset": 3}'),
        (0, f'"space": {{"dataset": {"[" * 500}{"]" * 500}}}'),
        (0, f'"space": {{"dataset": {{"name": {"[" * 500}{"]" * 500}}}}}'),
        (0, '"space": {"search": 3}'),
        (0, '"space": {"search": {"explore": 1e300}}'),
        (0, '"space": {"search": {"explore": "x"}}'),
        (0, f'"space": {{"search": {{"seed": 1{"0" * 400}}}}}'),
        (0, '"excluded": [5]'),
        (0, '"excluded": [[]]'),
        (0, '"at": -1'),
        (1, '"at": 1e999'),
        (1, '"config": {"lr": 1e999}'),
        (1, '"config": []'),
        (1, '"suggested": {"lr": "0.1"}'),
        (1, '"baseline": 1'),
        (7, '"reason": 5'),
        (7, '"status": []'),
        (7, '"status": "running"'),
        (7, '"trial": -1'),
    ],
)
def test_a_number_that_no_search_writes_is_named_with_its_line(line: int, change: str, foreign: Experiment) -> None:
    journal_with(foreign.folder, line, change)
    with pytest.raises(InputError, match=rf"journal\.jsonl:{line + 1}: is not an event of a search") as refused:
        foreign.history()
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize("command", ["leaderboard", "diagnose", "retrain", "resume"])
def test_commands_say_in_one_line_that_a_journal_is_damaged(command: str, on_folder: Call, foreign: Experiment) -> None:
    journal_with(foreign.folder, 3, '"at": -1e10')
    assert_refused(on_folder(command, foreign.folder), "journal.jsonl:4", "is not an event of a search")


def test_a_trial_that_completes_without_an_epoch_is_refused(foreign: Experiment) -> None:
    path = foreign.folder / "journal.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[-1], ""]))
    with pytest.raises(InputError, match=r"journal\.jsonl:3: .*completes without an epoch"):
        read_history(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"data": {"mean": [NaN]}', "manifest.json: is not a manifest of a search (data"),
        ('"sessions": [{"started_at": "yesterday"}]', "sessions.0.started_at"),
        ('"sessions": [{"started_at": "2026-01-01T00:00:00"}]', "it has no time zone"),
        ('"sessions": [{"started_at": "2026-01-01T00:00:00+00:00", "seconds": 1e999}]', "sessions.0.seconds"),
        (f'"sessions": {"[" * 100000}', "manifest.json: is not a manifest of a search"),
        (f'"seeds": {{"experiment": 1{"0" * 5000}, "split": 0}}', "manifest.json: is not a manifest of a search"),
    ],
)
def test_a_manifest_of_other_values_is_refused(text: str, expected: str, on_folder: Call, foreign: Experiment) -> None:
    path = foreign.folder / "manifest.json"
    path.write_text(f"{path.read_text().rstrip().removesuffix('}')}, {text}}}")
    outcome = on_folder("retrain", foreign.folder)
    assert_refused(outcome, "manifest.json", expected)
    assert len(outcome[2]) < 700


@pytest.mark.parametrize(
    ("where", "location"),
    [
        *(("initializer", path) for path in ("../../../secret", "ABSOLUTE", "link", "secret", "inner", "/dev/zero")),
        ("constant", "ABSOLUTE"),
        ("constant", "inner"),
        ("subgraph", "ABSOLUTE"),
        ("subgraph", "inner"),
    ],
)
def test_a_model_that_names_other_files_reads_none(
    location: str, where: str, on_folder: Call, foreign: Experiment, tmp_path: Path
) -> None:
    for path in (tmp_path / "secret", foreign.final_folder / "inner"):
        np.array([-0.1, -2.35], dtype=np.float32).tofile(path)
    (foreign.final_folder / "link").symlink_to(tmp_path / "secret")
    tensor = outside_weights(str(tmp_path / "secret") if location == "ABSOLUTE" else location)
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    if where == "initializer":
        content = model(weights=[tensor])
    else:
        plain = onnx.load_model_from_string(model(weights=[]))
        if where == "subgraph":
            output = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2])
            branch = helper.make_graph([constant], "branch", [], [output])
            yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
            plain.graph.initializer.append(yes)
            constant = helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch)
        plain.graph.node.insert(0, constant)
        content = plain.SerializeToString()
    (foreign.final_folder / "model.onnx").write_bytes(content)
    assert_refused(on_folder("predict", foreign.folder), "model.onnx", "is not a model of ours")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ""),
        (b"ORTM" * 100, ""),
        (b"\x80\x04K\x01.", ""),
        (model(class_names=3), "its class names are not a list of texts"),
        (model(class_names=[1, 2]), "its class names are not a list of texts"),
        (model(class_names=["cat"]), "its input or its classes are others"),
        (model(size=10**9), "its images are of 1000000000 x 1000000000 pixels"),
        (model(size=1), "its images are of 1 x 1 pixels"),
        (
            model(weights=[helper.make_tensor("w", TensorProto.FLOAT, [2], [float("nan")] * 2)]),
            "it gives something other than log-probabilities",
        ),
        (
            model(weights=[helper.make_tensor("w", TensorProto.FLOAT, [2], [1e30] * 2)]),
            "it gives something other than log-probabilities",
        ),
        (model(nodes=[helper.make_node("Nonsense\x1b[31m", ["images"], ["log_probabilities"])]), ""),
        (model(nodes=[helper.make_node("Reshape", ["images", "axes"], ["log_probabilities"])]), ""),
        (
            model(
                nodes=[
                    helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
                    helper.make_node("Reshape", ["floats", "axes"], ["log_probabilities"], name="\x1b[31m"),
                ]
            ),
            "",
        ),
    ],
)
def test_a_model_that_is_none_of_ours_is_one_line(
    content: bytes,
    expected: str,
    foreign: Experiment,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (foreign.final_folder / "model.onnx").write_bytes(content)
    code = predict.main([str(foreign.folder), str(tmp_path / "image.png")])
    captured = capfd.readouterr()  # also what onnxruntime itself would print
    assert_refused((code, captured.out, captured.err), "model.onnx", f"is not a model of ours ({expected}")


def test_predict_looks_at_nothing_in_final_but_the_model(on_folder: Call, foreign: Experiment, tmp_path: Path) -> None:
    expected = on_folder("predict", foreign.folder)
    assert expected[0] == 0, expected
    assert expected[1] == "image.png: cat 90.5%  dog 9.5%\n"
    (foreign.final_folder / "config.json").write_text(f"class_names: ../../x\nroot: {tmp_path}\nx: " + "[" * 10000)
    os.mkfifo(foreign.final_folder / "metrics.json")
    (foreign.final_folder / "model.safetensors").symlink_to("/dev/zero")
    (foreign.final_folder / "model.pt2").write_bytes(bomb(tmp_path / "marker"))
    assert on_folder("predict", foreign.folder) == expected
    assert not (tmp_path / "marker").exists()
