"""Shows what a trained network gets wrong, and what it was looking at: `python explain.py --ckpt runs/...`."""

import sys

from cifar_flax.commands.explain import main

if __name__ == "__main__":
    sys.exit(main())
