"""Every number that changes a result, with its reason; the presets; their command-line flags."""

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cifar_flax.errors import UserError


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Config:
    """A training run. Two runs of equal configs on as many devices of one kind are equal bit for bit.

    On a GPU that needs `deterministic`.
    """

    preset: str = _option("resnet18", "settings to start from; the other flags change them (resnet18)")

    # Data
    dataset: str = _option(
        "cifar10", "cifar10, cifar100, the included sample, tfds:NAME, or the path of a folder of pictures or a file"
    )
    image_size: int = _option(
        0, "pixels along an image, 8 to 96; 0: CIFAR's 32; your own as they are if all are squares of 8 to 64, else 32"
    )
    skip_broken: bool = _option(False, "leave out pictures that cannot be read")
    val_size: int = _option(
        0, "training images to hold out for validation: CIFAR-10's last ones; of another set, drawn once"
    )
    test: bool = _option(True, "evaluate the test set after each epoch; use --no-test while you compare settings")

    # Model. LayerNorm over height, width and channels, 3x3 convolutions, two blocks a stage.
    widths: tuple[int, ...] = _option((64, 128, 256, 512), "channels of each stage")
    strides: tuple[int, ...] = _option((1, 2, 2, 1), "stride of each stage's first block")
    blocks: tuple[int, ...] = _option((), "blocks of each stage; none: two in each; ResNet-34 has 3,4,6,3")
    norm: Literal["layer", "affine"] = "layer"  # affine: an imported network's BatchNorm, explained and not trained
    init: str = _option("", "network to start from: a run, a .safetensors file, compact or resnet18")

    # Augmentation, as the assignment has it
    crop_padding: int = _option(-1, "pixels of padding for the random crop; -1: an eighth of the image; 0: off")
    rotate_degrees: float = _option(5.0, "largest angle of the random rotation; 0: off")
    cutout_size: int = _option(-1, "side of the square that is cut out, in pixels; -1: half of the image; 0: off")
    random_flip: bool = _option(False, "mirror half of the images; not part of the assignment")

    # Optimisation. Muon for the convolutions and SGD for the rest, both at a high rate. Warm-up, because LayerNorm
    # networks lose what a high rate does to them in the first steps; clipping, for the same steps. Decay
    # on kernels only: a norm follows each, so their length is only a rate, while shrinking a norm's scale
    # shrinks the network. Averaged weights do what a decayed rate does, earlier.
    epochs: int = _option(40, "passes over the training set")
    batch_size: int = _option(128, "images per step")
    learning_rate: float = _option(0.2, "learning rate of SGD after warm-up, before ReduceLROnPlateau lowers it")
    warmup_epochs: int = _option(1, "epochs of linear warm-up; ReduceLROnPlateau starts after them")
    momentum: float = _option(0.9, "momentum of SGD")
    nesterov: bool = _option(True, "Nesterov momentum")
    weight_decay: float = _option(5e-4, "weight decay of convolution and dense kernels; norms and biases have none")
    muon_learning_rate: float = _option(0.08, "learning rate of Muon, for the convolutions; 0: SGD trains them too")
    muon_weight_decay: float = _option(0.01, "weight decay of the convolutions under Muon, times its learning rate")
    sam_rho: float = _option(
        0.01,
        "sharpness-aware steps (SAM) once the learning rate has fallen: length of the move uphill, relative to the "
        "parameters; 0: off",
    )
    clip_norm: float = _option(1.0, "clip the gradient to this global norm; 0: off")
    label_smoothing: float = _option(0.1, "share of the label spread over all classes in training")
    teacher: str = _option("", "run or file of weights of a network whose answers are learned as well (distillation)")
    teacher_digest: str = ""  # SHA-256 of the teacher's parameters, noted when a run begins
    teacher_weight: float = _option(0.9, "share of the loss that the teacher's answers have; the labels have the rest")
    teacher_temperature: float = _option(4.0, "what logits are divided by where student and teacher are compared")
    ema_decay: float = _option(0.999, "decay per step of the averaged weights, which are the ones evaluated; 0: off")

    # ReduceLROnPlateau, once an epoch; names as in PyTorch. The training loss is averaged over 50,000 images, so it is
    # smooth enough to let no epoch without improvement pass, and watching it leaks nothing of the test set. What label
    # smoothing puts under that loss, the entropy of its targets, is subtracted: it cannot be gained. An improvement of
    # the rest under 2% an epoch is too slow for 40 epochs: the rate must have fallen some 16- to 64-fold by their end.
    plateau_monitor: Literal["train_loss", "val_loss", "test_loss"] = _option(
        "train_loss", "what ReduceLROnPlateau watches; test_loss lets the test set influence training"
    )
    plateau_patience: int = _option(0, "epochs without improvement that are let pass before the learning rate falls")
    plateau_factor: float = _option(0.5, "factor by which the learning rate falls")
    plateau_threshold: float = _option(0.02, "smallest relative improvement that counts")
    plateau_cooldown: int = _option(1, "epochs to wait after a fall")
    plateau_min_scale: float = _option(
        1e-3, "lower limit, as a fraction of the learning rate; PyTorch's min_lr divided by the rate"
    )

    # Execution
    on_nan: Literal["stop", "skip"] = _option(
        "stop", "when a loss or gradient is not finite: end the run, or leave out the step"
    )
    seed: int = _option(0, "random seed")
    precision: Literal["auto", "float32", "bfloat16"] = _option(
        "auto", "number format of activations and convolutions; auto: bfloat16 if the hardware has it"
    )
    deterministic: bool = _option(False, "the same bits in each run on a GPU; a CPU gives them anyway")
    eval_batch_size: int = _option(1000, "images per evaluation step; changes no result but by rounding")


PRESETS: dict[str, Config] = {
    # The assignment: 11,173,962 parameters. Muon, as the compact network's ablation has it, and
    # Muon's rate, which carries over to other widths: relative to a kernel it is the same. Decay holds the kernels'
    # length, which otherwise grows 22-fold and lowers the rate as much. Sharpness-aware steps, because the network
    # learns all training images: on 5,000 held-out ones decay had 0.3 points and these steps 0.7 more, one seed each
    # (docs/results/resnet18-trials-h100.json).
    "resnet18": Config(),
    # 172,002 parameters, a 65th of ResNet-18's in its four stages, so that a CPU can do all 40 epochs. Early
    # stages are wide for that and late ones narrow: of five shapes with at most 176,426 the best on held-out images
    # after 40 epochs (docs/results/README.md). What regularises ResNet-18 costs a small network accuracy: with label
    # smoothing it had a point less. Muon, because every direction of a kernel then learns at one rate: after an
    # epoch it is at 53% of the validation images where SGD is at 35%. With a small decay of its kernels it had
    # 0.45 points more (one seed); a tenfold one cost accuracy. The rate falls in small
    # steps, about every third epoch, from the first that gains less than 1.5%, here the 10th to 13th. 100 images
    # are evaluated at once: more no longer fit a CPU's cache.
    "compact": Config(
        preset="compact",
        widths=(24, 32, 40, 40),
        muon_weight_decay=0.005,
        sam_rho=0.0,
        label_smoothing=0.0,
        plateau_factor=0.7,
        plateau_threshold=0.015,
        eval_batch_size=100,
    ),
    # A network of three stages by a recipe like the compact one's, on the embedded sample: all in a minute.
    # Smaller batches learned no more in five epochs, by their held-out loss (docs/results/smoke-recipe.json). In
    # float32, whose programs a CPU need not compile again at the next start.
    "smoke": Config(
        preset="smoke",
        dataset="sample",
        widths=(16, 32, 64),
        strides=(1, 2, 2),
        epochs=5,
        batch_size=64,
        muon_weight_decay=0.0,
        sam_rho=0.0,
        label_smoothing=0.0,
        ema_decay=0.95,
        precision="float32",
    ),
}

# What a program notes of a run, and nobody chooses.
NOTED = ("norm", "teacher_digest")

# What may differ between a run and its resumption: the others would make it another run.
RESUMABLE_CHANGES = ("epochs", "eval_batch_size", "on_nan")


# Training images of the data sets of which that is known before they are loaded.
_NUM_TRAIN = {"cifar10": 50_000, "cifar100": 50_000, "sample": 1_000}


def as_path(name: str) -> str:
    """The name of a folder or file as `open_dataset` takes it: `./sample` where `sample` alone is another data set."""
    return f"./{name}" if name in _NUM_TRAIN else name


def require_enough(config: Config, num_images: int) -> None:
    """Refuses what a training set of so many images is too small for.

    Raises:
      UserError: more are held out, or make a batch, than there are.
    """
    num_train = num_images - config.val_size
    if num_train < 1:
        raise UserError(f"--val-size is {config.val_size}: expected fewer than the {num_images} training images")
    if config.batch_size > num_train:
        raise UserError(f"--batch-size is {config.batch_size}: expected at most the {num_train} training images")


def architecture(config: Config) -> str:
    """What the network of a config is called: the preset of its shape, or its depth, widths and strides."""
    shapes = {(preset.widths, preset.strides, preset.blocks, "layer"): name for name, preset in PRESETS.items()}
    blocks = config.blocks or (2,) * len(config.widths)
    is_usual = set(blocks) == {2}
    if name := shapes.get((config.widths, config.strides, () if is_usual else blocks, config.norm)):
        return name
    widths, strides = (",".join(map(str, numbers)) for numbers in (config.widths, config.strides))
    norm = "LayerNorm" if config.norm == "layer" else "BatchNorm"
    return f"ResNet-{2 + 2 * sum(blocks)} with {norm}, widths {widths}, strides {strides}"


def for_images(config: Config, image_size: int) -> Config:
    """The config with the augmentation that it has for images of so many pixels along a side."""
    padding = image_size // 8 if config.crop_padding == -1 else config.crop_padding
    size = image_size // 2 if config.cutout_size == -1 else config.cutout_size
    return dataclasses.replace(config, crop_padding=padding, cutout_size=size)


def validate(config: Config) -> Config:
    """The config itself.

    Raises:
      UserError: a value is out of its range; the message names it.
    """

    def require(name: str, condition: bool, expected: str) -> None:
        if not condition:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} is {getattr(config, name)}: expected {expected}")

    hints = typing.get_type_hints(Config)
    for name, hint in hints.items():
        value, kind = getattr(config, name), typing.get_origin(hint) or hint
        if kind is Literal:
            require(name, value in typing.get_args(hint), f"one of {', '.join(typing.get_args(hint))}")
        elif kind is float:
            require(name, isinstance(value, int | float) and not isinstance(value, bool), "a number")
        else:
            require(name, type(value) is kind, f"a value of type {kind.__name__}")
    for name in ("epochs", "batch_size", "eval_batch_size"):
        require(name, getattr(config, name) >= 1, "1 or more")
    for name in ("crop_padding", "cutout_size"):
        require(name, getattr(config, name) >= -1, "0 or more, or -1")
    for name in ("val_size", "warmup_epochs", "plateau_patience", "plateau_cooldown", "seed"):
        require(name, getattr(config, name) >= 0, "0 or more")
    for name in ("weight_decay", "muon_learning_rate", "muon_weight_decay", "sam_rho", "clip_norm"):
        require(name, 0 <= getattr(config, name) < float("inf"), "a finite number, 0 or more")
    for name in ("momentum", "label_smoothing", "ema_decay"):
        require(name, 0 <= getattr(config, name) < 1, "a number in [0, 1)")
    require("teacher_weight", 0 < config.teacher_weight <= 1, "a number in (0, 1]")
    require("teacher_temperature", 0 < config.teacher_temperature < float("inf"), "a finite number above 0")
    require("learning_rate", 0 < config.learning_rate < float("inf"), "a finite number above 0")
    require("rotate_degrees", 0 <= config.rotate_degrees <= 180, "an angle in [0, 180]")
    require("plateau_factor", 0 < config.plateau_factor < 1, "a number in (0, 1)")
    require("plateau_threshold", 0 < config.plateau_threshold < 1, "a number in (0, 1)")
    require("plateau_min_scale", 0 <= config.plateau_min_scale < 1, "a number in [0, 1)")
    require("seed", config.seed < 2**32, "a number below 2**32")
    require("nesterov", config.momentum > 0 or not config.nesterov, "--no-nesterov where --momentum is 0")
    require("widths", bool(config.widths) and all(width >= 1 for width in config.widths), "1 or more each")
    require("strides", all(stride >= 1 for stride in config.strides), "1 or more each")
    each = f"one for each of {len(config.widths)} --widths"
    require("strides", len(config.strides) == len(config.widths), each)
    require("blocks", not config.blocks or len(config.blocks) == len(config.widths), each)
    require("blocks", all(count >= 1 for count in config.blocks), "1 or more each")
    watched = config.plateau_monitor
    require("val_size", watched != "val_loss" or config.val_size > 0, "1 or more for --plateau-monitor val_loss")
    require("plateau_monitor", watched != "test_loss" or config.test, "train_loss or val_loss with --no-test")
    require("image_size", config.image_size == 0 or 8 <= config.image_size <= 96, "8 to 96 pixels, or 0")
    for name in ("teacher_weight", "teacher_temperature"):
        require(name, config.teacher != "" or getattr(config, name) == getattr(Config, name), "a --teacher beside it")
    if config.dataset in _NUM_TRAIN:  # as early as can be
        require_enough(config, _NUM_TRAIN[config.dataset])
    return config


def _int_tuple(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


_int_tuple.__name__ = "list of integers"  # argparse names it in its messages


def add_flags(parser: argparse._ActionsContainer, names: Collection[str] | None = None) -> None:
    """A flag for each field, or for those named; one that is not given is absent from the parsed namespace."""
    hints = typing.get_type_hints(Config)
    for option in dataclasses.fields(Config):
        if option.name in NOTED or (names is not None and option.name not in names):
            continue
        hint = hints[option.name]
        kinds: dict[str, Any] = {"type": hint}
        if option.name == "preset":
            kinds = {"choices": PRESETS}
        elif typing.get_origin(hint) is Literal:
            kinds = {"choices": typing.get_args(hint)}
        elif isinstance(hint, types.GenericAlias):
            kinds = {"type": _int_tuple, "metavar": "N,N,..."}
        elif hint is bool:
            kinds = {"action": argparse.BooleanOptionalAction}
        defaults = [getattr(preset, option.name) for preset in PRESETS.values()]
        values = [str(value).strip("()").replace(" ", "") or "none" for value in defaults]
        values = values if len(set(values)) > 1 else values[:1]
        help = option.metadata["help"] + ("" if option.name == "preset" else f" ({' / '.join(values)})")
        flag = "--" + option.name.replace("_", "-")
        parser.add_argument(flag, default=argparse.SUPPRESS, help=help.replace("%", "%%"), **kinds)


def from_flags(flags: dict[str, Any]) -> Config:
    """The config that the given flags, by field name, make of their preset."""
    return validate(dataclasses.replace(PRESETS[flags.get("preset", "resnet18")], **_found_from_anywhere(flags)))


def _found_from_anywhere(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags with the path of a data set, if it is given by one, as an absolute path."""
    path = flags.get("dataset", "")
    if path in ("", *_NUM_TRAIN) or not Path(path).exists():
        return flags
    return flags | {"dataset": str(Path(path).resolve())}


def to_json(config: Config) -> str:
    """The config as JSON text, read back by `from_json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


# Names that earlier versions had, and what they were called with.
_RENAMED = {
    "monitor": "plateau_monitor",
    "patience": "plateau_patience",
    "factor": "plateau_factor",
    "rtol": "plateau_threshold",
    "cooldown": "plateau_cooldown",
    "min_scale": "plateau_min_scale",
    "data": "dataset",
}
# Fields whose absence means another value than their default: that of the version which had no such field.
_BEFORE = {"muon_learning_rate": 0.0, "muon_weight_decay": 0.0, "sam_rho": 0.0}


def _modern(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config of an earlier version, as they are called now."""
    values = _BEFORE | values
    values.pop("zero_init_residual", None)  # of the first parameters alone
    if not values.get("teacher"):  # without one they could be chosen, to no effect
        values = {
            name: value for name, value in values.items() if name not in ("teacher_weight", "teacher_temperature")
        }
    if "patience" in values:  # it was PyTorch's plus 1
        values["patience"] -= 1
    if values.get("data") == "full":
        values["data"] = "cifar10"
    return {_RENAMED.get(name, name): tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def from_json(text: str | bytes) -> Config:
    """The inverse of `to_json`; reads what earlier versions wrote too.

    Raises:
      UserError: the text is not the JSON of a config.
    """
    try:
        return validate(Config(**_modern(json.loads(text))))
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"not a config of this program ({error}): put it back as it was") from error


def differences(ours: Config, theirs: Config) -> str:
    """The fields, other than `RESUMABLE_CHANGES`, in which two configs differ, as text; empty if none.

    A teacher's digest that one of them has not noted is no difference.
    """
    names = [option.name for option in dataclasses.fields(Config) if option.name not in RESUMABLE_CHANGES]
    if "" in (ours.teacher_digest, theirs.teacher_digest):
        names.remove("teacher_digest")
    for name in ("crop_padding", "cutout_size"):  # -1 becomes a number once the images' size is known
        if -1 in (getattr(ours, name), getattr(theirs, name)):
            names.remove(name)
    return ", ".join(
        f"{name} ({getattr(ours, name)} against {getattr(theirs, name)})"
        for name in names
        if getattr(ours, name) != getattr(theirs, name)
    )


def resumed(old: Config, flags: dict[str, Any]) -> Config:
    """The config of a run that goes on with some flags given anew.

    Raises:
      UserError: a flag would change something other than `RESUMABLE_CHANGES`.
    """
    flags = _found_from_anywhere(flags)
    for name, value in flags.items():
        if name not in RESUMABLE_CHANGES and value != getattr(old, name):
            flag, now = (
                name.replace("_", "-"),
                "" if isinstance(value, bool) else f" from {getattr(old, name)} to {value}",
            )
            raise UserError(
                f"--resume cannot change --{'no-' if value is False else ''}{flag}{now}: leave it out, "
                "or start a new run in another --out"
            )
    return validate(dataclasses.replace(old, **flags))
