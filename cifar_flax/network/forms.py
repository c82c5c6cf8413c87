"""The operations that the network is given: Flax's own, or the same ones in another form."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn


class Forms(NamedTuple):
    """In which form the network computes.

    Attributes:
      conv_general_dilated: what `flax.linen.Conv` calls; None for XLA's convolution.
      layer_norm: a module with the attributes of `flax.linen.LayerNorm`.
      relu: max(x, 0).
    """

    conv_general_dilated: Callable[..., Any] | None
    layer_norm: Callable[..., nn.Module]
    relu: Callable[[Any], Any]


PLAIN = Forms(None, nn.LayerNorm, nn.relu)
