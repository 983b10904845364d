"""Takes the picture of a report for the front page: ``python bench/picture.py RUN_DIR``.

Opens the report.html of a run in headless Chromium (apt-get install chromium) and stores the top of
the page as docs/img/report.png; --top and --height choose another part.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REPOSITORY = Path(__file__).resolve().parents[1]


def screenshot(page: Path, width: int, height: int) -> Image.Image:
    """Return the first ``height`` pixels of a page in a window ``width`` pixels wide."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is installed")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
            f"--user-data-dir={folder}", f"--window-size={width},{height}",
            f"--screenshot={folder}/page.png", page.resolve().as_uri(),
        ]  # fmt: skip
        environment = {**os.environ, "HOME": folder}
        subprocess.run(command, env=environment, capture_output=True, timeout=120, check=True)
        return Image.open(io.BytesIO((Path(folder) / "page.png").read_bytes())).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a finished run, with report.html")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "img" / "report.png")
    parser.add_argument("--width", type=int, default=1400, help="pixels")
    parser.add_argument("--height", type=int, default=1900, help="pixels")
    parser.add_argument("--top", type=int, default=0, help="pixels to leave out above")
    arguments = parser.parse_args()
    top, bottom = arguments.top, arguments.top + arguments.height
    page = screenshot(arguments.run_dir / "report.html", arguments.width, bottom)
    picture = page.crop((0, top, arguments.width, bottom))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(arguments.out, optimize=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
