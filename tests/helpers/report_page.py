"""What the tests of the report share: hostile text, the page as text, the page in a browser."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HOSTILE = "</script><img src=x onerror=alert(1)><script>document.title='owned'</script>"
UNSEEN = "pay \u202ecod.exe\u202c \u200bnow\x1b[31m \ud800 end"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def words(page: str) -> str:
    """Return the page about as a reader sees it: without tags and style, white space folded."""
    page = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def chromium(page: Path, folder: Path, *options: str) -> str:
    """Open the page in headless Chromium and return the DOM it ends with, as HTML."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.fail("this test renders the page: install Chromium (apt-get install -y chromium)")
    command = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", f"--user-data-dir={folder}", "--virtual-time-budget=2000",
        *options, "--dump-dom", page.resolve().as_uri(),
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    return done.stdout


def shown_title(dom: str) -> str:
    """Return the title that a page ends with in the browser."""
    match = re.search(r"<title>(.*?)</title>", dom, re.S)
    assert match is not None
    return html.unescape(match[1])
