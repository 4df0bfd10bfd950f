"""The page and its service: retries, cancellation, and responses that arrive late."""

import io
import re
import threading
import time

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from drone.serving.keeping import KeepSettings
from tests.web.conftest import Visit, choose, image_file, settle, submit, wait_until
from tests.web.site import (
    BUSY,
    DISCONNECT,
    MODEL_INFO,
    WEB,
    Reply,
    Site,
    error,
    prediction,
    serve,
)

pytestmark = pytest.mark.slow

RECORD_STATUS = """
    window.statuses = [];
    addEventListener('DOMContentLoaded', () => {
        const status = document.getElementById('status');
        new MutationObserver(() => window.statuses.push(status.textContent))
            .observe(status, { childList: true, characterData: true, subtree: true });
    });
"""

THROTTLED = Reply(429, {"message": "Rate Exceeded."})


def attempts(page: Page) -> list[str]:
    return [text for text in page.evaluate("window.statuses") if text.startswith("Attempt")]


@pytest.mark.parametrize("reply", [BUSY, DISCONNECT, Reply(502, "x"), Reply(504, "x"), THROTTLED])
def test_transient_errors_are_retried(visit: Visit, site: Site, reply: Reply) -> None:
    site.predict_replies = [reply] * 3
    page = visit(script=RECORD_STATUS)
    choose(page, image_file(1))
    submit(page)
    expect(page.get_by_role("heading", name="Large QuadCopters")).to_be_visible()
    assert attempts(page) == [f"Attempt {number} of 4 ..." for number in (2, 3, 4)]
    assert len(site.uploads) == 4 and len({body for _, body in site.uploads}) == 1


@pytest.mark.parametrize(
    ("size", "side_px"), [((90, 70), 224), ((336, 200), 224), ((200, 337), 448), ((700, 900), None)]
)
def test_a_model_of_mixed_resolutions_gets_images_at_their_own_sizes(
    visit: Visit, site: Site, size: tuple[int, int], side_px: int | None
) -> None:
    preprocessing = {**MODEL_INFO["preprocessing"], "side_px": 224}
    info = {**MODEL_INFO, "preprocessing": preprocessing, "sides_px": [224, 448, 672, 896]}
    site.model_replies = [Reply(200, info)] * 3
    page, file = visit(), image_file(1, size=size)
    choose(page, file)
    submit(page)
    expect(page.get_by_role("heading", name="Large QuadCopters")).to_be_visible()
    ((_, body),) = site.uploads
    if side_px is None:  # Resized, it would be larger than its own file.
        assert body == file["buffer"]
    else:
        assert Image.open(io.BytesIO(body)).size == (side_px, side_px)


@pytest.mark.parametrize("reply", [BUSY, DISCONNECT])
def test_retries_end_after_four_attempts(visit: Visit, site: Site, reply: Reply) -> None:
    site.predict_replies = [reply] * 4
    page = visit()
    choose(page, image_file(1))
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("No response after 4 attempts.")
    why = "cannot be reached" if reply.disconnect else "is not ready (503)"
    expect(page.get_by_role("alert")).to_contain_text(why)
    # Without a model beside the page there is no other backend to offer.
    expect(page.locator("#use-browser")).to_be_hidden()
    assert len(site.uploads) == 4
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", name="Large QuadCopters")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    assert len(site.uploads) == 5


OTHER_ERRORS = [
    (Reply(500, error(500, "It broke.")), "It broke. (request r-9)", True),
    (Reply(415, error(415, "Not an image.")), "Not an image. (request r-9)", False),
    (Reply(413, error(413, "Too large.")), "Too large. (request r-9)", False),
    (Reply(500, "<html>"), "The service responded with an error (500).", True),
    (Reply(200, "<html>"), "a response that this page cannot read", True),
    (Reply(500, {"message": "Internal Server Error"}), "(500): Internal Server Error.", True),
    (Reply(413, {"message": "Request Too Long"}), "(413): Request Too Long.", False),
    (Reply(400, {"message": {"odd": 1}}), "The service responded with an error (400).", False),
    (Reply(400, [1]), "The service responded with an error (400).", False),
    (Reply(400, "null"), "The service responded with an error (400).", False),
    (Reply(403, {"message": "Forbidden"}), "There is no service at its address (403).", False),
    (Reply(200, {"label": "x", "probabilities": None}), "that this page cannot read", True),
    (Reply(200, {"label": 3}), "a response that this page cannot read", True),
    (Reply(404, "<html>"), "There is no service at its address (404).", False),
]
"""Response, the message shown for it, and whether "Try again" is offered."""


def test_other_errors_are_not_retried(visit: Visit, site: Site) -> None:
    page = visit()
    choose(page, image_file(1))
    for number, (reply, message, retryable) in enumerate(OTHER_ERRORS):
        site.predict_replies = [reply]
        submit(page)
        expect(page.get_by_role("alert")).to_contain_text(message)
        assert page.locator("#retry").is_visible() == retryable, reply
        assert len(site.uploads) == 2 * number + 1, reply
        submit(page)  # The image is still there.
        expect(page.locator("#result")).to_be_visible()


def test_retry_after_is_honoured(visit: Visit, site: Site) -> None:
    site.predict_replies = [
        Reply(503, "", {"Retry-After": "1"}),
        Reply(503, "", {"Retry-After": "3600"}),
    ]
    page = visit(script=RECORD_STATUS)
    choose(page, image_file(1))
    began = time.monotonic()
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("Try again in 3600 seconds.")
    assert 1 <= time.monotonic() - began < 8
    assert len(site.uploads) == 2
    assert "No response yet. Attempt 2 of 4 in 1 s ..." in page.evaluate("window.statuses")


def test_backoff_doubles_with_jitter(visit: Visit) -> None:
    page = visit()
    code = """async () => {
        const { retry } = await import('./retry.js');
        const { TransientError } = await import('./errors.js');
        const waits = [];
        const { signal } = new AbortController();
        const onWait = (number, maxAttempts, waitS) => waits.push(waitS / 0.02);
        const settings = { maxAttempts: 4, firstWaitS: 0.02, timeoutS: 1, signal, onWait };
        for (let run = 0; run < 5; run++) {
            await retry(() => { throw new TransientError('no'); }, settings).catch(() => {});
        }
        return waits;
    }"""
    waits = page.evaluate(code)
    assert len(waits) == 15 and len(set(waits)) == 15
    for at, wait in enumerate(waits):
        backoff = 2 ** (at % 3)
        assert backoff / 2 <= wait <= backoff


def test_each_attempt_has_a_timeout(visit: Visit, site: Site) -> None:
    site.config["timeout_s"] = 0.5
    never = threading.Event()
    site.predict_replies = [Reply(hold_until=never)]
    page = visit(script=RECORD_STATUS)
    choose(page, image_file(1))
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    assert attempts(page)[0] == "Attempt 2 of 4 ..."
    site.predict_replies = [Reply(hold_until=never)] * 4
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("longer than 0.5 seconds", timeout=20_000)
    never.set()


def test_a_service_that_starts_slowly(visit: Visit, site: Site) -> None:
    awake = threading.Event()
    site.model_replies = [Reply(503, ""), Reply(200, MODEL_INFO, hold_until=awake)]
    page = visit()
    choose(page, image_file(1))
    expect(page.locator("#model-info")).to_have_text("Waiting for the service ...")
    submit(page)
    expect(page.get_by_role("status")).to_have_text("Sending the image to the service ...")
    settle(page)
    # A second request for the info could start a second instance of the service.
    assert site.requests.count("model") == 2 and not site.uploads
    awake.set()
    expect(page.locator("#result")).to_be_visible()
    expect(page.locator("#model-info")).to_contain_text("Model drone-classifier 7")
    assert site.requests.count("model") == 2


@pytest.mark.parametrize("when", ["requesting", "waiting"])
def test_cancel(visit: Visit, site: Site, when: str) -> None:
    slow = threading.Event()
    if when == "requesting":
        site.predict_replies = [Reply(hold_until=slow)]
    else:
        site.predict_replies = [Reply(503, "", {"Retry-After": "30"})]
    page = visit()
    choose(page, image_file(1))
    page.get_by_role("button", name="Submit").press("Enter")
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    # A request that is cancelled before it has left the browser is never answered.
    wait_until(lambda: len(site.uploads) == 1)
    if when == "waiting":
        expect(page.get_by_role("status")).to_contain_text("Attempt 2 of 4 in 30 s")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Cancelled.")
    expect(page.get_by_role("button", name="Submit")).to_be_focused()
    slow.set()
    wait_until(lambda: site.predict_responses == 1)
    settle(page)
    expect(page.locator("#result")).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_empty()
    submit(page)
    expect(page.locator("#result")).to_be_visible()


# As if the request could no longer be aborted: its response still arrives.
NO_ABORT = "const real = fetch; window.fetch = (url, { signal, ...rest } = {}) => real(url, rest);"


@pytest.mark.parametrize("script", ["", NO_ABORT])
@pytest.mark.parametrize("event", ["replace", "remove"])
def test_a_late_response_is_never_shown(visit: Visit, site: Site, script: str, event: str) -> None:
    late = threading.Event()
    site.predict_replies = [
        Reply(body=prediction(0, 0.97), hold_until=late),
        Reply(body=prediction(3, 0.9)),
    ]
    page = visit(script=script)
    choose(page, image_file(1))
    submit(page)
    wait_until(lambda: len(site.uploads) == 1)
    if event == "replace":
        choose(page, image_file(2))
        submit(page)
        heading = page.get_by_role("heading", name="Winged Drones: 90.0 %")
        expect(heading).to_be_visible()
        late.set()
        wait_until(lambda: site.predict_responses == 2)
        settle(page)
        expect(heading).to_be_visible()
        expect(page.locator("#image-name")).to_have_text("image-2.png")
    else:
        page.get_by_role("button", name="Remove").click()
        late.set()
        wait_until(lambda: site.predict_responses == 1)
        settle(page)
        expect(page.locator("#result")).to_be_hidden()
        expect(page.get_by_role("status")).to_have_text("The image was removed.")
    expect(page.get_by_role("alert")).to_be_empty()
    assert "Flying Birds: 97" not in page.content()


def test_a_service_on_another_origin_must_be_in_the_policy(visit: Visit, site: Site) -> None:
    with serve(Site()) as other:
        site.config["api"] = other.url + "prod/"
        origin = other.url.rstrip("/")
        shipped = (WEB / "index.html").read_text()
        site.violates_policy = True
        # The shipped policy allows requests to the page's own origin only.
        page = visit(script=RECORD_STATUS)
        expect(page.locator("#model-info")).to_contain_text("does not respond yet")
        assert not other.requests
        page.close()

        edited = shipped.replace("connect-src 'self'", f"connect-src 'self' {origin}")
        site.config["api"] = other.url.removesuffix("/")  # A trailing slash is optional.
        site.files[""] = edited.encode()
        page = visit(allow=other.url)
        choose(page, image_file(1))
        submit(page)
        expect(page.locator("#result")).to_be_visible()
        assert len(other.uploads) == 1 and not site.uploads


def test_a_folder_without_service_and_model(visit: Visit, site: Site) -> None:
    site.has_service = False
    page = visit()
    expect(page.get_by_role("alert")).to_contain_text("neither a service nor a model")
    site.config["api"] = None
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("neither a service nor a model")
    choose(page, image_file(1))
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("neither a service nor a model")


def test_the_policy_is_strict(visit: Visit, site: Site) -> None:
    page = visit()
    policy = page.locator("meta[http-equiv]").get_attribute("content") or ""
    assert "default-src 'self'" in policy and "'unsafe-inline'" not in policy
    assert not re.search(r"'unsafe-eval'", policy)
    html = (WEB / "index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|https?://", html)


KEEPS = KeepSettings(keep="served", keep_days=30).to_dict()


def test_a_service_that_keeps_images_says_so_and_the_user_can_forbid_it(
    visit: Visit, site: Site
) -> None:
    site.model_replies = [Reply(200, {**MODEL_INFO, "keeps": KEEPS})] * 2
    page = visit()
    expect(page.locator("#keeps-text")).to_contain_text("a sample of 5 % of all for up to 30 days")
    for forbidden in (False, True):
        page.get_by_label("Do not keep my images").set_checked(forbidden)
        choose(page, image_file(1))
        submit(page)
        expect(page.locator("#result")).to_be_visible()
    assert site.forbids_keeping == [False, True]
    page.reload()
    expect(page.get_by_label("Do not keep my images")).to_be_checked()


def test_nothing_is_kept_before_the_notice_was_shown_and_none_is_shown_without_keeping(
    visit: Visit, site: Site
) -> None:
    hold = threading.Event()
    site.model_replies = [Reply(200, {**MODEL_INFO, "keeps": KEEPS}, hold_until=hold)]
    page = visit()
    choose(page, image_file(1))
    submit(page)
    hold.set()
    expect(page.locator("#result")).to_be_visible()
    expect(page.locator("#keeps")).to_be_visible()
    assert site.forbids_keeping == [True]
    page.reload()  # The service keeps nothing now, and may not know the header.
    expect(page.locator("#model-info")).to_contain_text("drone-classifier 7")
    expect(page.locator("#keeps")).to_be_hidden()
    choose(page, image_file(1))
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    assert site.forbids_keeping == [True, False]
