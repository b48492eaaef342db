"""How much the page loads, and how fast it speaks in headless Chromium: `python tests/bench_web.py`."""

import gzip
import shutil
import tempfile
import threading
from pathlib import Path

import torch
from conftest import SHIPPED
from playwright.sync_api import sync_playwright
from test_web import wait

from guppylm import checkpoint, site

MESSAGES = ["hello!", "do you like the castle?", "what did you eat today?", "are you afraid of the cat?", "good night"]


def main() -> None:
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        folder = Path(name)
        print(site.build(*checkpoint.load(SHIPPED, torch.device("cpu")), folder))
        files = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
        squeezed = sum(len(gzip.compress(file, 6)) for file in files)
        print(f"first visit: {sum(map(len, files)) / 1e6:.1f} MB, {squeezed / 1e6:.1f} MB with gzip")
        server = site.server(folder, 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        page.get_by_role("button", name="MB").click()
        wait(page, "window.guppy.ready")
        speeds = []
        for message in MESSAGES:
            page.evaluate("(text) => window.guppy.reply(text, {temperature: 0, topK: 0})", message)
            speeds.append(page.evaluate("window.guppy.tokensPerSecond"))
        print(f"one thread of WebAssembly: {sorted(speeds)[len(speeds) // 2]:.0f} tokens/s (median of {len(speeds)})")
        browser.close()


if __name__ == "__main__":
    main()
