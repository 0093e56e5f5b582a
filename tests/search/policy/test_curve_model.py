"""The curve model against closed forms and scikit-learn's Gaussian process."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from search.policy import curve_model
from search.policy.coordinates import features, values_of
from search.policy.curve_model import PRIOR_SCALE, Curve, CurveModel, KernelParameters, bins_of, to_z
from spaces.parameters import Choice, Hyperparameters, LogUniform, RandInt, Searched, Uniform

SEARCHED: dict[str, Searched] = {
    "lr": LogUniform(0.005, 0.5),
    "momentum": Uniform(0.5, 0.98),
    "gamma": Uniform(0.1, 1.0),
    "step_size": RandInt(1, 27),
    "coarse_dropout_p": Uniform(0.0, 1.0),
}
PARAMETERS = KernelParameters(length=1.0, noise=0.1, own=0.05)


def from_z(z: np.ndarray) -> np.ndarray:
    """The inverse of `to_z`."""
    return np.sin(z / 2) ** 2


def drawn(n: int, seed: int = 0) -> list[Hyperparameters]:
    generator = np.random.default_rng(seed)
    return [
        Hyperparameters(
            lr=float(10 ** generator.uniform(-2.3, -0.3)),
            momentum=float(generator.uniform(0.5, 0.98)),
            gamma=float(generator.uniform(0.1, 1)),
            step_size=int(generator.integers(1, 28)),
            coarse_dropout_p=float(generator.random()),
        )
        for _ in range(n)
    ]


def curve_of(config: Hyperparameters, n_epochs: int, max_epochs: int = 27) -> Curve:
    """A curve that rises to its end; the end depends on the mean effective learning rate, and is best at 0.5."""
    effective = features(SEARCHED, values_of([config]), np.array([max_epochs]))[0][1]
    end = 0.9 - 0.15 * (effective - np.log10(0.5)) ** 2
    epochs = np.arange(1, n_epochs + 1)
    return Curve(config, tuple(end * (1 - 0.8 * np.exp(-4 * epochs / max_epochs))))


def test_z_of_an_accuracy_is_inverted_and_has_equal_noise_everywhere() -> None:
    accuracies = np.linspace(0, 1, 11)
    np.testing.assert_allclose(from_z(to_z(accuracies)), accuracies, atol=1e-12)
    counts = np.random.default_rng(0).binomial(500, [[0.1], [0.5], [0.9]], size=(3, 20_000)) / 500
    np.testing.assert_allclose(to_z(counts).std(axis=1), 1 / np.sqrt(500), rtol=0.05)


def test_features_describe_the_learning_rates_that_torch_trains_with() -> None:
    config = Hyperparameters(lr=0.2, momentum=0.8, gamma=0.5, step_size=4)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, config.step_size, config.gamma)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    _, effective, momentum, decay, last, _ = features(SEARCHED, values_of([config]), np.array([11]))[0]
    assert effective == pytest.approx(np.log10(np.mean(rates) / (1 - 0.8)))
    assert momentum == pytest.approx(1.6)
    assert decay == pytest.approx(np.log10(np.mean(rates) / 0.2))
    assert last == pytest.approx(np.log10(rates[-1] / 0.2) / 2)


def test_before_the_first_decay_a_curve_does_not_depend_on_gamma() -> None:
    configs = [Hyperparameters(gamma=gamma, step_size=9) for gamma in (0.1, 0.9)]
    early, late = (features(SEARCHED, values_of(configs), np.array([epoch, epoch])) for epoch in (9, 10))
    np.testing.assert_array_equal(early[0], early[1])
    assert np.abs(late[0] - late[1]).max() > 0.1


def test_unknown_parameters_are_scaled_and_choices_get_a_column_per_option() -> None:
    searched: dict[str, Searched] = {"batch_size": Choice((32, 64, 128)), "weight_decay": LogUniform(1e-5, 1e-3)}
    configs = [Hyperparameters(batch_size=64, weight_decay=1e-4), Hyperparameters(batch_size=128, weight_decay=1e-3)]
    found = features(searched, values_of(configs), np.array([1, 27]))
    np.testing.assert_allclose(found[:, 1:], [[0, 1.6, 0, 0.8], [0, 0, 1.6, 1.6]])


def test_bins_are_means_of_z_and_end_at_the_last_known_epoch() -> None:
    bins = bins_of([Curve(Hyperparameters(), (0.1, 0.2, 0.3, 0.4))], 27)
    assert bins.epoch.tolist() == [1, 3, 4]
    assert bins.count.tolist() == [1, 2, 1]
    np.testing.assert_allclose(bins.z, [to_z(0.1), (to_z(0.2) + to_z(0.3)) / 2, to_z(0.4)])


@pytest.mark.parametrize("max_epochs", [1, 2, 3, 9, 81])
def test_bins_cover_every_epoch_once_whatever_the_length(max_epochs: int) -> None:
    bins = bins_of([Curve(Hyperparameters(), (0.5,) * max_epochs)], max_epochs)
    assert bins.count.sum() == max_epochs == bins.epoch[-1]
    assert (np.diff(bins.epoch) == bins.count[1:]).all()


def test_too_many_bins_lose_first_bins_of_short_curves_then_old_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Hyperparameters()
    curves = [Curve(config, (0.5,) * n) for n in (3, 27, 1, 1)]  # 2, 9, 1 and 1 bins
    monkeypatch.setattr(curve_model, "MOST_BINS", 10)
    bins = bins_of(curves, 27)
    assert bins.curve.tolist() == [0, *[1] * 7, 2, 3]
    assert bins.epoch[0] == 3
    monkeypatch.setattr(curve_model, "MOST_BINS", 2)
    assert bins_of(curves, 27).curve.tolist() == [0, 1]


def test_posterior_is_that_of_scikit_learn_where_all_curves_have_one_epoch() -> None:
    # After one epoch of one, the covariance is 2 + Matern + own [i = j]: scikit-learn has the same kernel.
    configs, new = drawn(12), drawn(5, seed=1)
    accuracies = np.random.default_rng(2).uniform(0.2, 0.8, 12)
    model = CurveModel(SEARCHED, 1, [Curve(c, (a,)) for c, a in zip(configs, accuracies, strict=True)], PARAMETERS)
    z = to_z(accuracies)
    known, wanted = (features(SEARCHED, values_of(found), np.ones(len(found), int)) for found in (configs, new))
    reference = GaussianProcessRegressor(2.0 + Matern(1.0, nu=2.5), alpha=0.05 + 0.1 + 1e-8, optimizer=None)
    reference.fit(known, z - z.mean())
    mean, deviation = reference.predict(wanted, return_std=True)
    found_mean, found_deviation = model.of_configs(values_of(new))
    np.testing.assert_allclose(found_mean, mean + z.mean(), rtol=1e-6)
    # The model's scale, and the effect of the new run's own streams.
    covariance = reference.kernel_(known) + (0.15 + 1e-8) * np.eye(12)
    scale = ((z - z.mean()) @ np.linalg.solve(covariance, z - z.mean()) + PRIOR_SCALE) / 13
    np.testing.assert_allclose(found_deviation, np.sqrt(scale * (deviation**2 + 0.05)), rtol=1e-5)


def test_partial_curves_forecast_the_order_of_the_ends() -> None:
    configs = drawn(40)
    curves = [curve_of(config, 27 if index % 4 == 0 else 3) for index, config in enumerate(configs)]
    mean, deviation = CurveModel(SEARCHED, 27, curves).of_curves()
    ends = np.array([curve_of(config, 27).scores[-1] for config in configs])
    stopped = np.arange(40) % 4 != 0
    assert np.corrcoef(mean[stopped], to_z(ends[stopped]))[0, 1] > 0.9
    assert deviation[stopped].min() > 2 * deviation[~stopped].max()
    new = drawn(20, seed=5)
    mean, _ = CurveModel(SEARCHED, 27, curves).of_configs(values_of(new))
    assert np.corrcoef(mean, [to_z(curve_of(c, 27).scores[-1]) for c in new])[0, 1] > 0.8


def test_order_of_the_curves_does_not_matter() -> None:
    curves = [curve_of(config, 1 + index) for index, config in enumerate(drawn(10))]
    mean, deviation = CurveModel(SEARCHED, 27, curves).of_curves()
    backwards = CurveModel(SEARCHED, 27, curves[::-1]).of_curves()
    np.testing.assert_allclose(backwards[0][::-1], mean, rtol=1e-8)
    np.testing.assert_allclose(backwards[1][::-1], deviation, rtol=1e-6)


def test_noise_is_found_in_noisy_curves_and_not_in_smooth_ones() -> None:
    generator = np.random.default_rng(0)
    smooth = [curve_of(config, 27) for config in drawn(20)]
    noisy = [replace(c, scores=tuple(np.array(c.scores) + generator.normal(0, 0.15, 27))) for c in smooth]
    assert CurveModel(SEARCHED, 27, smooth).parameters.noise < CurveModel(SEARCHED, 27, noisy).parameters.noise


def test_equal_results_and_a_single_result_give_forecasts_that_are_not_certain() -> None:
    for n in (1, 5):
        mean, deviation = CurveModel(SEARCHED, 27, [Curve(config, (0.1,)) for config in drawn(n)]).of_curves()
        np.testing.assert_allclose(from_z(mean), 0.1, atol=1e-6)
        assert np.isfinite(deviation).all()
        assert deviation.min() > 0.1, "of values between 0 and pi"


def test_many_forecasts_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = [curve_of(config, 3) for config in drawn(10)]
    mean, deviation = CurveModel(SEARCHED, 27, curves, PARAMETERS).of_curves()
    monkeypatch.setattr(curve_model, "MOST_AT_ONCE", 4)
    in_parts = CurveModel(SEARCHED, 27, curves, PARAMETERS).of_curves()
    np.testing.assert_allclose(in_parts, (mean, deviation), rtol=1e-9)


def test_similarity_is_one_for_equal_and_falls_with_distance() -> None:
    model = CurveModel(SEARCHED, 27, [curve_of(Hyperparameters(), 3)])
    others = [Hyperparameters(), Hyperparameters(lr=0.06), Hyperparameters(lr=0.5)]
    near = model.similarity(values_of([Hyperparameters()]), values_of(others))[0]
    assert near[0] == pytest.approx(1)
    assert near[0] > near[1] > near[2] > 0
