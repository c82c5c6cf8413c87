"""Shows the images that a network gets wrong, with Grad-CAM maps: `python explain.py --ckpt runs/...`."""

import sys

from cifar_flax.commands.explain import main

if __name__ == "__main__":
    sys.exit(main())
