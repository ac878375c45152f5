"""What was asked of an endpoint and what it answered, kept so that nothing is paid for twice and a run can be replayed.

Does: appends one JSON line for each event and reads them back. A line goes to the system in one write before the answer
is used, so that it outlives the process; every few lines and at the end they are synced to the disk, to outlive
the machine. A last line that was torn by a crash is dropped; any other damage is refused.
Does not: hold a key (`keys.scrub` went over every answer), or change a line that stands.

Lines: a head {"transcript": 1, "endpoint", "model", "options", "begun"}; then
{"sent": key, "at_most": tokens} before each attempt; {"unpaid": key} where the server surely did no work for it;
{"key", "ask", "reply", "at_most", "seconds", "tries"} for an answer; {"key", "ask", "fault", "status"} for a
question that the server refuses to answer, kept for what it says about the server.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.models.transport import Call, Fault, Reply

FORMAT = 1
_SYNC_EVERY = 256


@dataclass(frozen=True)
class Lost:
    """Attempts that the server may have done the work for (and may charge) while the answer never came.

    tokens_at_most: their prompts and the longest answers that were allowed; the true number lies between 0 and this.
    """

    requests: int = 0
    tokens_at_most: int = 0


def request_key(*parts: Any) -> str:
    """What a request is filed under: a hash of everything that makes it this one."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def default_path(identity: str) -> Path:
    """runs/transcripts/<date-time>-<hash>.jsonl in the current folder."""
    now = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return Path("runs") / "transcripts" / f"{now}-{request_key(identity)[:8]}.jsonl"


class Transcript:
    """The file at `path`, read when opened. expected: entries that its head must have; begin: what the head of a new
    file holds besides (None: the file must be there)."""

    def __init__(
        self, path: str | os.PathLike[str], *, expected: dict[str, Any], begin: dict[str, Any] | None = None
    ) -> None:
        self.path = Path(path)
        self.answers: dict[str, Reply | Fault] = {}
        self._sent: Counter[str] = Counter()
        self._at_most: dict[str, int] = {}
        self._file: int | None = None
        self._unsynced = 0
        if begin is None and not self.path.is_file():
            raise WorkbenchError(f"There is no transcript {self.path}; check the path, or run once without replay.")
        self.head: dict[str, Any] = self._read() if self.path.is_file() else {}
        if self.head and self.head | expected != self.head:
            theirs, ours = (f"{head.get('endpoint')}#{head.get('model')}" for head in (self.head, expected))
            raise WorkbenchError(f"The transcript {self.path} is of {theirs}, not of {ours}; pass another path.")
        if not self.head:
            begun = datetime.now(UTC).isoformat(timespec="seconds")
            self.head = {"transcript": FORMAT, **expected, **(begin or {}), "begun": begun}
            self._append(self.head)

    def sent(self, call: Call) -> None:
        self._sent[call.key] += 1
        self._at_most[call.key] = call.at_most
        self._append({"sent": call.key, "at_most": call.at_most})

    def unpaid(self, call: Call) -> None:
        self._sent[call.key] -= 1
        self._append({"unpaid": call.key})

    def answered(self, call: Call, reply: Reply, at_most: int) -> None:
        """at_most: tokens that another attempt at this call may have cost, known better now."""
        self.answers[call.key] = reply
        self._at_most[call.key] = at_most
        entry = {"reply": reply.body, "at_most": at_most, "seconds": round(reply.seconds, 6), "tries": reply.tries}
        self._append({"key": call.key, "ask": call.body, **entry})

    def refused(self, call: Call, fault: Fault) -> None:
        self.answers[call.key] = fault
        self._append({"key": call.key, "ask": call.body, "fault": fault.what, "status": fault.status})

    def lost(self, idempotent: bool) -> Lost:
        """idempotent: the server answers a repeated Idempotency-Key from its store, so that only what was never
        answered can have been paid for in vain."""
        requests = tokens = 0
        for key, sent in self._sent.items():
            answered = isinstance(self.answers.get(key), Reply)
            vain = max(0, sent - answered)
            if idempotent:
                vain = 0 if answered else min(vain, 1)
            # What can't cost anything (a list of models) can't be lost.
            if self._at_most.get(key):
                requests, tokens = requests + vain, tokens + vain * self._at_most[key]
        return Lost(requests, tokens)

    def sync(self) -> None:
        """Waits until what was written is on the disk."""
        if self._file is not None and self._unsynced:
            os.fsync(self._file)
            self._unsynced = 0

    def close(self) -> None:
        if self._file is not None:
            self.sync()
            os.close(self._file)
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self.close()

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(28, "No space left on device")
            self._unsynced += 1
            if self._unsynced >= _SYNC_EVERY:
                self.sync()
        except OSError as error:
            raise WorkbenchError(
                f"The transcript {self.path} can't be written ({error.strerror}); free space or pass transcript='<path>'; "
                "what it holds already is kept."
            ) from None

    def _read(self) -> dict[str, Any]:
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise WorkbenchError(
                f"The transcript {self.path} can't be read ({error.strerror}); pass another."
            ) from None
        whole, _, torn = content.rpartition(b"\n")
        if torn:
            self._drop_tail(len(content) - len(torn))
        head: dict[str, Any] = {}
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                entry = json.loads(line)
                if number == 1:
                    head = self._checked_head(entry)
                else:
                    self._take(entry)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if isinstance(error, WorkbenchError):
                    raise
                raise WorkbenchError(
                    f"Line {number} of the transcript {self.path} is damaged; delete that line to ask for its answer again."
                ) from None
        return head

    def _checked_head(self, entry: dict[str, Any]) -> dict[str, Any]:
        whole = isinstance(entry, dict) and {"endpoint", "model", "options"} <= entry.keys()
        if not whole or entry.get("transcript") != FORMAT:
            raise WorkbenchError(f"{self.path} is no transcript of an endpoint; pass another path.")
        return entry

    def _take(self, entry: dict[str, Any]) -> None:
        if "sent" in entry:
            self._sent[entry["sent"]] += 1
            self._at_most[entry["sent"]] = entry["at_most"]
        elif "unpaid" in entry:
            self._sent[entry["unpaid"]] -= 1
        elif "reply" in entry:
            self.answers[entry["key"]] = Reply(entry["reply"], entry["seconds"], entry["tries"])
            self._at_most[entry["key"]] = entry["at_most"]
        else:
            self.answers[entry["key"]] = Fault(entry["fault"], again=False, unpaid=True, status=entry["status"])

    def _drop_tail(self, length: int) -> None:
        """Cuts off a torn last line, so that the next one starts afresh; a file that may not be changed is read as
        it is."""
        with contextlib.suppress(OSError):
            os.truncate(self.path, length)
