"""A headless Chromium over its DevTools pipe: no package, no port, no driver."""

import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60  # seconds until an answer


def find() -> str | None:
    """The browser's program, if there is one on PATH."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One process with one page. `call` speaks the protocol; `js` evaluates in the page."""

    def __init__(self, program: str, profile: Path):
        ours, theirs = os.pipe(), os.pipe()  # (read, write) of what we are told, and of what we say

        def wire() -> None:  # Chromium reads commands from descriptor 3 and answers on 4
            ends = os.dup(theirs[0]), os.dup(ours[1])
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
        flags += ["--disable-extensions", "--disable-background-networking", "about:blank"]
        self.process = subprocess.Popen(
            [program, *flags],
            preexec_fn=wire,
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs[0])
        os.close(ours[1])
        self.read, self.write = ours[0], theirs[1]
        self.numbers, self.rest, self.events = itertools.count(1), b"", []
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        got = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = got["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def message(self) -> dict[str, Any]:
        """The next one, ended by a null byte."""
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0, until - time.monotonic()))
            piece = os.read(self.read, 1 << 16) if ready else b""
            if not piece:
                raise RuntimeError(f"the browser says nothing (exit code {self.process.poll()})")
            self.rest += piece
        line, self.rest = self.rest.split(b"\0", 1)
        return json.loads(line)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events on the way are kept."""
        number = next(self.numbers)
        options = {"id": number, "method": method, "params": params}
        if self.session:
            options["sessionId"] = self.session
        os.write(self.write, json.dumps(options).encode() + b"\0")
        while (got := self.message()).get("id") != number:
            self.events.append(got)
        assert "error" not in got, (method, got)
        return got["result"]

    def js(self, code: str) -> Any:
        """The value of an expression; a promise is awaited."""
        got = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, (code, got)
        return got["result"].get("value")

    def open(self, path: Path) -> None:
        """Load a file; returns when it has loaded. `events` are those since then."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.message())

    def press(self, key: str) -> None:
        """A key goes down and up; a character is typed, too."""
        text = {"text": key} if len(key) == 1 else {}
        code = {"key": key, "code": "Space" if key == " " else key}
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window, in CSS pixels."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def size(self, width: int, height: int = 800) -> None:
        """Make the window so large; narrow ones are phones."""
        phone = {"deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, **phone)

    def prefer(self, **features: str) -> None:
        """prefer(color_scheme="dark"): what media queries are told."""
        values = [
            {"name": "prefers-" + k.replace("_", "-"), "value": v} for k, v in features.items()
        ]
        self.call("Emulation.setEmulatedMedia", features=values)

    def picture(self, path: Path) -> None:
        """A screenshot, for a person to look at."""
        import base64

        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.read)
        os.close(self.write)
