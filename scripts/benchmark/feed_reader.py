"""Watches a server until its standard input ends: `python -m benchmark.feed_reader KIND URL`."""

from __future__ import annotations

import sys
import threading
import urllib.request
from collections.abc import Iterable

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def main(kind: str, url: str) -> None:
    """Says a line once it watches."""
    {"feed": _read_feed, "page": _open_page}[kind](url)


def _read_feed(url: str) -> None:
    answer = urllib.request.urlopen(f"{url}/watch")
    threading.Thread(target=_read, args=[answer], daemon=True).start()
    _until_told()


def _read(answer: Iterable[bytes]) -> None:
    for _ in answer:
        pass


def _open_page(url: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(url)
        _until_told()
        browser.close()


def _until_told() -> None:
    print("watching", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
