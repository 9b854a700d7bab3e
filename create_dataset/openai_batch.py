"""Labelling through OpenAI's Batch API: half the price, an answer within a day, nothing to keep running.

`<output name>.batch/` beside the output file holds the state: `state.json` (written whole or not at all) and per
shard the requests as uploaded and the prompts they stand for. Every step may be repeated: a crash between creating a
batch and noting its id is mended by looking for the batch by its metadata, and collecting twice adds nothing.
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from itertools import chain

from create_dataset.label_request import decide, label_request
from create_dataset.openai_client import Endpoint, NoAnswer, parse_reply
from create_dataset.output_file import OutputFile, now, dedup_key
from create_dataset.pricing import Price, most_tokens
from create_dataset.prompt_sources import Prompt
from router_data import InputError

SHARD_REQUESTS, SHARD_BYTES = 50_000, 190_000_000  # the API takes 50,000 requests and 200 MB a file
TRIES = 3
ENDED = {"completed", "expired", "cancelled", "failed"}
WORTH_ANOTHER_TRY = {408, 409, 429, 500, 502, 503, 504, 520, 529}


class BatchJob:
    """All batches that write to one output file."""

    def __init__(self, output: OutputFile, endpoint: Endpoint, model: str, labelling_prompt: str) -> None:
        from openai import OpenAI

        self.output, self.endpoint, self.model, self.labelling_prompt = output, endpoint, model, labelling_prompt
        self.client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL") or None, max_retries=3, timeout=600)
        self.folder = output.path.with_suffix(".batch")
        self.state: dict = {"job": uuid.uuid4().hex, "refused": [], "shards": []}
        if (self.folder / "state.json").exists():
            self.state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        endpoint.dropped.setdefault(model, set()).update(self.state["refused"])

    @property
    def shards(self) -> list[dict]:
        return self.state["shards"]

    def save(self) -> None:
        """Note the state on disk, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state["refused"] = sorted(self.endpoint.dropped.get(self.model, ()))
        partial = self.folder / "state.json.partial"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(self.state, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.folder / "state.json")

    def waiting_keys(self) -> set[str]:
        """The keys of the prompts in shards that have not been collected."""
        return {dedup_key(p.text) for s in self.shards if not s["collected"] for p in self._prompts(s).values()}

    # --- submit ---

    def add_shards(
        self, prompts: Iterable[Prompt], max_output_tokens: int, votes: int, price: Price | None, usd_left: float | None
    ) -> int:
        """Write the prompts into shards, as many as the money allows; returns how many.

        `usd_left` bounds the worst case of these shards and of those not collected yet, at `price`.
        """
        promised = sum(shard["most_usd"] for shard in self.shards if not shard["collected"])
        count = 0

        def affordable() -> Iterator[Prompt]:
            nonlocal promised, count
            for prompt in prompts:
                cost = self._most_usd(prompt, max_output_tokens, votes, price)
                if usd_left is not None and promised + cost > usd_left:
                    print(f"note: the money allows {count:,} prompts; the others are left for later")
                    return
                promised += cost
                count += 1
                yield prompt

        rest, shards = affordable(), []
        while shard := self._write_shard(len(self.shards) + len(shards) + 1, rest, 1, max_output_tokens, votes, price):
            shards.append(shard)
        self.shards.extend(shards)
        self.save()
        return count

    def _most_usd(self, prompt: Prompt, max_output_tokens: int, votes: int, price: Price | None) -> float:
        text = json.dumps(self._request(prompt, max_output_tokens, votes), ensure_ascii=False)
        return price.cost(most_tokens(text), max_output_tokens * votes) if price else 0.0

    def _request(self, prompt: Prompt, max_output_tokens: int, votes: int) -> dict:
        request = label_request(self.model, self.labelling_prompt, prompt.text, max_output_tokens, votes)
        return self.endpoint.without_refused(request)

    def _write_shard(
        self, number: int, prompts: Iterator[Prompt], attempt: int, max_output_tokens: int, votes: int, price=None
    ) -> dict | None:
        """One shard of as many prompts as a file may hold; None when there are none left."""
        name, count, size, most_usd = f"{number:04d}", 0, 0, 0.0
        first = next(prompts, None)
        if first is None:
            return None
        prompts = chain([first], prompts)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (
            open(self.folder / f"requests-{name}.jsonl", "wb") as requests,
            open(self.folder / f"prompts-{name}.jsonl", "wb") as originals,
        ):
            while count < SHARD_REQUESTS and size < SHARD_BYTES and (prompt := next(prompts, None)):
                line = {
                    "custom_id": f"{name}-{count}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": self._request(prompt, max_output_tokens, votes),
                }
                size += requests.write(json.dumps(line).encode() + b"\n")
                originals.write(json.dumps(prompt).encode() + b"\n")
                most_usd += self._most_usd(prompt, max_output_tokens, votes, price)
                count += 1
        shard = {"name": name, "attempt": attempt, "count": count, "max_output_tokens": max_output_tokens}
        return shard | {
            "votes": votes, "most_usd": most_usd, "file": None, "creating": False, "batch": None, "collected": False
        }  # fmt: skip

    def submit(self) -> None:
        """Upload and start every shard that isn't running yet, noting each step before the next."""
        for shard in self.shards:
            if shard["batch"]:
                continue
            marks = {"router_job": self.state["job"], "router_shard": shard["name"]}
            if shard["creating"]:  # an earlier run ended before it could note the batch it may have created
                shard["batch"] = self._find(marks)
            if not shard["batch"]:
                if not shard["file"]:
                    path = self.folder / f"requests-{shard['name']}.jsonl"
                    with open(path, "rb") as file:
                        uploaded = self._call(self.client.files.create, file=(path.name, file), purpose="batch")
                    shard["file"] = uploaded.id
                shard["creating"] = True
                self.save()
                shard["batch"] = self._call(
                    self.client.with_options(max_retries=0).batches.create,  # a blind retry could create it twice
                    input_file_id=shard["file"],
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                    metadata=marks,
                ).id
            self.save()
            print(f"shard {shard['name']}: {shard['count']:,} requests, batch {shard['batch']}")

    def _find(self, marks: dict) -> str | None:
        for batch in self._call(self.client.batches.list, limit=100):
            if dict(batch.metadata or {}) == marks:
                return batch.id
        return None

    # --- status and collect ---

    def report(self) -> bool:
        """Print how far each batch is; returns whether there is something to collect."""
        ready = False
        for shard in self.shards:
            if shard["collected"] or not shard["batch"]:
                status = "collected" if shard["collected"] else "not submitted"
            else:
                batch = self._call(self.client.batches.retrieve, shard["batch"])
                counts = batch.request_counts
                status = batch.status
                if counts:
                    status += f", {counts.completed:,} answered, {counts.failed:,} failed"
                ready |= batch.status in ENDED
            print(f"shard {shard['name']}: {shard['count']:,} requests, {status}")
        return ready

    def collect(self) -> tuple[int, int]:
        """Write the labels of every batch that has ended; returns labelled and failed.

        What failed for a passing reason, or was not worked on in time, goes into a new shard (`submit` starts it).
        """
        labelled = failed = 0
        for shard in list(self.shards):
            if shard["collected"] or not shard["batch"]:
                continue
            batch = self._call(self.client.batches.retrieve, shard["batch"])
            if batch.status not in ENDED:
                print(f"shard {shard['name']}: {batch.status}; collect again later")
                continue
            prompts, again = self._prompts(shard), []
            for result in self._results(batch):
                prompt = prompts.pop(result.get("custom_id"), None)
                if prompt is None or dedup_key(prompt.text) in self.output.done:
                    continue
                if self._worth_another_try(result, shard):
                    again.append(prompt)
                    continue
                written = self._write(prompt, result, shard)
                labelled, failed = labelled + (written is True), failed + (written is False)
            again += [prompt for prompt in prompts.values() if dedup_key(prompt.text) not in self.output.done]
            if batch.status == "failed":
                self._explain(batch)
            if again and shard["attempt"] < TRIES:
                number = len(self.shards) + 1
                limits = shard["max_output_tokens"], shard["votes"]
                self.shards.append(self._write_shard(number, iter(again), shard["attempt"] + 1, *limits))
                print(f"shard {shard['name']}: {len(again):,} requests are tried again")
            elif again:
                for prompt in again:
                    self._fail(prompt, f"no answer in {TRIES} batches", shard)
                failed += len(again)
            shard["collected"] = True
            self.save()
        return labelled, failed

    def _results(self, batch) -> Iterator[dict]:
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                for line in self._call(self.client.files.content, file_id).iter_lines():
                    if line.strip():
                        yield json.loads(line)

    def _worth_another_try(self, result: dict, shard: dict) -> bool:
        """Whether a failed request may pass next time; a parameter that the model refuses is left out then."""
        if shard["attempt"] >= TRIES:
            return False
        response = result.get("response") or {}
        status = response.get("status_code")
        if status is None or status in WORTH_ANOTHER_TRY:
            return True  # no response: it expired or was cancelled
        message = str(((response.get("body") or {}).get("error") or {}).get("message"))
        refused = (response.get("body") or {}).get("error", {}).get("param") if status == 400 else None
        if refused in label_request(self.model, "", "", 1) and refused not in ("model", "messages"):
            self.endpoint.drop(self.model, refused)
            return True
        return status == 400 and "rate limit" in message.lower()

    def _write(self, prompt: Prompt, result: dict, shard: dict) -> bool | None:
        """Append the row (True) or the failure (False); None where that failure was noted before."""
        response, choices, tokens = result.get("response") or {}, [], {}
        try:
            if response.get("status_code") != 200:
                error = (response.get("body") or {}).get("error") or result.get("error") or {}
                raise NoAnswer(f"HTTP {response.get('status_code')}: {error.get('message')}"[:300])
            reply = parse_reply(response.get("body"))
            choices = reply.choices
            tokens = {"input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens}
            answer = decide(choices)
        except (NoAnswer, ValueError) as error:
            text = choices[0].text[:500] if choices else None
            return self._fail(prompt, str(error), shard, {"answer": text} | tokens)
        row = {"prompt": prompt.text, "source": prompt.source, "source_id": prompt.source_id, "label": answer.label}
        row |= {"superior_probability": answer.superior_probability, "labelled_at": now(), "batch": shard["batch"]}
        self.output.append(row | ({"votes": answer.votes} if shard["votes"] > 1 else {}) | tokens)
        return True

    def _fail(self, prompt: Prompt, reason: str, shard: dict, more: dict | None = None) -> bool | None:
        if (dedup_key(prompt.text), shard["batch"]) in self.output.failed_in_batch:
            return None
        row = {"prompt": prompt.text, "source": prompt.source, "source_id": prompt.source_id, "reason": reason}
        self.output.append_failure(row | {"failed_at": now(), "batch": shard["batch"]} | (more or {}))
        return False

    def _explain(self, batch) -> None:
        errors = list(batch.errors.data or []) if batch.errors else []
        first = errors[0] if errors else None
        print(f"note: batch {batch.id} failed: {first.code}: {first.message}" if first else f"batch {batch.id} failed")

    def _prompts(self, shard: dict) -> dict[str, Prompt]:
        with open(self.folder / f"prompts-{shard['name']}.jsonl", "rb") as file:
            return {f"{shard['name']}-{i}": Prompt(*json.loads(line)) for i, line in enumerate(file)}

    def _call(self, function, *args, **kwargs):
        """Call the client; its errors become one line.

        Raises:
            InputError: what the endpoint said; every step noted so far is kept, so the command may be repeated.
        """
        import openai

        try:
            return function(*args, **kwargs)
        except openai.APIStatusError as error:
            if error.status_code == 404:
                raise InputError(f"no Batch API at {self.client.base_url}, or the batch is gone") from error
            if error.status_code in (401, 402, 403):
                raise InputError(self.endpoint.refusal(error, self.model)) from error
            message = self.endpoint.message(error)
            raise InputError(f"the Batch API answered {error.status_code} ({message}); repeat the command") from error
        except openai.APIConnectionError as error:
            raise InputError(f"cannot reach {self.client.base_url}; repeat the command") from error
