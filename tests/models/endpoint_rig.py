"""What the tests of endpoints share: a client for the rig's servers that doesn't wait long, and their words."""

from __future__ import annotations

from typing import Any

from workbench.models import load

PROBE = "f0 f1 f2"
QUICK: dict[str, Any] = {"first_wait": 0.01, "longest_wait": 0.05, "probe_prompt": PROBE}


def client(port: int, path: Any, **options: Any) -> Any:
    """The endpoint at `port`, its transcript at `path`."""
    return load(f"openai:http://127.0.0.1:{port}/v1#tiny", transcript=path, **(QUICK | options))


def billed(ledger: dict[str, int]) -> int:
    """The tokens that the server counted."""
    return ledger["prompt_tokens"] + ledger["completion_tokens"]
