"""Networks from and to PyTorch.

In: a state dict of the common CIFAR ResNet, as `.safetensors`, `.pth` or `.pt`. Out: this program's parameters, and
the other way round; `pytorch/resnet.py` is the `nn.Module` that loads them there.
"""

from cifar_flax.interop.convert import MODULE, from_state_dict, read_state_dict, to_state_dict, write_state_dict

__all__ = ["MODULE", "from_state_dict", "read_state_dict", "to_state_dict", "write_state_dict"]
