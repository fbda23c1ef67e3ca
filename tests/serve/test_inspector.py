"""The inspector in a browser: what a person types, clicks and reads, beside what the API says."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.live import Live, serving

from ebrm.model import EnergyRewardModel

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Nothing but the page under test is opened, so that it can do without a sandbox, which a container may not allow.
FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
PROMPT = "How do I bake bread?\nI have no oven. Grüße 😀"
RESPONSES = ["alpha beta", "Mix flour and water;\n\tknead; wait. 你好", "no"]
NAMES = ("reward", "base_reward", "std", "p_best")


@pytest.fixture(scope="module")
def loaded(model: Path) -> EnergyRewardModel:
    return EnergyRewardModel.from_pretrained(model)


@pytest.fixture(scope="module")
def live(loaded: EnergyRewardModel) -> Iterator[Live]:
    with serving(loaded) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS.split(), "--no-first-run"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, live: Live) -> Iterator[Any]:
    """The page in a window of its own; at the end, whatever went wrong in it is a failure."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    window = context.new_page()
    faults: list[str] = []
    window.on("pageerror", lambda error: faults.append(str(error)))
    window.on("console", lambda said: faults.append(said.text) if "Failed to load" not in said.text else None)
    window.on("request", lambda asked: faults.append(asked.url) if not asked.url.startswith(live.url) else None)
    window.set_default_timeout(10_000)
    window.goto(live.url)
    yield window
    context.close()
    assert faults == []


def fill(page: Any, prompt: str, responses: list[str]) -> None:
    page.get_by_label("Prompt").fill(prompt)
    while page.locator("#responses textarea").count() < len(responses):
        page.get_by_role("button", name="Add a response").click()
    for i, text in enumerate(responses):
        page.get_by_label(f"Response {chr(65 + i)}", exact=True).fill(text)


def score(page: Any, prompt: str = PROMPT, responses: list[str] = RESPONSES) -> None:
    """Type, click, and wait for the ranking of just that."""
    fill(page, prompt, responses)
    with page.expect_response("**/v1/rank") as answered:
        page.get_by_role("button", name="Score").click()
    assert answered.value.ok
    page.wait_for_selector('#results[aria-busy="false"] #drawn svg')


def asked(live: Live, prompt: str = PROMPT, responses: list[str] = RESPONSES) -> dict[str, Any]:
    body = {"prompt": prompt, "responses": responses, "density": 257}
    return httpx.post(f"{live.url}/v1/rank", json=body, trust_env=False).raise_for_status().json()


def read(page: Any) -> list[dict[str, Any]]:
    """Rank by rank: the number behind each value, and the one shown."""
    rows = []
    for item in page.locator("#ranking > li").all():
        row: dict[str, Any] = {"index": int(item.get_attribute("data-index")), "title": item.locator("h3").inner_text()}
        row["text"] = item.locator(".text").text_content()
        for name in (*NAMES, "interval"):
            values = item.locator(f"dd[data-name={name}] data").all()
            row[name] = [float(value.get_attribute("value")) for value in values]
            row[f"{name} shown"] = [value.inner_text() for value in values]
        rows.append(row)
    return rows


def test_the_page_sends_what_is_typed_and_shows_what_the_api_says(page: Any, live: Live) -> None:
    with page.expect_request("**/v1/rank") as sent:
        score(page)
    assert sent.value.post_data_json == {"prompt": PROMPT, "responses": RESPONSES, "density": 257}
    assert "authorization" not in sent.value.headers
    expected, rows = asked(live)["results"], read(page)
    assert [row["index"] for row in rows] == [row["index"] for row in expected]
    for place, (row, said) in enumerate(zip(rows, expected, strict=True)):
        assert row["title"] == f"{place + 1}. Response {'ABC'[said['index']]}"
        assert row["text"] == RESPONSES[said["index"]]
        for name in NAMES:
            assert row[name] == [pytest.approx(said[name], abs=1e-6)], name
        assert row["interval"] == pytest.approx(said["interval"], abs=1e-6)
        for name in ("reward", "base_reward", "std", "interval"):
            decimals = {len(text.partition(".")[2]) for text in row[f"{name} shown"]}
            assert len(decimals) == 1 and decimals <= {2, 3, 4}
            assert [float(text) for text in row[f"{name} shown"]] == pytest.approx(row[name], abs=6e-3)
        assert row["p_best shown"] == [f"{100 * said['p_best']:.1f}%"]
    assert sum(row["p_best"][0] for row in rows) == pytest.approx(1, abs=1e-6)
    assert page.locator("dt", has_text="90% interval").count() == 3
    assert "Scored by a model." in page.inner_text("#about")
    best = expected[0]
    assert page.inner_text("#status").startswith(f"{'ABC'[best['index']]} ranks first of 3")
    assert f"{100 * best['p_best']:.1f}%" in page.inner_text("#status")


def test_the_curves_are_the_densities_on_one_axis_with_their_marks(page: Any, live: Live) -> None:
    score(page)
    said = asked(live)
    rewards, curves = said["density"]["rewards"], said["density"]["p"]
    highest = max(map(max, curves))
    groups = page.locator("#drawn svg g").all()
    assert [int(group.get_attribute("data-index")) for group in groups] == [row["index"] for row in said["results"]]
    at = None
    for group, row in zip(groups, said["results"], strict=True):
        drawn = group.locator("path.curve").get_attribute("d")
        points = [tuple(map(float, point.split())) for point in re.split("[MLZ]", drawn) if point]
        ground, points = points[0][1], points[1:-1]
        assert len(points) == 257
        scale = (points[-1][0] - points[0][0]) / (rewards[-1] - rewards[0])
        x = [points[0][0] + scale * (reward - rewards[0]) for reward in rewards]
        assert [point[0] for point in points] == pytest.approx(x, abs=0.02)
        at = at or (points[0][0], scale)
        assert (points[0][0], scale) == pytest.approx(at, abs=1e-6)  # the axis is shared
        heights = [50 / highest * p for p in curves[row["index"]]]
        assert [ground - point[1] for point in points] == pytest.approx(heights, abs=0.02)
        marks = [("refined", "x1", row["reward"]), ("base", "x1", row["base_reward"])]
        marks += [("range", "x1", row["interval"][0]), ("range", "x2", row["interval"][1])]
        for kind, end, reward in marks:
            drawn_at = float(group.locator(f"line.{kind}").get_attribute(end))
            assert drawn_at == pytest.approx(at[0] + at[1] * (reward - rewards[0]), abs=0.05), kind
        assert group.locator("text").all_text_contents() == ["ABC"[row["index"]], f"{100 * row['p_best']:.1f}%"]
    label = page.locator("#drawn svg").get_attribute("aria-label")
    assert label.startswith("Density curves of 3 responses")


def test_it_can_be_used_with_the_keyboard_alone(page: Any, live: Live) -> None:
    press, focus = page.keyboard.press, "document.activeElement.id"
    order = []
    for text in ("Say it", "yes", "no"):
        press("Tab")
        order.append(page.evaluate(focus))
        page.keyboard.type(text)
    press("Tab")
    order.append(page.evaluate(focus))
    press("Enter")  # adds a response, which is where one goes on typing
    order.append(page.evaluate(focus))
    page.keyboard.type("perhaps")
    assert order == ["prompt", "response-0", "response-1", "add", "response-2"]
    press("Control+Enter")
    page.wait_for_selector("#drawn svg")
    assert page.evaluate(focus) == "response-2"
    expected = asked(live, "Say it", ["yes", "no", "perhaps"])["results"]
    assert [row["index"] for row in read(page)] == [row["index"] for row in expected]
    # Back to the second response's button, which takes it out.
    for _ in range(3):
        press("Shift+Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove response B"
    press("Enter")
    assert page.evaluate(focus) == "response-1"
    assert page.get_by_label("Response B", exact=True).input_value() == "perhaps"
    assert "Response B is removed" in page.inner_text("#status")
    press("Tab")
    press("Tab")
    assert page.evaluate(focus) == "score"
    with page.expect_response("**/v1/rank"):
        press("Enter")
    page.wait_for_function("document.querySelectorAll('#ranking > li').length === 2")
    assert page.evaluate(focus) == "score"  # which stays where it is while the server works
    assert page.get_by_role("button", name="Remove").count() == 0  # two responses are the fewest


def test_outcomes_are_announced(page: Any) -> None:
    page.get_by_role("button", name="Score").click()
    assert "Write a prompt and at least two responses" in page.inner_text("#error")
    assert page.evaluate("document.activeElement.id") == "prompt"
    assert page.locator("#status").get_attribute("aria-live") == "polite"
    assert page.locator("#error").get_attribute("role") == "alert"
    score(page)
    page.get_by_label("Response A", exact=True).fill("something else")
    assert "The texts have changed" in page.inner_text("#status")
    score(page)
    assert "ranks first" in page.inner_text("#status")
    page.get_by_role("button", name="Add a response").click()
    assert "The texts have changed" in page.inner_text("#status")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_400_pixels_and_can_be_read_in_light_and_dark(browser: Any, live: Live, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 400, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(live.url)
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) == 400
    score(page, "hi", ["x" * 80, "a b", "<div style='width:9000px'>", "", "no"])
    assert page.evaluate(wide) == 400
    for selector in ("#ranking .text", "#ranking dd", "#drawn svg", "#score", ".legend li"):
        for box in (element.bounding_box() for element in page.locator(selector).all()):
            assert box["x"] >= 0 and box["x"] + box["width"] <= 400, selector
    cut = "(e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth"
    assert page.evaluate(f"[...document.querySelectorAll('#ranking *')].filter({cut}).length") == 0
    assert page.evaluate("[...document.querySelectorAll('button')].every((b) => b.clientHeight >= 30)")
    paper = color(page, "body", "backgroundColor")
    assert (luminance(paper) < 0.05) == (scheme == "dark")
    for selector in ("body", ".quiet", "#status", "dt", "dd", ".text", "svg text.muted", "svg text.letter"):
        kind = "fill" if selector.startswith("svg") else "color"
        assert contrast(color(page, selector, kind), paper) >= 4.5, selector
    assert contrast(color(page, "#score", "color"), color(page, "#score", "backgroundColor")) >= 4.5
    assert contrast(color(page, "textarea", "borderTopColor"), paper) >= 3
    context.close()


def color(page: Any, selector: str, kind: str) -> tuple[float, ...]:
    said = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{kind}")
    return tuple(int(part) / 255 for part in re.findall(r"\d+", said)[:3])


def luminance(rgb: tuple[float, ...]) -> float:
    """As WCAG defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_texts_are_never_read_as_markup(page: Any) -> None:
    owned = "document.title='owned'"
    nasty = [f'<img src=x onerror="{owned}">', f"</textarea><script>{owned}</script>", "&lt;b&gt;"]
    score(page, nasty[0], nasty)
    shown = {text.strip() for text in page.locator("#ranking .text").all_inner_texts()}
    assert shown == set(nasty)
    assert page.locator("img").count() == 0 and page.locator("script").count() == 1
    assert page.title() == "ebrm inspector"


def fails(page: Any) -> str:
    with page.expect_response("**/v1/rank"):
        page.get_by_role("button", name="Score").click()
    page.wait_for_selector("#error:not([hidden])")
    return page.inner_text("#error")


def test_a_text_that_cannot_be_scored_is_named_and_focused(page: Any) -> None:
    score(page)
    page.get_by_label("Response B", exact=True).fill("long " * 400)
    said = fails(page)
    assert said.startswith("Response B can't be scored.") and "tokens" in said and "Text 1" not in said
    box = page.get_by_label("Response B", exact=True)
    assert box.get_attribute("aria-invalid") == "true" and box.get_attribute("aria-describedby") == "error"
    assert page.evaluate("document.activeElement.id") == "response-1"
    assert page.inner_text("#status") == "Not scored. Below is the last ranking."
    score(page)
    assert page.locator("#error").is_hidden() and box.get_attribute("aria-invalid") is None


def test_a_server_that_is_ending_or_gone_is_said(page: Any, live: Live) -> None:
    fill(page, PROMPT, RESPONSES)
    live.scoring.draining = True
    try:
        said = fails(page)
    finally:
        live.scoring.draining = False
    assert said.startswith("The server can't answer now. Try again in 1 second.") and "ending" in said
    page.context.set_offline(True)
    page.get_by_role("button", name="Score").click()
    page.wait_for_selector("#error >> text=The server can't be reached.")
    assert page.get_by_label("Prompt").input_value() == PROMPT
    page.context.set_offline(False)
    score(page)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, "<html>oops</html>", "The server answered with status 500."),
        (200, "not JSON", "The server answered with status 200."),
        (413, '{"error": {"message": "The body is larger than 9 bytes.", "row": null}}', "too long for this server"),
        (422, '{"error": {"message": "A reason.", "row": null}}', "The server can't score this.\nA reason."),
    ],
)
def test_what_else_a_server_or_something_before_it_may_say(page: Any, status: int, body: str, said: str) -> None:
    page.route("**/v1/rank", lambda route: route.fulfill(status=status, body=body))
    fill(page, PROMPT, RESPONSES)
    assert said in re.sub(r"\n+", "\n", fails(page))


def test_a_token_is_asked_for_when_the_server_wants_one(browser: Any, loaded: EnergyRewardModel) -> None:
    with serving(loaded, token="open-sesame") as live:
        page = browser.new_page()
        page.goto(live.url)
        assert page.get_by_label("Access token").is_hidden()
        fill(page, PROMPT, RESPONSES)
        assert "This server asks for a token." in fails(page)
        assert page.evaluate("document.activeElement.id") == "token"
        page.keyboard.type("wrong")
        assert "does not accept this token" in fails(page)
        page.get_by_label("Access token").fill("open-sesame")
        with page.expect_response("**/v1/rank"):
            page.keyboard.press("Control+Enter")
        page.wait_for_selector("#drawn svg")
        assert page.locator("#error").is_hidden()
        kept = page.evaluate("JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}])")
        assert kept == '["",{},{}]'
        page.close()


def test_the_policy_allows_the_pages_own_script_and_style_and_no_more(live: Live) -> None:
    answer = httpx.get(live.url, trust_env=False)
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", answer.text, re.S)
        expected = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{expected}'"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["connect-src"] == "'self'" and answer.headers["x-content-type-options"] == "nosniff"
