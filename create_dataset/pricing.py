"""What labelling costs: prices, token counts, and a budget that is never passed."""

import argparse
import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from router_data import InputError

PRICES_FILE = Path(__file__).with_name("prices.json")
BATCH_DISCOUNT = 0.5
CHARACTERS_PER_TOKEN = 4  # of English text, by OpenAI's rule of thumb
MESSAGE_TOKENS = 64  # the frame around the messages and the answer's schema


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens; 0 and 0 for a server of your own."""

    input: float
    output: float

    def cost(self, tokens: "Usage") -> float:
        """US dollars."""
        return (tokens.input_tokens * self.input + tokens.output_tokens * self.output) / 1e6

    def __mul__(self, factor: float) -> "Price":
        return Price(self.input * factor, self.output * factor)


@dataclass
class Usage:
    """Tokens of some requests.

    Attributes:
        input_tokens, output_tokens: all of them; what a batch used counts at its discount.
        estimated: whether upper bounds are among them, for answers that never came or came without a usage.
    """

    input_tokens: float = 0
    output_tokens: float = 0
    estimated: bool = False

    def __iadd__(self, other: "Usage") -> "Usage":
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.estimated |= other.estimated
        return self

    def __mul__(self, factor: float) -> "Usage":
        return Usage(factor * self.input_tokens, factor * self.output_tokens, self.estimated)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.input_tokens - other.input_tokens, self.output_tokens - other.output_tokens, self.estimated)

    def __str__(self) -> str:
        return f"{self.input_tokens:,.0f} input and {self.output_tokens:,.0f} output tokens"

    def fields(self) -> dict:
        """The fields of a row that say what it used; none where nothing was used."""
        if not self.input_tokens + self.output_tokens:
            return {}
        tokens = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
        return tokens | ({"tokens_estimated": True} if self.estimated else {})

    @classmethod
    def of_row(cls, fields: dict) -> "Usage":
        """What a row says it used."""
        tokens = (fields.get("input_tokens") or 0, fields.get("output_tokens") or 0)
        return cls(*tokens, estimated=bool(fields.get("tokens_estimated")))


def add_price_flags(parser: argparse.ArgumentParser) -> None:
    """The flags from which `find_price` takes the labelling model's price."""
    # fmt: off
    add = parser.add_argument_group("prices").add_argument
    add("--price_input", "--price_per_million_input", type=float, metavar="USD",
        help="US dollars per million input tokens; 0 for a server of your own (default: create_dataset/prices.json)")
    add("--price_output", "--price_per_million_output", type=float, metavar="USD",
        help="US dollars per million output tokens (default: create_dataset/prices.json)")
    # fmt: on


def find_price(model: str, price_input: float | None = None, price_output: float | None = None) -> Price | None:
    """The price from the flags, else that of the model (a dated version costs what its name costs), else None.

    Raises:
        InputError: a price is negative, or only one was given and the file doesn't know the model.
    """
    models = json.loads(PRICES_FILE.read_text(encoding="utf-8"))["models"]
    known = models.get(re.sub(r"-(\d{4}-\d{2}-\d{2}|\d{4})$", "", model.removeprefix("openai/")), {})
    price_input = known.get("input") if price_input is None else price_input
    price_output = known.get("output") if price_output is None else price_output
    if price_input is None and price_output is None:
        return None
    if price_input is None or price_output is None:
        raise InputError("--price_input and --price_output go together, in US dollars per million tokens")
    if not all(math.isfinite(price) and price >= 0 for price in (price_input, price_output)):
        raise InputError("--price_input and --price_output must not be negative")
    return Price(price_input, price_output)


def prices_date() -> str:
    """The day on which prices.json was last checked."""
    return json.loads(PRICES_FILE.read_text(encoding="utf-8"))["date"]


def token_counter(model: str) -> tuple[Callable[[str], int], str]:
    """A function that counts tokens, and how: "counted by tiktoken" or "estimated ...".

    tiktoken downloads a model's encoding at first use, so it may be unavailable; then a character rule takes its place.
    """
    try:
        import tiktoken

        encoding = tiktoken.encoding_for_model(model.removeprefix("openai/"))
        return lambda text: len(encoding.encode_ordinary(text)), "counted by tiktoken"
    except Exception:  # an unknown model (KeyError), or one of requests' many errors where the download fails
        how = f"estimated at {CHARACTERS_PER_TOKEN} characters a token"
        return lambda text: -(-len(text) // CHARACTERS_PER_TOKEN), how


def max_usage(body: dict, max_output_tokens: int) -> Usage:
    """An upper bound of the tokens of a request: a token stands for a byte or more, an answer is the longest."""
    text = json.dumps(body, ensure_ascii=False)
    max_input = len(text.encode("utf-8", "replace")) + MESSAGE_TOKENS
    return Usage(max_input, max_output_tokens * body.get("n", 1), estimated=True)


class BudgetReached(Exception):
    """The next request could pass the bound."""


@dataclass
class Reservation:
    """The worst case of a request, set aside.

    Attributes:
        bound: the most tokens it may use.
        used: what it used. Until this is set, the bound: a request that ends in an unforeseen way may be charged.
    """

    bound: Usage
    used: Usage


@dataclass
class Budget:
    """Counts the tokens and the money of one model.

    The worst case of every request in flight is reserved, so what is spent never passes `max_usd`. A request whose
    answer was lost, or came without a usage, counts with its worst case. Where an endpoint charges for more than the
    longest answer (thinking beyond the limit), later requests reserve as much more.
    """

    price: Price | None
    max_usd: float | None = None
    used: Usage = field(default_factory=Usage)
    uncertain_usd: float = 0.0  # of worst cases that were counted
    reserved_usd: float = 0.0
    pool: "list[Budget]" = field(default_factory=list, repr=False)  # all budgets that share the bound
    _settled: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _overrun: float = 1.0  # the most that a request cost, as a multiple of what was reserved

    def __post_init__(self) -> None:
        self.pool.append(self)

    @classmethod
    def sharing(cls, prices: dict[str, Price | None], max_usd: float | None) -> "dict[str, Budget]":
        """A budget for each name; the bound is for all of them together."""
        pool: list[Budget] = []
        return {name: cls(price, max_usd, pool=pool) for name, price in prices.items()}

    def cost(self, tokens: Usage) -> float:
        """US dollars; 0 where the price is not known."""
        return self.price.cost(tokens) if self.price else 0.0

    @property
    def spent_usd(self) -> float:
        """What the answers cost, worst cases included."""
        return self.cost(self.used)

    @asynccontextmanager
    async def reserve(self, bound: Usage) -> AsyncIterator[Reservation]:
        """Set aside the worst case of a request while it is under way; afterwards what it used counts.

        Raises:
            BudgetReached: it doesn't fit, even when nothing else is in flight.
        """
        cost = self._overrun * self.cost(bound)
        while self.max_usd is not None and sum(b.spent_usd + b.reserved_usd for b in self.pool) + cost > self.max_usd:
            if sum(budget.reserved_usd for budget in self.pool) <= 1e-12:
                raise BudgetReached
            self._settled.clear()
            await self._settled.wait()
        self.reserved_usd += cost
        reservation = Reservation(bound, used=bound)
        try:
            yield reservation
        finally:
            self.reserved_usd = max(0.0, self.reserved_usd - cost)
            self.used += reservation.used
            self.uncertain_usd += self.cost(reservation.used) if reservation.used.estimated else 0.0
            if self.cost(reservation.used) > self._overrun * self.cost(bound):
                self._overrun = self.cost(reservation.used) / self.cost(bound)
            for budget in self.pool:
                budget._settled.set()

    def describe(self, before: Usage) -> str:
        """What was used and spent since `before`, and how much of it are upper bounds."""
        used = self.used - before
        if not self.price:
            return f"{used}{', upper bounds among them' if used.estimated else ''}"
        bounds = f" (${self.uncertain_usd:.4f} of it at most, for answers that never came or came without a usage)"
        return f"{used}, ${self.cost(used):.4f}{bounds if self.uncertain_usd else ''}"
