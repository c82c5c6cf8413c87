"""Trains a LayerNorm-only ResNet on CIFAR-10: `python train.py --epochs 40`."""

import sys

from cifar_flax.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
