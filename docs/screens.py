"""The pictures of README and docs: the report page of what ``make demo`` learned, in headless Chromium.

make demo && .venv/bin/python docs/screens.py personas/
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
SIZES = {"report.png": (1240, 1000), "report-phone.png": (400, 900)}


def main(folder):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        page = Path(temporary, "report.html")
        history = ROOT / "examples" / "movie_tags.jsonl"
        command = ["report", folder, "--history", str(history), "--title", "Film tags", "--out", str(page)]
        subprocess.run([Path(sys.executable).with_name("persona-dspy"), *command], check=True)
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, (width, height) in SIZES.items():
            opened = browser.new_page(viewport={"width": width, "height": height})
            opened.goto(page.as_uri())
            opened.wait_for_selector('[data-figure="before"] svg')
            opened.screenshot(path=ROOT / "docs" / "images" / name)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
