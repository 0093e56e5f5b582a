import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> None:
    """Trials have one thread. Several threads that wait for each other are far slower on a busy machine."""
    torch.set_num_threads(1)
