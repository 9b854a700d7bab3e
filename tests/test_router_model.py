"""The checkpoint: what its ONNX file is trusted with, how long prompts and conversations are read, who may call it."""

import json
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import EASY, HARD, ROOT, random_bert, save_checkpoint

import finetuning_model.export_onnx as export
from router_data import INFERIOR, SUPERIOR, InputError, write_rows
from router_model import OnnxModel, PromptEncoder, Router, load_tokenizer, fingerprint, RouterSettings.load, user_turns

EASY_PROMPTS = [f"what is the {word} with a {other}" for word in EASY for other in EASY[:4]]
HARD_PROMPTS = [f"please the {word} in a {other}" for word in HARD for other in EASY * 2]
PROMPTS = [*EASY_PROMPTS, *HARD_PROMPTS]
LABELS_OF_PROMPTS = [0] * len(EASY_PROMPTS) + [1] * len(HARD_PROMPTS)
LONG = " ".join(EASY * 30)


@pytest.fixture(scope="module")
def exported(trained_checkpoint, tmp_path_factory):
    """The trained checkpoint with its ONNX file."""
    folder = tmp_path_factory.mktemp("exported") / trained_checkpoint.name
    shutil.copytree(trained_checkpoint, folder)
    export.export_onnx(folder, PROMPTS, LABELS_OF_PROMPTS, say=lambda line: None)
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    """One that a test may break."""
    return shutil.copytree(exported, tmp_path / exported.name)


@pytest.fixture(scope="module")
def router(exported):
    return Router.load(exported)


# The ONNX file


def test_int8_is_what_everyone_gets_and_says_what_pytorch_says(exported, router):
    settings = RouterSettings.load(exported)
    assert settings.onnx_file == "model_int8.onnx" and router.backend == "onnx"
    exact = Router.load(exported, backend="torch").score(PROMPTS)
    scores = router.score(PROMPTS)
    assert np.abs(scores - exact).mean() <= export.MAX_MEAN_CHANGE
    assert ((scores >= 0.5) == (np.array(LABELS_OF_PROMPTS) == 1)).all()
    assert settings.onnx.mean_change == pytest.approx(np.abs(scores - exact).mean(), abs=1e-5)


def test_onnx_path_imports_neither_torch_nor_transformers(exported):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from router_model import Router\n"
        f"print(len(Router.load({str(exported)!r}).decide(['hello', 'zorp'])))\n"
        "print(sorted({'torch', 'transformers', 'gradio', 'openai', 'onnx', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["2", "[]"]


def test_a_score_does_not_depend_on_the_other_prompts(router):
    together = router.score([*PROMPTS, LONG])
    alone = [router.score([prompt])[0] for prompt in [*PROMPTS, LONG]]
    assert together.tolist() == alone


@pytest.mark.parametrize("prompt", ["apple", LONG])
def test_one_core_says_what_all_cores_say(exported, prompt):
    forward = OnnxModel(exported / "model_int8.onnx")
    row = Router.load(exported).encode([prompt])[0].ids
    one, all_cores = (forward._logits(session, row) for session in (forward._session(1), forward._session(2)))
    assert one.tolist() == all_cores.tolist()


def test_where_others_are_scored_a_prompt_takes_one_core(exported, monkeypatch):
    forward = OnnxModel(exported / "model_int8.onnx")
    forward._one_core, forward._all_cores = "one", "all"
    taken = []

    def logits(session, row):
        taken.append(session)
        if len(taken) == 1:
            forward([row])  # another caller, meanwhile
        return np.zeros((1, 2))

    monkeypatch.setattr(forward, "_logits", logits)
    forward([[0] * 9])
    forward([[0] * 9])
    assert taken == ["all", "one", "all"]


def test_callers_in_many_threads_get_their_own_scores(router):
    expected = router.score(PROMPTS)
    with ThreadPoolExecutor(8) as pool:
        one_by_one = list(pool.map(lambda prompt: router.score([prompt])[0], PROMPTS * 4))
        in_groups = list(pool.map(lambda start: router.score(PROMPTS[start : start + 5]), range(0, 40, 5)))
    assert one_by_one == [*expected] * 4
    assert np.concatenate(in_groups).tolist() == expected[:40].tolist()


def test_no_prompts_no_scores(router):
    assert router.score([]).shape == (0,) and router.decide([]) == []


def other_weights(folder):
    """Train on: the last step of an optimiser moves every weight a little."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.data *= 1.001
    model.save_pretrained(folder)


def only_the_classifier(folder):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
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


# Making it


def test_int8_that_moves_the_scores_is_not_published(copy, monkeypatch, capsys):
    write_int8 = export.write_int8

    def crude(fp32, path, left_in_fp32):
        import onnx
        from onnx import numpy_helper

        write_int8(fp32, path, left_in_fp32)
        model = onnx.load(path)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.bias"))
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([0, 20]), bias.name))
        onnx.save(model, path)

    monkeypatch.setattr(export, "write_int8", crude)
    made = export.export_onnx(copy, PROMPTS, LABELS_OF_PROMPTS)
    assert made["onnx_file"] == "model.onnx" and made["scheme"] == "fp32"
    assert len(made["tried"]) == 2 and all(each["mean_change"] > export.MAX_MEAN_CHANGE for each in made["tried"])
    assert "fp32, since int8 moved the scores" in capsys.readouterr().out
    assert not (copy / "model_int8.onnx").exists()
    exact = Router.load(copy, backend="torch").score(PROMPTS)
    assert Router.load(copy).backend == "onnx"
    assert Router.load(copy).score(PROMPTS) == pytest.approx(exact, abs=1e-4)


def test_a_loss_of_auroc_alone_is_refused(copy, monkeypatch):
    compare = export.compare
    monkeypatch.setattr(export, "compare", lambda *args: compare(*args) | {"auroc_loss": 0.004})
    assert export.export_onnx(copy, PROMPTS, LABELS_OF_PROMPTS, say=lambda line: None)["onnx_file"] == "model.onnx"


def test_compare_measures_what_it_says():
    exact, scores = np.array([0.1, 0.4, 0.6, 0.9]), np.array([0.1, 0.6, 0.5, 0.9])
    figures = export.compare(exact, scores, [0, 0, 1, 1])
    assert figures["mean_change"] == pytest.approx(0.075) and figures["max_change"] == pytest.approx(0.2)
    assert figures["auroc_loss"] == pytest.approx(0.25)
    assert export.compare(exact, scores, [1, 1, 1, 1])["auroc_loss"] is None


def test_an_export_that_fails_costs_nothing(copy, monkeypatch, capsys):
    no_file(copy)

    def fail(*args):
        raise RuntimeError("this architecture has no export\nwith a second line")

    monkeypatch.setattr(export, "write_fp32", fail)
    made = export.export_onnx(copy, PROMPTS, LABELS_OF_PROMPTS)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["no ONNX file: RuntimeError: this architecture has no export; PyTorch serves this checkpoint"]
    assert made["onnx_file"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        router = Router.load(copy)
    assert router.backend == "torch" and router.settings.thresholds
    assert not list(copy.glob(".onnx-*"))


def test_a_failed_export_keeps_a_file_that_still_fits(copy, monkeypatch):
    monkeypatch.setattr(export, "write_fp32", lambda *args: 1 / 0)
    export.export_onnx(copy, PROMPTS, LABELS_OF_PROMPTS, say=lambda line: None)
    assert Router.load(copy).backend == "onnx"


def test_smoothing_changes_no_score_of_the_fp32_model(exported, router, tmp_path):
    with export.quiet():
        export.write_fp32(exported, tmp_path / "plain.onnx")
        rows = [row.ids for row in router.encoder.encode(PROMPTS)]
        export.write_smoothed(tmp_path / "plain.onnx", tmp_path / "smoothed.onnx", rows)
    plain, smoothed = (OnnxModel(tmp_path / name)(rows) for name in ("plain.onnx", "smoothed.onnx"))
    assert smoothed == pytest.approx(plain, abs=1e-4)
    assert (tmp_path / "plain.onnx").read_bytes() != (tmp_path / "smoothed.onnx").read_bytes()
    assert len(export.narrowing_products(tmp_path / "smoothed.onnx")) == 2  # one a layer


def test_attention_of_bert_is_two_operators(exported):
    import onnx

    kinds = Counter(node.op_type for node in onnx.load(exported / "model_int8.onnx").graph.node)
    assert kinds["MultiHeadAttention"] == 2 and not kinds["Softmax"]
    assert kinds["ReduceMax"] == 2 and not kinds["Abs"]  # what GELU gives is hardly ever below zero
    assert kinds["MatMulInteger"] == 2 * 4 + 1  # in the last layer the query is a product of its own


def test_the_last_layer_of_bert_makes_the_first_tokens_vector_alone(exported):
    import onnx
    import onnxruntime

    model = onnx.load(exported / "model_int8.onnx")
    products = [node.output[0] for node in model.graph.node if node.op_type == "MatMulInteger"]
    for name in products:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT32, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made = session.run(products, {"input_ids": np.array([[2, 5, 6, 7, 3]])})
    rows_made = sorted(each.shape[1] for each in made)  # key and value are made of all tokens
    assert rows_made == [1] * 4 + [5] * 5


def test_the_fp32_export_gives_pytorchs_logits(tmp_path):
    model = random_bert()
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data *= 10  # else the prompts hardly differ
    folder = save_checkpoint(tmp_path / "random", settings={"max_length": 64}, model=model)
    router = Router.load(folder, backend="torch")
    rows = [row.ids for row in router.encoder.encode([*PROMPTS, LONG])]
    with export.quiet():
        export.write_fp32(folder, tmp_path / "plain.onnx")
    logits = OnnxModel(tmp_path / "plain.onnx")(rows)
    assert logits == pytest.approx(router._forward(rows), abs=1e-5)
    assert np.ptp(logits[:, 1] - logits[:, 0]) > 0.1


def test_older_checkpoint_is_exported_by_command(tmp_path, capsys):
    folder = save_checkpoint(tmp_path / "older", labels=None)
    rows = tmp_path / "labelled.jsonl"
    with pytest.raises(InputError, match="--validation_files"):
        export.main(["--model_save_dir", str(folder)])
    write_rows(
        rows,
        [{"prompt": p, "label": SUPERIOR if y else INFERIOR} for p, y in zip(PROMPTS, LABELS_OF_PROMPTS, strict=True)],
    )
    export.main(["--model_save_dir", str(folder), "--validation_files", str(rows)])
    assert f"over {len(PROMPTS)} validation rows" in capsys.readouterr().out
    assert Router.load(folder).backend == "onnx"


def test_modernbert_is_exported_too(tmp_path):
    import onnx
    import torch
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        local_attention=16,
        max_position_embeddings=64,
        pad_token_id=0,
        cls_token_id=2,
        bos_token_id=2,
        sep_token_id=3,
        eos_token_id=3,
    )
    model = ModernBertForSequenceClassification(config)
    for layer in model.model.layers:  # wide, as those of a trained model are
        layer.mlp.Wi.weight.data *= 30
    folder = save_checkpoint(tmp_path / "modern", settings={"max_length": 64}, model=model)
    made = export.export_onnx(folder, [*PROMPTS, LONG], [*LABELS_OF_PROMPTS, 1], say=lambda line: None)
    assert made["onnx_file"], made
    with export.quiet():
        export.write_fp32(folder, tmp_path / "plain.onnx")
        rows = [row.ids for row in Router.load(folder).encode(PROMPTS)]
        export.write_smoothed(tmp_path / "plain.onnx", tmp_path / "smoothed.onnx", rows)
    files = [tmp_path / name for name in ("plain.onnx", "smoothed.onnx")]
    before, after = (Counter(node.op_type for node in onnx.load(file).graph.node) for file in files)
    assert after["Abs"] - before["Abs"] == 4  # one a layer: gated units give values far below zero
    plain, smoothed = (OnnxModel(file)(rows) for file in files)
    assert smoothed == pytest.approx(plain, abs=1e-4)
    exact = Router.load(folder, backend="torch").score([*PROMPTS, LONG])
    assert Router.load(folder, backend="onnx").score([*PROMPTS, LONG]) == pytest.approx(exact, abs=0.03)


# Long prompts


def test_a_long_prompt_keeps_both_ends_and_says_so(router):
    decision = router.decide([f"zorp {LONG}"])[0]
    assert decision.truncated and decision.tokens_scored == 64 and decision.long_prompt_policy == "head_tail"
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
    encode = PromptEncoder(load_tokenizer(trained_checkpoint, None), 16)
    word = encode.tokenizer.token_to_id
    first, last = [word(token) for token in "zorp quix vlam".split()], [word(token) for token in EASY]
    row = encode([said("zorp quix vlam " + "the " * 40 + "zorp quix vlam", " ".join(EASY))])[0]
    assert row.truncated and len(row.ids) == 16
    assert row.ids[0] == word("[CLS]") and row.ids[-1] == word("[SEP]")
    assert row.ids[-1 - len(EASY) : -1] == last
    assert row.ids[1:4] == first and row.ids[-4 - len(EASY) : -1 - len(EASY)] == first
    whole = encode([said("zorp", "quix")])[0]
    assert not whole.truncated and whole.ids == [word(token) for token in ("[CLS]", "zorp", "quix", "[SEP]")]
    only_last = encode([said("zorp", "the " * 40)])[0]
    assert word("zorp") not in only_last.ids and only_last.truncated


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "assistant", "content": "hi"}], [{"content": "hi"}], ["hi"], [{"role": "user", "content": 3}]],
)
def test_what_is_no_conversation_is_refused(router, messages):
    with pytest.raises(InputError, match="conversation"):
        router.score([messages])
