"""Directions in a transformer's residual stream: hidden states, mean differences, persona vectors, projections.

Does: captures hidden states, reduced inside the hook so that nothing else is kept; takes directions from contrasting
prompts, and from the responses that contrasting system prompts bring about (persona vectors, Chen et al., arXiv
2507.21509); measures how far states lie along a direction.
Does not: change what a model does; see `steering`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from workbench.errors import refuse, require_choice, require_finite, require_integer
from workbench.models.base import LanguageModel, by_length, prompt_lists, token_lists
from workbench.models.steering import recording
from workbench.streams import Stream

POSITIONS = ("last", "mean", "all")


def hidden_states(
    model: LanguageModel,
    prompts: Any,
    layers: int | Iterable[int],
    *,
    positions: str = "last",
    completions: Any = None,
) -> np.ndarray | list[np.ndarray]:
    """The residual stream at the input of each of `layers` (n_layers: after the last block), and nothing else.

    prompts: as in `sampling.sample`. completions: as many, read after their prompts; the states are then those of the
    completions' own tokens. positions: "last" or "mean" over those tokens, float64 (n, len(layers), width); or "all",
    a list of n arrays (len(layers), length, width). Each pass is reduced inside the hook, on the model's device, so
    that memory does not grow with the layers that nobody asked for.
    Raises WorkbenchError: a layer that does not exist, an empty completion; LacksCapability: no hidden states here.
    """
    model.require("hidden_states")
    require_choice("positions", positions, POSITIONS)
    network: Any = model
    wanted = [layers] if isinstance(layers, (int, np.integer)) else list(layers)
    if not wanted:
        raise refuse("layers", "empty", "name at least one layer", "pass e.g. layers=1")
    for layer in wanted:
        cure = f"{model.name} has {network.n_layers} layers"
        require_integer("layer", layer, low=0, high=network.n_layers, cure=cure)
    sequences, first = read_after(model, prompts, completions)
    out: list[Any] = [None] * len(sequences)
    for group in by_length(sequences, [sequence[:start] for sequence, start in zip(sequences, first, strict=True)]):
        rows, start = np.stack([sequences[i] for i in group]), first[group[0]]
        network.charge_read(rows.size, calls=len(rows))
        for block in _of_one_width(rows, network.micro_batch):
            kept: dict[int, torch.Tensor] = {}
            with ExitStack() as stack:
                for layer in set(wanted):
                    record = _keeping(kept, layer, positions, start)
                    stack.enter_context(recording(network.layers, layer, record))
                network.forward(rows[block], keep=1)
            found = torch.stack([kept[layer] for layer in wanted], dim=1).numpy()
            for at, i in enumerate(group[np.unique(block)]):
                out[i] = found[at]
    return out if positions == "all" else np.stack(out)


def mean_difference_direction(
    model: LanguageModel, positive_prompts: Any, negative_prompts: Any, layer: int
) -> np.ndarray:
    """(width,) unit vector of mean hidden state over the positive prompts minus that over the negative ones,
    at the input of `layer`, last prompt token. Refuses where the two means are the same."""
    positive = model.hidden_states(positive_prompts, layer).mean(axis=0)
    difference = positive - model.hidden_states(negative_prompts, layer).mean(axis=0)
    norm = float(np.linalg.norm(difference))
    if norm == 0:
        raise refuse("mean difference", 0, "be a vector other than zero", "pass two sets of unlike prompts")
    return difference / norm


def persona_vectors(
    model: LanguageModel,
    positive: Any,
    negative: Any,
    questions: Any,
    *,
    stream: Stream,
    n: int = 1,
    max_new_tokens: int = 32,
    shows: Callable[[str | np.ndarray], bool] | None = None,
) -> np.ndarray:
    """(n_layers + 1, width) float64: row l is the persona's direction at the input of layer l, not normalised.

    positive, negative: system prompts that ask for the persona and for its opposite. questions: what is put after each
    of them, as text after text or tokens after tokens. For every pair n responses are sampled, and
    v_l = mean over positive responses of mean over response tokens of h_l, minus the same over negative responses
    (Chen et al., arXiv 2507.21509). shows: whether a response (a text, or token ids where the model has
    no tokenizer) shows the persona; positive responses that don't, and negative ones that do, are left out.
    Raises WorkbenchError: no questions or system prompts, no response left on a side, two means that are the same.
    """
    from workbench.models.sampling import sample

    means = []
    for name, systems, shown in (("positive", positive, True), ("negative", negative, False)):
        prompts = _joined(model, name, systems, questions)
        drawn = sample(model, prompts, n=n, max_new_tokens=max_new_tokens, stream=stream.child(name))
        pairs = [(prompts[row // n], tokens) for row, tokens in enumerate(drawn.completions())]
        if shows is not None:
            pairs = [pair for pair in pairs if bool(shows(_read(model, pair[1]))) is shown]
        if not pairs:
            cure = "sample more responses, pass other system prompts, or check what `shows` returns"
            raise refuse(f"{name} responses that fit", 0, "be at least 1", cure)
        asked, answered = zip(*pairs, strict=True)
        everywhere = range(model.n_layers + 1)  # type: ignore[attr-defined]
        states = hidden_states(model, asked, everywhere, positions="mean", completions=answered)
        means.append(np.mean(states, axis=0))
    difference = means[0] - means[1]
    if not np.linalg.norm(difference) > 0:
        raise refuse("persona vectors", 0, "be other than zero", "pass two unlike sets of system prompts")
    return difference


def projections(states: Any, direction: Any) -> np.ndarray:
    """(...,) the component h.d / |d| of hidden states (..., width) along a direction (width,): how strongly a persona
    shows, to be watched before a response (last prompt token) or over it (mean of its tokens)."""
    cure = "pass the direction of the layer that the states are from, e.g. persona_vectors(...)[layer]"
    d, h = require_finite("direction", direction, cure), require_finite("states", states, cure)
    norm = np.linalg.norm(d)
    if d.ndim != 1 or h.shape[-1:] != d.shape or not norm > 0:
        must = f"be one vector other than zero, as wide as the states {h.shape}"
        raise refuse("direction", f"of shape {d.shape}", must, cure)
    return h @ (d / norm)


def _joined(model: LanguageModel, argument: str, systems: Any, questions: Any) -> list[np.ndarray]:
    """Token ids of each system prompt followed by each question; texts are joined before they are encoded."""
    given, asked = ([x] if isinstance(x, str) else list(x) for x in (systems, questions))
    texts = {isinstance(x, str) for x in (*given, *asked)}
    if not given or not asked or len(texts) != 1:
        cure = "pass lists of texts, or lists of lists of token ids"
        raise refuse(f"{argument} system prompts and questions", "empty or of two kinds", "be of one kind", cure)
    pairs = [system + question if True in texts else [*system, *question] for system in given for question in asked]
    return prompt_lists(model, pairs)


def _read(model: LanguageModel, tokens: np.ndarray) -> str | np.ndarray:
    return tokens if getattr(model, "tokenizer", None) is None else model.decode(tokens.tolist())


def read_after(model: LanguageModel, prompts: Any, completions: Any) -> tuple[list[np.ndarray], list[int]]:
    """The whole sequences, and where in each the tokens begin whose states are wanted."""
    given = prompt_lists(model, prompts)
    if completions is None:
        return given, [0] * len(given)
    answers = token_lists(model, "completion", completions)
    if len(answers) != len(given):
        cure = "pass one completion for each prompt"
        raise refuse("completions", f"{len(answers)} sequences", f"be as many as the prompts, {len(given)}", cure)
    for i, answer in enumerate(answers):
        if not len(answer):
            raise refuse(f"completion[{i}]", "empty", "hold at least one token", "leave its prompt out")
    whole = [np.concatenate(pair) for pair in zip(given, answers, strict=True)]
    return prompt_lists(model, whole), [len(prompt) for prompt in given]


def _of_one_width(rows: np.ndarray, width: int) -> list[np.ndarray]:
    """Indices into `rows` in blocks of exactly `width`, the last filled up by repeating the last row: the same rows
    give the same bits whoever their neighbours are."""
    padded = np.minimum(np.arange(-(-len(rows) // width) * width), len(rows) - 1)
    return [padded[at : at + width] for at in range(0, len(padded), width)]


def _keeping(kept: dict[int, torch.Tensor], layer: int, positions: str, start: int) -> Callable[[torch.Tensor], None]:
    """A recorder of `layer` that keeps the positions asked for and lets the rest go."""

    def record(h: torch.Tensor) -> None:
        if positions == "last":
            h = h[:, -1]
        elif positions == "mean":
            # float32 at least: a mean in 16 bits would lose the differences that directions are made of.
            h = h[:, start:].to(torch.promote_types(h.dtype, torch.float32)).mean(dim=1)
        else:
            h = h[:, start:]
        kept[layer] = h.cpu().double()

    return record
