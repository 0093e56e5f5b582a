import contextlib
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from spaces import Hyperparameters
from trainable import graphed_step
from trainable.compute import Compute
from trainable.graphed_step import EagerStep, GraphedStep, StepKeeper, StepSignature, TrainingParts
from trainable.model import DepthwiseSeparableNet
from trainable.normalisation import Normalise
from trainable.tensor_sgd import TensorSGD

BATCH = 16
IMAGE_PX = 17
CONFIG = Hyperparameters(
    lr=0.02, momentum=0.8, gamma=0.5, step_size=1, batch_size=BATCH, dropout=0.0, weight_decay=0.01
)
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def _repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def network_of(seed: int, dropout: float = 0.0) -> DepthwiseSeparableNet:
    return DepthwiseSeparableNet(10, dropout, torch.Generator().manual_seed(seed))


def batch_of(seed: int, n_images: int = BATCH, device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n_images, IMAGE_PX, IMAGE_PX, 3), dtype=torch.uint8, generator=generator)
    return images.to(device), torch.randint(0, 10, (n_images,), generator=generator).to(device)


def signature_of(device: str = "cpu", config: Hyperparameters = CONFIG) -> StepSignature:
    return StepSignature(
        Compute(device), 10, IMAGE_PX, config.batch_size, config.dropout, mean=(0.5,) * 3, std=(0.25,) * 3
    )


def build(network: DepthwiseSeparableNet, device: str = "cpu", graphed: bool = True) -> TrainingParts:
    network = network.to(device).to(memory_format=torch.channels_last)
    network.train()
    normalise = Normalise((0.5,) * 3, (0.25,) * 3).to(device)
    optimizer = TensorSGD(network.parameters(), lr=0.0)
    eager = EagerStep(network, normalise, optimizer, None)
    graph = GraphedStep(network, normalise, optimizer, None, BATCH, on_fallback=lambda _: None)
    return TrainingParts(network, normalise, optimizer, graph if graphed else eager)


def parts_of(seed: int, config: Hyperparameters = CONFIG, device: str = "cpu", graphed: bool = True) -> TrainingParts:
    """New ones, kept nowhere."""
    make = partial(build, device=device, graphed=graphed)
    return StepKeeper().parts_for("once", network_of(seed, config.dropout), config, make)


def losses_of(parts: TrainingParts, config: Hyperparameters, n_steps: int, device: str = "cpu") -> list[float]:
    """As a run trains: StepLR after every fifth step, and every seventh batch an odd one."""
    scheduler = StepLR(parts.optimizer, config.step_size, config.gamma)
    parts.network.train()
    losses = []
    for number in range(1, n_steps + 1):
        loss, _ = parts.step(*batch_of(number, 5 if number % 7 == 0 else BATCH, device))
        losses.append(loss.item())
        if number % 5 == 0:
            scheduler.step()
    return losses


def state_of(parts: TrainingParts) -> list[Tensor]:
    return [*parts.network.state_dict().values(), *parts.optimizer.momentum_buffers]


def test_a_step_is_sgd_on_the_nll_and_counts_right_answers() -> None:
    parts = parts_of(0, graphed=False)
    network, normalise = network_of(0).to(memory_format=torch.channels_last), parts.normalise
    optimizer = SGD(network.parameters(), lr=CONFIG.lr, momentum=CONFIG.momentum, weight_decay=CONFIG.weight_decay)
    for seed in range(3):
        # From the same weights each time: a rounding grows from step to step.
        network.load_state_dict(parts.network.state_dict())
        images, labels = batch_of(seed)
        log_probabilities = network(normalise(images))
        expected = nn.NLLLoss()(log_probabilities, labels)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        loss, n_right = parts.step(images, labels)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        assert n_right.item() == (log_probabilities.argmax(1) == labels).sum().item()
        assert not loss.requires_grad
        assert loss.shape == n_right.shape == ()
    for mine, theirs in zip(parts.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_activations_have_the_autocast_dtype_and_the_loss_is_float32() -> None:
    seen = []
    parts = parts_of(0)
    parts.network.pool.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    step = EagerStep(parts.network, parts.normalise, parts.optimizer, torch.bfloat16)
    loss, _ = step(*batch_of(0))
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in parts.network.parameters())


def test_without_cuda_every_step_is_eager_and_one_line_says_so() -> None:
    lines: list[str] = []
    eager, parts = parts_of(3, graphed=False), parts_of(3)
    step = GraphedStep(parts.network, parts.normalise, parts.optimizer, None, BATCH, lines.append)
    parts = replace(parts, step=step)
    assert losses_of(parts, CONFIG, 9) == losses_of(eager, CONFIG, 9)
    assert all(torch.equal(a, b) for a, b in zip(state_of(parts), state_of(eager), strict=True))
    assert lines == [
        "Training steps run without a CUDA graph, which is slower: the device is cpu, and only cuda has graphs."
    ]
    assert not step.is_captured


def test_a_batch_that_is_not_full_asks_for_no_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GraphedStep, "_capture", lambda *_: pytest.fail("tried to capture"))
    parts = parts_of(0)
    for n_images in (2, 5, BATCH + 1):
        parts.step(*batch_of(0, n_images))


def test_an_error_of_several_lines_becomes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: out of luck\nCompile with TORCH_USE_CUDA_DSA\n")

    monkeypatch.setattr(GraphedStep, "_capture", fail)
    lines: list[str] = []
    parts = parts_of(0)
    step = GraphedStep(parts.network, parts.normalise, parts.optimizer, None, BATCH, lines.append)
    step(*batch_of(0))
    step(*batch_of(1))
    assert lines == ["Training steps run without a CUDA graph, which is slower: CUDA error: out of luck"]


@pytest.mark.parametrize("fails", [False, True])
def test_warm_up_steps_leave_weights_statistics_momentum_and_generator_as_they_were(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    # The CPU's generator stands for CUDA's.
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, _: torch.set_rng_state(state))
    parts = parts_of(3, graphed=False)
    parts.step(*batch_of(0))
    before, generator_state = [tensor.clone() for tensor in state_of(parts)], torch.get_rng_state()
    with contextlib.suppress(RuntimeError), graphed_step._put_back(state_of(parts), torch.device("cpu")):
        parts.step(*batch_of(1))
        torch.rand(3)
        assert not any(torch.equal(a, b) for a, b in zip(before, state_of(parts), strict=True))
        if fails:
            raise RuntimeError("capture failed")
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(parts), strict=True))
    assert torch.equal(torch.get_rng_state(), generator_state)


class FakeCuda:
    """Stands for a capture that works: a graph whose replay runs the step, on the tensors that it was shown."""

    n_captures = 0

    def capture(self, step: EagerStep, optimizer: TensorSGD, images: Tensor, labels: Tensor) -> graphed_step._Captured:
        self.n_captures += 1
        loss, n_right = torch.zeros(()), torch.zeros((), dtype=torch.int64)

        class Graph:
            def replay(self) -> None:
                found = step(images, labels)
                loss.copy_(found[0])
                n_right.copy_(found[1])

        return graphed_step._Captured(Graph(), images, labels, loss, n_right)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(
        GraphedStep,
        "_capture",
        lambda self, images, labels: fake.capture(self._eager, self._optimizer, images.clone(), labels.clone()),
    )
    return fake


def test_full_batches_replay_one_capture_and_the_others_do_not(fake_cuda: FakeCuda) -> None:
    parts, eager = parts_of(3), parts_of(3, graphed=False)
    assert losses_of(parts, CONFIG, 9) == losses_of(eager, CONFIG, 9)
    assert all(torch.equal(a, b) for a, b in zip(state_of(parts), state_of(eager), strict=True))
    assert fake_cuda.n_captures == 1


def test_a_full_batch_of_images_of_another_size_is_not_squeezed_into_the_graph(fake_cuda: FakeCuda) -> None:
    parts = parts_of(0)
    images, labels = batch_of(0)
    parts.step(images, labels)
    larger = nn.functional.pad(images, (0, 0, 1, 1, 1, 1))
    loss, _ = parts.step(larger, labels)
    assert loss.item() > 0
    assert fake_cuda.n_captures == 1


def test_a_second_run_in_kept_parts_is_a_new_run_bit_for_bit_without_a_new_capture(fake_cuda: FakeCuda) -> None:
    keeper = StepKeeper()
    second = replace(CONFIG, lr=0.1, momentum=0.3, gamma=0.1, weight_decay=0.0)
    first_parts = keeper.parts_for(signature_of(), network_of(1), CONFIG, build)
    losses_of(first_parts, CONFIG, 8)
    first_parts.network.eval()
    parts = keeper.parts_for(signature_of(), network_of(2), second, build)
    fresh = parts_of(2, second, graphed=False)
    assert parts is first_parts
    assert all(torch.equal(a, b) for a, b in zip(state_of(parts), state_of(fresh), strict=True))
    assert losses_of(parts, second, 8) == losses_of(fresh, second, 8)
    assert all(torch.equal(a, b) for a, b in zip(state_of(parts), state_of(fresh), strict=True))
    assert fake_cuda.n_captures == 1


@pytest.mark.parametrize("change", [{"dropout": 0.1}, {"batch_size": 32}, {"compute": Compute(precision="bf16")}])
def test_parts_of_another_signature_are_made_anew(change: dict[str, object]) -> None:
    keeper = StepKeeper()
    first = keeper.parts_for(signature_of(), network_of(1), CONFIG, build)
    other = keeper.parts_for(replace(signature_of(), **change), network_of(1), CONFIG, build)
    assert other is not first
    assert keeper.parts_for(signature_of(), network_of(1), CONFIG, build) is not first


def test_a_build_that_fails_leaves_nothing_behind() -> None:
    def fail(_: DepthwiseSeparableNet) -> TrainingParts:
        raise RuntimeError("out of memory")

    keeper = StepKeeper()
    first = keeper.parts_for("a", network_of(1), CONFIG, build)
    with pytest.raises(RuntimeError, match="out of memory"):
        keeper.parts_for("b", network_of(1), CONFIG, fail)
    assert keeper.parts_for("a", network_of(1), CONFIG, build) is not first


# cuDNN may choose its kernels otherwise, and 20 steps let a difference of rounding grow.
CLOSE = {"rel": 1e-3, "abs": 1e-4}


@gpu
@needs_gpu
def test_replayed_and_eager_steps_have_the_same_losses_on_a_gpu() -> None:
    graphed = parts_of(3, device="cuda")
    # Not the first: an odd batch on the default stream must not spoil the capture.
    graphed.step(*batch_of(0, 5, "cuda"))
    eager = parts_of(3, device="cuda", graphed=False)
    eager.step(*batch_of(0, 5, "cuda"))
    assert losses_of(graphed, CONFIG, 20, "cuda") == pytest.approx(losses_of(eager, CONFIG, 20, "cuda"), **CLOSE)
    assert graphed.step.is_captured
    for mine, theirs in zip(state_of(graphed), state_of(eager), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-3)


@gpu
@needs_gpu
def test_a_second_trial_in_kept_parts_needs_no_new_capture_on_a_gpu() -> None:
    keeper, make = StepKeeper(), partial(build, device="cuda")
    second = replace(CONFIG, lr=0.1, momentum=0.3, gamma=0.1, weight_decay=0.0)
    parts = keeper.parts_for(signature_of("cuda"), network_of(1), CONFIG, make)
    losses_of(parts, CONFIG, 20, "cuda")
    captured = parts.step._captured
    parts = keeper.parts_for(signature_of("cuda"), network_of(2), second, make)
    found = losses_of(parts, second, 20, "cuda")
    assert parts.step._captured is captured
    fresh = parts_of(2, second, "cuda", graphed=False)
    assert found == pytest.approx(losses_of(fresh, second, 20, "cuda"), **CLOSE)


@gpu
@needs_gpu
def test_a_capture_moves_neither_weights_nor_the_generator_on_a_gpu() -> None:
    still = replace(CONFIG, lr=0.0, dropout=0.3)
    torch.cuda.manual_seed(7)
    first = loss_without_lr(parts_of(3, still, "cuda"))
    parts = parts_of(3, still, "cuda")
    parts.step(*batch_of(0, device="cuda"))
    torch.cuda.manual_seed(7)
    # The graph is captured by now: what it draws after a seed is what a first step with its capture drew.
    assert loss_without_lr(parts) == pytest.approx(first, rel=1e-5)
    for parameter, initial in zip(parts.network.parameters(), network_of(3).parameters(), strict=True):
        torch.testing.assert_close(parameter.cpu(), initial)
    assert parts.network.state_dict()["blocks.0.1.num_batches_tracked"].item() == 2


@gpu
@needs_gpu
def test_each_replay_draws_its_own_masks_and_a_seed_repeats_them_on_a_gpu() -> None:
    parts = parts_of(3, replace(CONFIG, lr=0.0, dropout=0.3), "cuda")
    runs = []
    for seed in (7, 7, 8):
        torch.cuda.manual_seed(seed)
        runs.append([loss_without_lr(parts) for _ in range(4)])
    assert parts.step.is_captured
    assert len(set(runs[0])) == 4
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    assert runs[2] != pytest.approx(runs[0], rel=1e-5)


def loss_without_lr(parts: TrainingParts) -> float:
    return parts.step(*batch_of(0, device="cuda"))[0].item()


@gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_graph_in_bf16_learns_as_eager_steps_do_on_a_gpu(dtype: torch.dtype | None) -> None:
    found = []
    for graphed in (True, False):
        parts = parts_of(3, device="cuda")
        eager = EagerStep(parts.network, parts.normalise, parts.optimizer, dtype)
        graph = GraphedStep(parts.network, parts.normalise, parts.optimizer, dtype, BATCH, pytest.fail)
        step = graph if graphed else eager
        found.append([step(*batch_of(0, device="cuda"))[0].item() for _ in range(20)])
    assert found[0] == pytest.approx(found[1], rel=0.05, abs=0.05)
    assert found[0][-1] < 0.7 * found[0][0]
