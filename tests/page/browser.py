"""A headless Chromium, driven by the Chrome DevTools Protocol through a pair of pipes: no driver program, no package."""

import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time

WAIT_S = 60
KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Tab": ("Tab", 9, ""),
    "Escape": ("Escape", 27, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    " ": ("Space", 32, " "),
}
SHIFT, CONTROL = 8, 2


def chromium():
    """The path of a Chromium, or None."""
    names = [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]
    return next((path for path in (shutil.which(n) for n in names if n) if path), None)


class Browser:
    """One browser process with an empty profile; `page()` opens a window."""

    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self.out = os.pipe()
        self.inp, from_browser = os.pipe()
        command = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                   "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
                   "--remote-debugging-pipe", f"--user-data-dir={self.profile.name}", "about:blank"]
        # The browser reads the protocol from descriptor 3 and writes it to 4. Both are first moved out of the way.
        low = [os.dup(to_browser), os.dup(from_browser)]
        high = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
        moved = [os.dup(fd) for fd in low]
        for fd in high + low + [to_browser, from_browser]:
            os.close(fd)

        def connect():
            os.dup2(moved[0], 3)
            os.dup2(moved[1], 4)

        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=connect,
                                        stderr=subprocess.DEVNULL, pass_fds=(3, 4), start_new_session=True)
        for fd in moved:
            os.close(fd)
        self.buffer, self.number, self.events = b"", 0, []

    def close(self):
        try:
            self.send("Browser.close")
            self.process.wait(20)
        except (OSError, AssertionError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.out)
        os.close(self.inp)
        self.profile.cleanup()

    def receive(self, timeout):
        """The next message of the browser, or None."""
        end = time.monotonic() + timeout
        while b"\0" not in self.buffer:
            if not select.select([self.inp], [], [], max(0, end - time.monotonic()))[0]:
                return None
            data = os.read(self.inp, 1 << 20)
            assert data, "the browser ended"
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def send(self, method, session=None, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive(WAIT_S)
            assert answer is not None, f"{method}: the browser does not answer"
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def page(self, url, width=1280, height=800, dark=False, phone=False, scale=0):
        return Page(self, url, width, height, dark, phone, scale)


class Page:
    """A window with storage of its own."""

    def __init__(self, browser, url, width, height, dark, phone, scale):
        self.browser = browser
        self.expected = set()  # complaints of the console that a test provokes
        self.context = browser.send("Target.createBrowserContext")["browserContextId"]
        target = browser.send("Target.createTarget", url="about:blank", browserContextId=self.context)["targetId"]
        self.session = browser.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=phone,
                  deviceScaleFactor=scale or (2 if phone else 1))
        if phone:
            self.send("Emulation.setTouchEmulationEnabled", enabled=True)
        self.media(**{"prefers-color-scheme": "dark" if dark else "light"})
        self.open(url)

    def send(self, method, **parameters):
        return self.browser.send(method, self.session, **parameters)

    def close(self):
        self.browser.send("Target.disposeBrowserContext", browserContextId=self.context)

    def media(self, **features):
        self.send("Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in features.items()])

    def open(self, url):
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self):
        self.js("window.isOld = true")
        self.send("Page.reload")
        self.until("!window.isOld && document.readyState === 'complete'")

    def js(self, expression):
        """The value of an expression; promises are awaited."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in result, f"{expression[:300]}: {str(result['exceptionDetails'])[:500]}"
        return result["result"].get("value")

    def until(self, expression):
        """Waits until the expression is true."""
        end = time.monotonic() + WAIT_S
        while True:
            try:
                value = self.js(f"Boolean({expression})")
            except AssertionError as error:  # while a page is loaded there is none to ask
                if "ontext" not in str(error):
                    raise
                value = None
            if value:
                return
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def type(self, text):
        self.send("Input.insertText", text=text)

    def key(self, name, modifiers=0):
        code, number, text = KEYS[name] if name in KEYS else (f"Key{name.upper()}", ord(name.upper()), name)
        if modifiers & CONTROL:
            text = ""
        event = {"key": name, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector):
        """A click of the mouse where the element is."""
        x, y = self.js(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "nearest"}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path):
        data = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def addresses(self):
        """Every address that this window has asked for."""
        self.js("0")
        return [e["params"]["request"]["url"] for e in self.browser.events
                if e.get("sessionId") == self.session and e["method"] == "Network.requestWillBeSent"]

    def names(self):
        """(role, name) of everything that a screen reader meets, in its order."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        value = lambda node, key: node.get(key, {}).get("value", "")  # noqa: E731
        return [(value(n, "role"), value(n, "name")) for n in nodes if not n.get("ignored")]

    def complaints(self):
        """What this window has written to the console: errors, warnings, breaches of its policy."""
        self.js("0")
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(event["params"]["exceptionDetails"].get("exception", {}).get("description", "exception"))
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"):
                found.append(event["params"]["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning"):
                found.append(json.dumps(event["params"]["args"]))
        return found
