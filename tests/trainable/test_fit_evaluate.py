import hashlib
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from spaces import Dataset, Hyperparameters, InputError
from spaces.schema import Precision
from trainable.compute import Compute
from trainable.data.batches import batch_bounds, epoch_order
from trainable.data.datasets import ImageSet, TrainingData, prepare_training_data
from trainable.fit_evaluate import FitEvaluate
from trainable.ray_trainable import restore_or_start_over
from trainable.seeding import Purpose, RunSeed, Stream

CONFIG = Hyperparameters(lr=0.02, momentum=0.8, gamma=0.5, step_size=2, batch_size=16, flip_p=0.3)


@pytest.fixture(scope="module")
def data(tiny_digits: Dataset) -> TrainingData:
    return prepare_training_data(tiny_digits)


def fit(data: TrainingData, config: Hyperparameters = CONFIG, number: int = 0) -> FitEvaluate:
    return FitEvaluate(data.train, data.validation, config, RunSeed(5, number))


def losses(results: list) -> list[float]:
    return [value for result in results for value in (result.train_loss, result.validation_loss)]


def test_learns_digits_far_better_than_chance() -> None:
    data = prepare_training_data(Dataset(name="digits", image_size=17, train_limit=600))
    results = fit(data, replace(CONFIG, flip_p=0.0, momentum=0.5)).epoch_training(6)
    assert results[-1].validation_accuracy > 0.4
    assert results[-1].train_loss < 0.8 * results[0].train_loss


def test_the_learning_rate_is_steplr_s(data: TrainingData) -> None:
    results = fit(data).epoch_training(5)
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=CONFIG.lr)
    scheduler = StepLR(optimizer, CONFIG.step_size, CONFIG.gamma)
    for result in results:
        assert result.lr == scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()


def test_an_epoch_is_sgd_on_the_nll_of_every_image_once(data: TrainingData) -> None:
    # Without dropout and augmentation the epoch can be computed by hand from the same start.
    config = replace(CONFIG, dropout=0.0, flip_p=0.0, shift_scale_rotate_p=0.0, coarse_dropout_p=0.0, weight_decay=0.01)
    reference = fit(data, config)
    seen: list[np.ndarray] = []
    gather = data.train.gather

    class Spy(ImageSet):
        def gather(self, positions):  # type: ignore[no-untyped-def]
            seen.append(np.asarray(positions))
            return gather(positions)

    run = FitEvaluate(Spy(data.train.decoded, data.train.rows), None, config, reference.seed)
    found = run.train()

    order = np.concatenate(seen)
    assert sorted(order) == list(range(len(data.train)))
    optimizer = SGD(reference.network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=0.01)
    total = 0.0
    for positions in seen:
        images, labels = data.train.gather(positions)
        output = reference.network(reference.normalise(torch.from_numpy(images)))
        loss = torch.nn.NLLLoss()(output, torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
    assert found.loss == pytest.approx(total / len(data.train), rel=1e-6)
    for mine, theirs in zip(run.network.parameters(), reference.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_evaluation_is_the_mean_over_images_and_leaves_no_trace(data: TrainingData) -> None:
    run = fit(data)
    run.run_epoch()
    before = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    found = run.test(data.validation)
    log_probabilities = torch.from_numpy(run.predict(data.validation))
    labels = torch.from_numpy(data.validation.labels)
    assert found.loss == pytest.approx(torch.nn.functional.nll_loss(log_probabilities, labels).item(), rel=1e-5)
    assert found.accuracy == pytest.approx((log_probabilities.argmax(1) == labels).double().mean().item())
    assert found == run.test(data.validation)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.network.state_dict().items())


@pytest.mark.parametrize("allowed", [True, False])
def test_predictions_are_in_fp32_and_leave_the_precision_of_training_as_it_was(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    run, seen = fit(data), []
    run.network.register_forward_hook(
        lambda *_: seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark))
    )
    run.predict(data.validation)
    assert set(seen) == {(False, True)}
    assert torch.backends.cudnn.allow_tf32 is allowed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_predicts_what_a_cpu_predicts(data: TrainingData, tmp_path: Path, precision: Precision) -> None:
    trained = fit(data)
    trained.epoch_training(2)
    trained.save(tmp_path)
    compute = Compute("cuda", precision, resident=True)
    on_gpu = FitEvaluate(data.train, data.validation, CONFIG, RunSeed(5, 0), compute)
    on_gpu.restore(tmp_path)
    # TF32 would round each input of each convolution by up to 5e-4 of it.
    np.testing.assert_allclose(on_gpu.predict(data.validation), trained.predict(data.validation), rtol=1e-4, atol=1e-4)


RESTORED_IN_ANOTHER_PROCESS = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from spaces import Dataset, Hyperparameters
from trainable.data.datasets import prepare_training_data
from trainable.fit_evaluate import FitEvaluate
from trainable.seeding import RunSeed
config, dataset, before, after = json.loads(sys.argv[1])
data = prepare_training_data(Dataset(**dataset))
run = FitEvaluate(data.train, data.validation, Hyperparameters(**config), RunSeed(5, 0))
run.restore(Path(before))
result = run.run_epoch()
run.save(Path(after))
print(json.dumps([result.epoch, result.lr, result.train_loss, result.validation_loss]))
"""


def test_a_run_restored_in_another_process_goes_on_bit_for_bit(
    data: TrainingData, tiny_digits: Dataset, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = fit(data)
        run.epoch_training(2)
        run.save(tmp_path / "before")
        torch.manual_seed(99)  # whatever else is drawn in between must not matter
        torch.rand(7)
        expected = run.run_epoch()
        run.save(tmp_path / "never_stopped")
    finally:
        torch.set_num_threads(threads)
    paths = [str(tmp_path / "before"), str(tmp_path / "restored")]
    argument = json.dumps([CONFIG.as_dict(), tiny_digits.model_dump(), *paths])
    command = [sys.executable, "-c", RESTORED_IN_ANOTHER_PROCESS, argument]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert json.loads(output) == [expected.epoch, expected.lr, expected.train_loss, expected.validation_loss]
    never_stopped = load_file(tmp_path / "never_stopped" / "tensors.safetensors")
    restored = load_file(tmp_path / "restored" / "tensors.safetensors")
    assert never_stopped.keys() == restored.keys()
    assert all(torch.equal(never_stopped[name], restored[name]) for name in never_stopped)


def test_a_checkpoint_is_small_and_nothing_in_it_is_pickled(data: TrainingData, tmp_path: Path) -> None:
    run = fit(data)
    run.run_epoch()
    run.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"state.json", "tensors.safetensors"}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_100_000
    assert json.loads((tmp_path / "state.json").read_text())["hyperparameters"] == CONFIG.as_dict()


@pytest.mark.parametrize("change", ["hyperparameters", "seed"])
def test_a_checkpoint_of_another_run_is_refused(data: TrainingData, tmp_path: Path, change: str) -> None:
    fit(data).save(tmp_path)
    other = fit(data, replace(CONFIG, lr=0.03)) if change == "hyperparameters" else fit(data, number=1)
    with pytest.raises(InputError, match="was saved by"):
        other.restore(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "mixed", "missing", "not json"])
def test_a_damaged_checkpoint_is_refused(data: TrainingData, tmp_path: Path, damage: str) -> None:
    run = fit(data)
    run.save(tmp_path)
    tensors, state = tmp_path / "tensors.safetensors", tmp_path / "state.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "mixed":
        old_state = state.read_bytes()
        run.run_epoch()
        run.save(tmp_path)
        state.write_bytes(old_state)
    elif damage == "missing":
        tensors.unlink()
    else:
        state.write_text("{")
    with pytest.raises(InputError, match="damaged checkpoint"):
        run.restore(tmp_path)


def rewrite_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | bytes]) -> None:
    """Change a checkpoint's tensors as somebody would who means it: the hash fits."""
    changed = change(load_file(folder / "tensors.safetensors"))
    packed = changed if isinstance(changed, bytes) else save(changed)
    (folder / "tensors.safetensors").write_bytes(packed)
    state = json.loads((folder / "state.json").read_text())
    state["tensors_sha256"] = hashlib.sha256(packed).hexdigest()
    (folder / "state.json").write_text(json.dumps(state))


class Payload:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (Path.write_text, (self._path, "it ran"))  # type: ignore[return-value]


@pytest.mark.parametrize("hostile", ["weights", "momentum", "names", "nan", "nan momentum", "pickle"])
def test_a_hostile_checkpoint_is_refused_and_its_run_starts_over(
    data: TrainingData, tmp_path: Path, hostile: str, capfd: pytest.CaptureFixture[str]
) -> None:
    saved = fit(data)
    saved.run_epoch()
    saved.save(tmp_path / "checkpoint")

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | bytes:
        weights = next(name for name in tensors if name.startswith("network.") and tensors[name].ndim == 4)
        momentum = next(name for name in tensors if name.startswith("optimizer."))
        match hostile:
            case "weights":
                return {**tensors, weights: torch.zeros(3, 3, 1, 1)}
            case "momentum":
                return {**tensors, momentum: torch.zeros(7)}
            case "names":
                return {f"{name}.more": tensor for name, tensor in tensors.items()}
            case "nan":
                return {**tensors, weights: torch.full_like(tensors[weights], torch.nan)}
            case "nan momentum":
                return {**tensors, momentum: torch.full_like(tensors[momentum], torch.nan)}
        return pickle.dumps(Payload(tmp_path / "payload"))

    rewrite_tensors(tmp_path / "checkpoint", change)
    with pytest.raises(InputError, match="damaged checkpoint"):
        fit(data).restore(tmp_path / "checkpoint")
    run = fit(data)
    restore_or_start_over(run, tmp_path / "checkpoint")
    assert run.epoch == 0
    assert all(torch.equal(tensor, fresh) for tensor, fresh in zip(tensors_of(run), tensors_of(fit(data)), strict=True))
    assert "trained from its start" in capfd.readouterr().out
    assert not (tmp_path / "payload").exists()


def tensors_of(run: FitEvaluate) -> list[torch.Tensor]:
    return list(run.network.state_dict().values())


def test_runs_of_other_numbers_and_purposes_share_no_stream() -> None:
    seeds = [RunSeed(0, 0), RunSeed(0, 1), RunSeed(1, 0), RunSeed(0, 0, Purpose.RETRAINING)]
    words = [seed.stream(stream, epoch) for seed in seeds for stream in Stream for epoch in range(5)]
    assert len(set(words)) == len(words)
    assert all(0 <= word < 2**63 for word in words)


def test_the_same_seed_gives_the_same_run_and_another_does_not(data: TrainingData) -> None:
    first = losses(fit(data).epoch_training(2))
    assert losses(fit(data).epoch_training(2)) == first
    assert losses(fit(data, number=1).epoch_training(2)) != first


def test_dropout_does_not_disturb_the_global_generator(data: TrainingData) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fit(data).run_epoch()
    assert torch.equal(torch.rand(4), expected)


def test_a_diverging_run_ends_and_says_so(data: TrainingData) -> None:
    run = fit(data, replace(CONFIG, lr=10.0, momentum=0.99))
    with torch.no_grad():
        run.network.classifier.bias[0] = math.nan
    results = run.epoch_training(5)
    assert len(results) == 1
    assert results[0].diverged


@pytest.mark.parametrize(
    ("n_images", "expected"),
    [
        (64, [(0, 32), (32, 64)]),
        (65, [(0, 32), (32, 65)]),
        (66, [(0, 32), (32, 64), (64, 66)]),
        (1, [(0, 1)]),
    ],
)
def test_no_batch_is_a_single_image_if_it_can_be_helped(n_images: int, expected: list[tuple[int, int]]) -> None:
    assert batch_bounds(n_images, 32) == expected


def test_restored_momentum_lies_in_memory_as_its_parameter(data: TrainingData, tmp_path: Path) -> None:
    # Checkpoints are row-major, the network is not, and fused optimizers pair the two as they lie.
    run = fit(data)
    run.epoch_training(1)
    run.save(tmp_path)
    restored = fit(data)
    restored.restore(tmp_path)
    for parameter, slots in restored.optimizer.state.items():
        assert slots["momentum_buffer"].stride() == parameter.stride()
    found, saved = (each.optimizer.state_dict()["state"] for each in (restored, run))
    for index, slots in saved.items():
        assert torch.equal(found[index]["momentum_buffer"], slots["momentum_buffer"])


@pytest.mark.parametrize(("n_images", "epoch_images"), [(10, 10), (10, 3), (10, 25), (12, 12 * 4)])
def test_epochs_take_every_image_once_a_pass(n_images: int, epoch_images: int) -> None:
    epochs = [epoch_order(n_images, epoch_images, RunSeed(1), epoch) for epoch in range(20)]
    assert all(len(order) == epoch_images for order in epochs)
    passes = np.concatenate(epochs)
    passes = passes[: len(passes) // n_images * n_images].reshape(-1, n_images)
    assert (np.sort(passes, axis=1) == np.arange(n_images)).all()
    assert len({tuple(order) for order in passes}) == len(passes)


def test_an_epoch_may_be_a_number_of_images(tiny_digits: Dataset) -> None:
    data = prepare_training_data(tiny_digits.model_copy(update={"images_per_epoch": 50}))
    run = fit(data)
    n_steps = []
    results = run.epoch_training(2, lambda result: n_steps.append(result.epoch))
    assert run.steps_per_epoch == 4
    assert [result.epoch for result in results] == [1, 2]
    counted: list[int] = []
    run.train(lambda: counted.append(1))
    assert len(counted) == 4
    # All images are still what the network is compared on and retrained from.
    assert len(data.everything) == len(data.train) + len(data.validation)
    assert data.everything.epoch_images == 50


def test_the_train_command_prints_summary_and_accuracy_per_epoch(  # type: ignore[no-untyped-def]
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    from tests.conftest import TINY, set_options

    result = run("trainable.train", *set_options(*TINY), "--epochs", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "118,546" in result.stdout
    assert "receptive field 49 x 49" in result.stdout
    assert "320 training and 80 validation images, on c" in result.stdout
    assert result.stdout.count("validation loss") == 2
    assert result.stderr == ""
    assert list(temporary.iterdir()) == []


def test_the_train_command_refuses_bad_input_in_one_line(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = run("trainable.train", "--set", "search.trials=0", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "--set search.trials=0: `search.trials` is 0, but must be at least 1.\n"
