"""torch's SGD for training that is not compiled."""

from inspect import unwrap

import torch
from torch.optim import SGD


class EagerSGD(SGD):
    """torch's SGD, whose use does not import torch's compiler (3 seconds of a core in each process).

    torch wraps these methods so that `torch.compile` leaves them alone, and the wrappers import the compiler. Here they
    are without the wrappers. State dicts are those of SGD.
    """

    step = torch.no_grad()(unwrap(SGD.step))
    zero_grad = unwrap(SGD.zero_grad)
    add_param_group = unwrap(SGD.add_param_group)
    state_dict = unwrap(SGD.state_dict)
    load_state_dict = unwrap(SGD.load_state_dict)
