"""Figures for a paper: what a reader sees, held against what was drawn."""

import base64
import io
import itertools
import re

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from cifar_flax import commands, load, plots
from cifar_flax.errors import UserError
from cifar_flax.explaining import cam, drawing
from cifar_flax.explaining.maps import Maps

SHORT = ("cat", "automobile")
LONG = tuple(
    f"{name} {i}" for i in range(4) for name in ("great white shark", "Staffordshire bullterrier, dog", "axe")
)


def table(cmap):
    return cam.JET if cmap == "jet" else np.round(255 * colormaps[cmap](np.arange(256))[:, :3]).astype(int)


def difference(drawn, image, raw):
    """What is to be seen of a difference: blue for, orange against, and the grey image where there is neither."""
    share = drawn.enlarged(raw / abs(raw).max())[..., None]
    grey = image.repeat(8, axis=0).repeat(8, axis=1) @ [0.3, 0.59, 0.11]
    colour = np.where(share > 0, [45, 109, 181], [179, 88, 6])
    return (1 - 0.8 * abs(share)) * grey[..., None] + 0.8 * abs(share) * colour


def pictures(svg):
    """The pictures in an SVG, in order, RGB."""
    found = []
    for encoded in re.findall(r'href="data:image/png;base64,\s*([^"]+)"', svg):
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            found.append(np.array(picture.convert("RGB")))
    return found


def nearly(shown, expected):
    """The same but for places where a colour of the table's 256 gives way to the next."""
    return shown.shape == expected.shape and abs(shown - expected).mean() < 1


def columns(rng, count, signed=True):
    raw = rng.normal(size=(3, count, 8, 8)).astype(np.float32)
    names = ("predicted class", "true class", "predicted \u2212 true")
    return [drawing.Column(name, x, name == names[2]) for name, x in zip(names, raw, strict=True)][: 2 + signed]


def labels(count, names=SHORT):
    return [
        ((f"true: {names[i % len(names)]}", ""), (f"predicted: {names[(i + 1) % len(names)]}", f" {i + 1}%"))
        for i in range(count)
    ]


@pytest.mark.parametrize("cmap", drawing.CMAPS)
def test_each_image_stands_beside_its_maps_in_their_colours(sample, rng, tmp_path, cmap, drawn):
    images, shown = sample.test.images[:3], columns(rng, 3)
    shown[0].raw[1] = -1  # no evidence
    shown[2].raw[2] = 0  # no difference
    figure = drawing.maps_figure(images, labels(3), shown, cmap=cmap)
    plots.save_figure(figure, tmp_path / "a.svg")
    found = pictures((tmp_path / "a.svg").read_text())
    assert len(found) == 3 * 4 + 2
    for i, image in enumerate(images):
        zoomed, (first, *maps) = image.repeat(8, axis=0).repeat(8, axis=1), found[4 * i : 4 * i + 4]
        np.testing.assert_array_equal(first, zoomed)
        expected = [drawn.overlay(image, column.raw[i], table(cmap)) for column in shown[:2]]
        expected.append(zoomed // 3 if i == 2 else difference(drawn, image, shown[2].raw[i]))
        if i == 1:
            expected[0] = zoomed // 3
        assert [nearly(a, b) for a, b in zip(maps, expected, strict=True)] == [True] * 3
    heat, signed = found[-2:]
    np.testing.assert_array_equal(heat[0], table(cmap))
    assert nearly(signed[0][[0, -1]], np.array([[194.2, 121.4, 55.8], [87, 138.2, 195.8]]))  # 0.8 of orange and blue
    assert signed[0].min(axis=1)[120:136].min() > 240  # white in the middle
    said = [text.get_text() for text in figure.axes[0].texts if text.get_color() == "white"]
    assert said == ["zero map:\nno evidence", "no\ndifference"]


def test_bars_say_what_the_colours_mean(sample, rng):
    for kinds, expected in (((0,), 1), ((2,), 1), ((0, 2), 2)):
        shown = columns(rng, 1)
        figure = drawing.maps_figure(sample.test.images[:1], labels(1), [shown[kind] for kind in kinds])
        bars = figure.axes[-expected:]
        words = {axes.get_xlabel(): [tick.get_text() for tick in axes.get_xticklabels()] for axes in bars}
        both = {
            "of each map's maximum": ["0", "0.5", "1"],
            "true class \u2190  \u2192 predicted class": ["-1", "0", "1"],
        }
        assert words == {text: ticks for k, (text, ticks) in zip((0, 2), both.items(), strict=True) if k in kinds}
        assert len(figure.axes[0].images) == 1 + len(kinds) and len(figure.axes) == 1 + expected


def boxes(figure):
    """Of everything that is to be seen, its extent in pixels: texts, and the frames of pictures."""
    FigureCanvasAgg(figure).draw()
    texts = {
        (i, text.get_text()): text.get_window_extent()
        for i, text in enumerate(figure.findobj(Text))
        if text.get_text() and text.get_visible() and text.get_color() != "white"
    }
    return texts, dict(enumerate(shown.get_window_extent() for axes in figure.axes for shown in axes.images))


def apart(a, b):
    """Whether two extents have at most half a pixel in common."""
    return min(a.x1, b.x1) - max(a.x0, b.x0) < 0.5 or min(a.y1, b.y1) - max(a.y0, b.y0) < 0.5


@pytest.mark.parametrize("names", [SHORT, LONG], ids=["2 classes", "12 long names"])
@pytest.mark.parametrize("count", [1, 4, 20])
@pytest.mark.parametrize("width", [3, 3.3, 5.5, 7])
def test_nothing_overlaps_or_leaves_the_figure(sample, rng, width, count, names):
    figure = drawing.maps_figure(sample.test.images[:count], labels(count, names), columns(rng, count), width=width)
    figure.set_dpi(300)
    texts, frames = boxes(figure)
    (right, top), everything = figure.bbox.size, [*texts.values(), *frames.values()]
    assert all(box.x0 > -0.5 and box.y0 > -0.5 and box.x1 < right + 0.5 and box.y1 < top + 0.5 for box in everything)
    overlapping = [
        (a, b)
        for (a, first), (b, second) in itertools.combinations([*texts.items(), *frames.items()], 2)
        if not apart(first, second)
    ]
    assert not overlapping
    assert figure.get_figheight() <= 9.5  # a page
    said = [text.get_text() for text in figure.axes[0].texts]
    assert all(
        any(text.endswith(f" {i + 1}%") for text in said) for i in range(count)
    )  # a name is cut, its number not


def test_titles_of_pictures_in_rows_are_cut_and_no_formulas(sample, tmp_path):
    names = ["a$\\foo$ name that is far too long for a picture of two inches, or of three", "b$"]
    drawing.plot_predictions(sample.test.images[:2], names, tmp_path / "a.png", "title")
    figure = drawing.overlay_figure(sample.test.images[:2], [[None]] * 2, names, [["x"]] * 2, "title")
    texts, _ = boxes(figure)
    assert all(apart(a, b) for a, b in itertools.combinations(texts.values(), 2))
    said = [text for _, text in texts]
    assert "b$" in said and any(text.startswith("a$\\foo$ name that") and text.endswith("\u2026") for text in said)


def test_long_names_are_cut_and_stay_where_there_is_room():
    assert drawing.cut("a short name", "", 8, 3) == "a short name"
    text = drawing.cut("a name that is far too long", " 99%", 8, 1)
    assert text.endswith("\u2026 99%") and text.startswith("a name") and len(text) < 22
    assert drawing.cut("abc", " 99%", 8, 0.01) == "\u2026 99%"


@pytest.mark.parametrize("width", [3.3, 5.5])
def test_the_confusion_matrix_has_room_for_its_numbers(rng, width):
    font = plots.font_size(width)
    matrix = rng.poisson(9, (10, 10)) + np.diag(np.full(10, 900))
    figure = drawing.confusion_figure(matrix, [name[:9] for name in LONG[:10]], width=width, font=font)
    figure.set_dpi(300)
    texts, _ = boxes(figure)
    numbers = [box for (_, text), box in texts.items() if text.isdigit()]
    assert len(numbers) == 100 and all(apart(a, b) for a, b in itertools.combinations(numbers, 2))
    assert figure.get_figwidth() == width
    crowded = drawing.confusion_figure(np.eye(40, dtype=int) * 1000, ["a"] * 40, width=width, font=font)
    assert not crowded.axes[0].texts and len(crowded.axes[0].get_xticks()) < 40


# ---- files ---------------------------------------------------------------------------------------


@pytest.fixture
def maps(sample, rng):
    raw = rng.normal(size=(2, 8, 8)).astype(np.float32)
    return Maps(raw, sample.test.images[:2], ["cat", "dog"], ["dog", "dog"], "stage4", "grad-cam")


def test_the_ending_says_the_format_and_fonts_are_inside(maps, tmp_path):
    for name, start in (("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml")):
        maps.save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        assert content.startswith(start)
        maps.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    pdf, svg = (tmp_path / "a.PDF").read_bytes(), (tmp_path / "a.svg").read_text()
    assert pdf.count(b"/FontFile2") == pdf.count(b"/Type /FontDescriptor") > 0 and b"/Type3" not in pdf
    assert "<svg" in svg and "<text" not in svg  # outlines, not a font that may be missing


def test_width_times_dpi_are_the_pixels(maps, tmp_path):
    for width, dpi in ((3.3, 100), (5.5, 200)):
        maps.save(tmp_path / "a.png", width=width, dpi=dpi)
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.width == round(width * dpi)
    with pytest.raises(UserError, match="width is 0: expected 3 to 20 inches"):
        maps.save(tmp_path / "b.png", width=0)
    with pytest.raises(UserError, match="dpi is 10: expected 50 to 600"):
        maps.save(tmp_path / "b.png", dpi=10)
    with pytest.raises(UserError, match="cmap hot is not known: expected one of inferno, viridis, cividis, jet"):
        maps.save(tmp_path / "b.png", cmap="hot")
    assert not (tmp_path / "b.png").exists()


def test_maps_without_an_image_or_of_too_many_are_refused(maps):
    empty = Maps(maps.raw[:0], maps.images[:0], [], [], "stage4", "grad-cam")
    with pytest.raises(UserError, match="there is no image to draw"):
        empty.figure()
    count = 20_000
    raw, images = (np.broadcast_to(x[:1], (count, *x.shape[1:])) for x in (maps.raw, maps.images))
    many = Maps(raw, images, ["a"] * count, ["a"] * count, "stage4", "grad-cam")
    with pytest.raises(UserError, match="20000 images are too many for one figure: choose fewer"):
        many.figure()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A function that calls the command in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    return lambda words: commands.main(["figure", *words.split()])


@pytest.mark.slow
def test_images_stand_in_the_order_asked_for_and_the_caption_says_which(sample, here, tmp_path, capsys, drawn):
    """57 is wrong and 3 is right: the order is not that of what was predicted."""
    network, test = load("compact"), sample.test
    place = [test.indices.tolist().index(index) for index in (57, 3)]
    assert here("--indices 57,3 --maps difference,true --out a.svg --cmap viridis --method hires-cam") == 0
    caption = (tmp_path / "a.svg.txt").read_text()
    assert caption in capsys.readouterr().out
    predictions = network.predict(test.images, test.labels).take(np.array(place))
    names, p = sample.spec.class_names, predictions.confidence
    entries = [
        f"{index}: {names[test.labels[i]]}, predicted as {predictions.names[k]} ({100 * p[k]:.1f}%)"
        for k, (index, i) in enumerate(zip((57, 3), place, strict=True))
    ]
    assert predictions.correct.tolist() == [False, True]
    assert caption.endswith(f" Test images, row by row: {'; '.join(entries)}.\n")
    for word in ("2 images of the embedded SAMPLE of the CIFAR-10 test set", "hires-cam at stage4", "viridis", "blue"):
        assert word in caption
    assert network.trained.digest[:12] in caption
    found = pictures((tmp_path / "a.svg").read_text())
    for k, i in enumerate(place):
        image, true = test.images[i], network.explain(test.images[i : i + 1], int(test.labels[i]), method="hires-cam")
        np.testing.assert_array_equal(found[3 * k], image.repeat(8, axis=0).repeat(8, axis=1))
        assert nearly(found[3 * k + 2], drawn.overlay(image, true.raw[0], table("viridis")))
    guess = network.explain(test.images[place[:1]], method="hires-cam").raw[0]
    true = network.explain(test.images[place[:1]], int(test.labels[place[0]]), method="hires-cam").raw[0]
    assert nearly(found[1], difference(drawn, test.images[place[0]], guess - true))  # HiResCAM is linear in the score
    assert nearly(found[4], test.images[place[1]].repeat(8, axis=0).repeat(8, axis=1) // 3)


@pytest.mark.slow
def test_wrong_predictions_are_chosen_as_explain_chooses_them(sample, here, tmp_path):
    assert here("--true cat --predicted dog --sort confidence --count 3 --out a.png --width 3.3 --dpi 100") == 0
    predictions = load("compact").predict(sample.test.images, sample.test.labels)
    chosen = predictions.select(correct=False, sort="confidence", true=3, predicted=5)[:3]
    caption = (tmp_path / "a.png.txt").read_text()
    assert "wrong predictions of cat as dog, the most confident first" in caption
    listed = re.findall(r"(\d+): cat, predicted as dog", caption)
    assert [int(index) for index in listed] == sample.test.indices[chosen].tolist()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 330 and picture.text["Description"] + "\n" == caption


@pytest.mark.slow
def test_confusion_and_curves_have_figures_too(sample, here, tmp_path):
    assert here("--kind confusion --out a.pdf") == 0
    predictions = load("compact").predict(sample.test.images, sample.test.labels)
    right = f"{predictions.correct.sum()} of 1,000 images are predicted correctly ({100 * predictions.accuracy:.2f}%)"
    assert right in (tmp_path / "a.pdf.txt").read_text()
    assert here("--kind curves --ckpt resnet18 --out b.png --width 3.3 --dpi 100") == 0
    rows = load("resnet18").history
    caption = (tmp_path / "b.png.txt").read_text()
    assert f"in {len(rows)} epochs" in caption and f"{100 * rows[-1]['test_accuracy']:.2f}% on test" in caption
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.width == 330
    before = (tmp_path / "b.png").read_bytes()
    assert here("--kind curves --out b.png") == 2 and (tmp_path / "b.png").read_bytes() == before
    assert here("--kind curves --out b.png --overwrite") == 0 and (tmp_path / "b.png").read_bytes() != before
    assert "compares with labels and with a teacher's answers" in (tmp_path / "b.png.txt").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"a.pdf", "a.pdf.txt", "b.png", "b.png.txt"}


@pytest.mark.slow
def test_a_figure_without_its_caption_is_not_left(here, tmp_path, capsys):
    (tmp_path / ".a.pdf.txt.part").mkdir()  # in the way of the caption
    assert here("--kind curves --out a.pdf") == 2
    assert re.fullmatch(r"error: --out a\.pdf cannot be written: .*; choose another\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == [".a.pdf.txt.part"]
