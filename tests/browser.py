"""Headless Chromium for tests of a page, driven over a pipe by the DevTools protocol: no driver and no port."""

import base64
import contextlib
import json
import os
import select
import subprocess
import tempfile
import time

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--remote-debugging-pipe"]
SECONDS = 60  # for an answer; a loaded machine takes some


class Page:
    """One tab. errors: what the page said on its console as an error, and requests that left the file, so far."""

    def __init__(self, send, receive):
        self._send, self._receive, self._number, self._session = send, receive, 0, None
        self.errors = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Calls a method of the protocol and returns its result."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        self._send(message | ({"sessionId": self._session} if self._session else {}))
        return self._wait(lambda answer: answer.get("id") == number)["result"]

    def _wait(self, wanted):
        while True:
            answer = self._receive()
            if "error" in answer:
                raise RuntimeError(answer["error"])
            self._note(answer.get("method"), answer.get("params", {}))
            if wanted(answer):
                return answer

    def _note(self, method, params):
        if method == "Runtime.exceptionThrown" or method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params)
        if method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(params)
        if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("data:", "file:")):
            self.errors.append(params["request"]["url"])

    def open(self, path, *, width, height=844, dark=False):
        """Loads a file in a window of that size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        self._wait(lambda answer: answer.get("method") == "Page.loadEventFired")

    def evaluate(self, expression):
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def screenshot(self, *, whole=False, **clip) -> bytes:
        """A PNG of the window, or of the whole page."""
        options = {"captureBeyondViewport": True} if whole or clip else {}
        if clip:
            options["clip"] = clip | {"scale": 1}
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", **options)["data"])


@contextlib.contextmanager
def open_page(program):
    """A Page of a browser of its own, which is ended with the block."""
    (to_child, ours_out), (ours_in, from_child) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}"]
        # The protocol's pipe is the descriptors 3 and 4, which the shell makes of its 0 and 1.
        child = subprocess.Popen(
            ["/bin/sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh", *command],
            stdin=to_child,
            stdout=from_child,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        waiting = bytearray()

        def send(message):
            content = json.dumps(message).encode() + b"\0"
            while content:
                content = content[os.write(ours_out, content) :]

        def receive():
            deadline = time.monotonic() + SECONDS
            while b"\0" not in waiting:
                if not select.select([ours_in], [], [], max(deadline - time.monotonic(), 0))[0]:
                    raise TimeoutError("Chromium does not answer")
                if not (part := os.read(ours_in, 2**20)):
                    raise EOFError("Chromium has ended")
                waiting.extend(part)
            message, _, rest = bytes(waiting).partition(b"\0")
            waiting[:] = rest
            return json.loads(message)

        try:
            yield Page(send, receive)
        finally:
            child.kill()
            child.wait()
            os.close(ours_out)
            os.close(ours_in)
