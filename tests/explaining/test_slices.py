"""Groups of images that fail more often: what is measured, by hand, and how often the right ones are confirmed."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import binomtest, fisher_exact

from cifar_flax.data import similar
from cifar_flax.explaining import comparison, slices, tables
from cifar_flax.explaining.analysis import Selection, analyse
from cifar_flax.explaining.network import load
from cifar_flax.explaining.predictions import Predictions

NAMES = ("ant", "bee", "cow")


def predicted_as(guesses, labels):
    return Predictions(np.eye(3, dtype=np.float32)[guesses], NAMES, labels)


def painted(*colors, side=16):
    """Images of one colour each: uint8 `[N, side, side, 3]`."""
    return np.tile(np.array(colors, np.uint8)[:, None, None], (1, side, side, 1))


def measured(images, maps=None):
    return slices.attributes(images, np.ones((len(images), 4, 4)) if maps is None else maps)


# ---- what is measured ------------------------------------------------------------------------------


def test_colours_of_plain_images():
    found = measured(painted((255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)))
    np.testing.assert_allclose(found["brightness"], [0.299, 0.587, 0.114, 90 / 255], atol=1e-6)
    np.testing.assert_allclose(found["saturation"], [1, 1, 1, 0])
    np.testing.assert_allclose(found["red of the border"], [1, -1, 0, 0])
    np.testing.assert_allclose(found["yellow of the border"], [0.5, 0.5, -1, 0], atol=1e-6)
    for name in ("contrast", "sharpness", "busyness of the border"):
        np.testing.assert_allclose(found[name], 0, atol=1e-6)


def test_the_border_is_an_eighth_of_the_side():
    """Of 16 pixels two: what lies within does not count, and what lies in it does."""
    within, on_it = painted((60, 60, 60)), painted((60, 60, 60))
    within[:, 3:13, 3:13] = (255, 0, 0)
    on_it[:, 2:14, 1] = (255, 0, 0)
    found = measured(np.concatenate([within, on_it]))
    # 112 pixels lie in the border. The gradient reaches one pixel beyond an edge.
    red = np.array([60 * 112, 60 * 100 + 255 * 12]) / 112
    green = np.array([60 * 112, 60 * 100]) / 112
    np.testing.assert_allclose(found["red of the border"], (red - green) / (red + 2 * green), atol=1e-6)
    assert found["busyness of the border"][0] == 0 and found["busyness of the border"][1] > 0


def test_contrast_sharpness_and_busyness_of_stripes():
    """Stripes a pixel wide, of 0 and 1: half the range as deviation, a Laplacian of 2 and -2, and no central gradient.

    Stripes two pixels wide: all Laplacians 1 or -1, and a gradient of half a step at each pixel but the outer columns.
    """
    fine, coarse = painted((0, 0, 0)), painted((0, 0, 0))
    fine[:, :, 1::2] = coarse[:, :, 2::4] = coarse[:, :, 3::4] = 255
    found = measured(np.concatenate([fine, coarse]))
    np.testing.assert_allclose(found["contrast"], 0.5, atol=1e-6)
    np.testing.assert_allclose(found["sharpness"], [4, 1], atol=1e-5)
    # At the outer columns the gradient is one-sided: 1 for fine stripes, 0 for coarse ones. Each column is 16 of 112.
    np.testing.assert_allclose(found["busyness of the border"], [32 / 112, 0.5 * 80 / 112], atol=1e-6)


def test_size_and_place_of_maps():
    maps = np.zeros((4, 4, 4))
    maps[0], maps[1, 0, 0], maps[2, 1:3, 1:3], maps[3] = 3, 2, 1, -1
    found = measured(painted(*4 * [(9, 9, 9)]), maps)
    np.testing.assert_allclose(found["size of the map"], [1, 0, np.log(4) / np.log(16), 0])
    np.testing.assert_allclose(found["place of the map"], [0, np.sqrt(2) * 3 / 8, 0, 0], atol=1e-12)


def test_images_are_measured_each_on_its_own(sample, monkeypatch):
    images, maps = sample.test.images[:50], np.random.default_rng(0).normal(size=(50, 8, 8))
    found = measured(images, maps)
    monkeypatch.setattr(slices, "AT_ONCE", 7)
    for name, values in measured(images, maps).items():
        np.testing.assert_allclose(values, found[name], rtol=1e-5)


# ---- what is found ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_up():
    """A function of a seed: 1,800 images of three classes, measured by chance alone, and 12% wrong by chance."""

    def make(seed):
        rng = np.random.default_rng(seed)
        labels = np.arange(1800) % 3
        values = {name: rng.normal(size=1800) for name in slices.ATTRIBUTES}
        wrong = rng.random(1800) < 0.12
        guesses = np.where(wrong, (labels + rng.integers(1, 3, 1800)) % 3, labels)
        return values, rng.normal(size=(1800, 6)), labels, guesses

    return make


@pytest.mark.slow
def test_of_chance_hardly_anything_is_confirmed(made_up):
    """In at most one run of twenty, though each tries some 200 groups."""
    runs = []
    for seed in range(60):
        values, looks, labels, guesses = made_up(seed)
        found = slices.find(values, looks, predicted_as(guesses, labels), seed)
        runs.append(len(found.confirmed))
        assert found.figures["tried"] % 22 == 0 and found.figures["tried"] >= 3 * 22
    assert np.count_nonzero(runs) <= 3


def test_a_planted_hue_is_found(sample):
    """A third of a class of 1,000 is tinted, and 40% of it wrong where else 10% are: found in nine seeds of ten."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(10):
        images = sample.test.images[rng.permutation(1000)].repeat(3, axis=0)[:, ::2, ::2]
        labels = np.arange(3000) // 3 % 3
        planted = rng.permutation(np.flatnonzero(labels == 1))[:333]
        images[planted] = (images[planted] + np.array([70.0, 0, 0])).clip(0, 255)
        wrong = rng.random(3000) < np.where(np.isin(np.arange(3000), planted), 0.4, 0.1)
        guesses = np.where(wrong, (labels + rng.integers(1, 3, 3000)) % 3, labels)
        looks = similar.thumbnails(images)
        found = slices.find(measured(images), looks, predicted_as(guesses, labels), seed)
        hits += any(one.label == 1 and np.isin(one.positions, planted).mean() > 0.7 for one in found.confirmed)
    assert hits >= 9


def test_images_that_the_network_sees_alike_are_a_group(made_up):
    """A quarter of a class has features of its own and is taken for another class; the words say how it differs."""
    values, looks, labels, guesses = made_up(0)
    odd = np.flatnonzero(labels == 0)[::4]
    looks[odd] += 20
    values["brightness"][odd] += 0.8
    guesses[odd[::2]] = 2
    found = slices.find(values, looks, predicted_as(guesses, labels))
    best = found.confirmed[0]
    assert (best.label, best.taken) == (0, 2) and set(best.positions) <= set(odd)
    assert best.words.startswith("cluster ") and best.words.endswith("(bright)")


def test_rates_and_tests_are_of_the_second_half(made_up):
    """Worked out again from the positions of each group, and from all others of its class in that half."""
    values, looks, labels, guesses = made_up(1)
    dark = values["brightness"] < -0.5
    guesses = np.where(dark & (labels == 2) & (np.arange(1800) % 3 > 0) & (np.arange(1800) % 2 > 0), 0, guesses)
    found = slices.find(values, looks, predicted_as(guesses, labels), 3)
    figures = found.figures
    rows = figures["confirmed"] + figures["not_confirmed"]
    p = np.array([row["p"] for row in rows])
    assert len(rows) == figures["carried"] and (np.diff(p) >= 0).all()
    assert all(row["first_half"]["p"] < 0.05 for row in rows)
    scaled = p * len(p) / np.arange(1, len(p) + 1)
    np.testing.assert_allclose(
        [row["corrected_p"] for row in rows], np.minimum.accumulate(scaled[::-1])[::-1].clip(0, 1)
    )
    assert figures["errors"] == (guesses != labels).sum() and figures["images"] == 1800
    words = [(one.label, one.words) for one in found.confirmed]
    assert (2, "dark") in words
    one, row = found.confirmed[words.index((2, "dark"))], figures["confirmed"][words.index((2, "dark"))]
    of_class = np.flatnonzero(labels == 2)
    limit = max(values["brightness"][one.positions])
    assert row["images"] == len(one.positions) and row["images"] + row["others"] == 300
    assert abs((values["brightness"][of_class] <= limit).mean() - 0.25) < 0.05
    fails = guesses == 0 if one.taken == 0 else guesses != labels
    assert (
        row["rate"]
        == fails[one.positions].mean()
        == slices.failed(predicted_as(guesses, labels), one.positions, one.taken).mean()
    )
    errors = round(row["others_rate"] * row["others"])
    counts = [[row["errors"], row["images"] - row["errors"]], [errors, row["others"] - errors]]
    assert row["p"] == pytest.approx(fisher_exact(counts, "greater")[1])
    interval = binomtest(row["errors"], row["images"]).proportion_ci(method="wilson")
    assert row["interval"] == [interval.low, interval.high]
    both = round(row["first_half"]["rate"] * row["first_half"]["images"]) + row["errors"]
    inside = of_class[values["brightness"][of_class] <= limit]
    assert abs(both - fails[inside].sum()) <= 2  # one image may lie between the halves' limits


def test_of_groups_that_overlap_one_is_kept(made_up):
    values, looks, labels, guesses = made_up(2)
    values["contrast"] = values["brightness"] + 1e-3 * values["contrast"]
    guesses[(values["brightness"] > 0.7) & (labels == 0) & (np.arange(1800) % 2 > 0)] = 1
    words = [
        one.words for one in slices.find(values, looks, predicted_as(guesses, labels)).confirmed if one.label == 0
    ]
    assert len({"bright", "high contrast"} & set(words)) == 1 and words.count(words[0]) == 1


def test_small_classes_and_plain_images_are_no_trouble():
    labels = np.repeat([0, 1, 2], [100, 100, 10])
    images = painted(*210 * [(50, 50, 50)])
    guesses = np.where(np.arange(210) % 5, labels, (labels + 1) % 3)
    found = slices.find(measured(images), similar.thumbnails(images), predicted_as(guesses, labels))
    assert found.confirmed == [] and found.figures["carried"] == 0
    assert found.figures["tried"] == 19 * 4  # of two classes; one cluster; wrong, and taken for the one other class
    assert tables.of_slices(found.figures).text.endswith("With 42 errors only large differences could be confirmed.")


# ---- what becomes of it ----------------------------------------------------------------------------


def test_the_other_network_mends_a_group(made_up):
    labels = np.arange(60) % 3
    ours, theirs = labels.copy(), labels.copy()
    positions = np.arange(0, 60, 6)  # ten images of class 0
    ours[positions[:6]], theirs[positions[5:8]] = 1, [1, 1, 2]
    row = {"class": "ant", "taken_for": "bee", "words": "dark", "images": 10, "rate": 0.6}
    found = slices.Slices([slices.Slice(0, 1, "dark", positions)], {"confirmed": [row]})
    (said,) = comparison.compare_slices(predicted_as(ours, labels), predicted_as(theirs, labels), found)
    assert (said["rate"], said["other_rate"], said["mended"], said["broken"]) == (0.6, 0.2, 5, 1)
    assert said["p"] == pytest.approx(2 * 7 / 64)
    figures = {"definitions": comparison.DEFINITIONS, "data": "made up", "slices": [said]}
    figures |= comparison.compare(predicted_as(ours, labels), predicted_as(theirs, labels))
    table = tables.of_comparison(figures)[-1]
    assert table.rows == [["ant, dark", "taken for bee", "10", "60.0%", "20.0%", "5", "1", "0.22"]]
    assert len(tables.of_comparison(figures | {"slices": []})) == 2


@pytest.fixture(scope="module")
def analysis(sample):
    """Of the sample, where two thirds of the dark ships are wrong, as the network now says."""
    network = load("compact")
    ships = np.flatnonzero(sample.test.labels == 8)
    dark = ships[np.argsort(sample.test.images[ships].mean(axis=(1, 2, 3)))][:30]
    logits = network.predict(sample.test.images).logits.copy()
    logits[ships] = np.eye(10)[8]
    logits[dark[np.arange(30) % 3 > 0]] = np.eye(10)[5]

    class Changed(type(network)):
        def predict(self, images, labels=None, on_batch=lambda count: None):
            return Predictions(logits, sample.spec.class_names, labels)

    changed = Changed(**{field.name: getattr(network, field.name) for field in dataclasses.fields(network)})
    return analyse(changed, sample, Selection(num_wrong=2, neighbours=0))


@pytest.mark.slow
def test_clusters_are_of_what_the_middle_stage_sees(sample, monkeypatch):
    network, few, given = load("compact"), dataclasses.replace(sample, test=sample.test.take(slice(70))), []
    find = slices.find
    monkeypatch.setattr(slices, "find", lambda *arguments: given.append(arguments) or find(*arguments))
    analyse(network, few, Selection(num_wrong=1, neighbours=0))
    (_, features, _) = given[0]
    expected = (
        np.asarray(network.features(network.spec.normalize(few.test.images), stage="stage2"))
        .astype(np.float64)
        .mean(axis=(1, 2))
    )
    np.testing.assert_allclose(features, expected, rtol=0.02, atol=0.02 * expected.std())


@pytest.mark.slow
def test_the_report_shows_each_group(analysis, sample, tmp_path, show):
    manifest = analysis.save(tmp_path / "a")
    found = analysis.slices
    assert manifest["slices"] == json.loads(json.dumps(found.figures))
    number = [(one.label, one.words) for one in found.confirmed].index((8, "dark"))
    one, row = found.confirmed[number], found.figures["confirmed"][number]
    page = show((tmp_path / "a" / "report.html").read_text(encoding="utf-8"))
    assert f"{found.figures['tried']} groups were tried" in page.locator("#slices > p").first.inner_text()
    card = page.locator("#slices article").nth(number)
    assert card.locator("h3").inner_text() == "ship, dark"
    assert card.locator("p").inner_text() == row["sentence"]
    word = "wrong" if one.taken is None else f"taken for {sample.spec.class_names[one.taken]}"
    assert (
        row["sentence"].startswith(f"{100 * row['rate']:.1f}% [")
        and f"{row['images']} images are {word}" in row["sentence"]
    )
    expected = sample.test.indices[one.positions[slices.failed(analysis.predictions, one.positions, one.taken)]]
    visible = [article.is_visible() for article in page.locator("#slices article").all()]
    assert visible == [i < 12 for i in range(len(found.confirmed))]  # the rest is folded
    thumbnails = card.locator(".thumbnail")
    assert thumbnails.count() == min(8, len(expected))
    thumbnails.nth(1).click()
    assert page.locator("#detail-title").inner_text().startswith(f"#{expected[1]}: ship")
    page.keyboard.press("ArrowRight")
    assert page.locator("#detail-title").inner_text().startswith(f"#{expected[2]}: ship")
    page.click("#close")
    card.locator("button.plain").click()
    shown = [int(x.get_attribute("data-index")) for x in page.locator("#gallery .card").all()]
    assert shown == expected.tolist() and page.locator("#count").inner_text() == f"{len(expected)} images"
    page.reload()  # the address has the group
    page.wait_for_selector("#gallery .card")
    assert page.locator("#count").inner_text() == f"{len(expected)} images"
    page.select_option("#slice", "any")
    assert page.locator("#gallery .card").count() > len(expected)
    page.locator("#slices summary").last.click()
    first = page.locator("#slices tbody tr").first.inner_text().split("\t")
    assert first[0] == slices.name_of(found.figures["confirmed"][0]) and len(first) == 9
