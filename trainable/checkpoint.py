"""Checkpoints of a training run: `tensors.safetensors` and `state.json`, without pickle."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from spaces import Hyperparameters, InputError
from spaces.parameters import shorten
from spaces.plain_files import MIB, read_plain
from trainable.files import replacing, write_json
from trainable.seeding import Purpose, RunSeed

FORMAT_VERSION = 1
TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
# Upper bounds on files from elsewhere. The network and its momentum take about 1 MiB.
MAX_STATE_BYTES = MIB
MAX_TENSORS_BYTES = 1024 * MIB

StateDict = dict[str, Any]


@dataclass(frozen=True)
class TrainingState:
    """Content of a checkpoint other than tensors.

    Attributes:
        seed: names the random streams. Together with `epoch` it replaces any generator state.
        epoch: number of completed epochs.
        scheduler: state of the learning rate schedule.
    """

    hyperparameters: Hyperparameters
    seed: RunSeed
    epoch: int
    scheduler: StateDict

    def must_belong_to(self, hyperparameters: Hyperparameters, seed: RunSeed, folder: Path) -> None:
        """Raise InputError unless the checkpoint has this configuration and seed."""
        if self.hyperparameters != hyperparameters or self.seed != seed:
            raise InputError(
                f"{folder}: was saved by {self.hyperparameters} with {self.seed}, "
                f"but is to be restored into {hyperparameters} with {seed}."
            )


def write_checkpoint(folder: Path, state: TrainingState, network: StateDict, optimizer: StateDict) -> None:
    """Write both files, each atomically. The JSON holds the hash of the tensors, which reveals a mismatched pair.

    `folder` is created if it does not exist; `network` and `optimizer` are results of torch's `state_dict()`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"network.{name}": _plain(tensor) for name, tensor in network.items()}
    for index, slots in optimizer["state"].items():
        for name, value in slots.items():
            if value is not None:
                tensors[f"optimizer.{index}.{name}"] = _plain(value)
    packed = save(tensors)
    with replacing(folder / TENSORS_FILE) as temporary:
        temporary.write_bytes(packed)
    content = {
        "format": FORMAT_VERSION,
        "tensors_sha256": hashlib.sha256(packed).hexdigest(),
        "hyperparameters": state.hyperparameters.as_dict(),
        "seed": [state.seed.experiment, state.seed.number, int(state.seed.purpose)],
        "epoch": state.epoch,
        "scheduler": state.scheduler,
        "optimizer_groups": optimizer["param_groups"],
    }
    write_json(folder / STATE_FILE, content)


def read_checkpoint(folder: Path) -> tuple[TrainingState, StateDict, StateDict]:
    """Read a checkpoint of `write_checkpoint`.

    Returns:
        The state, and the state dicts of the network and of the optimizer.

    Raises:
        InputError: a file is missing or damaged.
    """
    try:
        content = json.loads(read_plain(folder / STATE_FILE, MAX_STATE_BYTES))
        packed = read_plain(folder / TENSORS_FILE, MAX_TENSORS_BYTES)
        if content["format"] != FORMAT_VERSION or hashlib.sha256(packed).hexdigest() != content["tensors_sha256"]:
            raise ValueError("its two files do not belong together")
        tensors = load(packed)
        experiment, number, purpose = content["seed"]
        epoch = content["epoch"]
        if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
            raise ValueError(f"its epoch is {shorten(epoch)}")
        state = TrainingState(
            hyperparameters=Hyperparameters.from_mapping(content["hyperparameters"]),
            seed=RunSeed(experiment, number, Purpose(purpose)),
            epoch=epoch,
            scheduler=content["scheduler"],
        )
        return state, _with_prefix(tensors, "network."), _optimizer_state(tensors, content["optimizer_groups"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise InputError(
            f"{folder}: is a damaged checkpoint ({str(error)[:200]}). Remove it to resume from an earlier one."
        ) from None


def must_fit(network: nn.Module, network_state: StateDict, optimizer_state: StateDict, folder: Path) -> None:
    """Raise InputError unless shapes, dtypes and values fit `network`. Fused kernels do not check momentum shapes.

    The parameters of `network`, in order, must be those of the optimizer.
    """
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in network_state.items()}
    shapes = dict(enumerate(parameter.shape for parameter in network.parameters()))
    slots = [(index, slot) for index, state in optimizer_state["state"].items() for slot in state.values()]
    if found != wanted:
        wrong = next(name for name in {**wanted, **found} if found.get(name) != wanted.get(name))
        reason = f"{wrong} is not of this network"
    elif any(shapes.get(index) != slot.shape for index, slot in slots):
        reason = "its momentum is not of this network"
    elif not all(bool(tensor.isfinite().all()) for tensor in [*network_state.values(), *(slot for _, slot in slots)]):
        reason = "it holds values that are not finite"
    else:
        return
    raise InputError(f"{folder}: is a damaged checkpoint ({reason}). Remove it to resume from an earlier one.")


def tensors_sha256(folder: Path) -> str:
    """SHA-256 of a checkpoint's tensor file, which identifies the trained state. Raises as `read_plain`."""
    return hashlib.sha256(read_plain(folder / TENSORS_FILE, MAX_TENSORS_BYTES)).hexdigest()


def checkpoint_epoch(folder: Path) -> int | None:
    """Number of completed epochs of a checkpoint; None if it is damaged."""
    try:
        state, _, _ = read_checkpoint(folder)
    except InputError:
        return None
    return state.epoch


def _plain(tensor: Tensor) -> Tensor:
    # safetensors stores row-major tensors only; load_state_dict copies them into the parameters' memory format.
    return torch.as_tensor(tensor).detach().cpu().contiguous()


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _optimizer_state(tensors: dict[str, Tensor], groups: list[StateDict]) -> StateDict:
    slots: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _with_prefix(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = tensor
    return {"state": slots, "param_groups": groups}
