"""A real browser on a page: opens it, and reports anything that goes wrong there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from capsbench.page import write_page

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@contextmanager
def started_browser() -> Iterator[object]:
    """Chromium without a window; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        # A container's root has no sandbox to offer.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page of reports in the browser."""

    def __init__(self, page, faults, requests):
        self.page = page
        self.faults = faults
        self.requests = requests

    def evaluate(self, code, *given):
        return self.page.evaluate(code, *given)

    def drawn(self, name):
        """The traces of a chart, once it is drawn."""
        self.page.locator(f"#{name}").scroll_into_view_if_needed()
        self.page.wait_for_selector(f"#{name}[data-drawn]", state="attached")
        return self.evaluate("name => document.getElementById(name).data || []", name)

    def points(self, name):
        """Cells of a chart's points, and the values drawn, by place in the page's list."""
        return {
            cell: y
            for trace in self.drawn(name)
            if "customdata" in trace
            for cell, y in zip(trace["customdata"], trace["y"], strict=True)
        }

    def choose(self, name, value):
        """Chooses in a list, and waits until the charts in sight follow."""
        self.page.select_option(f"#{name}", value)
        self.page.wait_for_timeout(150)

    def hover(self, name, cell):
        """Text that the browser shows next to the point of a cell."""
        self.drawn(name)
        self.page.locator(f"#{name}").scroll_into_view_if_needed()
        x, y = self.evaluate(_PLACE, [name, cell])
        self.page.mouse.move(x - 40, y - 40)
        self.page.mouse.move(x, y, steps=4)
        self.page.wait_for_selector(f"#{name} .hoverlayer text", state="attached")
        return "\n".join(self.page.locator(f"#{name} .hoverlayer text").all_text_contents())

    def text(self, selector="body"):
        return self.page.locator(selector).inner_text()


# Where on the screen a cell's point is.
_PLACE = """([name, cell]) => {
  const node = document.getElementById(name);
  const box = node.getBoundingClientRect();
  const { xaxis, yaxis } = node._fullLayout;
  for (const trace of node.data) {
    const place = (trace.customdata || []).indexOf(cell);
    const at = (axis, value) => axis._offset + axis.d2p(value);
    if (place >= 0) return [box.left + at(xaxis, trace.x[place]), box.top + at(yaxis, trace.y[place])];
  }
  throw new Error("no such point");
}"""


class Window:
    """A window of a browser, in which pages are opened one after the other.

    The browser keeps what it has compiled of a page for the next one with the same address, which then takes a third of the time.

    Args:
        browser: browser from `started_browser`.
        path: file of every page.
    """

    def __init__(self, browser, path: Path):
        self.path = path
        self._browser = browser
        self._page = None

    @contextmanager
    def page(self, *, width: int, scheme: str, script: str = "") -> Iterator[object]:
        """A page of this width and scheme, on which no other has left anything; with a `script` in a window of its own."""
        page = self._new(script) if script or self._page is None else self._page
        self._page = None  # a test that fails leaves its page in any state
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(media="null", color_scheme=scheme, forced_colors="null")
        yield page
        if script:
            page.context.close()
            return
        # With another address than that of the next page, which is then no page that is loaded again.
        page.evaluate("() => { localStorage.clear(); history.replaceState(null, '', '#'); }")
        page.mouse.move(0, 0)
        self._page = page

    def _new(self, script: str) -> object:
        page = self._browser.new_context(accept_downloads=True).new_page()
        page.set_default_timeout(60_000)
        page.add_init_script(script)
        return page


@contextmanager
def opened(window: Window, sources, *, width=1400, scheme="light", loose=(), script="") -> Iterator[Opened]:
    """The page of these reports after `script`, open and ready; whatever the console complains of fails the test."""
    write_page(sources, window.path, loose)
    faults: list[str] = []
    requests: list[str] = []
    heard = {
        "console": lambda message: faults.append(message.text) if message.type in ("error", "warning") else None,
        "pageerror": lambda error: faults.append(str(error)),
        "request": lambda request: requests.append(request.url),
    }
    with window.page(width=width, scheme=scheme, script=script) as page:
        for event, hear in heard.items():
            page.on(event, hear)
        page.goto(window.path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        yield Opened(page, faults, requests)
        for event, hear in heard.items():
            page.remove_listener(event, hear)
    assert faults == []
    assert [url for url in requests if not url.startswith(("file:", "blob:", "data:"))] == []
