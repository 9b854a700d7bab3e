"""Another checkpoint takes the place of the one in use, without a stream that breaks; a broken one does not."""

import asyncio

import numpy as np
import pytest
from openai_server import stream_of
from routing_endpoint import EASY_PROMPT, HARD_PROMPT, endpoint, text_of_stream

from router_data import InputError
from router_model import Router


class Swapped:
    """A checkpoint that says the contrary of another one."""

    def __init__(self, model) -> None:
        self._model = model

    def logits(self, rows):
        return self._model.logits(rows)[:, ::-1]


class Broken:
    """A checkpoint whose weights are not numbers."""

    def logits(self, rows):
        return np.full((len(rows), 2), np.nan, dtype=np.float32)


def with_model(router: Router, model) -> Router:
    changed = router.settings.model_copy(update={"threshold": 0.4})
    made = object.__new__(Router)
    made.__dict__ |= router.__dict__ | {"model": model, "settings": changed}
    return made


def reload(running) -> bool:
    loop = running.server.servers[0].get_loop()
    return asyncio.run_coroutine_threadsafe(running.app.reload(), loop).result(60)


def test_a_new_checkpoint_is_taken_while_a_stream_goes_on(router, upstream):
    loads = [with_model(router, Swapped(router.model))]
    with endpoint(router, upstream, load_router=lambda: loads.pop()) as running:
        assert running.decision(EASY_PROMPT)["model"] == "inferior"
        upstream.behave = lambda *_: stream_of("one two", hold=True)
        stream = running.ask(EASY_PROMPT, stream=True).parse()
        next(stream)
        assert reload(running)
        upstream.release()
        assert text_of_stream(stream) == "one two"
        found = running.decision(EASY_PROMPT, stream=True)  # a remembered score of the old checkpoint is not used
        assert (found["model"], found["threshold"]) == ("superior", "0.4")
        assert running.decision(HARD_PROMPT, stream=True)["model"] == "inferior"
        assert running.metrics()["router_reloads_total{taken}"] == 1
        assert running.get("/health").json()["threshold"] == 0.4


@pytest.mark.parametrize("fault", ["refused", "not there", "no numbers"])
def test_a_broken_checkpoint_is_refused_and_the_old_one_stays(router, upstream, caplog, fault):
    def load() -> Router:
        if fault == "no numbers":
            return with_model(router, Broken())
        raise InputError("no model.safetensors \x1b[2J") if fault == "refused" else FileNotFoundError("models/x")

    with endpoint(router, upstream, load_router=load) as running:
        before = running.decision(EASY_PROMPT)
        assert not reload(running)
        assert running.decision(EASY_PROMPT) == before
        assert running.metrics()["router_reloads_total{refused}"] == 1
    assert f"is refused, {router.model_save_dir.name} stays" in caplog.text and "\x1b" not in caplog.text


def test_a_threshold_of_the_flag_stays_the_routers(router, upstream):
    load = lambda: with_model(router, router.model)  # noqa: E731
    with endpoint(router, upstream, threshold=0.0, load_router=load) as running:
        assert reload(running)
        assert running.decision(EASY_PROMPT)["threshold"] == "0"
