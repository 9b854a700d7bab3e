"""The checkpoint: what is loaded and what is refused, how prompts and conversations are read, who may call it."""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import EASY, FILLER, HARD, PROMPTS, ROOT, random_bert, save_checkpoint, tiny_tokenizer

from finetuning_model import export_onnx as export
from router_data import INFERIOR, LABELS, MAX_MODERATE_BYTES, SUPERIOR, InputError, read_moderate_file
from router_model import (
    MAX_TOKENIZER_CHARACTERS,
    OnnxModel,
    PromptEncoder,
    Router,
    RouterSettings,
    TradeoffTable,
    UserTurns,
    Verdict,
    add_router_flags,
    batches_of_like_length,
    calibrated,
    check_threshold,
    fingerprint,
    load_tokenizer,
    longest_text,
    newest_checkpoint,
    pad_rows,
    parse_router_model,
    readable_scripts,
    run_in_batches,
    scorable_turns,
    user_turns,
)

LONG = " ".join(EASY * 30)


@pytest.fixture
def copy(exported_checkpoint, tmp_path):
    """A checkpoint with its ONNX file that a test may break."""
    return shutil.copytree(exported_checkpoint, tmp_path / exported_checkpoint.name)


@pytest.fixture(scope="module")
def router(exported_checkpoint):
    return Router.load(exported_checkpoint)


# The ONNX file


def test_onnx_path_imports_neither_torch_nor_transformers(exported_checkpoint):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from router_model import Router\n"
        f"print(len(Router.load({str(exported_checkpoint)!r}).decide(['hello', 'zorp'])))\n"
        "print(sorted({'torch', 'transformers', 'gradio', 'openai', 'onnx', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["2", "[]"]


def test_a_score_does_not_depend_on_the_other_prompts(router):
    together = router.score([*PROMPTS, LONG])
    alone = [router.score([prompt])[0] for prompt in [*PROMPTS, LONG]]
    assert together.tolist() == alone


@pytest.mark.parametrize("prompt", ["apple", LONG])
def test_one_core_says_what_all_cores_say(exported_checkpoint, router, monkeypatch, prompt):
    rows = [row.ids for row in router.encoder.encode([prompt])]
    scores = []
    for cores in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", cores)
        scores.append(OnnxModel(exported_checkpoint / "model_int8.onnx").logits(rows).tolist())
    assert scores[0] == scores[1]


def test_where_others_are_scored_a_prompt_takes_one_core(exported_checkpoint, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    import onnxruntime

    threads_of = {}
    make_session = onnxruntime.InferenceSession

    def recorded(path, options, **rest):
        session = make_session(path, options, **rest)
        threads_of[id(session)] = options.intra_op_num_threads
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    model = OnnxModel(exported_checkpoint / "model_int8.onnx")
    taken = []

    def run(session, row):
        taken.append(threads_of[id(session)])
        if len(taken) == 1:
            model.logits([row])  # another caller, meanwhile
        return np.zeros((1, 2))

    monkeypatch.setattr(OnnxModel, "_run", staticmethod(run))
    model.logits([[0] * 9])
    model.logits([[0] * 9])
    assert taken == [2, 1, 2]


def test_callers_in_many_threads_get_their_own_scores(router):
    expected = router.score(PROMPTS)
    with ThreadPoolExecutor(8) as pool:
        one_by_one = list(pool.map(lambda prompt: router.score([prompt])[0], PROMPTS * 4))
        in_groups = list(pool.map(lambda start: router.score(PROMPTS[start : start + 5]), range(0, 40, 5)))
    assert one_by_one == [*expected] * 4
    assert np.concatenate(in_groups).tolist() == expected[:40].tolist()


def test_prompts_that_are_the_same_are_scored_once(router, monkeypatch):
    scored, logits = [], router.model.logits
    monkeypatch.setattr(router.model, "logits", lambda rows: (scored.extend(rows), logits(rows))[1])
    scores = router.score([PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[1].upper()])
    assert len(scored) == 2 and scores[0] == scores[2] and scores[1] == scores[3]
    monkeypatch.undo()
    assert scores[:2].tolist() == [router.score([prompt])[0] for prompt in PROMPTS[:2]]


@pytest.mark.parametrize(
    ("framed", "request_alone"),
    [
        ("zorp zorp please open the door", "please open the door"),
        ("please open the door zorp", "please open the door"),
        ("zorp please open the door with zorp bread zorp zorp", "please open the door with"),
        ("please open the door with the apple", "please open the door with the apple"),
        ("zorp bread zorp zorp zorp please open the door", "please open the door"),  # the longer of two
        ("zorp zorp zorp zorp zorp", "zorp zorp zorp zorp zorp"),  # nothing but frame
        ("zorp door", "zorp door"),  # too short for a frame
        ("", ""),
    ],
)
def test_a_request_is_scored_without_its_frame(router, finding_router, framed, request_alone):
    assert finding_router.score([framed]).tolist() == router.score([request_alone]).tolist()
    (decision,) = finding_router.decide(framed)
    assert decision.router_score == router.score([request_alone])[0]
    assert decision.framed == (framed != request_alone)
    assert decision.tokens_scored == len(router.encoder.encode([request_alone])[0].ids)


def test_texts_that_are_the_same_are_looked_into_once(finding_router, monkeypatch):
    looked_into, find = [], finding_router.find_requests
    monkeypatch.setattr(finding_router, "find_requests", lambda rows: (looked_into.extend(rows), find(rows))[1])
    framed, other = "zorp zorp please open the door", "please open the door zorp"
    first, second, third = finding_router.decide([framed, other, framed])
    assert len(looked_into) == 2 and first == third and first.framed and second.framed


def test_in_a_conversation_every_turn_counts(router, finding_router):
    turns = [{"role": "user", "content": text} for text in ("zorp zorp open the door", "please")]
    assert finding_router.score([turns]).tolist() == router.score([turns]).tolist()
    assert not finding_router.decide([turns])[0].framed


def test_no_prompts_no_scores(router):
    assert router.score([]).shape == (0,) and router.decide([]) == []


def other_weights(folder):
    """Train on: the last step of an optimiser moves every weight a little."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False)
    for parameter in model.parameters():
        parameter.data *= 1.001
    model.save_pretrained(folder)


def only_the_classifier(folder):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False)
    model.classifier.bias.data += 1
    model.save_pretrained(folder)


def other_file(folder):
    file = folder / "model_int8.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")


def no_file(folder):
    (folder / "model_int8.onnx").unlink()


@pytest.mark.parametrize("spoil", [other_weights, only_the_classifier, other_file, no_file])
def test_an_onnx_file_of_other_weights_is_never_used(copy, spoil):
    spoil(copy)
    with pytest.warns(UserWarning, match=r"so PyTorch is used; make it anew: python3 finetuning_model/export_onnx.py"):
        router = Router.load(copy)
    assert router.backend == "torch"
    with pytest.raises(InputError, match="export_onnx.py"):
        Router.load(copy, backend="onnx")

    export.main(["--model_save_dir", str(copy)])
    again = Router.load(copy)
    assert again.backend == "onnx"
    assert again.score(["what is zorp"]) == pytest.approx(router.score(["what is zorp"]), abs=0.05)


def test_fingerprint_tells_a_small_change_anywhere_in_small_files(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(100_000))
    prints = {fingerprint([file])}
    for position in (0, 40_000, 99_999):
        file.write_bytes(bytes(position) + b"\1" + bytes(99_999 - position))
        prints.add(fingerprint([file]))
    assert len(prints) == 4


def test_router_json_cannot_name_a_file_elsewhere(copy):
    settings = json.loads((copy / "router.json").read_text())
    (copy / "router.json").write_text(json.dumps(settings | {"onnx_file": "../model_int8.onnx"}))
    with pytest.raises(InputError, match="onnx_file"):
        Router.load(copy)


# What is loaded


def test_a_model_in_memory_is_scored_as_its_checkpoint(exported_checkpoint):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    saved = Router.load(exported_checkpoint, backend="torch")
    model = AutoModelForSequenceClassification.from_pretrained(exported_checkpoint, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(exported_checkpoint, trust_remote_code=False)
    made = Router.from_model(model, tokenizer, RouterSettings.load(exported_checkpoint))
    assert made.backend == "torch" and made.model_save_dir is None
    assert made.score([*PROMPTS, LONG]).tolist() == saved.score([*PROMPTS, LONG]).tolist()
    logits = made.logits(PROMPTS)
    assert logits.shape == (len(PROMPTS), 2)
    assert made.score(PROMPTS) == pytest.approx(calibrated(logits, made.settings.temperature))


def test_a_plain_checkpoint_loads_with_one_warning(tmp_path):
    folder = save_checkpoint(tmp_path / "plain", labels=None)
    with pytest.warns(UserWarning, match="no router.json: taking label 1 as ROUTE_TO_SUPERIOR") as warned:
        plain = Router.load(folder)
    assert len(warned) == 1
    assert (plain.settings.temperature, plain.settings.threshold, plain.encoder.max_length) == (1, 0.5, 64)


def test_the_tokenizer_of_a_bare_checkpoint_is_that_of_its_base(tmp_path):
    folder = save_checkpoint(tmp_path / "bare", tokenizer=False, settings={})
    with pytest.raises(InputError, match="--hf_model_name bert-base-uncased"):
        Router.load(folder)
    with pytest.raises(InputError, match=r"the tokenizer of .*nowhere can't be had .*--hf_model_name"):
        Router.load(folder, hf_model_name=str(tmp_path / "nowhere"))
    tiny_tokenizer([*EASY, *HARD, *FILLER]).save_pretrained(tmp_path / "base")
    assert 0 <= Router.load(folder, hf_model_name=str(tmp_path / "base")).score("zorp")[0] <= 1


def test_another_base_than_the_checkpoints_is_only_a_warning(tiny_checkpoint):
    with pytest.warns(UserWarning, match="was fine-tuned from tiny, not bert-base-uncased; its own files are used"):
        Router.load(tiny_checkpoint, hf_model_name="bert-base-uncased")
    Router.load(tiny_checkpoint, hf_model_name="someone/tiny")


@pytest.mark.parametrize(
    ("labels", "named"),
    [(("A", "B", "C"), "has 3 labels"), (("NEGATIVE", "POSITIVE"), "NEGATIVE"), (LABELS[::-1], "it is not a router")],
)
def test_other_classifiers_are_refused(tmp_path, labels, named):
    with pytest.raises(InputError, match=named):
        Router.load(save_checkpoint(tmp_path / "model", labels=labels))


def test_what_is_no_checkpoint_is_named_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"no model folder at .*none; make one: python3 finetuning_model"):
        Router.load(tmp_path / "none")
    with pytest.raises(InputError, match="it has no config.json"):
        Router.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is not JSON"):
        Router.load(tmp_path)


def test_an_encoder_that_was_never_fine_tuned_is_refused(tiny_checkpoint):
    from transformers import BertModel

    config = (tiny_checkpoint / "config.json").read_text()
    BertModel(random_bert().config, add_pooling_layer=False).save_pretrained(tiny_checkpoint)
    (tiny_checkpoint / "config.json").write_text(config)
    with pytest.raises(InputError, match="it was never fine-tuned"):
        Router.load(tiny_checkpoint)


def test_code_and_pickles_of_a_checkpoint_never_run(tiny_checkpoint, tmp_path, monkeypatch):
    import io

    mark = tmp_path / "code-ran"
    (tiny_checkpoint / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    config["auto_map"] = {name: "evil.Evil" for name in ("AutoConfig", "AutoModelForSequenceClassification")}
    (tiny_checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "evil"}))
    consent = io.StringIO("y\ny\ny\n")
    monkeypatch.setattr(sys, "stdin", consent)  # where prompts are piped in
    with pytest.raises(InputError, match="needs code of its own, which is never run"):
        Router.load(tiny_checkpoint)
    assert not mark.exists() and consent.tell() == 0

    (tiny_checkpoint / "model.safetensors").unlink()
    (tiny_checkpoint / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(InputError, match="no model.safetensors"):
        Router.load(tiny_checkpoint)


def test_torn_weights_and_a_torn_tokenizer_are_one_line(tiny_checkpoint):
    for name in ("model.safetensors", "tokenizer.json"):
        (tiny_checkpoint / name).write_bytes((tiny_checkpoint / name).read_bytes()[:2000])
        with pytest.raises(InputError, match=str(tiny_checkpoint)) as caught:
            Router.load(tiny_checkpoint)
        assert "\n" not in str(caught.value)


def test_files_that_do_not_fit_one_another_are_one_line(tiny_checkpoint, copy):
    path = tiny_checkpoint / "tokenizer.json"
    fields = json.loads(path.read_text())
    fields["model"]["vocab"] |= {"[UNK]": 999}
    path.write_text(json.dumps(fields))
    settings = json.loads((copy / "router.json").read_text())
    (copy / settings["onnx_file"]).write_bytes(b"no graph")
    settings["onnx"]["file"] = fingerprint([copy / settings["onnx_file"]])
    (copy / "router.json").write_text(json.dumps(settings))
    for folder in (tiny_checkpoint, copy):
        with pytest.raises(InputError, match="can't score a prompt") as caught:
            Router.load(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_panic_of_the_tokenizer_is_an_error_like_others():
    from tokenizers import Regex, normalizers, pre_tokenizers

    tokenizer = tiny_tokenizer(EASY).backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a|aa|aaa)+$"), "isolated")
    encoder = PromptEncoder(tokenizer, 64)
    for prompts in (["a" * 200 + "b"], ["a" * 200 + "b", "apple"]):
        with pytest.raises(InputError, match="tokenizer can't read a prompt"):
            encoder.encode(prompts)
    with pytest.raises(InputError, match="tokenizer can't read a prompt"):
        encoder.with_offsets(prompts[0])
    tokenizer.normalizer = normalizers.Prepend("a" * 200 + "b")
    with pytest.raises(InputError, match="tokenizer can't read a prompt"):
        PromptEncoder(tokenizer, 64)


REPLACE = {"type": "Replace", "pattern": {"String": "☃"}, "content": "x" * 100_000}
DOUBLE = {"type": "Replace", "pattern": {"String": "☃"}, "content": "☃☃"}
CHARSMAP = base64.b64encode(b"\4\0\0\0trie" + b"x" * 100_000 + b"\0y\0").decode()
TEMPLATE = {
    "type": "TemplateProcessing", "pair": [], "special_tokens": {},
    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 100_000,
}  # fmt: skip
BOMBS = {
    "one long rule": {"normalizer": REPLACE},
    "an expression": {"normalizer": REPLACE | {"pattern": {"Regex": "☃?"}}},
    "many short rules": {"normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 40}},
    "rules within rules": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [REPLACE]}]}
    },
    "sentencepiece's table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}},
    "bytes of bytes": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        ] * 20}
    },
    "many copies": {"post_processor": TEMPLATE},
    "the decoder": {"decoder": {"type": "Sequence", "decoders": [DOUBLE] * 40}},
    "a rule without its kind": {"normalizer": {name: REPLACE[name] for name in ("pattern", "content")}},
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_tokenizer_whose_rules_could_take_all_memory_is_refused(tiny_checkpoint, bomb):
    path = tiny_checkpoint / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | BOMBS[bomb]))
    with pytest.raises(InputError, match="more than memory holds|is not a tokenizer") as caught:
        Router.load(tiny_checkpoint)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_tokenizer_calls_an_unknown_word_may_not_be_long(tiny_checkpoint):
    path = tiny_checkpoint / "tokenizer.json"
    fields = json.loads(path.read_text())
    long = "u" * 1_000_000
    fields["model"] |= {"unk_token": long, "vocab": fields["model"]["vocab"] | {long: len(fields["model"]["vocab"])}}
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match="more than memory holds"):
        Router.load(tiny_checkpoint)


def test_no_reader_of_a_tokenizer_sees_other_rules_than_the_check(tiny_checkpoint):
    path = tiny_checkpoint / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace('"normalizer":', f'"normalizer": {json.dumps(REPLACE)}, "normalizer":', 1))
    with pytest.raises(InputError, match="a key stands twice"):
        Router.load(tiny_checkpoint)
    path.rename(tiny_checkpoint / "tokenizer.4.0.0.json")  # tokenizer_config.json may name it
    with pytest.raises(InputError, match="tokenizer.4.0.0.json is not a tokenizer"):
        Router.load(tiny_checkpoint)


def test_the_rules_of_the_usual_encoders_pass():
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    table = base64.b64encode(b"\4\0\0\0trie" + "صلى الله عليه وسلم".encode() + b"\0").decode()
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    xlm = [{"type": "Precompiled", "precompiled_charsmap": table}, spaces]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    llama = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    for rules in (
        {"normalizer": {"type": "NFC"}, "pre_tokenizer": byte_level, "decoder": byte_level},
        {"normalizer": {"type": "Sequence", "normalizers": xlm}, "pre_tokenizer": metaspace, "decoder": metaspace},
        {"normalizer": {"type": "Sequence", "normalizers": llama}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}, spaces]}},
    ):
        assert longest_text({"model": {"unk_token": "<unk>"}} | rules, 8192) <= MAX_TOKENIZER_CHARACTERS


def test_pipes_devices_and_endless_files_of_a_checkpoint_are_refused(tiny_checkpoint):
    for name in ("config.json", "router.json", "tokenizer.json"):
        whole = (tiny_checkpoint / name).read_bytes()
        os.truncate(tiny_checkpoint / name, MAX_MODERATE_BYTES + 1)
        with pytest.raises(InputError, match="not a regular file of at most") as caught:
            Router.load(tiny_checkpoint)
        assert name in str(caught.value)
        (tiny_checkpoint / name).write_bytes(whole)
    os.mkfifo(tiny_checkpoint / "fifo")
    for path in (tiny_checkpoint / "fifo", Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a regular file"):
            read_moderate_file(path)


def test_the_newest_finished_checkpoint_is_found_and_no_rehearsal(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint in .*finetune_bert.py --help"):
        newest_checkpoint(tmp_path)
    for name in ("20260101T000000-save", "20260103T000000-save", "20260102T000000-save", "20260105T000000-save"):
        folder = tmp_path / f"tiny-router-finetuning-{name}"
        folder.mkdir()
        (folder / "config.json").touch()
    (folder / "run.json").write_text('{"rehearsal": true}')
    (tmp_path / "tiny-router-finetuning-20260104T000000-save.unfinished").mkdir()
    (tmp_path / "tiny-router-finetuning-20260106T000000-save").mkdir()
    assert newest_checkpoint(tmp_path).name == "tiny-router-finetuning-20260103T000000-save"
    (tmp_path / "tiny-router-finetuning-20260103T000000-save" / "run.json").write_text("not JSON")
    assert newest_checkpoint(tmp_path).name == "tiny-router-finetuning-20260103T000000-save"
    (tmp_path / "rehearsals").mkdir()
    shutil.copytree(folder, tmp_path / "rehearsals" / folder.name)
    with pytest.raises(InputError, match="no checkpoint but rehearsals"):
        newest_checkpoint(tmp_path / "rehearsals")


def test_settings_come_back_as_they_were_saved(tiny_checkpoint):
    settings = RouterSettings.load(tiny_checkpoint)
    settings.thresholds = {"at_most_20_percent_superior": 0.7}
    settings.save(tiny_checkpoint)
    assert RouterSettings.load(tiny_checkpoint) == settings
    (tiny_checkpoint / "router.json").write_text('{"temperature": 0}')
    with pytest.raises(InputError, match="router.json: temperature: .*; copy the checkpoint again"):
        RouterSettings.load(tiny_checkpoint)


def table(**fields) -> dict:
    lists = {name: [0.1, 0.5, 0.9] for name in ("superior_share", "quality", "quality_low", "quality_high")}
    return (
        {"measured_on": "validation", "rows": 3, "inferior_quality": 0.4, "thresholds": [0.2, 0.5, 0.8]}
        | lists
        | fields
    )


def test_the_tradeoff_table_is_read_at_the_nearest_threshold(tmp_path):
    assert TradeoffTable.load(tmp_path) is None and Verdict.load(tmp_path) is None
    (tmp_path / "tradeoff.json").write_text(json.dumps(table()))
    tradeoff = TradeoffTable.load(tmp_path)
    assert [tradeoff.at(threshold) for threshold in (0, 0.36, 0.5, 1)] == [0, 1, 1, 2]


@pytest.mark.parametrize("broken", ["{", "[]", json.dumps(table(rows="many"))])
def test_broken_evidence_is_left_out_with_a_warning(tmp_path, broken):
    (tmp_path / "tradeoff.json").write_text(broken)
    with pytest.warns(UserWarning, match=r"tradeoff.json is not used: ValidationError"):
        assert TradeoffTable.load(tmp_path) is None


# Deciding


def test_a_text_alone_and_a_conversation_alone_are_one_prompt(router):
    assert router.decide("what is a zorp") == router.decide(["what is a zorp"])
    assert router.score("what is a zorp").shape == (1,)
    conversation = said("what is a zorp", "and a egg")
    assert router.decide(conversation) == router.decide([conversation])


def test_a_decision_says_what_it_rests_on(router):
    low, high = router.decide(["what is the apple with a bread", "what is the zorp with a bread"])
    assert (low.router_label, high.router_label) == (INFERIOR, SUPERIOR) and low.threshold == 0.5
    assert (low.truncated, low.tokens_scored, low.characters_received, low.unfamiliar) == (False, 9, 30, False)
    assert router.decide("what is the zorp", threshold=1.0)[0].router_label == INFERIOR
    assert router.decide("what is the apple", threshold=0.0)[0].router_label == SUPERIOR


@pytest.mark.parametrize(
    ("prompt", "unfamiliar"),
    [
        ("what is the apple", False),
        ("what is the äpple", False),  # a Latin letter, whatever its accent
        ("東京の人口は何人ですか", True),
        ("what is 東京", False),
        ("Какова столица Франции?", True),
        ("🦊🦊🦊 🦊", True),
        ("wxyz qqqq unknown words", True),
        ("what unknown is the apple", False),
        ("42", True),  # this vocabulary has no digits
        ("", False),
        ("?!", False),
    ],
)
def test_what_the_encoder_cannot_read_is_unfamiliar_and_goes_where_the_settings_say(router, prompt, unfamiliar):
    decision = router.decide(prompt)[0]
    assert decision.unfamiliar == unfamiliar
    if unfamiliar:
        assert decision.router_label == SUPERIOR
        for route, label in (("inferior", INFERIOR), ("superior", SUPERIOR)):
            settings = router.settings.model_copy(update={"unfamiliar_route": route})
            assert Router(settings, router.encoder, router.model, "onnx").decide(prompt)[0].router_label == label
    by_score = router.settings.model_copy(update={"unfamiliar_route": "score"})
    decision = Router(by_score, router.encoder, router.model, "onnx").decide(prompt)[0]
    assert (decision.router_label == SUPERIOR) == (decision.router_score >= 0.5)


def test_the_scripts_of_an_encoder_are_told_by_its_vocabulary_or_named(router):
    tokenizer = tiny_tokenizer([*EASY, *HARD, *FILLER, *"абвг"]).backend_tokenizer
    assert readable_scripts(tokenizer) == ["CYRILLIC", "LATIN"]
    few_of_many = tiny_tokenizer([*"абвг", *(f"{a}{b}" for a in "abcdefghij" for b in "abcdefghij")])
    assert readable_scripts(few_of_many.backend_tokenizer) == ["LATIN"]  # single letters, from which no word is read
    assert router.encoder.scripts == {"LATIN"}
    assert PromptEncoder(tokenizer, 64, ["GREEK"]).scripts == {"GREEK"}
    assert PromptEncoder(tokenizer, 64, []).scripts == set()


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("router", (True, None)), ("router-0.35", (True, 0.35)), ("router-0", (True, 0.0)), ("router-1", (True, 1.0)),
        ("router-1.0", (True, 1.0)), ("router-1.01", (False, None)), ("router-2", (False, None)),
        ("router-", (False, None)), ("router-.5", (False, None)), ("router-0.35 ", (False, None)),
        ("Router", (False, None)), ("router-0." + "1" * 99, (False, None)), ("gpt-4o", (False, None)),
        ("", (False, None)), ("router\n", (False, None)), ("router-٠", (False, None)),
    ],
)  # fmt: skip
def test_a_models_name_may_ask_for_the_router_and_a_threshold(name, answer):
    assert parse_router_model(name) == answer


def test_flags_of_a_router_are_declared_once_and_checked():
    parser = argparse.ArgumentParser()
    add_router_flags(parser)
    args = parser.parse_args(["--model_save_dir", "models/x", "--threshold", "0.3"])
    assert args.model_save_dir.name == "x" and args.hf_model_name is None
    check_threshold(args.threshold)
    check_threshold(None)
    for outside in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="--threshold .* is not between 0 and 1"):
            check_threshold(outside)


def test_batches_hold_rows_of_like_length_within_their_size():
    lengths = [5, 60, 1, 8, 7, 100]
    batches = batches_of_like_length(lengths, 24)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert batches == [[2, 0, 4], [3], [1], [5]]
    assert all(len(batch) * max(lengths[i] for i in batch) <= 24 or len(batch) == 1 for batch in batches)


def test_outputs_come_in_the_order_of_the_rows_whatever_the_batches():
    import torch

    rows = [[i] * (i * 37 % 500 + 1) for i in range(60)]

    def module(ids, mask):
        assert ids.shape == mask.shape
        return torch.stack([ids[:, 0], (ids * mask).sum(1)], dim=1)

    outputs = run_in_batches(module, rows, pad_id=9)
    assert outputs.dtype == np.float32 and outputs[:, 0].tolist() == list(range(60))
    assert outputs[:, 1].tolist() == [sum(row) for row in rows]
    ids, mask = pad_rows([[1, 2], [3]], pad_id=9)
    assert ids.tolist() == [[1, 2], [3, 9]] and mask.tolist() == [[1, 1], [1, 0]]


def test_calibration_keeps_the_order_and_never_overflows():
    logits = np.array([[0, -1e4], [0, 0], [0, 2], [0, 1e4]], dtype=np.float32)
    assert calibrated(logits, 1.0).tolist() == pytest.approx([0, 0.5, 1 / (1 + np.exp(-2)), 1])
    assert calibrated(logits, 2.0)[2] == pytest.approx(1 / (1 + np.exp(-1)))


# Long prompts


def test_a_long_prompt_keeps_both_ends_and_says_so(router):
    decision = router.decide([f"zorp {LONG}"])[0]
    assert decision.truncated and decision.tokens_scored == 64
    assert decision.characters_received == len(LONG) + 5
    assert not router.decide(["apple"])[0].truncated

    tokenizer = router.encoder.tokenizer
    whole = tokenizer.encode(f"zorp {LONG} vlam").ids
    kept = router.encoder.encode([f"zorp {LONG} vlam"])[0].ids
    assert kept == whole[:32] + whole[-32:]


def test_of_a_megabyte_only_what_may_be_scored_is_tokenised(router, monkeypatch):
    seen = []

    class Spy:
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def encode(self, text):
            seen.append(text)
            return self.tokenizer.encode(text)

        def encode_batch_fast(self, texts):
            seen.extend(texts)
            return self.tokenizer.encode_batch_fast(texts)

    monkeypatch.setattr(router.encoder, "tokenizer", Spy(router.encoder.tokenizer))
    for prompts in ([f"zorp {'apple ' * 170_000} vlam"], ["apple", f"zorp {'apple ' * 170_000} vlam"]):
        seen.clear()
        decision = router.decide(prompts)[-1]
        assert decision.truncated and decision.characters_received > 1_000_000
        assert sum(map(len, seen)) < 30 * 64
        assert seen[-1].startswith("zorp ") and seen[-1].endswith(" vlam")


@pytest.mark.parametrize("prompt", ["", " ", "\ud800 zorp", "\0", "😀" * 3000, "<script>"])
def test_odd_prompts_get_a_probability(router, prompt):
    assert 0 <= router.score([prompt])[0] <= 1


# Conversations


def said(*turns, system=None):
    """A conversation in which the user said this."""
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "zorp vlam quix"}]
    return messages[:-1]


def test_a_short_follow_up_stays_with_its_hard_question(router):
    follow_up = "and with a egg"
    alone, after_hard, after_easy = router.score(
        [follow_up, said("what is zorp to vlam", follow_up), said("what is a apple", follow_up)]
    )
    assert alone < 0.5 and after_easy < 0.5 <= after_hard


def test_only_what_the_user_said_is_scored(router):
    plain = router.encoder.encode([said("what is a apple", "and a egg")])[0]
    assert router.encoder.encode([said("what is a apple", "and a egg", system="zorp " * 90)])[0] == plain
    tool = [*said("what is a apple"), {"role": "tool", "content": "zorp"}, {"role": "user", "content": "and a egg"}]
    assert router.encoder.encode([tool])[0] == plain


def test_one_message_is_scored_as_its_text(router):
    assert router.score([said("what is a apple")]).tolist() == router.score(["what is a apple"]).tolist()


def test_content_may_come_in_parts(router):
    parts = [{"type": "text", "text": "what is"}, {"type": "image_url", "image_url": {"url": "x"}}, {"text": "zorp"}]
    assert user_turns([{"role": "user", "content": parts}]) == ["what is\nzorp"]
    assert router.score([said(parts)])[0] >= 0.5


def test_the_last_turn_is_kept_whole_and_the_earlier_fill_the_rest(trained_checkpoint):
    encoder = PromptEncoder(load_tokenizer(trained_checkpoint), 16)
    word = encoder.tokenizer.token_to_id
    first, last = [word(token) for token in "zorp quix vlam".split()], [word(token) for token in EASY]
    row = encoder.encode([said("zorp quix vlam " + "the " * 40 + "zorp quix vlam", " ".join(EASY))])[0]
    assert row.truncated and len(row.ids) == 16
    assert row.ids[0] == word("[CLS]") and row.ids[-1] == word("[SEP]")
    assert row.ids[-1 - len(EASY) : -1] == last
    assert row.ids[1:4] == first and row.ids[-4 - len(EASY) : -1 - len(EASY)] == first
    whole = encoder.encode([said("zorp", "quix")])[0]
    assert not whole.truncated and whole.ids == [word(token) for token in ("[CLS]", "zorp", "quix", "[SEP]")]
    only_last = encoder.encode([said("zorp", "the " * 40)])[0]
    assert word("zorp") not in only_last.ids and only_last.truncated


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "assistant", "content": "hi"}], [{"content": "hi"}], ["hi"], [{"role": "user", "content": 3}]],
)
def test_what_is_no_conversation_is_refused(router, messages):
    with pytest.raises(InputError, match="conversation"):
        router.score([messages])


def test_the_turns_of_a_conversation_are_its_users_words():
    messages = [{"role": "system", "content": "s"}, *said("one", "two"), {"role": "user", "content": None}]
    assert user_turns(messages) == UserTurns(["one", "two"])
    assert scorable_turns(messages) == ["one", "two"]
    nothing = [
        [{"role": "system", "content": "s"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": " "}],
        [],
    ]
    assert [scorable_turns(conversation) for conversation in nothing] == [None] * 4
    with pytest.raises(InputError, match="conversation"):
        scorable_turns([{"content": "hi"}])


def test_what_applications_add_to_a_turn_is_not_scored(router):
    reminder = "<system-reminder>zorp quix vlam</system-reminder>"
    plain = router.encoder.encode(["what is the apple"])[0]
    assert router.encoder.encode([f"{reminder}\nwhat is the apple"])[0].ids == plain.ids
    wrapped = said("what is the apple", f"{reminder}\nand a egg")
    assert router.score([wrapped]).tolist() == router.score([said("what is the apple", "and a egg")]).tolist()
    assert user_turns(said("what is the apple", reminder)) == ["what is the apple"]
