"""Make the pictures of the README and of docs/ from a checkpoint: the page in headless Chromium, and a curve.

Reads   a checkpoint, with the plots that evaluate_router.py left in <checkpoint>/evaluation/
Writes  docs/images/*.png

Example:
    python3 docs/pictures.py --model_save_dir models/all-MiniLM-L6-v2-router-finetuning-20261123T211000-save
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import chromium, server
from router_data import program_parser, run_script
from router_model import newest_checkpoint

IMAGES = ROOT / "docs" / "images"
PROMPT = "Prove that every continuous function on a compact metric space is uniformly continuous."
CURVES = ("evaluation/*pooled*_cost_quality.png", "evaluation/*_cost_quality.png")  # the likeliest first


def main(argv: Sequence[str] | None = None) -> None:
    """Photograph the page, copy the curve."""
    args = parse_args(argv)
    folder = (args.model_save_dir or newest_checkpoint()).resolve()
    IMAGES.mkdir(exist_ok=True)

    # 1. The page
    command = [sys.executable, str(ROOT / "inference" / "run_gradio_model.py"), "--model_save_dir", str(folder)]
    with server([*command, "--no-feedback", "--server_port", "{port}"], "/") as port:
        photograph(f"http://127.0.0.1:{port}", IMAGES / "page.png")

    # 2. The curve, where the checkpoint was judged on outcomes
    found = [path for pattern in CURVES for path in sorted(folder.glob(pattern))]
    if found:
        shutil.copyfile(found[0], IMAGES / "cost_quality.png")
        print(f"wrote docs/images/cost_quality.png, from {found[0]}")


def photograph(url: str, path: Path) -> None:
    """The page with a prompt, decided on and explained, its nearest labelled prompts included."""
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(url)
        tab.fill("#prompt textarea", PROMPT)
        tab.wait_for_selector("#decision [data-decision]")
        tab.click("#explain")
        tab.wait_for_selector("#pushes .push")
        while "can be searched soon" in tab.inner_text("#near"):  # a checkpoint's first page reads them
            tab.wait_for_timeout(5000)
            tab.click("#explain")
        tab.wait_for_timeout(1500)  # until the plots have been drawn
        tab.screenshot(path=path)
    print(f"wrote docs/images/{path.name}")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = program_parser(__doc__)
    parser.add_argument("--model_save_dir", type=Path, metavar="DIR", help="the checkpoint's folder (default: newest)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
