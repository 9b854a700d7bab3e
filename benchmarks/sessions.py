"""What stable routes cost and save: the same conversations with --sessions sticky and free, turn by turn.

Every conversation is asked as it grows, once for each message of its user, as clients do. A switch is a request that
goes to another model than the one before it in its conversation: it throws away the provider's prompt cache. Then the
same conversations follow one another in one, drawn at random, so that the subject changes; and each is the beginning of
an agent's loop, whose tools' results come as the user's messages.

Reads   a checkpoint, and conversations (the dialogues of the tests)
Writes  a table in Markdown on stdout

Example:
    python3 benchmarks/sessions.py --conversations my_conversations.jsonl
"""

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from finetuning_model.evaluation.markdown import table
from inference.sessions import Sessions
from prompt_files import prompt_in, read_records
from router_data import SUPERIOR, InputError, program_parser, run_script
from router_model import Router, add_router_flags, check_threshold, newest_checkpoint, scorable_turns

DIALOGUES = ROOT / "tests" / "data" / "dialogues.jsonl"
TOOL_RESULT = "[result of pytest] test {number} failed: KeyError in line {number} of parser.py, see the traceback above"
Conversation = list[dict]


@dataclass(frozen=True)
class Routes:
    """How the requests of some conversations were routed.

    Attributes:
        by_conversation: whether each request of a conversation goes to the superior model.
        remembered: requests for which nothing was scored.
    """

    by_conversation: list[list[bool]]
    remembered: int

    def figures(self) -> list[str]:
        """Requests, switches, those to the superior model, and those that were remembered, for the table."""
        requests = sum(map(len, self.by_conversation))
        switches = [sum(a != b for a, b in pairwise(routes)) for routes in self.by_conversation]
        back = sum(a and not b for routes in self.by_conversation for a, b in pairwise(routes))
        superior = sum(map(sum, self.by_conversation))
        per_conversation = sum(switches) / len(switches)
        shares = (f"{100 * count / requests:.0f}%" for count in (superior, self.remembered))
        return [f"{requests:,}", f"{per_conversation:.2f}", str(back), *shares]


async def routes_of(sessions: Sessions, conversations: Sequence[Conversation], threshold: float) -> Routes:
    """The route of every request of these conversations."""
    by_conversation: list[list[bool]] = []
    remembered = 0
    for messages in conversations:
        routes = []
        for end, message in enumerate(messages, 1):
            if message["role"] == "user" and (turns := scorable_turns(messages[:end])):
                route = await sessions.route(turns, threshold, inline=True)
                routes.append(route.decision.router_label == SUPERIOR)
                remembered += route.remembered
        by_conversation.append(routes)
    return Routes(by_conversation, remembered)


def as_loop(messages: Conversation, calls: int) -> Conversation:
    """The conversation, and behind it an agent that uses a tool so many times."""
    loop = list(messages)
    for number in range(1, calls + 1):
        loop.append({"role": "assistant", "content": f"Run the tests ({number})."})
        loop.append({"role": "user", "content": TOOL_RESULT.format(number=number)})
    return loop


def joined(conversations: Sequence[Conversation], size: int) -> list[Conversation]:
    """Conversations that are made of so many of these, in a random order."""
    drawn = random.Random(0).sample(conversations, len(conversations))
    return [list(chain(*drawn[start : start + size])) for start in range(0, len(drawn), size)]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked."""
    parser = program_parser(__doc__)
    add_router_flags(parser)
    add = parser.add_argument
    add("--conversations", type=Path, default=DIALOGUES, metavar="FILE", help="(default: the dialogues of the tests)")
    add("--subjects", type=int, default=4, metavar="N", help="conversations in one (default: %(default)s)")
    add("--calls", type=int, default=30, metavar="N", help="of an agent's tool, in a loop (default: %(default)s)")
    args = parser.parse_args(argv)
    check_threshold(args.threshold)
    if args.calls < 1 or args.subjects < 1:
        raise InputError("--calls and --subjects must be positive")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Route everything in both ways, print the table."""
    args = parse_args(argv)
    prompts = (prompt_in(record.fields) for record in read_records([args.conversations]))
    conversations = [prompt for prompt in prompts if isinstance(prompt, list)]
    if not conversations:
        raise InputError(f"{args.conversations} has no conversations")
    router = Router.load(args.model_save_dir or newest_checkpoint(), args.hf_model_name)
    threshold = router.settings.threshold if args.threshold is None else args.threshold

    rows = []
    kinds = {
        "conversations": conversations,
        f"{args.subjects} of them in one": joined(conversations, args.subjects),
        f"loops of {args.calls} calls": [as_loop(messages, args.calls) for messages in conversations],
    }
    for name, asked in kinds.items():
        for way in ("sticky", "free"):
            routes = asyncio.run(routes_of(Sessions(router, way == "sticky"), asked, threshold))
            rows.append([name, way, *routes.figures()])
    print(f"{len(conversations)} conversations of {args.conversations.name}, threshold {threshold:g}\n")
    header = ["", "--sessions", "requests", "switches a conversation", "back to the inferior model"]
    print(table([*header, "to the superior model", "nothing scored"], rows))


if __name__ == "__main__":
    run_script(main)
