"""The page opens in Chromium, where it is installed, on narrow and wide screens, light and dark."""

from __future__ import annotations

import re

import pytest
from browsers import chromium

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_it_opens_in_a_browser(page, browser, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab, messages, requests = context.new_page(), [], []
    tab.on(
        "console",
        lambda message: message.type in ("error", "warning") and messages.append(message.text),
    )
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    images = tab.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert len(images) > 10
    assert all(images)
    style = "getComputedStyle(document.body)"
    ink, paper = tab.evaluate(f"[{style}.color, {style}.backgroundColor]")
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (scheme == "light")
    assert tab.evaluate("getComputedStyle(document.querySelector('.plot text')).fill") == ink
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    context.close()


@pytest.mark.slow
def test_it_needs_no_script_and_prints(page, browser, tmp_path):
    context = browser.new_context(viewport={"width": 360, "height": 800}, java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert len(tab.screenshot(full_page=True)) > 50_000
    tab.emulate_media(media="print", color_scheme="dark")
    pdf = tab.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20
    context.close()
