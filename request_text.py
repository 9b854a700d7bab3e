"""What counts as a user's request: their own words, without what an application wrapped around them.

The router reads the request, not its wrapping: the same request gets the same score typed into a chat box, in a RAG
template and in an agent's loop. Left out of the score, and never of what is sent on, are

- blocks of harnesses: `<system-reminder>`, `<environment_details>`, ... (HARNESS_TAGS), wherever they stand;
- passages marked as such: `<context>`, `<document>`, ... (PASSAGE_TAGS) where the block has lines of its own, and what
  stands between a line `Context:` and a line `Question:`;
- turns after the first that hold a tool's result: `<tool_result>`, `Observation:`, `[result of pytest]` (TOOL_RESULT),
  and turns that an application writes alone (APPLICATION_TURN).

Where a harness marks the user's words (`<user_query>`: REQUEST_TAGS), they are the request and the rest is not. So are
the last turn of a written-out conversation (`User: ... Assistant: ... User:`, TURN), what stands in the chat template
of an open model (`[INST]`, `### Instruction:`, TEMPLATE_TURNS), and the field of a JSON object that holds the request
(REQUEST_FIELDS). A greeting before the request and thanks behind it are left out. A text that holds nothing but
passages is its own request. All of it takes time linear in the text.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence

# Claude Code, Codex CLI, Cline, Roo, Kilo, Cursor, Copilot, Gemini CLI, OpenHands, Windsurf, Goose; in lower case
HARNESS_TAGS = frozenset(
    """
    system-reminder system_reminder command-name command-message local-command-stdout local-command-stderr
    local-command-caveat bash-input bash-stdout bash-stderr ide_opened_file ide_selection ide_diagnostics
    new-diagnostics task-notification persisted-output user-prompt-submit-hook session-start-hook post-tool-use-hook
    environment_context user_instructions collaboration_mode turn_aborted subagent_notification
    environment_details explicit_instructions task_progress user_info git_status project_layout user_rules
    always_applied_workspace_rules open_and_recently_viewed_files additional_data agent_transcripts linter_errors
    environment_info workspace_info editorcontext editor_context reminderinstructions reminder_instructions usermemory
    sessionmemory repomemory tooluseinstructions todolist conversation-summary session_context state_snapshot
    hook_context runtime_information repository_info repository_instructions additional_metadata
    ephemeral_message info-msg tool_result tool_results tool_response tool_output tool_use_error function_result
    function_results function_response returncode
    """.split()
)
PASSAGE_TAGS = frozenset(
    """
    context contexts document documents document_content doc docs passage passages source sources search_result
    search_results retrieved_context retrieved_documents retrieved_passages retrieval knowledge knowledge_base
    reference references excerpt excerpts chunk chunks file files file_content file_contents attached_file
    attached_files attachment attachments uploaded_files background_information
    rules permissions observation extra_info
    """.split()
)
REQUEST_TAGS = frozenset("user_query userrequest user_request user_message".split())
REQUEST_TAGS_IN_HARNESSES = frozenset("task feedback answer prompt command-args".split())  # too common elsewhere

TOOL_RESULT = re.compile(
    r"""\s*(?: \[(?:tool\s)?results?\b[^\]\n]{0,200}\]          # [result of pytest]
             | \[[^\]\n]{1,200}\]\s?Result:                     # [read_file for 'x'] Result:
             | (?:execution|tool|function|command|bash|shell)[ _](?:result|results|output|response)s?\b[^\n:]{0,80}:
             | observation\s?(?:\d{1,4}\s?)?:                   # of ReAct
             | results?\sof\s(?:tool|function|command|running)\b[^\n:]{0,120}: )""",
    re.IGNORECASE | re.VERBOSE,
)
APPLICATION_TURN = re.compile(r"\s*(?:\#\sAGENTS\.md\sinstructions\b|\[Request\sinterrupted\sby\suser)", re.VERBOSE)

MAX_HEADING_CHARACTERS = 200_000  # of a text, in which headings are looked for: a search costs 0.1 µs a character
TAG = re.compile(r"<(/?)([A-Za-z][\w.:-]{0,40})(?:\s[^<>]{0,300})?>")
CLOSING_TAG = re.compile(r"</([A-Za-z][\w.:-]{0,40})(?:\s[^<>]{0,300})?>")
PASSAGES_HEADING = re.compile(
    r"^[ \t#*]{0,8}(?:context(?: information)?|documents?|passages?|sources?|search results|retrieved \w{1,20})"
    r"[ \t*]{0,4}:[ \t*]{0,4}$",
    re.IGNORECASE | re.MULTILINE,
)
QUESTION_HEADING = re.compile(
    r"^[ \t#*]{0,8}(?:question|query|user (?:question|query|request)|request)[ \t*]{0,4}:[ \t*]{0,4}",
    re.IGNORECASE | re.MULTILINE,
)


# Who asks in a written-out conversation, or in examples of questions and answers, and who answers
TURN = re.compile(
    r"""^[ \t>*_#-]{0,6}(?:\[[^\]\n]{1,24}\][ \t]?)?
        (?:(?P<asks>user|human|customer|client|visitor|q|question)|(?P<answers>assistant|ai|bot|chatbot|model|a|answer))
        [ \t*_]{0,4}:[ \t*_]{0,4}""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
# Where the user's turn begins in the chat templates of open models, and where it ends
TEMPLATE_TURNS = (
    (re.compile(r"\[INST\]"), re.compile(r"\[/INST\]")),
    (re.compile(r"<\|im_start\|>user|<\|user\|>|<\|start_header_id\|>user<\|end_header_id\|>"), re.compile(r"<\|")),
    (re.compile(r"<start_of_turn>user"), re.compile(r"<end_of_turn>|<start_of_turn>")),
    (re.compile(r"^### ?(?:Instruction|Human|User)s?:?", re.M), re.compile(r"^### ?(?!Input)", re.M)),
)
SYSTEM_PROMPT = re.compile(r"<<SYS>>.*?<</SYS>>", re.DOTALL)
REQUEST_FIELDS = (
    "user_message user_query user_input question query prompt request message instruction input text body content"
).split()
MAX_JSON_DEPTH = 4
GREETING = re.compile(
    r"\s*(?:hi|hello|hey|dear|greetings|good (?:morning|afternoon|evening))\b[^\n,!:.?]{0,40}(?:[,!:.]+[ \t]*\n*|\n+)",
    re.IGNORECASE,
)
THANKS = re.compile(
    r"\s+(?:many thanks|thanks|thank you|thx|cheers|(?:kind|best|warm) regards|regards|best wishes|yours sincerely)"
    r"\b[^\n?]{0,60}(?:\n[^\n?]{0,40}){0,2}\s*\Z",
    re.IGNORECASE,
)
MIN_REQUEST_CHARACTERS = 3


def request_text(text: str) -> str:
    """The user's own words in a text: without harness blocks and marked passages; the text itself where none is left.

    A harness block is never the user's word, so a text of nothing else gives the empty text.
    """
    blocks = list(_blocks(text)) if "<" in text else []
    harness = [(start, end) for name, start, end, _ in blocks if name in HARNESS_TAGS]
    request_tags = REQUEST_TAGS | REQUEST_TAGS_IN_HARNESSES if harness else REQUEST_TAGS
    requests = [inside for name, _, _, inside in blocks if name in request_tags]
    if requests:
        return "\n\n".join(text[start:end].strip() for start, end in requests)
    words = _without(text, harness)
    passages = [(start, end) for name, start, end, _ in blocks if name in PASSAGE_TAGS]
    request = _without_headed_passages(_without(text, harness + passages) if passages else words)
    return _unwrapped(request) if request.strip() else words


def is_application_turn(text: str, is_first: bool) -> bool:
    """Whether a user's turn was written by an application: a tool's result, or a harness's message of its own."""
    return bool(APPLICATION_TURN.match(text) or (not is_first and TOOL_RESULT.match(text)))


def messages_in(body: dict) -> object:
    """The conversation in the body of an API's request, in the form of chat completions: messages with role, content.

    Chat completions and Anthropic's Messages API have `messages`. The Responses API has `input`, a text or a list of
    items, of which those without a role (calls, results, reasoning) are nobody's words. None where there is neither;
    whether what is there is well formed is for the reader to check.
    """
    items = body.get("messages", body.get("input"))
    if isinstance(items, str) and "messages" not in body:
        return [{"role": "user", "content": items}]
    if "messages" in body or not isinstance(items, list):
        return items
    return [item for item in items if not (isinstance(item, dict) and "type" in item and "role" not in item)]


def _blocks(text: str) -> Iterator[tuple[str, int, int, tuple[int, int]]]:
    """The outermost known blocks: name, start, end, and where the inside starts and ends.

    A block ends at the tag that closes it, nested ones of its name included; without one it is no block. A passage's
    tags must begin and end a line: in the middle of a sentence a user writes about a tag.
    """
    names = (tag[1].lower() for tag in CLOSING_TAG.finditer(text))
    closing = Counter(name for name in names if name in _KNOWN_TAGS)
    opened: re.Match | None = None
    depth = 0
    # One tag at a time: half a million matches kept at once would be the garbage collector's work for seconds
    for tag in TAG.finditer(text) if closing else ():
        name = tag[2].lower()
        if name not in closing:
            continue
        closing[name] -= bool(tag[1])
        if opened is None:
            if not tag[1] and closing[name] and (name not in PASSAGE_TAGS or _begins_line(text, tag.start())):
                opened, depth = tag, 1
        elif name == opened[2].lower():
            depth += -1 if tag[1] else 1
            if tag[1] and (depth == 0 or not closing[name]):
                if name not in PASSAGE_TAGS or _ends_line(text, tag.end()):
                    yield name, opened.start(), tag.end(), (opened.end(), tag.start())
                opened = None


_KNOWN_TAGS = HARNESS_TAGS | PASSAGE_TAGS | REQUEST_TAGS | REQUEST_TAGS_IN_HARNESSES


def _begins_line(text: str, at: int) -> bool:
    return not text[max(text.rfind("\n", max(0, at - 80), at) + 1, at - 80, 0) : at].strip()


def _ends_line(text: str, at: int) -> bool:
    line_end = text.find("\n", at, at + 80)
    return not text[at : line_end if line_end >= 0 else at + 80].strip()


def _without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text without these spans, which do not overlap."""
    if not spans:
        return text
    parts, at = [], 0
    for start, end in sorted(spans):
        parts.append(text[at:start])
        at = end
    return "".join([*parts, text[at:]]).strip()


def _without_headed_passages(text: str) -> str:
    """The text without what stands between a line `Context:` and the first line `Question:` behind it."""
    heading = PASSAGES_HEADING.search(text, 0, MAX_HEADING_CHARACTERS)
    question = heading and QUESTION_HEADING.search(text, heading.end(), MAX_HEADING_CHARACTERS)
    if not (heading and question and text[question.end() :].strip()):
        return text
    return f"{text[: heading.start()]}{text[question.end() :]}".strip()


def _unwrapped(text: str) -> str:
    """The request inside a chat template, a JSON object or a written-out conversation, without greeting and thanks."""
    if len(text) > MAX_HEADING_CHARACTERS:
        return text
    for inside in (_template_turn, _json_field, _last_turn):
        request = inside(text)
        if request is not None and len(request.strip()) >= MIN_REQUEST_CHARACTERS:
            text = request.strip()
    for courtesy in (GREETING.match, THANKS.search):
        if found := courtesy(text):
            rest = (text[: found.start()] + text[found.end() :]).strip()
            text = rest if len(rest) >= MIN_REQUEST_CHARACTERS else text
    return text


def _template_turn(text: str) -> str | None:
    for begins, ends in TEMPLATE_TURNS:
        starts = [match.end() for match in begins.finditer(text)]
        for start in reversed(starts):
            end = ends.search(text, start)
            turn = SYSTEM_PROMPT.sub("", text[start : end.start() if end else len(text)])
            if turn.strip():
                return turn
    return None


def _json_field(text: str) -> str | None:
    body = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    if not (body.startswith("{") and body.endswith("}")):
        return None
    try:
        level: list = [json.loads(body)]
    except (ValueError, RecursionError):
        return None
    for _ in range(MAX_JSON_DEPTH):
        fields = [value for value in level if isinstance(value, dict)]
        for name in REQUEST_FIELDS:
            for value in fields:
                if isinstance(value.get(name), str) and value.get("role") in (None, "user"):
                    return value[name]
        lists = [value for value in level if isinstance(value, list)]
        level = [item for value in fields for item in value.values()] + [
            item for value in lists for item in value[::-1]
        ]
    return None


def _last_turn(text: str) -> str | None:
    """The last turn of who asks, where somebody has answered before it and nobody has behind it."""
    turns = list(TURN.finditer(text))
    ends = [turn.start() for turn in turns[1:]] + [len(text)] * bool(turns)
    spoken = [(turn, text[turn.end() : end]) for turn, end in zip(turns, ends, strict=True)]
    spoken = [(turn, words) for turn, words in spoken if words.strip()]
    if len(spoken) < 2 or not spoken[-1][0]["asks"] or not any(turn["answers"] for turn, _ in spoken[:-1]):
        return None
    return spoken[-1][1]
