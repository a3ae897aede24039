"""Fixtures of the page's tests: one browser, windows of it, and a scripted server with the page that the build joined."""

import os
import pathlib

import pytest
from browser import Browser, chromium
from scripted_server import ScriptedServer


@pytest.fixture(scope="session")
def browser():
    if chromium() is None:
        pytest.skip("there is no Chromium: install the package chromium, or name one with CHROMIUM")
    one = Browser()
    yield one
    one.close()


@pytest.fixture
def server():
    one = ScriptedServer()
    yield one
    one.close()


@pytest.fixture
def window(browser, server):
    """window(width=..., dark=...) -> a window with the page, ready. At the end its console must be empty."""
    opened = []

    def start(url=server.url, **options):
        page = browser.page(url, **options)
        opened.append(page)
        page.until("document.body && typeof livePanel !== 'undefined'")
        return page

    yield start
    for page in opened:
        complaints = [c for c in page.complaints() if c not in page.expected]
        page.close()
        assert complaints == []


@pytest.fixture
def picture(tmp_path):
    """picture(window, "name"): a PNG in the folder PICTURES, to be looked at; else in a temporary one."""
    folder = pathlib.Path(os.environ.get("PICTURES", tmp_path))
    return lambda window, name: window.picture(folder / f"{name}.png")
