"""An experiment's folder as somebody else may have made it."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper

from search.experiment.events import TrialEnded, TrialStarted
from search.experiment.folder import Experiment, create_experiment
from search.experiment.manifest import Data, Device, new_manifest
from spaces import Space
from tests.support.simulation import result

Call = Callable[..., tuple[int, str, str]]

KINDS = ("link to a file", "link to a folder", "link to nowhere", "link to a device", "FIFO", "folder")


def make_experiment(results: Path, name: str, space: Space) -> Experiment:
    """Trial 0 completed, trial 1 is unfinished after an epoch; without the copies that stand in for damaged files."""
    device = Device(device="cpu", name="CPU", trials_at_once=2)
    data = Data(n_train=320, n_validation=80, class_names=["0", "1"], mean=[0.3], std=[0.3], content_sha256="0" * 64)
    made = create_experiment(results, name, space, new_manifest(space, name, device, data))
    journal = made.journal()
    for number in range(2):
        journal.append(TrialStarted(number, space.searched_values(space.baseline), space.baseline, number == 0, 0.0))
    for event in (result(0, 1, 0.5), result(0, 2, 0.6), result(0, 3, 0.7), result(1, 1, 0.6)):
        journal.append(event)
    journal.append(TrialEnded(0, "completed", "", 1.0))
    shutil.rmtree(made.folder / ".backup")
    drop_checksums(made.folder)
    return made


def drop_checksums(folder: Path) -> None:
    """Whoever changes a line or a manifest can compute its checksum too; without one, it is read likewise."""
    journal, manifest = folder / "journal.jsonl", folder / "manifest.json"
    journal.write_text(re.sub(r', "crc32": "[0-9a-f]{8}"}\n', "}\n", journal.read_text()))
    manifest.write_text(re.sub(r',\s+"crc32": "[0-9a-f]{8}"', "", manifest.read_text()))


def model(
    class_names: object = ("cat", "dog"),
    size: int = 20,
    nodes: list[Any] | None = None,
    weights: list[Any] | None = None,
    class_weights: Sequence[float] = (-0.1, -2.35),
) -> bytes:
    """An ONNX model with the names and shapes of ours: for each class, a weight (or the mean of nothing at all)."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", size, size, 3])
    output = helper.make_tensor_value_info("log_probabilities", TensorProto.FLOAT, ["n", len(class_weights)])
    if nodes is None:
        nodes = [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
            helper.make_node("Mul", ["column", "zero"], ["zeros"]),
            helper.make_node("Add", ["zeros", "w"], ["log_probabilities"]),
        ]
    if weights is None:
        weights = [helper.make_tensor("w", TensorProto.FLOAT, [len(class_weights)], class_weights)]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]),
    ]
    graph = helper.make_graph(nodes, "graph", [images], [output], [*constants, *weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, {"class_names": json.dumps(class_names)})
    return bytes(made.SerializeToString())


def outside_weights(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def assert_refused(outcome: tuple[int, str, str], name: str, reason: str) -> None:
    code, output, errors = outcome
    assert code == 2, outcome
    assert output == ""
    (line,) = errors.splitlines()
    assert name in line
    assert reason in line
    assert line.isprintable()


def put(kind: str, path: Path, victim: Path) -> None:
    """Put something in the place of `path` that is no plain file."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "link to a file":
            path.symlink_to(victim / "precious.txt")
        case "link to a folder":
            path.symlink_to(victim)
        case "link to nowhere":
            path.symlink_to(victim / "not-there-yet")
        case "link to a device":
            path.symlink_to("/dev/zero")
        case "FIFO":
            os.mkfifo(path)
        case "folder":
            path.mkdir()


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, int, bool]]:
        return (os.makedirs, (str(self.marker), 0o777, True))


def bomb(marker: Path) -> bytes:
    return pickle.dumps(Bomb(marker))


PICKLES = ("tuner.pkl", "trainable.pkl", "params.pkl", "optimizer.pkl", ".tune_metadata", "model.pt", "data.pickle")
STATES = ("experiment_state-2026-01-01_00-00-00.json", "basic-variant-state-2026-01-01_00-00-00.json")
MODULES = ("sitecustomize.py", "yaml.py", "numpy.py", "search.py", "conftest.py", "__init__.py")


def plant(folder: Path, marker: Path) -> None:
    """Put pickles wherever Ray or torch might look, and modules, into every folder of an experiment."""
    folders = [
        folder,
        folder / "final",
        folder / "final" / "checkpoints" / "0",
        *(folder / "ray" / f"session_{session}" for session in (1, 2, 3)),
        folder / "ray" / "session_2" / "trial_0001" / "checkpoint_000000",
    ]
    for place in folders:
        place.mkdir(parents=True, exist_ok=True)
    for place in [path for path in (folder, *folder.rglob("*")) if path.is_dir()]:
        for name in (*PICKLES, "searcher-state-2026-01-01_00-00-00.pkl", ".validate_storage_marker"):
            (place / name).write_bytes(bomb(marker))
        for name in STATES:
            hidden = {"_type": "CLOUDPICKLE_FALLBACK", "value": bomb(marker).hex()}
            (place / name).write_text(json.dumps({"runner_data": hidden, "checkpoints": [hidden], "trial_data": []}))
        for name in MODULES:
            (place / name).write_text(f"import os\nos.makedirs({str(marker)!r}, exist_ok=True)\n")
    (folder / "study.db").write_bytes(bomb(marker))
    (folder / "final" / "model.pt2").write_bytes(bomb(marker))
    (folder / "final" / "model.safetensors").write_bytes(bomb(marker))
