"""Pages in a real browser."""

import shutil

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


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
