"""API keys: read from the environment when a request is sent, and taken out of whatever is shown or stored.

Does: finds the key for a host, refuses one that is written into a URL, scrubs it from texts and records.
Does not: keep a key in any object; what is pickled, printed or logged never had it.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote, urlsplit

from workbench.errors import WorkbenchError, refuse

VARIABLES = ("WORKBENCH_API_KEY", "OPENAI_API_KEY")
_PLACEHOLDER = 8
"""Shorter keys ("none", "EMPTY") are placeholders for servers that want some key; scrubbing them would garble texts."""


def checked_url(url: str) -> str:
    """`url` without a trailing slash; refuses one that isn't http(s), and one that holds a key."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise refuse("the endpoint's URL", url, f"be a URL ({error})", "pass e.g. http://127.0.0.1:8000/v1") from None
    if parts.username or parts.password or parts.query or "@" in parts.netloc:
        raise WorkbenchError(
            f"The endpoint's URL for {parts.hostname} holds a user, a password or a query, which would end up in notebooks "
            f"and records; leave them out and put the key into the environment variable {VARIABLES[0]}."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        must = "begin with http:// or https:// and name a host"
        raise refuse("the endpoint's URL", url, must, "pass e.g. openai:http://127.0.0.1:8000/v1#model-name")
    return url.rstrip("/")


def api_key(url: str, variable: str | None) -> str | None:
    """The key for a request to `url`, or None: from `variable` where it is named; else from WORKBENCH_API_KEY; else,
    for openai.com and this machine only, from OPENAI_API_KEY, which is no other host's business."""
    if variable is not None:
        if not os.environ.get(variable, "").strip():
            raise WorkbenchError(
                f"key_variable is {variable!r} but the environment has no such variable with a key in it; set it before "
                "starting Python, or name another."
            )
        names: tuple[str, ...] = (variable,)
    else:
        host = urlsplit(url).hostname or ""
        known = host in ("localhost", "127.0.0.1", "::1", "openai.com") or host.endswith(".openai.com")
        names = VARIABLES if known else VARIABLES[:1]
    name, key = next(
        ((name, os.environ[name].strip()) for name in names if os.environ.get(name, "").strip()), ("", None)
    )
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise WorkbenchError(
            f"The key in the environment variable {name} has characters that no HTTP header can carry; copy it again."
        )
    return key


def scrub(value: Any, key: str | None) -> Any:
    """`value` (a text, or lists and dicts of them) with "[key]" wherever the key stood."""
    if key is None or len(key) < _PLACEHOLDER:
        return value
    if isinstance(value, str):
        return value.replace(key, "[key]").replace(quote(key, safe=""), "[key]")
    if isinstance(value, list):
        return [scrub(item, key) for item in value]
    if isinstance(value, dict):
        return {scrub(name, key): scrub(item, key) for name, item in value.items()}
    return value
