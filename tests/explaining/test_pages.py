"""The pages in a real browser, made of JSON of other numbers of classes and pixels than CIFAR-10's."""

import base64
import io
import re
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from scipy.signal import correlate

from cifar_flax.explaining import cam, pages

pytestmark = pytest.mark.slow

COLUMNS = 7
LONG = "a name of a class as long as nobody would give it, " + "and_with_no_place_to_break_it" * 3


def encoded(array):
    return base64.b64encode(array.tobytes()).decode()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def sheet(images):
    """The images side by side, as the page has them."""
    side = images.shape[1]
    cells = np.pad(images, ((0, -len(images) % COLUMNS), (0, 0), (0, 0), (0, 0)))
    return cells.reshape(-1, COLUMNS, side, side, 3).swapaxes(1, 2).reshape(-1, COLUMNS * side, 3)


class Report:
    """A made-up report: its JSON in `content`, and what that was made of.

    Half of the images are right, those at odd places one class off. Each image has the maps of three classes at most:
    its own, what it is taken for, and the one after.
    """

    def __init__(self, names, side, count=24):
        rng, n = np.random.default_rng(0), len(names)
        self.images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        self.labels = np.arange(count) % n
        self.guesses = np.where(np.arange(count) % 2, (self.labels + 1) % n, self.labels)
        self.p = rng.dirichlet(np.ones(n), count)
        self.classes = [
            sorted({int(t), int(g), int(g + 1) % n}) for t, g in zip(self.labels, self.guesses, strict=True)
        ]
        self.maps = [rng.integers(-127, 128, (len(each) + 1, 4, 4), dtype=np.int8) for each in self.classes]
        self.confusion = np.zeros((n, n), int)
        np.add.at(self.confusion, (self.labels, self.guesses), 1)
        ranks = np.argsort(np.argsort(-self.p[np.arange(count), self.guesses], kind="stable"))
        self.content = {
            "checkpoint": "made up",
            "checkpoint_sha256": "0" * 64,
            "model": "small",
            "stage": "stage1",
            "method": "grad-cam",
            "data": "no data",
            "accuracy": 0.5,
            "count": count,
            "people": None,
            "trust": [],
            "is_sample": False,
            "class_names": names,
            "image_size": side,
            "confusion": self.confusion.tolist(),
            "rows": [],
            "images": [
                {
                    "index": 10 * i,
                    "true": int(self.labels[i]),
                    "predicted": int(self.guesses[i]),
                    "probabilities": self.p[i].round(4).tolist(),
                    "classes": self.classes[i],
                    "ranges": [[int(x.min()), int(x.max())] for x in self.maps[i]],
                    "rank": int(ranks[i]),
                }
                for i in range(count)
            ],
            "sprite": png(sheet(self.images)),
            "sprite_columns": COLUMNS,
            "maps": encoded(np.concatenate(self.maps)),
            "map_shape": [4, 4],
            "colors": {"jet": encoded(cam.JET)},
            "network": None,
        }

    def html(self):
        return pages.render("report.html", self.content)


def pixels(page, selector):
    url = page.locator(selector).first.evaluate("canvas => canvas.toDataURL('image/png')")
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as picture:
        return np.array(picture.convert("RGB"))


def mapped(image, raw, shown):
    """A class's map over its image, by the definition, at the size of what is shown."""
    zoom = len(shown) // len(image)
    zoomed = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return cam.overlay(zoomed / np.float32(255), np.asarray(cam.to_image(raw.astype(np.float32), shown.shape[:2])))


def assert_alike(shown, expected):
    difference = abs(shown.astype(int) - expected)
    assert difference.mean() < 2 and np.percentile(difference, 99) < 12


def cards(page):
    return [int(card.get_attribute("data-index")) for card in page.locator("#gallery .card").all()]


def title(page):
    return page.locator("#detail-title").inner_text().split(":")[0]


def visit(page, fragment):
    """Opens the page anew by a link."""
    address = page.url.split("#")[0]
    page.goto("about:blank")
    page.goto(address + fragment)
    page.wait_for_function("document.getElementById('count').textContent")


def widths(page):
    """How far the page would scroll sideways, at the width of a desk and of a phone."""
    found = []
    for width in (1200, 380):
        page.set_viewport_size({"width": width, "height": 800})
        found.append(page.evaluate("document.documentElement.scrollWidth") - width)
    page.set_viewport_size({"width": 1200, "height": 900})
    return found


@pytest.fixture(scope="module")
def three():
    return Report(["cat & dog", "</script>", "any #1"], 16)


@pytest.fixture(scope="module")
def hundred():
    return Report([LONG, *(f"class number {i}" for i in range(1, 100))], 24, 60)


@pytest.fixture(scope="module")
def three_page(show, three):
    return show(three.html())


@pytest.fixture(scope="module")
def hundred_page(show, hundred):
    return show(hundred.html())


# ---- how a page is joined ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report.html", "pictures.html"])
def test_a_page_holds_each_script_that_it_uses_once(name):
    """And nothing else that a browser would have to fetch."""
    page = pages.render(name, {"a": "</script><!--"})
    (imports,) = re.findall(r'<script type="importmap">(.*?)</script>', page)
    modules = dict(re.findall(r'"(\w+\.js)": ?"data:text/javascript;base64,(.*?)"', imports))
    sources = {module: base64.b64decode(text).decode() for module, text in modules.items()}
    wanted = {wanted for source in sources.values() for wanted in re.findall(r'from "(.+?)"', source)}
    (entry,) = re.findall(r'<script type="module">import "(.+?)";</script>', page)
    assert sources.keys() == wanted | {entry}
    assert not re.search(r'(src|href)="(?!data:)', page) and "<style>" in page
    assert r"\u003c/script>\u003c!--" in page


# ---- links and arrows ----------------------------------------------------------------------------


def test_a_link_leads_to_an_image_and_its_filter(three_page, three):
    page, names = three_page, three.content["class_names"]
    wrong = [10 * i for i in range(1, 24, 2) if three.labels[i] == 1]
    visit(page, f"#image={wrong[1]}&true={quote(names[1])}&predicted={quote(names[2])}")
    assert title(page) == f"#{wrong[1]}" and cards(page) == wrong
    assert [page.locator(f"#{id}").input_value() for id in ("kind", "true", "predicted")] == ["wrong", "1", "2"]
    page.click("#close")
    visit(page, f"#image={wrong[1]}")
    assert title(page) == f"#{wrong[1]}" and len(cards(page)) == 12
    visit(page, "#image=40")  # which is right, and so not among those shown
    assert title(page) == "#40" and 40 not in cards(page)
    assert page.locator("#previous").is_disabled() and page.locator("#next").is_disabled()
    for fragment in ("#image=7&true=nobody&kind=none", "#image=", "#%", "#&&="):
        visit(page, fragment)
        assert not page.locator("#detail").is_visible() and len(cards(page)) == 12


def test_what_is_chosen_is_in_the_link(three_page, three):
    page, names = three_page, three.content["class_names"]
    visit(page, "")
    assert "#" not in page.url
    page.select_option("#true", "0")
    page.select_option("#map", "difference")
    page.select_option("#sort", "doubt")
    page.locator("#gallery .card").nth(1).click()
    opened, shown, link = title(page), cards(page), page.url
    assert page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))") == {
        "image": opened[1:],
        "true": names[0],
        "map": "difference",
        "sort": "doubt",
    }
    page.click("#close")
    page.wait_for_function("!location.hash.includes('image')")
    for choice in ("#true", "#map", "#sort"):
        page.locator(choice).evaluate("e => { e.selectedIndex = 0; e.dispatchEvent(new Event('change')); }")
    assert "#" not in page.url
    page.goto(link)  # another link of the same page: it is not loaded again
    page.locator("#detail").wait_for(state="visible")
    assert title(page) == opened and cards(page) == shown
    page.click("#close")


def test_a_cell_of_the_matrix_makes_a_link(three_page, three):
    page = three_page
    visit(page, "")
    page.locator("#confusion tbody tr").nth(2).locator("button").nth(2).click()
    shown, link = cards(page), page.url
    assert shown == [10 * i for i in range(0, 24, 2) if three.labels[i] == 2]
    visit(page, "#" + link.split("#")[1])
    assert cards(page) == shown


def test_the_number_of_images_says_how_many_are_not_on_the_page(three, show):
    """Of right predictions there are some: the cell of the matrix has all."""
    confusion = three.confusion + 70 * np.eye(3, dtype=int)
    page = show(pages.render("report.html", three.content | {"confusion": confusion.tolist()}))
    page.locator("#confusion tbody tr").nth(2).locator("button").nth(2).click()
    assert page.locator("#count").inner_text() == f"{len(cards(page))} of {confusion[2, 2]} images"
    page.locator("#confusion tbody tr").nth(0).locator("button").nth(1).click()
    assert page.locator("#count").inner_text() == f"{len(cards(page))} images"
    page.close()


def test_the_map_and_the_focus_stay_from_image_to_image(three_page, three):
    page = three_page
    visit(page, "")
    page.locator("#gallery .card").first.click()
    page.locator("#detail-maps button").last.focus()
    page.keyboard.press("Enter")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
        assert page.locator("#detail-note").inner_text().startswith("Predicted minus true")
        assert page.evaluate("document.activeElement.textContent").startswith("pred.")
    page.locator("#previous").focus()
    for _ in range(3):
        page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "previous"
    page.click("#close")
    page.locator("#gallery .card").first.click()
    assert page.locator("#detail-note").inner_text().startswith("What speaks for")
    page.click("#close")


def test_words_are_no_index(three_page):
    visit(three_page, "")
    for typed in (" ", "1e1"):
        three_page.fill("#go", typed)
        three_page.locator("#go").press("Enter")
        assert not three_page.locator("#detail").is_visible()


def test_an_image_is_found_by_its_index(three_page, three):
    index = three.content["images"][4]["index"]
    three_page.fill("#go", str(index))
    three_page.press("#go", "Enter")
    assert title(three_page) == f"#{index}"
    three_page.click("#close")
    three_page.press("#go", "Enter")  # again, as it stands there
    assert title(three_page) == f"#{index}"
    three_page.click("#close")
    counted = three_page.locator("#count").inner_text()
    three_page.fill("#go", "99999")
    three_page.press("#go", "Enter")
    expected = f"Image 99999 is not on this page, which holds {len(three.content['images'])} images."
    assert three_page.evaluate("document.getElementById('go').validationMessage") == expected
    assert three_page.locator("#count").inner_text() == counted and not three_page.locator("#detail").is_visible()
    three_page.fill("#go", f"0{index}")
    three_page.press("#go", "Enter")
    assert title(three_page) == f"#{index}"
    visit(three_page, "")


def test_one_image_is_no_images(hundred_page, hundred):
    visit(hundred_page, "")
    wrong = [image["true"] for image in hundred.content["images"] if image["true"] != image["predicted"]]
    one, none = (next(c for c in range(100) if wrong.count(c) == n) for n in (1, 0))
    for label, text in ((one, "1 image"), (none, "0 images")):
        hundred_page.select_option("#true", str(label))
        assert hundred_page.locator("#count").inner_text() == text
    visit(hundred_page, "")


def test_contents_lead_to_each_section_that_is_shown(three_page):
    shown = three_page.locator("main h2:visible").all_inner_texts()
    assert three_page.locator("#contents button").all_inner_texts() == shown and "Images" in shown
    link = three_page.url
    three_page.click("#contents button:has-text('Images')")
    assert three_page.evaluate("document.activeElement.textContent") == "Images"
    bottom = "innerHeight + scrollY >= document.documentElement.scrollHeight - 1"
    top = three_page.evaluate("document.querySelector('#images h2').getBoundingClientRect().top")
    assert abs(top) < 5 or (0 < top < 900 and three_page.evaluate(bottom))
    assert three_page.evaluate("scrollY") > 0 and three_page.url == link
    three_page.reload()


def test_the_filters_take_one_line_on_a_phone(three_page):
    three_page.set_viewport_size({"width": 380, "height": 800})
    assert three_page.evaluate("document.getElementById('controls').offsetHeight") < 60
    assert three_page.evaluate("document.getElementById('go').getBoundingClientRect().right") < 380
    assert three_page.evaluate("document.documentElement.scrollWidth") <= 380
    three_page.set_viewport_size({"width": 1200, "height": 900})


def test_arrows_go_through_the_gallery(three_page):
    page = three_page
    visit(page, "")
    order = cards(page)
    page.locator("#gallery .card").nth(1).click()
    assert title(page) == f"#{order[1]}"
    page.keyboard.press("ArrowRight")
    assert title(page) == f"#{order[2]}" and f"image={order[2]}" in page.url
    page.locator("#detail-maps button").last.click()
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    assert title(page) == f"#{order[0]}" and page.locator("#previous").is_disabled()
    page.keyboard.press("ArrowLeft")  # there is none
    assert title(page) == f"#{order[0]}"
    for _ in order:
        page.keyboard.press("ArrowRight")
    assert title(page) == f"#{order[-1]}" and page.locator("#next").is_disabled()
    page.click("#previous")
    assert title(page) == f"#{order[-2]}"
    page.click("#next")
    assert title(page) == f"#{order[-1]}"
    page.locator("#detail .opacity").focus()
    page.keyboard.press("ArrowLeft")  # moves the slider
    assert title(page) == f"#{order[-1]}" and page.locator("#detail .opacity").input_value() == "49"
    page.locator("#detail .opacity").press("ArrowRight")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowLeft")
    assert not page.locator("#detail").is_visible()


# ---- other numbers of classes and pixels ---------------------------------------------------------


@pytest.mark.parametrize("which", ["three", "hundred"])
def test_maps_are_of_the_classes_that_an_image_has(request, which):
    report, page = request.getfixturevalue(which), request.getfixturevalue(f"{which}_page")
    visit(page, "")
    for i in (1, 5):
        page.locator(f".card[data-index='{10 * i}']").click()
        buttons = page.locator("#detail-maps button")
        said = [button.inner_text().split("\n")[0] for button in buttons.all()]
        count, is_wrong = len(report.classes[i]), report.guesses[i] != report.labels[i]
        expected = [report.content["class_names"][c] for c in report.classes[i]]
        assert said == expected + ["pred. \N{MINUS SIGN} true"] * int(is_wrong)  # else it is a class less itself
        shares = [button.inner_text().split("\n")[-1] for button in buttons.all()[:count]]
        assert shares == [f"{100 * report.p[i, c].round(4):.1f}%" for c in report.classes[i]]
        for number in range(len(report.classes[i])):
            buttons.nth(number).click()
            shown = pixels(page, "#pair canvas:last-child")
            assert_alike(shown, mapped(report.images[i], report.maps[i][number], shown))
        buttons.last.click()
        raw = report.maps[i][-1 if is_wrong else -2]
        ends = re.search(r"raw values (\S+) to ([-0-9.]+)", page.locator("#detail-note").inner_text())
        assert [float(x) for x in ends.groups()] == [raw.min(), raw.max()]
        page.click("#close")
    offered = page.locator("#map option").evaluate_all("all => all.map(x => x.value)")
    has = {c for each in report.classes for c in each}
    assert offered == ["predicted", "true", "difference", "none", *map(str, sorted(has))]
    for choice, of in (("true", report.labels[5]), ("predicted", report.guesses[5])):
        page.select_option("#map", choice)
        page.locator(".card[data-index='50']").click()
        pressed = page.locator("#detail-maps [aria-pressed='true']").inner_text().split("\n")[0]
        assert pressed == report.content["class_names"][of]
        page.click("#close")


def test_an_image_without_the_chosen_map_is_shown_alone(hundred_page, hundred):
    page = hundred_page
    visit(page, "")
    page.select_option("#map", "2")
    for i in (1, 5):
        shown = pixels(page, f".card[data-index='{10 * i}'] canvas:first-child")
        zoom = len(shown) // 24
        np.testing.assert_array_equal(shown, hundred.images[i].repeat(zoom, axis=0).repeat(zoom, axis=1))
        assert (2 in hundred.classes[i]) == page.locator(f".card[data-index='{10 * i}'] canvas").nth(1).is_visible()
    page.locator(".card[data-index='50']").click()  # the dialog shows the map of what it is taken for
    pressed = page.locator("#detail-maps [aria-pressed='true']")
    assert pressed.inner_text().startswith(hundred.content["class_names"][hundred.guesses[5]])
    page.click("#close")


def test_a_page_of_two_classes(show):
    report = Report(["yes", "no"], 32)
    page = show(report.html())
    rows = [row.locator("button").all_inner_texts() for row in page.locator("#confusion tbody tr").all()]
    assert rows == [[str(x) for x in row] for row in report.confusion]
    page.locator("#gallery .card").first.click()
    assert page.locator("#detail-maps button").count() == 3
    page.click("#close")
    assert max(widths(page)) <= 0
    page.close()


def test_a_page_can_be_read_and_used_by_all(three_page, hundred_page, violations):
    for page in (three_page, hundred_page):
        visit(page, "")
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            assert violations(page) == []
        page.locator("#gallery .card").first.click()
        assert violations(page) == []
        page.click("#close")


def test_a_hundred_classes_and_a_long_name_fit(hundred_page, hundred):
    """The matrix scrolls in its own box, its names stay, and a number is only where there is one."""
    page = hundred_page
    visit(page, "")
    assert max(widths(page)) <= 0
    worst = page.locator("#pairs button").all_inner_texts()
    names, wrong = hundred.content["class_names"], np.flatnonzero(hundred.labels != hundred.guesses)
    first = [f"{names[i]} taken for {names[i + 1]}: 1" for i in hundred.labels[wrong[:10]]]
    assert len(wrong) > 10 and worst == first
    whole = page.locator("#confusion").bounding_box()["width"]
    page.locator("#zoom input").fill("0.5")
    assert page.locator("#confusion").bounding_box()["width"] < 0.6 * whole
    page.locator("#zoom input").fill("1")
    box = page.locator(".scroll:has(#confusion)")
    assert box.evaluate("x => x.scrollWidth > x.clientWidth && x.clientHeight < 900")
    cells = page.locator("#confusion tbody td").all_inner_texts()
    assert cells == [str(x) if x else "" for x in hundred.confusion.ravel()]
    assert page.locator("#confusion button").count() == np.count_nonzero(hundred.confusion)
    box.evaluate("x => { x.scrollLeft = x.scrollTop = 500; }")
    left, top = (box.bounding_box()[side] for side in "xy")
    assert page.locator("#confusion tbody th").nth(50).bounding_box()["x"] == pytest.approx(left, abs=2)
    assert page.locator("#confusion thead").bounding_box()["y"] == pytest.approx(top, abs=2)
    size = page.locator("#confusion tbody td").first.bounding_box()
    assert size["width"] < 30 and size["height"] < 25
    box.evaluate("x => { x.scrollLeft = x.scrollTop = 0; }")
    for width in (1200, 380):
        page.set_viewport_size({"width": width, "height": 800})
        page.select_option("#kind", "all")
        page.locator(".card[data-index='0']").click()
        assert LONG in page.locator("#detail-title").inner_text()
        assert page.locator("#detail").evaluate("x => x.scrollWidth <= x.clientWidth")
        page.click("#close")
    page.set_viewport_size({"width": 1200, "height": 900})


@pytest.fixture(scope="module")
def small_network():
    """A network of one convolution, three classes: parameters by name."""
    rng = np.random.default_rng(1)
    shapes = {
        "conv.kernel": (3, 3, 3, 5),
        "norm.scale": (5,),
        "norm.bias": (5,),
        "linear.kernel": (5, 3),
        "linear.bias": (3,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_network_in_the_page_is_of_other_sizes(show, three, small_network):
    """Three classes, images of 16x16; its logits are held against SciPy's convolution."""
    values = np.concatenate([x.ravel() for x in small_network.values()])
    given = {
        "num_parameters": values.size,
        "bytes": values.nbytes,
        "largest": 2_000_000,
        "dtype": "float32",
        "shapes": {name: x.shape for name, x in small_network.items()},
        "stages": ["stem"],
        "blocks": [],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "parameters": encoded(values),
    }
    page = show(pages.render("report.html", three.content | {"network": given, "stage": "stem"}))
    page.wait_for_function("document.getElementById('live-status').textContent")
    assert "It knows 3 classes (cat & dog, </script>, any #1)" in page.locator("#live-what").inner_text()
    assert page.locator("#top button").count() == 3 and page.locator("#top-count").get_attribute("max") == "3"
    pixels = page.evaluate("import('live.js').then(({live}) => Array.from(live.pixels))")
    image = np.array(pixels).reshape(16, 16, 4)[..., :3]
    x = np.pad((image / 255 - given["mean"]) / given["std"], ((1, 1), (1, 1), (0, 0)))
    kernel = small_network["conv.kernel"]
    x = np.stack([correlate(x, kernel[..., f], "valid")[..., 0] for f in range(5)], axis=-1)
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * small_network["norm.scale"] + small_network["norm.bias"]
    logits = np.maximum(x, 0).mean(axis=(0, 1)) @ small_network["linear.kernel"] + small_network["linear.bias"]
    shown = [float(button.locator("xpath=./span[4]").inner_text()) for button in page.locator("#top button").all()]
    np.testing.assert_allclose(shown, np.sort(logits)[::-1], atol=0.006)
    page.locator("#covered").press("Space")
    covered = np.array(page.evaluate("import('live.js').then(({live}) => Array.from(live.pixels))"))
    changed = (covered.reshape(16, 16, 4)[..., :3] != image).any(axis=-1)
    assert changed[6:10, 6:10].mean() > 0.9 and changed.sum() == changed[6:10, 6:10].sum()
    page.close()


def test_pictures_have_the_maps_of_the_classes_they_were_explained_for(show, hundred):
    square = "data:image/png;base64," + png(hundred.images[0])
    picture = {
        "title": LONG,
        "size": [640, 480],
        "predicted": LONG,
        "probabilities": hundred.p[0].tolist(),
        "distance": 1.0,
        "unlike": True,
        "classes": [7, 3],
        "layers": [square, ""],
        "neighbours": [{"index": 41, "label": LONG, "similarity": 0.876}],
        "nearest": [square],
        **dict.fromkeys(("whole", "middle", "input"), square),
    }
    about = {key: hundred.content[key] for key in ("checkpoint", "checkpoint_sha256", "model", "stage", "method")}
    about |= {"rule": "a rule", "threshold": 0.5, "class_names": hundred.content["class_names"], "image_size": 24}
    page = show(pages.render("pictures.html", about | {"pictures": [picture]}), "article")
    assert page.locator("#known").inner_text().startswith("The network knows 100 classes")
    assert "its middle, 24 x 24" in page.locator("article").inner_text()
    assert page.locator(".neighbour").inner_text() == f"{LONG}, cosine 0.88, #41"
    figures = {figure.inner_text().split("\n")[-1]: figure for figure in page.locator(".maps figure").all()}
    names = [f"class number {c} {100 * hundred.p[0, c]:.1f}%" for c in (7, 3)]
    assert sorted(figures) == sorted(names)
    assert figures[names[0]].locator(".layer").count() == 1 and figures[names[1]].locator(".zero").count() == 1
    assert max(widths(page)) <= 0
    page.close()


# ---- paper ---------------------------------------------------------------------------------------


def test_pictures_with_labels_have_a_matrix_that_chooses_among_them(show, hundred, violations):
    square, names = "data:image/png;base64," + png(hundred.images[0]), ["cat", "dog", "eel"]
    answers = [("cat", "dog"), ("cat", "cat"), ("eel", "dog"), ("cat", "dog")]
    pictures = [
        {
            "title": f"{number}.png",
            "size": [64, 64],
            "true": true,
            "predicted": predicted,
            "probabilities": np.eye(3)[names.index(predicted)].tolist(),
            "unlike": False,
            "classes": [0],
            "layers": [""],
            "neighbours": [],
            "nearest": [],
            **dict.fromkeys(("whole", "middle", "input"), square),
        }
        for number, (true, predicted) in enumerate(answers)
    ]
    matrix = [[sum(pair == (a, b) for pair in answers) for b in names] for a in names]
    about = {key: hundred.content[key] for key in ("checkpoint", "checkpoint_sha256", "model", "stage", "method")}
    about |= {"rule": "", "class_names": names, "image_size": 24, "accuracy": 0.25, "confusion": matrix}
    page = show(pages.render("pictures.html", about | {"pictures": pictures}), "article")
    assert page.locator("#headline").inner_text() == "4 pictures, explained: 1 right, 25.0%"
    rows = [row.locator("button").all_inner_texts() for row in page.locator("#confusion tbody tr").all()]
    assert rows == [[str(x) for x in row] for row in matrix]
    assert page.locator("#pairs button").all_inner_texts() == ["cat taken for dog: 2", "eel taken for dog: 1"]

    def shown():
        return [x.inner_text().partition(":")[0] for x in page.locator("article h2:visible").all()]

    assert shown() == ["0.png", "2.png", "3.png", "1.png"]  # errors first
    page.locator("#pairs button").first.click()
    assert shown() == ["0.png", "3.png"] and page.locator("#chosen").inner_text().startswith("cat, predicted as dog:")
    page.locator("#confusion tbody tr").first.locator("button").first.click()
    assert shown() == ["1.png"]
    page.locator("#chosen button").click()
    assert len(shown()) == 4
    assert violations(page) == []
    page.close()


def test_paper_is_light_and_keeps_shades(three_page):
    page = three_page
    visit(page, "")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(ground) == light
    assert page.locator(".bar span span").first.evaluate("x => getComputedStyle(x).printColorAdjust") == "exact"
    page.emulate_media(media="screen", color_scheme="dark")
    assert page.evaluate(ground) != light
    page.emulate_media(media="screen", color_scheme="light")
