"""What several tests share: tiny checkpoints made on the spot, and a browser."""

import gc
import json
import os
import shutil
import ssl
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import machine
from router_data import INFERIOR, LABELS, SUPERIOR, label_of, write_rows

os.umask(0o077)  # as the programs do: what tests write is for their user only

EASY = ["apple", "bread", "chair", "door", "egg", "fish"]
HARD = ["zorp", "quix", "vlam"]  # the made-up words that make a prompt hard
FILLER = ["the", "a", "of", "and", "to", "is", "what", "please", "with", "in"]
EASY_PROMPTS = [f"what is the {word} with a {other}" for word in EASY for other in EASY[:4]]
HARD_PROMPTS = [f"please the {word} in a {other}" for word in HARD for other in EASY * 2]
PROMPTS = [*EASY_PROMPTS, *HARD_PROMPTS]
LABELS_OF_PROMPTS = [0] * len(EASY_PROMPTS) + [1] * len(HARD_PROMPTS)


def pytest_collection_finish() -> None:
    """What the imports made stays for good: without this every full collection of garbage takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_certificates():
    """Clients of HTTP know no certificates: to read the machine's takes 50 ms a client, and no test speaks TLS."""

    def find_only(context: ssl.SSLContext, cafile: str | None = None, *args, **kwargs) -> None:
        if cafile:
            open(cafile, "rb").close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl.SSLContext, "load_verify_locations", find_only)
        yield


def tiny_tokenizer(words: list[str]):
    """A BERT tokenizer that knows these words, punctuation, and nothing else."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *".,?!:;", *dict.fromkeys(words)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_checkpoint(
    folder: Path,
    labels: tuple[str, ...] | None = LABELS,
    settings: dict | None = None,
    tokenizer: bool = True,
    model=None,
) -> Path:
    """A checkpoint of a tiny BERT in this folder.

    Args:
        labels: the names of its classes; None leaves what `save_pretrained` writes for two (LABEL_0, LABEL_1).
        settings: router.json; None writes none.
        tokenizer: whether its files are saved too.
        model: the model; by default one of random weights.
    """
    model = model or random_bert(len(labels or LABELS))
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: i for i, label in enumerate(labels)}
    model.save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer([*EASY, *HARD, *FILLER]).save_pretrained(folder)
    if settings is not None:
        (folder / "router.json").write_text(json.dumps(settings))
    return folder


def random_bert(num_labels: int = 2, seed: int = 0):
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    size = len(tiny_tokenizer([*EASY, *HARD, *FILLER]))
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=num_labels,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    return BertForSequenceClassification(config)


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Path:
    """Contract 2 with random weights; reads 64 tokens."""
    folder = tmp_path / "models" / "tiny-router-finetuning-20260101T000000-save"
    return save_checkpoint(folder, settings={"base_model": "tiny", "max_length": 64})


@pytest.fixture(scope="session")
def trained_checkpoint(tmp_path_factory) -> Path:
    """A router that has learnt one thing: a prompt with a word of HARD needs the superior model."""
    import torch

    torch.set_num_threads(1)
    random = np.random.default_rng(0)

    def prompt(hard: bool) -> str:
        words = [*random.choice(FILLER, 4), *random.choice(EASY, 2), random.choice(HARD if hard else EASY)]
        return " ".join(random.permutation(words))

    hard = np.arange(400) % 2 == 1
    prompts = [prompt(is_hard) for is_hard in hard]
    model, tokenizer = random_bert(), tiny_tokenizer([*EASY, *HARD, *FILLER])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        rows = slice(step % 10 * 40, step % 10 * 40 + 40)
        batch = tokenizer(prompts[rows], padding=True, return_tensors="pt")
        model(**batch, labels=torch.from_numpy(hard[rows].astype(int))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    folder = tmp_path_factory.mktemp("models") / "tiny-router-finetuning-20260102T000000-save"
    thresholds = {"at_most_10_percent_superior": 0.95, "at_least_95_percent_quality": 0.15}
    settings = {"base_model": "tiny", "max_length": 64, "thresholds": thresholds}
    save_checkpoint(folder, settings=settings, model=model.eval())
    scores, targets = np.linspace(0.05, 0.95, 10), np.repeat([0.2, 0.8], 5)
    write_rows(
        folder / "validation_predictions.jsonl",
        [
            {"prompt": text, "label": label_of(target), "target": target, "superior_probability": score}
            for text, target, score in zip(prompts, targets, scores, strict=False)
        ],
    )
    write_rows(
        folder / "predictions.jsonl",
        [
            {"prompt": "please open the door", "label": INFERIOR, "superior_probability": 0.1, "target": 0.1},
            {"prompt": "what is a zorp with a vlam", "label": SUPERIOR, "superior_probability": 0.9, "target": 0.9},
        ],
    )
    return folder


@pytest.fixture(scope="session")
def exported_checkpoint(trained_checkpoint, tmp_path_factory) -> Path:
    """The trained checkpoint with its ONNX file."""
    from finetuning_model.export_onnx import export_onnx

    folder = tmp_path_factory.mktemp("exported") / trained_checkpoint.name
    shutil.copytree(trained_checkpoint, folder)
    export_onnx(folder, PROMPTS, LABELS_OF_PROMPTS, say=lambda line: None)
    return folder


class ZorpsAreFrames:
    """A request finder that takes every zorp for a frame's."""

    def __init__(self, tokenizer) -> None:
        self.zorp = tokenizer.token_to_id("zorp")

    def outputs(self, rows):
        return [np.where(np.array(row) == self.zorp, -2.0, 1.0)[None, :, None] for row in rows]


@pytest.fixture
def finding_router(router, monkeypatch):
    """A router with a request finder, which looks into short texts too."""
    import router_model

    monkeypatch.setattr(router_model, "MIN_FRAMED_TOKENS", 6)
    finder = ZorpsAreFrames(router.encoder.tokenizer)
    return router_model.Router(router.settings, router.encoder, router.model, "onnx", router.model_save_dir, finder)


@pytest.fixture(scope="module")  # while it lives an event loop runs in this thread, which other modules want
def chromium():
    """A headless Chromium."""
    if not machine.CHROMIUM.exists():
        pytest.skip("needs Chromium: apt-get install chromium")
    with machine.chromium() as browser:
        yield browser
