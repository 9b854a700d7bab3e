"""What the fuzz tests throw: values, messages and bytes as strangers send them, the same ones in every run."""

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


def fuzz(runs: int) -> settings:
    """So many inputs, the same ones in every run."""
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=runs, derandomize=True, database=None, deadline=None, suppress_health_check=quiet)


WORDS = st.sampled_from(
    [
        *("role", "user", "system", "assistant", "content", "text", "type", "input", "messages", "model", "stream"),
        *("input_text", "image_url", "tool_result", "conversation", "id", "previous_response_id", "prompt", "from"),
        *("value", "mapping", "parent", "message", "body", "human", "current_node", "author", "params", "requests"),
    ]
)
TEXTS = WORDS | st.text(max_size=8) | st.sampled_from(["\ud800", "\u2028", "<user_query>", "[" * 2000, "x" * 300])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | TEXTS, inner, max_size=4),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries({}, optional={"role": WORDS | VALUES, "content": VALUES, "type": WORDS})


def damaged(data: bytes, at: float, how: int, more: bytes) -> bytes:
    """The data, cut off, with bytes in it, or with bytes in place of others."""
    start, rest = data[: int(at * len(data))], data[int(at * len(data)) :]
    return (data, start, start + more + rest, start + more + rest[len(more) :])[how]


def with_damage(whole: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes that are as they should be, or nearly, or not at all."""
    more = st.binary(max_size=6) | st.sampled_from(
        [b'"', b"{", b"\x00", b"\xff\xfe", b"\r\n", b"[" * 3000, b"9" * 5000]
    )
    return st.builds(damaged, whole, st.floats(0, 1), st.integers(0, 3), more) | st.binary(max_size=60)


def as_json(value: Any) -> bytes:
    """The value as JSON, which may hold NaN and lone surrogates."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
