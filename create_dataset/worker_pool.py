"""Many prompts at a time, and an orderly end: all done, stopped, interrupted or out of budget."""

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

from create_dataset.openai_client import AnswerMissing, ChatClient, CutShort, StopRun
from create_dataset.output_file import OutputFile
from create_dataset.pricing import BudgetReached
from create_dataset.prompt_sources import Prompt
from router_data import InputError, Progress, now

GRACE_SECONDS = 30.0  # for the answers in flight when a run is stopped
MAX_FAILURES_IN_A_ROW = 50  # then something is wrong with the run, not with the prompts


class UsageRecord(Protocol):
    """Counts what the requests of one prompt used."""

    def fields(self) -> dict:
        """The fields of a row that say so; none where nothing was used."""
        ...


Record = TypeVar("Record", bound=UsageRecord)


class WorkerPool:
    """Works through prompts, many at a time, writes what comes of them, and counts how it went.

    Args:
        client: asked by the work; told when to give up.
        output: where rows and failures go.
        max_in_flight: prompts at the same time.

    Attributes:
        succeeded, failed: prompts so far.
        reason: why the run ended early; None where it didn't.
    """

    def __init__(self, client: ChatClient, output: OutputFile, max_in_flight: int) -> None:
        self.client, self.output, self.max_in_flight = client, output, max_in_flight
        self.succeeded = self.failed = 0
        self.reason: str | None = None
        self._exit_code = 0
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._failures_in_a_row = 0
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task] = set()

    @property
    def exit_code(self) -> int:
        """0, or 1 where something stopped the run or every prompt failed, or 128 and the number of a signal."""
        return self._exit_code or int(self.failed > 0 and not self.succeeded)

    def stop(self, reason: str, exit_code: int = 1) -> None:
        """Send nothing new; the answers in flight are waited for. A second call doesn't wait any more."""
        if self._stop.is_set():
            if exit_code > 128:
                for task in self._tasks:
                    task.cancel()
            return
        self.reason, self._exit_code = reason, exit_code
        self.client.stopping = True
        self._stop.set()

    def describe(self, total: int, skipped: int) -> str:
        """How many of the prompts were labelled, with those that were skipped, in words."""
        counts = f"{self.succeeded:,} labelled, {skipped:,} skipped (labelled before), {self.failed:,} failed"
        return f"{counts}, {total - skipped - self.succeeded - self.failed:,} left"

    def describe_failures(self) -> str:
        """The commonest reason and where all failures stand, in one line."""
        kind, count = self._reasons.most_common(1)[0]
        example = self._examples[kind]
        return f"most failures ({count:,} of {self.failed:,}): {example}; all are in {self.output.failures_path}"

    async def run(
        self,
        prompts: Iterable[Prompt],
        work: Callable[[Prompt, Record], Awaitable[dict]],
        new_usage: Callable[[], Record],
        models: Iterable[str],
        progress: Progress,
        cost: Callable[[], str],
    ) -> None:
        """Write a row or a failure for each prompt, as soon as it is known, at most `max_in_flight` at a time.

        The first goes alone: it shows a wrong key or a refused parameter once, not `max_in_flight` times. At the end
        the client's connections are closed.

        Args:
            work: a prompt and where to count what it uses -> the fields of its row.
            new_usage: makes such a count.
            models: looked up first.
            progress: is told of every prompt.
            cost: what was spent so far, in words.
        """
        self.client.say = progress.say
        iterator = iter(prompts)

        async def worker(at_most: int | None = None) -> None:
            for count, prompt in enumerate(iterator, 1):
                if self._stop.is_set():
                    return
                try:
                    await self._work_on(prompt, work, new_usage())
                except BudgetReached:
                    self.stop("the next request could pass --max_usd", exit_code=0)
                except (StopRun, InputError) as error:
                    self.stop(str(error))
                except (CutShort, asyncio.CancelledError):
                    if not self._stop.is_set():
                        raise
                    return
                progress.add(note=f"{self.failed} failed{cost()}")
                if count == at_most:
                    return

        with self._signals_stop_the_run():
            try:
                for model in models:
                    await self.client.check_model(model)
                for size, at_most in ((1, 1), (self.max_in_flight, None)):
                    self._tasks = {asyncio.create_task(worker(at_most)) for _ in range(size)}
                    await self._until_done()
            except StopRun as error:
                self.stop(str(error))
            finally:
                progress.close()
                await self.client.close()

    async def _work_on(self, prompt: Prompt, work: Callable[[Prompt, Record], Awaitable[dict]], usage: Record) -> None:
        row = prompt.fields()
        try:
            fields = await work(prompt, usage)
        except AnswerMissing as error:
            self._count_failure(str(error))
            failure = {"reason": str(error), "answer": error.reply, "failed_at": now()}
            self.output.append_failure(row | failure | usage.fields())
        except BaseException:
            if usage.fields():  # cut short by a stop: the next run asks again, but it may have been charged
                failure = {"reason": "stopped before its answer came", "failed_at": now()}
                self.output.append_failure(row | failure | usage.fields())
            raise
        else:
            self.output.append(row | fields | {"labelled_at": now()} | usage.fields())
            self.succeeded += 1
            self._failures_in_a_row = 0

    def _count_failure(self, reason: str) -> None:
        """Note that a prompt failed; too many in a row stop the run."""
        self.failed += 1
        kind = reason.partition(": ")[0]
        self._reasons[kind] += 1
        self._examples.setdefault(kind, reason)
        self._failures_in_a_row += 1
        if self._failures_in_a_row == MAX_FAILURES_IN_A_ROW:
            self.stop(f"{MAX_FAILURES_IN_A_ROW} failures in a row, the last: {reason}")

    @contextmanager
    def _signals_stop_the_run(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM"):
            number = getattr(signal, name)
            with suppress(NotImplementedError, ValueError):  # Windows, and threads other than the main one
                loop.add_signal_handler(number, self._interrupt, name, 128 + number)
        try:
            yield
        finally:
            for name in ("SIGINT", "SIGTERM"):
                with suppress(NotImplementedError, ValueError):
                    loop.remove_signal_handler(getattr(signal, name))

    def _interrupt(self, name: str, exit_code: int) -> None:
        if not self._stop.is_set():
            print(f"\n{name}: waiting for the answers in flight; once more to stop at once", file=sys.stderr)
        self.stop(f"interrupted by {name}", exit_code)

    async def _until_done(self) -> None:
        stopped = asyncio.create_task(self._stop.wait())
        everything: asyncio.Future = asyncio.gather(*self._tasks)
        ends: set[asyncio.Future] = {stopped, everything}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not everything.done():
            for task in self._tasks - self.client.sending:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=GRACE_SECONDS)
            for task in self._tasks:
                task.cancel()
        await everything
