"""Pages in a real browser, and what is to be seen of maps."""

import shutil

import numpy as np
import pytest

from cifar_flax.explaining import cam
from cifar_flax.explaining.network import load

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def network():
    """The embedded one, as it is."""
    return load("compact")


@pytest.fixture(scope="module")
def show(tmp_path_factory):
    """A function of a report: it in headless Chromium. Fails on any error, warning or request over a network."""
    if BROWSER is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    playwright_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        said, asked = [], []

        def show(html, shown=".card"):
            path = tmp_path_factory.mktemp("report") / "report.html"
            path.write_text(html, encoding="utf-8")
            page = browser.new_page(viewport={"width": 1200, "height": 900}, has_touch=True)
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(path.as_uri())
            page.wait_for_selector(shown)
            return page

        yield show
        assert said == []
        assert all(url.startswith(("file:", "data:")) for url in asked)
        browser.close()


@pytest.fixture(scope="session")
def violations():
    """A function of a page: what axe finds wrong for people who cannot see it or use no mouse, a line each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")

    def find(page):
        found = axe.Axe().run(page).response["violations"]
        return [f"{each['id']}: {node['html'][:120]}" for each in found for node in each["nodes"]]

    return find


class Drawn:
    """What is to be seen of maps, worked out without the program's own drawing."""

    @staticmethod
    def enlarged(array, size=256):
        """A map `[h, w]` at `[size, size]`, bilinear between the middles of its places."""
        for _ in range(2):
            n = len(array)
            at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
            array = np.stack([np.interp(at, np.arange(n), column) for column in array.T], axis=0)
        return array

    @staticmethod
    def overlay(image, raw, colors=cam.JET):
        """A class's map over its image, `[256, 256, 3]` of 0 to 255."""

        def unit(x):
            return (x - x.min()) / (1e-7 + np.ptp(x))

        heat = unit(Drawn.enlarged(unit(np.maximum(raw, 0))))
        mixed = colors[(255 * heat).astype(int)] / 510 + image.repeat(8, axis=0).repeat(8, axis=1) / 510
        return 255 * mixed / mixed.max()


@pytest.fixture(scope="session")
def drawn():
    return Drawn
