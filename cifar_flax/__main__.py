"""`python -m cifar_flax`: the command `cifar-flax`."""

import sys

from cifar_flax.commands import main

if __name__ == "__main__":
    sys.exit(main())
