"""A person's own pictures: how they are read, and what is said of them."""

import base64
import dataclasses
import io
import json
import os
import re

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from cifar_flax.data import CIFAR10, pictures
from cifar_flax.errors import UserError
from cifar_flax.explaining import cam, folder, own
from cifar_flax.explaining.network import load
from cifar_flax.network import model


@pytest.fixture(scope="module")
def embedded():
    """The embedded network as it is used here: in bfloat16, where the processor has it."""
    return load("compact")


@pytest.fixture(scope="module")
def network():
    """The same in float32: what is compared with it differs by no rounding."""
    return load("compact", precision="float32")


@pytest.fixture
def save(tmp_path):
    def write(name, picture, **options):
        picture.save(tmp_path / name, **options)
        return tmp_path / name

    return write


def read(path):
    return pictures.read(path, 32)


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "tiff"])
def test_a_picture_of_the_networks_size_is_read_as_it_is(save, sample, ending):
    options = {"lossless": True} if ending == "webp" else {}
    path = save(f"a.{ending}", Image.fromarray(sample.test.images[3]), **options)
    np.testing.assert_array_equal(read(path).pixels, sample.test.images[3])


def test_the_middle_is_taken_and_reduced(save, rng):
    """Of a wide picture of even squares: each becomes a pixel, and what is left and right of the middle goes."""
    middle = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    wide = np.concatenate([np.zeros((32, 20, 3), np.uint8), middle, np.zeros((32, 20, 3), np.uint8)], axis=1)
    path = save("a.png", Image.fromarray(wide))
    np.testing.assert_array_equal(read(path).pixels, middle)
    flat = Image.new("RGB", (4000, 100), (10, 200, 30))
    assert (read(save("b.png", flat)).pixels == (10, 200, 30)).all()


def test_exif_turns_a_picture(save, sample):
    image = Image.fromarray(sample.test.images[3])
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    path = save("a.png", image, exif=exif)
    np.testing.assert_array_equal(read(path).pixels, np.rot90(sample.test.images[3], -1))


def test_transparency_is_white_and_greys_have_three_channels(save):
    assert (read(save("a.png", Image.new("RGBA", (40, 40), (255, 0, 0, 0)))).pixels == 255).all()
    assert (read(save("b.png", Image.new("L", (40, 40), 7))).pixels == 7).all()
    assert (read(save("c.png", Image.new("LA", (40, 40), (7, 255)))).pixels == 7).all()
    assert (read(save("d.png", Image.new("1", (40, 40), 1))).pixels == 255).all()
    palette = Image.new("RGB", (40, 40), (9, 8, 7)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert (read(save("e.png", palette)).pixels == (9, 8, 7)).all()
    assert (read(save("f.jpg", Image.new("CMYK", (40, 40), (0, 0, 0, 0)))).pixels == 255).all()
    sixteen = Image.fromarray(np.full((40, 40), 257 * 100, np.uint16))
    assert (read(save("g.png", sixteen)).pixels == 100).all()


def test_what_is_no_picture_is_one_line(tmp_path, save, monkeypatch):
    (tmp_path / "a.jpg").write_text("no picture")
    whole = save("b.png", Image.new("RGB", (40, 40))).read_bytes()
    (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
    for name in ("a.jpg", "c.png"):
        with pytest.raises(UserError, match=rf"{name} cannot be read as a picture"):
            read(tmp_path / name)
    for mode, value in (("F", 0.5), ("I", 200)):
        with pytest.raises(UserError, match="pixels of 32 bits, of no known range"):
            read(save("d.tiff", Image.new(mode, (40, 40), value)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="more than 1,000 pixels"):
        read(tmp_path / "b.png")


def test_no_more_of_a_large_picture_is_kept_than_is_shown(save):
    found = read(save("a.png", Image.new("RGB", (900, 700))))
    assert (found.size, found.whole.size, found.middle.size, found.pixels.shape) == (
        (900, 700),
        (320, 249),
        (320, 320),
        (32, 32, 3),
    )


def test_folders_are_searched(tmp_path, save, monkeypatch):
    (tmp_path / "deep").mkdir()
    names = ["a.JPG", "b.webp", "deep/c.png"]
    for name in names:
        save(name, Image.new("RGB", (8, 8)))
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "scan.pdf").write_text("")  # Pillow writes this kind, and reads none
    for hidden in (".thumbs/t.png", "deep/._c.png"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        save(hidden, Image.new("RGB", (8, 8)))
    assert pictures.find(tmp_path) == [tmp_path / name for name in names]
    assert pictures.find(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]  # asked for by name: read, and refused
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no picture"):
        pictures.find(tmp_path / "empty")
    with pytest.raises(UserError, match="nowhere is not there"):
        pictures.find(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop is a link to nothing"):
        pictures.find(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe.png")  # which nobody ever writes into
    with pytest.raises(UserError, match=r"pipe\.png is neither a file nor a folder"):
        pictures.find(tmp_path / "pipe.png")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read anything
    for path in (tmp_path, tmp_path / names[0]):
        with pytest.raises(UserError, match="may not be read: leave it out, or change its rights"):
            pictures.find(path)


@pytest.mark.slow
def test_what_is_unlike_the_training_set_is_marked(embedded, sample, rng):
    """As many test images as the rule says, and nearly all noise and flat colours."""
    distances, limit = own.distance(embedded, sample.test.images, sample)
    assert (distances > limit).mean() == pytest.approx(own.UNLIKE_SHARE, abs=0.002)
    noise = rng.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    flat = np.broadcast_to(rng.integers(0, 256, (50, 1, 1, 3)), (50, 32, 32, 3)).astype(np.uint8)
    for images in (noise, flat):
        assert (own.distance(embedded, images, sample)[0] > limit).mean() > 0.9


@pytest.mark.slow
def test_distance_is_that_of_all_stages_to_the_tenth_nearest(network, sample):
    @jax.jit
    def stages(images):
        images = CIFAR10.normalize(images)
        return [model.features(network.model, network.params, images, stage=s) for s in network.model.stage_names]

    def features(images):
        return np.concatenate([np.asarray(stage).mean(axis=(1, 2)) for stage in stages(images)], axis=1)

    known = features(sample.train.images)
    differences = (features(sample.test.images[:5])[:, None] - known) / known.std(axis=0)
    expected = np.sort(np.sqrt((differences**2).sum(axis=2)), axis=1)[:, 9]
    np.testing.assert_allclose(own.distance(network, sample.test.images[:5], sample)[0], expected, rtol=1e-3)


def decoded(url):
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as picture:
        return np.array(picture.convert("RGB"))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "corner"), [((96, 60), (18, 0)), ((50, 90), (0, 20))])
def test_a_picture_that_is_not_square_is_explained_by_its_middle(network, sample, tmp_path, save, size, corner):
    """What the network is given, and where on the page its maps lie, is the middle square."""
    side = min(size)
    middle = Image.fromarray(sample.test.images[5]).resize((side, side), Image.Resampling.NEAREST)
    whole = Image.new("RGB", size, (255, 0, 255))
    whole.paste(middle, corner)
    picture = pictures.read(save("a.png", whole), 32)
    own.write(
        tmp_path / "out", network, [picture], [], stage="stage4", method="grad-cam", reference=sample, overwrite=False
    )
    manifest = json.loads((tmp_path / "out" / folder.PICTURES.manifest).read_text())
    page = (tmp_path / "out" / "pictures.html").read_text()
    shown = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    (entry,), (card,) = manifest["pictures"], shown["pictures"]
    pixels = np.asarray(middle.resize((32, 32), Image.Resampling.BILINEAR))
    given = decoded(card["input"])
    apart = abs(given.astype(int) - pixels)[2:-2, 2:-2]  # at its ends the filter sees what is beside
    assert apart.max() <= 1
    assert abs(decoded(card["middle"]).astype(int) - np.asarray(middle)).mean() < 12
    assert decoded(card["whole"]).shape == (size[1], size[0], 3) and entry["size"] == list(size)
    logits = network.predict(given[None]).logits
    np.testing.assert_allclose(entry["probabilities"], softmax(logits[0].astype(float)), atol=1e-5)
    assert entry["predicted"] == CIFAR10.class_names[logits[0].argmax()] and card["title"] == "a.png"
    assert shown["image_size"] == 32 and card["classes"] == list(range(10))
    assert shown["class_names"] == list(CIFAR10.class_names) and shown["threshold"] == manifest["threshold"]


@pytest.mark.slow
def test_only_what_is_farther_than_the_threshold_is_marked(network, sample, tmp_path, save, monkeypatch):
    monkeypatch.setattr(own, "distance", lambda network, images, reference: (np.array([0.9, 1.0, 1.1]), 1.0))
    given = [read(save(f"{i}.png", Image.fromarray(sample.test.images[i]))) for i in range(3)]
    out = tmp_path / "out"
    manifest = own.write(out, network, given, [], stage="stage4", method="grad-cam", reference=sample, overwrite=False)
    assert [(entry["distance"], entry["unlike"]) for entry in manifest["pictures"]] == [
        (0.9, False),
        (1.0, False),
        (1.1, True),
    ]
    assert manifest["threshold"] == 1.0


@pytest.mark.slow
def test_a_name_that_is_not_utf8_is_escaped(network, sample, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.fromarray(sample.test.images[0]).save(path)
    own.write(
        tmp_path / "out",
        network,
        [read(path)],
        [],
        stage="stage4",
        method="grad-cam",
        reference=sample,
        overwrite=False,
    )
    manifest = json.loads((tmp_path / "out" / folder.PICTURES.manifest).read_text())
    assert manifest["pictures"][0]["file"].endswith(r"caf\udce9.png")
    assert np.load(tmp_path / "out" / "cams.npz")["files"].tolist() == [manifest["pictures"][0]["file"]]
    assert r"caf\\udce9.png" in (tmp_path / "out" / "pictures.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_of_pictures_shows_what_was_found(network, sample, tmp_path, save, show, rng):
    noise = Image.fromarray(rng.integers(0, 256, (40, 64, 3), dtype=np.uint8))
    given = [
        read(save("a.png", Image.fromarray(sample.test.images[0]))),
        read(save("noise.png", noise)),
    ]
    out = tmp_path / "out"
    manifest = own.write(out, network, given, [], stage="stage4", method="grad-cam", reference=sample, overwrite=False)
    page = show((out / "pictures.html").read_text(), "article")
    assert page.locator("#headline").inner_text() == "2 pictures, explained"
    assert page.locator("#rule").inner_text().startswith("1 marked as unlike the training set")
    for article, entry in zip(page.locator("article").all(), manifest["pictures"], strict=True):
        ranked = np.argsort(-np.array(entry["probabilities"]), kind="stable")
        percents = [f"{100 * entry['probabilities'][i]:.1f}%" for i in ranked]
        names = [CIFAR10.class_names[i] for i in ranked]
        assert article.locator("h2").inner_text() == f"{entry['file'].split('/')[-1]}: {names[0]}, {percents[0]}"
        assert article.locator(".notice").count() == entry["unlike"]
        bars = [bar.inner_text().split("\n") for bar in article.locator(".bar").all()]
        assert [[bar[0], bar[-1]] for bar in bars] == [list(x) for x in zip(names, percents, strict=True)]
        captions = article.locator(".maps figcaption").all_inner_texts()
        assert captions == [f"{name} {percent}" for name, percent in zip(names, percents, strict=True)]
        layers = article.locator(".maps figure").evaluate_all(
            "all => all.map(x => x.querySelector('.layer')?.src ?? '')"
        )
        html = (out / "pictures.html").read_text()
        cards = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])["pictures"]
        (card,) = [card for card in cards if card["file"] == entry["file"]]
        assert layers == [card["layers"][i] for i in ranked]
        width, height = entry["size"]
        assert f"the picture, {width} x {height}" in article.inner_text()
    page.close()


@pytest.mark.slow
def test_pictures_are_predicted_and_explained_as_test_images_are(network, sample, tmp_path, save, rng):
    noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    images = [*sample.test.images[:2], noise]
    out = tmp_path / "out"
    given = [read(save(f"{i}.png", Image.fromarray(image))) for i, image in enumerate(images)]
    own.write(out, network, given, ["one line"], stage="stage4", method="grad-cam", reference=sample, overwrite=False)
    manifest = json.loads((out / folder.PICTURES.manifest).read_text())
    assert [entry["unlike"] for entry in manifest["pictures"]] == [False, False, True]
    assert [entry["distance"] > manifest["threshold"] for entry in manifest["pictures"]] == [False, False, True]
    logits = network.predict(np.stack(images)).logits
    guesses = logits.argmax(axis=1)
    for entry, p, guess in zip(manifest["pictures"], softmax(logits.astype(float), axis=1), guesses, strict=True):
        assert entry["predicted"] == CIFAR10.class_names[guess] and entry["size"] == [32, 32]
        np.testing.assert_allclose(entry["probabilities"], p, atol=1e-4)
    classes = np.tile(np.arange(10), (3, 1))
    raw = network.maps(np.stack(images), classes, stage="stage4", methods=["grad-cam"])[:, :, 0]
    np.testing.assert_allclose(np.load(out / "cams.npz")["raw"], raw, atol=1e-4)
    assert manifest["refused"] == ["one line"]
    page = (out / "pictures.html").read_text()
    shown = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    for entry, maps in zip(shown["pictures"], raw, strict=True):
        assert [layer == "" for layer in entry["layers"]] == [(m <= 0).all() for m in maps]
        for layer, m in zip(entry["layers"], maps, strict=True):
            if layer:
                heat = np.asarray(cam.to_image(m, (64, 64)))
                np.testing.assert_array_equal(decoded(layer), cam.JET[(255 * heat).astype(np.uint8)])
    with pytest.raises(UserError, match="exists"):
        own.write(out, network, given, [], stage="stage4", method="grad-cam", reference=sample, overwrite=False)


@pytest.mark.slow
def test_what_pictures_are_compared_with_is_of_all_classes(embedded, sample, monkeypatch):
    """Of a folder, which comes class by class, more than the first thousand images."""
    order = np.argsort(sample.train.labels, kind="stable")
    by_class = dataclasses.replace(sample, train=sample.train.take(order), test=sample.test.take(order))
    monkeypatch.setattr(own, "REFERENCE", 300)
    limits = [own.distance(embedded, sample.test.images[:5], each)[1] for each in (by_class, sample)]
    assert limits[0] == pytest.approx(limits[1], rel=0.15)
