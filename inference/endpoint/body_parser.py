"""The few things of a request's body that routing needs, found in one pass over its JSON.

    python3 -m inference.endpoint.body_parser   # reads requests for `parse` on stdin, answers on stdout

A body is parsed on the event loop where that takes a few milliseconds at most. A larger one goes to a process of its
own: Python parses JSON without letting other threads run, so a thread would not help.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from json.decoder import scanstring  # type: ignore[attr-defined]

from inference.endpoint.apis import Api, ApiError
from inference.sessions import MAX_SCORED_TURNS
from request_text import messages_in
from router_data import InputError
from router_model import CHARACTERS_PER_TOKEN, UserTurns, scorable_turns

MAX_PARSER_MEMORY = 2 * 2**30  # bytes of address space of the parsing process
BYTES_PER_TOKEN = 4  # of text in UTF-8; English has four letters a token, Chinese three bytes a character
TOKENS_PER_MEDIUM = 1000  # an image or a file, as a rough figure
BOM = b"\xef\xbb\xbf"
WHITESPACE = re.compile(r"[ \t\n\r]*")
MEDIA = {
    "image_url": "image", "input_image": "image", "image": "image", "input_audio": "audio", "audio": "audio",
    "file": "file", "input_file": "file", "document": "file", "video_url": "video", "video": "video",
}  # fmt: skip
MEDIA_FIELDS = {"url", "image_url", "file_data", "data", "encrypted_content", "signature"}  # they hold no text


@dataclass
class ParsedRequest:
    """What routing needs of a request.

    Attributes:
        model: the model's name in the body.
        model_start: where its JSON string begins in the body, in bytes.
        model_end: where it ends.
        turns: what the user said, as far as a score can depend on it; None where nothing can be scored.
        turns_fault: why the conversation can't be read, for an error message.
        characters: the length of all turns, of which `turns` may lack some.
        stored_id: the stored response or conversation that this request continues.
        is_conversation: whether that is a conversation.
        inputs: what the request holds beside text: image, audio, video, file, tools; only where it was measured.
        tokens: roughly how many tokens its input has; likewise.
    """

    model: str
    model_start: int
    model_end: int
    turns: UserTurns | None = None
    turns_fault: str | None = None
    characters: int = 0
    stored_id: str | None = None
    is_conversation: bool = False
    inputs: tuple[str, ...] = ()
    tokens: int = 0


def parse(raw: bytes, api: Api, max_length: int, measure: bool) -> ParsedRequest:
    """Parse the body of a request.

    Args:
        raw: the body.
        api: the API that is asked.
        max_length: tokens that the router reads; longer turns are shortened to the characters that could matter.
        measure: whether to find out what the input holds and how large it is.

    Raises:
        ApiError: it is not a JSON object in UTF-8, has a key twice, or no model.
    """
    try:
        body, model_start, model_end = parse_object(raw)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ApiError(400, "invalid_json", f"the body is not JSON in UTF-8{where}") from None
    model = body.get("model")
    if not isinstance(model, str):
        raise ApiError(400, "invalid_model", "`model` is missing or not a string", "model")
    request = ParsedRequest(model, model_start, model_end)
    _read_conversation(body, api, max_length, request)
    _read_stored_id(body, api, request)
    if measure:
        _measure(body, request)
    return request


def parse_object(raw: bytes) -> tuple[dict, int, int]:
    """A JSON object, and where the value of its `model` begins and ends, in bytes (0, 0 where it has none).

    Raises:
        ValueError: it is no JSON in UTF-8. ApiError: it is no object, or an object in it has a key twice, of which
            two readers might take another one each.
    """
    start = len(BOM) if raw.startswith(BOM) else 0
    text = raw[start:].decode("utf-8", "surrogatepass")
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        json.loads(text)
        raise ApiError(400, "invalid_json", "the body is not a JSON object")
    fields: list[tuple[str, object]] = []
    span = (0, 0)
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}" or fields:
        key, at = _key(text, at)
        value_at = _skip(text, at)
        value, at = DECODER.raw_decode(text, value_at)
        fields.append((key, value))
        span = (value_at, at) if key == "model" else span
        at = _skip(text, at)
        if text[at : at + 1] == "}":
            break
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _skip(text, at + 1)
    if (end := _skip(text, at + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    if not text.isascii():
        before = len(text[: span[0]].encode("utf-8", "surrogatepass"))
        span = (before, before + len(text[span[0] : span[1]].encode("utf-8", "surrogatepass")))
    return _unique(fields), span[0] + start, span[1] + start


def _unique(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ApiError(400, "duplicate_key", f"the body has the key {twice[:80]!r} twice in one object", twice[:80])
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _skip(text: str, at: int) -> int:
    return WHITESPACE.match(text, at).end()  # type: ignore[union-attr]


def _key(text: str, at: int) -> tuple[str, int]:
    """The key that begins here, and where its value begins."""
    if text[at : at + 1] != '"':
        raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
    key, at = scanstring(text, at + 1)
    at = _skip(text, at)
    if text[at : at + 1] != ":":
        raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
    return key, at + 1


def _read_conversation(body: dict, api: Api, max_length: int, request: ParsedRequest) -> None:
    """The user's turns into `request`, or why there are none."""
    conversation = messages_in({api.conversation: body.get(api.conversation)})
    if conversation is None and api.conversation == "input":
        return  # a stored prompt, or a stored conversation goes on
    if not isinstance(conversation, list):
        form = "a text or a list" if api.conversation == "input" else "a list"
        request.turns_fault = f"`{api.conversation}` is missing or not {form}"
        return
    try:
        turns = scorable_turns(conversation)
    except InputError as error:
        request.turns_fault = str(error)
        return
    if turns is not None:
        request.characters = sum(map(len, turns))
        request.turns = _scorable(turns, CHARACTERS_PER_TOKEN * max_length)


def _scorable(turns: UserTurns, half: int) -> UserTurns:
    """The turns without what no score depends on: the middle of a long turn, and turns in the middle of very many."""
    first = max(MAX_SCORED_TURNS, _turns_with(turns, half))
    last = 1 + _turns_with(turns[-2::-1], half)
    kept = turns[:first] + turns[-last:] if first + last < len(turns) else turns
    return UserTurns(_shortened(turn, half) for turn in kept)


def _turns_with(turns: Sequence[str], characters: int) -> int:
    """How many turns there are until they have more characters than these, all where they never do."""
    totals = enumerate(accumulate(map(len, turns)), 1)
    return next((number for number, total in totals if total > characters), len(turns))


def _shortened(turn: str, half: int) -> str:
    """The turn, or its two ends where more would not be tokenised (as `PromptEncoder` does it, and with one effect)."""
    return turn if len(turn) <= 2 * half else f"{turn[:half]} {turn[-half:]}"


def _read_stored_id(body: dict, api: Api, request: ParsedRequest) -> None:
    if api.conversation != "input":
        return
    previous, conversation = body.get("previous_response_id"), body.get("conversation")
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    stored_id = previous if previous is not None else conversation
    if stored_id is None:
        return
    name = "conversation" if previous is None else "previous_response_id"
    if not isinstance(stored_id, str) or not re.fullmatch(r"[\w.:-]{1,512}", stored_id):
        raise ApiError(400, "invalid_id", f"`{name}` is not the id of a stored object", name)
    request.stored_id, request.is_conversation = stored_id, previous is None


def _measure(body: dict, request: ParsedRequest) -> None:
    """What the input holds and how large it is, into `request`."""
    media = list(_media_of(body))
    tools = ["tools"] if body.get("tools") or body.get("functions") else []
    request.inputs = tuple(sorted({*media, *tools}))
    size = sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in _texts_of(body))
    request.tokens = size // BYTES_PER_TOKEN + TOKENS_PER_MEDIUM * len(media)


def _messages_of(body: dict) -> Iterator[dict]:
    for name in ("messages", "input"):
        if isinstance(messages := body.get(name), list):
            yield from (message for message in messages if isinstance(message, dict))


def _media_of(body: dict) -> Iterator[str]:
    """The kinds of the images, sounds and files in a request, one for each."""
    pending = [message.get("content", message.get("output")) for message in _messages_of(body)]
    while pending:
        if not isinstance(parts := pending.pop(), list):
            continue
        for part in parts:
            if isinstance(part, dict) and (kind := MEDIA.get(str(part.get("type")))):
                yield kind
            elif isinstance(part, dict) and isinstance(part.get("content"), list):
                pending.append(part["content"])  # of a tool's result


def _texts_of(body: dict) -> Iterator[str]:
    """Every text that a model reads as input."""
    pending: list[object] = [body.get(name) for name in ("messages", "input", "system", "instructions", "tools")]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            pending += [item for name, item in value.items() if name not in MEDIA_FIELDS]


def serve_parser() -> None:
    """Answer `parse` on stdin and stdout until stdin ends: a line of JSON, then the body; a line of JSON back."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_PARSER_MEMORY, MAX_PARSER_MEMORY))
    except (ImportError, ValueError, OSError):  # Windows has no such limit
        pass
    while line := sys.stdin.buffer.readline():
        order = json.loads(line)
        raw = sys.stdin.buffer.read(order["size"])
        try:
            answer: dict[str, object] = {
                "request": asdict(parse(raw, Api(**order["api"]), order["max_length"], order["measure"]))
            }
        except ApiError as error:
            answer = {"error": [error.status, error.code, error.message, error.param]}
        except MemoryError:
            answer = {"error": [413, "request_too_complex", "the body's JSON takes too much memory", None]}
        del raw
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve_parser()
