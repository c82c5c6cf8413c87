"""The network of cifar_flax in PyTorch: paste it, then `load_state_dict(..., strict=True)`.

It takes float images [N, 3, 32, 32], (pixel / 255 - mean) / std with the mean and standard deviation
of the training set, CIFAR-10's: (0.49139968, 0.48215841, 0.44653091) and (0.24703223, 0.24348513, 0.26158784).
"""

import torch
from torch import nn


class BasicBlock(nn.Module):
    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.GroupNorm(1, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.GroupNorm(1, channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.GroupNorm(1, channels)
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, widths=(64, 128, 256, 512), strides=(1, 2, 2, 1), num_classes=10, blocks=()):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.GroupNorm(1, widths[0])
        self.num_stages = len(widths)
        channels = widths[0]
        blocks = blocks or [2] * len(widths)
        for i, (width, stride, count) in enumerate(zip(widths, strides, blocks, strict=True), start=1):
            others = [BasicBlock(width, width, 1) for _ in range(count - 1)]
            setattr(self, f"layer{i}", nn.Sequential(BasicBlock(channels, width, stride), *others))
            channels = width
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        for i in range(1, self.num_stages + 1):
            x = getattr(self, f"layer{i}")(x)
        return self.linear(x.mean(dim=(2, 3)))
