"""`EagerSGD`, compared with torch's SGD, and what training imports."""

import subprocess
import sys

import torch
from torch.optim import SGD

from trainable.optimizer import EagerSGD


def trained(optimizers: tuple[type[SGD], type[SGD]]) -> tuple[torch.Tensor, object]:
    """Weights and state after five steps of the first optimizer and five of the second, which loads the first's state.

    The two groups of parameters have settings of their own.
    """
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, generator=generator).requires_grad_() for size in ((3, 5), (5,))]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.3}]
    state = None
    for optimizer_class in optimizers:
        optimizer = optimizer_class(groups, lr=0.1, momentum=0.9, weight_decay=0.01)
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(5):
            images = torch.randn((7, 3), generator=generator)
            optimizer.zero_grad()
            ((images @ weights[0] + weights[1]) ** 2).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        state = optimizer.state_dict()
    return torch.cat([weight.detach().flatten() for weight in weights]), state


def test_weights_and_state_are_those_of_torch_s_sgd() -> None:
    expected, expected_state = trained((SGD, SGD))
    for optimizers in ((EagerSGD, EagerSGD), (SGD, EagerSGD), (EagerSGD, SGD)):
        found, state = trained(optimizers)
        assert torch.equal(found, expected)
        assert str(state) == str(expected_state)


def test_training_imports_neither_torch_s_compiler_nor_scikit_learn() -> None:
    program = (
        "import sys\n"
        "from spaces import Dataset, Hyperparameters\n"
        "from trainable.data.datasets import prepare_training_data\n"
        "from trainable.fit_evaluate import FitEvaluate\n"
        "from trainable.seeding import RunSeed\n"
        "data = prepare_training_data(Dataset(name='digits', image_size=17, train_limit=60))\n"
        "FitEvaluate(data.train, data.validation, Hyperparameters(batch_size=8), RunSeed(0, 0)).run_epoch()\n"
        "print(*sorted({'torch._dynamo', 'sklearn'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, "\n"), result.stdout + result.stderr
