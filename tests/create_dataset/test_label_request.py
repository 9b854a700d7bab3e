"""What counts as an answer: two qualities or a label, behind any thinking, and what its soft label rests on."""

import json
import math

import pytest
from labelling_runs import failures, label, rows, write_prompts
from openai_server import INFERIOR_ANSWER, QUALITY_ANSWER, SUPERIOR_ANSWER, completion, error

from create_dataset.label_request import LabelRequest, decide, parse_answer, probability_from_logprobs
from create_dataset.openai_client import AnswerMissing, Choice
from router_data import EVEN_GAIN, LabelledPrompt, probability_from_gain, read_rows

QUALITY_PROMPT = "Give inferior_quality and superior_quality."


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "finish_reason"),
    [
        ('{"label":"ROUTE_TO_SUPERIOR"}', "stop"),
        ('```json\n{"label": "ROUTE_TO_SUPERIOR"}\n```', "stop"),
        ('{"label": "ROUTE_TO_SUPERIOR", "why": "not ROUTE_TO_INFERIOR"}', "stop"),
        ('{"why": "not {\\"label\\": \\"ROUTE_TO_INFERIOR\\"}", "label": "ROUTE_TO_SUPERIOR"}', "stop"),
        ('{"answer": {"label": "ROUTE_TO_SUPERIOR"}}', "stop"),
        ('[{"label": "ROUTE_TO_SUPERIOR"}]', "stop"),
        ("ROUTE_TO_SUPERIOR", "stop"),
        ("**Label:** `route_to_superior`.", "stop"),
        ("The answer is ROUTE_TO_SUPERIOR.", "stop"),
        ("My final verdict: ROUTE_TO_SUPERIOR", "stop"),
        (r"\boxed{\text{ROUTE_TO_SUPERIOR}}", "stop"),
        ('"ROUTE_TO_SUPERIOR"', "stop"),
        ("{'label': 'ROUTE_TO_SUPERIOR'}", "stop"),
        ("It asks for a proof, which ROUTE_TO_INFERIOR would fail.\n\nROUTE_TO_SUPERIOR", "stop"),
        ("ROUTE_TO_SUPERIOR\n\nIt needs a proof.", "stop"),
        ('Here is my verdict:\n```json\n{"label": "ROUTE_TO_SUPERIOR"}\n```\nIt needs a proof.', "stop"),
        ('{"label": "ROUTE_TO_SUPERIOR"\n\n\n\n \n', "length"),
        ('{"label": "ROUTE_TO_SUPERIOR"}\n\n', "max_tokens"),
        ("ROUTE_TO_SUPERIOR<|im_end|>", "stop"),
        ('<think>\nA proof {"label": "ROUTE_TO_INFERIOR"}?\n</think>\n\n{"label": "ROUTE_TO_SUPERIOR"}', "stop"),
        ('So ROUTE_TO_INFERIOR.\nNo.\n</think>\n{"label": "ROUTE_TO_SUPERIOR"}', "stop"),
        ("<think>It says </think> ROUTE_TO_INFERIOR</think>\nROUTE_TO_SUPERIOR", "stop"),
        ("<thinking>hm</thinking>ROUTE_TO_SUPERIOR", "stop"),
        ("[THINK]hm[/THINK]ROUTE_TO_SUPERIOR", "stop"),
        ("◁think▷hm◁/think▷ROUTE_TO_SUPERIOR", "stop"),
        ('<|channel|>analysis<|message|>ROUTE_TO_INFERIOR?<|end|><|start|>assistant<|channel|>final<|message|>'
         '{"label": "ROUTE_TO_SUPERIOR"}<|return|>', "stop"),
        ('<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>'
         '{"label": "ROUTE_TO_SUPERIOR"}', "stop"),
    ],
)  # fmt: skip
def test_answers_that_are_a_label(text, finish_reason):
    answer = parse_answer(Choice(text, finish_reason))
    assert answer.label == "ROUTE_TO_SUPERIOR" and answer.inferior_quality is None
    assert text[answer.label_at :].upper().startswith("ROUTE_TO_SUPERIOR")


@pytest.mark.parametrize(
    ("text", "finish_reason"),
    [
        ('{"inferior_quality": 0.4, "superior_quality": 0.9}', "stop"),
        ('{"superior_quality": 0.90, "inferior_quality": 0.40, "why": "a proof"}', "stop"),
        ('{"inferior_quality": "0.4", "superior_quality": "90%"}', "stop"),
        ('{"Inferior Quality": 0.4, "Superior-Quality": 0.9}', "stop"),
        ('{"inferior": 0.4, "superior": 0.9}', "stop"),
        ('{"inferior_quality": 0.4, "superior_quality": 0.9, "label": "ROUTE_TO_INFERIOR"}', "stop"),
        ('```json\n{"inferior_quality": 0.4, "superior_quality": 0.9}\n```', "stop"),
        ("Inferior quality: 0.4\nSuperior quality: 0.9", "stop"),
        ("- **inferior_quality**: 40%\n- **superior_quality**: 90 %", "stop"),
        ("inferior_quality = .4, superior_quality = .9.", "stop"),
        ("0.4, 0.9", "stop"),
        ("[0.4, 0.9]", "stop"),
        ('{"inferior_quality": 0.4, "superior_quality": 0.9  \n\n', "length"),
        ('<think>{"inferior_quality": 0.1, "superior_quality": 0.2}</think>0.4 0.9', "stop"),
    ],
)
def test_answers_that_are_two_qualities(text, finish_reason):
    answer = parse_answer(Choice(text, finish_reason))
    assert (answer.inferior_quality, answer.superior_quality) == (0.4, 0.9)
    assert answer.label == "ROUTE_TO_SUPERIOR"


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (Choice('{"label": "ROUTE_TO_MARS"}'), "in no known form"),
        (Choice("ROUTE_TO_INFERIOR or ROUTE_TO_SUPERIOR"), "in no known form"),
        (Choice("not ROUTE_TO_INFERIOR"), "in no known form"),
        (Choice("1"), "in no known form"),
        (Choice("Options:\n- ROUTE_TO_INFERIOR\n- ROUTE_TO_SUPERIOR"), "more than one answer"),
        (Choice('{"label": "ROUTE_TO_INFERIOR"} or {"label": "ROUTE_TO_SUPERIOR"}'), "more than one answer"),
        (Choice("Inferior quality: 0.4 or inferior quality: 0.5, superior quality: 0.9"), "more than one answer"),
        (Choice('{"inferior_quality": 40, "superior_quality": 90}'), "in no known form"),
        (Choice('{"inferior_quality": 0.4}'), "in no known form"),
        (Choice('{"inferior_quality": true, "superior_quality": 1}'), "in no known form"),
        (Choice('{"inferior_quality": NaN, "superior_quality": 1}'), "in no known form"),
        (Choice('{"inferior_quality": -0.1, "superior_quality": 1}'), "in no known form"),
        (Choice("0.4, 0.9, 0.7"), "in no known form"),
        (Choice(""), "empty answer"),
        (Choice("  \n"), "empty answer"),
        (Choice("<think>ROUTE_TO_INFERIOR"), "no answer behind the thinking"),
        (
            Choice('<think>{"label": "ROUTE_TO_INFERIOR"}', "length"),
            "behind the thinking cut off at --max_output_tokens",
        ),
        (Choice("<|channel|>analysis<|message|>ROUTE_TO_INFERIOR"), "no answer behind the thinking"),
        (Choice("", "length"), "empty answer cut off"),
        (Choice('{"label": \n\n\n\n', "length"), "cut off"),
        (Choice('{"label": "ROUTE_TO_INFERIOR', "length"), "cut off"),
        (Choice('It could be {"label": "ROUTE_TO_INFERIOR"}, but', "length"), "cut off"),
        (Choice("ROUTE_TO_INFERIOR\nHowever,", "length"), "cut off"),
        (Choice('{"inferior_quality": 0.4, "superior_quality": 0.9', "length"), "cut off"),
        (Choice("", refusal="I can't help with that"), "refusal: I can't help"),
        (Choice("", "content_filter"), "content filter"),
        (Choice("half an ans", "safety"), "content filter"),
        (Choice("", error={"message": "upstream"}), "error in place of an answer"),
    ],
)
def test_what_is_no_answer(choice, reason):
    with pytest.raises(AnswerMissing, match=reason):
        parse_answer(choice)


def test_a_long_line_of_marks_is_read_at_once():
    with pytest.raises(AnswerMissing):
        parse_answer(Choice("-*_ " * 100_000))


# --- soft labels -----------------------------------------------------------------------------------------------------


def logprobs(*tokens: tuple[str, dict[str, float]]) -> list[dict]:
    """Log probabilities as an endpoint sends them, from tokens with their probable alternatives."""
    return [
        {"token": t, "top_logprobs": [{"token": o, "logprob": math.log(p)} for o, p in options.items()]}
        for t, options in tokens
    ]


def soft_label(text: str, tokens: list[dict]) -> float | None:
    choice = Choice(text, logprobs=tokens)
    return probability_from_logprobs(choice, parse_answer(choice))


INF = {"_INF": 0.6, "_SUP": 0.3, "_X": 0.1}


@pytest.mark.parametrize(
    ("tokens", "mass"),
    [
        ([('{"label": "', {}), ("ROUTE", {}), ("_TO", {}), ("_INF", INF), ('ERIOR"}', {})], 1 / 3),
        ([("ROUTE_TO_", {}), ("S", {"S": 0.5, "SUPER": 0.3, "I": 0.2, "IN": 0.0001}), ("UPERIOR", {})], 0.8 / 1.0001),
        ([("ROUTE_TO_INFERIOR", {"ROUTE_TO_INFERIOR": 0.9, "ROUTE_TO_SUPERIOR": 0.05, "ROUTE": 0.05})], 0.05 / 0.95),
        ([(' "ROUTE_TO_INFERIOR"', {' "ROUTE_TO_INFERIOR"': 0.75, ' "ROUTE_TO_SUPERIOR"': 0.25})], 0.25),
        ([("ROUTE", {"ROUTE": 1.0}), ("_TO_INFERIOR", {"_TO_": 1.0})], None),
        ([("ROUTE_TO_INFERIOR", {})], None),
    ],
)
def test_the_mass_of_the_two_labels(tokens, mass):
    found = soft_label("".join(token for token, _ in tokens), logprobs(*tokens))
    assert found == (None if mass is None else pytest.approx(mass, rel=1e-6))


THINKING = [("<think>", {}), ("ROUTE_TO_", {}), ("SUPERIOR", {"SUPERIOR": 0.9, "INFERIOR": 0.1}), ("?</think>\n", {})]
ANSWER = [('{"label": "', {}), ("ROUTE_TO_", {}), ("INFERIOR", {"INFERIOR": 0.8, "SUPERIOR": 0.2}), ('"}', {})]


@pytest.mark.parametrize(
    ("text", "tokens", "mass"),
    [
        ('{"label": "ROUTE_TO_INFERIOR"}', THINKING + ANSWER, 0.2),  # the server cut the thinking off the text only
        ('<think>ROUTE_TO_SUPERIOR?</think>\n{"label": "ROUTE_TO_INFERIOR"}', THINKING + ANSWER, 0.2),
        ('{"label": "ROUTE_TO_INFERIOR"}', [*THINKING, *ANSWER, ("<|im_end|>", {}), ("\n", {})], 0.2),
        ('{"label": "ROUTE_TO_INFERIOR"}', [("\n\n", {}), *ANSWER, (" ", {})], 0.2),
        ('{"label": "ROUTE_TO_INFERIOR"}', THINKING, None),  # of the thinking alone
        ('{"label": "ROUTE_TO_INFERIOR"}', [*ANSWER, *THINKING], None),
        ('{"label": "ROUTE_TO_INFERIOR"}', ANSWER[:2], None),  # cut off before the answer ends
        ('{"label": "ROUTE_TO_INFERIOR"}', [("token_id:17", {}), ("token_id:4", {})], None),
        ("ROUTE_TO_INFERIOR\n\nNot ROUTE_TO_SUPERIOR, since", [("ROUTE_TO_", {}), ("INFERIOR", {"IN": 0.6, "S": 0.4}),
         ("\n\nNot ", {}), ("ROUTE_TO_", {}), ("SUPERIOR", {"S": 0.9, "I": 0.1}), (", since", {})], 0.4),
        ('{"why": "ROUTE_TO_SUPERIOR no", "label": "ROUTE_TO_INFERIOR"}', [('{"why": "ROUTE_TO_', {}),
         ("SUPERIOR", {"S": 0.9, "I": 0.1}), (' no", "label": "ROUTE_TO_', {}), ("INFERIOR", {"I": 0.7, "S": 0.3}),
         ('"}', {})], 0.3),
    ],
)  # fmt: skip
def test_a_soft_label_comes_from_the_answers_own_tokens_or_not_at_all(text, tokens, mass):
    assert soft_label(text, logprobs(*tokens)) == (None if mass is None else pytest.approx(mass))


@pytest.mark.parametrize("impossible", [None, "-Infinity", float("-inf"), float("nan"), True, -9999.0])
def test_an_impossible_token_counts_as_probability_0(impossible):
    tokens = logprobs(("ROUTE_TO_", {}), ("SUPERIOR", {"SUPERIOR": 0.9}))
    tokens[1]["top_logprobs"] += [{"token": "INFERIOR", "logprob": impossible}, {"token": None}, None]
    assert soft_label("ROUTE_TO_SUPERIOR", tokens) == 1.0


@pytest.mark.parametrize("odd", [None, [], [None], {"token": "S"}, "text", [{"token": "SUPERIOR"}]])
def test_odd_alternatives_give_no_soft_label(odd):
    tokens = [{"token": "ROUTE_TO_"}, {"token": "SUPERIOR", "logprob": None, "top_logprobs": odd}]
    assert soft_label("ROUTE_TO_SUPERIOR", tokens) is None


def test_log_probabilities_become_the_soft_label(serve):
    write_prompts(3)
    tokens = lambda sup: {"content": logprobs(*ANSWER[:2], ("X", {"SUP": sup, "INF": 1 - sup}))}  # noqa: E731

    def behave(prompt, *_):
        text, share = {"0": ("SUPERIOR", 0.8), "1": ("INFERIOR", 0.25), "2": ("INFERIOR", 0.9)}[prompt[-1]]
        odds = tokens(share)
        odds["content"][-1]["token"] = f'{text}"}}'
        return completion(f'{{"label": "ROUTE_TO_{text}"}}', logprobs=odds)

    server = serve(behave)
    assert label() == 0
    by_prompt = {row["prompt"][-1]: (row["label"][9:], row["superior_probability"]) for row in rows()}
    assert by_prompt == {"0": ("SUPERIOR", 0.8), "1": ("INFERIOR", 0.25), "2": ("INFERIOR", None)}, (
        "2: against the odds"
    )
    assert server.bodies[0]["logprobs"] is True


# --- qualities -------------------------------------------------------------------------------------------------------


def test_qualities_become_the_gain_and_the_label(serve):
    write_prompts(4)
    answers = {"0": (0.95, 0.97), "1": (0.5, 0.9), "2": (0.5, 0.5 + EVEN_GAIN), "3": (0.6, 0.3)}
    template = '{{"inferior_quality": {}, "superior_quality": {}}}'
    server = serve(lambda prompt, *_: completion(template.format(*answers[prompt[-1]])))
    with open("labelling.txt", "w") as file:
        file.write(QUALITY_PROMPT)
    assert label() == 0
    found = {row.prompt[-1]: row for row in read_rows("out.jsonl", LabelledPrompt)}
    for name, (inferior, superior) in answers.items():
        row = found[name]
        assert (row.inferior_quality, row.superior_quality) == (inferior, superior)
        assert row.superior_probability == pytest.approx(probability_from_gain(superior - inferior), abs=1e-6)
    assert [found[name].label[9:] for name in "0123"] == ["INFERIOR", "SUPERIOR", "SUPERIOR", "INFERIOR"]
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert list(schema["properties"]) == ["inferior_quality", "superior_quality"] and schema["required"]


def test_the_labelling_prompt_says_which_answer_is_asked_for():
    asked = [LabelRequest("m", text).body("p")["response_format"] for text in (QUALITY_PROMPT, "Say the label.")]
    assert [form["json_schema"]["name"] for form in asked] == ["qualities", "route"]


def test_a_plain_label_is_an_answer_to_the_question_for_qualities_too(serve):
    write_prompts(1)
    with open("labelling.txt", "w") as file:
        file.write(QUALITY_PROMPT)
    serve(lambda *_: completion(SUPERIOR_ANSWER))
    assert label() == 0
    assert rows()[0]["label"] == "ROUTE_TO_SUPERIOR" and "inferior_quality" not in rows()[0]
    assert rows()[0]["superior_probability"] is None


# --- votes -----------------------------------------------------------------------------------------------------------


def quality(inferior: float, superior: float) -> str:
    return json.dumps({"inferior_quality": inferior, "superior_quality": superior})


def test_votes_average_the_two_numbers():
    found = decide([Choice(quality(0.2, 0.9)), Choice(quality(0.4, 0.8)), Choice("what?")])
    assert (found.inferior_quality, found.superior_quality, found.votes) == (0.3, 0.85, 2)
    assert found.superior_probability == pytest.approx(probability_from_gain(0.55), abs=1e-6)
    assert found.label == "ROUTE_TO_SUPERIOR"
    assert found.fields()["votes"] == 2


def test_votes_of_two_forms_count_by_their_labels_unless_most_are_numbers():
    numbers, plain = Choice(quality(0.2, 0.9)), Choice(INFERIOR_ANSWER)
    assert decide([numbers, numbers, plain]).inferior_quality == 0.2
    mixed = decide([numbers, plain])
    assert mixed.inferior_quality is None and mixed.superior_probability == 0.5


@pytest.mark.parametrize("knows_n", [True, False])
def test_votes_become_shares(serve, knows_n):
    prompts = write_prompts(4)
    wishes = {p: [SUPERIOR_ANSWER] * i + ["what?"] * (i == 1) + [INFERIOR_ANSWER] * 5 for i, p in enumerate(prompts)}

    def behave(prompt, nth, body):
        many = body.get("n", 1) if knows_n else 1
        if not knows_n and "n" in body:
            return error(400, message="unknown field: n")
        answer = completion(n=many)
        texts = [wishes[prompt].pop(0) for _ in range(many)]
        answer.body["choices"] = [completion(text).body["choices"][0] for text in texts]
        return answer

    server = serve(behave)
    assert label("--votes", "5") == 0
    shares = {row["prompt"]: (row["superior_probability"], row["label"][9:], row["votes"]) for row in rows()}
    expected = [(0.0, "INFERIOR", 5), (0.25, "INFERIOR", 4), (0.4, "INFERIOR", 5), (0.6, "SUPERIOR", 5)]
    assert shares == dict(zip(prompts, expected, strict=True))
    assert server.bodies[-1]["temperature"] == 1
    assert sum(server.asked.values()) == (4 if knows_n else 4 * 5 + 1)
    assert {row["output_tokens"] for row in rows()} == {50}


def test_votes_without_a_majority_of_answers_fail(serve):
    write_prompts(1)
    serve(lambda p, nth, _: completion([QUALITY_ANSWER, "?", "?"][nth - 1]))
    assert label("--votes", "3") == 1 and not rows()
    assert "in no known form" in failures()[0]["reason"] and failures()[0]["output_tokens"] == 30


@pytest.mark.parametrize(
    "token",
    ["<|im_end|>", "<|start_header_id|>", "</s>", "<start_of_turn>", "<｜User｜>", "[INST]", "[/INST]", "[TOOL_CALLS]"],
)
def test_no_control_token_of_a_chat_template_is_left_in_a_prompt(token):
    prompt = f'{token}\\{token} "a[0] [x] [A]"'
    content = LabelRequest("m", "judge").body(prompt)["messages"][1]["content"]
    assert token not in content and '\\"a[0] [x] [A]\\"' in content
    assert json.loads(content) == {"prompt_to_judge": prompt}
