"""The page in a real browser: sort, filter, open, themes, widths, the keyboard, and 10,000 rows.

Needs Chromium with its driver (Debian: `apt-get install chromium chromium-driver`) and selenium; skipped elsewhere.
Screenshots lie in the folder that `TINYLLM_BENCH_SCREENSHOTS` names, if it does.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.fakes import CONFIG, add, flags, make_record, make_reference
from tests.leaderboard.test_page import NASTY, data_of
from tinyllm_bench.leaderboard.board import board_build

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install '.[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver: apt-get install chromium chromium-driver"
    ),
]
WIDTHS = (390, 1440)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board of two tables: `exam` with seven rows (three seeds each for methods), `toy` with two."""
    folder = tmp_path_factory.mktemp("page") / "board"
    (folder / "boards").mkdir(parents=True)
    (folder / "boards" / "main.yaml").write_text(CONFIG)
    teacher = {"spec": "replay:release#big", "gold_visible": True}
    made = [make_reference("guess", None, expected_accuracy=0.25, n=200, task="exam", mode="generate")]
    for name, right, seconds in (("tuned", 90, 59), ("mine", 150, 3840), ("other", 101, 422), (NASTY[:60], 96, 60)):
        for seed in range(3):
            run: dict[str, Any] = {"n": 200, "task": "exam", "mode": "generate", "seed": seed, "unparsed": 3}
            run["budget"] = {"student_tokens": 1_000_000 + right, "seconds": seconds}
            run["teachers"] = [teacher] if name != "tuned" else []
            made.append(make_record(name.strip(), flags(200, right + seed), **run))
    student = {"spec": "dir:chat"}
    made += [make_record("tuned", flags(20, 10), sample=True), make_record("alone", flags(20, 12), student=student)]
    add(folder, *made)
    board_build(folder)
    return folder / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield made
    made.quit()


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Any]:
    """The page, opened afresh at 1440 px in light colours; at the end: no console message, no request but the file."""
    show(browser, page)
    yield browser
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith("data:")} <= {page.as_uri()}


def show(browser: Any, page: Path, width: int = 1440, scheme: str = "light") -> None:
    size = {"width": width, "height": 1500, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    preferred = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": preferred})
    browser.get(page.as_uri())
    browser.execute_script("try { localStorage.clear() } catch {}")
    browser.get(page.as_uri())


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def find_all(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def wait(check: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not check():
        assert time.monotonic() < until, "waited for ten seconds"
        time.sleep(0.02)


def labels(browser: Any, table: str = "exam-generate") -> list[str]:
    """Names of a table's rows, read at once: the page may draw them again between two calls."""
    script = "return [...document.querySelectorAll(arguments[0])].map((cell) => cell.textContent)"
    return list(browser.execute_script(script, f'section[aria-labelledby="{table}"] tbody tr:not(.detail) th'))


def head(browser: Any, name: str, table: str = "exam-generate") -> Any:
    heads = find_all(browser, f'section[aria-labelledby="{table}"] thead th')
    return next(cell for cell in heads if cell.text.startswith(name))


NASTY_LABEL = NASTY[:60].strip()
ORDER = ["guess", "teacher replay:release#big", "tuned", NASTY_LABEL, "mine", "other"]


def test_a_head_sorts_up_down_and_back(opened: Any) -> None:
    assert labels(opened) == ORDER
    assert head(opened, "wall").get_attribute("aria-sort") == "none"
    head(opened, "wall").find_element("css selector", "button").click()
    # 59 s, 1 min 00 s, 7 min 02 s, 1 h 04 min: by seconds, not by letters; rows without a time last
    assert labels(opened)[:4] == ["tuned", NASTY_LABEL, "other", "mine"]
    assert head(opened, "wall").get_attribute("aria-sort") == "ascending"
    head(opened, "wall").find_element("css selector", "button").click()
    assert labels(opened)[:4] == ["mine", "other", NASTY_LABEL, "tuned"]
    assert head(opened, "wall").get_attribute("aria-sort") == "descending"
    head(opened, "accuracy").find_element("css selector", "button").click()
    assert labels(opened)[0] == "guess" and head(opened, "wall").get_attribute("aria-sort") == "none"
    for _ in range(2):
        head(opened, "accuracy").find_element("css selector", "button").click()
    assert labels(opened) == ORDER
    assert head(opened, "accuracy").get_attribute("scope") == "col"


def test_filters_by_words_kind_student_and_table(opened: Any) -> None:
    assert find(opened, "#count").text == "8 of 8 rows"
    find(opened, "#search").send_keys("SMALL mine")
    wait(lambda: labels(opened) == ["mine"])
    assert find(opened, "#count").text == "1 of 8 rows" and labels(opened, "toy-cloze") == []
    assert "No row fits" in find(opened, 'section[aria-labelledby="toy-cloze"]').text
    find(opened, "#filters button").click()
    wait(lambda: labels(opened) == ORDER)
    find(opened, "#kind option[value=other]").click()
    wait(lambda: labels(opened) == ORDER[:2])
    find(opened, "#filters button").click()
    wait(lambda: labels(opened) == ORDER)
    [chat] = [option for option in find_all(opened, "#student option") if option.text == "dir:chat"]
    chat.click()
    wait(lambda: labels(opened, "toy-cloze") == ["alone"])
    find(opened, "#filters button").click()
    find(opened, '#table option[value="toy-cloze"]').click()
    wait(lambda: not find(opened, 'section[aria-labelledby="exam-generate"]').is_displayed())
    assert find(opened, "#count").get_attribute("role") == "status" and find(opened, "#count").text == "2 of 2 rows"


def test_the_keyboard_opens_a_row_with_its_runs(opened: Any) -> None:
    button = next(one for one in find_all(opened, "tbody th button") if one.text == "mine")
    opened.execute_script("arguments[0].focus()", button)
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    button.send_keys("\ue004\ue008\ue004\ue008")  # Tab and back, so that the focus is the keyboard's
    button.send_keys("\ue007")  # Enter
    assert button.get_attribute("aria-expanded") == "true"
    detail = find(opened, f"#{button.get_attribute('aria-controls')}")
    for seed in range(3):
        assert f"tinyllm-bench run --method mine --task exam --seed {seed}" in detail.text
    assert "saw the right answer" in detail.text and "self-reported" in detail.text
    links = [link.get_attribute("href") for link in detail.find_elements("css selector", "a")]
    assert len(links) == 3 and all(Path(link.removeprefix("file://")).is_file() for link in links)
    opened.execute_script("arguments[0].focus({focusVisible: true})", button)
    assert opened.execute_script(outline) == "solid"
    button.send_keys(" ")
    assert find_all(opened, "tr.detail") == [] and button.get_attribute("aria-expanded") == "false"


def test_tables_are_tables_and_plots_are_described(opened: Any) -> None:
    assert all(cell.get_attribute("scope") == "row" for cell in find_all(opened, "tbody th"))
    assert len(find_all(opened, "section caption")) == 2
    pictures = find_all(opened, "svg[role=img]")
    assert len(pictures) >= 3
    for picture in pictures:
        for part in str(picture.get_attribute("aria-labelledby")).split():
            assert find(opened, f"#{part}").get_attribute("textContent")
    points = find_all(opened, "#exam-generate-cost-title, section:first-child g.point")
    assert len(points) == 4
    gains = [one.text for one in find_all(opened, "section:first-child g.gain text")]
    printed = [row["cells"] for row in data_of(opened.page_source)["sections"][0]["rows"]]
    shown = [text for text in gains if text.startswith(("+", "-"))]
    assert len(shown) == 3 and all(any(text in cells for cells in printed) for text in shown)
    options = [option.text for option in find_all(opened, "#exam-generate-cost option")]
    assert options == ["student tokens", "wall seconds"]
    find_all(opened, "#exam-generate-cost option")[1].click()
    assert find(opened, "section:first-child figure h3").text == "Accuracy against wall seconds"
    assert find_all(opened, "b, strong, .winner") == []


COLOURS = """
const lum = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255)
  .map((one) => one <= .04045 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4); return .2126*r + .7152*g + .0722*b; };
const ground = (node) => { for (; node; node = node.parentElement) {
  const found = getComputedStyle(node).backgroundColor; if (!/, 0\\)$|transparent/.test(found)) return found; }
  return 'rgb(255, 255, 255)'; };
const ink = (node) => node.closest('svg') ? getComputedStyle(node).fill : getComputedStyle(node).color;
return [...document.querySelectorAll('h1, h2, p, td, th, th button, label, button, input, select, caption, li, dt, dd, '
  + 'code, a, svg text')].filter((node) => node.offsetParent !== null || node.closest('svg')).map((node) => {
  const pair = [lum(ink(node)), lum(ground(node))].sort((a, b) => b - a);
  return [(pair[0] + .05) / (pair[1] + .05), node.tagName + ' ' + node.textContent.slice(0, 30)]; })
  .sort((a, b) => a[0] - b[0])[0];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_readable_in_both_schemes_at_both_widths(browser: Any, page: Path, width: int, scheme: str) -> None:
    show(browser, page, width, scheme)
    next(one for one in find_all(browser, "tbody th button") if one.text == "mine").click()
    inner, whole = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert (inner, whole) == (width, width), "only a table may be wider than the page"
    contrast, where = browser.execute_script(COLOURS)
    assert contrast >= 4.5, where
    smallest = "return Math.min(...[...document.querySelectorAll('td, th, p, text, dt, code')].map((node) =>"
    scale = "(node.closest('svg') ? node.closest('svg').getBoundingClientRect().width / node.closest('svg').viewBox"
    size = ".baseVal.width : 1) * parseFloat(getComputedStyle(node).fontSize)))"
    assert browser.execute_script(smallest + scale + size) >= 11
    touch = "return Math.min(...[...document.querySelectorAll('button, input, select')].map("
    assert browser.execute_script(touch + "(node) => node.getBoundingClientRect().height))") >= 24
    name = find(browser, "tbody th").rect
    browser.execute_script("document.querySelector('.wide').scrollLeft = 300")
    assert find(browser, "tbody th").rect["x"] == name["x"], "a row keeps its name when its table scrolls"
    if folder := os.environ.get("TINYLLM_BENCH_SCREENSHOTS"):
        browser.execute_script("document.querySelector('.wide').scrollLeft = 0")
        browser.save_screenshot(str(Path(folder) / f"page-{width}-{scheme}.png"))
    assert browser.get_log("browser") == []


def test_the_button_changes_the_scheme_and_is_remembered(opened: Any, page: Path) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = opened.execute_script(ground)
    button = find(opened, "#theme")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert opened.execute_script(ground) != light and button.get_attribute("aria-pressed") == "true"
    opened.get(page.as_uri())
    assert opened.execute_script(ground) != light
    find(opened, "#theme").click()
    assert opened.execute_script(ground) == light


def test_no_label_becomes_an_element(opened: Any) -> None:
    assert NASTY_LABEL in labels(opened)
    assert len(find_all(opened, "script")) == 2 and find_all(opened, "section b") == []


def test_ten_thousand_rows_work(browser: Any, page: Path, tmp_path: Path) -> None:
    """How long it takes is measured by benchmarks/board.py."""
    text = page.read_text()
    data = data_of(text)
    section = data["sections"][0]
    pattern = section["rows"][-1]
    section["rows"] = [
        {
            **pattern,
            "label": f"row-{i:05d}",
            "cells": [f"row-{i:05d}", *pattern["cells"][1:2], str(i % 997), *pattern["cells"][3:]],
            "keys": [*pattern["keys"][:2], i % 997, *pattern["keys"][3:]],
        }
        for i in range(10_000)
    ]
    many = json.dumps(data).replace("<", "\\u003c")
    start = text.index('id="data">') + len('id="data">')
    big = tmp_path / "index.html"
    big.write_text(text[:start] + many + text[text.index("</script>", start) :])
    show(browser, big)
    wait(lambda: len(find_all(browser, 'section[aria-labelledby="exam-generate"] tbody tr')) == 50)
    for button in ("thead th:nth-child(3) button", ".more button", "tbody th button"):
        browser.execute_script(f"document.querySelector('{button}').click()")
    assert labels(browser)[0] == "row-00000" and len(labels(browser)) == 100
    find(browser, "#search").send_keys("row-09999")
    wait(lambda: labels(browser) == ["row-09999"])
    assert re.match(r"1 of 10,00\d rows", find(browser, "#count").text)
