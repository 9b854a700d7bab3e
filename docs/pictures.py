"""Make the pictures of the README and of docs/ from a checkpoint: the page in headless Chromium, and the plots.

Reads   a checkpoint, with its plots (and those that evaluate_router.py left in <checkpoint>/evaluation/)
Writes  docs/images/*.png

Example:
    python3 docs/pictures.py --model_save_dir models/all-MiniLM-L6-v2-router-finetuning-20261123T211000-save
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import server
from router_data import InputError, program_parser, run_script
from router_model import newest_checkpoint

IMAGES = ROOT / "docs" / "images"
CHROMIUM = Path("/usr/bin/chromium")
BROWSER_FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
PROMPT = "Prove that every continuous function on a compact metric space is uniformly continuous."
PLOTS = {  # in docs/images -> in the checkpoint, the likeliest first
    "cost_quality.png": ("evaluation/*pooled*_cost_quality.png", "evaluation/*_cost_quality.png"),
    "reliability.png": ("reliability.png",),
    "scores.png": ("scores.png",),
    "training.png": ("training.png",),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Photograph the page, copy the plots."""
    args = parse_args(argv)
    folder = (args.model_save_dir or newest_checkpoint()).resolve()
    if not CHROMIUM.exists():
        raise InputError(f"no {CHROMIUM}; install it: apt-get install chromium")
    IMAGES.mkdir(exist_ok=True)

    # 1. The page
    command = [sys.executable, str(ROOT / "inference" / "run_gradio_model.py"), "--model_save_dir", str(folder)]
    with server([*command, "--no-feedback", "--server_port", "{port}"], "/") as port:
        photograph(f"http://127.0.0.1:{port}", "page.png", width=1280, scheme="light")
        photograph(f"http://127.0.0.1:{port}", "page_phone_dark.png", width=390, scheme="dark")

    # 2. The plots
    for name, patterns in PLOTS.items():
        found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        if found:
            shutil.copyfile(found[0], IMAGES / name)
            print(f"wrote docs/images/{name}, from {found[0]}")


def photograph(url: str, name: str, width: int, scheme: Literal["light", "dark"]) -> None:
    """The page with a prompt, decided on and explained."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=BROWSER_FLAGS)
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.goto(url)
        tab.fill("#prompt textarea", PROMPT)
        tab.wait_for_selector("#decision [data-decision]")
        tab.click("#explain")
        tab.wait_for_selector("#pushes .push")
        tab.wait_for_timeout(1500)  # until the nearest prompts and the plots have been drawn
        tab.screenshot(path=IMAGES / name, full_page=width < 600)
        browser.close()
    print(f"wrote docs/images/{name}")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = program_parser(__doc__)
    parser.add_argument("--model_save_dir", type=Path, metavar="DIR", help="the checkpoint's folder (default: newest)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
