import hashlib
import json
import math
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch.optim import SGD

from spaces import Dataset, Hyperparameters, InputError
from spaces.schema import Precision
from tests.conftest import TINY, set_options
from trainable import train
from trainable.compute import Compute
from trainable.data.batches import batch_bounds, epoch_order
from trainable.data.datasets import ImageSet, TrainingData, prepare_training_data
from trainable.fit_evaluate import FitEvaluate
from trainable.ray_trainable import restore_or_start_over
from trainable.seeding import Purpose, RunSeed, Stream

CONFIG = Hyperparameters(lr=0.02, momentum=0.8, gamma=0.5, step_size=2, batch_size=16, flip_p=0.3)


@pytest.fixture(scope="module")
def data(tiny_digits: Dataset) -> TrainingData:
    return prepare_training_data(tiny_digits.model_copy(update={"train_limit": 100}))


@pytest.fixture(scope="module")
def trained(data: TrainingData) -> FitEvaluate:
    """A run after one epoch; tests do not train it."""
    run = fit(data)
    run.run_epoch()
    return run


@pytest.fixture
def checkpoint(trained: FitEvaluate, tmp_path: Path) -> Path:
    trained.save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def fit(data: TrainingData, config: Hyperparameters = CONFIG, number: int = 0) -> FitEvaluate:
    return FitEvaluate(data.train, data.validation, config, RunSeed(5, number))


def losses(results: list) -> list[float]:
    return [value for result in results for value in (result.train_loss, result.validation_loss)]


def tensors_of(run: FitEvaluate) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in run.network.state_dict().values()]


def equal(these: list[torch.Tensor], those: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(these, those, strict=True))


def test_learns_digits_far_better_than_chance() -> None:
    data = prepare_training_data(Dataset(name="digits", image_size=17, train_limit=400))
    results = fit(data, replace(CONFIG, flip_p=0.0, momentum=0.5, batch_size=8)).epoch_training(4)
    assert results[-1].validation_accuracy > 0.4
    assert results[-1].train_loss < 0.8 * results[0].train_loss


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

    assert sorted(np.concatenate(seen)) == list(range(len(data.train)))
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


def test_evaluation_is_the_mean_over_images_and_leaves_no_trace(trained: FitEvaluate, data: TrainingData) -> None:
    before = tensors_of(trained)
    found = trained.test(data.validation)
    log_probabilities = torch.from_numpy(trained.predict(data.validation))
    labels = torch.from_numpy(data.validation.labels)
    assert found.loss == pytest.approx(torch.nn.functional.nll_loss(log_probabilities, labels).item(), rel=1e-5)
    assert found.accuracy == pytest.approx((log_probabilities.argmax(1) == labels).double().mean().item())
    assert found == trained.test(data.validation)
    assert equal(before, tensors_of(trained))


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
def test_a_gpu_predicts_what_a_cpu_predicts(
    data: TrainingData, trained: FitEvaluate, checkpoint: Path, precision: Precision
) -> None:
    compute = Compute("cuda", precision, resident=True)
    on_gpu = FitEvaluate(data.train, data.validation, CONFIG, RunSeed(5, 0), compute)
    on_gpu.restore(checkpoint)
    # TF32 would round each input of each convolution by up to 5e-4 of it.
    np.testing.assert_allclose(on_gpu.predict(data.validation), trained.predict(data.validation), rtol=1e-4, atol=1e-4)


def test_a_seed_repeats_a_run_with_the_rates_of_its_schedule_and_another_does_not(data: TrainingData) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    results = fit(data).epoch_training(3)
    assert torch.equal(torch.rand(4), expected), "training leaves the global generator alone"
    assert [result.lr for result in results] == [0.02, 0.02, 0.01]
    assert losses(fit(data).epoch_training(1)) == losses(results[:1])
    assert losses(fit(data, number=1).epoch_training(1)) != losses(results[:1])


def test_a_restored_run_continues_bit_for_bit(data: TrainingData, tmp_path: Path) -> None:
    run = fit(data)
    run.epoch_training(2)
    run.save(tmp_path / "before")
    torch.manual_seed(99)  # whatever else is drawn in between must not matter
    restored = fit(data)
    restored.restore(tmp_path / "before")
    for parameter, slots in restored.optimizer.state.items():
        # Checkpoints are row-major, the network is not, and fused optimizers pair the two as they lie.
        assert slots["momentum_buffer"].stride() == parameter.stride()
    results = [each.run_epoch() for each in (run, restored)]
    assert results[0].epoch == results[1].epoch == 3
    assert results[0].lr == results[1].lr
    assert losses(results[:1]) == losses(results[1:])
    run.save(tmp_path / "never_stopped")
    restored.save(tmp_path / "restored")
    saved = [load_file(tmp_path / name / "tensors.safetensors") for name in ("never_stopped", "restored")]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_a_checkpoint_is_small_and_nothing_in_it_is_pickled(checkpoint: Path) -> None:
    assert {path.name for path in checkpoint.iterdir()} == {"state.json", "tensors.safetensors"}
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < 1_100_000
    assert json.loads((checkpoint / "state.json").read_text())["hyperparameters"] == CONFIG.as_dict()


@pytest.mark.parametrize(("config", "number"), [(replace(CONFIG, lr=0.03), 0), (CONFIG, 1)])
def test_a_checkpoint_of_another_run_is_refused(
    data: TrainingData, checkpoint: Path, config: Hyperparameters, number: int
) -> None:
    with pytest.raises(InputError, match="was saved by"):
        fit(data, config, number).restore(checkpoint)


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


WEIGHTS, MOMENTUM = "network.blocks.0.0.weight", "optimizer.0.momentum_buffer"
HOSTILE: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "weights": lambda tensors: {**tensors, WEIGHTS: torch.zeros(3, 3, 1, 1)},
    "momentum": lambda tensors: {**tensors, MOMENTUM: torch.zeros(7)},
    "names": lambda tensors: {f"{name}.more": tensor for name, tensor in tensors.items()},
    "nan": lambda tensors: {**tensors, WEIGHTS: torch.full_like(tensors[WEIGHTS], torch.nan)},
    "nan momentum": lambda tensors: {**tensors, MOMENTUM: torch.full_like(tensors[MOMENTUM], torch.nan)},
}


@pytest.mark.parametrize("damage", ["truncated", "mixed", "missing", "not json", "pickle", *HOSTILE])
def test_a_damaged_or_hostile_checkpoint_is_refused_and_its_run_starts_over(
    data: TrainingData, checkpoint: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors, state = checkpoint / "tensors.safetensors", checkpoint / "state.json"
    match damage:
        case "truncated":
            tensors.write_bytes(tensors.read_bytes()[:-100])
        case "mixed":
            fit(data).save(checkpoint.with_name("other"))
            shutil.copy(checkpoint.with_name("other") / "state.json", state)
        case "missing":
            tensors.unlink()
        case "not json":
            state.write_text("{")
        case "pickle":
            rewrite_tensors(checkpoint, lambda _: pickle.dumps(Payload(checkpoint / "payload")))
        case _:
            rewrite_tensors(checkpoint, HOSTILE[damage])
    run = fit(data)
    with pytest.raises(InputError, match="damaged checkpoint"):
        run.restore(checkpoint)
    restore_or_start_over(run, checkpoint)
    assert run.epoch == 0
    assert equal(tensors_of(run), tensors_of(fit(data)))
    assert "trained from its start" in capfd.readouterr().out
    assert not (checkpoint / "payload").exists()


def test_runs_of_other_numbers_and_purposes_share_no_stream() -> None:
    seeds = [RunSeed(0, 0), RunSeed(0, 1), RunSeed(1, 0), RunSeed(0, 0, Purpose.RETRAINING)]
    words = [seed.stream(stream, epoch) for seed in seeds for stream in Stream for epoch in range(5)]
    assert len(set(words)) == len(words)
    assert all(0 <= word < 2**63 for word in words)


def test_a_diverging_run_ends_and_says_so(data: TrainingData) -> None:
    run = fit(data, replace(CONFIG, lr=10.0, momentum=0.99))
    with torch.no_grad():
        run.network.classifier.bias[0] = math.nan
    (result,) = run.epoch_training(5)
    assert result.diverged


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
    run, counted = fit(data), []
    run.train(lambda: counted.append(1))
    assert len(counted) == run.steps_per_epoch == 4
    # All images are still what the network is compared on and retrained from.
    assert len(data.everything) == len(data.train) + len(data.validation)
    assert data.everything.epoch_images == 50


def test_the_train_command_prints_summary_and_accuracy_per_epoch(  # type: ignore[no-untyped-def]
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    result = run("trainable.train", *set_options(*TINY, "dataset.train_limit=100"), "--epochs", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "118,546" in result.stdout
    assert "receptive field 49 x 49" in result.stdout
    assert "80 training and 20 validation images, on c" in result.stdout
    assert result.stdout.count("validation loss") == 2
    assert result.stderr == ""
    assert list(temporary.iterdir()) == []


def test_the_train_command_refuses_bad_input_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--set", "search.trials=0"]) == 2
    assert capsys.readouterr().err == "--set search.trials=0: `search.trials` is 0, but must be at least 1.\n"
