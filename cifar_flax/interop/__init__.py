"""Import networks from PyTorch; export networks to PyTorch, StableHLO and model cards.

In: a state dict of PyTorch's common CIFAR ResNet, as `.safetensors`, `.pth` or `.pt`. Out: this program's parameters,
and the other way round (`convert`; `pytorch/resnet.py` is the `nn.Module` that loads them there); a network as
StableHLO, for JAX alone (`stablehlo`); a folder to publish (`card`).
"""

from cifar_flax.interop.convert import MODULE, from_state_dict, read_state_dict, to_state_dict, write_state_dict

__all__ = ["MODULE", "from_state_dict", "read_state_dict", "to_state_dict", "write_state_dict"]
