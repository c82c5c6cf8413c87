"""Trains a LayerNorm-only ResNet on CIFAR-10 in JAX and Flax, and explains its errors with Grad-CAM."""

__version__ = "0.1.0"
