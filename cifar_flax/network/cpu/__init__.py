"""The network's operations in forms that XLA compiles into faster code for a CPU. They compute what `model.py` says.

In: the arrays that Flax's own operations take. Out: what these give, within rounding.
"""

from cifar_flax.network.cpu.operations import TOLERANCE, convolutions, cpu_forms, largest_error

__all__ = ["TOLERANCE", "convolutions", "cpu_forms", "largest_error"]
