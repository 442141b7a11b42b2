"""Checks of every page: no findings by axe, nothing cut off, nothing moves while it loads, no messages on the console."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# (color scheme, width, widths at which a layout changes into another one)
LOOKS = [("light", 1440, [768, 1100, 1280, 1366]), ("dark", 320, [])]

# The cumulative layout shift, as Chromium measures it.
SHIFT = """() => new Promise((done) => {
    let sum = 0;
    const add = (entries) => entries.forEach((one) => { if (!one.hadRecentInput) sum += one.value });
    const observer = new PerformanceObserver((list) => add(list.getEntries()));
    observer.observe({type: "layout-shift", buffered: true});
    requestAnimationFrame(() => requestAnimationFrame(() => { add(observer.takeRecords()); done(sum) }));
})"""
# Users notice 0.1. Nothing is painted before the whole page has arrived (frame/head.html), because a busy machine would
# show the top bar and half a table first. A picture without a size, or a late font, counts for more.
MOST = 0.01


def look_at(page: Page, paths: list[str]) -> None:
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    for scheme, width, widths_between in LOOKS:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for path in paths:
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(path)
            options = {"runOnly": WCAG, "resultTypes": ["violations"]}  # the others would be many times as much
            violations = Axe().run(page, options=options).response["violations"]
            assert not [(violation["id"], [node["html"] for node in violation["nodes"]]) for violation in violations], (
                path,
                scheme,
            )
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
            assert page.locator("h1").count() == 1, path
            assert page.evaluate(SHIFT) <= MOST, (path, scheme, width)
            for between in widths_between:
                page.set_viewport_size({"width": between, "height": 900})
                # after two frames, because the window's new size and its layout may be in different ones
                wide = page.evaluate(
                    "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame("
                    "() => done(document.documentElement.scrollWidth))))"
                )
                assert wide <= between, (path, between)
    assert not complaints
