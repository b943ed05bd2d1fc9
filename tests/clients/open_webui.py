"""A chat with Open WebUI, in a real browser, answered by a running ndani; kept out of the tests, for it installs torch (9 GB).

It needs two installed packages, in an environment of their own (Python 3.11 or 3.12), and a Chromium:

    python3.11 -m venv .cache/webui && .cache/webui/bin/pip install open-webui playwright
    ndani pull smollm2:135m; ndani pull all-minilm; ndani serve &
    .cache/webui/bin/python tests/clients/open_webui.py --url http://127.0.0.1:11434 --screenshot docs/images/open-webui.png

It exits with 0 when the page shows an answer, and prints the answer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

QUESTION = "What is the capital of France? Answer in one sentence."


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask a question in Open WebUI's page, with ndani behind it.")
    parser.add_argument("--url", default="http://127.0.0.1:11434", help="the server")
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--screenshot", type=Path, help="where the picture goes")
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"), help="a Chromium")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="open-webui-") as folder, open_webui(given.url, Path(folder)) as page_url:
        answer = ask(page_url, given)
    print(answer)
    return 0 if answer.strip() else 1


@contextmanager
def open_webui(server: str, folder: Path) -> Iterator[str]:
    """Open WebUI over a server, with an empty folder for its data and without logins; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {
        "OLLAMA_BASE_URL": server,
        "DATA_DIR": str(folder / "data"),
        "HOME": str(folder),
        "WEBUI_AUTH": "false",
        "WEBUI_SECRET_KEY": "for this run only",
        "OFFLINE_MODE": "true",
        "ENABLE_OPENAI_API": "false",
        "RAG_EMBEDDING_ENGINE": "ollama",
        "RAG_EMBEDDING_MODEL": "all-minilm",
    }
    command = [str(Path(sys.executable).with_name("open-webui")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, **own}, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a URL answers; the first start makes a database and takes a minute."""
    for _ in range(300):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"Open WebUI did not start:\n{log.read_text(errors='replace')[-3000:]}")


def ask(url: str, given: argparse.Namespace) -> str:
    """Put the question into the page and wait until its answer stands there, whole."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.browser, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 640})
        # The page polls for ever, so it is never idle.
        page.goto(f"{url}/?models={given.model}", wait_until="commit")
        page.locator("#chat-input").wait_for(timeout=120_000)
        dismiss_news(page)
        page.locator("#chat-input").click()
        page.keyboard.type(QUESTION)
        page.keyboard.press("Enter")
        answer = page.locator("#response-content-container").last
        answer.wait_for(timeout=120_000)
        # The buttons below an answer come with its end.
        page.get_by_role("button", name="Regenerate").last.wait_for(timeout=300_000)
        text = answer.inner_text()
        # What the server refuses is shown as a notice beside the answer, not as one.
        notice = page.locator("[data-sonner-toast][data-type=error]")
        if notice.count():
            raise SystemExit(f"the page shows an error: {notice.first.inner_text()}")
        page.wait_for_timeout(6_000)  # until the page's own notices are gone
        if given.screenshot:
            page.screenshot(path=given.screenshot)
        browser.close()
    return text


def dismiss_news(page: Page) -> None:
    """Close the notes of the release, which a new user is shown."""
    button = page.get_by_role("button", name="Okay, Let's Go!")
    try:
        button.wait_for(timeout=20_000)
    except Exception:
        return
    button.click()
    button.wait_for(state="detached")


if __name__ == "__main__":
    sys.exit(main())
