"""Labelling through OpenAI's Batch API: half the price, an answer within a day, nothing to keep running.

`<output name>.batch/` beside the output file holds the state: `state.json` (written whole or not at all) and per
shard the requests as uploaded and the prompts they stand for. Every step may be repeated: a crash between creating a
batch and noting its id is mended by looking for the batch by its metadata, and collecting twice adds nothing.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any

from create_dataset.api_settings import make_client
from create_dataset.label_request import LabelRequest, decide
from create_dataset.openai_client import AnswerMissing, ChatClient, Choice, parse_reply
from create_dataset.output_file import OutputFile
from create_dataset.pricing import Price, Usage, max_usage
from create_dataset.prompt_sources import Prompt
from create_dataset.provider_errors import ProviderError, error_inside, read_error
from router_data import InputError, dedup_key, now, write_json

SHARD_REQUESTS, SHARD_BYTES = 50_000, 190_000_000  # the API takes 50,000 requests and 200 MB a file
TRIES = 3
SECONDS = 600.0  # for an upload or a download
ENDED = {"completed", "expired", "cancelled", "failed"}
NOT_WORKED_ON = {"batch_expired", "batch_cancelled", ""}  # codes of requests that nobody looked at
ENQUEUED_LIMIT = re.compile(r"token_limit_exceeded|enqueued[ _]token", re.IGNORECASE)


class _EnqueuedLimit(InputError):
    """The account has as many tokens in batches as it may."""


@dataclass
class Shard:
    """The requests of one batch.

    Attributes:
        attempt: how often its prompts were tried, 1 for the first time.
        max_usd: the worst case of its cost.
        file, batch: ids at the API, once they are known.
        creating: whether the batch may exist though its id is not known.
        held: whether it waits until other batches have ended, because the account's limit was reached.
        collected: whether its answers are written.
    """

    name: str
    attempt: int
    count: int
    max_output_tokens: int
    votes: int
    max_usd: float = 0.0
    file: str | None = None
    creating: bool = False
    batch: str | None = None
    held: bool = False
    collected: bool = False

    @property
    def is_running(self) -> bool:
        """Whether the API has it and its answers are not written."""
        return bool(self.batch) and not self.collected


def state_folder(output_path: Path) -> Path:
    """Where the state of an output file's batches lies."""
    return output_path.with_suffix(".batch")


class BatchJob:
    """All batches that write to one output file; use it in a `with` block.

    Args:
        output: the file, open.
        client: keeps what the model refuses.
        request: what is asked for each prompt.

    Attributes:
        labelled, failed: prompts whose row or failure `collect` wrote.
    """

    def __init__(self, output: OutputFile, client: ChatClient, request: LabelRequest) -> None:
        self.output, self.client, self.request = output, client, request
        self.api = make_client(SECONDS, max_retries=3, is_async=False)
        self.folder = state_folder(output.path)
        self.id = uuid.uuid4().hex
        self.price: Price | None = None
        self.shards: list[Shard] = []
        self.labelled = self.failed = 0
        if (self.folder / "state.json").exists():
            self._load(json.loads((self.folder / "state.json").read_text(encoding="utf-8")))

    def __enter__(self) -> "BatchJob":
        return self

    def __exit__(self, *_: object) -> None:
        self.api.close()

    def _load(self, state: dict) -> None:
        names = {field.name for field in fields(Shard)}
        for saved in state["shards"]:
            saved.setdefault("max_usd", saved.get("most_usd", 0.0))
            self.shards.append(Shard(**{name: value for name, value in saved.items() if name in names}))
        self.id = state["job"]
        self.price = Price(*state["price"]) if state.get("price") else None
        refused = state.get("substitutes", dict.fromkeys(state.get("refused", ())))
        self.client.substitutes.setdefault(self.request.model, {}).update(refused)

    def save(self) -> None:
        """Note the state on disk, whole or not at all."""
        state = {
            "job": self.id,
            "substitutes": self.client.substitutes.get(self.request.model, {}),
            "price": astuple(self.price) if self.price else None,
            "shards": list(map(asdict, self.shards)),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "state.json", state)
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror}; free some space") from error

    def waiting_keys(self) -> set[str]:
        """The keys of the prompts in shards that have not been collected."""
        waiting = (shard for shard in self.shards if not shard.collected)
        return {dedup_key(prompt.text) for shard in waiting for prompt in self._prompts(shard).values()}

    def count_waiting(self) -> int:
        """How many prompts are in shards that have not been collected."""
        return sum(shard.count for shard in self.shards if not shard.collected)

    # --- submit ---

    def add_shards(self, prompts: Iterable[Prompt], price: Price | None, usd_left: float | None) -> int:
        """Write the prompts into shards, as many as the money allows; returns how many.

        `usd_left` bounds the worst case of these shards and of those not collected yet, at `price` (of a batch).

        Raises:
            InputError: the disk is full.
        """
        self.price = price or self.price
        promised = sum(shard.max_usd for shard in self.shards if not shard.collected)
        count = 0

        def affordable() -> Iterator[Prompt]:
            nonlocal promised, count
            for prompt in prompts:
                cost = self._max_usd(prompt)
                if usd_left is not None and promised + cost > usd_left:
                    print(f"note: the money allows {count:,} prompts; the others are left for later")
                    return
                promised += cost
                count += 1
                yield prompt

        self._add(affordable(), attempt=1)
        return count

    def _add(self, prompts: Iterator[Prompt], attempt: int) -> None:
        """Write shards of as many prompts as a file may hold; none is added unless all could be written."""
        shards: list[Shard] = []
        try:
            while (first := next(prompts, None)) is not None:
                name = f"{len(self.shards) + len(shards) + 1:04d}"
                shards.append(self._write_shard(name, chain([first], prompts), attempt))
            self.shards.extend(shards)
            self.save()
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror}; free some space") from error

    def _write_shard(self, name: str, prompts: Iterator[Prompt], attempt: int) -> Shard:
        shard = Shard(name, attempt, 0, self.request.max_output_tokens, self.request.votes)
        size = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        with (
            open(self.folder / f"requests-{name}.jsonl", "wb") as requests,
            open(self.folder / f"prompts-{name}.jsonl", "wb") as originals,
        ):
            while shard.count < SHARD_REQUESTS and size < SHARD_BYTES and (prompt := next(prompts, None)):
                line = {
                    "custom_id": f"{name}-{shard.count}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": self._body(prompt),
                }
                size += requests.write(json.dumps(line).encode() + b"\n")
                originals.write(json.dumps(prompt).encode() + b"\n")
                shard.max_usd += self._max_usd(prompt)
                shard.count += 1
        return shard

    def _body(self, prompt: Prompt) -> dict:
        return self.client.supported_parameters(self.request.body(prompt.text))

    def _max_usage(self, prompt: Prompt) -> Usage:
        return max_usage(self._body(prompt), self.request.max_output_tokens)

    def _max_usd(self, prompt: Prompt) -> float:
        return self.price.cost(self._max_usage(prompt)) if self.price else 0.0

    def submit(self) -> None:
        """Upload and start every shard that isn't running yet, noting each step before the next."""
        for shard in self.shards:
            if shard.batch or shard.collected or (shard.held and any(other.is_running for other in self.shards)):
                continue
            marks = {"router_job": self.id, "router_shard": shard.name}
            if shard.creating:  # an earlier run ended before it could note the batch it may have created
                shard.batch = self._find(marks)
            try:
                if not shard.batch:
                    self._start(shard, marks)
            except _EnqueuedLimit as error:
                shard.creating, shard.held = False, True
                self.save()
                print(f"shard {shard.name} waits: {error}")
                return
            shard.held = False
            self.save()
            print(f"shard {shard.name}: {shard.count:,} requests, batch {shard.batch}")

    def _start(self, shard: Shard, marks: dict) -> None:
        if not shard.file:
            path = self.folder / f"requests-{shard.name}.jsonl"
            with open(path, "rb") as file:
                shard.file = self._call(self.api.files.create, file=(path.name, file), purpose="batch").id
        shard.creating = True
        self.save()
        shard.batch = self._call(
            self.api.with_options(max_retries=0).batches.create,  # a blind retry could create it twice
            input_file_id=shard.file,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata=marks,
        ).id

    def _find(self, marks: dict) -> str | None:
        for batch in self._call(self.api.batches.list, limit=100):
            if dict(batch.metadata or {}) == marks:
                return batch.id
        return None

    # --- status and collect ---

    def report(self) -> bool:
        """Print how far each batch is; returns whether there is something to collect."""
        ready = False
        for shard in self.shards:
            status = "collected" if shard.collected else "waits for other batches" if shard.held else "not submitted"
            if shard.is_running:
                batch = self._call(self.api.batches.retrieve, shard.batch)
                counts, status = batch.request_counts, batch.status
                if counts:
                    status += f", {counts.completed:,} answered, {counts.failed:,} failed"
                ready |= batch.status in ENDED
            print(f"shard {shard.name}: {shard.count:,} requests, {status}")
        return ready

    def collect(self) -> None:
        """Write the labels of every batch that has ended.

        What failed for a passing reason, or was not worked on in time, goes into a new shard (`submit` starts it).

        Raises:
            InputError: the endpoint can't be asked, or the account has no credit; the command may be repeated.
        """
        running = [shard for shard in self.shards if shard.is_running]
        batches = {shard.name: self._call(self.api.batches.retrieve, shard.batch) for shard in running}
        is_busy = any(batch.status not in ENDED for batch in batches.values())
        for shard in running:
            batch = batches[shard.name]
            if batch.status not in ENDED:
                print(f"shard {shard.name}: {batch.status}; collect again later")
            elif not self._was_refused(shard, batch, is_busy):
                self._collect(shard, batch)

    def _was_refused(self, shard: Shard, batch: Any, is_busy: bool) -> bool:
        """Whether the batch failed for the account's sake; then its shard is sent again, which counts as no try.

        Raises:
            InputError: the account has no credit.
        """
        error = _error_of(batch)
        if batch.status != "failed" or not error or batch.output_file_id:
            return False
        told = f"{error.message} ({', '.join(sorted(error.codes))})" if error.codes else error.message
        if error.is_out_of_quota:
            shard.batch, shard.creating = None, False
            self.save()
            raise InputError(f"shard {shard.name} was refused: {told}; add credit, then repeat the command")
        if not ENQUEUED_LIMIT.search(told):
            return False
        shard.batch, shard.creating, shard.held = None, False, is_busy
        if is_busy:
            print(f"shard {shard.name} waits until other batches have ended: {told}")
        elif shard.count == 1:
            print(f"shard {shard.name} is sent again: {told}")
        else:
            prompts = iter(self._prompts(shard).values())
            shard.collected = True
            for size in (shard.count // 2, shard.count):
                self._add(islice(prompts, size), shard.attempt)
            print(f"shard {shard.name} is sent again in two halves: {told}")
        self.save()
        return True

    def _collect(self, shard: Shard, batch: Any) -> None:
        """Write what an ended batch answered."""
        prompts, not_worked_on, to_repeat = self._prompts(shard), [], []
        sent = self._body(Prompt("", "", ""))  # before a refusal changes it
        for result in self._results(batch):
            prompt = prompts.pop(result.get("custom_id"), None)
            if prompt is None or dedup_key(prompt.text) in self.output.done:
                continue
            if not result.get("response") and str((result.get("error") or {}).get("code") or "") in NOT_WORKED_ON:
                not_worked_on.append(prompt)
            elif self._is_worth_another_try(result, sent):
                to_repeat.append((prompt, str(_error_in(result))))
            else:
                self._write(prompt, result, shard)
        missing = [prompt for prompt in prompts.values() if dedup_key(prompt.text) not in self.output.done]
        if batch.status == "failed":
            reason = str(_error_of(batch) or "no reason given")
            print(f"note: batch {batch.id} failed: {reason}")
            to_repeat += [(prompt, reason) for prompt in missing]
        else:
            not_worked_on += missing
        self._try_again(shard, not_worked_on, to_repeat)
        shard.collected = True
        self.save()

    def _try_again(self, shard: Shard, not_worked_on: list[Prompt], to_repeat: list[tuple[Prompt, str]]) -> None:
        """Put prompts into new shards; after the last try they have failed for good."""
        if shard.attempt >= TRIES:
            for prompt, reason in to_repeat:
                self._fail(prompt, f"{reason}, after {TRIES} batches", shard, {})
            to_repeat = []
        if again := len(not_worked_on) + len(to_repeat):
            print(f"shard {shard.name}: {again:,} requests are sent again")
        self._add(iter(not_worked_on), shard.attempt)
        self._add((prompt for prompt, _ in to_repeat), shard.attempt + 1)

    def _results(self, batch: Any) -> Iterator[dict]:
        """The lines of both result files: what was answered, and what was not."""
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                for line in self._call(self.api.files.content, file_id).iter_lines():
                    try:
                        result = json.loads(line)
                    except (ValueError, RecursionError):
                        continue  # its prompt counts as not worked on
                    if isinstance(result, dict):
                        yield result

    def _is_worth_another_try(self, result: dict, sent: dict) -> bool:
        """Whether a failed request may pass next time; a parameter that the model refuses is left out then.

        Args:
            sent: the parameters that the request had.
        """
        error = _error_in(result)
        if error is None:
            return False
        if error.is_passing or (error.status == 400 and "rate limit" in error.message.lower()):
            return True
        if parameter := error.refused_parameter(sent):
            self.client.mark_unsupported(self.request.model, parameter, sent[parameter], error.message)
        return parameter is not None

    def _write(self, prompt: Prompt, result: dict, shard: Shard) -> None:
        """Append the row or the failure."""
        choices: list[Choice] = []
        usage = Usage()
        try:
            if error := _error_in(result):
                raise AnswerMissing(str(error))
            reply = parse_reply((result.get("response") or {}).get("body"))
            choices, usage = reply.choices, reply.usage or self._max_usage(prompt)
            answer = decide(choices)
        except (AnswerMissing, ValueError) as error:
            reply_text = {"answer": choices[0].text[:500] if choices else None}
            self._fail(prompt, str(error), shard, reply_text | usage.fields())
            return
        row = prompt.fields() | answer.fields() | {"labelled_at": now(), "batch": shard.batch}
        self.output.append(row | usage.fields())
        self.labelled += 1

    def _fail(self, prompt: Prompt, reason: str, shard: Shard, more: dict) -> None:
        """Append the failure, unless an earlier run did."""
        if (dedup_key(prompt.text), shard.batch) in self.output.failed_in_batch:
            return
        row = prompt.fields() | {"reason": reason, "failed_at": now(), "batch": shard.batch}
        self.output.append_failure(row | more)
        self.failed += 1

    def _prompts(self, shard: Shard) -> dict[str | None, Prompt]:
        with open(self.folder / f"prompts-{shard.name}.jsonl", "rb") as file:
            return {f"{shard.name}-{i}": Prompt(*json.loads(line)) for i, line in enumerate(file)}

    def _call(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call the API; its errors become one line.

        Raises:
            InputError: what the endpoint said; every step noted so far is kept, so the command may be repeated.
        """
        import openai

        try:
            return function(*args, **kwargs)
        except openai.APIStatusError as error:
            told = read_error(error.status_code, error.response.text)
            if ENQUEUED_LIMIT.search(" ".join([told.message, *told.codes])):
                raise _EnqueuedLimit(told.message) from error
            if told.status == 404:
                raise InputError(f"no Batch API at {self.client.address}, or the batch is gone ({told})") from error
            if told.status in (401, 402, 403) or told.is_out_of_quota:
                raise InputError(self.client.refusal(told, self.request.model)) from error
            raise InputError(f"the Batch API answers {told}; repeat the command") from error
        except openai.APIConnectionError as error:
            raise InputError(f"cannot reach {self.client.address}; repeat the command") from error


def _error_of(batch: Any) -> ProviderError | None:
    """Why a whole batch failed."""
    errors = list(batch.errors.data or []) if batch.errors else []
    return read_error(400, json.dumps({"code": errors[0].code, "message": errors[0].message})) if errors else None


def _error_in(result: dict) -> ProviderError | None:
    """The error that a line of a result file holds; None where it holds an answer."""
    response = result.get("response") or {}
    status, body = response.get("status_code") or 400, response.get("body")
    if status == 200:
        return error_inside(body)
    return read_error(status, json.dumps(body or result.get("error") or ""))
