"""What the page's tests share: a checkpoint with its evidence, the page on it, and a browser tab."""

import json
import shutil

import numpy as np
import pytest

from inference.page.answers import Page
from router_model import METRICS_FILE, RUN_FILE, TRADEOFF_FILE, Router

PATIENCE = 20_000  # milliseconds
EASY_PROMPT = "please open the door with apple and bread"
HARD_PROMPT = "please open the zorp with apple and bread"


@pytest.fixture(scope="package")
def checkpoint(trained_checkpoint, tmp_path_factory):
    """The trained checkpoint with what stage 3 writes for the page."""
    folder = shutil.copytree(trained_checkpoint, tmp_path_factory.mktemp("page") / trained_checkpoint.name)
    thresholds = np.round(np.linspace(0, 1, 101), 2)
    share = [float((np.linspace(0.05, 0.95, 10) >= t).mean()) for t in thresholds]
    quality = [0.6 + 0.4 * x**0.5 for x in share]
    table = {
        "measured_on": "10 validation prompts, quality expected from the soft labels", "rows": 10,
        "inferior_quality": 0.6, "thresholds": thresholds.tolist(), "superior_share": share, "quality": quality,
        "quality_low": [q - 0.05 for q in quality], "quality_high": quality,
    }  # fmt: skip
    (folder / TRADEOFF_FILE).write_text(json.dumps(table))
    figure = {"value": 0.9, "low": 0.8, "high": 0.95}
    frames = {"frames": 12, "kept": figure, "worst": {"kept": {"value": 0.6}}}
    test = {"rows": 40, "figures": {"this router": {"AUROC": figure, "accuracy": figure}}}
    (folder / METRICS_FILE).write_text(json.dumps({"test": test, "frames": frames}))
    run = {"train_files": ["rows.jsonl"], "rows": {"train": 320}, "started_at": "2026-01-02T00:00:00+00:00"}
    (folder / RUN_FILE).write_text(json.dumps(run))
    rows = (["figure"] * 6, ["---"] * 6, ["0.827"] * 6)
    wide = "\n".join(f"|{'|'.join(cells)}|" for cells in rows)
    card = f"# A card\n![plot](http://evil.example/x.png)<img src=x>\n\n{wide}"
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n{card}")
    return folder


@pytest.fixture(scope="package")
def router(checkpoint):
    return Router.load(checkpoint)


@pytest.fixture(scope="package")
def page(router):
    return Page(router)
