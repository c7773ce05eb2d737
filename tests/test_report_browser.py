"""The report page in headless Chromium: it opens, filters, sorts and unfolds, by mouse and by keyboard alone, in light
and dark, without an error and without a request."""

import re
import shutil

import pytest
from report_data import HOSTILE, fleet, subject, trace

from persona_dspy.core.interactions import Interaction
from persona_dspy.report.page import report_page
from persona_dspy.report.sources import Subject

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="apt-get install chromium"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Twelve users; ``user-0004`` is hostile in every text it has."""
    users = fleet(12)
    bad = f"user-0004{HOSTILE}"
    made = subject(bad, note=f"long {HOSTILE}", traces=[trace(bad)])
    users[4] = Subject(
        user_id=bad,
        versions=made.versions,
        current=1,
        episodes={"e1": Interaction(user_id=bad, query=HOSTILE, response=HOSTILE, id="e1")},
        traces=made.traces,
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report_page(users, title="Film tags"), encoding="utf-8")
    return path


@pytest.fixture
def page(chromium, file):
    yield from _opened(chromium, file)


def _opened(chromium, path, fragment="", **options):
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, **options)
    context.set_default_timeout(60_000)
    opened = context.new_page()
    wrong, asked = [], []
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(path.as_uri() + fragment)
    opened.wait_for_selector("#rows tr")
    yield opened
    assert not wrong
    assert {url.split("#")[0].split(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert [url.split("#")[0] for url in asked if url.startswith("file:")] == [path.as_uri()]
    assert opened.evaluate("window.hacked") is None
    context.close()


def names(page):
    return page.locator("#rows tr.user th").all_inner_texts()


def test_it_opens_with_every_figure_drawn(page):
    page.wait_for_selector('[data-figure="each"] .main-svg')
    drawn = page.eval_on_selector_all(
        "[data-figure]", "all => all.map(n => [n.dataset.figure, !!n.querySelector('svg')])"
    )
    assert drawn == [["before", True], ["fleet", True], ["each", True], ["map", True], ["similarity", True]]
    assert page.title() == "Film tags"
    assert page.locator("#rows tr.user").count() == 12
    assert page.locator("#cards article").count() == 3 and page.locator("#cards li").count() > 2
    assert "-0" not in page.locator(".plot text").all_text_contents()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing runs out of the page"


def test_it_filters_and_sorts(page):
    page.fill("#search", "USER-000")
    assert page.inner_text("#count") == "10 of 12 users"
    page.select_option("#filter", "worse")
    assert [n[-4:] for n in names(page)] == ["0002", "0005", "0008"]
    page.select_option("#filter", "all")
    page.fill("#search", "")
    page.get_by_role("button", name="gain").click()
    assert page.locator("th[aria-sort=descending]").inner_text() == "gain"
    gains = [float(t.replace("−", "-")) for t in page.locator("#rows tr.user td:nth-child(6)").all_inner_texts()]
    assert gains == sorted(gains, reverse=True) and gains[0] > gains[-1]
    page.get_by_role("button", name="gain").click()
    assert page.locator("th[aria-sort=ascending]").count() == 1
    page.fill("#search", "no such user")
    assert names(page) == [] and page.inner_text("#count") == "0 of 12 users"


def test_a_user_unfolds_with_curve_evidence_and_diff(page):
    page.get_by_role("button", name="user-0000").click()
    sheet = page.locator("#sheet-0")
    sheet.locator(".plot .main-svg").first.wait_for()
    assert "0.25 without a persona" in sheet.inner_text()
    evidence = sheet.get_by_role("button", name="evidence (2)")
    assert "A ghost in the cellar → horror" in evidence.get_attribute("title"), "hovering shows it too"
    assert not sheet.get_by_text("A ghost in the cellar").first.is_visible()
    evidence.click()
    assert sheet.get_by_text("A ghost in the cellar").first.is_visible()
    assert sheet.get_by_text("e9").first.is_visible(), "an episode that is not at hand is named by its id"
    sheet.locator("summary", has_text="Version 1").click()
    change = sheet.locator("details[open] .diff li.revise")
    assert (change.locator("del").inner_text(), change.locator("ins").inner_text()) == ("long", "short")
    sheet.locator("summary", has_text="Step 1").click()
    assert sheet.get_by_text("The user wants shorter answers.").is_visible()
    assert page.url.endswith("#user=user-0000")
    page.get_by_role("button", name="user-0000").first.click()
    assert page.locator("#sheet-0").count() == 0


def test_hostile_text_is_shown_as_text(page):
    page.fill("#search", "0004")
    page.locator("#rows tr.user button").click()
    sheet = page.locator("#sheet-4")
    sheet.locator(".evidence").click()
    for summary in sheet.locator("summary").all():
        summary.click()
    assert "<img src=x onerror=window.hacked=1>" in sheet.inner_text()
    assert sheet.locator("img").count() == 0
    page.locator('[data-figure="map"] .point').nth(4).hover(force=True)
    assert page.locator("img").count() == 0


def test_the_keyboard_alone_is_enough(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("user-0007")
    page.wait_for_function("document.querySelectorAll('#rows tr.user').length === 1")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-controls')") == "sheet-7":
            break
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    seen = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.tagName + ' ' + document.activeElement.innerText"))
        if page.evaluate("document.activeElement.innerText.startsWith('Version 1')"):
            page.keyboard.press("Enter")
            break
    assert page.locator("#sheet-7 details[open] .diff").is_visible()
    assert "BUTTON evidence (2)" in seen


def test_similar_users_and_addresses_lead_to_a_user(page, chromium, file):
    page.fill("#search", "user-0000")
    page.locator("#rows tr.user button").click()
    near = page.locator("#sheet-0 .link", has_text="user-0003")
    near.click()
    assert page.locator("#sheet-3").is_visible() and page.input_value("#search") == ""
    for other in _opened(chromium, file, "#user=user-0009"):
        other.wait_for_selector("#sheet-9")


def test_a_dot_of_the_map_opens_its_user(page):
    page.wait_for_selector('[data-figure="map"] .point')
    page.locator('[data-figure="map"] .point').first.dispatch_event("click")
    page.wait_for_selector("tr.open")
    assert re.search(r"#user=user-0", page.url)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(chromium, file, scheme):
    for page in _opened(chromium, file, color_scheme=scheme):
        page.locator("#rows tr.user button").first.click()
        assert _contrast(page) >= 4.5
        page.click("#theme")
        assert page.evaluate("document.documentElement.dataset.theme") == {"light": "dark", "dark": "light"}[scheme]
        assert _contrast(page) >= 4.5
        ink = page.evaluate("getComputedStyle(document.body).color")
        fill = "getComputedStyle(document.querySelector('[data-figure=before] text')).fill"
        assert page.evaluate(fill) == page.evaluate("getComputedStyle(document.querySelector('.soft')).color")
        page.emulate_media(media="print", color_scheme=scheme)
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 35, 48)", (
            f"print is dark on white, was {ink}"
        )


def _contrast(page):
    """The lowest contrast (WCAG) of soft and coloured text on its card."""
    return page.evaluate(
        """() => {
        const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => {
            v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const ground = (n) => { for (; n; n = n.parentElement) { const c = getComputedStyle(n).backgroundColor;
            if (!/, 0\\)$|transparent/.test(c)) return c; } return 'rgb(255,255,255)'; };
        const nodes = document.querySelectorAll('.soft, .better, .worse, a, button, figcaption p, dt, dd b, th, td');
        return Math.min(...[...nodes].filter((n) => n.offsetParent && !n.matches('.skip, .bar *')).map((n) => {
          const [a, b] = [light(getComputedStyle(n).color), light(ground(n))].sort((x, y) => y - x);
          return (a + 0.05) / (b + 0.05); }));
      }"""
    )


def test_two_thousand_users_open_at_once(chromium, tmp_path):
    path = tmp_path / "many.html"
    path.write_text(report_page(fleet(2000)), encoding="utf-8")
    for page in _opened(chromium, path):
        assert page.locator("#rows tr.user").count() == 50
        assert page.inner_text("#more") == "Show 50 more of 1,950"
        page.click("#more")
        assert page.locator("#rows tr.user").count() == 100
        page.fill("#search", "user-1999")
        page.locator("#rows tr.user button").click()
        page.locator("#sheet-1999 .plot .main-svg").first.wait_for()
        busy = "performance.getEntriesByType('navigation')[0].domComplete"
        assert page.evaluate(busy) < 15_000


@pytest.mark.parametrize("width", [400, 1280, 1920])
def test_it_is_whole_at_every_width_and_personas_are_on_the_first_screen(chromium, file, width):
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.goto(file.as_uri())
    page.wait_for_selector('[data-figure="similarity"] svg')
    assert page.evaluate("document.documentElement.scrollWidth") == width
    hidden = "all => all.filter(n => n.scrollWidth > n.clientWidth + 1).map(n => n.className)"
    assert page.eval_on_selector_all(".plot, .scroll, .card, table", hidden) == []
    assert page.locator("#cards article").first.bounding_box()["y"] < 500
    over = "all => all.filter(t => { const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();"
    over += " return a.right > b.right + 2 || a.left < b.left - 2; }).map(t => t.textContent)"
    assert page.eval_on_selector_all(".plot text", over) == []
    page.close()


def test_a_page_of_fifty_users_is_under_a_megabyte_and_a_mark_opens_its_user(chromium, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report_page(fleet(50), title="Fifty"), encoding="utf-8")
    assert path.stat().st_size < 1_000_000
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto(path.as_uri())
    page.locator('[data-figure="map"] .pick').first.dispatch_event("click")
    page.locator("tr.open").first.wait_for()
    page.close()
