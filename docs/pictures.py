"""Draw docs/images/report.png: the top of the demo's report, as Chromium shows it.

    python docs/pictures.py                    # runs the demo in a temporary folder first
    python docs/pictures.py --run runs/demo    # takes the report of a run that is there

Playwright comes with `make setup`; the browser is the system's Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).with_name("images") / "report.png"
SIZE = {"width": 1280, "height": 930}  # px
COLORS = 128  # of the picture's palette, which keeps it small
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Draw the picture, of a run that is there or of a new one."""
    parser = argparse.ArgumentParser(description="Draw docs/images/report.png.")
    parser.add_argument("--run", type=Path, help="a run's folder with report.html in it")
    arguments = parser.parse_args()
    if arguments.run:
        draw(arguments.run / "report.html")
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vggkeras", "demo"]
        subprocess.run(command, cwd=folder, check=True)
        draw(Path(folder, "runs", "demo", "report.html"))


def draw(page: Path) -> None:
    """Save what a browser shows at the top of a page as docs/images/report.png."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"Expected one of {', '.join(BROWSERS)} to draw with: install chromium.")
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = chromium.new_page(viewport=SIZE, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        shown = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
        chromium.close()
    PICTURE.parent.mkdir(exist_ok=True)
    shown.quantize(COLORS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
