"""Takes out of a text what tells where and by whom it was made: folders, accounts, host names, keys.

Does: shorten absolute paths to their last part (to the part inside the package or site-packages where there is
one), and put "[key]", "[user]" and "[host]" where those stood. Does not: promise to find a secret of unknown shape.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Callable
from functools import cache
from typing import Any

from workbench.models.keys import scrub as without_key

_SECRET_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)(?:_|$)", re.IGNORECASE)
_SECRET_SHAPE = re.compile(
    r"\b(?:sk-[\w-]{16,}|hf_\w{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|xox[abpr]-[\w-]{10,}|AKIA[0-9A-Z]{16}"
    r"|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})|(?<=Bearer )[\w.~+/-]{12,}=*"
)
_PIECE = r"[^\s/\\\"'`<>|:*?,;()\[\]{}&]+"
# Pictures in base64 are matched first, and kept: their text has slashes too.
_PATH = re.compile(
    r"(?P<data>data:[\w/+.-]+;base64,[\w+/=]+)"
    rf"|(?:(?<!\w)file://|(?<!\w)~|(?<![\w./~)\]}}<$\\]))/(?:{_PIECE}/)+(?:{_PIECE})?"
    rf"|\b[A-Za-z]:\\+(?:{_PIECE}\\+)+(?:{_PIECE})?"
)
_ANSI = re.compile(r"(\x1b\[[0-9;]*m)")
# Accounts that every machine of their kind has: they name nobody, and some are words of ours ("root").
_NOBODY = {"root", "admin", "user", "users", "ubuntu", "debian", "runner", "jovyan", "vscode", "codespace", "nobody"}


def scrubber() -> Callable[[str], str]:
    """A function that scrubs a text. It looks at the environment's secrets once, so make one for each page."""
    secrets = _secrets()
    names = [(re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])"), shown) for name, shown in _names().items()]

    def scrubbed(text: str) -> str:
        for secret in secrets:
            text = without_key(text, secret)
        text = _SECRET_SHAPE.sub("[key]", text)
        text = _home().sub("~", text)
        text = "".join(_PATH.sub(_shortened, part) for part in _ANSI.split(text))
        for name, shown in names:
            text = name.sub(shown, text)
        return text

    return scrubbed


def scrub(text: str) -> str:
    """`text` without absolute paths, keys, and the names of this account and host."""
    return scrubber()(text)


def scrub_all(value: Any, scrubbed: Callable[[str], str]) -> Any:
    """`value` (a text, or lists and dicts of them) scrubbed throughout; numbers stay."""
    if isinstance(value, str):
        return scrubbed(value)
    if isinstance(value, (list, tuple)):
        return [scrub_all(item, scrubbed) for item in value]
    if isinstance(value, dict):
        return {key: scrub_all(item, scrubbed) for key, item in value.items()}
    return value


def _shortened(match: re.Match[str]) -> str:
    if match["data"]:
        return match[0]
    parts = [part for part in re.split(r"[/\\]+", match[0].removeprefix("file://")) if part]
    if len(parts) in (2, 3) and parts[-2] in ("home", "Users"):
        return "~"
    for root in ("site-packages", "dist-packages"):
        if root in parts:
            return "/".join(parts[parts.index(root) :])
    if "workbench" in parts[:-1]:
        inside = len(parts) - 1 - parts[::-1].index("workbench", 1)
        return "/".join(parts[inside:])
    return f".../{parts[-1]}"


@cache
def _home() -> re.Pattern[str]:
    """The home folder itself; a home of one letter or none ("/") would match everywhere."""
    home = os.path.expanduser("~")
    return re.compile(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])" if len(home) > 2 else r"(?!)")


def _secrets() -> list[str]:
    """Values of the environment's variables that are named like secrets; short ones are placeholders."""
    return [value.strip() for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 8]


@cache
def _names() -> dict[str, str]:
    found = {}
    try:
        user, host = getpass.getuser(), socket.gethostname()
    except (OSError, KeyError, ImportError):
        return found
    if len(user) >= 3 and user.lower() not in _NOBODY:
        found[user] = "[user]"
    if len(host) >= 4 and host.lower() != "localhost":
        found[host] = "[host]"
    return found
