from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from spaces import Dataset, Hyperparameters
from trainable.compute import Compute, choose_precision
from trainable.data.datasets import prepare_training_data
from trainable.fit_evaluate import FitEvaluate
from trainable.network.folding import folded
from trainable.network.model import DepthwiseSeparableNet
from trainable.seeding import RunSeed

CONFIG = Hyperparameters(lr=0.02, momentum=0.8, batch_size=16, flip_p=0.0)


@pytest.fixture(scope="module")
def trained(tiny_digits: Dataset) -> FitEvaluate:
    data = prepare_training_data(tiny_digits)
    run = FitEvaluate(data.train, data.validation, CONFIG, RunSeed(1))
    run.epoch_training(2)
    return run


@pytest.mark.parametrize(
    ("wanted", "capabilities", "precision", "reason"),
    [
        ("auto", {"avx512_bf16": True}, "bf16", "AVX512-BF16"),
        ("auto", {"amx_bf16": True, "avx512_bf16": True}, "bf16", "AMX-BF16"),
        ("auto", {"architecture": "aarch64", "bf16": True}, "bf16", "BF16"),
        ("auto", {"avx512_bf16": False, "avx2": True}, "fp32", "no bf16 instructions"),
        ("fp32", {"amx_bf16": True}, "fp32", "as the space says"),
        ("bf16", {}, "bf16", "as the space says"),
    ],
)
def test_auto_takes_bf16_where_the_processor_has_it(
    wanted: str, capabilities: Mapping[str, bool], precision: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    chosen, why = choose_precision(wanted, "cpu")
    assert chosen == precision
    assert reason in why


def test_a_folded_network_computes_the_same_and_leaves_the_original_alone(trained: FitEvaluate) -> None:
    network = trained.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.randn(16, 3, 18, 18)
    light = folded(network, torch.float32)
    with torch.inference_mode():
        expected = network.eval()(images)
        torch.testing.assert_close(light(images), expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in light.modules())
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_folding_works_for_other_classes_and_plain_dropout() -> None:
    network = DepthwiseSeparableNet(3, 0.2, torch.Generator().manual_seed(0), fused=False)
    network.train()(torch.randn(8, 3, 21, 21))
    images = torch.randn(4, 3, 21, 21)
    torch.testing.assert_close(folded(network, torch.float32)(images), network.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_way_to_evaluate_gives_the_same_accuracy(trained: FitEvaluate, precision: str) -> None:
    validation = trained._validation_set
    assert validation is not None
    plain = replace(trained.compute, folded_evaluation=False, channels_last=False)
    reference = evaluate(trained, plain)
    fast = evaluate(trained, Compute(precision=precision))  # type: ignore[arg-type]
    # bf16 may turn the answer on an image that lies between two classes: at most one here.
    assert abs(fast.accuracy - reference.accuracy) <= (1.01 / len(validation) if precision == "bf16" else 0)
    assert fast.loss == pytest.approx(reference.loss, rel=0.02 if precision == "bf16" else 1e-4)


def test_predictions_are_fp32_whatever_the_run_computes_in(trained: FitEvaluate) -> None:
    images = trained._validation_set
    assert images is not None
    in_bf16 = same_weights(trained, Compute(precision="bf16"))
    torch.testing.assert_close(
        torch.from_numpy(in_bf16.predict(images)), torch.from_numpy(trained.predict(images)), rtol=1e-5, atol=1e-5
    )


def test_bf16_trains_close_to_fp32_and_keeps_fp32_weights(tiny_digits: Dataset) -> None:
    data = prepare_training_data(tiny_digits)
    config = replace(CONFIG, dropout=0.0)
    runs = [
        FitEvaluate(data.train, data.validation, config, RunSeed(1), Compute(precision=precision))
        for precision in ("fp32", "bf16")
    ]
    fp32, bf16 = (run.epoch_training(1) for run in runs)
    assert bf16[0].train_loss == pytest.approx(fp32[0].train_loss, rel=0.05)
    assert bf16[0].train_loss != fp32[0].train_loss
    assert all(parameter.dtype == torch.float32 for parameter in runs[1].network.parameters())


def same_weights(run: FitEvaluate, other: Compute) -> FitEvaluate:
    copied = FitEvaluate(run._train_set, run._validation_set, run.hyperparameters, run.seed, other)
    copied.network.load_state_dict(run.network.state_dict())
    return copied


def evaluate(run: FitEvaluate, other: Compute):  # type: ignore[no-untyped-def]
    copied = same_weights(run, other)
    return copied.test(run._validation_set)
