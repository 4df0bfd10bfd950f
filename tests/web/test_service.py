"""The page and its service: when it asks again, when it stops, and whose answer it shows."""

import io
import re
import threading
import time

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.web.conftest import Visit, give, picture, submit, until
from tests.web.site import BUSY, CUT, FACTS, WEB, Reply, Site, answer, error, serving

RECORD = """
    window.shown = [];
    addEventListener('DOMContentLoaded', () => {
        const status = document.getElementById('status');
        new MutationObserver(() => window.shown.push(status.textContent))
            .observe(status, { childList: true, characterData: true, subtree: true });
    });
"""


RATE = Reply(429, {"message": "Rate Exceeded."})


def attempts(page: Page) -> list[str]:
    return [text for text in page.evaluate("window.shown") if text.startswith("Attempt")]


@pytest.mark.parametrize("reply", [BUSY, CUT, Reply(502, "x"), Reply(504, "x"), RATE])
def test_it_asks_again_while_it_may_help(visit: Visit, site: Site, reply: Reply) -> None:
    site.replies = [reply] * 3
    page = visit(script=RECORD)
    give(page, picture(1))
    submit(page)
    expect(page.get_by_role("heading", name="Large QuadCopters")).to_be_visible()
    assert attempts(page) == [f"Attempt {number} of 4 ..." for number in (2, 3, 4)]
    assert len(site.uploads) == 4 and len({body for _, body in site.uploads}) == 1


@pytest.mark.parametrize(
    ("size", "sent"), [((90, 70), 224), ((336, 200), 224), ((200, 337), 448), ((700, 900), None)]
)
def test_a_model_of_mixed_resolutions_gets_pictures_at_their_own_sizes(
    visit: Visit, site: Site, size: tuple[int, int], sent: int | None
) -> None:
    preprocessing = {**FACTS["preprocessing"], "side_px": 224}
    facts = {**FACTS, "preprocessing": preprocessing, "sides_px": [224, 448, 672, 896]}
    site.facts = [Reply(200, facts)] * 3
    page, file = visit(), picture(1, size=size)
    give(page, file)
    submit(page)
    expect(page.get_by_role("heading", name="Large QuadCopters")).to_be_visible()
    ((_, body),) = site.uploads
    if sent is None:  # Squashed it would be longer than its own file.
        assert body == file["buffer"]
    else:
        assert Image.open(io.BytesIO(body)).size == (sent, sent)


@pytest.mark.parametrize("reply", [BUSY, CUT])
def test_after_four_tries_it_ends(visit: Visit, site: Site, reply: Reply) -> None:
    site.replies = [reply] * 4
    page = visit()
    give(page, picture(1))
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("No answer in 4 tries.")
    why = "cannot be reached" if reply.cut else "is not ready (503)"
    expect(page.get_by_role("alert")).to_contain_text(why)
    # Without a model beside the page there is nothing to answer instead.
    expect(page.locator("#instead")).to_be_hidden()
    assert len(site.uploads) == 4
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", name="Large QuadCopters")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    assert len(site.uploads) == 5


@pytest.mark.parametrize(
    ("reply", "message", "again"),
    [
        (Reply(500, error(500, "It broke.")), "It broke. (request r-9)", True),
        (Reply(415, error(415, "Not a picture.")), "Not a picture. (request r-9)", False),
        (Reply(413, error(413, "Too large.")), "Too large. (request r-9)", False),
        (Reply(500, "<html>"), "The service answered with an error (500).", True),
        (Reply(200, "<html>"), "an answer that this page does not understand", True),
        (Reply(500, {"message": "Internal Server Error"}), "(500): Internal Server Error.", True),
        (Reply(413, {"message": "Request Too Long"}), "(413): Request Too Long.", False),
        (Reply(400, {"message": {"odd": 1}}), "The service answered with an error (400).", False),
        (Reply(400, [1]), "The service answered with an error (400).", False),
        (Reply(400, "null"), "The service answered with an error (400).", False),
        (Reply(403, {"message": "Forbidden"}), "There is no service at its address (403).", False),
        (Reply(200, {"label": "x", "probabilities": None}), "that this page does not", True),
        (Reply(200, {"label": 3}), "an answer that this page does not understand", True),
        (Reply(404, "<html>"), "There is no service at its address (404).", False),
    ],
)
def test_what_asking_again_cannot_mend(
    visit: Visit, site: Site, reply: Reply, message: str, again: bool
) -> None:
    site.replies = [reply]
    page = visit()
    give(page, picture(1))
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text(message)
    assert page.locator("#again").is_visible() == again
    assert len(site.uploads) == 1
    submit(page)  # The picture is still there.
    expect(page.locator("#result")).to_be_visible()


def test_it_waits_as_long_as_the_service_says(visit: Visit, site: Site) -> None:
    site.replies = [Reply(503, "", {"Retry-After": "1"}), Reply(503, "", {"Retry-After": "3600"})]
    page = visit(script=RECORD)
    give(page, picture(1))
    began = time.monotonic()
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("It asks to wait 3600 seconds.")
    assert 1 <= time.monotonic() - began < 8
    assert len(site.uploads) == 2
    assert "No answer yet. Attempt 2 of 4 in 1 s ..." in page.evaluate("window.shown")


def test_waits_grow_and_vary(visit: Visit) -> None:
    page = visit()
    code = """async () => {
        const { withTries } = await import('./retry.js');
        const { Passing } = await import('./problems.js');
        const waits = [];
        const { signal } = new AbortController();
        const onWait = (number, tries, waitS) => waits.push(waitS / 0.02);
        const settings = { tries: 4, firstWaitS: 0.02, timeoutS: 1, signal, onWait };
        for (let turn = 0; turn < 5; turn++) {
            await withTries(() => { throw new Passing('no'); }, settings).catch(() => {});
        }
        return waits;
    }"""
    waits = page.evaluate(code)
    assert len(waits) == 15 and len(set(waits)) == 15
    for at, wait in enumerate(waits):
        longest = 2 ** (at % 3)
        assert longest / 2 <= wait <= longest


def test_each_try_has_its_time(visit: Visit, site: Site) -> None:
    site.config["timeout_s"] = 1.5
    never = threading.Event()
    site.replies = [Reply(after=never)]
    page = visit(script=RECORD)
    give(page, picture(1))
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    assert attempts(page)[0] == "Attempt 2 of 4 ..."
    site.replies = [Reply(after=never)] * 4
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("longer than 1.5 seconds", timeout=20_000)
    never.set()


def test_a_service_that_wakes_slowly(visit: Visit, site: Site) -> None:
    awake = threading.Event()
    site.facts = [Reply(503, ""), Reply(200, FACTS, after=awake)]
    page = visit()
    give(page, picture(1))
    expect(page.locator("#facts")).to_have_text("The service is asked which model it has ...")
    submit(page)
    time.sleep(0.5)
    # One question is open; a second one would wake a second copy of it.
    assert site.asked.count("model") == 2 and not site.uploads
    awake.set()
    expect(page.locator("#result")).to_be_visible()
    expect(page.locator("#facts")).to_contain_text("Model drone-classifier 7")
    assert site.asked.count("model") == 2


@pytest.mark.parametrize("when", ["asking", "waiting"])
def test_cancel(visit: Visit, site: Site, when: str) -> None:
    slow = threading.Event()
    if when == "asking":
        site.replies = [Reply(after=slow)]
    else:
        site.replies = [Reply(503, "", {"Retry-After": "30"})]
    page = visit()
    give(page, picture(1))
    page.get_by_role("button", name="Submit").press("Enter")
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    if when == "waiting":
        expect(page.get_by_role("status")).to_contain_text("Attempt 2 of 4 in 30 s")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Cancelled.")
    expect(page.get_by_role("button", name="Submit")).to_be_focused()
    slow.set()
    time.sleep(0.3)
    expect(page.locator("#result")).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_empty()
    submit(page)
    expect(page.locator("#result")).to_be_visible()


# As if the network did not hear that the page has given up: the answer comes all the same.
DEAF = "const real = fetch; window.fetch = (url, { signal, ...rest } = {}) => real(url, rest);"


@pytest.mark.parametrize("script", ["", DEAF])
@pytest.mark.parametrize("event", ["another", "remove"])
def test_a_late_answer_is_never_shown(visit: Visit, site: Site, script: str, event: str) -> None:
    late = threading.Event()
    site.replies = [Reply(body=answer(0, 0.97), after=late), Reply(body=answer(3, 0.9))]
    page = visit(script=script)
    give(page, picture(1))
    submit(page)
    until(lambda: len(site.uploads) == 1)
    if event == "another":
        give(page, picture(2))
        submit(page)
        heading = page.get_by_role("heading", name="Winged Drones: 90.0 %")
        expect(heading).to_be_visible()
        late.set()
        time.sleep(0.4)
        expect(heading).to_be_visible()
        expect(page.locator("#name")).to_have_text("picture-2.png")
    else:
        page.get_by_role("button", name="Remove").click()
        late.set()
        time.sleep(0.4)
        expect(page.locator("#result")).to_be_hidden()
        expect(page.get_by_role("status")).to_have_text("The picture is removed.")
    expect(page.get_by_role("alert")).to_be_empty()
    assert "Flying Birds: 97" not in page.content()


def test_a_service_elsewhere_needs_a_word_in_the_policy(visit: Visit, site: Site) -> None:
    with serving(Site()) as other:
        site.config["api"] = other.url + "prod/"
        origin = other.url.rstrip("/")
        shipped = (WEB / "index.html").read_text()
        site.forbidden = True
        # As it is shipped, the policy lets the page ask its own origin only.
        page = visit(script=RECORD)
        expect(page.locator("#facts")).to_contain_text("does not answer yet")
        assert not other.asked
        page.close()

        opened = shipped.replace("connect-src 'self'", f"connect-src 'self' {origin}")
        site.config["api"] = other.url.removesuffix("/")  # The slash is of no account.
        site.files[""] = opened.encode()
        page = visit(allowed=other.url)
        give(page, picture(1))
        submit(page)
        expect(page.locator("#result")).to_be_visible()
        assert len(other.uploads) == 1 and not site.uploads


def test_a_folder_without_anything(visit: Visit, site: Site) -> None:
    site.service = False
    page = visit()
    expect(page.get_by_role("alert")).to_contain_text("neither a service nor a model")
    site.config["api"] = None
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("neither a service nor a model")
    give(page, picture(1))
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("neither a service nor a model")


def test_the_policy_is_strict(visit: Visit, site: Site) -> None:
    page = visit()
    policy = page.locator("meta[http-equiv]").get_attribute("content") or ""
    assert "default-src 'self'" in policy and "'unsafe-inline'" not in policy
    assert not re.search(r"'unsafe-eval'", policy)
    html = (WEB / "index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|https?://", html)
