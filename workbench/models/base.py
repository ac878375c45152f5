"""The one interface behind which every model sits: bundled, grammar, Hugging Face, or your own.

A model that can `start` a `Session` can be sampled, scored, enumerated and steered by the functions of
`workbench.models`; whatever else it can do it says in `capabilities`.
Does not: draw tokens (`sampling`), load anything (`load`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.budget import charge
from workbench.errors import DoesNotFit, LacksCapability, WorkbenchError, refuse

if TYPE_CHECKING:
    import torch

CAPABILITIES = ("sample", "log_probs", "next_log_probs", "hidden_states", "steer", "train")

_INSTEAD = {
    "sample": "load one that generates, e.g. workbench.models.load('embedded/codeword')",
    "log_probs": "use an estimator that needs sampled answers only, or load the model locally with 'hf:<folder>'",
    "next_log_probs": "use log_probs of given completions, or load the model locally with 'hf:<folder>'",
    "hidden_states": "load the model locally with 'hf:<id or folder>'",
    "steer": "load the model locally with 'hf:<id or folder>', or steer a grammar model with a Tilt",
    "train": "load a Hugging Face model on this machine with 'hf:<id or folder>' or 'embedded/<name>'",
}

EXACT_REPLAY = "exact replay"
SAME_IN_DISTRIBUTION = "same in distribution"

_WORTH_THREADS = 3e7
"""Operations of one pass from which a small model gains by more than one thread."""


class Session:
    """Decoding under way on n rows: what each row has read, and what may come next.

    A row's numbers depend on what that row has read alone, never on its neighbours. Rows of one session may have read
    texts of different lengths, where sessions were joined.
    """

    n: int
    log_probs: torch.Tensor
    """(n, vocab_size) float64: log p(next token | what the row has read), on the model's device."""

    @property
    def logits(self) -> torch.Tensor:
        """(n, vocab_size): the same up to a constant of each row, as the model gives them."""
        return self.log_probs

    def advance(self, tokens: Any) -> None:
        """Reads tokens (n,), one for each row. A token of -1 parks its row: not charged, and the row's
        log-probs, normalised still, mean nothing from then on."""
        raise NotImplementedError

    def select(self, rows: Any) -> Session:
        """A new session made of `rows` of this one (repeats allowed: that is branching); this one stays as it is."""
        raise NotImplementedError

    def join(self, other: Session) -> Session:
        """A session of this one's rows and then the other's. The two are not to be used on their own afterwards."""
        return Joined((self, other))


class Joined(Session):
    """Sessions side by side, each advanced on its own."""

    def __init__(self, parts: Sequence[Session]) -> None:
        self.parts = tuple(parts)
        self.n = sum(part.n for part in self.parts)

    @property
    def log_probs(self) -> torch.Tensor:
        import torch

        return torch.cat([part.log_probs for part in self.parts])

    @property
    def logits(self) -> torch.Tensor:
        import torch

        return torch.cat([part.logits for part in self.parts])

    def advance(self, tokens: Any) -> None:
        given, at = np.asarray(tokens, dtype=np.int64), 0
        for part in self.parts:
            own = given[at : at + part.n]
            if (own >= 0).any():
                part.advance(own)
            at += part.n

    def select(self, rows: Any) -> Session:
        """`rows` must not go back from one part to an earlier one."""
        chosen = rows_by_part(rows, [part.n for part in self.parts])
        kept = [part.select(own) for part, own in zip(self.parts, chosen, strict=True) if len(own)]
        return kept[0] if len(kept) == 1 else Joined(kept)

    def join(self, other: Session) -> Session:
        return Joined((*self.parts, other))


def rows_by_part(rows: Any, sizes: Sequence[int]) -> list[np.ndarray]:
    """`rows` of parts that stand one after another, as each part's own rows; they must not go back to an earlier one."""
    given = np.asarray(rows, dtype=np.int64)
    part_of = np.repeat(np.arange(len(sizes)), sizes)[given]
    if (np.diff(part_of) < 0).any():
        raise refuse("rows", "out of order", "take joined sessions one after another", "sort the rows")
    starts = np.cumsum(sizes) - sizes
    return [given[part_of == i] - start for i, start in enumerate(starts)]


class LanguageModel:
    """A thing that samples and scores text. Subclass it, set the attributes, write `start`: the rest follows.

    `flops_per_token` is what reading one token costs (twice the parameters for a transformer);
    `rows_at_once` is how many rows a caller should decode together; `small` says that one thread serves it best, save
    for wide batches; `replay` says whether the same seed
    gives the same tokens ("exact replay") or only tokens of the same law ("same in distribution").

    Spend is charged here and in the sessions, so that no caller can forget it, and does not depend on how the rows
    were batched: tokens = each sequence's prompt (as a server would bill it, though equal prompts are read once)
    plus every token generated or scored, padding and parked rows never; model_calls = one per sequence;
    flops = flops_per_token for each token but the last generated one, which is never read.
    """

    name: str
    vocab_size: int
    eos_ids: tuple[int, ...] = ()
    context_length: int | None = None
    capabilities: frozenset[str] = frozenset()
    replay: str = EXACT_REPLAY
    samples_itself: bool = False
    flops_per_token: float = 0.0
    rows_at_once: int = 512
    small: bool = True

    @property
    def eos_id(self) -> int | None:
        """The first end-of-sequence id, or None where the model has none."""
        return self.eos_ids[0] if self.eos_ids else None

    def require(self, capability: str) -> None:
        """Nothing where the model has it; otherwise a refusal that names it and the alternative."""
        if capability not in self.capabilities:
            raise LacksCapability(f"{self.name} can't do {capability!r}; {_INSTEAD[capability]}.")

    def gains_from_threads(self, tokens: int) -> bool:
        """Whether a pass over `tokens` is work enough for more than one thread."""
        return not self.small or tokens * self.flops_per_token >= _WORTH_THREADS

    def room(self, tokens: int) -> int:
        """How many rows of `tokens` tokens each to decode together now."""
        return self.rows_at_once

    def shrink(self) -> None:
        """Halves `rows_at_once`, after a device ran out of memory."""
        self.rows_at_once = max(1, self.rows_at_once // 2)

    def encode(self, text: str) -> list[int]:
        raise LacksCapability(f"{self.name} has no tokenizer; pass token ids instead of text.")

    def decode(self, tokens: Sequence[int]) -> str:
        raise LacksCapability(f"{self.name} has no tokenizer; read its token ids as they are.")

    def vocabulary(self) -> Sequence[str] | None:
        """The token of each id, where the model has names for them."""
        return None

    def sample(self, prompts: Any, **settings: Any) -> Any:
        """What `sampling.sample` hands its arguments to where `samples_itself` is set: on a server, say."""
        raise NotImplementedError

    def start(self, prompts: Any) -> Session:
        """A session with one row for each prompt; the prompts must have one length."""
        raise NotImplementedError

    def next_log_probs(self, prefixes: np.ndarray) -> np.ndarray:
        """(n, vocab_size) float64 for prefixes (n, length) of one length; see `scoring.next_log_probs`."""
        return self.start(prefixes).log_probs.cpu().numpy()

    def token_log_probs(self, sequences: np.ndarray, first: int) -> np.ndarray:
        """(n, length - first) float64: log p of the tokens from position `first` on, each given all before it."""
        session = self.start(sequences[:, :first])
        rows, length = np.arange(len(sequences)), sequences.shape[1]
        out = np.zeros((len(sequences), length - first))
        for column in range(first, length):
            out[:, column - first] = session.log_probs.cpu().numpy()[rows, sequences[:, column]]
            if column + 1 < length:
                session.advance(sequences[:, column])
        charge(tokens=len(sequences))
        return out

    def hidden_states(self, prompts: Any, layer: int) -> np.ndarray:
        """(n, width) float64: the residual stream at the input of `layer` for the last token of each prompt."""
        self.require("hidden_states")
        raise NotImplementedError

    def steered(self, steering: Any) -> LanguageModel:
        """A view of this model that shares its weights and behaves as `steering` says."""
        self.require("steer")
        raise NotImplementedError

    def charge_read(self, tokens: int, calls: int = 0) -> None:
        """Charges the open meters for `tokens` read by `calls` sequences."""
        charge(tokens=tokens, model_calls=calls, flops=self.flops_per_token * tokens)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def token_lists(model: LanguageModel, argument: str, given: Any) -> list[np.ndarray]:
    """`given` (a text, a list of token ids, or a list of either) as a list of int64 arrays, checked."""
    if isinstance(given, str) or (len(given) and isinstance(given[0], (int, np.integer))):
        given = [given]
    sequences = [np.asarray(model.encode(g) if isinstance(g, str) else g, dtype=np.int64).reshape(-1) for g in given]
    if not sequences:
        raise refuse(argument, "empty", "hold at least one sequence", "pass a text or a list of token ids")
    for i, sequence in enumerate(sequences):
        check_tokens(model, f"{argument}[{i}]", sequence)
    return sequences


def prompt_lists(model: LanguageModel, given: Any, new_tokens: int = 0) -> list[np.ndarray]:
    """`token_lists` of prompts: none empty, and each with room for `new_tokens` more in the model's context."""
    prompts = token_lists(model, "prompt", given)
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            cure = "begin with at least one token, e.g. the model's start or end-of-sequence token"
            raise refuse(f"prompt[{i}]", "empty", "hold at least one token", cure)
        check_context(model, len(prompt), new_tokens)
    return prompts


def one_length(prompts: Any) -> np.ndarray:
    """Prompts for a `start` as int64 (n, length); refuses none at all, and prompts of several lengths."""
    lengths = {len(prompt) for prompt in prompts}
    if len(lengths) != 1:
        shown = f"of lengths {sorted(lengths)}" if lengths else "empty"
        raise refuse("prompts", shown, "have one length", "group them with base.by_length, or call sample")
    return np.asarray(prompts, dtype=np.int64).reshape(len(prompts), lengths.pop())


def check_tokens(model: LanguageModel, argument: str, tokens: np.ndarray) -> None:
    outside = (tokens < 0) | (tokens >= model.vocab_size)
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        must = f"be a token id from 0 to {model.vocab_size - 1}"
        raise refuse(f"{argument}[{at}]", int(tokens[at]), must, f"encode text with the tokenizer of {model.name}")


def check_context(model: LanguageModel, prompt_tokens: int, new_tokens: int) -> None:
    limit = model.context_length
    if limit is not None and prompt_tokens + new_tokens > limit:
        raise WorkbenchError(
            f"prompt of {prompt_tokens} tokens with max_new_tokens={new_tokens} must fit the context of {model.name}, "
            f"{limit} tokens; shorten the prompt or ask for at most {max(0, limit - prompt_tokens)} new tokens."
        )


def by_length(*columns: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Indices of the sequences that agree in length (in every column given), so that nothing is ever padded."""
    lengths = np.array([[len(sequence) for sequence in column] for column in columns])
    kinds, kind_of = np.unique(lengths, axis=1, return_inverse=True)
    for kind in range(kinds.shape[1]):
        yield np.flatnonzero(kind_of.reshape(-1) == kind)


@contextmanager
def on_one_thread(wanted: bool = True) -> Iterator[None]:
    """torch on one thread while the block runs. Small tensors gain nothing from more, and where the cores are shared
    the threads' waiting for each other can cost a hundred times the work."""
    import torch

    before = torch.get_num_threads()
    if not wanted or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def surviving_memory(models: Sequence[LanguageModel], indices: np.ndarray, work: Callable[[np.ndarray], None]) -> None:
    """Runs `work(block)` over `indices`, as many at a time as the models take.

    A block that there is no memory for is run again at half the size, and later blocks stay that small.
    """
    at = 0
    while at < len(indices):
        block = indices[at : at + min(model.rows_at_once for model in models)]
        with on_one_thread(not any(model.gains_from_threads(len(block)) for model in models)):
            done = fitted(lambda block=block: work(block))
        if done:
            at += len(block)
        else:
            make_smaller(models, len(block))


def fitted(work: Callable[[], Any]) -> bool:
    """Runs `work()`; False where the device's memory was not enough."""
    import torch

    try:
        work()
    except torch.OutOfMemoryError:
        return False
    except RuntimeError as error:
        # torch has no class of its own for the CPU's.
        if "can't allocate memory" not in str(error):
            raise
        return False
    except MemoryError:
        return False
    return True


def make_smaller(models: Sequence[LanguageModel], rows: int) -> None:
    """Halves the models' batches after `rows` were too many, and says so once for each model.

    To be called with the failed call's frames gone: only then can its memory be given back.
    """
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if rows <= 1:
        raise DoesNotFit(
            f"{models[0].name} ran out of memory on a single sequence; ask for fewer tokens, "
            "load it with a smaller dtype, or use a larger device."
        )
    for model in models:
        while model.rows_at_once >= rows:
            model.shrink()
        if not model.__dict__.get("_said_smaller"):
            model.__dict__["_said_smaller"] = True
            warnings.warn(
                f"{model.name} ran out of memory at {rows} rows; it goes on with {model.rows_at_once} at a time.",
                RuntimeWarning,
                stacklevel=2,
            )
