"""The network in the report, in a real browser, against the program's."""

import base64
import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from cifar_flax.data import CIFAR10, Dataset
from cifar_flax.explaining import cam, outputs, report
from cifar_flax.explaining.analysis import analyse
from cifar_flax.explaining.network import NO_CLASS, prepare
from cifar_flax.network import ResNet, init_params
from cifar_flax.network.model import param_shapes
from cifar_flax.training import trained

COUNT = 100
TRAINING_MEAN = np.round(255 * np.array(CIFAR10.mean, np.float32)).astype(np.uint8)
NETWORK = "const {network, rawMapOf} = await import('live.js');"
MARKUP = "<img src=x onerror=alert(1)>"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network():
    """The embedded network in float32, as the page computes it; with a class of a strange name."""
    found = trained.load("compact")
    spec = dataclasses.replace(found.spec, class_names=(*found.spec.class_names[:9], MARKUP))
    return prepare(dataclasses.replace(found, spec=spec), "float32")


@pytest.fixture(scope="module")
def analysis(network, sample):
    test = sample.test.take(slice(COUNT))._replace(indices=np.arange(COUNT))
    found = analyse(network, Dataset(network.spec, test, test, is_sample=True))
    everything = np.arange(COUNT)  # also the right predictions that a report leaves out
    classes = np.tile(np.arange(10), (COUNT, 1))
    maps = network.maps(test.images, classes, stage="stage4", methods=["grad-cam"])[:, :, 0]
    predicted, true = found.predictions.predicted, found.predictions.true
    differences = maps[everything, predicted] - maps[everything, true]
    return dataclasses.replace(found, shown=everything, classes=classes, maps=maps, differences=differences)


@pytest.fixture(scope="module")
def test_set(analysis):
    return analysis.dataset.test


@pytest.fixture(scope="module")
def predictions(analysis):
    return analysis.predictions


@pytest.fixture(scope="module")
def logits(predictions):
    return predictions.logits


@pytest.fixture(scope="module")
def raw(analysis):
    return np.concatenate([analysis.maps, analysis.differences[:, None]], axis=1)


@pytest.fixture(scope="module")
def html(analysis):
    return report.render(analysis, outputs.manifest(analysis), {})


@pytest.fixture(scope="module")
def shared_page(show, html):
    return show(html)


@pytest.fixture
def page(shared_page):
    """The page as it is at first, with its first example."""
    shared_page.evaluate("history.replaceState(null, '', location.pathname)")  # the link has what was chosen before
    shared_page.reload()
    shared_page.wait_for_function("document.getElementById('live-status').textContent")
    return shared_page


def rgba(image):
    return np.concatenate([image, np.full((32, 32, 1), 255, np.uint8)], axis=-1).ravel().tolist()


def settled(page):
    """Waits for the frame before which what was asked for is drawn."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def covered(page):
    """The picture as the network in the page is given it, uint8 `[32, 32, 3]`."""
    return np.array(page.evaluate("import('live.js').then(({live}) => Array.from(live.pixels))"), np.uint8).reshape(
        32, 32, 4
    )[..., :3]


def set_range(page, selector, value):
    page.locator(selector).evaluate("(e, value) => { e.value = value; e.dispatchEvent(new Event('input')); }", value)
    settled(page)


def drawn(page, selector):
    url = page.locator(selector).evaluate("canvas => canvas.toDataURL('image/png')")
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as picture:
        return np.array(picture.convert("RGB"))


def first_example(test_set, logits):
    """Position of the wrong prediction that the page begins with: the most confident one."""
    p = softmax(logits.astype(float), axis=1)
    return int(np.argmax(np.where(p.argmax(axis=1) == test_set.labels, 0, p.max(axis=1).round(4))))


def bars(page):
    """Class, probability in percent, and logit, of each bar shown."""
    shown = page.locator("#top button:visible").all()
    return [[button.locator("xpath=./span").nth(i).inner_text() for i in (0, 2, 3)] for button in shown]


def assert_says(page, network, test_set, image):
    """The page shows what the program computes of an image."""
    found = network.predict(image[None])
    (expected,), (p,) = found.logits, found.probabilities
    set_range(page, "#top-count", 10)
    order = np.argsort(-expected)
    for (name, share, logit), c in zip(bars(page), order, strict=True):
        assert name == network.spec.class_names[c]
        assert float(share[:-1]) == pytest.approx(100 * p[c], abs=0.06 + 0.1)
        assert float(logit) == pytest.approx(expected[c], abs=0.006)
    assert page.locator("#live-status").inner_text().startswith(f"{network.spec.class_names[order[0]]}, ")


# ---- the numbers ---------------------------------------------------------------------------------


def test_it_can_be_used_by_all(page, violations):
    assert violations(page) == []


def test_logits_are_the_programs(page, test_set, logits):
    found = [
        page.evaluate(f"async pixels => {{ {NETWORK} return network(pixels).logits; }}", rgba(x))
        for x in test_set.images
    ]
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-3)


def test_maps_are_the_programs(page, test_set, logits, raw):
    targets = np.eye(10)
    for image, label, scores, maps in list(zip(test_set.images, test_set.labels, logits, raw, strict=True))[:30]:
        difference = targets[scores.argmax()] - targets[label]
        found = page.evaluate(
            f"async ([pixels, targets]) => {{ {NETWORK} const found = network(pixels); "
            "return targets.map(target => Array.from(rawMapOf(found, 'stage4', 'grad-cam', target))); }",
            [rgba(image), [*targets.tolist(), difference.tolist()]],
        )
        np.testing.assert_allclose(np.reshape(found, maps.shape), maps, rtol=0, atol=1e-4)


def assert_maps_of_all_stages(page, network, image, given=None):
    """Every method's map at every stage, of three classes and of a difference, against the program's."""
    choices = [(stage, method) for stage in network.stages for method in cam.METHODS]
    targets = np.eye(10)[[3, 5, 8, 3]] - np.eye(10)[[5]] * np.array([[0], [0], [0], [1]])
    found = page.evaluate(
        f"async ([given, pixels, choices, targets]) => {{ {NETWORK} const {{bytes}} = await import('draw.js'); "
        "const {buildNetwork} = await import('network.js'); "
        "const run = given ? buildNetwork(given, bytes(given.parameters)) : network; const found = run(pixels); "
        "return choices.map(([s, m]) => targets.map(target => Array.from(rawMapOf(found, s, m, target)))); }",
        [given, rgba(image), choices, targets.tolist()],
    )
    ours = dict(zip(choices, found, strict=True))
    classes, against = np.array([[3, 5, 8, 3]]), np.array([[NO_CLASS, NO_CLASS, NO_CLASS, 5]])
    for stage in network.stages:
        (maps,) = network.maps(image[None], classes, against=against, stage=stage, methods=[*cam.METHODS])
        for k, method in enumerate(cam.METHODS):
            expected, scale = maps[:, k], abs(maps[:, k]).max()
            shown = np.reshape(ours[stage, method], expected.shape)
            np.testing.assert_allclose(shown, expected, rtol=0, atol=5e-5 * scale)


@pytest.mark.parametrize("position", [0, 7])
def test_maps_of_every_stage_and_method_are_the_programs(page, network, test_set, position):
    assert_maps_of_all_stages(page, network, test_set.images[position])


def with_parameters(network, model, params):
    """The same network of another architecture and other parameters."""
    shape = {"widths": model.widths, "strides": model.strides, "norm": model.norm_kind}
    config = dataclasses.replace(network.trained.config, **shape)
    found = dataclasses.replace(network.trained, params=params, config=config)
    return dataclasses.replace(network, trained=found, model=model, _compiled={})


def build(widths, strides, blocks_per_stage, network, norm="layer"):
    """A network of another shape, with parameters of which none is 0 or 1."""
    model = ResNet(widths, strides, (blocks_per_stage,) * len(widths), spec=network.spec, norm_kind=norm)
    leaves, tree = jax.tree.flatten(init_params(model, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [np.asarray(x + rng.normal(0, 0.1, x.shape), np.float32) for x in leaves])
    return with_parameters(network, model, params)


@pytest.mark.parametrize(("half", "norm"), [(False, "layer"), (True, "layer"), (False, "affine")])
def test_networks_of_other_shapes_are_the_programs(page, network, test_set, half, norm):
    other = build((5, 6, 9), (2, 1, 2), 1, network, norm)
    if half:
        rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), other.params)
        other = with_parameters(other, other.model, rounded)
    given = report.embedded(other)
    assert given["dtype"] == ("float16" if half else "float32")
    found = page.evaluate(
        "async ([given, images]) => { const {bytes} = await import('draw.js'); "
        "const {buildNetwork} = await import('network.js'); "
        "const other = buildNetwork(given, bytes(given.parameters)); "
        "return images.map(pixels => other(pixels).logits); }",
        [given, [rgba(image) for image in test_set.images[:10]]],
    )
    np.testing.assert_allclose(found, other.predict(test_set.images[:10]).logits, rtol=0, atol=1e-3)
    assert_maps_of_all_stages(page, other, test_set.images[0], given)


def test_every_finite_float16_is_read(page):
    expected = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(float)
    numbers = "import('network.js').then(({float16}) => Array.from({length: 2 ** 16}, (_, bits) => float16(bits)))"
    found = np.array(page.evaluate(numbers))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[finite], expected[finite])


def test_page_stays_small(html, network):
    assert len(report.embedded(network)["parameters"]) < 1_000_000 < len(html) < 5_000_000
    assert report.LARGEST_NETWORK * 4 / 3 < 3_000_000


# ---- covering ------------------------------------------------------------------------------------


def test_page_begins_with_the_most_confident_wrong_prediction(page, network, test_set, logits):
    position = first_example(test_set, logits)
    np.testing.assert_array_equal(covered(page), test_set.images[position])
    assert f"#{position}: " in page.locator("#covered-caption").inner_text()
    assert "knows 10 classes" in page.locator("#live-what").inner_text()
    assert_says(page, network, test_set, test_set.images[position])
    assert page.locator("#examples button").count() > 3
    page.locator("#examples button").nth(1).click()
    settled(page)
    assert page.locator("#examples button").nth(1).get_attribute("aria-pressed") == "true"
    assert_says(page, network, test_set, covered(page))


@pytest.mark.parametrize("canvas", ["#covered", "#live-map"])
def test_mouse_covers_on_either_picture(page, network, test_set, logits, canvas):
    image = test_set.images[first_example(test_set, logits)].copy()
    page.locator(canvas).scroll_into_view_if_needed()
    box = page.locator(canvas).bounding_box()
    pixel = box["width"] / 32
    page.mouse.move(box["x"] + 12 * pixel, box["y"] + 16 * pixel)
    page.mouse.down()
    page.mouse.move(box["x"] + 27 * pixel, box["y"] + 16 * pixel)  # in one move, further than the brush is wide
    page.mouse.up()
    page.mouse.move(box["x"] + 4 * pixel, box["y"] + 4 * pixel)  # only moves the brush
    image[12:20, 8:31] = TRAINING_MEAN
    np.testing.assert_array_equal(covered(page), image)
    settled(page)
    assert_says(page, network, test_set, image)
    assert page.locator("#live-before").inner_text().startswith("Uncovered: ")
    shown = image.repeat(8, axis=0).repeat(8, axis=1)
    np.testing.assert_array_equal(drawn(page, "#covered"), shown)
    page.click("#undo")
    np.testing.assert_array_equal(covered(page), test_set.images[first_example(test_set, logits)])
    settled(page)
    assert page.locator("#undo").is_disabled()


def test_map_shown_is_that_of_the_covered_picture(page, network):
    page.select_option("#fill", "grey")
    page.locator("#covered").click()
    settled(page)
    image = covered(page)
    (expected,) = network.predict(image[None]).logits
    guess = np.array([expected.argmax()])
    (maps,) = network.maps(image[None], np.arange(10)[None], stage="stage4", methods=["grad-cam"])[:, :, 0]
    zoomed = image.repeat(8, axis=0).repeat(8, axis=1) / np.float32(255)
    overlay = cam.overlay(zoomed, np.asarray(cam.to_image(maps[guess[0]], (256, 256))))
    difference = abs(drawn(page, "#live-map").astype(int) - overlay)
    assert difference.mean() < 0.5 and np.percentile(difference, 99) < 6


def test_stage_and_method_are_chosen(page, network, test_set, logits, raw):
    position = first_example(test_set, logits)
    assert page.input_value("#live-stage") == "stage4" and page.input_value("#live-method") == "grad-cam"
    names = page.locator("#live-stage option").all_inner_texts(), page.locator("#live-method option").all_inner_texts()
    assert names == (list(network.stages), list(cam.METHODS))
    for stage, method, adds_up in (("stage4", "hires-cam", True), ("stage2", "layer-cam", False)):
        page.select_option("#live-stage", stage)
        page.select_option("#live-method", method)
        settled(page)
        note = page.locator("#live-note").inner_text()
        assert note.startswith(f"{method} at {stage}, raw values") and ("are its logit" in note) == adds_up
    guess = logits[position].argmax()
    image = test_set.images[position]
    (((maps,),),) = network.maps(image[None], np.array([[guess]]), stage="stage2", methods=["layer-cam"])
    zoomed = image.repeat(8, axis=0).repeat(8, axis=1) / np.float32(255)
    overlay = cam.overlay(zoomed, np.asarray(cam.to_image(maps, (256, 256))))
    difference = abs(drawn(page, "#live-map").astype(int) - overlay)
    assert difference.mean() < 0.5 and np.percentile(difference, 99) < 6


def test_finger_covers(page, test_set, logits):
    page.locator("#covered").scroll_into_view_if_needed()
    box = page.locator("#covered").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    image = test_set.images[first_example(test_set, logits)].copy()
    image[12:20, 12:20] = TRAINING_MEAN
    np.testing.assert_array_equal(covered(page), image)
    for canvas in ("#covered", "#live-map"):
        assert page.locator(canvas).evaluate("canvas => getComputedStyle(canvas).touchAction") == "none"


def test_keyboard_covers_and_takes_back(page, network, test_set, logits):
    own = test_set.images[first_example(test_set, logits)]
    said = page.locator("#live-status").inner_text()
    assert page.locator("#live-status").get_attribute("aria-live") == "polite"
    page.locator("#covered").focus()
    set_range(page, "#brush-size", 16)
    for key in ("Shift+ArrowUp", "Shift+ArrowLeft", "ArrowDown", "ArrowRight", "Space"):
        page.keyboard.press(key)
    image = own.copy()
    image[9:25, 9:25] = TRAINING_MEAN
    np.testing.assert_array_equal(covered(page), image)
    settled(page)
    assert page.locator("#live-status").inner_text() != said
    assert_says(page, network, test_set, image)
    outline, brush = (
        page.locator(selector).evaluate(f"e => getComputedStyle(e).{what}")
        for selector, what in (("#covered", "outlineStyle"), ("#covered + .brush", "visibility"))
    )
    assert (outline, brush) == ("solid", "visible")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(covered(page), image)
    page.keyboard.press("Space")
    page.locator("#reset").press("Enter")
    settled(page)
    np.testing.assert_array_equal(covered(page), own)
    assert page.locator("#live-status").inner_text() == said
    assert page.locator("#reset").is_disabled()


def test_colours_of_the_brush(page):
    before = covered(page)
    mean = before.reshape(-1, 3).mean(axis=0)
    for kind, colour in (("grey", [128] * 3), ("picture", mean), ("training", TRAINING_MEAN)):
        page.select_option("#fill", kind)
        page.locator("#covered").press("Space")
        np.testing.assert_allclose(covered(page)[14, 14], colour, atol=0.51)


def test_any_picture_of_the_gallery_can_be_covered(page, test_set):
    page.select_option("#kind", "correct")
    card = page.locator("#gallery .card").nth(2)
    index = int(card.get_attribute("data-index"))
    card.press("Enter")
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    card.press("Enter")
    page.locator("#try").press("Enter")
    assert not page.locator("#detail").is_visible()
    np.testing.assert_array_equal(covered(page), test_set.images[index])
    assert page.evaluate("document.activeElement.id") == "covered"
    settled(page)
    assert page.locator("#live-status").inner_text().endswith(": right")


def test_what_is_said_of_a_picture_is_what_was_computed(page, network, test_set, logits, raw):
    """The words around the picture, before and after a part of it is covered, and what can be chosen."""
    position = first_example(test_set, logits)
    guess, true = logits[position].argmax(), test_set.labels[position]
    name = network.spec.class_names[guess]
    p = softmax(logits.astype(float), axis=1)[position, guess]
    assert (
        page.locator("#live-status").inner_text()
        == f"{name}, {100 * p:.1f}%: wrong, it is {network.spec.class_names[true]}"
    )
    assert page.locator("#live-before").inner_text() == "Nothing is covered."
    assert page.locator("#map-caption").inner_text() == f"what speaks for {name}"
    assert (
        page.locator("#covered-caption").inner_text()
        == f"#{position}: {network.spec.class_names[true]}, taken for {name}"
    )
    maps = raw[position]
    note = page.locator("#live-note").inner_text()
    ends = [float(x) for x in note.split("raw values ")[1].split(". Their")[0].split(" to ")]
    np.testing.assert_allclose(ends, [maps[guess].min(), maps[guess].max()], rtol=0.01, atol=0.001)
    assert f"its logit, {logits[position, guess]:.2f}." in note
    page.select_option("#live-which", "difference")
    settled(page)
    assert (
        page.locator("#map-caption").inner_text() == f"blue: for {name}, orange: for {network.spec.class_names[true]}"
    )
    large = np.asarray(jax.image.resize(maps[10], (256, 256), "bilinear", antialias=False))
    shown = drawn(page, "#live-map").astype(int)
    clear = abs(large) > 0.5 * abs(large).max()
    assert (((shown[..., 2] - shown[..., 0]) > 0) == (large > 0))[clear].mean() > 0.95
    page.locator("#covered").press("Space")
    settled(page)
    (after,) = network.predict(covered(page)[None]).logits
    change = f"whose logit went from {logits[position, guess]:.2f} to {after[guess]:.2f}."
    assert page.locator("#live-before").inner_text() == f"Uncovered: {name}, {100 * p:.1f}%, {change}"
    assert not page.locator("#live-which option[value='difference']").is_disabled()


def test_a_class_less_itself_has_no_map(page, test_set, logits):
    """As where a picture is covered until the network is right."""
    right = int(np.flatnonzero(logits.argmax(axis=1) == test_set.labels)[0])
    page.fill("#go", str(right))
    page.locator("#go").press("Enter")
    page.click("#try")
    page.select_option("#live-which", "difference")
    for method in cam.METHODS:
        page.select_option("#live-method", method)
        settled(page)
        assert page.locator("#live-status").inner_text().endswith(": right")
        assert "no difference" in page.locator("#map-caption").inner_text()
        assert "raw values 0.00 to 0.00" in page.locator("#live-note").inner_text()


def test_examples_are_the_surest_error_of_each_class(page, test_set, logits):
    p, guesses = softmax(logits.astype(float), axis=1).max(axis=1).round(4), logits.argmax(axis=1)
    wrong = np.flatnonzero(guesses != test_set.labels)
    first = [max(wrong[test_set.labels[wrong] == c], key=lambda i: p[i]) for c in np.unique(test_set.labels[wrong])]
    expected = [f"#{i}: " for i in sorted(first, key=lambda i: -p[i])]
    buttons = page.locator("#examples button").all()
    assert [button.get_attribute("title")[: len(e)] for button, e in zip(buttons, expected, strict=True)] == expected
    assert [button.get_attribute("aria-pressed") for button in buttons] == ["true"] + ["false"] * (len(buttons) - 1)


# ---- classes and opacity -------------------------------------------------------------------------


def test_top_classes_are_as_many_as_asked_for_and_choose_the_map(page):
    for count in (1, 3, 10):
        set_range(page, "#top-count", count)
        assert len(bars(page)) == count
    seen = set()
    for i in range(10):
        page.locator("#top button").nth(i).press("Enter")
        assert page.locator("#top [aria-pressed='true']").count() == 1
        seen.add(drawn(page, "#live-map").tobytes())
    assert len(seen) >= 9  # maps without evidence look alike only on one picture
    page.select_option("#live-which", "difference")
    settled(page)
    assert drawn(page, "#live-map").tobytes() not in seen
    assert page.locator("#top [aria-pressed='true']").count() == 0


def test_opacity_is_that_of_every_map(page, test_set, raw):
    page.select_option("#map", "3")
    card = page.locator("#gallery .card").first
    index = int(card.get_attribute("data-index"))
    selectors = [f".card[data-index='{index}'] canvas:last-child", "#pair canvas:last-child", "#live-map"]
    card.click()
    before = [drawn(page, selector) for selector in selectors]
    set_range(page, "#detail .opacity", 20)
    assert {slider.input_value() for slider in page.locator(".opacity").all()} == {"20"}
    after = [drawn(page, selector) for selector in selectors]
    assert all((a != b).mean() > 0.5 for a, b in zip(before, after, strict=True))
    zoomed = test_set.images[index].repeat(8, axis=0).repeat(8, axis=1) / np.float32(255)
    heat = np.asarray(cam.to_image(raw[index, 3], (256, 256)))
    mixed = 0.2 * cam.JET[(255 * heat).astype(np.uint8)] / 255 + 0.8 * zoomed
    difference = abs(after[1] - 255 * mixed / mixed.max())
    assert difference.mean() < 1.5 and np.percentile(difference, 99) < 6


# ---- pictures of one's own -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def photo(sample):
    """Smooth and wide, 301x203."""
    rng = np.random.default_rng(0)
    base = Image.fromarray(sample.test.images[7]).resize((301, 203), Image.Resampling.BICUBIC)
    noisy = np.asarray(base, int) + rng.integers(-30, 31, (203, 301, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def as_pillow_has_it(photo):
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR))


def wait_for_picture(page, name):
    page.wait_for_function("name => document.getElementById('covered-caption').textContent === name", arg=name)
    settled(page)


@pytest.mark.parametrize("size", [(301, 203), (32, 32), (20, 31)])
def test_own_picture_is_brought_to_32x32_as_pillow_does(page, network, test_set, photo, tmp_path, size):
    own = photo.resize(size)
    own.save(tmp_path / "own.png")
    page.select_option("#live-which", "difference")
    page.set_input_files("#file", tmp_path / "own.png")
    wait_for_picture(page, "own.png")
    np.testing.assert_allclose(covered(page).astype(int), as_pillow_has_it(own), atol=1)
    assert_says(page, network, test_set, covered(page))
    assert page.locator("#original").is_visible()
    assert page.locator("#live-which").input_value() == "predicted"  # its class is not known
    assert page.locator("#live-which option[value='difference']").is_disabled()
    shown, side = drawn(page, "#original canvas").astype(int), min(own.size)
    left, top = (own.width - side) // 2, (own.height - side) // 2
    middle = own.crop((left, top, left + side, top + side)).resize((256, 256), Image.Resampling.BILINEAR)
    assert abs(shown - np.asarray(middle, int)).mean() < 12
    assert not page.locator("#live-status").inner_text().endswith(("right", "wrong"))
    page.locator("#covered").press("Space")
    settled(page)
    assert_says(page, network, test_set, covered(page))
    page.locator("#examples button").first.click()
    assert page.locator("#original").is_hidden()


def test_a_large_picture_takes_no_more_memory_than_2048_pixels_a_side(page, photo, tmp_path):
    photo.resize((2600, 2300)).save(tmp_path / "large.png")
    page.evaluate(
        "window.canvases = []; const create = document.createElement.bind(document); document.createElement = "
        "name => { const made = create(name); if (name === 'canvas') canvases.push(made); return made; }"
    )
    page.set_input_files("#file", tmp_path / "large.png")
    wait_for_picture(page, "large.png")
    assert page.evaluate("Math.max(...canvases.map(canvas => canvas.width))") == 2048
    np.testing.assert_allclose(covered(page).astype(int), as_pillow_has_it(photo.resize((2600, 2300))), atol=3)


def test_own_picture_is_turned_as_its_exif_says_and_its_transparent_parts_are_white(page, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
    page.set_input_files("#file", tmp_path / "turned.jpg")
    wait_for_picture(page, "turned.jpg")
    np.testing.assert_allclose(covered(page).astype(int), as_pillow_has_it(photo), atol=4)
    Image.new("RGBA", (50, 40), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    page.set_input_files("#file", tmp_path / "clear.png")
    wait_for_picture(page, "clear.png")
    assert (covered(page) == 255).all()


def test_picture_can_be_dropped_anywhere(page, photo):
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    page.evaluate(
        "async ([text, name]) => { const {bytes} = await import('draw.js'); "
        "const transfer = new DataTransfer(); transfer.items.add(new File([bytes(text)], name)); "
        "for (const type of ['dragover', 'drop']) document.body.dispatchEvent("
        "new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true})); }",
        [base64.b64encode(buffer.getvalue()).decode(), MARKUP],
    )
    wait_for_picture(page, MARKUP)  # as text
    np.testing.assert_allclose(covered(page).astype(int), as_pillow_has_it(photo), atol=1)
    assert page.locator("#live.drop").count() == 0


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n broken"])
def test_broken_file_is_one_line(page, content, photo, tmp_path):
    before, said = covered(page), page.locator("#live-status").inner_text()
    page.set_input_files("#file", {"name": "<b>broken.png", "mimeType": "image/png", "buffer": content})
    page.locator("#live-error").wait_for(state="visible")
    line = page.locator("#live-error").inner_text()
    assert line.startswith("<b>broken.png is no picture") and "\n" not in line
    np.testing.assert_array_equal(covered(page), before)
    assert page.locator("#live-status").inner_text() == said
    photo.save(tmp_path / "own.png")
    page.set_input_files("#file", tmp_path / "own.png")
    wait_for_picture(page, "own.png")
    assert page.locator("#live-error").is_hidden()


# ---- the page ------------------------------------------------------------------------------------


def test_page_with_a_network_fits_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.set_viewport_size({"width": 1200, "height": 900})


def test_strings_are_text(page):
    assert page.locator("img, b").count() == 0


def test_too_large_network_is_one_line(show, html, analysis):
    model = ResNet(spec=analysis.network.spec)
    shapes = param_shapes(model)
    params = jax.tree.map(lambda x: np.full(x.shape, 1 / 3, np.float32), shapes)
    large = with_parameters(analysis.network, model, params)
    other = dataclasses.replace(analysis, network=large)
    without = report.render(other, outputs.manifest(other), {})
    assert len(html) - len(without) > 500_000
    page = show(without)
    assert page.locator("#live-what").inner_text() == (
        "This network's 11,173,962 parameters take 44.7 MB: "
        "too many to run in this page, which holds up to 2 MB of them."
    )
    assert page.locator("#live-tools").is_hidden()
    page.locator("#gallery .card").first.click()
    assert page.locator("#detail").is_visible() and page.locator("#try").is_hidden()
    page.close()
