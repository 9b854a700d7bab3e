"""The checkpoints that the page offers, and what each says about itself."""

import contextlib
import json
import re
import threading
from collections import OrderedDict
from pathlib import Path

from inference.page import html_parts
from inference.page.answers import Page
from inference.page.files import FileTab
from inference.page.neighbours import inside
from router_model import (
    CARD_FILE,
    CHECKPOINT_GLOB,
    METRICS_FILE,
    RUN_FILE,
    Router,
    is_rehearsal,
    read_config,
)

MAX_LOADED = 3
MAX_PLOTS = 8
MAX_PLOT_BYTES = 2_000_000
MAX_EVIDENCE_BYTES = 50_000_000
FIGURES = ("AUROC", "accuracy", "Brier score", "expected calibration error")


class Checkpoints:
    """The checkpoints beside one another in a folder, of which the last few used are loaded.

    Args:
        first: the page that opens first.
        hf_model_name: where tokenizers come from that a checkpoint lacks.
    """

    def __init__(self, first: Page, hf_model_name: str | None = None) -> None:
        self.first = first
        self._hf_model_name = hf_model_name
        self._folders = {first.name: first.folder}
        for path in sorted(first.folder.resolve().parent.glob(CHECKPOINT_GLOB)):
            if (path / "config.json").exists() and not is_rehearsal(path):
                self._folders.setdefault(path.name, path)
        self._loaded = OrderedDict([(first.name, FileTab(first))])
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The names to choose from, the newest first."""
        return sorted(self._folders, key=lambda name: name.rsplit("-", 2)[-2:], reverse=True)

    def get(self, name: str | None) -> Page:
        """The page of a checkpoint, which is loaded where it is not; that of the first for a name that is not offered.

        Raises:
            InputError: it can't be loaded.
        """
        return self.files(name).page

    def files(self, name: str | None) -> FileTab:
        """As `get`, its file tab."""
        with self._lock:
            folder = self._folders.get(name or "")
            if folder is None or name is None:
                return self._loaded[self.first.name]
            if name not in self._loaded:
                read_config(folder)
                page = Page(Router.load(folder, self._hf_model_name), feedback_file=self.first.feedback_file)
                self._loaded[name] = FileTab(page)
                threading.Thread(target=page.labelled.index, daemon=True).start()
            self._loaded.move_to_end(name)
            while len(self._loaded) > MAX_LOADED:
                oldest = next(other for other in self._loaded if other not in (self.first.name, name))
                del self._loaded[oldest]
            return self._loaded[name]


def about(page: Page) -> str:
    """What the checkpoint says about itself, as HTML: what it was made from, how well it does, where it is weak."""
    settings = page.router.settings
    run = _read_json(page, RUN_FILE)
    rows, files = run.get("rows"), run.get("train_files")
    trained_on = ", ".join(Path(str(name)).name for name in files) if isinstance(files, list) else ""
    count = rows.get("train") if isinstance(rows, dict) else None
    facts = [
        ("Checkpoint", page.name),
        ("Base model", settings.base_model or "not recorded"),
        ("Trained on", trained_on or "not recorded"),
        ("Rows", f"{count:,} for training" if isinstance(count, int) else "not recorded"),
        ("Trained at", str(run.get("started_at", "not recorded"))[:16].replace("T", " ")),
        ("Reads", f"{settings.max_length} tokens; of a longer prompt its beginning and its end"),
        ("Runs on", "ONNX Runtime" if page.router.backend == "onnx" else "PyTorch"),
    ]
    parts = [html_parts.table_html("What this is", facts), _figures(page)]
    parts.append(html_parts.list_html("Where it is weak", weak_spots(page, run)))
    return "".join(parts)


def _figures(page: Page) -> str:
    test = _read_json(page, METRICS_FILE).get("test") or {}
    try:
        figures = test["figures"]["this router"]
        rows = [(name, _with_interval(figures[name])) for name in FIGURES if name in figures]
        return html_parts.table_html(f"On {test['rows']:,} test prompts of its own kind, with 95% intervals", rows)
    except (KeyError, TypeError, ValueError):
        return ""


def _with_interval(figure: dict) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def weak_spots(page: Page, run: dict) -> list[str]:
    """Where the scores deserve doubt, as far as it is known."""
    spots = [
        "A prompt in a script that its encoder does not read; the card says so.",
        f"A prompt of more than {page.router.settings.max_length} tokens, of which the middle is not read.",
        "A follow-up on its own, without the conversation before it.",
        "Kinds of task that it was not trained on: judge it on outcomes of your own before you rely on it.",
    ]
    with contextlib.suppress(KeyError, TypeError, ValueError):  # of another form, or without frames
        frames = _read_json(page, METRICS_FILE)["frames"]
        kept, worst = frames["kept"]["value"], frames["worst"]["kept"]["value"]
        spots.append(
            f"A request inside what an application wraps around it: in {frames['frames']} frames {1 - kept:.0%} of the "
            f"decisions changed, in the worst {1 - worst:.0%}."
        )
    if run.get("rehearsal"):
        spots.insert(0, "This is a rehearsal, trained on few rows or steps: its routes mean nothing.")
    return spots


def card_text(page: Page) -> str:
    """The model card without front matter, pictures and raw HTML, as Markdown.

    A picture, however it is written, becomes a link: who opens the card asks nothing of other hosts.
    """
    text = _read_text(page, CARD_FILE)
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"^\|\s*\|(?=.*\n\|[\s:|-]+\n)", "| name |", text, flags=re.MULTILINE)  # a header that can be read
    text = re.sub(r"!+(?=\[)", "", text)
    return re.sub(r"<[^>]*>", "", text).replace("<", "&lt;").strip() or "This checkpoint has no model card."


def plots(page: Page) -> str:
    """The checkpoint's plots, as HTML that holds them."""
    return "".join(
        html_parts.figure_html(path.stem.replace("_", " "), path.read_bytes())
        for path in sorted(page.folder.glob("*.png"))[:MAX_PLOTS]
        if inside(path, page.folder, MAX_PLOT_BYTES)
    )


def _read_text(page: Page, name: str) -> str:
    try:
        path = inside(page.folder / name, page.folder, MAX_EVIDENCE_BYTES)
        return path.read_text(encoding="utf-8") if path else ""
    except (OSError, ValueError):
        return ""


def _read_json(page: Page, name: str) -> dict:
    try:
        value = json.loads(_read_text(page, name) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
