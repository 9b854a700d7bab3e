"""The route of a conversation, scored once and kept: what the endpoint and LiteLLM's plug-in share.

A conversation grows from request to request, and each switch of the model throws away the provider's prompt cache. So
the highest score over the prefixes of its user turns decides (`sticky`): once a turn needed the superior model, the
conversation stays there. The rule needs no state: every replica finds the same route from the request alone.

Scores are remembered for a while, so an agent's calls on one user turn are scored once, and a new turn costs one more
score. Only salted hashes are kept, no text.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from hashlib import blake2b

from router_data import SUPERIOR
from router_model import Decision, Router, UserTurns

MAX_REMEMBERED = 20_000  # scores, about 500 bytes each
MAX_SCORED_TURNS = 128  # of one conversation; what is said later keeps the route that these decided


@dataclass(frozen=True)
class Route:
    """Where a conversation goes.

    Attributes:
        decision: that of the prefix which decided.
        turn: the number of user turns in that prefix.
        remembered: whether nothing had to be scored.
    """

    decision: Decision
    turn: int
    remembered: bool


def decision_headers(decision: Decision) -> dict[str, str]:
    """What clients are told of a decision, by the header's name after x-router-."""
    headers = {
        "label": decision.router_label,
        "score": f"{decision.router_score:.6f}",
        "threshold": f"{decision.threshold:g}",
        "truncated": str(decision.truncated).lower(),
    }
    return headers | {name: "true" for name in ("framed", "unfamiliar") if getattr(decision, name)}


class Sessions:
    """Decides the routes of conversations with one loaded checkpoint. Use it from one event loop.

    Args:
        router: the checkpoint.
        sticky: whether the highest score over the prefixes of a conversation decides; else the whole conversation's.
        executor: where scores are computed that are not computed inline; None takes the event loop's own.
    """

    def __init__(self, router: Router, sticky: bool = True, executor: Executor | None = None) -> None:
        self.router, self.sticky = router, sticky
        self._executor = executor
        self._salt = os.urandom(16)
        self._remembered: OrderedDict[bytes, Decision] = OrderedDict()
        self._under_way: dict[bytes, asyncio.Future] = {}

    async def route(self, turns: UserTurns, threshold: float, inline: bool = False) -> Route:
        """The route of a conversation.

        Args:
            turns: what the user said.
            threshold: SUPERIOR from this router score on.
            inline: whether to score on the event loop; for one short prompt that is less than the way to a thread.
        """
        keys = self._keys(turns)
        decisions = {turn: self._remembered[key] for turn, key in keys.items() if key in self._remembered}
        missing = [turn for turn in keys if turn not in decisions]
        if missing:
            scored = self._score(turns, missing) if inline else await self._score_once(keys, turns, missing)
            decisions |= scored
        self._remember((keys[turn], decision) for turn, decision in decisions.items())
        return self._strongest(decisions, turns, threshold, remembered=not missing)

    def _keys(self, turns: UserTurns) -> dict[int, bytes]:
        """A key for each prefix that is scored, by its number of turns."""
        digest = blake2b(digest_size=16, key=self._salt)
        keys = {}
        for number, turn in enumerate(turns, 1):
            text = turn.encode("utf-8", "surrogatepass")
            digest.update(len(text).to_bytes(8, "big") + text)
            if (self.sticky and number <= MAX_SCORED_TURNS) or (not self.sticky and number == len(turns)):
                keys[number] = digest.digest()
        return keys

    def _score(self, turns: UserTurns, numbers: list[int]) -> dict[int, Decision]:
        decisions = self.router.decide([UserTurns(turns[:number]) for number in numbers])
        return dict(zip(numbers, decisions, strict=True))

    async def _score_once(self, keys: dict[int, bytes], turns: UserTurns, missing: list[int]) -> dict[int, Decision]:
        """Score in another thread; requests for the same conversation that come meanwhile wait for the same scores."""
        key = keys[missing[0]] + keys[missing[-1]]
        scoring = self._under_way.get(key)
        if scoring is None:
            loop = asyncio.get_running_loop()
            scoring = loop.run_in_executor(self._executor, self._score, turns, missing)
            self._under_way[key] = scoring
            scoring.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(scoring)  # a client that leaves must not end it for the others

    def _remember(self, decisions: Iterable[tuple[bytes, Decision]]) -> None:
        for key, decision in decisions:
            self._remembered[key] = decision
            self._remembered.move_to_end(key)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    def _strongest(self, decisions: dict[int, Decision], turns: UserTurns, threshold: float, remembered: bool) -> Route:
        """The route by the prefix that needs the superior model most."""
        labels = {
            turn: self.router.route(decision.router_score, threshold, decision.unfamiliar)
            for turn, decision in decisions.items()
        }
        turn = max(decisions, key=lambda number: (labels[number] == SUPERIOR, decisions[number].router_score))
        characters = sum(map(len, turns)) + 2 * (len(turns) - 1)
        decision = replace(
            decisions[turn], router_label=labels[turn], threshold=threshold, characters_received=characters
        )
        return Route(decision, turn, remembered)
