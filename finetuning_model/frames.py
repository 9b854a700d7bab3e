"""Frames: what applications wrap around a request. Training draws them, so that the router reads the request alone.

A frames file is plain text: blocks apart by a line `====`. A block with `$prompt` (the request as it is) or
`$prompt_json` (the request as a JSON string, quotes included) is a frame. A block that begins with a line `[name]` is a
part: wherever a frame says `$name`, or `$name_2`, `$name_3`, for further ones, a part of that name is drawn.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from string import Template

from router_data import InputError

TRAINING_FRAMES = Path(__file__).with_name("training_frames.txt")
MORE_FRAMES = Path(__file__).with_name("more_frames.txt")  # for finding requests; with parts of TRAINING_FRAMES
JUDGING_FRAMES = Path(__file__).parent / "probes" / "judging_frames.txt"

SEPARATOR = re.compile(r"^====[ \t]*$\n?", re.MULTILINE)
PART_NAME = re.compile(r"\[([a-z_]+)\]\n")
PLACEHOLDER = re.compile(r"\$\{?([a-z_]+?)(_\d+)?\}?(?![a-z_0-9])")
REQUEST = ("prompt", "prompt_json")


@dataclass(frozen=True)
class Frames:
    """Frames and the parts they are put together from.

    Attributes:
        evenness: characters; frames much shorter than this are drawn about equally often, longer ones more rarely.
    """

    frames: list[str]
    parts: dict[str, list[str]] = field(default_factory=dict)
    evenness: int = 80

    @classmethod
    def read(cls, path: str | Path, *more: str | Path) -> "Frames":
        """The frames of a file, and of more, which may name parts of one another.

        Raises:
            InputError: the file can't be read, holds no frame, or a frame names a part that is not there.
        """
        try:
            text = "\n====\n".join(Path(each).read_text(encoding="utf-8-sig") for each in (path, *more))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the frames in {path}: {error}") from error
        frames: list[str] = []
        parts: dict[str, list[str]] = {}
        for block in filter(str.strip, (block.strip("\n") for block in SEPARATOR.split(text))):
            if name := PART_NAME.match(block):
                parts.setdefault(name[1], []).append(block[name.end() :])
            else:
                frames.append(block)
        for number, frame in enumerate(frames, 1):
            names = {match[1] for match in PLACEHOLDER.finditer(frame)}
            if not names & set(REQUEST):
                raise InputError(f"{path}: frame {number} has no $prompt: {frame[:60]!r}")
            if missing := sorted(name for name in names - set(REQUEST) if name not in parts):
                raise InputError(f"{path}: frame {number} names ${missing[0]}, but the file has no part [{missing[0]}]")
        if not frames:
            raise InputError(
                f"{path} has no frame: blocks apart by a line ====, each with $prompt where the request is"
            )
        return cls(frames, parts)

    @cached_property
    def weights(self) -> list[float]:
        """How often each frame is drawn: short ones more often, since a long one costs as much as several."""
        draw = random.Random(0)
        return [1 / (self.evenness + len(self.wrap(frame, "", draw))) for frame in self.frames]

    def wrap_share(self, prompts: Sequence[str], share: float, seed: object) -> list[str]:
        """The prompts, a share of them (0..1) in frames drawn at random; the same for the same seed."""
        draw = random.Random(f"{seed}")
        return [
            self.wrap(draw.choices(self.frames, self.weights)[0], prompt, draw) if draw.random() < share else prompt
            for prompt in prompts
        ]

    def wrap(self, frame: str, prompt: str, draw: random.Random) -> str:
        """The prompt in this frame, its parts drawn at random."""
        values = {"prompt": prompt, "prompt_json": json.dumps(prompt, ensure_ascii=False)}
        for match in PLACEHOLDER.finditer(frame):
            if match[1] in self.parts:
                values.setdefault(match[1] + (match[2] or ""), draw.choice(self.parts[match[1]]))
        return Template(frame).safe_substitute(values)
