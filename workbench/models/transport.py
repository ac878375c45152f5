"""Many HTTP calls to one server at once, each tried again until it is answered or hopeless.

Does: bounded concurrency, a limit of time for each attempt, and jittered exponential back-off on 429 (its
Retry-After is kept), 408, 425, 5xx, time-outs, lost connections, half responses and malformed JSON. Runs an event loop
in a thread of its own, so that it works inside a notebook, where one runs already. The first call that can't be
answered stops the rest: nothing new is sent, and what is under way is waited for.
Does not: know what is asked (`endpoint`) or keep answers (`transcript`).

Each attempt is told to the journal before it is sent, and told again where the server surely did no work, so that
"may have been paid for, and the answer was lost" can be counted even after the process was killed.

stamina would do the retries, but it draws its jitter from the global random generator, logs every retry as a warning,
and can't be told that a sibling has failed for good; the loop here is short.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import json
import math
import random
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import httpx2

from workbench.errors import require_integer, require_number
from workbench.models.keys import api_key, scrub

_TRY_AGAIN = (408, 425, 429)
_LONGEST_RETRY_AFTER = 600.0
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Patience:
    """How hard to try. concurrency: calls under way at once; timeout: seconds for one attempt; max_tries: attempts of
    one call; before try k + 1 comes a wait of first_wait * 2^(k - 1) seconds, at most longest_wait, times a random
    number from 1/2 to 1."""

    concurrency: int = 16
    timeout: float = 120.0
    max_tries: int = 8
    first_wait: float = 0.5
    longest_wait: float = 30.0

    def __post_init__(self) -> None:
        require_integer("concurrency", self.concurrency, low=1, high=1024, cure="pass e.g. concurrency=16")
        require_integer("max_tries", self.max_tries, low=1, cure="pass e.g. max_tries=8")
        require_number("timeout", self.timeout, low=0, open_low=True, cure="pass seconds, e.g. timeout=120")
        require_number("first_wait", self.first_wait, low=0, cure="pass seconds, e.g. first_wait=0.5")
        require_number("longest_wait", self.longest_wait, low=0, cure="pass seconds, e.g. longest_wait=30")

    def wait(self, tries: int, draw: random.Random) -> float:
        """Seconds before the next attempt, after `tries` of them."""
        return min(self.longest_wait, self.first_wait * 2.0 ** min(tries - 1, 60)) * draw.uniform(0.5, 1.0)


@dataclass(frozen=True)
class Call:
    """One request. key: what it is filed under, and its Idempotency-Key unless `idempotency` is given; body: None for
    a GET; at_most: tokens that it can cost."""

    key: str
    url: str
    body: dict[str, Any] | None
    at_most: int = 0
    idempotency: str | None = None


@dataclass(frozen=True)
class Reply:
    """A JSON object that the server answered with; seconds: what the attempt took."""

    body: dict[str, Any]
    seconds: float
    tries: int


@dataclass(frozen=True)
class Fault:
    """Why there is no reply. status: of HTTP, 0 where there was none; again: whether to try again, after `wait`
    seconds where the server said so; unpaid: whether the server surely did no work."""

    what: str
    again: bool
    unpaid: bool
    status: int = 0
    wait: float | None = None
    tries: int = 1


class Journal(Protocol):
    def sent(self, call: Call) -> None: ...

    def unpaid(self, call: Call) -> None: ...


Done = Callable[[Call, "Reply | Fault"], None]
Check = Callable[[dict[str, Any]], str]


def exchange(
    calls: Iterable[Call],
    done: Done,
    journal: Journal,
    patience: Patience,
    *,
    key_variable: str | None = None,
    check: Check = lambda body: "",
    stop_at_fault: bool = True,
) -> None:
    """Sends `calls`, and hands each one's reply, or the fault that ended its tries, to `done`.

    check: what is wrong with a reply that is a JSON object ("" for nothing); such a one is asked for again.
    `done` runs in another thread, one call at a time, in the caller's context, so that it can charge the open meters.
    An interrupt drops what is under way; whatever was answered before has been handed over.
    """
    given = list(calls)

    async def all_of_them() -> None:
        timeout = httpx2.Timeout(patience.timeout, connect=min(_CONNECT_SECONDS, patience.timeout))
        limits = httpx2.Limits(max_connections=patience.concurrency, max_keepalive_connections=patience.concurrency)
        waiting, draw, failed = iter(given), random.Random(), asyncio.Event()

        async def worker(client: httpx2.AsyncClient) -> None:
            for call in waiting:
                if failed.is_set():
                    return
                outcome = await _answer(client, call, journal, patience, draw, failed, key_variable, check)
                if isinstance(outcome, Fault) and stop_at_fault:
                    failed.set()
                done(call, outcome)

        async with (
            httpx2.AsyncClient(verify=_certificates(), timeout=timeout, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(min(patience.concurrency, len(given))):
                group.create_task(worker(client))

    if given:
        _run_in_thread(all_of_them)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes longer than many a request."""
    return httpx2.create_ssl_context()


async def _answer(
    client: httpx2.AsyncClient,
    call: Call,
    journal: Journal,
    patience: Patience,
    draw: random.Random,
    failed: asyncio.Event,
    key_variable: str | None,
    check: Check,
) -> Reply | Fault:
    tries = 0
    while True:
        tries += 1
        journal.sent(call)
        outcome = await _attempt(client, call, patience.timeout, api_key(call.url, key_variable), check, tries)
        if isinstance(outcome, Reply):
            return outcome
        if outcome.unpaid:
            journal.unpaid(call)
        if not outcome.again or tries >= patience.max_tries or failed.is_set():
            return outcome
        backoff = patience.wait(tries, draw)
        try:
            # A sleep that ends where a sibling fails for good.
            await asyncio.wait_for(failed.wait(), (outcome.wait or 0.0) + backoff)
            return outcome
        except TimeoutError:
            continue


async def _attempt(
    client: httpx2.AsyncClient, call: Call, seconds: float, key: str | None, check: Check, tries: int
) -> Reply | Fault:
    headers = {"Idempotency-Key": call.idempotency or call.key}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    began = time.perf_counter()
    try:
        async with asyncio.timeout(seconds):
            if call.body is None:
                response = await client.get(call.url, headers=headers)
            else:
                response = await client.post(call.url, headers=headers, json=call.body)
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        what = "the connection took too long" if isinstance(error, httpx2.ConnectTimeout) else _why(error)
        return Fault(what, again=True, unpaid=True, tries=tries)
    except (TimeoutError, httpx2.TimeoutException):
        return Fault(f"no answer within {seconds:g} s", again=True, unpaid=False, tries=tries)
    except httpx2.TransportError as error:
        what = f"the connection was lost ({type(error).__name__})"
        return Fault(what, again=True, unpaid=False, tries=tries)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return Fault(f"no answer ({type(error).__name__})", again=False, unpaid=False, tries=tries)
    return _read(response, check, time.perf_counter() - began, key, tries)


def _read(response: httpx2.Response, check: Check, seconds: float, key: str | None, tries: int) -> Reply | Fault:
    status, text = response.status_code, response.text
    is_page = "html" in response.headers.get("content-type", "") or text.lstrip()[:1] == "<"
    if status != 200:
        told = "an HTML page" if is_page else scrub(_message(text), key)
        what = f"HTTP {status}: {told}" if told else f"HTTP {status}"
        again = status in _TRY_AGAIN or status >= 500
        wait = _retry_after(response.headers.get("retry-after"))
        if wait is not None and wait > _LONGEST_RETRY_AFTER:
            what, again = f"{what}, to be asked again in {wait:.0f} s", False
        # An error of the server's own may come after the work; a refusal (4xx) comes before it.
        return Fault(what, again, unpaid=status < 500, status=status, wait=wait, tries=tries)
    if is_page:
        return Fault("an HTML page instead of JSON", again=False, unpaid=True, status=status, tries=tries)
    try:
        body = json.loads(text, parse_constant=_no_number)
    except ValueError:
        return Fault("a response that is not whole JSON", again=True, unpaid=False, status=status, tries=tries)
    wrong = check(body) if isinstance(body, dict) else "JSON that is no object"
    if wrong:
        return Fault(scrub(wrong, key), again=True, unpaid=False, status=status, tries=tries)
    return Reply(scrub(body, key), seconds, tries)


def _no_number(name: str) -> float:
    """JSON knows no such numbers, but some servers write the log-prob of what can't happen so."""
    if name == "-Infinity":
        return -math.inf
    raise ValueError(name)


def _message(text: str) -> str:
    """What an error body says, in one line."""
    try:
        told: Any = json.loads(text)
        for name in ("error", "message", "detail"):
            told = told.get(name, told) if isinstance(told, dict) else told
    except ValueError:
        told = text
    line = " ".join(str(told).split()).rstrip(".")
    return line[:200] + ("..." if len(line) > 200 else "")


def _why(error: Exception) -> str:
    """What the system says of a connection that could not be made."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        cause = cause.__cause__ or cause.__context__
    told = " ".join(str(error).split())
    return "all connection attempts failed" if not told else told[0].lower() + told[1:].rstrip(".")


def _retry_after(told: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date."""
    if told is None:
        return None
    try:
        seconds = float(told)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _run_in_thread(work: Callable[[], Awaitable[None]]) -> None:
    """Runs a coroutine function in an event loop in a thread of its own, with the caller's context."""
    began, failures, loop_and_task = threading.Event(), [], []

    async def main() -> None:
        loop_and_task.extend((asyncio.get_running_loop(), asyncio.current_task()))
        began.set()
        await work()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)
        finally:
            began.set()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="endpoint", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
    except BaseException:
        began.wait()
        if thread.is_alive() and loop_and_task:
            loop, task = loop_and_task
            with contextlib.suppress(RuntimeError):  # the loop has just closed by itself
                loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if failures:
        error = failures[0]
        # A task group wraps what its tasks raise; one error is all that a reader needs.
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error
