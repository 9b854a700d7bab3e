"""The checkpoint that stage 3 saves and everything in `inference/` uses: find it, load it, score prompts with it.

    router = Router.load("models/bert-base-uncased-router-finetuning-20240722T133228-save")
    router.score(["What is the capital of France?"])   # array([0.03]): the superior model is hardly needed
    router.decide(["What is the capital of France?"])  # [Decision(label='ROUTE_TO_INFERIOR', ...)]
    router.score([[{"role": "user", "content": "Prove it."}, ..., {"role": "user", "content": "and for n = 3?"}]])

Neither gradio nor openai is imported here; torch and transformers only when the ONNX file can't serve.
"""

import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from router_data import LABELS, InputError, label_of

MODELS_DIR = Path("models")
CHECKPOINT_GLOB = "*-router-finetuning-*-save"
OLD_LABELS = ("LABEL_0", "LABEL_1")  # a plain two-label checkpoint: 0 is inferior, 1 superior
CHARACTERS_PER_TOKEN = 12  # more than any real text has: what is cut before tokenising would never be scored
BATCH_TOKENS = 4096  # padded tokens in one forward pass of many prompts
MOST_CORES = 8  # for one prompt; more only wait for one another
AWAKE = 0.0002  # seconds that the other cores' threads wait for the next operator before they sleep

Backend = Literal["onnx", "torch"]
Prompt = str | Sequence[dict]  # a text, or the messages of a conversation in the form of the chat completions API
Forward = Callable[[list[list[int]]], np.ndarray]  # token ids of some prompts -> logits, shape (prompts, 2)


class OnnxRecord(BaseModel):
    """How the checkpoint's ONNX file was made, and how far its scores are from those of the fp32 model."""

    model_config = ConfigDict(extra="allow")

    scheme: str = Field(description="the precision")
    reason: str | None = Field(default=None, description="why it is not int8 throughout")
    rows: int = Field(description="validation rows compared")
    mean_change: float = Field(description="mean |change| of the superior probability against fp32")
    max_change: float = Field(description="the largest")
    auroc_loss: float | None = Field(default=None, description="AUROC of fp32 minus its own; none with one class only")
    export_error: float | None = Field(default=None, description="largest |change|, fp32 ONNX against PyTorch")
    tried: list[dict] = Field(default=[], description="the same figures for each scheme tried")
    weights: str = Field(default="", description="fingerprint of the weights it was made from")
    file: str = Field(default="", description="fingerprint of the ONNX file")


class RouterSettings(BaseModel):
    """`router.json`, the part of a checkpoint that says how its scores are made and used."""

    model_config = ConfigDict(extra="allow")

    base_model: str | None = Field(default=None, description="what was fine-tuned")
    max_length: int = Field(default=512, ge=8, description="tokens scored at most, special tokens included")
    long_prompt_policy: Literal["head_tail"] = Field(
        default="head_tail", description="of a longer prompt the first and the last half of max_length are scored"
    )
    temperature: float = Field(default=1.0, gt=0, description="the logits are divided by it (temperature scaling)")
    threshold: float = Field(default=0.5, ge=0, le=1, description="superior from this probability on")
    thresholds: dict[str, float] = Field(default={}, description="thresholds that meet named targets")
    onnx_file: str | None = Field(default=None, pattern=r"^[\w.-]+$", description="the ONNX file that CPUs use")
    onnx: OnnxRecord | None = Field(default=None, description="what that file is")


@dataclass(frozen=True)
class Encoded:
    """A prompt as the model sees it."""

    ids: list[int]
    truncated: bool
    characters_received: int


@dataclass(frozen=True)
class Decision:
    """Where a prompt goes, and what that rests on."""

    label: str
    superior_probability: float
    threshold: float
    truncated: bool
    tokens_scored: int
    characters_received: int
    long_prompt_policy: str = "head_tail"


def newest_checkpoint(models_dir: str | Path = MODELS_DIR) -> Path:
    """The checkpoint with the latest timestamp in its name.

    Raises:
        InputError: there is none.
    """
    found = [path for path in Path(models_dir).glob(CHECKPOINT_GLOB) if (path / "config.json").exists()]
    if not found:
        raise InputError(f"no checkpoint in {models_dir}/; make one: python3 finetuning_model/finetune_bert.py --help")
    return max(found, key=lambda path: (path.name.rsplit("-", 2)[-2], path.stat().st_mtime))


def calibrated(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Superior probabilities, shape (n,), from logits of shape (n, 2): sigmoid((superior - inferior) / temperature)."""
    margin = (logits[:, 1] - logits[:, 0]).astype(np.float64) / temperature
    return 0.5 * (1 + np.tanh(margin / 2))


def user_turns(messages: Sequence[dict]) -> list[str]:
    """The texts of the user's messages, in order; the content is a string or a list of OpenAI content parts.

    Other roles count for nothing: a long system prompt says nothing about how hard the question is. Of the parts only
    texts can be scored.

    Raises:
        InputError: a message is not one, or none is the user's.
    """
    try:
        turns = [_text_of(message.get("content")) for message in messages if message["role"] == "user"]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError("a conversation is a list of messages, each with a role and a content") from error
    if not turns:
        raise InputError("the conversation has no message of the user")
    return turns


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
    """

    def __init__(self, tokenizer, max_length: int):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.max_length = max_length
        empty = tokenizer.encode("").ids
        full = tokenizer.encode("a").ids
        self._prefix = next((i for i, (a, b) in enumerate(zip(empty, full, strict=False)) if a != b), len(empty))
        self._suffix = len(empty) - self._prefix

    def __call__(self, prompts: Sequence[Prompt]) -> list[Encoded]:
        parts = [("", prompt) if isinstance(prompt, str) else _earlier_and_last(prompt) for prompt in prompts]
        kept, was_cut = (
            zip(*map(self._cut, (text for pair in parts for text in pair)), strict=True) if parts else ((), ())
        )
        # a batch's threads take longer to wake than one prompt takes to tokenise
        encodings = map(self.tokenizer.encode, kept) if len(prompts) == 1 else self.tokenizer.encode_batch_fast(kept)
        ids = [encoding.ids for encoding in encodings]
        return [
            self._joined(ids[i], ids[i + 1], any(was_cut[i : i + 2]), sum(map(len, pair)))
            for i, pair in zip(range(0, len(ids), 2), parts, strict=True)
        ]

    def with_offsets(self, prompt: str) -> tuple[str, list[int], list[tuple[int, int]]]:
        """What an explanation needs: the text that was tokenised, the ids that are scored, and the characters of that
        text, start and end, which each id stands for (equal for special tokens)."""
        text, _ = self._cut(prompt)
        encoding = self.tokenizer.encode(text)
        return text, _ends(encoding.ids, self.max_length), _ends(encoding.offsets, self.max_length)

    def _joined(self, earlier: list[int], last: list[int], was_cut: bool, characters: int) -> Encoded:
        before = earlier[self._prefix : len(earlier) - self._suffix]
        room = max(0, self.max_length - len(last))
        truncated = was_cut or len(before) + len(last) > self.max_length
        last = _ends(last, self.max_length)
        return Encoded(last[: self._prefix] + _ends(before, room) + last[self._prefix :], truncated, characters)

    def _cut(self, text: str) -> tuple[str, bool]:
        half = CHARACTERS_PER_TOKEN * self.max_length
        cut = len(text) > 2 * half
        text = f"{text[:half]} {text[-half:]}" if cut else text
        return text.encode("utf-16", "surrogatepass").decode(
            "utf-16", "replace"
        ), cut  # tokenizers take no lone surrogates


def _earlier_and_last(messages: Sequence[dict]) -> tuple[str, str]:
    *earlier, last = user_turns(messages)
    return "".join(f"{turn}\n\n" for turn in earlier), last


def _ends(items: list, most: int) -> list:
    """The first and the last half of a list that is longer than `most`."""
    return items if len(items) <= most else items[: most // 2] + items[len(items) - (most - most // 2) :]


class Router:
    """A loaded checkpoint. Safe to use from several threads at once.

    Attributes:
        model_save_dir: the checkpoint's folder.
        settings: its `router.json`.
        backend: "onnx" or "torch".
    """

    def __init__(
        self, model_save_dir: Path, settings: RouterSettings, encoder: PromptEncoder, forward: Forward, backend: Backend
    ):
        self.model_save_dir = model_save_dir
        self.settings = settings
        self.encode = encoder
        self.backend = backend
        self._forward = forward
        self.score(["warm up"])  # the first pass is several times slower

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
        settings = read_settings(folder)
        if hf_model_name and settings.base_model and _short(hf_model_name) != _short(settings.base_model):
            warnings.warn(
                f"{folder.name} was fine-tuned from {settings.base_model}, not {hf_model_name}; its own files are used",
                stacklevel=2,
            )
        encoder = PromptEncoder(_load_tokenizer(folder, hf_model_name), settings.max_length)
        if backend is None:
            backend = _backend_for(folder, settings)
        elif backend == "onnx" and (fault := onnx_fault(folder, settings)):
            raise InputError(f"{fault}; make it: python3 finetuning_model/export_onnx.py --model_save_dir {folder}")
        if backend == "onnx":
            forward = OnnxForward(folder / settings.onnx_file)
        else:
            forward = _torch_forward(folder, config.get("pad_token_id") or 0)
        return cls(folder, settings, encoder, forward, backend)

    def score(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Calibrated probability that the superior model is needed, float64, shape (len(prompts),).

        A prompt is a text or a conversation: a list of messages with role and content.
        """
        return self.score_ids([row.ids for row in self.encode(prompts)])

    def decide(self, prompts: Sequence[Prompt], threshold: float | None = None) -> list[Decision]:
        """Route each prompt: to the superior model where its probability reaches the threshold (default: its own)."""
        threshold = self.settings.threshold if threshold is None else threshold
        encoded = self.encode(prompts)
        scores = self.score_ids([row.ids for row in encoded])
        policy = self.settings.long_prompt_policy
        return [
            Decision(
                label=label_of(score, threshold),
                superior_probability=float(score),
                threshold=threshold,
                truncated=row.truncated,
                tokens_scored=len(row.ids),
                characters_received=row.characters_received,
                long_prompt_policy=policy,
            )
            for score, row in zip(scores, encoded, strict=True)
        ]

    def score_ids(self, rows: list[list[int]]) -> np.ndarray:
        """`score` of prompts that are token ids already, special tokens included; shape (len(rows),)."""
        return calibrated(self._forward(rows), self.settings.temperature) if rows else np.empty(0)


def batches_of_like_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions grouped so that each group's padded size (rows times longest) is at most `batch_tokens`, or one row."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and lengths[i] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _pad(rows: list[list[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
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
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder} is not a checkpoint: it has no config.json; name one with --model_save_dir"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{folder / 'config.json'} is not JSON ({error}); copy the checkpoint again") from error
    names = config.get("id2label") or {str(i): OLD_LABELS[i] for i in range(config.get("num_labels", 2))}
    names = tuple(name for _, name in sorted(names.items(), key=lambda item: int(item[0])))
    if len(names) != 2:
        raise InputError(
            f"{folder} has {len(names)} labels ({', '.join(names)}); a router has two, {' and '.join(LABELS)}"
        )
    if names not in (LABELS, OLD_LABELS):
        raise InputError(f"{folder} tells {' from '.join(names)}, not {' from '.join(LABELS)}: it is not a router")
    return config


def read_settings(folder: Path) -> RouterSettings:
    """The checkpoint's router.json; where there is none, a plain two-label checkpoint is assumed, with a warning.

    Raises:
        InputError: as `read_config`, or router.json is not valid.
    """
    config = read_config(folder)
    path = folder / "router.json"
    if not path.exists():
        warnings.warn(
            f"{folder.name} has no router.json: taking label 1 as {LABELS[1]}, temperature 1, threshold 0.5",
            stacklevel=3,
        )
        return RouterSettings(max_length=min(512, config.get("max_position_embeddings", 512)))
    try:
        return RouterSettings.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise InputError(f"{path}: {where}: {first['msg']}; copy the checkpoint again") from error


def _short(model_name: str) -> str:
    return model_name.rstrip("/").rsplit("/", 1)[-1]


def _load_tokenizer(folder: Path, hf_model_name: str | None):
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").exists():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    from transformers import AutoTokenizer

    own = any((folder / name).exists() for name in ("tokenizer_config.json", "vocab.txt"))
    if not own and not hf_model_name:
        raise InputError(
            f"{folder} has no tokenizer; name its base model, for example --hf_model_name bert-base-uncased"
        )
    try:
        return AutoTokenizer.from_pretrained(folder if own else hf_model_name, local_files_only=own).backend_tokenizer
    except (OSError, ValueError) as error:
        raise InputError(
            f"the tokenizer of {hf_model_name or folder} can't be had ({str(error).splitlines()[0]}); "
            "name a model of the hub or a local folder with --hf_model_name"
        ) from error


def weights_of(folder: Path) -> list[Path]:
    """The files with the checkpoint's weights."""
    return sorted(folder.glob("*.safetensors"))


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
    if not path.exists():
        return f"{path} is missing"
    weights = weights_of(folder)
    if not settings.onnx or settings.onnx.file != fingerprint([path]):
        return f"{path} is not the file that router.json describes"
    if weights and settings.onnx.weights != fingerprint(weights):
        return f"{path} was made from other weights than {weights[0].name}"
    return None


def _backend_for(folder: Path, settings: RouterSettings) -> Backend:
    """PyTorch on a GPU, ONNX Runtime without one, PyTorch where the ONNX file can't serve."""
    if os.path.exists("/dev/nvidiactl") and weights_of(folder):  # ask torch only where there may be one: it is slow
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


class OnnxForward:
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
        self._cores = min(MOST_CORES, _cores_here())
        self._one_core = self._all_cores = self._session(1)
        if self._cores > 1:
            self._all_cores = self._session(self._cores)
        for session in {self._one_core, self._all_cores}:
            self._logits(session, [0] * 64)  # the first pass is several times slower

    def __call__(self, rows: list[list[int]]) -> np.ndarray:
        with self._lock:
            self._running += 1
            alone = self._running == 1
        try:
            if len(rows) == 1:
                return self._logits(self._all_cores if alone else self._one_core, rows[0])
            if self._cores == 1:
                return np.concatenate([self._logits(self._one_core, row) for row in rows])
            with self._lock:
                pool = self._pool
            return np.concatenate(list(pool.map(lambda row: self._logits(self._one_core, row), rows)))
        finally:
            with self._lock:
                self._running -= 1

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._cores, thread_name_prefix="router")

    def _session(self, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.spin_duration_us", f"{AWAKE * 1e6:.0f}")
        if not _has_vnni():  # int8 products overflow there otherwise; with VNNI they can't, and this halves the speed
            options.add_session_config_entry("session.x64quantprecision", "1")
        return onnxruntime.InferenceSession(
            str(self._path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion"],  # the fused kernel takes four times as long
        )

    @staticmethod
    def _logits(session, row: list[int]) -> np.ndarray:
        return session.run(None, {"input_ids": np.array([row], dtype=np.int64)})[0]


def _has_vnni() -> bool:
    """Whether the processor sums int8 products in 32 bits in one instruction; False where that is not known."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return any("vnni" in line for line in file if line.startswith("flags"))
    except OSError:
        return False


def _cores_here() -> int:
    """The cores that this process may use; OMP_NUM_THREADS, which job schedulers and Ray set, comes first."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told):
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch_forward(folder: Path, pad_id: int) -> Forward:
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()  # a second at most
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} has no model.safetensors; save it again with save_pretrained(safe_serialization=True)"
        )
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if report["missing_keys"]:
        raise InputError(f"{folder} lacks the weights {sorted(report['missing_keys'])}: it was never fine-tuned")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.eval().to(device)

    @torch.inference_mode()
    def forward(rows: list[list[int]]) -> np.ndarray:
        logits = np.empty((len(rows), 2), dtype=np.float32)
        for batch in batches_of_like_length([len(row) for row in rows], BATCH_TOKENS):
            ids, mask = (torch.from_numpy(array).to(device) for array in _pad([rows[i] for i in batch], pad_id))
            logits[batch] = model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()
        return logits

    return forward
