"""The status page in headless Chromium: light and dark, on a phone, in Turkish, and with failures."""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import datetime, timedelta

import pytest
from conftest import ENGLISH_TEXT, TURKISH_TEXT, tiny
from generators import GREEDY, writer
from model_manager.server import ServerConfig, create_app
from servers import MODELS, running

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine
PATIENCE = 30_000
"""Milliseconds for the page to show a change."""


def missing(reason):
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(f"{reason}; REQUIRE_BROWSER=1 makes this a failure")


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("the package playwright is missing")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        missing("there is no Chromium on the PATH")
    with sync_playwright() as playwright:
        # Chromium's sandbox does not run as root, as in containers; the pages are trusted.
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def busy():
    """A server whose models were used, for tests that do not change it."""
    with (
        writer(cache_size=2000, memory_budget="300MB") as manager,
        running(create_app(ServerConfig(models=MODELS), manager)) as server,
    ):
        manager.register("object", loader=dict)
        manager.get("object")
        for _ in range(2):
            manager.embed([f"{TURKISH_TEXT} {n}" for n in range(1200)], "tiny")
        manager.complete("Merhaba", **GREEDY, max_new_tokens=20, min_new_tokens=20)
        yield server


class Page:
    """One tab with its console messages and its requests."""

    def __init__(self, browser, server, path="/", **context):
        self.context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 900}, **context})
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(PATIENCE)
        self.said, self.asked = [], []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.url = server.url + path
        self.tab.goto(self.url)

    def text(self, selector):
        return self.tab.locator(selector).inner_text()

    def wait(self, selector, pattern):
        """Wait until the element's text matches."""
        from playwright.sync_api import expect

        expect(self.tab.locator(selector)).to_have_text(re.compile(pattern), timeout=PATIENCE)

    def row(self, name):
        return self.tab.locator("#models > li", has=self.tab.get_by_role("heading", name=name, exact=True))

    def wait_row(self, name, pattern):
        from playwright.sync_api import expect

        expect(self.row(name)).to_contain_text(re.compile(pattern), timeout=PATIENCE)


@pytest.fixture
def visit(browser):
    """Open a page: `visit(server, **context)`; closed after the test."""
    opened = []

    def open_page(server, path="/", **context):
        opened.append(Page(browser, server, path, **context))
        return opened[-1]

    yield open_page
    for page in opened:
        page.context.close()


def shown(page):
    """The page has its first figures."""
    page.wait("#state", "Serving|Hizmette")
    return page


def test_it_loads_cleanly_and_asks_nobody_else(visit, busy):
    page = shown(visit(busy))
    for _ in range(2):
        with page.tab.expect_response("**/api/status?since=*") as found:
            pass
        assert found.value.ok
    assert page.said == []
    assert len(page.asked) >= 3
    assert all(url.startswith(busy.url) for url in page.asked if not url.startswith("data:"))
    assert page.tab.title() == "Serving · model_manager"


def test_it_shows_what_the_api_says(visit, busy):
    page = shown(visit(busy))
    said = busy.client.get("/api/status").json()
    assert page.text("#cache") == "50%"
    assert page.text("#cache-note") == "1,200 of 2,400 look-ups; 1,200 of 2,000 places"
    assert re.fullmatch(r"20 tokens, \d+ of \d+ guesses right", page.text("#tokens-note"))
    assert page.text("#queue-note").startswith("1,200 texts in ")
    assert page.text("#version") == said["version"]
    assert page.text("#memory-budget") == "286 MiB"
    assert re.fullmatch(r"\d+ MiB", page.text("#memory-process"))
    assert [row.inner_text() for row in page.tab.locator("#models h3").all()] == busy.manager.slots()
    ready = page.row("tiny").inner_text()
    assert "float32" in ready
    assert "32 dimensions" in ready
    assert "in memory" in ready
    assert "stays until unloaded" in ready
    assert "not in memory" in page.row("prompted").inner_text()
    assert page.text("#loads").count("1 load, median") == 3
    for fact in (said["process"]["isa"], str(said["process"]["pid"]), said["process"]["cpu"]):
        assert fact in page.text("#facts")
    assert '"model":"tiny"' in page.text("#example")


def test_it_updates_by_itself(visit, serve):
    server = serve()
    page = shown(visit(server))
    assert page.text("#loads-none") == "Nothing has been loaded yet."
    assert "not in memory" in page.row("tiny").inner_text()
    for _ in range(2):
        server.manager.embed(ENGLISH_TEXT, "tiny")
    page.wait_row("tiny", "(?<!not )in memory")
    page.wait("#cache", "50%")
    server.manager.register("later", MODELS[0].source)
    page.wait_row("later", "not in memory")
    server.manager.unregister("later")
    page.tab.locator("#models > li", has_text="later").wait_for(state="detached")


def test_when_models_are_expected_and_what_was_saved(visit, serve, tmp_path):
    slot = "english_sentence"
    settings = {"keep_alive": "auto", "adaptive_state": str(tmp_path)}
    with tiny(**settings) as manager:
        manager.embed("one text", slot)
    (file,) = tmp_path.iterdir()
    saved = json.loads(file.read_text(encoding="utf-8"))
    soon = datetime.now() + timedelta(hours=1)  # noqa: DTZ005  habits are in local time
    for days in saved["slots"][slot]["daily"]["working"], saved["slots"][slot]["daily"]["weekend"]:
        place = (soon.hour * 60 + soon.minute) // 10
        days["days"], days["used"], days["seen"] = 5.0, [0.0] * 144, [0] * 144
        days["used"][place], days["seen"][place] = 5.0, 0b11111
    file.write_text(json.dumps(saved), encoding="utf-8")
    with tiny(**settings) as manager:
        server = serve(manager)
        page, turkish = shown(visit(server)), shown(visit(server, locale="tr-TR"))
        page.wait_row(slot, r"expected in \d")
        turkish.wait_row(slot, "içinde bekleniyor")
        assert manager.hint(slot)
        page.wait_row(slot, "(?<!not )in memory")
        manager.embed("another text", slot)
        page.wait_row(slot, "1 wait saved")
        turkish.wait_row(slot, "1 bekleme önlendi")


def test_loading_and_unloading_by_hand(visit, serve):
    server = serve()
    page = shown(visit(server))
    page.tab.get_by_role("button", name="Load tiny", exact=True).focus()
    page.tab.keyboard.press("Enter")
    page.wait("#notice", "tiny loaded")
    assert server.manager.is_loaded("tiny")
    # The focus stays where it was after the update that shows the load.
    page.tab.get_by_role("button", name="Unload tiny", exact=True).wait_for()
    assert page.tab.evaluate("document.activeElement.getAttribute('aria-label')") == "Unload tiny"
    page.tab.get_by_role("button", name="Unload tiny", exact=True).click()
    page.wait("#notice", "tiny unloaded")
    assert not server.manager.is_loaded("tiny")
    page.tab.locator("#chart .event").nth(1).wait_for(state="attached")  # drawn with the figures that come next
    assert page.tab.locator("#chart .event").count() == 2
    assert page.said == []


def test_no_buttons_where_they_are_not_allowed(visit, serve):
    page = shown(visit(serve(admin=False)))
    assert page.tab.locator("#models li").count() > 2
    assert page.tab.locator("#models button:visible").count() == 0


def test_a_load_that_fails_says_why(visit, serve, make_manager):
    manager = make_manager()
    manager.register("lost", "/no/such/model")
    page = shown(visit(serve(manager)))
    page.tab.get_by_role("button", name="Load lost").click()
    page.wait("#notice", "lost: .*/no/such/model")
    page.wait_row("lost", "not in memory.*/no/such/model")


def test_names_are_text(visit, serve, make_manager):
    manager = make_manager()
    name = "<img src=x onerror=alert(1)>&lt;'\""
    manager.register(name, "</script><b>bold</b>")
    page = shown(visit(serve(manager)))
    assert name in page.text("#models")
    assert "</script><b>bold</b>" in page.text("#models")
    assert page.tab.locator("#models img, #models b").count() == 0
    assert page.said == []


def test_foreign_scripts_do_not_run(visit, busy):
    page = shown(visit(busy))
    page.tab.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
        }"""
    )
    assert page.tab.evaluate("window.ran") is None
    assert "Content Security Policy" in " ".join(page.said)


@pytest.mark.parametrize("locale", ["tr-TR", "tr"])
def test_turkish_for_who_reads_turkish(visit, busy, locale):
    page = shown(visit(busy, locale=locale))
    assert page.tab.evaluate("document.documentElement.lang") == "tr"
    assert page.text("h1") == "Hizmette"
    assert page.text("#cache") == "%50"
    assert page.text("#cache-note") == "2.400 aramada 1.200 isabet; doluluk 1.200/2.000"
    assert "bellekte değil" in page.row("prompted").inner_text()
    assert page.tab.get_by_role("button", name="Çıkar: tiny").is_visible()
    assert "Merhaba dünya" in page.text("#example")


def test_the_language_can_be_chosen_and_is_remembered(visit, busy):
    page = shown(visit(busy, locale="de-DE"))
    assert page.text("h1") == "Serving"
    page.tab.get_by_role("button", name="Türkçe").click()
    page.wait("h1", "Hizmette")
    assert page.tab.get_by_role("button", name="Türkçe").get_attribute("aria-pressed") == "true"
    page.tab.reload()
    page.wait("h1", "Hizmette")


def test_every_word_exists_in_both_languages(visit, busy):
    page = shown(visit(busy))
    english, turkish = page.tab.evaluate("[Object.keys(WORDS.en), Object.keys(WORDS.tr)]")
    assert english == turkish
    used = page.tab.evaluate(
        "[...document.querySelectorAll('[data-t], [data-aria]')].map(node => node.dataset.t ?? node.dataset.aria)"
    )
    kinds = {"embedding", "reranker", "classifier", "sparse", "generator", "object"}
    assert {*used, *kinds} <= set(english)


CONTRAST = """
() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((part, n) => part * a + below[n] * (1 - a));
  const ground = node => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.push(numbers(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const luminance = color => color.map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, n) => sum + part * [0.2126, 0.7152, 0.0722][n], 0);
  const found = [];
  for (const node of document.querySelectorAll("body *:not(script):not(style):not(noscript)")) {
    const texts = [...node.childNodes].filter(child => child.nodeType === 3 && child.data.trim());
    if (!texts.length || !node.checkVisibility()) continue;
    const below = ground(node);
    const style = getComputedStyle(node);
    const color = over(numbers(node instanceof SVGElement ? style.fill : style.color), below);
    const [light, dark] = [luminance(color), luminance(below)].sort((a, b) => b - a);
    found.push([(light + 0.05) / (dark + 0.05), texts[0].data.trim()]);
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(visit, busy, scheme):
    """WCAG AA: contrast of at least 4.5."""
    page = shown(visit(busy, color_scheme=scheme))
    found = page.tab.evaluate(CONTRAST)
    assert len(found) > 60
    assert [text for contrast, text in found if contrast < 4.5] == []


def test_dark_in_the_dark(visit, busy):
    grounds = [
        shown(visit(busy, color_scheme=scheme)).tab.evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    light, dark = (sum(map(int, re.findall(r"\d+", ground))) for ground in grounds)
    assert light > 700
    assert dark < 100


@pytest.mark.parametrize("width", [320, 360, 560, 820, 1920])
@pytest.mark.parametrize("locale", ["en-US", "tr-TR"])
def test_no_width_scrolls_sideways(visit, busy, width, locale):
    page = shown(visit(busy, locale=locale, viewport={"width": width, "height": 800}))
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= width
    # Every button and figure must end inside the page, because the page does not scroll sideways.
    edges = page.tab.evaluate(
        "[...document.querySelectorAll('button, .figure, h1, h3, .note')].filter(node => node.checkVisibility())"
        ".map(node => node.getBoundingClientRect().right)"
    )
    assert max(edges) <= width
    heights = page.tab.locator(".models .state").evaluate_all(
        "nodes => nodes.map(node => node.getBoundingClientRect().height)"
    )
    assert max(heights) < 30, "one line each"


def test_fingers_hit_the_buttons(visit, busy):
    page = shown(visit(busy, viewport={"width": 360, "height": 800}, has_touch=True))
    for button in page.tab.locator("button:visible").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 24


def test_still_for_who_wants_stillness(visit, busy):
    page = shown(visit(busy, reduced_motion="reduce"))
    page.tab.evaluate("document.getElementById('lamp').className = 'lamp busy'")
    assert page.tab.evaluate("document.getAnimations().length") == 0
    moving = shown(visit(busy, reduced_motion="no-preference"))
    moving.tab.evaluate("document.getElementById('lamp').className = 'lamp busy'")
    assert moving.tab.evaluate("document.getAnimations().length") > 0


def test_the_structure_is_told(visit, busy):
    page = shown(visit(busy))
    for landmark in ("banner", "main", "contentinfo", "navigation"):
        assert page.tab.get_by_role(landmark).count() == 1
    assert page.tab.get_by_role("heading", level=1).count() == 1
    assert page.tab.locator("#notice").get_attribute("aria-live") == "polite"
    names = page.tab.get_by_role("region").evaluate_all(
        "nodes => nodes.map(node => node.getAttribute('aria-label') ?? "
        "document.getElementById(node.getAttribute('aria-labelledby')).textContent)"
    )
    assert names == ["Overview", "Memory", "Load times", "Models", "Try it"]
    page.tab.keyboard.press("Tab")
    assert page.tab.evaluate("document.activeElement.textContent") == "Skip to the figures"


def test_the_chart_is_read_by_keyboard_and_pointer(visit, busy):
    page = shown(visit(busy))
    page.tab.wait_for_function("() => chart.samples.length > 2")
    chart = page.tab.get_by_role("slider", name="Memory over time")
    chart.focus()
    page.tab.keyboard.press("Home")
    first = chart.get_attribute("aria-valuetext")
    assert re.fullmatch(r"\d\d:\d\d:\d\d: process \d+ MiB, models [\d.]+ MiB", first)
    assert page.text("#readout") == first
    page.tab.keyboard.press("ArrowRight")
    assert chart.get_attribute("aria-valuetext") != first
    assert chart.get_attribute("aria-valuenow") == "1"
    page.tab.keyboard.press("Escape")
    assert page.tab.locator("#readout").is_hidden()
    page.tab.hover("#chart", position={"x": 200, "y": 100})
    assert page.tab.locator("#readout").is_visible()
    labels = page.tab.locator("#chart text").all_text_contents()
    assert "0 MiB" in labels
    assert sum(bool(re.fullmatch(r"\d\d:\d\d(:\d\d)?", label)) for label in labels) >= 2


def test_a_key_is_asked_for_once(visit, serve):
    server = serve(api_keys=["right"])
    page = visit(server)
    page.wait("#state", "Locked")
    dialog = page.tab.get_by_role("dialog", name="This server asks for a key")
    assert dialog.is_visible()
    assert "in memory" not in page.text("main")
    for wrong in ("wrong", "ğ"):
        page.tab.get_by_label("API key").fill(wrong)
        page.tab.keyboard.press("Enter")
        page.wait("#key-error", "does not accept")
    page.tab.get_by_label("API key").fill("right")
    page.tab.keyboard.press("Enter")
    shown(page)
    assert dialog.is_hidden()
    assert page.tab.evaluate("[sessionStorage.getItem('key'), localStorage.length]") == ["right", 0]
    assert "$API_KEY" in page.text("#example")
    assert "right" not in page.text("#example")
    page.tab.get_by_role("button", name="Load tiny", exact=True).click()
    page.wait("#notice", "tiny loaded")
    page.tab.reload()
    shown(page)
    assert dialog.is_hidden()
    other = page.context.new_page()
    other.goto(server.url)
    other.get_by_role("dialog").wait_for()


def test_the_question_for_a_key_cannot_be_closed(visit, serve):
    """The browser closes it with the second Escape, and the page has nothing else."""
    page = visit(serve(api_keys=["two words"]))
    page.wait("#state", "Locked")
    dialog = page.tab.get_by_role("dialog")
    for _ in range(4):
        page.tab.keyboard.press("Escape")
        page.tab.wait_for_function("() => document.getElementById('key-dialog').open")
        assert dialog.is_visible()
    page.wait("#state", "Locked")
    page.tab.get_by_label("API key").fill("two words")
    page.tab.keyboard.press("Enter")
    shown(page)
    assert dialog.is_hidden()


def test_a_server_that_is_gone(visit, busy):
    """The page reports it, retries with growing pauses, and continues when the server is back."""
    page = shown(visit(busy))
    page.tab.route("**/api/status*", lambda route: route.abort())
    page.wait("#notice", "does not answer. Trying again in [24] sec")
    page.wait("#state", "Not reachable")
    page.wait("#notice", "Trying again in (4|8|16) sec")
    assert page.tab.locator("body.stale").count() == 1
    page.tab.unroute("**/api/status*")
    page.tab.get_by_role("button", name="Try now").click()
    page.wait("#notice", "answers again")
    page.wait("#state", "Serving")
    assert page.tab.locator("body.stale").count() == 0
    assert page.tab.get_by_role("button", name="Try now").is_hidden()


def test_nothing_is_asked_while_nobody_looks(visit, busy):
    page = shown(visit(busy))
    look = """hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.tab.evaluate(look, True)
    page.tab.wait_for_timeout(500)  # for what is under way
    before = len(page.asked)
    page.tab.wait_for_timeout(4500)
    assert len(page.asked) == before
    with page.tab.expect_request("**/api/status*"):
        page.tab.evaluate(look, False)


def test_a_server_that_drains(visit, serve):
    server = serve()
    page = shown(visit(server))
    server.service.draining = True
    page.wait("#state", "Shutting down")


def test_a_restarted_server_begins_anew(visit, serve):
    page = shown(visit(serve()))
    page.tab.wait_for_function("() => chart.samples.length > 1")
    page.tab.evaluate("last.started -= 1")
    page.tab.wait_for_function("() => polls.length === 1")
    page.tab.wait_for_function("() => polls.length > 1")


def test_under_a_prefix(visit):
    """Inside another application, below a path prefix."""
    from fastapi import FastAPI
    from model_manager.server import router

    with tiny() as manager:
        app = FastAPI()
        app.include_router(router(ServerConfig(models=MODELS), manager), prefix="/ai")
        with running(app) as server:
            page = shown(visit(server, "/ai/"))
            assert f"curl {server.url}/ai/v1/embeddings" in page.text("#example")
            page.tab.get_by_role("button", name="Load tiny", exact=True).click()
            page.wait("#notice", "tiny loaded")
            assert page.said == []


def test_copying_the_example(visit, busy):
    page = shown(visit(busy, permissions=["clipboard-read", "clipboard-write"]))
    page.tab.get_by_role("button", name="Copy").click()
    page.wait("#copy", "Copied")
    assert page.tab.evaluate("navigator.clipboard.readText()") == page.text("#example")
