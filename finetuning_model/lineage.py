"""Going on from a router: which encoder it came from, and what it was trained on.

A checkpoint that went on from another one says so in its run.json (`recipe.continued_from`), so that its history is a
chain of folders.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prompt_files import read_records
from router_data import normalise_prompt
from router_model import PREDICTIONS_FILE, SETTINGS_FILE, VALIDATION_FILE, RouterSettings, read_run


@dataclass(frozen=True)
class ParentRouter:
    """A router to go on from.

    Attributes:
        folder: its checkpoint.
        settings: its router.json.
        encoder: hub id or local folder of the encoder it was fine-tuned from; its own folder where nothing says which.
    """

    folder: Path
    settings: RouterSettings
    encoder: str

    @property
    def encoder_name(self) -> str:
        """What checkpoints call the encoder."""
        return self.settings.base_model or Path(self.encoder).name


def parent_router(hf_model_name: str) -> ParentRouter | None:
    """The router in a folder; None where the name is that of an encoder, of the hub or a local one.

    Raises:
        InputError: the folder's router.json or config.json is not that of a router.
    """
    folder = Path(hf_model_name)
    if not (folder / SETTINGS_FILE).exists():
        return None
    return ParentRouter(folder, RouterSettings.load(folder), recorded_encoder(read_run(folder)) or str(folder))


def recorded_encoder(run: dict) -> str | None:
    """The encoder that a run.json names: hub id or local folder; None where it names none."""
    return run.get("recipe", {}).get("base") or run.get("arguments", {}).get("hf_model_name")


def history(folder: Path) -> Iterator[tuple[Path, dict]]:
    """The checkpoint and those that it went on from, the newest first, each with its run.json."""
    seen: set[Path] = set()
    while folder.resolve() not in seen:
        seen.add(folder.resolve())
        run = read_run(folder)
        yield folder, run
        parent = run.get("recipe", {}).get("continued_from")
        if not parent:
            return
        folder = Path(parent)


def trained_prompts(folder: Path) -> set[str]:
    """`normalise_prompt` of what a router, and those it went on from, were trained on.

    What they held out for validation and test is not among it. A file of theirs that is gone is warned of, since its
    rows may then be judged on though the router knows them.
    """
    trained: set[str] = set()
    for checkpoint, run in history(folder):
        paths = [Path(path) for path in run.get("train_files", [])]
        missing = [str(path) for path in paths if not path.exists()]
        if missing or not paths:
            reason = f"{', '.join(missing)} is missing" if missing else "its run.json names no files"
            warnings.warn(
                f"what {checkpoint} was trained on can't be told ({reason}), so rows that it knows may judge",
                stacklevel=2,
            )
        held_out = _prompts([checkpoint / name for name in (PREDICTIONS_FILE, VALIDATION_FILE)])
        trained |= _prompts(paths) - held_out
    return trained


def _prompts(paths: list[Path]) -> set[str]:
    present = [path for path in paths if path.exists() and path.stat().st_size]
    prompts = (record.fields.get("prompt") for record in read_records(present))
    return {normalise_prompt(prompt) for prompt in prompts if isinstance(prompt, str)}
