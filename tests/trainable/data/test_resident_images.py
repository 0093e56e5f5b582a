from dataclasses import replace

import pytest
import torch

from spaces import Dataset, Hyperparameters
from trainable.augmentation.policy import AugmentationPolicy
from trainable.compute import Compute
from trainable.data import batches
from trainable.data.batches import (
    RESERVED_BYTES,
    DeviceBatches,
    DeviceImages,
    HostBatches,
    resident_batches,
    resident_bytes,
)
from trainable.data.datasets import TrainingData, prepare_training_data
from trainable.fit_evaluate import FitEvaluate
from trainable.seeding import RunSeed

CONFIG = Hyperparameters(lr=0.02, momentum=0.8, gamma=0.5, step_size=2, batch_size=16, flip_p=0.3)
UNTOUCHED = replace(CONFIG, flip_p=0.0, shift_scale_rotate_p=0.0, coarse_dropout_p=0.0)
RESIDENT = Compute(resident=True)


@pytest.fixture(scope="module")
def data(tiny_digits: Dataset) -> TrainingData:
    return prepare_training_data(tiny_digits)


def fit(
    data: TrainingData,
    compute: Compute,
    config: Hyperparameters = CONFIG,
    number: int = 0,
    resident: DeviceImages | None = None,
) -> FitEvaluate:
    return FitEvaluate(data.train, data.validation, config, RunSeed(5, number), compute, resident)


def outcomes(run: FitEvaluate, n_epochs: int = 2) -> list[float]:
    results = run.epoch_training(n_epochs)
    return [value for result in results for value in (result.train_loss, result.validation_loss)]


def test_resident_images_need_room_for_themselves_an_epoch_twice_and_a_reserve(data: TrainingData) -> None:
    image_bytes = 17 * 17 * 3
    assert resident_bytes(data.train, None) == RESERVED_BYTES + 3 * len(data.train) * image_bytes
    longer = replace(data.train, images_per_epoch=1000)
    expected = RESERVED_BYTES + (len(data.train) + len(data.validation) + 2000) * image_bytes
    assert resident_bytes(longer, data.validation) == expected


def test_without_room_on_the_device_batches_come_from_the_host_and_a_line_says_so(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    needed_bytes = resident_bytes(data.train, data.validation)
    free_bytes = needed_bytes
    monkeypatch.setattr(batches, "free_device_bytes", lambda device: free_bytes)
    policy = AugmentationPolicy.from_hyperparameters(CONFIG, data.decoded.image_size, data.decoded.mean)
    kept = DeviceImages(torch.device("cpu"))
    resident = resident_batches(data.train, data.validation, policy, kept)
    assert isinstance(resident, DeviceBatches)
    next(resident.plain(data.train, 8))
    free_bytes = needed_bytes - 1
    assert isinstance(resident_batches(data.train, data.validation, policy, kept), DeviceBatches), "they lie there"
    for _ in range(2):
        on_host = resident_batches(data.train, data.validation, policy, DeviceImages(torch.device("cpu")))
        assert isinstance(on_host, HostBatches)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("The images need 1.1 GB of the GPU's memory, which has not so much free: they stay on the ")


def test_resident_images_train_the_same_network_where_nothing_is_augmented(data: TrainingData) -> None:
    assert outcomes(fit(data, RESIDENT, UNTOUCHED)) == outcomes(fit(data, Compute(), UNTOUCHED))


def test_a_seed_repeats_a_resident_run_and_each_set_is_brought_to_the_device_once(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = []
    gather = type(data.train).gather
    monkeypatch.setattr(
        type(data.train), "gather", lambda self, positions: (brought.append(self), gather(self, positions))[1]
    )
    kept = DeviceImages(torch.device("cpu"))
    first, again, other = (outcomes(fit(data, RESIDENT, number=number, resident=kept), 1) for number in (0, 0, 1))
    assert first == again
    assert first[0] != other[0]
    assert [images is data.train for images in brought] == [True, False]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_learns_what_a_cpu_learns(data: TrainingData) -> None:
    on_gpu = Compute("cuda", "bf16", resident=True)
    losses = outcomes(fit(data, on_gpu, UNTOUCHED), 4)
    assert losses == pytest.approx(outcomes(fit(data, Compute(), UNTOUCHED), 4), rel=0.15)
