"""The ResNet: an image to its logits, whole or in two halves that meet at a named stage.

In: parameters and normalised images `[B, 32, 32, 3]`. Out: logits `[B, 10]`, or the activation that leaves a stage.
`weights` keeps a network in one file.
"""

from cifar_flax.network.model import ResNet, features, forward, head, init_params, layer_table
from cifar_flax.network.weights import load_weights, save_weights

__all__ = ["ResNet", "features", "forward", "head", "init_params", "layer_table", "load_weights", "save_weights"]
