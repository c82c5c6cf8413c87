"""The same work in PyTorch, for `speed.py`: the network, a training step, its augmentation, class activation maps.

At its best, in good faith: channels last, the data and the augmentation on the device, one fused optimizer call,
bfloat16 by autocast where the config means it, no wait between steps.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from cifar_flax import interop, machine
from cifar_flax.config import Config
from cifar_flax.data import CIFAR10
from cifar_flax.interop.pytorch.resnet import ResNet

# A CPU build of PyTorch beside torchvision's wheel lacks two operators that its import asks for.
_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _library.define(f"{_name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.backends.cudnn.benchmark = True  # takes the fastest of cuDNN's convolutions, as XLA does


def multiplies_bfloat16(config: Config) -> bool:
    """Whether the config asks for bfloat16, or leaves it to a device that has it."""
    on_gpu = DEVICE.type == "cuda"
    has_it = torch.cuda.get_device_capability() >= (8, 0) if on_gpu else machine.cpu_has_bfloat16()
    return config.precision == "bfloat16" or (config.precision == "auto" and has_it)


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def network(config: Config, params=None) -> torch.nn.Module:
    """The network of a config, with parameters of ours if given."""
    module = ResNet(config.widths, config.strides)
    if params is not None:
        module.load_state_dict({name: torch.tensor(x) for name, x in interop.to_state_dict(params).items()})
    return module.to(DEVICE, memory_format=torch.channels_last)


def to_device(images: np.ndarray) -> torch.Tensor:
    """uint8 `[N, 32, 32, 3]` as `[N, 3, 32, 32]`, channels last."""
    return torch.tensor(images, device=DEVICE).permute(0, 3, 1, 2)


_MEAN, _STD = np.array(CIFAR10.mean, np.float32), np.array(CIFAR10.std, np.float32)
_SCALE = torch.tensor(1 / (255 * _STD), device=DEVICE).view(1, 3, 1, 1)
_OFFSET = torch.tensor(_MEAN / _STD, device=DEVICE).view(1, 3, 1, 1)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 with zero mean and unit variance a channel."""
    return images * _SCALE - _OFFSET


def shift_and_rotate(images: torch.Tensor, shifts: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """`augment.shift_and_rotate`, of `[N, 3, H, W]`."""
    angles = torch.deg2rad(degrees)
    cos, sin = torch.cos(angles), torch.sin(angles)
    y, x = (2 * shifts.float() / images.shape[-1]).unbind(1)
    theta = torch.stack([torch.stack([cos, -sin, x], 1), torch.stack([sin, cos, y], 1)], 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def augment(images: torch.Tensor, config: Config) -> torch.Tensor:
    """Crop, rotation and cutout, as `augment.augment` draws and applies them."""
    count, size = len(images), images.shape[-1]
    shifts = torch.randint(-config.crop_padding, config.crop_padding + 1, (count, 2), device=DEVICE)
    degrees = (2 * torch.rand(count, device=DEVICE) - 1) * config.rotate_degrees
    images = shift_and_rotate(images, shifts, degrees)
    first = torch.randint(0, size, (count, 2, 1), device=DEVICE) - config.cutout_size // 2
    offset = torch.arange(size, device=DEVICE) - first
    inside = (offset >= 0) & (offset < config.cutout_size)
    return images.masked_fill((inside[:, 0, :, None] & inside[:, 1, None, :])[:, None], 0.0)


def train_steps(config: Config, images: np.ndarray, labels: np.ndarray, *, compiled: bool) -> Callable[[], None]:
    """A function that runs an epoch of SGD steps over the images, as our training step does, and waits for it."""
    pixels, classes = to_device(images), torch.tensor(labels, device=DEVICE).long()
    module, averaged = network(config), network(config)
    parameters, averages = list(module.parameters()), list(averaged.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(groups, config.learning_rate, config.momentum, nesterov=config.nesterov, fused=True)

    bfloat16 = multiplies_bfloat16(config)

    def loss_of(batch, target):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bfloat16):
            logits = module(augment(normalize(batch), config))
        return functional.cross_entropy(logits.float(), target, label_smoothing=config.label_smoothing), logits

    if compiled:
        loss_of = torch.compile(loss_of)

    def epoch() -> None:
        order = torch.randperm(len(pixels), device=DEVICE)
        loss_sum, correct = torch.zeros((), device=DEVICE), torch.zeros((), dtype=torch.int64, device=DEVICE)
        for rows in order.split(config.batch_size):
            target = classes[rows]
            loss, logits = loss_of(pixels[rows], target)
            sgd.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            sgd.step()
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1 - config.ema_decay)
                loss_sum += loss.detach() * len(rows)
                correct += (logits.argmax(1) == target).sum()
        float(loss_sum)  # waits

    return epoch


# Of a forward pass: PyTorch's best on a CPU of 16 to 500, by a few percent; more no longer fit the cache.
EVAL_BATCH_SIZE = 1000 if torch.cuda.is_available() else 100


def forward(
    config: Config, params, images: np.ndarray, *, compiled: bool, batch_size: int = EVAL_BATCH_SIZE
) -> Callable[[], None]:
    """A function that computes the logits of the images."""
    module, pixels = network(config, params).eval(), to_device(images)
    run, bfloat16 = torch.compile(module) if compiled else module, multiplies_bfloat16(config)

    @torch.inference_mode()
    def logits() -> None:
        for batch in pixels.split(batch_size):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bfloat16):
                run(normalize(batch))
        wait()

    return logits


def _layer(module: torch.nn.Module, stage: str) -> torch.nn.Module:
    return getattr(module, f"layer{stage.removeprefix('stage')}")[-1]


def grad_cam(config: Config, params, images: np.ndarray, stage: str, classes: int) -> Callable[[], None]:
    """pytorch-grad-cam: a forward and a backward pass through the network for each class."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    module = network(config, params).eval()
    peer, batch = GradCAM(model=module, target_layers=[_layer(module, stage)]), normalize(to_device(images))

    def run() -> None:
        for number in range(classes):
            peer(input_tensor=batch, targets=[ClassifierOutputTarget(number)] * len(images))

    return run


def torch_cam(config: Config, params, images: np.ndarray, stage: str, classes: int) -> Callable[[], None]:
    """torchcam: one forward pass, and for each class a backward pass as far as the layer."""
    from torchcam.methods import GradCAM

    module = network(config, params).eval()
    peer, batch = GradCAM(module, target_layer=_layer(module, stage)), normalize(to_device(images))

    def run() -> None:
        scores = module(batch)
        for number in range(classes):
            peer([number] * len(images), scores, retain_graph=number + 1 < classes, normalized=False)
        wait()

    return run
