"""A TCP proxy before an HTTP server that injects faults, before the server has the request and after it did the work.

Does: reads whole HTTP/1.1 requests, forwards them, and with probability `rate` does one of `BEFORE` or `AFTER` instead of
answering properly; GET /faults tells how many of each. With `store=True` it keeps answers by Idempotency-Key, as a careful gateway does: a repeat gets the
stored answer, and the server does no work twice.
Does not: understand chunked requests or streams.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import threading
from collections import Counter, defaultdict
from contextlib import contextmanager, suppress

BEFORE = ("drop", "429", "503", "stall")
AFTER = ("drop after", "half", "malformed", "late")


class FaultyProxy:
    def __init__(
        self,
        upstream: int,
        *,
        rate: float = 0.2,
        seed: int = 0,
        store: bool = True,
        stall: float = 1.0,
        kinds: tuple[str, ...] = BEFORE + AFTER,
        only: str = "POST",
    ) -> None:
        self.upstream, self.rate, self.store, self.stall, self.kinds, self.only = (
            upstream,
            rate,
            store,
            stall,
            kinds,
            only,
        )
        self.draw, self.counts = random.Random(seed), Counter()
        self.stored: dict[str, bytes] = {}
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.tasks: set[asyncio.Task | None] = set()
        self.under_way, self.most_under_way = 0, 0

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_server(self.client, "127.0.0.1", 0, backlog=256)

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Held here, since the loop forgets a task whose client went away, and what the server does must be stored.
        self.tasks.add(task := asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self.one(reader, writer):
                pass
        self.tasks.discard(task)
        writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; False closes the connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if ": " in line)
        headers = {name.lower(): value for name, value in headers.items()}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if head.startswith(b"GET /faults "):
            told = json.dumps(self.counts).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(told), told))
            await writer.drain()
            return True
        meant = head.decode().startswith(self.only) and self.draw.random() < self.rate
        fault = self.draw.choice(self.kinds) if meant else "none"
        self.counts[fault] += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return await self.answer(fault, head, body, headers.get("idempotency-key", ""), writer)
        finally:
            self.under_way -= 1

    async def answer(self, fault: str, head: bytes, body: bytes, key: str, writer: asyncio.StreamWriter) -> bool:
        if fault == "drop":
            return False
        if fault == "stall":
            await asyncio.sleep(self.stall)
            return False
        if fault in ("429", "503"):
            writer.write(f"HTTP/1.1 {fault} No\r\nRetry-After: 0\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            await writer.drain()
            return True
        response = await self.forward(head, body, key)
        if fault == "drop after":
            return False
        if fault == "late":
            await asyncio.sleep(self.stall)
            return False
        if fault == "half":
            writer.write(response[: -len(response) // 3])
            await writer.drain()
            return False
        if fault == "malformed":
            content = response.partition(b"\r\n\r\n")[2]
            content = content[: len(content) // 2]
            response = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + (
                b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
            )
        writer.write(response)
        await writer.drain()
        return True

    async def forward(self, head: bytes, body: bytes, key: str) -> bytes:
        async with self.locks[key]:
            if self.store and key in self.stored:
                self.counts["from store"] += 1
                return self.stored[key]
            reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
            writer.write(head.replace(b"\r\n\r\n", b"\r\nX-Forwarded-By: proxy\r\n\r\n", 1) + body)
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            [length] = [line for line in answer.decode().lower().split("\r\n") if line.startswith("content-length: ")]
            answer += await reader.readexactly(int(length.split(": ")[1]))
            writer.close()
            if self.store and key:
                self.stored[key] = answer
            return answer


@contextmanager
def proxying(upstream: int, **options):
    """A proxy in a thread of its own; yields (port, proxy)."""
    proxy = FaultyProxy(upstream, **options)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(proxy.serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1], proxy
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.close()


async def serve_alone(proxy: FaultyProxy) -> None:
    server = await proxy.serve()
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstream", type=int)
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stall", type=float, default=1.0)
    parser.add_argument("--no-store", action="store_true")
    given = parser.parse_args()
    rig = FaultyProxy(given.upstream, rate=given.rate, seed=given.seed, stall=given.stall, store=not given.no_store)
    asyncio.run(serve_alone(rig))
