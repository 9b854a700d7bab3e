"""Encoders of every family, tiny and random: what stage 3 trains, and what it refuses in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import EASY, FILLER, HARD, ROOT, tiny_tokenizer
from made_up import made_up_rows

from finetuning_model import encoders, finetune_bert, training
from router_data import SAMPLE_FILE, InputError, write_rows
from router_model import Router

WORDS = tiny_tokenizer([*EASY, *HARD, *FILLER])
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
COMMON = {**SMALL, "vocab_size": len(WORDS), "pad_token_id": 0}
ROBERTA = {"max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
DISTILBERT = {"vocab_size": len(WORDS), "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
DEBERTA = {
    **{"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"], "share_att_key": True},
    **{"norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
}
MODERNBERT = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
GPT2 = {"vocab_size": len(WORDS), "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
XLNET = {"vocab_size": len(WORDS), "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}
T5 = {"vocab_size": len(WORDS), "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
FAMILIES = {
    "Bert": COMMON,
    "Albert": {**COMMON, "embedding_size": 16, "num_hidden_layers": 4},
    "DebertaV2": {**COMMON, **DEBERTA},
    "DistilBert": DISTILBERT,
    "Electra": {**COMMON, "embedding_size": 16},
    "MPNet": {**COMMON, "max_position_embeddings": 66, "pad_token_id": 1},
    "ModernBert": {**COMMON, **MODERNBERT},
    "Roberta": {**COMMON, **ROBERTA},
    "XLMRoberta": {**COMMON, **ROBERTA},
    "GPT2": GPT2,
    "XLNet": XLNET,
    "T5": T5,
}


def make_base(folder: Path, family: str, kind: str = "Model", dtype=torch.float32, tokenizer=WORDS, **more) -> Path:
    """A tiny base of this family, of random weights."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family], **more)
    getattr(transformers, f"{family}{kind}")(config).to(dtype).save_pretrained(folder)
    if tokenizer:
        tokenizer.save_pretrained(folder)
    return folder


def recipe(base: Path, *flags: str) -> training.Recipe:
    flags = ("--train_files", str(ROOT / SAMPLE_FILE), "--hf_model_name", str(base), *flags)
    return training.Recipe.resolve(finetune_bert.parse_args(flags), train_rows=100)


def load_and_rehearse(base: Path, *flags: str):
    """What stage 3 does before anything slow."""
    chosen = recipe(base, *flags)
    tokenizer, model = encoders.load_tokenizer(str(base)), training.load_classifier(chosen)
    encoders.rehearse(str(base), model, tokenizer, chosen.max_length)
    return model


@pytest.mark.parametrize(
    "family", ["Albert", "DebertaV2", "DistilBert", "Electra", "MPNet", "ModernBert", "Roberta", "XLMRoberta"]
)
def test_the_top_layer_and_the_head_learn_and_the_embeddings_do_not(tmp_path, family):
    model = load_and_rehearse(make_base(tmp_path, family))
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    top = max(encoders.layer_number(name, model) or 0 for name in learns)
    assert all(learns[name] for name in learns if encoders.layer_number(name, model) == top)
    assert all(learns[name] for name in learns if encoders.is_head(name, model))
    assert not any(learns[name] for name in learns if "embed" in name)
    assert not [value for name, value in model.config.to_dict().items() if "dropout" in name and value]
    rates = [group["lr"] for group in training.parameter_groups(model, 1.0, layer_decay=0.5, head_speed=4)]
    assert set(rates) == {4.0, 1.0}


def test_with_every_layer_frozen_the_head_still_learns(tmp_path):
    model = load_and_rehearse(make_base(tmp_path, "Electra"), "--freeze_layers", "2")
    assert {name.split(".")[0] for name, each in model.named_parameters() if each.requires_grad} == {"classifier"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_stored_in_16_bits_are_trained_in_32(tmp_path, dtype):
    base = make_base(tmp_path, "Bert", dtype=dtype)
    assert json.loads((base / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert {parameter.dtype for parameter in load_and_rehearse(base).parameters()} == {torch.float32}


@pytest.mark.parametrize("labels", [1, 3])
def test_a_head_of_another_size_is_made_anew_on_the_same_encoder(tmp_path, labels):
    base = make_base(tmp_path, "Bert", "ForSequenceClassification", num_labels=labels)
    model = load_and_rehearse(base)
    saved = transformers.BertForSequenceClassification.from_pretrained(base).state_dict()
    assert model.classifier.out_features == 2
    assert all(torch.equal(saved[name], value) for name, value in model.bert.state_dict(prefix="bert.").items())


def test_a_base_for_masked_words_gets_a_pooler_too(tmp_path):
    assert load_and_rehearse(make_base(tmp_path, "Bert", "ForMaskedLM")).bert.pooler.dense.weight.requires_grad


@pytest.mark.parametrize(("family", "longest"), [("Roberta", 64), ("MPNet", 64), ("XLMRoberta", 64), ("GPT2", 64)])
def test_positions_that_are_never_used_are_not_counted(tmp_path, family, longest):
    assert recipe(make_base(tmp_path, family), "--max_length", "1024").max_length == longest


@pytest.mark.parametrize("family", ["ModernBert", "XLNet", "T5"])
def test_relative_positions_read_as_much_as_is_asked_for(tmp_path, family):
    assert recipe(make_base(tmp_path, family), "--max_length", "128").max_length == 128


def without_words(folder: Path) -> None:
    make_base(folder, "Bert", tokenizer=None)


def decoder_without_padding(folder: Path) -> None:
    make_base(folder, "GPT2")


def reads_the_last_token(folder: Path) -> None:
    make_base(folder, "XLNet")


def encoder_and_decoder(folder: Path) -> None:
    make_base(folder, "T5")


def words_that_the_model_lacks(folder: Path) -> None:
    make_base(folder, "Bert", tokenizer=tiny_tokenizer([*EASY, *HARD, *FILLER, *map(str, range(99))]))


def no_fast_tokenizer(folder: Path) -> None:
    transformers.CanineModel(transformers.CanineConfig(**SMALL)).save_pretrained(folder)
    transformers.CanineTokenizer().save_pretrained(folder)


def only_spm_model(folder: Path) -> None:
    make_base(folder, "DebertaV2", tokenizer=None)
    (folder / "spm.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))


def torn_weights(folder: Path) -> None:
    weights = make_base(folder, "Bert") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])


def no_weights(folder: Path) -> None:
    (make_base(folder, "Bert") / "model.safetensors").unlink()


def weights_of_another_kind(folder: Path) -> None:
    make_base(folder / "other", "DistilBert")
    make_base(folder, "Bert")
    shutil.copy(folder / "other" / "model.safetensors", folder)


def code_of_its_own(folder: Path) -> None:
    config = make_base(folder, "Bert") / "config.json"
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **own}))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (without_words, "has no tokenizer: its vocabulary holds no words"),
        (decoder_without_padding, r"\(gpt2\) can't score prompts: .*padding token"),
        (reads_the_last_token, r"\(xlnet\) scores a prompt otherwise where it stands beside a longer one"),
        (encoder_and_decoder, r"\(t5\) can't score prompts: "),
        (words_that_the_model_lacks, "has 129 tokens, its model 30: they don't belong together"),
        (no_fast_tokenizer, r"has no fast tokenizer \(CanineTokenizer\)"),
        (only_spm_model, "needs another package: python3 -m pip install sentencepiece"),
        (torn_weights, "can't be had .*header"),
        (no_weights, "can't be had .*no file named model.safetensors"),
        (weights_of_another_kind, "lacks weights that its config.json promises: bert.embeddings"),
        (code_of_its_own, "needs code of its own, which is never run"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_a_router_is_refused_in_one_line(tmp_path, monkeypatch, break_it, says):
    monkeypatch.setattr("sys.stdin", None)  # nothing is asked
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)  # as without the package
    break_it(tmp_path)
    with pytest.raises(InputError, match=says) as error:
        load_and_rehearse(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Albert", "DebertaV2", "DistilBert", "Electra", "ModernBert", "XLMRoberta"])
def test_each_family_is_trained_calibrated_and_exported(tmp_path, family):
    write_rows(tmp_path / "rows.jsonl", made_up_rows(200))
    flags = ["--train_files", str(tmp_path / "rows.jsonl"), "--questions_file", "none", "--output_dir", str(tmp_path)]
    flags += ["--hf_model_name", str(make_base(tmp_path / family, family)), "--max_steps", "2", "--max_length", "64"]
    folder = finetune_bert.main(flags)
    router, exact = Router.load(folder, backend="onnx"), Router.load(folder, backend="torch")
    prompts = [row["prompt"] for row in made_up_rows(20, seed=3)]
    assert np.allclose(router.score(prompts), exact.score(prompts), atol=0.02)
    assert router.settings.temperature > 0 and router.settings.thresholds
