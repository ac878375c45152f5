"""Silence for the libraries underneath: what they have to say of a user's mistake is said by our own refusals."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_NOISY = ("transformers", "accelerate", "torchao", "torch.utils._pytree")


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars and no log lines of the libraries underneath while the block runs."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    before = {name: logging.getLogger(name).level for name in _NOISY}
    bars.disable_progress_bar()
    try:
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        if shown:
            bars.enable_progress_bar()
