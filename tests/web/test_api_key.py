"""A service that needs an API key: the page asks for it, and keeps it for the tab alone."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.serving.server import served
from tests.web.conftest import choose, image_file, submit

pytestmark = pytest.mark.slow

KEY = "k" * 32


def test_the_page_works_with_a_key(browser: Browser, small_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"page {KEY}\n")
    keys.chmod(0o600)
    with served(tmp_path, "--onnx", small_model, "--api-key-file", keys) as server:
        context = browser.new_context()
        page = context.new_page()
        sent: list[tuple[str, str | None]] = []
        context.on(
            "request",
            lambda request: sent.append((request.url, request.headers.get("authorization"))),
        )
        page.goto(f"http://127.0.0.1:{server.port}/")
        field = page.get_by_label("API key")
        expect(field).to_be_visible()
        choose(page, image_file())
        submit(page)
        expect(page.get_by_role("alert")).to_contain_text("The service needs an API key.")
        field.fill("wrong key of this page")
        submit(page)
        expect(page.get_by_role("alert")).to_contain_text("does not accept this API key")
        field.fill(KEY)
        submit(page)
        expect(page.locator("#result")).to_be_visible()
        # The model for the browser is behind the key too, and is offered now.
        expect(page.locator("#backends")).to_be_visible()
        page.locator("#backend-browser").check()
        submit(page)
        expect(page.locator("#predicted-by")).to_contain_text("in this browser")

        page.reload()
        expect(page.locator("#model-info")).to_contain_text("Model")
        assert not any(KEY in url for url, _ in sent)
        assert f"Bearer {KEY}" in {header for _, header in sent}
        stored = (
            "() => [Object.values(localStorage), document.cookie, Object.values(sessionStorage)]"
        )
        local, cookie, session = page.evaluate(stored)
        assert KEY not in local and cookie == "" and session == [KEY]
        assert KEY not in server.log.read_text()
        context.close()
