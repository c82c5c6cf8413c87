"""A LayerNorm-only ResNet for CIFAR-10 in JAX and Flax, and an account of why it is wrong."""

__version__ = "0.1.0"
