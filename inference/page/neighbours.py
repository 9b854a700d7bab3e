"""The labelled prompts nearest in meaning to one: a search by the router's own encoder."""

import contextlib
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from router_data import LABELS, PROJECT_ROOT, InputError, parse_line, read_json_object, short_sha256
from router_model import PREDICTIONS_FILE, RUN_FILE, VALIDATION_FILE, OnnxModel, Router, TorchModel, run_in_batches

MAX_LABELLED = 20_000
MAX_FILE_BYTES = 500_000_000
MAX_CHARACTERS = 600  # of a prompt that is searched; its beginning says what it is about
MAX_TOKENS = 64
MIN_SIMILARITY = 0.4  # cosine below which two prompts share little but their form
STEP = 8  # prompts that are embedded before the next look at whether a visitor waits
PAUSE_SECONDS = 0.5
CACHE_FILE = "labelled_embeddings.npz"


@dataclass(frozen=True)
class Neighbour:
    """A labelled prompt like the one asked about; `similarity` is the cosine of their centred embeddings, -1..1."""

    prompt: str
    label: str
    similarity: float


def labelled_prompts(model_save_dir: Path, project: Path = PROJECT_ROOT) -> dict[str, str]:
    """Prompt and label of the rows in a checkpoint's predictions and in the training files its run.json names.

    A checkpoint may come from a stranger: only regular files of moderate size are read, its own files only inside its
    folder, and training files only inside the project.
    """
    paths = [inside(model_save_dir / name, model_save_dir) for name in (VALIDATION_FILE, PREDICTIONS_FILE)]
    try:
        names = read_json_object(model_save_dir / RUN_FILE).get("train_files", [])
        paths += [inside(project / name, project) for name in names]
    except (OSError, ValueError, TypeError):
        pass  # a bare folder has no run.json, and a broken one names no files
    rows: dict[str, str] = {}
    for path in filter(None, paths):
        try:
            rows |= {prompt: label for prompt, label in _labels_in(path) if prompt not in rows}
        except (OSError, InputError) as error:
            warnings.warn(f"{path} is not shown as labelled prompts: {type(error).__name__}", stacklevel=2)
    return dict(list(rows.items())[:MAX_LABELLED])


def inside(path: Path, folder: Path, max_bytes: int = MAX_FILE_BYTES) -> Path | None:
    """Where a file really is; None where it is not inside the folder, no regular file, or larger than that."""
    real = path.resolve()
    if not real.is_relative_to(folder.resolve()) or not real.is_file():
        return None
    return real if real.stat().st_size <= max_bytes else None


def _labels_in(path: Path) -> Iterator[tuple[str, str]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            fields = parse_line(line, f"{path}, line {number}") if line.strip() else {}
            if fields.get("label") in LABELS and isinstance(fields.get("prompt"), str):  # outcomes may have none
                yield fields["prompt"], fields["label"]


class LabelledPrompts:
    """The labelled prompts of a checkpoint, searchable by meaning.

    `index` embeds them in any thread, while the router has nothing to score, which takes seconds to minutes; until then
    nothing is found.

    Args:
        router: the checkpoint, whose encoder embeds, loaded from a folder.
        rows: prompt and label of each; may be empty, then nothing is ever found.
    """

    def __init__(self, router: Router, rows: dict[str, str]) -> None:
        assert router.model_save_dir
        self.router = router
        self._cache = router.model_save_dir / CACHE_FILE
        self.prompts = list(rows)
        self.labels = list(rows.values())
        self.done = 0  # prompts embedded so far
        self._lock = threading.Lock()
        self._embed: Callable[[Sequence[str]], np.ndarray] | None = None
        self._mean: np.ndarray = np.empty(0)
        self._matrix: np.ndarray | None = None  # of unit vectors

    @property
    def is_ready(self) -> bool:
        """Whether a search finds something."""
        return self._matrix is not None

    def index(self) -> None:
        """Embed the prompts, once; the result is kept in the checkpoint's folder for the next start."""
        with self._lock:
            if self.is_ready or not self.prompts:
                return
            self._embed = embedder(self.router)
            if self._embed is None:
                return
            vectors = self._cached()
            if vectors is None:
                vectors = np.concatenate([self._embedded(i) for i in range(0, len(self.prompts), STEP)])
                self._keep(vectors)
            self._mean = vectors.mean(axis=0)
            self._matrix = _unit(vectors - self._mean)

    def _embedded(self, start: int) -> np.ndarray:
        while isinstance(self.router.model, OnnxModel) and self.router.model.is_busy:  # a visitor's prompts come first
            time.sleep(PAUSE_SECONDS)
        vectors = self._embed(self.prompts[start : start + STEP]) if self._embed else np.empty(0)
        self.done = start + len(vectors)
        return vectors

    def _key(self) -> str:
        settings = self.router.settings
        made_from = [settings.onnx.file if settings.onnx else "", self.router.backend, str(MAX_TOKENS), *self.prompts]
        return short_sha256("\0".join(made_from))

    def _cached(self) -> np.ndarray | None:
        path = inside(self._cache, self._cache.parent)
        if path is None:
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                fits = str(file["key"]) == self._key() and len(file["vectors"]) == len(self.prompts)
                return file["vectors"].astype(np.float32) if fits else None
        except (OSError, ValueError, KeyError, EOFError):
            return None

    def _keep(self, vectors: np.ndarray) -> None:
        partial = self._cache.with_suffix(".partial.npz")
        with contextlib.suppress(OSError):  # the folder may be read-only; then the next start embeds anew
            np.savez(partial, key=self._key(), vectors=vectors.astype(np.float16))
            os.replace(partial, self._cache)

    def nearest(self, prompt: str, k: int = 3) -> list[Neighbour]:
        """The k most similar labelled prompts, fewer where few are like this one."""
        if self._matrix is None or self._embed is None or not prompt.strip():
            return []
        similarity = self._matrix @ _unit(self._embed([prompt]) - self._mean)[0]
        best = np.argsort(-similarity, kind="stable")[:k]
        return [
            Neighbour(self.prompts[i], self.labels[i], float(similarity[i]))
            for i in best
            if similarity[i] >= MIN_SIMILARITY
        ]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def embedder(router: Router) -> Callable[[Sequence[str]], np.ndarray] | None:
    """What turns prompts into vectors, shape (n, size): the mean over a prompt's tokens of the hidden states two thirds
    up the encoder, where fine-tuning has changed little; None where the model does not show them.
    """
    if isinstance(router.model, TorchModel):
        hidden = _torch_states(router.model)
    elif isinstance(router.model, OnnxModel) and router.model_save_dir and router.settings.onnx_file:
        states = onnx_states(router.model_save_dir / router.settings.onnx_file)
        if states is None:
            return None
        hidden = states
    else:
        return None

    def embed(prompts: Sequence[str]) -> np.ndarray:
        encoded = router.encoder.encode([prompt[:MAX_CHARACTERS] for prompt in prompts])
        return hidden([row.ids[: MAX_TOKENS - 1] + row.ids[-1:] for row in encoded]).astype(np.float32)

    return embed


def _torch_states(model: TorchModel) -> Callable[[list[list[int]]], np.ndarray]:
    def mean_state(ids, mask):
        states = model.module(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        layer = states[min(len(states) - 1, (len(states) - 1) // 2 + 1)]
        return (layer * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    return lambda rows: run_in_batches(mean_state, rows, model.pad_id)


def onnx_states(path: Path) -> Callable[[list[list[int]]], np.ndarray] | None:
    """Mean hidden states by the lower two thirds of an ONNX file's graph; None where it has no layer normalisations."""
    import onnx
    import onnxruntime
    from onnx.utils import Extractor

    model = onnx.load(path)
    norms = [node.output[0] for node in model.graph.node if re.search("LayerNorm|RMSNorm", node.op_type)]
    if not norms:
        return None
    name = norms[len(norms) * 2 // 3]
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    part = Extractor(model).extract_model([graph_input.name for graph_input in model.graph.input], [name])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the other cores answer visitors
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion"],
    )  # fmt: skip

    def mean_states(rows: list[list[int]]) -> np.ndarray:
        states = (session.run([name], {"input_ids": np.array([row], dtype=np.int64)})[0] for row in rows)
        return np.stack([state[0].mean(axis=0) for state in states])

    return mean_states
