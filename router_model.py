"""Contract 2, the checkpoint that stage 3 saves and everything in `inference/` uses: find it, load it, score prompts.

    router = Router.load("models/bert-base-uncased-router-finetuning-20240722T133228-save")
    router.score(["What is the capital of France?"])   # array([0.03]): the superior model is hardly needed
    router.decide(["What is the capital of France?"])  # [Decision(router_label='ROUTE_TO_INFERIOR', ...)]
    router.score([[{"role": "user", "content": "Prove it."}, ..., {"role": "user", "content": "and for n = 3?"}]])

Neither gradio nor openai is imported here; torch and transformers only where the ONNX file can't serve.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import threading
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from request_text import is_application_turn, request_text
from router_data import LABELS, InputError, label_of, read_json_object, read_moderate_file, write_text_atomically

if TYPE_CHECKING:
    import tokenizers

MODELS_DIR = Path("models")
CHECKPOINT_GLOB = "*-router-finetuning-*-save"
OLD_LABELS = ("LABEL_0", "LABEL_1")  # a plain two-label checkpoint: 0 is inferior, 1 superior

# The files in a checkpoint's folder, beside those of `save_pretrained` and the ONNX file that router.json names
SETTINGS_FILE = "router.json"
METRICS_FILE = "metrics.json"
RUN_FILE = "run.json"
TRADEOFF_FILE = "tradeoff.json"
VERDICT_FILE = "verdict.json"
PREDICTIONS_FILE = "predictions.jsonl"
VALIDATION_FILE = "validation_predictions.jsonl"
CARD_FILE = "README.md"
REQUEST_FINDER_FILE = "request_finder.onnx"

CHARACTERS_PER_TOKEN = 12  # more than real text has, so text cut at this length never loses a token that is scored
MAX_TOKENIZER_CHARACTERS = 64_000_000  # that a tokenizer may make of one prompt; each takes some 20 bytes
# How many characters a rule of a tokenizer.json makes of one at most; others make fewer, or say it (see `_grown`)
GROWTH_OF_RULE = {
    "BertNormalizer": 3, "ByteLevel": 4, "Lowercase": 3, "Metaspace": 3, "NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18
}  # fmt: skip
MAX_LETTERS = 2000  # characters whose script is looked at
WORD = re.compile(r"[^\W\d_]{3,}")
MIN_READABLE_WORDS = 3  # fewer are no request, so a text in an unread script stays whole
MIN_READABLE_SHARE = 0.1  # of the letters
MIN_FRAMED_TOKENS = 64  # shorter texts are not looked into for a frame, which costs as much as their score
BATCH_TOKENS = 4096  # padded tokens in one forward pass of many prompts
MAX_CORES = 8  # for one prompt; further cores would mostly wait for one another
SPIN_SECONDS = 0.0002  # how long the other cores' threads wait for the next operator before they sleep

Backend = Literal["onnx", "torch"]
Evidence = TypeVar("Evidence", bound=BaseModel)


class UserTurns(list[str]):
    """What the user said in a conversation, turn by turn, as `user_turns` finds it: at least one turn."""


# A text, the messages of a conversation in the form of the chat completions API, or the user's turns of one
Prompt = str | Sequence[dict] | UserTurns


class ForwardPass(Protocol):
    """A model that turns token ids into logits."""

    def logits(self, rows: list[list[int]]) -> np.ndarray:
        """Token ids of some prompts, special tokens included -> logits, float32, shape (len(rows), 2)."""
        ...


class OnnxRecord(BaseModel):
    """How the checkpoint's ONNX file was made, and how far its scores are from those of the fp32 model."""

    model_config = ConfigDict(extra="allow")

    scheme: str = Field(description="the precision")
    reason: str | None = Field(default=None, description="why it is not int8 throughout")
    rows: int = Field(description="rows compared")
    mean_change: float = Field(description="mean |change| of the superior probability against fp32")
    max_change: float = Field(description="the largest")
    auroc_loss: float | None = Field(default=None, description="AUROC of fp32 minus its own; none with one class only")
    export_error: float | None = Field(default=None, description="largest |change|, fp32 ONNX against PyTorch")
    not_rewritten: str | None = Field(default=None, description="why the graph is the plain, slower one")
    tried: list[dict] = Field(default=[], description="the same figures for each scheme tried")
    weights: str = Field(default="", description="fingerprint of the weights it was made from")
    file: str = Field(default="", description="fingerprint of the ONNX file")


class RouterSettings(BaseModel):
    """`router.json`, the part of a checkpoint that says how its scores are made and used."""

    model_config = ConfigDict(extra="allow")

    base_model: str | None = Field(default=None, description="what was fine-tuned")
    continued_from: str | None = Field(default=None, description="the router whose weights training went on from")
    max_length: int = Field(default=512, ge=8, description="tokens scored at most, special tokens included")
    finder_length: int | None = Field(
        default=None, ge=8, description="tokens read to find a request in its frame (default: max_length)"
    )
    long_prompt_policy: Literal["head_tail"] = Field(
        default="head_tail", description="of a longer prompt the first and the last half of max_length are scored"
    )
    temperature: float = Field(default=1.0, gt=0, description="the logits are divided by it (temperature scaling)")
    threshold: float = Field(default=0.5, ge=0, le=1, description="superior from this probability on")
    thresholds: dict[str, float] = Field(default={}, description="thresholds that meet named targets")
    scripts: list[str] | None = Field(
        default=None, description="scripts the encoder reads, by their Unicode names (default: told by its vocabulary)"
    )
    unfamiliar_route: Literal["superior", "inferior", "score"] = Field(
        default="superior", description="where a prompt goes that the encoder cannot read; score: as its score says"
    )
    onnx_file: str | None = Field(default=None, pattern=r"^[\w.-]+$", description="the ONNX file that CPUs use")
    onnx: OnnxRecord | None = Field(default=None, description="what that file is")

    @classmethod
    def load(cls, folder: Path) -> "RouterSettings":
        """A checkpoint's settings; without a router.json, those of a plain two-label checkpoint, with a warning.

        Raises:
            InputError: as `read_config`, or router.json is not valid.
        """
        config = read_config(folder)
        path = folder / SETTINGS_FILE
        if not path.exists():
            warnings.warn(
                f"{folder.name} has no {SETTINGS_FILE}: taking label 1 as {LABELS[1]}, temperature 1, threshold 0.5",
                stacklevel=3,
            )
            positions = config.get("max_position_embeddings")
            return cls(max_length=min(512, positions) if isinstance(positions, int) and positions >= 8 else 512)
        try:
            return cls.model_validate_json(read_moderate_file(path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "file"
            raise InputError(f"{path}: {where}: {first['msg']}; copy the checkpoint again") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{path} can't be read ({error}); copy the checkpoint again") from error

    def save(self, folder: Path) -> None:
        """Write the folder's router.json; a reader never sees half of it."""
        write_text_atomically(folder / SETTINGS_FILE, self.model_dump_json(indent=2) + "\n")


class TradeoffTable(BaseModel):
    """`tradeoff.json`: what each threshold brings on the validation prompts, as stage 3 measured it for the page.

    The lists have one entry per threshold, thresholds rising.
    """

    model_config = ConfigDict(extra="allow")

    measured_on: str = Field(description="which prompts, and where their quality comes from, in words")
    rows: int = Field(description="how many prompts")
    inferior_quality: float = Field(description="mean quality of the inferior model alone, relative to the superior's")
    thresholds: list[float] = Field(description="SUPERIOR exactly when the router score reaches it")
    superior_share: list[float] = Field(description="share of the prompts sent to the superior model, 0..1")
    quality: list[float] = Field(description="quality of the routed answers, relative to the superior model alone")
    quality_low: list[float] = Field(description="lower end of its 95% bootstrap interval over prompts")
    quality_high: list[float] = Field(description="upper end")

    @classmethod
    def load(cls, folder: Path) -> "TradeoffTable | None":
        """The folder's table; None where there is none, with a warning where there is a broken one."""
        return _read_evidence(cls, folder / TRADEOFF_FILE)

    def at(self, threshold: float) -> int:
        """The position of the nearest threshold in the table."""
        return int(np.argmin(np.abs(np.array(self.thresholds) - threshold)))


class Verdict(BaseModel):
    """`verdict.json`: whether routing pays, as evaluate_router.py found it on outcomes of the two models."""

    model_config = ConfigDict(extra="allow")

    pays: bool = Field(description="whether routing is shown to beat sending as many prompts at random")
    sentences: list[str] = Field(
        description="what routing saves for what quality, and what to do next: two sentences for people, plain text"
    )
    measured_on: str = Field(description="which prompts, in words")
    rows: int = Field(description="how many prompts")
    threshold: float = Field(ge=0, le=1, description="the threshold that was judged")
    superior_share: float = Field(description="share of the prompts sent to the superior model there, 0..1")
    quality: float = Field(description="quality of the routed answers there, relative to the superior model alone")
    quality_low: float = Field(description="lower end of its 95% bootstrap interval over prompts")
    quality_high: float = Field(description="upper end")
    evaluated_at: str = Field(description="ISO 8601, UTC")

    @classmethod
    def load(cls, folder: Path) -> "Verdict | None":
        """The folder's verdict; None where there is none, with a warning where there is a broken one."""
        return _read_evidence(cls, folder / VERDICT_FILE)


def _read_evidence(evidence_type: type[Evidence], path: Path) -> Evidence | None:
    """A file that a checkpoint may have; None where it has none, with a warning where it is broken."""
    try:
        return evidence_type.model_validate_json(read_moderate_file(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} is not used: {type(error).__name__}", stacklevel=3)
        return None


@dataclass(frozen=True)
class Encoded:
    """A prompt as the model sees it."""

    ids: list[int]
    text_ids: list[int] | None  # of a text or a conversation of one turn: as many as finding a request takes
    truncated: bool
    characters_received: int
    unfamiliar: bool


@dataclass(frozen=True)
class Decision:
    """Where a prompt goes, and what that rests on.

    Attributes:
        router_label: ROUTE_TO_INFERIOR or ROUTE_TO_SUPERIOR.
        router_score: probability that the superior model is needed, 0..1.
        threshold: SUPERIOR exactly when the score reaches it.
        truncated: whether only the prompt's head and tail were scored.
        tokens_scored: tokens the model read, special tokens included.
        characters_received: length of the prompt, of all user turns together.
        unfamiliar: whether the encoder cannot read the prompt (its script, or most of its tokens), so that its score
            says little; router.json says where such a prompt goes.
        framed: whether a part of the prompt was taken for the request, and scored alone.
    """

    router_label: str
    router_score: float
    threshold: float
    truncated: bool
    tokens_scored: int
    characters_received: int
    unfamiliar: bool = False
    framed: bool = False


def newest_checkpoint(models_dir: str | Path = MODELS_DIR) -> Path:
    """The finished checkpoint with the latest timestamp in its name, rehearsals (--limit, --max_steps) left out.

    Raises:
        InputError: there is none.
    """
    found = [path for path in Path(models_dir).glob(CHECKPOINT_GLOB) if (path / "config.json").exists()]
    finished = [path for path in found if not is_rehearsal(path)]
    if not finished:
        what = "no checkpoint but rehearsals" if found else "no checkpoint"
        raise InputError(f"{what} in {models_dir}/; make one: python3 finetuning_model/finetune_bert.py --help")
    return max(finished, key=lambda path: (path.name.rsplit("-", 2)[-2], path.stat().st_mtime))


def is_rehearsal(folder: Path) -> bool:
    """Whether a checkpoint's run.json says that it was trained on few rows or steps, to try the program."""
    return bool(read_run(folder).get("rehearsal"))


def read_run(folder: Path) -> dict:
    """A checkpoint's run.json; empty where it has none that can be read."""
    try:
        return read_json_object(folder / RUN_FILE)
    except (OSError, ValueError):
        return {}


def calibrated(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Superior probabilities, shape (n,), from logits of shape (n, 2): sigmoid((superior - inferior) / temperature)."""
    margin = (logits[:, 1] - logits[:, 0]).astype(np.float64) / temperature
    return 0.5 * (1 + np.tanh(margin / 2))


def user_turns(messages: Sequence[dict]) -> UserTurns:
    """The user's own words in a conversation, turn by turn; a content is a text or a list of content parts.

    Other roles count for nothing: a long system prompt says nothing about how hard the question is. Nor does what an
    application adds to the user's turns (request_text.py has the list): a turn of nothing else is left out. Of the
    parts only texts can be scored. Where no words are left there is one empty turn.

    Raises:
        InputError: a message is not one, or none is the user's.
    """
    try:
        texts = [_text_of(message.get("content")) for message in messages if message["role"] == "user"]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError("a conversation is a list of messages, each with a role and a content") from error
    if not texts:
        raise InputError("the conversation has no message of the user")
    requests = (request_text(text) for i, text in enumerate(texts) if not is_application_turn(text, is_first=i == 0))
    return UserTurns([request for request in requests if request.strip()] or [""])


def _text_of(content: str | Sequence[dict] | None) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or () if isinstance(part.get("text"), str))


class PromptEncoder:
    """Turns prompts into token ids; the same for training and for every backend.

    A prompt longer than `max_length` tokens keeps its first and its last half, special tokens included. Of a very
    long text only the characters that could end up there are tokenised at all: 1 MB costs hardly more than 512 tokens.

    A conversation is scored as its user turns, one after the other: the last one as a prompt is, and of the earlier
    ones, which say what a short last one is about, as much as still fits, from both ends again.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        max_length: tokens at most.
        scripts: the scripts it reads (default: told by its vocabulary).
        finder_length: tokens at most of a text in which a request is looked for (default: max_length).
    """

    def __init__(
        self,
        tokenizer: "tokenizers.Tokenizer",
        max_length: int,
        scripts: Sequence[str] | None = None,
        finder_length: int | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.finder_length = finder_length or max_length
        self._scripts = scripts
        unknown = getattr(tokenizer.model, "unk_token", None)
        self._unknown_id = tokenizer.token_to_id(unknown) if isinstance(unknown, str) else None
        with _tokenizer_faults():
            self._empty = empty = tokenizer.encode("").ids
            full = tokenizer.encode("a").ids
        self._prefix = next((i for i, (a, b) in enumerate(zip(empty, full, strict=False)) if a != b), len(empty))
        self._suffix = len(empty) - self._prefix

    def encode(self, prompts: Sequence[Prompt]) -> list[Encoded]:
        """Each prompt as token ids. A text alone, or the messages of one conversation alone, are one prompt."""
        if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], dict)):
            prompts = [prompts]  # type: ignore[list-item]
        pairs = [_split_last_turn(prompt) for prompt in prompts]
        earlier = self._tokenize([self._readable(text) for text, _ in pairs])
        last = self._tokenize([self._readable(text) for _, text in pairs])
        return [self._join_turns(*row) for row in zip(pairs, earlier, last, strict=True)]

    def with_offsets(self, prompt: str) -> tuple[str, list[int], list[tuple[int, int]]]:
        """What an explanation needs of a prompt.

        Returns:
            The text that was tokenised; its ids, as many as finding a request takes; and for each id the characters of
            that text it stands for, start and end (equal for special tokens).
        """
        text = self._readable(request_text(prompt))
        with _tokenizer_faults():
            encoding = self.tokenizer.encode(text)
        return (
            text,
            _head_and_tail(encoding.ids, self.finder_length),
            _head_and_tail(encoding.offsets, self.finder_length),
        )

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        with _tokenizer_faults():
            if len(texts) == 1:  # the tokenizer's threads take longer to wake than one text takes
                return [self.tokenizer.encode(texts[0]).ids] if texts[0] else [self._empty]
            return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]

    def _join_turns(self, pair: tuple[str, str], earlier: list[int], last: list[int]) -> Encoded:
        before = earlier[self._prefix : len(earlier) - self._suffix]
        was_clipped = max(map(len, pair)) > 2 * CHARACTERS_PER_TOKEN * self.max_length
        truncated = was_clipped or len(before) + len(last) > self.max_length
        room = max(0, self.max_length - len(last))
        text_ids = None if pair[0] else _head_and_tail(last, self.finder_length)
        last = _head_and_tail(last, self.max_length)
        ids = last[: self._prefix] + _head_and_tail(before, room) + last[self._prefix :]
        return Encoded(ids, text_ids, truncated, sum(map(len, pair)), self._is_unfamiliar(pair, ids))

    def span_of_request(self, log_odds: np.ndarray) -> slice:
        """Where a request begins and ends in the token ids of a text.

        It is the run of tokens with the highest sum of log-odds; the whole text where none has more than 0.

        Args:
            log_odds: that each token is of the request, not of a frame around it, special tokens included.
        """
        end = len(log_odds) - self._suffix
        sums = np.concatenate([[0.0], np.cumsum(log_odds[self._prefix : end], dtype=np.float64)])
        if len(sums) == 1 or log_odds[self._prefix : end].max() <= 0:
            return slice(self._prefix, end)
        last = int(np.argmax(sums[1:] - np.minimum.accumulate(sums)[:-1])) + 1
        first = int(np.argmin(sums[:last]))
        return slice(self._prefix + first, self._prefix + last)

    def alone(self, tokens: list, request: slice) -> list:
        """The ids that are scored of a request in its frame; or of whatever else there is one of a token."""
        alone = tokens[: self._prefix] + tokens[request] + tokens[len(tokens) - self._suffix :]
        return _head_and_tail(alone, self.max_length)

    @cached_property
    def scripts(self) -> frozenset[str]:
        """The scripts the encoder reads, by the first word of their letters' Unicode names: LATIN, CJK, ..."""
        return frozenset(readable_scripts(self.tokenizer) if self._scripts is None else self._scripts)

    def _is_unfamiliar(self, pair: tuple[str, str], ids: list[int]) -> bool:
        content = len(ids) - len(self._empty)
        if self._unknown_id is not None and 2 * ids.count(self._unknown_id) > content > 0:
            return True
        if all(map(str.isascii, pair)):
            return False
        text = "\n".join(pair)[:MAX_LETTERS]
        unreadable = self._unreadable_letters(text)
        lost = sum(letter in unreadable for letter in text)
        return 2 * lost > sum(map(str.isalpha, text)) and self._without(text, unreadable) is None

    def _readable(self, text: str) -> str:
        """What is tokenised of a text: the characters that may be scored, without letters that cannot be read.

        An English request inside a Korean form is read as the request alone. Where too little could be read, the text
        stays whole.
        """
        half = CHARACTERS_PER_TOKEN * self.max_length
        if len(text) > 2 * half:
            text = f"{text[:half]} {text[-half:]}"
        if text.isascii():
            return text
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # tokenizers take no lone surrogates
        return self._without(text, self._unreadable_letters(text)) or text

    def _unreadable_letters(self, text: str) -> frozenset[str]:
        return frozenset(c for c in set(text) if c.isalpha() and script_of(c) not in self.scripts)

    def _without(self, text: str, letters: frozenset[str]) -> str | None:
        """The text without these letters; None where nothing goes, or where too little stays to be a request."""
        if not letters:
            return None
        kept = text.translate({ord(letter): " " for letter in letters})
        words = WORD.findall(kept)
        share = sum(map(len, words)) / sum(map(str.isalpha, text))
        return kept if len(words) >= MIN_READABLE_WORDS and share >= MIN_READABLE_SHARE else None


@contextmanager
def _tokenizer_faults() -> Iterator[None]:
    """Whatever a tokenizer raises, as an InputError; its panics (a regular expression without end) are no Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"the checkpoint's tokenizer can't read a prompt: {error}") from None


def readable_scripts(tokenizer: "tokenizers.Tokenizer") -> list[str]:
    """The scripts with a real share in a tokenizer's vocabulary: 1,000 entries, or one in twenty of those with letters.

    An English vocabulary holds some hundred single letters of other scripts, from which no word can be read.
    """
    entries: Counter[str] = Counter()
    for token in range(tokenizer.get_vocab_size()):
        scripts = {script_of(letter) for letter in tokenizer.decode([token]) if letter.isalpha()}
        if len(scripts) == 1:
            entries[scripts.pop()] += 1
    enough = min(1000, entries.total() / 20)
    return sorted(script for script, count in entries.items() if count >= enough)


@lru_cache(maxsize=65536)
def script_of(letter: str) -> str:
    """The script of a letter: the first word of its Unicode name."""
    return unicodedata.name(letter, "UNKNOWN").split()[0]


def _split_last_turn(prompt: Prompt) -> tuple[str, str]:
    """The earlier turns, each with a blank line behind it, and the last one."""
    if isinstance(prompt, str):
        return "", request_text(prompt)
    *earlier, last = prompt if isinstance(prompt, UserTurns) else user_turns(prompt)
    return "".join(f"{turn}\n\n" for turn in earlier), last


def _head_and_tail(items: list, size: int) -> list:
    """The first and the last half of a list that is longer than `size`."""
    return items if len(items) <= size else items[: size // 2] + items[len(items) - (size - size // 2) :]


class Router:
    """A loaded checkpoint. Safe to use from several threads at once.

    With a request finder, a request that an application put into a frame (instructions, sources, forms, an e-mail)
    is found first, and scored alone.

    Attributes:
        model_save_dir: the checkpoint's folder; None for a model that is not saved yet.
        settings: its `router.json`.
        encoder: turns prompts into token ids.
        model: turns token ids into logits.
        backend: "onnx" or "torch".
        request_finder: turns token ids into log-odds that a token is of the request; None: texts are scored whole.
    """

    def __init__(
        self,
        settings: RouterSettings,
        encoder: PromptEncoder,
        model: ForwardPass,
        backend: Backend,
        model_save_dir: Path | None = None,
        request_finder: "OnnxModel | None" = None,
    ) -> None:
        self.settings = settings
        self.encoder = encoder
        self.model = model
        self.backend = backend
        self.model_save_dir = model_save_dir
        self.request_finder = request_finder
        self.score(["warm up"])  # the first pass is several times slower
        if request_finder:
            self.score(["warm up " * MIN_FRAMED_TOKENS])  # which also shows whether it fits

    @classmethod
    def load(
        cls, model_save_dir: str | Path, hf_model_name: str | None = None, backend: Backend | None = None
    ) -> "Router":
        """Load a checkpoint's folder.

        Args:
            model_save_dir: the folder, of this project or any two-label `save_pretrained` folder.
            hf_model_name: where the tokenizer comes from if the folder has none; else only compared with the base.
            backend: "onnx" or "torch"; by default ONNX Runtime where the folder has its file and no GPU is there.

        Raises:
            InputError: there is no checkpoint, it is not one of a router, or its tokenizer can't be had.
        """
        folder = Path(model_save_dir)
        config = read_config(folder)
        settings = RouterSettings.load(folder)
        if hf_model_name and settings.base_model and _short_name(hf_model_name) != _short_name(settings.base_model):
            warnings.warn(
                f"{folder.name} was fine-tuned from {settings.base_model}, not {hf_model_name}; its own files are used",
                stacklevel=2,
            )
        tokenizer = load_tokenizer(folder, hf_model_name, settings.max_length)
        encoder = PromptEncoder(tokenizer, settings.max_length, settings.scripts, settings.finder_length)
        if backend is None:
            backend = _backend_for(folder, settings)
        elif backend == "onnx" and (fault := onnx_fault(folder, settings)):
            raise InputError(f"{fault}; make it: python3 finetuning_model/export_onnx.py --model_save_dir {folder}")
        model: ForwardPass
        try:
            if backend == "onnx":
                model = OnnxModel(folder / str(settings.onnx_file))
            else:
                model = TorchModel(_load_torch_model(folder), config.get("pad_token_id") or 0)
            finder = folder / REQUEST_FINDER_FILE
            return cls(settings, encoder, model, backend, folder, OnnxModel(finder) if finder.exists() else None)
        except InputError:
            raise
        except Exception as error:  # of either library, where the files don't fit one another
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{folder} can't score a prompt ({reason}); copy the checkpoint again") from error

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, settings: RouterSettings, request_finder: "OnnxModel | None" = None
    ) -> "Router":
        """A router of a model in memory, scored by PyTorch in fp32: what training and evaluation measure.

        Args:
            model: a sequence classifier of transformers with two labels; it is put into evaluation mode.
            tokenizer: its tokenizer, of transformers.
            settings: maximum length, temperature and threshold.
            request_finder: as the attribute.
        """
        encoder = PromptEncoder(
            tokenizer.backend_tokenizer, settings.max_length, settings.scripts, settings.finder_length
        )
        forward = TorchModel(model, tokenizer.pad_token_id or 0)
        return cls(settings, encoder, forward, "torch", request_finder=request_finder)

    def score(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Calibrated probability that the superior model is needed, float64, shape (len(prompts),).

        A prompt is a text or a conversation: a list of messages with role and content. A single text counts as one.
        """
        return self.score_ids(self._requests(self.encoder.encode(prompts)))

    def decide(self, prompts: Sequence[Prompt], threshold: float | None = None) -> list[Decision]:
        """Route each prompt: to the superior model where its score reaches the threshold (default: its own).

        A single text counts as one prompt.
        """
        threshold = self.settings.threshold if threshold is None else threshold
        encoded = self.encoder.encode(prompts)
        requests = self._requests(encoded)
        scores = self.score_ids(requests)
        return [
            Decision(
                router_label=self.route(score, threshold, row.unfamiliar),
                router_score=float(score),
                threshold=threshold,
                truncated=row.truncated,
                tokens_scored=len(request),
                characters_received=row.characters_received,
                unfamiliar=row.unfamiliar,
                framed=request != row.ids,
            )
            for score, row, request in zip(scores, encoded, requests, strict=True)
        ]

    def route(self, score: float, threshold: float, unfamiliar: bool) -> str:
        """The label of a router score; what the encoder cannot read goes where router.json says."""
        if unfamiliar and self.settings.unfamiliar_route != "score":
            return LABELS[self.settings.unfamiliar_route == "superior"]
        return label_of(score, threshold)

    def logits(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """The model's logits before calibration, float32, shape (len(prompts), 2)."""
        return self.model.logits(self._requests(self.encoder.encode(prompts)))

    def find_requests(self, rows: list[list[int]]) -> list[slice]:
        """Where in token ids, special ones included, the request stands; all but the special ones without a finder."""
        found = [np.ones(len(row)) for row in rows]
        if self.request_finder:
            long = [i for i, row in enumerate(rows) if len(row) >= MIN_FRAMED_TOKENS]
            for i, log_odds in zip(long, self.request_finder.outputs([rows[i] for i in long]), strict=True):
                found[i] = log_odds[0, :, 0]
        return [self.encoder.span_of_request(log_odds) for log_odds in found]

    def _requests(self, encoded: Sequence[Encoded]) -> list[list[int]]:
        """The token ids that are scored; of a conversation every turn counts."""
        requests = [row.ids for row in encoded]
        if self.request_finder:
            texts = {i: tuple(row.text_ids) for i, row in enumerate(encoded) if row.text_ids}
            distinct = list(dict.fromkeys(texts.values()))
            found = dict(zip(distinct, self.find_requests(list(map(list, distinct))), strict=True))
            for i, ids in texts.items():
                requests[i] = self.encoder.alone(list(ids), found[ids])
        return requests

    def score_ids(self, rows: list[list[int]]) -> np.ndarray:
        """The scores of prompts that are token ids already, special tokens included, as they are; shape (len(rows),).

        Rows that are the same are scored once.
        """
        if not rows:
            return np.empty(0)
        positions: dict[tuple[int, ...], int] = {}
        at = [positions.setdefault(tuple(row), len(positions)) for row in rows]
        logits = self.model.logits(list(map(list, positions)))
        return calibrated(logits, self.settings.temperature)[at]


# What names the router in a request to an OpenAI client: "router", or with a threshold of its own "router-0.35"
ROUTER_MODEL = re.compile(r"router(?:-(0(?:\.\d{1,9})?|1(?:\.0{1,9})?))?")


def parse_router_model(name: str) -> tuple[bool, float | None]:
    """Whether a model's name asks for the router's choice, and the threshold that it names (None: the router's own)."""
    match = ROUTER_MODEL.fullmatch(name)
    return bool(match), float(match[1]) if match and match[1] else None


def scorable_turns(messages: Sequence[dict]) -> UserTurns | None:
    """The user's turns as the router reads them; None where the user says nothing that could be scored.

    Raises:
        InputError: a message is not one.
    """
    if all(isinstance(message, dict) and message.get("role") not in (None, "user") for message in messages):
        return None
    turns = user_turns(messages)
    return turns if turns[-1] else None


def batches_of_like_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions grouped by like length, so that each group's padded size is at most `batch_tokens`, or one row's."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and lengths[i] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def pad_rows(rows: list[list[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and attention mask of rows of token ids, int64, shape (len(rows), length of the longest)."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def read_config(folder: Path) -> dict:
    """The checkpoint's config.json, which must be that of a router.

    Raises:
        InputError: there is no checkpoint, or it has other labels than a router.
    """
    if not folder.is_dir():
        raise InputError(
            f"no model folder at {folder}; make one: python3 finetuning_model/finetune_bert.py, "
            "or name another with --model_save_dir"
        )
    try:
        config = read_json_object(folder / "config.json")
    except FileNotFoundError:
        raise InputError(
            f"{folder} is not a checkpoint: it has no config.json; name one with --model_save_dir"
        ) from None
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'} is not JSON ({error}); copy the checkpoint again") from error
    try:
        labels = config.get("id2label") or {i: f"LABEL_{i}" for i in range(min(config.get("num_labels", 2), 99))}
        names = tuple(str(name) for _, name in sorted(labels.items(), key=lambda item: int(item[0])))
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"{folder / 'config.json'} does not name its labels; copy the checkpoint again") from None
    if len(names) != 2:
        raise InputError(
            f"{folder} has {len(names)} labels ({', '.join(names)}); a router has two, {' and '.join(LABELS)}"
        )
    if names not in (LABELS, OLD_LABELS):
        raise InputError(f"{folder} tells {' from '.join(names)}, not {' from '.join(LABELS)}: it is not a router")
    return config


def _short_name(model_name: str) -> str:
    return model_name.rstrip("/").rsplit("/", 1)[-1]


def load_tokenizer(folder: Path, hf_model_name: str | None = None, max_length: int = 512) -> "tokenizers.Tokenizer":
    """The tokenizer in a checkpoint's folder, else that of `hf_model_name`.

    Raises:
        InputError: neither can be had, or its rules could take all memory.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    for other in sorted({path, *folder.glob("tokenizer.*.json")}):  # transformers takes one for its version
        if other.exists():
            text = _checked_tokenizer(other, max_length)
    if path.exists():
        try:
            return Tokenizer.from_str(text)
        except Exception as error:  # tokenizers has no error of its own
            raise InputError(f"{path}: {error}; copy the checkpoint again") from error
    from transformers import AutoTokenizer

    own = any((folder / name).exists() for name in ("tokenizer_config.json", "vocab.txt"))
    if not own and not hf_model_name:
        raise InputError(
            f"{folder} has no tokenizer; name its base model, for example --hf_model_name bert-base-uncased"
        )
    try:
        return AutoTokenizer.from_pretrained(
            folder if own else hf_model_name, local_files_only=own, trust_remote_code=False
        ).backend_tokenizer
    except (OSError, ValueError) as error:
        raise InputError(
            f"the tokenizer of {hf_model_name or folder} can't be had ({str(error).splitlines()[0]}); "
            "name a model of the hub or a local folder with --hf_model_name"
        ) from error


def _checked_tokenizer(path: Path, max_length: int) -> str:
    """The text of a tokenizer.json whose rules keep what they make of a prompt within memory.

    Rust's memory is not Python's: a rule that writes a thousand characters for one ends the process, with no error.

    Raises:
        InputError: they don't, or the file is none.
    """
    try:
        text = read_moderate_file(path).decode()
        size = longest_text(json.loads(text, object_pairs_hook=_without_repeated_keys), max_length)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a tokenizer ({reason}); copy the checkpoint again") from error
    if size > MAX_TOKENIZER_CHARACTERS:
        raise InputError(
            f"{path}: its rules may make {size:.0e} characters of one prompt, more than memory holds; "
            "load checkpoints of people you trust only"
        )
    return text


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a repeated key another reader might take another value."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return fields


def longest_text(tokenizer: dict, max_length: int) -> float:
    """How many characters the rules of a tokenizer.json may make of a prompt or of a token, at most."""
    model = tokenizer["model"]
    named = [str(model.get(name) or "") for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix")]
    if model.get("unk_id") is not None:
        named.append(str(model["vocab"][model["unk_id"]][0]))
    name = max(16, *map(len, named))  # of what may stand for a single character
    tokens = sum(len(token["content"]) for token in tokenizer.get("added_tokens") or ())
    size = float(max(2 * CHARACTERS_PER_TOKEN * max_length, tokens))
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        size = _grown(size, tokenizer.get(part))
    return max(size * name / 16, _grown(float(tokens + max_length), tokenizer.get("decoder")))


def _grown(size: float, rule: dict | None) -> float:
    """How long a text of this length may be after one rule of a tokenizer.json, and those within it."""
    if rule is None:
        return size
    kind = rule["type"]
    if kind == "Sequence":
        for name in ("normalizers", "pretokenizers", "processors", "decoders"):
            for inner in rule.get(name) or ():
                size = _grown(size, inner)
        return size
    if kind == "Prepend":
        return size + len(rule["prepend"])
    if kind == "Replace":  # a regular expression may match between any two characters
        replaced = len(rule["pattern"].get("String") or "")
        return size * max(1, len(rule["content"]) / replaced if replaced else 1 + len(rule["content"]))
    if kind == "Precompiled":  # sentencepiece's: a trie behind its length, then the replacements
        table = base64.b64decode(rule.get("precompiled_charsmap") or "")
        return size * max(1, *map(len, table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")))
    if kind == "TemplateProcessing":
        pieces = [piece for template in (rule["single"], rule["pair"]) for piece in template]
        special = [rule["special_tokens"][piece["SpecialToken"]["id"]] for piece in pieces if "SpecialToken" in piece]
        copies = sum("Sequence" in piece for piece in rule["single"])
        return size * max(1, copies) + sum(len(token["ids"]) + len("".join(token["tokens"])) for token in special)
    return size * GROWTH_OF_RULE.get(kind, 1)


def weight_files(folder: Path) -> list[Path]:
    """The files with the checkpoint's weights."""
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def fingerprint(files: Sequence[Path]) -> str:
    """Tells other weights from these in a few milliseconds: a hash of the sizes and of 4 KiB blocks of the files.

    The first and last 64 KiB are read whole (a classifier's weights are there), 64 blocks evenly from between, of which
    any further training changes some. It guards against mistakes, not against forgery.
    """
    digest = hashlib.sha256()
    block, ends = 4096, 65536
    for path in files:
        size = path.stat().st_size
        digest.update(str(size).encode())
        with open(path, "rb") as file:
            digest.update(file.read(ends))
            for step in range(64):
                file.seek(ends + step * max(0, size - 2 * ends) // 64)
                digest.update(file.read(block))
            file.seek(max(0, size - ends))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def onnx_fault(folder: Path, settings: RouterSettings) -> str | None:
    """Why the checkpoint's ONNX file can't serve; None where it can."""
    if not settings.onnx_file:
        return f"{folder} has no ONNX file"
    path = folder / settings.onnx_file
    if not path.is_file():
        return f"{path} is missing"
    weights = weight_files(folder)
    if not settings.onnx or settings.onnx.file != fingerprint([path]):
        return f"{path} is not the file that router.json describes"
    if weights and settings.onnx.weights != fingerprint(weights):
        return f"{path} was made from other weights than {weights[0].name}"
    return None


def _backend_for(folder: Path, settings: RouterSettings) -> Backend:
    """PyTorch on a GPU, ONNX Runtime without one, PyTorch where the ONNX file can't serve."""
    if os.path.exists("/dev/nvidiactl") and weight_files(folder):  # ask torch only where there may be one: it is slow
        import torch

        if torch.cuda.is_available():
            return "torch"
    fault = onnx_fault(folder, settings)
    if fault and settings.onnx_file:
        warnings.warn(
            f"{fault}, so PyTorch is used; make it anew: "
            f"python3 finetuning_model/export_onnx.py --model_save_dir {folder}",
            stacklevel=3,
        )
    return "torch" if fault else "onnx"


class OnnxModel:
    """The forward pass of an ONNX file on the CPU.

    Each prompt is a pass of its own: on a CPU a batch gains nothing, padding costs, and int8 scales that span a batch
    would make a score depend on its neighbours. All cores work on a prompt that comes alone. Where other prompts are
    being scored already, and for each of many, one core does: more would only wait for one another. The scores are the
    same to the last bit.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._running = 0  # calls
        self._cores = min(MAX_CORES, _available_cores())
        self._one_core = self._all_cores = self._session(1)
        if self._cores > 1:
            self._all_cores = self._session(self._cores)
        for session in {self._one_core, self._all_cores}:
            self._run(session, [0] * 64)  # the first pass is several times slower

    @property
    def is_busy(self) -> bool:
        """Whether prompts are being scored at this moment."""
        return self._running > 0

    def logits(self, rows: list[list[int]]) -> np.ndarray:
        """As `ForwardPass.logits`."""
        return np.concatenate(self.outputs(rows))

    def outputs(self, rows: list[list[int]]) -> list[np.ndarray]:
        """What the file makes of each row of token ids, the batch of one included."""
        with self._lock:
            self._running += 1
            alone = self._running == 1
        try:
            if len(rows) == 1:
                return [self._run(self._all_cores if alone else self._one_core, rows[0])]
            if self._cores == 1:
                return [self._run(self._one_core, row) for row in rows]
            with self._lock:
                pool = self._pool
            return list(pool.map(lambda row: self._run(self._one_core, row), rows))
        finally:
            with self._lock:
                self._running -= 1

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._cores, thread_name_prefix="router")

    def _session(self, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.spin_duration_us", f"{SPIN_SECONDS * 1e6:.0f}")
        if not _has_vnni():  # int8 products overflow there otherwise; with VNNI they can't, and this halves the speed
            options.add_session_config_entry("session.x64quantprecision", "1")
        return onnxruntime.InferenceSession(
            str(self._path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion"],  # the fused kernel takes four times as long
        )

    @staticmethod
    def _run(session: Any, row: list[int]) -> np.ndarray:
        return session.run(None, {"input_ids": np.array([row], dtype=np.int64)})[0]


def _has_vnni() -> bool:
    """Whether the processor sums int8 products in 32 bits in one instruction; False where that is not known."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return any("vnni" in line for line in file if line.startswith("flags"))
    except OSError:
        return False


def _available_cores() -> int:
    """The cores that this process may use; OMP_NUM_THREADS, which job schedulers and Ray set, comes first."""
    omp_num_threads = os.environ.get("OMP_NUM_THREADS", "")
    if omp_num_threads.isdigit() and int(omp_num_threads):
        return int(omp_num_threads)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class TorchModel:
    """The forward pass of a model of transformers, in fp32, on the GPU where there is one; prompts in padded batches.

    Args:
        model: a sequence classifier with two labels.
        pad_id: the token that fills up shorter prompts; it is masked.
    """

    def __init__(self, model: Any, pad_id: int) -> None:
        import torch

        self.module = model.eval().float().to("cuda" if torch.cuda.is_available() else "cpu")
        self.pad_id = pad_id

    def logits(self, rows: list[list[int]]) -> np.ndarray:
        """As `ForwardPass.logits`."""
        return run_in_batches(
            lambda ids, mask: self.module(input_ids=ids, attention_mask=mask).logits, rows, self.pad_id
        )


def run_in_batches(module: Callable[..., Any], rows: list[list[int]], pad_id: int) -> np.ndarray:
    """The outputs of a module for rows of token ids, in padded batches of like length; float32, in the rows' order.

    Args:
        module: token ids and attention mask, each of shape (batch, longest), int64 -> tensor of shape (batch, size).
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    outputs: list[np.ndarray] = [np.empty(0)] * len(rows)
    with torch.inference_mode():
        for batch in batches_of_like_length([len(row) for row in rows], BATCH_TOKENS):
            ids, mask = (torch.from_numpy(array).to(device) for array in pad_rows([rows[i] for i in batch], pad_id))
            for i, output in zip(batch, module(ids, mask).float().cpu().numpy(), strict=True):
                outputs[i] = output
    return np.stack(outputs)


def _load_torch_model(folder: Path) -> Any:
    """The model in a checkpoint's folder; only safetensors are read, and no code of the folder runs."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()  # a second at most
    if not weight_files(folder):
        raise InputError(
            f"{folder} has no model.safetensors; save it again with save_pretrained(safe_serialization=True)"
        )
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # of a torn file, an unknown kind, code of its own: each library raises its own
        text = " ".join(str(error).split())
        reason = "it needs code of its own, which is never run" if "custom code" in text else text
        raise InputError(f"the model in {folder} can't be loaded ({reason})") from error
    if report["missing_keys"]:
        raise InputError(f"{folder} lacks the weights {sorted(report['missing_keys'])}: it was never fine-tuned")
    return model


def add_router_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which checkpoint scores, and from which score on a prompt goes to the superior model."""
    add = parser.add_argument_group("router").add_argument
    add("--model_save_dir", type=Path, metavar="DIR", help="the checkpoint's folder (default: the newest in ./models)")
    add(
        "--hf_model_name", metavar="NAME",
        help="hub id or local folder: where the tokenizer comes from if the checkpoint has none; otherwise only "
        "compared with the checkpoint's base (default: none)",
    )  # fmt: skip
    add(
        "--threshold", type=float, metavar="P",
        help="SUPERIOR from this router score on, 0..1 (default: the checkpoint's own)",
    )  # fmt: skip


def check_threshold(threshold: float | None) -> None:
    """Refuse a --threshold outside 0..1.

    Raises:
        InputError: it is outside.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"--threshold {threshold:g} is not between 0 and 1")
