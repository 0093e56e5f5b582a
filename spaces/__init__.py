"""Search spaces: YAML files, and the loader that turns one into a validated, frozen object.

Knows nothing of torch or Ray.
"""

from spaces.errors import InputError
from spaces.loader import load_space, shipped_spaces
from spaces.parameters import Hyperparameters
from spaces.schema import Dataset, Space

__all__ = ["Dataset", "Hyperparameters", "InputError", "Space", "load_space", "shipped_spaces"]
