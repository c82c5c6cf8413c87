"""What a person may give by mistake, in Python and on the command line: one line each, and nothing is written."""

import dataclasses
import functools
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

import cifar_flax
from cifar_flax import commands, plots
from cifar_flax.data import Dataset
from cifar_flax.errors import UserError
from cifar_flax.explaining.network import prepare
from cifar_flax.training import rundir, trained

SMOKE = dataclasses.replace(cifar_flax.PRESETS["smoke"], epochs=1)


@pytest.fixture(scope="module")
def network():
    return cifar_flax.load("compact")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_size": -1}, "--val-size is -1: expected 0 or more"),
        ({"precision": "foo"}, "--precision is foo: expected one of"),
        ({"learning_rate": -1.0}, "--learning-rate is -1.0"),
        ({"epochs": 0}, "--epochs is 0: expected 1 or more"),
        ({"epochs": "1"}, "--epochs is 1: expected a value of type int"),
        ({"widths": (4,), "strides": (2, 2)}, "--strides is .* expected one for each"),
        ({"plateau_monitor": "foo"}, "--plateau-monitor is foo"),
        ({"image_size": 20}, "--image-size is 20, and the images have 32 pixels"),
    ],
)
def test_a_config_is_checked_before_anything_is_written(changes, message, sample, tmp_path):
    with pytest.raises(UserError, match=message):
        cifar_flax.fit(dataclasses.replace(SMOKE, **changes), sample, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_config_or_data_set_is_one_line(sample, network, tmp_path):
    for arguments in (("smoke", sample), (SMOKE, "sample")):
        with pytest.raises(UserError, match="expected"):
            cifar_flax.fit(*arguments, tmp_path / "run")
    for arguments in (("compact", sample), (network, "sample"), (network, sample, {"num_wrong": 3})):
        with pytest.raises(UserError, match=r"analyse takes what|expected a cifar_flax\.Selection"):
            cifar_flax.analyse(*arguments)
    for arguments, message in (
        ({"evaluate": True}, r"evaluate is True: expected cifar_flax\.EvaluationOptions"),
        (
            {"evaluate": cifar_flax.EvaluationOptions(num_images="x")},
            "num_images is 'x': expected 2 to 1,000",
        ),
        ({"evaluate": cifar_flax.EvaluationOptions(num_images=1001)}, "num_images is 1001: expected 2 to 1,000"),
        ({"evaluate": cifar_flax.EvaluationOptions(seed=-1)}, "seed is -1: expected 0 to 4,294,967,295"),
        ({"human_labels": "x"}, "human_labels is 'x': expected"),
        ({"selection": cifar_flax.Selection(indices=3)}, "indices is 3: expected the numbers of one or more images"),
        ({"selection": cifar_flax.Selection(method=["grad-cam"])}, "method .* is not known"),
        ({"compare_with": cifar_flax.load("compact")}, "published compact network is the network itself"),
    ):
        with pytest.raises(UserError, match=message):
            cifar_flax.analyse(network, sample, **arguments)
    for given in (None, 3):
        with pytest.raises(UserError, match=r"on_epoch is .*: expected a function of a row"):
            cifar_flax.fit(SMOKE, sample, tmp_path / "run", on_epoch=given)
    with pytest.raises(UserError, match="a data set's description does not hold together: expected a name, a tuple"):
        dataclasses.replace(sample.spec, class_names=10)
    for mean in ((0, 0), None, (10**400, 0, 0)):
        with pytest.raises(UserError, match="three means and three deviations above 0"):
            dataclasses.replace(sample.spec, mean=mean)
    for size in ("x", 16.0, np.array([16, 16]), 7):
        with pytest.raises(UserError, match=r"--image-size is .*: expected 8 to 96, a whole number"):
            cifar_flax.open_dataset("sample", image_size=size)
    assert cifar_flax.open_dataset("sample", image_size=np.int64(16)).spec.image_size == 16
    for indices in ([[1], [2, 3]], [1.5], "37", []):
        with pytest.raises(UserError, match=r"indices is .*: expected the numbers of one or more images"):
            cifar_flax.analyse(network, sample, cifar_flax.Selection(indices=indices))
    for changes in ({"num_wrong": np.array([2, 3])}, {"neighbours": 51}):
        with pytest.raises(UserError, match=r"expected .* a whole number"):
            cifar_flax.analyse(network, sample, cifar_flax.Selection(**changes))
    for given in (3, b"compact", ["compact"]):
        with pytest.raises(UserError, match="expected a path"):
            cifar_flax.load(given)
    for given in (None, 3, ""):
        with pytest.raises(UserError, match=r"the data set is .*: expected cifar10, cifar100, sample"):
            cifar_flax.open_dataset(given)
    with pytest.raises(UserError, match="precision is 'float16': expected float32 or bfloat16"):
        cifar_flax.load("compact", precision="float16")
    assert not (tmp_path / "run").exists()
    assert isinstance(sample, Dataset)


def test_the_same_parameters_of_other_pixels_are_another_network(network, few):
    """Normalised otherwise, as an imported network may be."""
    spec = dataclasses.replace(network.spec, mean=(0.5, 0.5, 0.5))
    other = prepare(dataclasses.replace(network.trained, spec=spec))
    few = dataclasses.replace(few, test=few.test.take(slice(60)))
    found = cifar_flax.analyse(network, few, cifar_flax.Selection(neighbours=0), compare_with=other)
    assert found.comparison.figures["images"] == 60


@pytest.mark.parametrize("augment", [3, lambda images: images, lambda key, x: None, lambda key, x: x[:, :5]])
def test_an_augmentation_makes_images_of_images(augment, sample, tmp_path):
    with pytest.raises(UserError, match=r"augment .*: expected a function of a key and float images \[B, 32, 32, 3\]"):
        cifar_flax.fit(SMOKE, sample, tmp_path / "run", augment=augment)
    assert not (tmp_path / "run").exists()


def test_images_are_normalised_once(network, sample):
    images = sample.test.images[:2]
    with pytest.raises(UserError, match="images are float64: expected uint8, 0 to 255"):
        network.spec.normalize(images / 255)
    for ask in (network.forward, lambda x: network.features(x, stage="stage4")):
        for wrong in (images, np.zeros((2, 16, 16, 3), np.float32), np.zeros((32, 32, 3), np.float32)):
            with pytest.raises(UserError, match=r"images are .*: expected what spec\.normalize makes of \[B, 32"):
                ask(wrong)
    for ask in (network.features, network.head):
        with pytest.raises(UserError, match="stage stage9 is not known"):
            ask(network.spec.normalize(images), stage="stage9")


def test_predictions_are_chosen_by_what_there_is(network, sample):
    predictions = network.predict(sample.test.images[:9], sample.test.labels[:9])
    for wrong, message in (
        ({"correct": "no"}, "correct is 'no': expected True or False"),
        ({"correct": True, "sort": "foo"}, "sort is 'foo': expected one of index"),
        ({"correct": True, "true": "cat"}, "true is 'cat': expected the number of a class, 0 to 9"),
        ({"correct": True, "predicted": 10}, "predicted is 10: expected"),
    ):
        with pytest.raises(UserError, match=message):
            predictions.select(**wrong)
    with pytest.raises(UserError, match="images without labels"):
        _ = network.predict(sample.test.images[:2]).accuracy


def test_pictures_are_files_or_pillows_images_or_arrays(network, sample, tmp_path):
    """Turned as its EXIF says; of pixels whose range nothing says it is refused."""
    images, exif = sample.test.images[:2], Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(sample.test.images[0]).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(network.to_images(opened), network.to_images(tmp_path / "turned.png"))
    np.testing.assert_array_equal(network.to_images(tmp_path / "turned.png")[0], sample.test.images[0, ::-1, ::-1])
    for kind in ("i4", "f4"):
        with pytest.raises(UserError, match="picture 0 has pixels of 32 bits, of no known range"):
            network.predict(Image.fromarray(sample.test.images[0, :, :, 0].astype(kind)))
    for several in ([images[0], images[1, :5]], [images[0], [3]]):
        with pytest.raises(UserError, match=r"images are of several shapes or kinds: expected all of \[32, 32, 3\]"):
            network.predict(several)
    with pytest.raises(UserError, match="picture 1 is a ndarray: expected a file's path or Pillow's image"):
        network.predict([tmp_path / "turned.png", images[0]])
    ask = functools.partial(network.maps, stage="stage4", methods=["grad-cam"])
    for arguments, message in (
        ({"images": images, "classes": [1, 2]}, r"classes are \[2\]: expected \[2, T\]"),
        ({"images": images, "classes": [[1], [1, 2]]}, "classes are of several lengths"),
        ({"images": images, "classes": [[1], [2]], "against": [[2]]}, r"classes are \[2, 1\]: expected"),
        ({"images": "x.png", "classes": [[1]]}, r"images are <U5 \[\]: expected uint8 \[N, H, W, 3\]"),
        ({"images": images / 255, "classes": [[1], [2]]}, "images are float64"),
    ):
        with pytest.raises(UserError, match=message):
            ask(**arguments)
    with pytest.raises(UserError, match="labels are of several shapes: expected 2 integers"):
        network.predict(images, [1, [2, 3]])
    for size in ((0, 15), (40, 0)):
        with pytest.raises(UserError, match="picture 0 has no pixels"):
            network.predict(Image.new("RGB", size))
    content = (tmp_path / "turned.png").read_bytes()
    with (
        Image.open(io.BytesIO(content[: len(content) // 2])) as cut,
        pytest.raises(UserError, match="picture 0 cannot be read as a picture"),
    ):
        network.predict(cut)
    maps = network.explain(images)
    maps.save(tmp_path / "a.png", width=np.int64(4), dpi=np.int64(60))
    with pytest.raises(UserError, match="width is 'x': expected 3 to 20 inches"):
        maps.save(tmp_path / "a.png", width="x")
    with pytest.raises(UserError, match=r"dpi is 60\.0: expected 50 to 600, a whole number"):
        maps.save(tmp_path / "a.png", dpi=60.0)
    with pytest.raises(UserError, match="cannot be written: No such file or directory; choose another name"):
        network.explain(images).save(tmp_path / "none" / "a.png")
    with pytest.raises(UserError, match=r"none\.png is not there: expected a picture"):
        network.predict(tmp_path / "none.png")
    with pytest.raises(UserError, match="is a folder: expected a picture"):
        network.predict(tmp_path)


# ---- folders and the command line ----


def png(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def pets(sample, tmp_path):
    """Two classes of eight pictures, as cat/ and dog/."""
    for name, start in (("cat", 0), ("dog", 8)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(8):
            (tmp_path / "pets" / name / f"{i}.png").write_bytes(png(sample.train.images[start + i]))
    return tmp_path / "pets"


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_left_out_of_a_folder_is_said(pets, tmp_path):
    (pets / "cat" / "a.heic").write_bytes(b"x")
    (pets / "dog" / "b.HEIC").write_bytes(b"x")
    (pets / "dog" / "notes").write_bytes(b"x")
    (pets / "dog" / "deep").mkdir()
    notes = cifar_flax.open_dataset(pets).notes
    assert "files that are no pictures by their endings were left out: .heic 2, without ending 1" in notes
    assert "folders inside of classes were left out: deep" in notes
    split = tmp_path / "split"
    split.mkdir()
    pets.rename(split / "train")
    for name in ("Test", "val"):
        for kind in ("cat", "dog"):
            (split / name / kind).mkdir(parents=True)
            (split / name / kind / "0.png").write_bytes((split / "train" / kind / "0.png").read_bytes())
    opened = cifar_flax.open_dataset(split)
    assert len(opened.train.labels) == 16 and len(opened.test.labels) == 2
    assert "folders beside train were left out: val" in opened.notes


def test_a_class_that_cannot_be_read_is_refused(pets):
    os.rename(pets / "cat", bytes(pets) + b"/\xff\xfe")
    with pytest.raises(UserError, match=r"a class is called .*: give it a name that can be read"):
        cifar_flax.open_dataset(pets)


def test_a_run_is_not_written_among_pictures(pets, tmp_path, capsys):
    before = names(pets)
    for out in (pets, pets / "run"):
        assert commands.main(["train", "--preset", "smoke", "--dataset", str(pets), "--out", str(out)]) == 2
        assert "is in the folder of the data set" in capsys.readouterr().err
    assert names(pets) == before


def test_a_refused_run_leaves_nothing_in_a_folder_that_was_there(pets, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    words = [
        "train",
        "--preset",
        "smoke",
        "--dataset",
        str(pets),
        "--batch-size",
        "500",
        "--out",
        str(tmp_path / "mine"),
    ]
    assert commands.main(words) == 2
    assert "--batch-size" in capsys.readouterr().err and names(tmp_path / "mine") == ["thesis.txt"]


def test_a_sweep_is_not_written_into_a_run(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert commands.main(["sweep", "--preset", "smoke", "--out", str(tmp_path)]) == 2
    assert "holds a run" in capsys.readouterr().err and names(tmp_path) == ["config.json"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data.json", ["train", "--preset", "smoke", "--out", "."]),
        ("loss_accuracy.png", ["train", "--preset", "smoke", "--out", "."]),
        ("watch.html", ["train", "--preset", "smoke", "--watch", "--out", "."]),
        ("sweep.json", ["sweep", "--preset", "smoke", "--out", "."]),
        ("a.png", ["data", "show", "--dataset", "sample", "--out", "a.png"]),
    ],
)
def test_a_file_that_was_there_is_not_replaced(name, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("mine")
    assert commands.main(words) == 2
    said = capsys.readouterr().err
    assert name in said and ("would be lost" in said or "exists" in said)
    assert (tmp_path / name).read_text() == "mine" and names(tmp_path) == [name]


def test_a_name_that_is_too_long_is_one_line(tmp_path, capsys):
    for words in (["explain", "--out"], ["explain", "--dataset"], ["explain", "--ckpt"], ["pictures"]):
        assert commands.main([*words, str(tmp_path / ("x" * 300))]) == 2
        said = capsys.readouterr().err
        assert "is too long a name: choose a shorter one" in said and said.count("\n") == 1


def test_an_epoch_that_is_none_is_one_line(tmp_path):
    """Of a run and of a file of weights; those of the first version have percentages."""
    row = {"epoch": 1, "learning_rate": 0.1, "train_loss": 2.0, "train_acc": 89.93, "test_acc": 50.0}
    new = {"epoch": 1, "learning_rate": 0.1, "train_loss": 2.0, "train_accuracy": 0.8993, "test_accuracy": 0.5}
    network, path = trained.load("compact"), tmp_path / "x.safetensors"
    for rows in ([row], [row, new]):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
        trained.export(dataclasses.replace(network, history=rows), path)
        assert rundir.read_rows(tmp_path) == trained.load(path).history == [new] * len(rows)
        path.unlink()
    for broken in ({**row, "test_acc": None}, {**row, "epoch": "1"}, [1]):
        (tmp_path / "metrics.jsonl").write_text(json.dumps(broken) + "\n")
        trained.export(dataclasses.replace(network, history=[broken]), path)
        for read, where in ((rundir.read_rows, tmp_path), (trained.load, path)):
            with pytest.raises(UserError, match=r"metrics.jsonl cannot be read|has a broken header"):
                read(where)
        path.unlink()
    with pytest.raises(
        UserError, match="an epoch of the training has no learning_rate, and its curves cannot be drawn"
    ):
        plots.curves_figure([{"epoch": 1, "train_loss": 1.0}])


def test_no_name_is_no_data_set(capsys):
    for words in (["data", "show", ""], ["data", "show", "--dataset", ""]):
        assert commands.main(words) == 2
        assert "the data set is '': expected cifar10" in capsys.readouterr().err
