"""The page in a real browser: it opens, shows its figures, sorts its table, touches no network.

Needs Chromium (`apt-get install chromium`, or Chrome) beside the pinned Playwright that drives it.
"""

import shutil
import socket

import pytest
from test_report import write_hostile

from spos.report.report import write_report
from spos.report.sources import collect

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# As root there is no sandbox; the others keep the browser itself from looking for its maker.
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"there is no browser on this machine (looked for {', '.join(BROWSERS)})")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page that was opened, and what it tried besides showing itself."""

    def __init__(self, browser, path, *, width=1280):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.problems = []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.on("request", self._on_request)
        self.address = path.as_uri()
        self.page.goto(self.address, wait_until="load")

    def _on_request(self, request):
        if request.url != self.address and not request.url.startswith("data:"):
            self.problems.append(request.url)

    def rows(self):
        return self.page.eval_on_selector_all(
            "table.sortable tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.innerText))"
        )


def test_page_opens_quietly_with_every_figure(browser, report):
    visit = Visit(browser, report / "index.html")
    sizes = visit.page.eval_on_selector_all(
        "img", "all => all.map(i => [i.complete, i.naturalWidth, i.clientWidth, i.clientHeight])"
    )
    assert len(sizes) == 11
    for is_complete, natural_width, width, height in sizes:
        assert is_complete and natural_width > 300 and width > 300 and height > 150
    assert visit.page.title() == "Architecture search: nasbench_macro on digits"
    assert visit.problems == []


def test_table_sorts_by_every_column_both_ways(browser, report):
    visit = Visit(browser, report / "index.html")
    before = visit.rows()
    assert len(before) == 17
    buttons = visit.page.locator("table.sortable th button")
    heads = [each.casefold() for each in buttons.all_inner_texts()]
    assert heads[:4] == ["rank", "architecture", "round", "top-1 (%)"]
    for number, head in enumerate(heads):
        orders = []
        for _ in range(2):
            buttons.nth(number).click()
            column = [row[number].replace(",", "") for row in visit.rows()]
            keys = column if head == "architecture" else [float(each) for each in column]
            is_rising = buttons.nth(number).locator("..").get_attribute("aria-sort") == "ascending"
            assert keys == sorted(keys, reverse=not is_rising)
            orders.append(is_rising)
        assert orders[0] != orders[1]
        assert sorted(visit.rows()) == sorted(before)
    assert visit.page.locator("th[aria-sort]").count() == 1
    buttons.first.focus()
    visit.page.keyboard.press("Enter")
    assert visit.rows() == before
    assert visit.problems == []


def test_link_saves_the_architecture(browser, report, demo):
    visit = Visit(browser, report / "index.html")
    with visit.page.expect_download() as caught:
        visit.page.locator("table.sortable a").first.click()
    best = (demo / "search" / "Ab3dE6gH" / "log" / "checkpoints" / "best.json").read_text()
    with open(caught.value.path(), encoding="utf-8") as file:
        assert file.read() == best
    assert caught.value.suggested_filename == f"{visit.rows()[0][1]}.json"


@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
def test_page_is_never_wider_than_the_screen(browser, report, width):
    page = Visit(browser, report / "index.html", width=width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_files_do_nothing_in_the_browser(browser, tmp_path):
    path = write_report(collect([str(write_hostile(tmp_path / "runs"))]), tmp_path / "report")[0]
    visit = Visit(browser, path)
    assert "<script>alert(2)</script>" in visit.page.inner_text("h1")
    assert visit.page.eval_on_selector_all("img", "all => all.every(i => i.naturalWidth > 0)")
    assert visit.problems == []


def test_page_cannot_reach_the_network(browser, report, tmp_path):
    # Even text that slipped through unescaped: the page's policy stops it.
    path, page = tmp_path / "index.html", (report / "index.html").read_text(encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        evil = f"<img src='{address}'><script>window.hacked = 1</script>"
        path.write_text(page.replace("<main>", f"<main>{evil}"))
        visit = Visit(browser, path)
        server.settimeout(0.5)
        with pytest.raises(TimeoutError):
            server.accept()
    assert visit.page.evaluate("window.hacked") is None
    assert sum("Content Security Policy" in each for each in visit.problems) == 2
