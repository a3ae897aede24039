#!/usr/bin/env python3
"""Takes docs/img/page.png anew: the page in front of the demo model, while `moebius bench serve` is its other client. Needs
Chromium and pillow, and takes two minutes, as the plots show two minutes."""

import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests/page"), str(ROOT / "tests/server")]

from browser import Browser  # noqa: E402
from server_support import BINARY, DEMO, Server  # noqa: E402

QUESTIONS = ["Tell me a short story about a fox.", "Sort these numbers: 41, 7, 93, 25.", "What is 17 + 25?"]
ANSWERED = "!document.body.classList.contains('running') && document.querySelectorAll('.message.assistant').length === %d"


def main():
    server = Server(DEMO, "--max-num-seqs", "32", "--kv-tokens", "8192")
    url = f"http://127.0.0.1:{server.port}/"
    load = subprocess.Popen(
        [BINARY, "bench", "serve", "--url", url, "--rate", "6", "--requests", "100000", "--prompts", "shared-prefix",
         "--prefix-tokens", "256", "--prompt-tokens", "40", "--output-tokens", "60", "--concurrency", "24"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    browser = Browser()
    try:
        page = browser.page(url, scale=1.5)
        page.until("byId('model-name').innerText === 'demo'")
        page.js("settings.temperature = '0'")
        for n, question in enumerate(QUESTIONS, 1):
            page.click("#new")
            page.type(question)
            page.key("Enter")
            page.until(ANSWERED % 1)
        for n, question in enumerate(["Reverse the word planet.", "How many times does the letter e appear in cheese?"], 2):
            page.type(question)
            page.key("Enter")
            page.until(ANSWERED % n)
        page.js("document.querySelector('.thought').open = true; chat.scroller.scrollTop = 0")
        time.sleep(110)
        page.picture(ROOT / "docs/img/page.png")
    finally:
        browser.close()
        load.kill()
        load.wait()
        server.close()
    from PIL import Image

    picture = Image.open(ROOT / "docs/img/page.png").convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(ROOT / "docs/img/page.png", optimize=True)


if __name__ == "__main__":
    main()
