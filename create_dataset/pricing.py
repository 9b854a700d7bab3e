"""What labelling costs: prices, token counts, and a budget that is never passed."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from router_data import InputError

PRICES_FILE = Path(__file__).with_name("prices.json")
BATCH_DISCOUNT = 0.5
CHARACTERS_PER_TOKEN = 4  # of English text, by OpenAI's rule of thumb
MESSAGE_TOKENS = 64  # the frame around the messages and the answer's schema


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """US dollars."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6

    def __mul__(self, factor: float) -> "Price":
        return Price(self.input * factor, self.output * factor)


def find_price(model: str, price_in: float | None = None, price_out: float | None = None) -> Price | None:
    """The price from the flags, else that of the model (a dated version costs what its name costs), else None.

    Raises:
        InputError: only one of the two flags was given and the file doesn't know the model.
    """
    models = json.loads(PRICES_FILE.read_text(encoding="utf-8"))["models"]
    known = models.get(re.sub(r"-(\d{4}-\d{2}-\d{2}|\d{4})$", "", model.removeprefix("openai/")), {})
    price_in = known.get("input") if price_in is None else price_in
    price_out = known.get("output") if price_out is None else price_out
    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None:
        raise InputError("give both --price_per_million_input and --price_per_million_output, in US dollars")
    return Price(price_in, price_out)


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


def most_tokens(text: str) -> int:
    """An upper bound of the tokens of a request with this text: a token stands for one byte or more."""
    return len(text.encode("utf-8", "replace")) + MESSAGE_TOKENS


class BudgetReached(Exception):
    """The next request could pass the bound."""


@dataclass
class Budget:
    """Counts the tokens and the money of one model; `reserve` before a request, `settle` after it.

    The worst case of every request in flight is reserved, so what is spent never passes `max_usd`. A request whose
    answer was lost may have been charged: its reservation counts as spent (`unsure_usd`).
    """

    price: Price | None
    max_usd: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    unsure_usd: float = 0.0
    reserved_usd: float = 0.0
    purse: "list[Budget]" = field(default_factory=list, repr=False)  # all budgets that share the bound
    _settled: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def __post_init__(self) -> None:
        self.purse.append(self)

    @classmethod
    def sharing(cls, prices: dict[str, Price | None], max_usd: float | None) -> "dict[str, Budget]":
        """A budget for each name; the bound is for all of them together."""
        purse: list[Budget] = []
        return {name: cls(price, max_usd, purse=purse) for name, price in prices.items()}

    @property
    def spent_usd(self) -> float:
        """What the answers cost by their reported usage, plus the worst case of those that were lost."""
        return (self.price.cost(self.input_tokens, self.output_tokens) if self.price else 0.0) + self.unsure_usd

    async def reserve(self, most_input: int, most_output: int) -> float:
        """Set aside the worst case of a request (tokens); returns it in US dollars.

        Raises:
            BudgetReached: it doesn't fit, even when nothing else is in flight.
        """
        cost = self.price.cost(most_input, most_output) if self.price else 0.0
        while self.max_usd is not None and sum(b.spent_usd + b.reserved_usd for b in self.purse) + cost > self.max_usd:
            if sum(budget.reserved_usd for budget in self.purse) <= 1e-12:
                raise BudgetReached
            self._settled.clear()
            await self._settled.wait()
        self.reserved_usd += cost
        return cost

    def settle(self, reserved: float, input_tokens: int = 0, output_tokens: int = 0, lost: bool = False) -> None:
        """Replace a reservation by what was used; `lost`: the answer never arrived but may have been charged."""
        self.reserved_usd = max(0.0, self.reserved_usd - reserved)
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self.unsure_usd += reserved if lost else 0.0
        for budget in self.purse:
            budget._settled.set()
