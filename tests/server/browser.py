"""A headless Chromium, driven over its debugging port: several tabs, scripts that await, screenshots."""

import base64
import itertools
import json
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import websocket

from tests.conftest import find_browser

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]  # fmt: skip


class Tab:
    """One page; `run` evaluates a script in it, awaits it if it is a promise, and returns what it gives."""

    def __init__(self, address):
        self._socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self._ids = itertools.count()

    def send(self, method, **params):
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := json.loads(self._socket.recv())).get("id") != number:
            pass
        return answer["result"]

    def run(self, script):
        result = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script, seconds=60):
        """Until `script` is true; returns its value. The test fails if it does not become so."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"not within {seconds} seconds: {script}"
            time.sleep(0.02)
        return value

    def screenshot(self, path, width, height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        Path(path).write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def close(self):
        self._socket.close()


@contextmanager
def chromium(folder):
    """`open_tab(url)` for as long as the browser runs; `folder` holds its profile."""
    process = subprocess.Popen(
        [find_browser(), *FLAGS, f"--user-data-dir={folder}", "--window-size=1400,900", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    tabs = []
    try:
        port_file, end = Path(folder) / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().strip()):
            assert time.monotonic() < end and process.poll() is None, "Chromium did not start"
            time.sleep(0.05)
        port = port_file.read_text().splitlines()[0]

        def open_tab(url):
            answer = httpx.put(f"http://127.0.0.1:{port}/json/new?{url}", timeout=30)
            tabs.append(Tab(answer.json()["webSocketDebuggerUrl"]))
            return tabs[-1]

        yield open_tab
    finally:
        for tab in tabs:
            tab.close()
        process.terminate()
        process.wait(20)
