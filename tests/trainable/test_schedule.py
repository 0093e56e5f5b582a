"""When the learning rate falls: as torch's StepLR has it, and at fractions of an epoch."""

import json
import math
from fractions import Fraction

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler, StepLR

from trainable.schedule import StepDecay

LR, GAMMA = 0.3, 0.7


def optimizer() -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)


def rates(scheduler: LRScheduler, n_epochs: int) -> list[float]:
    found = []
    for _ in range(n_epochs):
        found.append(float(scheduler.get_last_lr()[0]))
        scheduler.optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("step", [1, 2, 5, 27, 100])
def test_whole_steps_are_steplr_s_to_the_last_bit_and_so_is_the_state(step: int) -> None:
    mine, theirs = StepDecay(optimizer(), Fraction(step), GAMMA), StepLR(optimizer(), step, GAMMA)
    assert rates(mine, 60) == rates(theirs, 60)
    states = [{k: v for k, v in each.state_dict().items() if not k.startswith("_is")} for each in (mine, theirs)]
    assert json.dumps(states[0], sort_keys=True) == json.dumps(states[1], sort_keys=True)


@pytest.mark.parametrize("step", [Fraction(9, 5), Fraction(50, 27), Fraction(1, 3), Fraction(7, 2)])
def test_a_fraction_falls_at_the_first_epoch_after_it(step: Fraction) -> None:
    found = rates(StepDecay(optimizer(), step, GAMMA), 90)
    for epoch, lr in enumerate(found):
        assert lr == pytest.approx(LR * GAMMA ** math.floor(epoch / step), rel=1e-12)


def test_a_state_goes_on_where_it_was_and_one_of_another_schedule_is_refused() -> None:
    step = Fraction(50, 27)
    whole = rates(StepDecay(optimizer(), step, GAMMA), 20)
    begun = StepDecay(optimizer(), step, GAMMA)
    rates(begun, 7)
    resumed = StepDecay(optimizer(), step, GAMMA)
    resumed.optimizer.load_state_dict(begun.optimizer.state_dict())
    resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    assert rates(resumed, 13) == whole[7:]
    with pytest.raises(ValueError, match="its `step_size` is"):
        StepDecay(optimizer(), Fraction(2), GAMMA).load_state_dict(begun.state_dict())
    with pytest.raises(ValueError, match="its `gamma` is"):
        StepDecay(optimizer(), step, 0.5).load_state_dict(begun.state_dict())
