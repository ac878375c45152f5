"""The one training loop that the recipes share: AdamW, warm-up and cosine decay, one thread, explicit seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from workbench.models.base import on_one_thread

_WARM_UP = 50


@contextmanager
def measuring() -> Iterator[None]:
    """What a loss is measured under: no gradients, one thread."""
    with torch.inference_mode(), on_one_thread():
        yield


def train(
    architecture: Any,
    config: Any,
    batch_loss: Callable[[torch.nn.Module, int], torch.Tensor],
    *,
    seed: int,
    steps: int,
    rate: float,
    weight_decay: float = 0.0,
) -> Any:
    """A new network of `architecture` and `config`, trained for `steps` of `batch_loss(network, step)`.

    Initial weights come from `seed`, batches from whatever `batch_loss` does with the step; torch's global
    generator is put back as it was. Gradients are clipped at norm 1.
    """
    with torch.random.fork_rng(devices=[]), on_one_thread():
        torch.manual_seed(seed)
        network = architecture(config).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, steps))
        for step in range(steps):
            optimizer.zero_grad()
            batch_loss(network, step).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return network.eval()


def _share_of_rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))
