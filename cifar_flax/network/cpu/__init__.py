"""The network's operations in forms that XLA compiles into faster code for a CPU. They compute what `model.py` says.

In: the arrays that Flax's own operations take. Out: what these give, within rounding.
"""

from cifar_flax.network.cpu.operations import CPU, TOLERANCE, convolutions, cpu_bfloat16, largest_error

__all__ = ["CPU", "TOLERANCE", "convolutions", "cpu_bfloat16", "largest_error"]
