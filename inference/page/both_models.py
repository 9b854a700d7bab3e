"""Both models answer one prompt side by side, and the user's vote becomes an outcome that stage 3 reads."""

import os
import threading
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from inference.endpoint.upstreams import Upstream
from router_data import Outcome, Prices, RowAppender, now

TIMEOUT_SECONDS = 120
SECONDS_BETWEEN_UPDATES = 0.1
MAX_ANSWER_CHARACTERS = 100_000
VARIABLES = ("INFERIOR_MODEL", "SUPERIOR_MODEL")
# What each vote says about (weak_score, strong_score)
VOTES = {"left is enough": (1.0, 1.0), "right is clearly better": (0.0, 1.0)}


@dataclass
class Answer:
    """An answer as far as it has come.

    Attributes:
        text: what the model has said.
        seconds: from the request to the last piece.
        tokens: of prompt and answer, where the server counts them.
        error: why there is no more; None while there may be.
        finished: whether it is whole.
    """

    text: str = ""
    seconds: float = 0.0
    tokens: int | None = None
    error: str | None = None
    finished: bool = False

    def describe(self, model: str, usd_per_million: float) -> str:
        """Model, time and cost in one line."""
        cost = "" if self.tokens is None else f", {self.tokens:,} tokens, ${self.tokens * usd_per_million / 1e6:.2g}"
        state = self.error or ("" if self.finished else "answering …")
        return f"{model}: {self.seconds:.1f} s{cost}{', ' if state else ''}{state}"


class BothModels:
    """The two models that the environment names.

    Args:
        inferior, superior: where they are.
        votes_file: where votes are written.
    """

    def __init__(self, inferior: Upstream, superior: Upstream, votes_file: Path) -> None:
        self.upstreams = (inferior, superior)
        self.votes_file = votes_file
        self._writing = threading.Lock()

    @classmethod
    def from_environment(cls, votes_file: Path) -> "BothModels | None":
        """The two models of the environment; None where it names neither.

        Raises:
            InputError: only one is named, or an address or a key is missing.
        """
        if not any(os.environ.get(name, "").strip() for name in VARIABLES):
            return None
        return cls(Upstream.from_environment("inferior"), Upstream.from_environment("superior"), votes_file)

    def ask(self, prompt: str) -> Generator[tuple[Answer, Answer], None, None]:
        """Both answers as they come. Whoever closes the generator stops the requests."""
        answers = (Answer(), Answer())
        stop = threading.Event()
        threads = [
            threading.Thread(target=_stream, args=(upstream, prompt, answer, stop), daemon=True)
            for upstream, answer in zip(self.upstreams, answers, strict=True)
        ]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                time.sleep(SECONDS_BETWEEN_UPDATES)
                yield answers
            yield answers
        finally:
            stop.set()

    def describe(self, answers: tuple[Answer, Answer], prices: Prices) -> tuple[str, str]:
        """A line on each answer: model, time, cost."""
        inferior, superior = self.upstreams
        return (
            answers[0].describe(inferior.model, prices.inferior),
            answers[1].describe(superior.model, prices.superior),
        )

    def vote(self, prompt: str, vote: str, user: str | None) -> str:
        """Write a vote as an outcome row, and say so."""
        weak_score, strong_score = VOTES[vote]
        inferior, superior = self.upstreams
        fields = {
            "prompt": prompt,
            "weak_model": inferior.model,
            "strong_model": superior.model,
            "weak_score": weak_score,
            "strong_score": strong_score,
            "judged_by": "human",
            "judged_at": now(),
            **({"user": user} if user else {}),
        }
        with self._writing, closing(RowAppender(self.votes_file)) as file:
            file.append(Outcome.model_validate(fields))
        return f"Noted: {vote}. Row added to {self.votes_file}; evaluate_router.py --outcomes reads it."


def _stream(upstream: Upstream, prompt: str, answer: Answer, stop: threading.Event) -> None:
    import openai

    started = time.perf_counter()
    try:
        with openai.OpenAI(
            api_key=upstream.api_key, base_url=upstream.base_url, timeout=TIMEOUT_SECONDS, max_retries=0
        ) as client:
            chunks = client.chat.completions.create(
                model=upstream.model,
                messages=[{"role": "user", "content": prompt}],
                stream=True,
                stream_options={"include_usage": True},
            )
            for chunk in chunks:
                if stop.is_set() or len(answer.text) > MAX_ANSWER_CHARACTERS:
                    chunks.close()
                    break
                answer.text += "".join(choice.delta.content or "" for choice in chunk.choices if choice.delta)
                answer.seconds = time.perf_counter() - started
                if chunk.usage:
                    answer.tokens = chunk.usage.total_tokens
        answer.finished = True
    except Exception as error:  # noqa: BLE001 (any failure of the server is an answer that did not come)
        answer.error = describe_error(error, upstream.api_key)
    finally:
        answer.seconds = time.perf_counter() - started


def describe_error(error: Exception, api_key: str) -> str:
    """A failure in one line, without the key."""
    status = getattr(error, "status_code", None)
    text = f"status {status}" if status else type(error).__name__
    detail = (str(error).strip().splitlines() or [""])[0][:200]
    return f"no answer ({text}: {detail})".replace(api_key, "***")
