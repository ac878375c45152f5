"""How logits become the law that a token is drawn from: temperature, top-k, top-p, processors; and the draw itself.

Does: states the law whole, so that log-probabilities, and with them importance weights, are those of what was really
sampled. Does not: run a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.errors import WorkbenchError, refuse, require_integer, require_number

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""As `transformers.LogitsProcessor`: (input_ids (n, length) prompt included, scores (n, V)) -> scores (n, V)."""


@dataclass(frozen=True)
class Law:
    """The law of the next token, given a model's logits z (n, V), in this order:

    z <- each processor in turn (input ids, z), as in Hugging Face; z <- z / temperature; all but the `top_k` largest
    <- -inf (ties with the k-th stay); all outside the smallest set of likeliest tokens whose probability reaches
    `top_p` <- -inf (the likeliest always stays); q = softmax(z).
    None switches a step off. Raises WorkbenchError: a temperature or top_p outside (0, 1] or (0, inf), top_k < 1.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    processors: tuple[Processor, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature == 0:
            cure = "pass greedy=True for the likeliest token"
            raise refuse("temperature", self.temperature, "be greater than 0", cure)
        require_number("temperature", self.temperature, low=0, open_low=True, cure="pass e.g. temperature=1.0")
        if self.top_k is not None:
            require_integer("top_k", self.top_k, low=1, cure="pass e.g. top_k=50, or None for the whole vocabulary")
        if self.top_p is not None:
            cure = "pass e.g. top_p=0.9, or None for the whole vocabulary"
            require_number("top_p", self.top_p, low=0, high=1, open_low=True, cure=cure)
        for processor in self.processors:
            if not callable(processor):
                cure = "pass functions (input_ids, scores) -> scores, e.g. transformers.LogitsProcessor objects"
                raise refuse("logits_processor", processor, "be callable", cure)

    @property
    def plain(self) -> bool:
        """Whether q is the model's own softmax."""
        return self.temperature == 1 and not self.truncates and not self.processors

    @property
    def truncates(self) -> bool:
        return self.top_k is not None or self.top_p is not None

    def scores(self, logits: torch.Tensor, input_ids: Callable[[], Sequence[Any]] | None = None) -> torch.Tensor:
        """(n, V) log q up to a constant of each row; -inf where q is 0.

        input_ids: gives [(rows, ids)], the rows of each text length and their ids (len(rows), length) so far, prompt
        included; called only if there are processors.
        """
        z = logits
        if self.processors:
            z = z.clone()
            for rows, ids in input_ids() if input_ids else ():
                part = z[rows]
                for processor in self.processors:
                    shape = part.shape
                    part = processor(ids, part)
                    if not isinstance(part, torch.Tensor) or part.shape != shape:
                        cure = f"return scores of shape {tuple(shape)}"
                        shown = getattr(part, "shape", type(part).__name__)
                        raise refuse(f"scores of {type(processor).__name__}", shown, "keep their shape", cure)
                z[rows] = part.to(z.dtype)
        if self.temperature != 1:
            z = z / self.temperature
        if self.top_k is not None and self.top_k < z.shape[-1]:
            kth = z.topk(self.top_k, dim=-1).values[:, -1:]
            z = z.masked_fill(z < kth, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = z.sort(dim=-1, descending=True, stable=True)
            before = torch.softmax(ordered.double(), dim=-1).cumsum(dim=-1).roll(1, dims=-1)
            before[:, 0] = 0.0
            out = torch.zeros_like(z, dtype=torch.bool).scatter_(1, order, before >= self.top_p)
            z = z.masked_fill(out, -torch.inf)
        return z


def draw(
    scores: torch.Tensor, uniforms: torch.Tensor, name: Callable[[int], str] = "row {}".format
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (n,) by inverting the cumulative distribution of softmax(scores (n, V)) at uniforms (n,) in [0, 1),
    and the scores' normalisers log sum exp (n,) float64.

    A token of probability 0 is never drawn: not at u = 0, and not where rounding puts u past the last step.
    On the CPU all in float64; on a GPU the exponentials in float32 (what logits are worth), their sums in float64.
    name: what to call row i in the refusal of scores that are not numbers.
    """
    wide = wide_enough(scores)
    peak = wide.amax(dim=-1, keepdim=True)
    cdf = (wide - peak).exp_().cumsum(dim=-1, dtype=_widest(scores.device))
    total = cdf[:, -1:].contiguous()
    refuse_no_law(total[:, 0], name)
    last = torch.searchsorted(cdf, total)
    tokens = torch.minimum(torch.searchsorted(cdf, uniforms[:, None].to(cdf.dtype) * total, right=True), last)
    return tokens[:, 0], (peak.to(cdf.dtype) + total.log())[:, 0]


def likeliest(scores: torch.Tensor, name: Callable[[int], str] = "row {}".format) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest token of each row (n,), the lowest id on a tie, and the scores' normalisers (n,)."""
    total = torch.logsumexp(wide_enough(scores), dim=-1)
    refuse_no_law(total, name)
    best = scores == scores.amax(dim=-1, keepdim=True)
    return best.to(torch.uint8).argmax(dim=-1), total


def refuse_no_law(totals: torch.Tensor, name: Callable[[int], str]) -> None:
    if not math.isfinite(float(totals.sum())):
        good = torch.isfinite(totals)
        if bool(good.all()):
            return
        at = int(torch.nonzero(~good)[0])
        raise WorkbenchError(
            f"the logits of {name(at)} are not numbers (NaN or infinite), so nothing can be drawn; load the model with "
            "dtype='float32', or check its weights, the steering strength and the logits processors."
        )


def log_softmax(logits: torch.Tensor, name: Callable[[int], str] = "row {}".format) -> torch.Tensor:
    """(n, V) log-probabilities: float64 on the CPU, float32 on a GPU."""
    log_probs = torch.log_softmax(wide_enough(logits), dim=-1)
    refuse_no_law(log_probs.amax(dim=-1), name)
    return log_probs


def wide_enough(logits: torch.Tensor) -> torch.Tensor:
    """float64 on the CPU, float32 on a GPU: what laws are computed in."""
    return logits.double() if logits.device.type == "cpu" else logits.float()


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
