"""The page in front of the real server and the demo model."""

import pathlib
import re
import sys

import pytest
from test_page_chat import ANSWER, ask, is_answered

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "server"))
from server_support import DEMO, Server  # noqa: E402


@pytest.fixture
def serve():
    opened = []

    def start(*options):
        opened.append(Server(DEMO, *options))
        return opened[-1], f"http://127.0.0.1:{opened[-1].port}/"

    yield start
    for one in opened:
        one.close()


def test_the_demo_model_answers(serve, window, picture):
    _, url = serve("--reasoning-parser", "qwen3")
    page = window(url)
    page.until("byId('model-name').innerText === 'demo'")
    page.js("settings.temperature = '0'")
    page.click("#ideas button")
    is_answered(page)
    assert "42" in page.js(ANSWER)
    assert page.js("document.querySelector('.message.assistant .thought').hidden") is False
    assert "<think>" not in page.js("document.querySelector('.message.assistant').innerText")
    assert re.match(r"\d+ tokens · .* tokens/s · first after ", page.js("document.querySelector('.facts').innerText"))
    page.until("livePanel.history.some((v) => v.tokens[0] > 0)")
    page.until("livePanel.history.some((v) => v.first[0] > 0) && livePanel.history.some((v) => v.kv[0] >= 0)")
    picture(page, "demo-model")
    page.click("#think")
    ask(page, "Reverse the word planet.")
    is_answered(page, 2)
    assert "tenalp" in page.js(ANSWER)


def test_stop_frees_the_server(serve, window, picture):
    server, url = serve()
    page = window(url)
    page.js("settings.max_tokens = '1500'; requestBodyBefore = requestBody")
    page.js("requestBody = (...all) => ({...requestBodyBefore(...all), ignore_eos: true})")
    ask(page, "Tell me a short story about a fox.")
    page.until("document.querySelector('.message.assistant').innerText.length > 20")
    page.key("Escape")
    is_answered(page)
    assert page.js("document.querySelector('.note').innerText") == "Stopped."
    page.until("fetch('/load').then((r) => r.json()).then((b) => b.server_load === 0)")


def test_a_key(serve, window):
    _, url = serve("--api-key", "sesame")
    page = window(url)
    page.expected |= {"Failed to load resource: the server responded with a status of 401 (Unauthorized)"}
    page.until("byId('key').open")
    page.type("sesame")
    page.key("Enter")
    page.until("byId('model-name').innerText === 'demo' && byId('live-state').innerText === 'Live'")
