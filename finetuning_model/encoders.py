"""Any encoder by name: loaded in fp32 and tried on two prompts before anything slow, or one line says why not."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from router_data import InputError
from router_model import PromptEncoder, pad_rows

REMEDY = "name a model of the hub (a gated one needs HF_TOKEN) or a local folder with --hf_model_name"
MAX_PADDING_ERROR = 1e-3  # of a logit in fp32; models that mind the padding are off by far more


def load_config(hf_model_name: str) -> Any:
    """The encoder's configuration.

    Raises:
        InputError: it can't be had.
    """
    with named_faults(hf_model_name):
        return AutoConfig.from_pretrained(hf_model_name, trust_remote_code=False)


def load_tokenizer(hf_model_name: str) -> Any:
    """The encoder's tokenizer, of transformers.

    Raises:
        InputError: it can't be had, has no fast form, or knows no words.
    """
    with named_faults(hf_model_name):
        tokenizer = AutoTokenizer.from_pretrained(hf_model_name, trust_remote_code=False)
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{hf_model_name} has no fast tokenizer ({type(tokenizer).__name__}), which scoring needs; name another "
            "encoder with --hf_model_name"
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up where the files are missing
        raise InputError(f"{hf_model_name} has no tokenizer: its vocabulary holds no words; {REMEDY}")
    return tokenizer


def load_weights(name: str, config: Any, fresh_head: bool, **settings: Any) -> Any:
    """A sequence classifier in fp32, whatever precision its weights are stored in.

    Args:
        name: hub id or folder.
        config: of the classifier: its labels may be others than the weights'.
        fresh_head: whether a head that is missing or of another size is made anew.
        settings: further arguments of `from_pretrained`.

    Raises:
        InputError: it can't be had, or lacks weights that would be random.
    """
    with named_faults(name):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=fresh_head,
            output_loading_info=True,
            **settings,
        )
    fresh = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    lacking = sorted(key for key in fresh if not (fresh_head and is_head(key, model)))
    if lacking:
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        raise InputError(f"{name} lacks weights that its config.json promises: {lacking[0]}{more}; {REMEDY}")
    return model


@contextmanager
def named_faults(name: str) -> Iterator[None]:
    """Turn whatever transformers raises while it loads a model into one line that names the model and the mend.

    Raises:
        InputError: instead of any other error.
    """
    try:
        yield
    except Exception as error:  # of a torn file, an unknown kind, a missing package: each library raises its own
        text = str(error).strip() or type(error).__name__
        if "custom code" in text:
            reason = "it needs code of its own, which is never run"
        elif find_spec("sentencepiece") is None and re.search(r"\.model\b|sentencepiece", text, re.I):
            reason = "its tokenizer needs another package: python3 -m pip install sentencepiece"
        else:
            reason = text.splitlines()[0]
        raise InputError(f"the model {name} can't be had ({reason}); {REMEDY}") from error


def without_dropout(config: Any) -> Any:
    """The configuration with every dropout at 0; each kind of encoder names its own otherwise."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def readable_tokens(config: Any, default: int) -> int:
    """The longest input that the encoder has positions for.

    RoBERTa and its relatives number positions from behind the padding's, so some of the table's are never used.
    """
    with named_faults(getattr(config, "_name_or_path", "") or "encoder"), torch.device("meta"):
        modules = AutoModel.from_config(config, trust_remote_code=False).named_modules()
    for name, module in modules:
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.num_embeddings - module.padding_idx - 1
    positions = getattr(config, "max_position_embeddings", None) or 0
    return positions if positions > 0 else default


def rehearse(name: str, model: Any, tokenizer: Any, max_length: int) -> None:
    """Score a short prompt and one of full length as training and serving will: whatever can't be done ends here.

    Raises:
        InputError: the vocabulary is larger than the model's, the model takes no texts, or padding changes its scores.
    """
    known = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values()
    embedded = model.get_input_embeddings()
    size = getattr(embedded, "num_embeddings", None)
    if size is not None and max(known, default=0) >= size:
        raise InputError(
            f"the tokenizer of {name} has {max(known) + 1:,} tokens, its model {size:,}: they don't belong together"
        )
    encoder = PromptEncoder(tokenizer.backend_tokenizer, max_length)
    rows = [row.ids for row in encoder.encode(["Why?", "What is read at most? " * max_length])]
    try:
        with torch.inference_mode():
            ids, mask = map(torch.from_numpy, pad_rows(rows, tokenizer.pad_token_id or 0))
            model.eval()
            padded = model(input_ids=ids, attention_mask=mask).logits.numpy()
            alone = model(input_ids=torch.tensor(rows[:1])).logits.numpy()
            model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state  # noqa: B018  # what is embedded
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name} ({model.config.model_type}) can't score prompts: {reason}; name an encoder, for example "
            "--hf_model_name bert-base-uncased"
        ) from error
    if padded.shape != (2, 2) or not np.allclose(padded[:1], alone, atol=MAX_PADDING_ERROR):
        raise InputError(
            f"{name} ({model.config.model_type}) scores a prompt otherwise where it stands beside a longer one; name "
            "an encoder, for example --hf_model_name bert-base-uncased"
        )


def layers_above(name: str, model: Any) -> int:
    """How many layers lie above a parameter's: 0 for the top layer and the head, the depth for the embeddings.

    ALBERT's one layer, which is applied again and again, is its top one.
    """
    number = layer_number(name, model)
    if "embed" in name:
        return model.config.num_hidden_layers
    if number is None:
        return 0
    numbers = (layer_number(other, model) for other, _ in model.named_parameters())
    return max(each for each in numbers if each is not None) - number


def layer_number(name: str, model: Any) -> int | None:
    """Which layer of the encoder a parameter belongs to, from 0; None for one outside the layers."""
    if not name.startswith(f"{model.base_model_prefix}."):
        return None
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def is_head(name: str, model: Any) -> bool:
    """Whether a parameter belongs to the head: the pooler or what stands outside the encoder."""
    return "pooler" in name or not name.startswith(f"{model.base_model_prefix}.")
