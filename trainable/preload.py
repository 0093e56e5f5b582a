"""Imports and compiles for training. Idle workers import this module, so that their first trial starts sooner."""

import trainable.ray_trainable  # noqa: F401 -- imports Ray's own trainables
from trainable.compute import choose_precision
from trainable.network.fused_norm import compile_for

compile_for(choose_precision("auto", "cpu")[0])
