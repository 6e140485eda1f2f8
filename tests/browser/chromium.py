"""A headless Chromium controlled over the DevTools protocol, with real mouse and key events."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SLOW_SECONDS = 100.0
"""Timeout of a start, a command or a change of the page, on a busy machine."""


def executable() -> str | None:
    """The path of a Chromium on PATH; None if there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


needs_chromium = pytest.mark.skipif(
    executable() is None, reason="no chromium on PATH; on Debian: apt-get install chromium"
)


class Browser:
    """A browser process with one tab."""

    def __init__(self, profile: Path) -> None:
        command = [str(executable()), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._open = contextlib.ExitStack()
        self._open.callback(self._process.wait)
        self._open.callback(self._process.kill)
        self._numbers = itertools.count(1)
        self._session = ""
        self.events: list[dict[str, Any]] = []
        try:
            self._attach(profile / "DevToolsActivePort")
        except BaseException:
            self.close()
            raise

    def _attach(self, port_file: Path) -> None:
        """Waits until the process has written its port, and opens the tab."""
        deadline = time.monotonic() + SLOW_SECONDS
        while not (port_file.exists() and port_file.read_text().count("\n") == 1):
            assert time.monotonic() < deadline, "chromium does not start"
            assert self._process.poll() is None, "chromium ended"
            time.sleep(0.02)
        port, path = port_file.read_text().split("\n")
        there = f"ws://127.0.0.1:{port}{path}"
        self._socket = self._open.enter_context(
            connect(there, max_size=None, proxy=None, open_timeout=SLOW_SECONDS, ping_interval=None)
        )
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)
        self.size(1280, 900)

    def close(self) -> None:
        self._open.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a DevTools command and returns its result. Events that arrive meanwhile are kept in `events`."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while (reply := json.loads(self._socket.recv(timeout=SLOW_SECONDS))).get("id") != number:
            self.events.append(reply)
        assert "error" not in reply, reply
        return reply["result"]

    def open(self, url: str) -> None:
        """Loads a page and forgets the events of the previous one."""
        self.events.clear()
        loader = self.call("Page.navigate", url=url)["loaderId"]
        while not any(self._is_load(event, loader) for event in self.events):  # until then the old page runs
            self.events.append(json.loads(self._socket.recv(timeout=SLOW_SECONDS)))

    def settle(self) -> None:
        """Waits until all animations have ended."""
        self.until("document.getAnimations().length === 0")

    def run(self, script: str) -> Any:
        """Evaluates a JavaScript expression and returns its value."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, condition: str, seconds: float = SLOW_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never: {condition}"
            time.sleep(0.02)

    def requests(self) -> list[str]:
        """URLs requested since the page was opened."""
        self.run("0")
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def failures(self) -> list[str]:
        """Exceptions and console errors since the page was opened."""
        self.run("0")
        thrown = [e["params"] for e in self.events if e.get("method") == "Runtime.exceptionThrown"]
        logged = [e["params"] for e in self.events if e.get("method") == "Runtime.consoleAPICalled"]
        return [str(t["exceptionDetails"]) for t in thrown] + [str(m) for m in logged if m["type"] == "error"]

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1 + phone, mobile=phone
        )

    def scheme(self, name: str) -> None:
        """Sets the preferred colour scheme of the system: `light` or `dark`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def hover(self, selector: str) -> None:
        x, y = self._centre(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        self.hover(selector)
        x, y = self._centre(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, selector: str, begin: float, end: float) -> None:
        """Drags across an element from one share of its width to another, such as 0.25 to 0.75."""
        left, width, y = self.run(
            f"(r => [r.left, r.width, r.top + r.height / 2])(document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect())"
        )
        places = [left + width * (begin + (end - begin) * part / 8) for part in range(9)]
        for kind, x in [("mouseMoved", places[0]), ("mousePressed", places[0]), *(("mouseMoved", x) for x in places)]:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=places[-1], y=y, button="left", clickCount=1)

    def press(self, *keys: str) -> None:
        """Presses keys by name. Example: press("Tab", "ArrowRight")."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for key in keys:
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def type(self, selector: str, text: str) -> None:
        """Replaces the text of a field."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, *files: Path) -> None:
        """Chooses files in a file field."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        field = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=field, files=[str(file) for file in files])

    def picture(self, file: Path) -> None:
        """Saves the whole page as a PNG file."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    @staticmethod
    def _is_load(event: dict[str, Any], loader: str) -> bool:
        about = event.get("params", {})
        return event.get("method") == "Page.lifecycleEvent" and (about["name"], about["loaderId"]) == ("load", loader)

    def _centre(self, selector: str) -> tuple[float, float]:
        found = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{found}.scrollIntoView({{block: 'nearest'}})")
        return tuple(self.run(f"(r => [r.left + r.width / 2, r.top + r.height / 2])({found}.getClientRects()[0])"))
