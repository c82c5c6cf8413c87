"""The report in a real browser; what it is given is tested in tests/e2e/test_explain.py."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from cifar_flax.explaining import cam, people, report
from cifar_flax.explaining.explanation import TestSet as Images

NAMES = ["airplane", "</script><b>automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def arguments(sample):
    """200 images with made-up predictions: those at even positions right, the others one class off."""
    count = 200
    rng = np.random.default_rng(0)
    labels = sample.test_labels[:count]
    guesses = np.where(np.arange(count) % 2, (labels + 1) % 10, labels)
    p = rng.uniform(0, 0.1, (count, 10))
    p[np.arange(count), guesses] += rng.uniform(0.2, 1, count)
    p /= p.sum(axis=1, keepdims=True)
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, guesses), 1)
    raw = rng.normal(size=(count, 11, 8, 8)).astype(np.float32)
    raw[1, guesses[1]] = -1  # an image without evidence for what it is taken for
    manifest = {
        "checkpoint": "<img src=x onerror=alert(1)>",
        "checkpoint_sha256": "0" * 64,
        "model": "compact",
        "layer": "stage4",
        "method": "grad-cam",
        "data": "embedded SAMPLE",
        "test_accuracy": 50.0,
        "test_count": count,
    }
    rows = [
        {"epoch": e, "train_loss": 2 / e, "test_loss": 2.1 / e, "train_acc": 10.0 * e, "test_acc": 9.0 * e}
        for e in (1, 2, 3)
    ]
    test = Images("embedded SAMPLE", sample.test_images[:count], labels, np.arange(count) * 3, NAMES)
    # What people say of each: the counts are of the label, and the network's answer at every fourth position.
    counts = 50 * np.eye(10, dtype=int)[labels]
    counts[3::4] += 10 * np.eye(10, dtype=int)[guesses[3::4]]
    said = people.People(counts, None)
    badges = people.judge(said, labels, guesses)
    manifest["people"] = people.summarise(said, labels, guesses, p.max(axis=1), badges)
    return manifest, rows, confusion, test, np.arange(count), p, raw, badges


@pytest.fixture(scope="module")
def page(show, arguments):
    return show(report.render(*arguments))


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
def test_curves_are_of_what_was_measured(names, show, arguments):
    """One line each, over ticks that are round numbers within what is drawn."""
    values = {"loss": (1.9, 1.0, 0.31), "acc": (12.0, 55.0, 90.0)}
    rows = [{f"{n}_{what}": v[i] for n in names for what, v in values.items()} | {"epoch": i + 1} for i in range(3)]
    page = show(report.render(arguments[0], rows, *arguments[2:]))
    legend = {"train": "train", "val": "held out", "test": "test"}
    for svg, ticks in zip(
        page.locator("#curves svg").all(), (["0.5", "1.0", "1.5"], ["20", "40", "60", "80"]), strict=True
    ):
        said = [text.text_content() for text in svg.locator("text").all()]
        assert said[:-1] == [*ticks, *(legend[name] for name in names)]
        lines = [line.get_attribute("points") for line in svg.locator("polyline").all()]
        assert len(lines) == len(names) and not any("NaN" in line for line in lines)
    page.close()


def test_strings_are_shown_as_text_never_run(page):
    assert page.locator("img, b").count() == 0
    assert "<img src=x onerror=alert(1)>" in page.locator("#origin").inner_text()
    assert "</script><b>automobile" in page.locator("#classes").inner_text()


def test_wrong_predictions_come_first_in_order(page):
    choose(page)
    assert cards(page) == [3 * position for position in range(1, 120, 2)]
    assert page.locator("#count").inner_text() == "100 images"
    page.click("#more")
    assert cards(page) == [3 * position for position in range(1, 200, 2)]
    assert page.locator("#more").is_hidden()


def test_gallery_filters_by_class(page, arguments):
    labels = arguments[3].labels
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


def test_gallery_sorts_by_confidence(page, arguments):
    confidence = arguments[5].max(axis=1).round(4)
    for sort, sign in (("confidence", -1), ("doubt", 1)):
        choose(page, sort=sort)
        shown = [sign * confidence[index // 3] for index in cards(page)]
        assert shown == sorted(shown)


def test_cells_of_the_confusion_matrix_open_their_images(page, arguments):
    labels = arguments[3].labels
    choose(page)
    page.locator("#confusion tbody tr").nth(6).locator("button").nth(7).click()
    assert cards(page) == [3 * i for i in range(200) if i % 2 and labels[i] == 6]
    page.locator("#confusion tbody tr").nth(6).locator("button").nth(6).press("Enter")
    assert cards(page) == [3 * i for i in range(200) if not i % 2 and labels[i] == 6]


def test_maps_drawn_are_those_of_the_definition(page, arguments):
    """The page draws with its own few lines of script: they are held against cam.overlay, to a rounding."""
    test, raw = arguments[3], arguments[6]
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


def test_fine_maps_are_averaged_down(arguments):
    maps = np.arange(2 * 11 * 32 * 32, dtype=np.float32).reshape(2, 11, 32, 32)
    pooled = report._pool(maps)
    assert pooled.shape == (2, 11, 16, 16)
    np.testing.assert_allclose(pooled[0, 0, 0, 0], maps[0, 0, :2, :2].mean())
    np.testing.assert_array_equal(report._pool(maps[..., :8, :8]), maps[..., :8, :8])
