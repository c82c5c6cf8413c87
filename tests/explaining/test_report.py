"""The report in a real browser; what it is given is tested in test_artefacts.py."""

import base64
import dataclasses
import io

import jax
import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from cifar_flax.config import PRESETS
from cifar_flax.data import CIFAR10, Dataset, Split
from cifar_flax.explaining import cam, comparison, outputs, people, report, tables
from cifar_flax.explaining.analysis import Analysis, Selection
from cifar_flax.explaining.evaluation import Evaluation
from cifar_flax.explaining.measures import Pairs
from cifar_flax.explaining.network import prepare
from cifar_flax.explaining.predictions import Predictions
from cifar_flax.explaining.robustness import NAMES as WAYS
from cifar_flax.explaining.robustness import Robustness
from cifar_flax.network import init_params
from cifar_flax.network.build import build_model
from cifar_flax.training.trained import Trained

NAMES = ["airplane", "</script><b>automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


ROWS = [
    {
        "epoch": e,
        "train_loss": 2 / e,
        "test_loss": 2.1 / e,
        "train_accuracy": 0.1 * e,
        "test_accuracy": 0.09 * e,
        "learning_rate": 1,
    }
    for e in (1, 2, 3)
]


def network_with(spec, rows):
    config = dataclasses.replace(PRESETS["compact"], widths=(4,), strides=(4,))
    params = jax.device_get(init_params(build_model(config, spec=spec), jax.random.key(0)))
    return prepare(Trained("<img src=x onerror=alert(1)>", params, config, spec, rows))


def render(analysis, pictures=None):
    return report.render(analysis, outputs.manifest(analysis), pictures or {})


@pytest.fixture(scope="module")
def analysis(sample):
    """200 images with made-up predictions: those at even positions right, the others one class off."""
    count = 200
    rng = np.random.default_rng(0)
    labels = sample.test.labels[:count]
    guesses = np.where(np.arange(count) % 2, (labels + 1) % 10, labels)
    p = rng.uniform(0, 0.1, (count, 10))
    p[np.arange(count), guesses] += rng.uniform(0.2, 1, count)
    p /= p.sum(axis=1, keepdims=True)
    raw = rng.normal(size=(count, 11, 8, 8)).astype(np.float32)
    raw[1, guesses[1]] = -1  # an image without evidence for what it is taken for
    spec = dataclasses.replace(CIFAR10, name="made-up", class_names=tuple(NAMES))
    test = Split(sample.test.images[:count], labels, np.arange(count) * 3)
    predictions = Predictions(np.log(p), spec.class_names, labels)
    # What people say of each: the counts are of the label, and the network's answer at every fourth position.
    counts = 50 * np.eye(10, dtype=int)[labels]
    counts[3::4] += 10 * np.eye(10, dtype=int)[guesses[3::4]]
    said = people.People(counts, None)
    return Analysis(
        network=network_with(spec, ROWS),
        dataset=Dataset(spec, test, test, is_sample=True),
        selection=Selection("stage1"),
        predictions=predictions,
        wrong=np.array([1, 3]),
        correct=np.array([0]),
        shown=np.arange(count),
        classes=np.tile(np.arange(10), (count, 1)),
        maps=raw[:, :10],
        differences=raw[:, 10],
        people=said,
        badges=people.judge(said, predictions),
    )


@pytest.fixture(scope="module")
def raw(analysis):
    """The maps of the ten classes, and of predicted minus true, as one array."""
    return np.concatenate([analysis.maps, analysis.differences[:, None]], axis=1)


@pytest.fixture(scope="module")
def page(show, analysis):
    return show(render(analysis))


def cards(page):
    return [int(card.get_attribute("data-index")) for card in page.locator(".card").all()]


def choose(page, **values):
    for name, value in {
        "kind": "wrong",
        "true": "any",
        "predicted": "any",
        "sort": "index",
        "badge": "any",
        "map": "predicted",
    }.items():
        page.select_option(f"#{name}", values.get(name, value))


def pixels(page, selector):
    url = page.locator(selector).evaluate("canvas => canvas.toDataURL('image/png')")
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as picture:
        return np.array(picture.convert("RGB"))


pytestmark = pytest.mark.slow


def test_page_states_its_figures_and_that_it_is_a_sample(page):
    assert page.title() == "100 of 200 images wrong"
    assert page.locator("#notice").is_visible()
    assert "50.00%" in page.locator("#what").inner_text()
    assert page.locator("#curves svg").count() == 2


@pytest.mark.parametrize("names", [("train",), ("train", "val"), ("train", "val", "test")])
def test_curves_are_of_what_was_measured(names, show, analysis):
    """One line each, over ticks that are round numbers within what is drawn."""
    values = {"loss": (1.9, 1.0, 0.31), "accuracy": (0.12, 0.55, 0.9)}
    rows = [{f"{n}_{what}": v[i] for n in names for what, v in values.items()} | {"epoch": i + 1} for i in range(3)]
    network = network_with(analysis.dataset.spec, rows)
    trained = ["train (augmented)"] * 2
    if len(names) == 3:  # its loss compares with a teacher too
        taught = dataclasses.replace(network.trained.config, teacher="teacher")
        network = dataclasses.replace(network, trained=dataclasses.replace(network.trained, config=taught))
        trained[0] = "train: labels and teacher"
    page = show(render(dataclasses.replace(analysis, network=network)))
    ticks = (["0.5", "1.0", "1.5"], ["20", "40", "60", "80"])
    for svg, scale, train in zip(page.locator("#curves svg").all(), ticks, trained, strict=True):
        legend = {"train": train, "val": "held out", "test": "test"}
        said = [text.text_content() for text in svg.locator("text").all()]
        assert said[:-1] == [*scale, *(legend[name] for name in names)]
        lines = [line.get_attribute("points") for line in svg.locator("polyline").all()]
        assert len(lines) == len(names) and not any("NaN" in line for line in lines)
    page.close()


def test_one_epoch_is_a_point(show, analysis):
    rows = [{"epoch": 1, "train_loss": 2.0, "test_loss": 1.0, "train_accuracy": 0.3, "test_accuracy": 0.5}]
    page = show(render(dataclasses.replace(analysis, network=network_with(analysis.dataset.spec, rows))))
    heights = [float(x.get_attribute("cy")) for x in page.locator("#curves svg:first-of-type circle").all()]
    assert len(heights) == 2 and heights[0] < heights[1]
    page.close()
    rows[0] |= {"test_loss": 2.0, "test_accuracy": 0.3}  # all are one value: it is written beside its line
    page = show(render(dataclasses.replace(analysis, network=network_with(analysis.dataset.spec, rows))))
    ticks = [svg.locator("text").first.text_content() for svg in page.locator("#curves svg").all()]
    assert ticks == ["2", "30"]
    assert "loss, 1 epoch" in page.locator("#curves").text_content()
    page.close()


def test_strings_are_shown_as_text_never_run(page):
    assert page.locator("img, b").count() == 0
    assert "<img src=x onerror=alert(1)>" in page.locator("#origin").inner_text()
    assert "</script><b>automobile" in page.locator("#classes").inner_text()


def test_wrong_predictions_come_first_in_order(page):
    choose(page)
    assert cards(page) == [3 * position for position in range(1, 120, 2)]
    assert page.locator("#count").inner_text() == "100 images, the first 60 below"
    page.click("#more")
    assert page.locator("#count").inner_text() == "100 images"
    assert cards(page) == [3 * position for position in range(1, 200, 2)]
    assert page.locator("#more").is_hidden()


def test_gallery_filters_by_class(page, analysis):
    labels = analysis.predictions.true
    choose(page, true="3")
    assert cards(page) == [3 * i for i in range(200) if i % 2 and labels[i] == 3]
    choose(page, predicted="4")
    assert cards(page) == [3 * i for i in range(200) if i % 2 and labels[i] == 3]
    choose(page, true="3", predicted="5")
    assert cards(page) == [] and page.locator("#count").inner_text() == "0 images"
    choose(page, kind="correct", true="3")
    assert cards(page) == [3 * i for i in range(200) if not i % 2 and labels[i] == 3]


def test_gallery_filters_by_what_people_say(page):
    choose(page, badge=people.SHARED)
    assert cards(page) == [3 * i for i in range(3, 200, 4)]
    assert page.locator(".card").first.locator(".badge").inner_text() == people.SHARED
    choose(page, badge=people.UNANIMOUS)
    assert cards(page) == [3 * i for i in range(1, 200, 4)]
    assert page.locator("#people tbody tr").first.inner_text().split("\t") == ["any", "100", "0", "50", "50", "0"]
    choose(page)


def test_gallery_sorts_by_confidence(page, analysis):
    confidence = analysis.predictions.confidence.round(4)
    for sort, sign in (("confidence", -1), ("doubt", 1)):
        choose(page, sort=sort)
        shown = [sign * confidence[index // 3] for index in cards(page)]
        assert shown == sorted(shown)


def test_the_worst_pairs_come_first_and_open_their_images(page, analysis):
    confusion = analysis.predictions.confusion * (1 - np.eye(10, dtype=int))
    texts = page.locator("#pairs button").all_inner_texts()
    assert [int(text.rpartition(" ")[2]) for text in texts] == sorted(confusion.ravel().tolist(), reverse=True)[:10]
    i, j = np.unravel_index(confusion.argmax(), confusion.shape)
    assert texts[0] == f"{NAMES[i]} taken for {NAMES[j]}: {confusion.max()}"
    page.locator("#pairs button").first.click()
    assert page.locator("#gallery .card").count() == confusion.max()


def test_cells_of_the_confusion_matrix_open_their_images(page, analysis):
    labels = analysis.predictions.true
    choose(page)
    page.locator("#confusion tbody tr").nth(6).locator("button").nth(7).click()
    assert cards(page) == [3 * i for i in range(200) if i % 2 and labels[i] == 6]
    page.locator("#confusion tbody tr").nth(6).locator("button").nth(6).press("Enter")
    assert cards(page) == [3 * i for i in range(200) if not i % 2 and labels[i] == 6]


def test_maps_drawn_are_those_of_the_definition(page, analysis, raw):
    """The page draws with its own few lines of script: they are held against cam.overlay, to a rounding."""
    test = analysis.dataset.test
    choose(page)
    page.locator(".card[data-index='9']").click()
    for which in (2, 5):
        page.locator("#detail-maps button").nth(which).click()
        zoomed = test.images[3].repeat(8, axis=0).repeat(8, axis=1)
        np.testing.assert_array_equal(pixels(page, "#pair canvas:first-child"), zoomed)
        expected = cam.overlay(zoomed / np.float32(255), np.asarray(cam.to_image(raw[3, which], (256, 256))))
        difference = abs(pixels(page, "#pair canvas:last-child").astype(int) - expected)
        # The page keeps a map in 255 steps; a step may cross a border of the colour table.
        assert difference.mean() < 2 and np.percentile(difference, 99) < 12
    page.click("#close")


def test_detail_switches_between_eleven_maps_by_keyboard(page):
    choose(page)
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    buttons = page.locator("#detail-maps button")
    assert buttons.count() == 11
    seen = set()
    for i in range(11):
        buttons.nth(i).focus()
        page.keyboard.press("Enter")
        assert buttons.nth(i).get_attribute("aria-pressed") == "true"
        seen.add(pixels(page, "#pair canvas:last-child").tobytes())
    assert len(seen) == 11
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()


def test_map_without_evidence_is_said_to_be_one(page):
    choose(page)
    page.locator(".card[data-index='3']").click()
    shown, plain = pixels(page, "#pair canvas:last-child"), pixels(page, "#pair canvas:first-child")
    assert shown[:60].max() <= plain[:60].max() / 3 + 1  # darkened, with words in the middle
    assert (shown == 255).all(axis=-1).any()
    page.click("#close")


def test_page_fits_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.set_viewport_size({"width": 1200, "height": 900})


def test_page_follows_the_colour_scheme(page):
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    page.emulate_media(color_scheme="light")
    assert len(set(grounds)) == 2


def test_fine_maps_are_averaged_down():
    maps = np.arange(2 * 11 * 32 * 32, dtype=np.float32).reshape(2, 11, 32, 32)
    pooled = report.pool(maps)
    assert pooled.shape == (2, 11, 16, 16)
    np.testing.assert_allclose(pooled[0, 0, 0, 0], maps[0, 0, :2, :2].mean())
    np.testing.assert_array_equal(report.pool(maps[..., :8, :8]), maps[..., :8, :8])
    pooled = report.pool(maps[..., :17, :17])  # of no factor: a cell is a place and a 16th of the next one
    assert pooled.shape == (2, 11, 16, 16)
    weights = np.array([16.0, 1.0]) / 17
    np.testing.assert_allclose(pooled[0, 0, 0, 0], weights @ maps[0, 0, :2, :2] @ weights, rtol=1e-6)
    np.testing.assert_allclose(pooled.mean((2, 3)), maps[..., :17, :17].mean((2, 3)), rtol=1e-6)


# ---- what is drawn, held against what was given ----------------------------------------------------


@pytest.fixture(scope="module")
def compared(analysis):
    """Another network, made up: right where this one is wrong and the other way round, for some of the images."""
    labels, count = analysis.predictions.true, len(analysis.predictions.true)
    rng = np.random.default_rng(1)
    guesses = np.where(np.arange(count) % 2, labels, (labels + 3) % 10)
    p = rng.uniform(0, 0.1, (count, 10))
    p[np.arange(count), guesses] += rng.uniform(0.2, 1, count)
    p /= p.sum(axis=1, keepdims=True)
    mended, broken = np.arange(1, 100, 2), np.arange(0, 60, 2)
    maps = rng.normal(size=(len(mended) + len(broken), 8, 8)).astype(np.float32)
    theirs = Predictions(np.log(p), analysis.dataset.spec.class_names, labels)
    figures = {"checkpoint": "other one", "model": "smoke", "data": "embedded SAMPLE"}
    figures |= {"definitions": comparison.DEFINITIONS, "slices": []} | comparison.compare(analysis.predictions, theirs)
    return comparison.Comparison(figures, theirs, mended, broken, maps)


@pytest.fixture(scope="module")
def full_page(show, analysis, compared):
    """A page with everything: three epochs held out too, tables of trust with a picture, another network."""
    rows = [
        {"epoch": e, "learning_rate": 0.1}
        | {f"{n}_{k}": v for n, x in (("train", 0.1), ("val", 0.3), ("test", 0.4)) for k, v in values(e, x).items()}
        for e in (1, 2, 3)
    ]
    table = tables.Table("A question", "An answer.", ["name", "value"], [["a", "1"], ["b", "2"]], "picture.png")
    png = io.BytesIO()
    Image.new("RGB", (7, 5), (1, 2, 3)).save(png, "PNG")
    full = dataclasses.replace(
        analysis,
        network=network_with(analysis.dataset.spec, rows),
        evaluation=Evaluation({}, Pairs([], np.zeros(0))),
        comparison=compared,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "of_evaluation", lambda figures: [table])
        html = render(full, {"picture.png": png.getvalue()})
    return show(html), rows


def values(epoch, shift):
    return {"loss": 2.0 / epoch + shift, "accuracy": 0.3 * epoch - 0.1 * shift}


def mapped(image, raw, which, colors=cam.JET):
    """A map over its image at 256x256, by the definition; the difference in blue for positive and orange."""
    zoomed = image.repeat(8, axis=0).repeat(8, axis=1).astype(float)
    if which != 10:
        if (raw <= 0).all():
            return zoomed / 3
        return cam.overlay(zoomed / 255, np.asarray(cam.to_image(raw, (256, 256))), colors).astype(float)
    large = np.asarray(jax.image.resize(raw, (256, 256), "bilinear", antialias=False), float)
    strength = np.minimum(1, 0.8 * abs(large) / abs(raw).max())[..., None]
    colour = np.where(large[..., None] > 0, [45, 109, 181], [179, 88, 6])
    grey = (zoomed @ [0.3, 0.59, 0.11])[..., None]
    return (1 - strength) * grey + strength * colour


def alike(page, selector, expected):
    """Whether a canvas shows a picture: the mean difference of the values, of 255, at the canvas's own size."""
    shown = pixels(page, selector).astype(float)
    step = 256 // shown.shape[0]
    small = expected.reshape(len(shown), step, len(shown), step, 3).mean(axis=(1, 3)) if step > 1 else expected
    return abs(shown - small).mean() < 4


def test_curves_go_through_their_rows(full_page):
    page, rows = full_page
    for svg, name in zip(page.locator("#curves svg").all(), ("loss", "accuracy"), strict=True):
        numbers = [[row[f"{split}_{name}"] for row in rows] for split in ("train", "val", "test")]
        points = [line.get_attribute("points").split() for line in svg.locator("polyline").all()]
        places = np.array([[[float(x) for x in point.split(",")] for point in line] for line in points])
        low, high = np.min(numbers), np.max(numbers)
        np.testing.assert_allclose(places[..., 1], 166 - 154 * (np.array(numbers) - low) / (high - low), atol=0.01)
        np.testing.assert_allclose(places[..., 0], np.tile([40, 226, 412], (3, 1)), atol=0.01)


def test_every_cell_bar_and_figure_is_what_was_given(full_page, analysis):
    page = full_page[0]
    confusion = analysis.predictions.confusion
    cells = page.locator("#confusion tbody tr").all()
    for i, row in enumerate(cells):
        assert [int(x) for x in row.locator("button").all_inner_texts()] == confusion[i].tolist()
        assert row.locator("th").text_content() == NAMES[i]
        label = row.locator("button").nth((i + 1) % 10).get_attribute("aria-label")
        assert label == f"{confusion[i, (i + 1) % 10]} of {NAMES[i]} predicted as {NAMES[(i + 1) % 10]}"
        assert row.locator("button").nth((i + 2) % 10).is_disabled() == (confusion[i, (i + 2) % 10] == 0)
    most = np.max(confusion * (1 - np.eye(10, dtype=int)))
    shades = page.locator("#confusion tbody button").evaluate_all("all => all.map(x => x.style.background)")
    for i, j in np.ndindex(10, 10):
        if i != j:
            alpha = float(shades[10 * i + j].rstrip(")").split(",")[-1])
            assert alpha == pytest.approx(0.6 * confusion[i, j] / most, abs=0.01)
    for i, bar in enumerate(page.locator("#classes .bar").all()):
        share = confusion[i, i] / confusion[i].sum()
        assert bar.inner_text().split("\n")[-1] == f"{100 * share:.1f}%"
        width = bar.locator("span span").evaluate("x => x.style.width")
        assert float(width[:-1]) == pytest.approx(100 * share, abs=0.01)
    words = page.locator("#what").inner_text()
    assert words == (
        "ResNet-6 with LayerNorm, widths 4, strides 4: test accuracy 50.00%, embedded SAMPLE of the made-up test set. "
        "Maps: grad-cam at stage1."
    )
    assert page.locator("#people").inner_text().count("People disagree too: not disputed") == 1
    said = people.summarise(analysis.people, analysis.predictions, analysis.badges)["accuracy"]
    table = [row.inner_text().split("\t") for row in page.locator("#people table").nth(1).locator("tbody tr").all()]
    assert table == [[name, str(x["count"]), f"{100 * x['accuracy']:.1f}%"] for name, x in said.items()]
    table = [row.inner_text().split("\t") for row in page.locator("#trust tbody tr").all()]
    assert table == [["a", "1"], ["b", "2"]] and "An answer." in page.locator("#trust").inner_text()
    assert page.locator("#trust img").evaluate("x => x.decode().then(() => [x.naturalWidth, x.naturalHeight])") == [
        7,
        5,
    ]


@pytest.mark.parametrize("choice", ["predicted", "true", "difference", "none", "4"])
def test_the_gallery_draws_the_map_that_is_chosen(full_page, analysis, raw, choice):
    page, test = full_page[0], analysis.dataset.test
    guesses = analysis.predictions.predicted
    choose(page, map=choice)
    for position in (5, 9, 11):
        which = {"predicted": guesses[position], "true": test.labels[position], "difference": 10}.get(choice, 4)
        original, drawn = (f".card[data-index='{3 * position}'] canvas:{x}-child" for x in ("first", "last"))
        assert alike(page, original, test.images[position].repeat(8, axis=0).repeat(8, axis=1).astype(float))
        assert page.locator(drawn).is_visible() == (choice != "none")
        if choice != "none":
            assert alike(page, drawn, mapped(test.images[position], raw[position, which], which))
    choose(page)


def test_colours_are_those_of_every_map(full_page, analysis, raw, compared):
    """JET at first, and then inferno, as Matplotlib has it: in the galleries, the dialog and its other network."""
    page, test, guesses = full_page[0], analysis.dataset.test, analysis.predictions.predicted
    inferno = np.round(255 * colormaps["inferno"](np.arange(256))[:, :3]).astype(np.uint8)
    assert [option.inner_text() for option in page.locator("#colors option").all()] == ["jet", "inferno"]
    choose(page)
    shown = {
        ".card[data-index='15'] canvas:last-child": (5, raw[5, guesses[5]]),
        "#changed-gallery .card:first-child .trio div:nth-child(3) canvas": (1, compared.maps[0]),
    }
    page.evaluate(f"location.hash = 'image={3 * 1}'")
    page.wait_for_selector("#detail[open]")
    page.locator("#detail-maps button").nth(4).click()
    shown["#pair canvas:last-child"] = (1, raw[1, 4])
    for name, colors in (("inferno", inferno), ("jet", cam.JET)):
        page.locator("#colors").evaluate(
            "(node, name) => { node.value = name; node.dispatchEvent(new Event('change')); }", name
        )
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        for selector, (position, values) in shown.items():
            expected = mapped(test.images[position], values, 0, colors)
            assert alike(page, selector, expected), (name, selector)
    page.click("#close")


def test_the_dialog_is_of_its_image_and_closes(full_page, analysis, raw):
    page, test, p = full_page[0], analysis.dataset.test, analysis.predictions.probabilities
    choose(page)
    page.locator(".card[data-index='15']").click()
    true, guess = NAMES[test.labels[5]], NAMES[p[5].argmax()]
    assert page.locator("#detail-title").inner_text().startswith(f"#15: {true}, taken for {guess}")
    assert page.locator("#detail-title").inner_text().endswith(f"({analysis.badges[5]})")
    for i, button in enumerate(page.locator("#detail-maps button").all()[:10]):
        assert button.inner_text().split("\n")[-1] == f"{100 * round(p[5, i], 4):.1f}%"
    assert page.locator("#detail-maps [aria-pressed='true']").inner_text().startswith(guess)
    page.locator("#detail-maps button").nth(10).click()
    assert alike(page, "#pair canvas:last-child", mapped(test.images[5], raw[5, 10], 10))
    note = page.locator("#detail-note").inner_text()
    assert note.endswith(f": blue speaks for {guess}, orange for {true}.")
    ends = [float(x) for x in note.split("raw values ")[1].split(":")[0].split(" to ")]
    np.testing.assert_allclose(ends, [raw[5, 10].min(), raw[5, 10].max()], rtol=0.02)
    page.locator("#detail-maps button").nth(4).click()
    assert page.locator("#detail-note").inner_text().startswith(f"What speaks for {NAMES[4]}, raw values ")
    page.locator("#detail-title").click()
    assert page.locator("#detail").is_visible()
    page.mouse.click(3, 3)  # beside it
    assert not page.locator("#detail").is_visible()


def test_the_other_networks_gallery_shows_its_own_maps(full_page, analysis, raw, compared):
    page, test = full_page[0], analysis.dataset.test
    ours = analysis.predictions.predicted
    assert page.locator("#compared-title").inner_text() == "Compared with other one (smoke)"
    assert "mended" in page.locator("#compared-tables").inner_text()
    for kind, positions, first in (("mended", compared.mended, 0), ("broken", compared.broken, len(compared.mended))):
        page.select_option("#changed", kind)
        page.select_option("#changed-sort", "index")
        for place in (0, 3):
            i = positions[place]
            card = f"#changed-gallery .card:nth-child({place + 1})"
            texts = page.locator(card).inner_text()
            assert f"#{test.indices[i]}, {NAMES[test.labels[i]]}" in texts
            assert f"this: {NAMES[ours[i]]} {100 * analysis.predictions.confidence[i].round(4):.1f}%" in texts
            theirs = compared.predictions
            sure = f"{100 * theirs.confidence[i].round(4):.1f}%"
            assert f"other: {NAMES[theirs.predicted[i]]} {sure}" in texts
            plain = test.images[i].repeat(8, axis=0).repeat(8, axis=1).astype(float)
            shown = [
                plain,
                mapped(test.images[i], raw[i, ours[i]], 0),
                mapped(test.images[i], compared.maps[first + place], 0),
            ]
            for column, expected in enumerate(shown, start=1):
                if i != 1 or column != 2:  # a zero map, with words on it
                    assert alike(page, f"{card} .trio > div:nth-child({column}) canvas", expected)
        page.select_option("#changed-sort", "confidence")
        surest = positions[np.argsort(-compared.predictions.confidence.round(4)[positions], kind="stable")]
        number = [card.inner_text().split(",")[0] for card in page.locator("#changed-gallery .card").all()]
        assert number == [f"#{test.indices[i]}" for i in surest[:30]]
    i = surest[0]
    page.locator("#changed-gallery .card").first.click()
    place = len(compared.mended) + compared.broken.tolist().index(i)
    assert alike(page, "#detail-other canvas", mapped(test.images[i], compared.maps[place], 0))
    assert (
        f"The other network: {NAMES[compared.predictions.predicted[i]]}," in page.locator("#detail-other").inner_text()
    )
    bars = page.locator("#detail-other .bar").all_inner_texts()
    assert [bar.split("\n")[-1] for bar in bars] == [
        f"{100 * x:.1f}%" for x in compared.predictions.probabilities[i].round(4)
    ]
    page.click("#close")


def test_heat_maps_of_corrupted_images_are_those_that_were_given(show, analysis, compared):
    rng, count = np.random.default_rng(2), np.full(10, 20)
    right, wrong = rng.integers(0, 21, (len(WAYS), 5, 10)), rng.integers(0, 9, (len(WAYS), 5, 10))
    ours = Robustness(tuple(NAMES), 0, count, right, wrong, rng.random((len(WAYS), 5)))
    other = dataclasses.replace(ours, right=right[::-1])
    page = show(render(dataclasses.replace(analysis, comparison=compared, robustness=ours, other_robustness=other)))
    section = page.locator("#robustness")
    for words in tables.about_robustness(ours, other, "embedded SAMPLE of the made-up test set"):
        assert words in section.inner_text()
    for name, pair in tables.of_robustness(ours, other).items():
        page.select_option("#heat-map", name)
        for place, grid in enumerate(pair):
            box = page.locator("#heat-maps > div").nth(place)
            assert [box.locator("h3").inner_text(), box.locator("p").inner_text()] == [grid.title, grid.text]
            assert box.locator("thead th").all_text_contents() == grid.columns
            assert box.locator("tbody th").all_text_contents() == grid.rows
            cells = [row.locator("td").all_text_contents() for row in box.locator("tbody tr").all()]
            assert cells == grid.cells
            colours = box.locator("tbody td").evaluate_all("all => all.map(x => x.style.background)")
            for colour, shade in zip(colours, grid.shades.ravel(), strict=True):
                share = float(colour.split("%")[0].split()[-1])
                assert share == pytest.approx(60 * abs(shade), abs=0.1)
                assert ("--wrong" in colour) == (shade.round(3) > 0)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()
