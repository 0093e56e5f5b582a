"""The training step: as it is written, or replayed from a CUDA graph that outlives the trial it was captured in."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from spaces import Hyperparameters
from trainable.compute import Compute
from trainable.model import DepthwiseSeparableNet
from trainable.normalisation import Normalise
from trainable.tensor_sgd import TensorSGD

# Each library chooses its kernels and takes its workspaces in the first steps, which a capture must not record.
N_WARM_UP_STEPS = 3

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
OptimizerT = TypeVar("OptimizerT", bound=Optimizer)


class EagerStep:
    """One step of training on the negative log-likelihood, launched kernel by kernel.

    Args:
        network: from normalised images to float32 log-probabilities; in training mode whenever a step is called.
        normalise: from (B, H, W, 3) uint8 to what `network` takes.
        optimizer: of the network's parameters.
        autocast_dtype: of activations; None for the parameters' own.
    """

    def __init__(
        self, network: nn.Module, normalise: nn.Module, optimizer: Optimizer, autocast_dtype: torch.dtype | None
    ) -> None:
        self._network = network
        self._normalise = normalise
        self._optimizer = optimizer
        self._autocast_dtype = autocast_dtype

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Train on one batch.

        Args:
            images: (B, H, W, 3) uint8, on the network's device.
            labels: (B,) int64, there too.

        Returns:
            Mean loss before the step, 0-d float32 without a graph, and number of right answers, 0-d int64.
        """
        with self._autocast(images.device.type):
            log_probabilities = self._network(self._normalise(images))
        loss = F.nll_loss(log_probabilities, labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        n_right = (log_probabilities.detach().argmax(dim=1) == labels).sum()
        return loss.detach(), n_right

    def _autocast(self, device_type: str) -> torch.autocast:
        # Weights are used once a step, so there is nothing to cache; and what a capture caches would be stale.
        enabled = self._autocast_dtype is not None
        return torch.autocast(device_type, self._autocast_dtype, enabled=enabled, cache_enabled=False)


class GraphedStep:
    """`EagerStep` whose full batches replay a CUDA graph; any other batch runs eagerly on the same tensors.

    The graph is captured at the first full batch, and stays valid while the tensors of network, normalisation and
    optimizer stay where they are: load and restart them in place. Dropout's masks come from CUDA's global generator,
    whose state a replay reads and moves on: `torch.cuda.manual_seed` decides them as it does for an eager step.
    Where a capture fails, every step runs eagerly from then on.

    Args:
        network, normalise, autocast_dtype: as for `EagerStep`. Training mode and dropout's probability are those at
            the capture.
        optimizer: of the network's parameters; its hyperparameters may change between steps.
        batch_size: images of a full batch.
        on_fallback: called once with one line if the graph cannot be captured.
    """

    def __init__(
        self,
        network: nn.Module,
        normalise: nn.Module,
        optimizer: TensorSGD,
        autocast_dtype: torch.dtype | None,
        batch_size: int,
        on_fallback: Callable[[str], None],
    ) -> None:
        self._eager = EagerStep(network, normalise, optimizer, autocast_dtype)
        self._network = network
        self._optimizer = optimizer
        self._batch_size = batch_size
        self._on_fallback = on_fallback
        self._captured: _Captured | None = None
        self._never_captures = False

    @property
    def is_captured(self) -> bool:
        return self._captured is not None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Train on one batch; arguments and results as for `EagerStep`.

        The next call overwrites the results: add them to something on the same stream before that, or clone them.
        """
        if len(images) != self._batch_size:
            return self._eager(images, labels)
        if self._captured is None and not self._never_captures:
            self._capture_or_fall_back(images, labels)
        if self._captured is None or not self._captured.takes(images):
            return self._eager(images, labels)
        self._optimizer.upload()
        return self._captured.replay(images, labels)

    def _capture_or_fall_back(self, images: Tensor, labels: Tensor) -> None:
        try:
            self._captured = self._capture(images, labels)
        except RuntimeError as error:
            self._never_captures = True
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._on_fallback(f"Training steps run without a CUDA graph, which is slower: {first_line}")

    def _capture(self, images: Tensor, labels: Tensor) -> "_Captured":
        if images.device.type != "cuda":
            raise RuntimeError(f"the device is {images.device.type}, and only cuda has graphs.")
        tensors = [*self._network.parameters(), *self._network.buffers(), *self._optimizer.momentum_buffers]
        with torch.cuda.device(images.device), _put_back(tensors, images.device):
            return _capture(self._eager, self._optimizer, images.clone(), labels.clone())


@dataclass(frozen=True, slots=True)
class _Captured:
    """A graph, and the tensors at the addresses that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    labels: Tensor
    loss: Tensor
    n_right: Tensor

    def takes(self, images: Tensor) -> bool:
        return images.shape == self.images.shape

    def replay(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.images.copy_(images, non_blocking=True)
        self.labels.copy_(labels, non_blocking=True)
        self.graph.replay()
        return self.loss, self.n_right


def _capture(step: EagerStep, optimizer: TensorSGD, images: Tensor, labels: Tensor) -> _Captured:
    # One side stream for both: autograd remembers the stream of a warm-up step, and cuDNN a workspace a stream.
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    # The outer context brings the current stream back also where a failed capture does not.
    with torch.cuda.stream(side):
        for _ in range(N_WARM_UP_STEPS):
            step(images, labels)
        # Gradients must be born in the capture, in the graph's own memory.
        optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            loss, n_right = step(images, labels)
        optimizer.zero_grad(set_to_none=True)
    return _Captured(graph, images, labels, loss, n_right)


@contextmanager
def _put_back(tensors: list[Tensor], device: torch.device) -> Iterator[None]:
    """Leave `tensors` and CUDA's global generator as they were, whatever happens within."""
    before = [tensor.detach().clone() for tensor in tensors]
    generator_state = torch.cuda.get_rng_state(device)
    try:
        yield
    finally:
        # Warm-up steps ran on another stream.
        torch.cuda.synchronize(device)
        with torch.no_grad():
            for tensor, values in zip(tensors, before, strict=True):
                tensor.copy_(values)
        torch.cuda.set_rng_state(generator_state, device)


@dataclass(frozen=True, slots=True)
class StepSignature:
    """What a captured step holds for good; steps of two runs whose signatures are equal can share a graph.

    Attributes:
        compute: device, precision and the rest.
        n_classes, image_size, batch_size: shapes, the image's side in pixels.
        dropout: its probability, in [0, 1).
        mean, std: of the normalisation, per channel.
    """

    compute: Compute
    n_classes: int
    image_size: int
    batch_size: int
    dropout: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TrainingParts(Generic[OptimizerT]):
    """What trains: a step, and what it works on."""

    network: DepthwiseSeparableNet
    normalise: Normalise
    optimizer: OptimizerT
    step: Step


class StepKeeper:
    """Hands the parts of one run on to the next one, whose step then needs no new capture.

    One per process that trains runs one after the other. Let go of a run before the next one asks for its parts:
    they may be the same, and if they are not, the old ones' memory may be needed.
    """

    def __init__(self) -> None:
        self._signature: Hashable = None
        self._kept: TrainingParts[TensorSGD] | None = None

    def parts_for(
        self,
        signature: Hashable,
        network: DepthwiseSeparableNet,
        hyperparameters: Hyperparameters,
        build: Callable[[DepthwiseSeparableNet], TrainingParts[TensorSGD]],
    ) -> TrainingParts[TensorSGD]:
        """Parts for a new run: the kept ones if `signature` is that of the last call, else what `build` makes.

        Args:
            signature: usually a `StepSignature`; not None.
            network: with the new run's initial weights, on any device. Only its state is used where parts are kept.
            hyperparameters: lr, momentum and weight decay of the new run.
            build: makes all parts, with `network` moved to its device as their network.

        Returns:
            Parts that train exactly as new ones do.
        """
        if self._kept is None or self._signature != signature:
            # First let go: two graphs and their memory at once may be more than a shared GPU has.
            self._kept = None
            self._kept = build(network)
            self._signature = signature
        else:
            self._kept.network.load_state_dict(network.state_dict())
        self._kept.optimizer.restart(hyperparameters.lr, hyperparameters.momentum, hyperparameters.weight_decay)
        return self._kept
