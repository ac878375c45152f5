"""A model behind an OpenAI-compatible server (vLLM, llama.cpp, `transformers serve`, a vendor's), to be sampled from afar.

    model = load("openai:http://127.0.0.1:8000/v1#model-name")
    print(model.describe())
    samples = workbench.models.sample(model, "Once upon", n=100, max_new_tokens=20, stream=Stream.of(0, "afar"))

Does: samples by chat or completions, many requests at once; scores where the server echoes log-probs; bounds the next
token's law from the likeliest tokens. Each answer is in the transcript before it is used.
Does not: give full next-token distributions or hidden states, steer or train: steer locally, sample remotely.

What is paid for, and when it is counted
- Each answer is charged to the open meters as the server counted it (its `usage`), one model call each. An answer that
  comes from the transcript is charged as when it was paid for, so that a run which was killed and is taken up again
  stops at the same sample and its meter says what the server says: the spend of both halves.
- A request whose answer got lost may have cost its tokens all the same. Every attempt carries an Idempotency-Key; a
  server that honours it answers the repeat from store, nothing is paid twice, and the meter equals the server's count.
  From other servers the lost work is real spend that nobody told us about: it lies between 0 and what `lost`
  says, so the server's count lies between the meter and the meter plus `lost.tokens_at_most`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import LacksCapability, WorkbenchError, refuse, require_integer, require_number
from workbench.models.answers import TextSamples, TopLogProbs, read_choice, text_samples, usage
from workbench.models.base import EXACT_REPLAY, SAME_IN_DISTRIBUTION, LanguageModel, check_context, check_tokens
from workbench.models.client import Client, is_chat, is_ids
from workbench.models.keys import api_key, checked_url, scrub
from workbench.models.probe import AFTER_TEMPERATURE, RAW, Offers, asking_log_probs, probe
from workbench.models.transcript import Lost, Transcript, default_path
from workbench.models.transport import Call, Patience
from workbench.streams import Stream

_INSTEAD = {
    "log_probs": "it gives no log-probs of a prompt; use an estimator that needs sampled answers only, or load the "
    "model locally with 'hf:<folder>'",
    "next_log_probs": "it gives the likeliest tokens at most; call model.next_log_probs(prefixes) for those and the "
    "missing mass, or load the model locally with 'hf:<folder>'",
    "hidden_states": "load the model locally with 'hf:<id or folder>'",
    "steer": "steer locally, sample remotely: load the model with 'hf:<id or folder>' to steer it",
    "train": "train locally with 'hf:<id or folder>', and serve the result",
}


def connect(
    spec: str,
    *,
    transcript: str | os.PathLike[str] | None = None,
    replay: bool = False,
    api: str = "auto",
    tokenizer: str | os.PathLike[str] | None = None,
    prices: Mapping[str, float] | None = None,
    key_variable: str | None = None,
    extra: Mapping[str, Any] | None = None,
    probe_prompt: str = "Hello",
    concurrency: int = 16,
    timeout: float = 120.0,
    max_tries: int = 8,
    first_wait: float = 0.5,
    longest_wait: float = 30.0,
) -> EndpointModel:
    """The model of "openai:<base url>#<model>", probed; or of "replay:<transcript>", from that file alone.

    transcript: the file to keep requests and answers in (default: runs/transcripts/<date-time>-<hash>.jsonl); one
    that exists already answers what it holds, and only the rest is asked and paid for. replay: no network at all; what
    the transcript lacks is refused. api: "auto" (completions where offered, else chat), "completions" or "chat".
    tokenizer: "hf:<folder>", "embedded/<name>" or a folder with the model's tokenizer.json, for token ids.
    prices: {"input": USD per million tokens, "output": ...}. key_variable: the environment variable with the key
    (default: see `keys.api_key`). extra: fields added to every request, e.g. {"top_k": 20}; None takes a field out.
    probe_prompt: a text that the model can read. concurrency, timeout, max_tries, first_wait, longest_wait: see
    `transport.Patience`.
    Raises WorkbenchError: no such server, a page instead of JSON, a missing key, a model that isn't served.
    """
    patience = Patience(concurrency, timeout, max_tries, first_wait, longest_wait)
    if not isinstance(probe_prompt, str) or not probe_prompt:
        raise refuse("probe_prompt", probe_prompt, "be a text that isn't empty", "pass words that the model can read")
    options = {"api": api, "extra": dict(extra or {}), "probe_prompt": probe_prompt}
    if spec.startswith("replay:"):
        transcript, replay = spec.removeprefix("replay:"), True
        if not transcript:
            raise refuse("spec", spec, "name a transcript", "pass e.g. 'replay:runs/transcripts/<name>.jsonl'")
        identity = {}
    else:
        url, name = _parts(spec)
        identity = {"endpoint": url, "model": name}
        if replay and transcript is None:
            raise WorkbenchError("replay=True needs transcript='<path>'; pass the file that an earlier run kept.")
    checked = None if prices is None else _checked_prices(prices)
    tokens, eos_ids = (None, ()) if tokenizer is None else _tokenizer(tokenizer)
    if replay:
        kept = Transcript(transcript or "", expected=identity)
        options = kept.head["options"]
    else:
        shown = scrub(options, api_key(identity["endpoint"], key_variable))
        path = transcript or default_path(identity["endpoint"] + identity["model"])
        kept = Transcript(path, expected=identity, begin={"options": shown})
    client = Client(
        base_url=kept.head["endpoint"],
        model=kept.head["model"],
        transcript=kept,
        patience=patience,
        offline=replay,
        extra=options["extra"],
        prices=checked,
        key_variable=key_variable,
        count=None if tokens is None else partial(_count, tokens, spec),
    )
    return EndpointModel(
        client, api=options["api"], probe_prompt=options["probe_prompt"], tokenizer=tokens, eos_ids=eos_ids
    )


def _parts(spec: str) -> tuple[str, str]:
    url, _, name = spec.removeprefix("openai:").partition("#")
    if not url:
        must = "name a URL and a model"
        raise refuse("spec", spec, must, "pass e.g. 'openai:http://127.0.0.1:8000/v1#model-name'")
    url = checked_url(url)
    if not name:
        cure = f"write 'openai:{url}#<model>'; GET {url}/models lists what the server has"
        raise refuse("spec", spec, "name the model after '#'", cure)
    return url, name


class EndpointModel(LanguageModel):
    """See the head of this file. `offers` says what the probe found, `lost` what may have been paid for in vain,
    `transcript.path` where everything is kept. Models of one process that use one transcript should share this
    object."""

    samples_itself = True
    small = True

    def __init__(
        self, client: Client, *, api: str, probe_prompt: str, tokenizer: Any, eos_ids: tuple[int, ...]
    ) -> None:
        self.client, self.name, self._tokenizer, self.eos_ids = client, client.name, tokenizer, eos_ids
        self.replay = EXACT_REPLAY if client.offline else SAME_IN_DISTRIBUTION
        self.offers: Offers = probe(client, api, probe_prompt)
        self.context_length = self.offers.context_length
        echoes = self.offers.echo and (self.offers.prompt_ids or tokenizer is not None)
        self.capabilities = frozenset({"sample", "log_probs"} if echoes else {"sample"})

    @property
    def transcript(self) -> Transcript:
        return self.client.transcript

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return self._own_tokenizer.get_vocab_size()

    @property
    def lost(self) -> Lost:
        """What may have been paid for without an answer, over the whole transcript; see the head of this file."""
        return self.transcript.lost(bool(self.offers.idempotent))

    def describe(self) -> str:
        """What the endpoint can do, where the transcript is, and what was lost, for people."""
        lost, source = self.lost, "the transcript alone, no network" if self.client.offline else "the server"
        rows = [("endpoint", self.name), ("answers from", source), *self.offers.lines()]
        rows += [("transcript", str(self.transcript.path)), ("replay", self.replay)]
        vain = f"{lost.requests} requests, at most {lost.tokens_at_most:,} tokens" if lost.requests else "none"
        rows.append(("answers that got lost and may have been paid for", vain))
        width = max(len(what) for what, _ in rows)
        return "\n".join(f"{what:<{width}}  {found}" for what, found in rows)

    def require(self, capability: str) -> None:
        if capability not in self.capabilities:
            raise LacksCapability(f"{self.name} can't do {capability!r}; {_INSTEAD[capability]}.")

    def start(self, prompts: Any) -> Any:
        raise LacksCapability(
            f"{self.name} can't be decoded token by token from here, so it has no full distributions and no importance "
            "weights; call workbench.models.sample, or load the model locally with 'hf:<folder>'."
        )

    def encode(self, text: str) -> list[int]:
        return _encode(self._own_tokenizer, text, self.name)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._own_tokenizer.decode([int(token) for token in tokens if token >= 0])

    def sample(
        self,
        prompts: Any,
        *,
        n: int = 1,
        max_new_tokens: int,
        stream: Stream,
        temperature: float = 1.0,
        greedy: bool = False,
        top_p: float | None = None,
        stop_sequences: Iterable[Any] = (),
        **others: Any,
    ) -> TextSamples:
        """n completions of each prompt, one request each; row r is completion r % n of prompt r // n.

        prompts: a text, token ids, a chat (a list of {"role", "content"}), or a list of any one of these. Row r is
        sample stream.first + r: its request carries the seed (key of the stream + sample) mod 2^53, so that a server
        which honours seeds repeats it, and no two samples of a stream share one. stop_sequences: texts that end an
        answer; whether the server leaves them in, as the local sampler does, `offers.stop` says.
        log_probs are there where temperature 1 makes the server's figures those of the law that was sampled from (as
        far as it says; a filter of its own would not show); otherwise they are refused when asked for.
        Raises WorkbenchError: what `sampling.sample` refuses; what only a local model can do (`stop`, `stop_ids`,
        `record`, `top_k`, logits processors); a request that is refused, or that all tries left unanswered (what was
        answered is kept).
        """
        n = require_integer("n", n, low=1, cure="pass e.g. n=100")
        steps = require_integer("max_new_tokens", max_new_tokens, low=1, cure="ask for at least one token")
        if temperature == 0:
            raise refuse("temperature", temperature, "be greater than 0", "pass greedy=True for the likeliest token")
        temperature = require_number("temperature", temperature, low=0, open_low=True, cure="pass e.g. temperature=1.0")
        if top_p is not None:
            require_number("top_p", top_p, low=0, high=1, open_low=True, cure="pass e.g. top_p=0.9")
        stops = [stop_sequences] if isinstance(stop_sequences, str) else list(stop_sequences)
        if not all(isinstance(text, str) and text for text in stops):
            cure = "pass e.g. stop_sequences=['.']"
            raise refuse("stop_sequences", stops, f"be texts that aren't empty for {self.name}", cure)
        self._refuse_local(others)
        fields: dict[str, Any] = {"max_tokens": steps, "temperature": 0 if greedy else temperature}
        fields |= {} if top_p in (None, 1) else {"top_p": top_p}
        fields |= {"stop": stops} if stops else {}
        fields |= asking_log_probs(self.offers.api, 1) if self.offers.log_probs else {}
        if self.offers.api == "chat":
            fields.pop("top_logprobs", None)
        given = self.prompts(prompts, steps)
        calls = [
            self._call_of(given[row // n], stream, stream.first + row, fields, seeded=not greedy)
            for row in range(n * len(given))
        ]
        bodies = [reply.body for reply in self.client.replies(calls, self.offers.models)]
        no_law = self._law(temperature, greedy, top_p)
        return text_samples(
            self.name, bodies, steps, stopped=bool(stops), no_law=no_law, encode=self._ids, eos_id=self.eos_id
        )

    def next_log_probs(self, prefixes: Any, k: int | None = None) -> list[TopLogProbs]:  # type: ignore[override]
        """For each prefix (as in `sample`) the k likeliest next tokens and the missing mass, at temperature 1.

        k: by default as many as the server gave when probed.
        """
        most = self.offers.top_log_probs
        if not most:
            raise LacksCapability(f"{self.name} gives no log-probs of likely tokens; {_INSTEAD['hidden_states']}.")
        wanted = require_integer("k", k or most, low=1, high=most, cure=f"the server gives up to {most}")
        fields = {"max_tokens": 1, "temperature": 1, **asking_log_probs(self.offers.api, wanted)}
        given = self.prompts(prefixes, 1)
        calls = [self.client.call(prompt, ("next", 0), fields, self.offers.api) for prompt in given]
        tops = [read_choice(reply.body).top for reply in self.client.replies(calls, self.offers.models)]
        return [TopLogProbs.of(top[0] if top else {}, wanted) for top in tops]

    def token_log_probs(self, sequences: np.ndarray, first: int) -> np.ndarray:
        self.require("log_probs")
        fields = {"max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        given = self.prompts([list(map(int, sequence)) for sequence in sequences], 0)
        calls = [self.client.call(prompt, ("score", 0), fields, self.offers.api) for prompt in given]
        out = np.zeros((len(sequences), sequences.shape[1] - first))
        for row, reply in enumerate(self.client.replies(calls, self.offers.models)):
            counted, echoed = usage(reply.body), read_choice(reply.body).log_probs or []
            values = echoed[: counted[0]] if counted else echoed[:-1]
            if len(values) != sequences.shape[1] or None in values[first:]:
                raise LacksCapability(
                    f"{self.name} read sequence {row} of {sequences.shape[1]} tokens as {len(values)}, so its log-probs "
                    "can't be matched; check that tokenizer= is the model's, or load the model locally."
                )
            out[row] = values[first:]
        return out

    def prompts(self, given: Any, new_tokens: int) -> list[Any]:
        """`given` as a list of what can be sent: texts, token ids or chats."""
        if isinstance(given, str) or is_ids(given) or is_chat(given):
            given = [given]
        if not len(given):
            raise refuse("prompts", "empty", "hold at least one prompt", "pass a text, token ids or a chat")
        return [self._prompt(f"prompt[{at}]", prompt, new_tokens) for at, prompt in enumerate(given)]

    def _prompt(self, argument: str, prompt: Any, new_tokens: int) -> Any:
        if isinstance(prompt, str) or is_chat(prompt):
            if not prompt:
                raise refuse(argument, "empty", "hold at least one token", "begin with some text")
            if is_chat(prompt) and self.offers.api != "chat":
                raise refuse(
                    argument, "a chat", "be a text or token ids here", "pass api='chat' where the server has it"
                )
            try:
                json.dumps(prompt, ensure_ascii=False).encode()
            except (TypeError, ValueError):
                raise refuse(argument, ascii(prompt), "be plain JSON in whole characters", "clean the text") from None
            return prompt
        if not is_ids(prompt):
            raise refuse(argument, prompt, "be a text, token ids or a chat", "pass e.g. 'Once upon a time'")
        ids = [int(token) for token in prompt]
        if self._tokenizer is not None:
            check_tokens(self, argument, np.asarray(ids))
        check_context(self, len(ids), new_tokens)
        if self.offers.prompt_ids:
            return ids
        if self._tokenizer is None:
            raise LacksCapability(f"{self.name} takes no token ids; pass a text, or its tokenizer='hf:<folder>'.")
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        if self.encode(text) != ids:
            raise LacksCapability(
                f"{argument} as text ({text[:60]!r}) reads as other tokens, and {self.name} takes no token ids; pass a text."
            )
        return text

    def _call_of(self, prompt: Any, stream: Stream, sample: int, fields: dict[str, Any], seeded: bool) -> Call:
        high, low = stream.key
        # Whole numbers up to 2^53 survive JSON readers that know doubles only.
        seed = ((high << 32 | low) + sample) % 2**53
        told = {"seed": seed} if seeded and self.offers.seed != "refused" else {}
        return self.client.call(prompt, (high, low, sample), {**fields, **told}, self.offers.api)

    def _law(self, temperature: float, greedy: bool, top_p: float | None) -> str:
        """Why log-probs are not those of the law that was sampled from; "" where they are."""
        if not self.offers.log_probs:
            return f"{self.name} gives no log-probs; load the model locally with 'hf:<folder>'."
        if self.client.extra:
            return f"{self.name} was asked with extra={self.client.extra}, and what that does to its log-probs isn't known; leave it out."
        law, wanted = self.offers.law, RAW if greedy else AFTER_TEMPERATURE
        if top_p not in (None, 1) or ((greedy or temperature != 1) and law != wanted):
            how = "greedy" if greedy else f"temperature={temperature:g}, top_p={top_p or 1:g}"
            return (
                f"{self.name} gives log-probs {law or 'of an unknown law'}, not those of what was sampled ({how}); "
                "sample at temperature=1, top_p=1 where log-probs are needed."
            )
        return ""

    @property
    def _ids(self) -> Callable[[str], list[int]] | None:
        """Text to token ids without the marks that begin a prompt; None where there is no tokenizer."""
        tokenizer = self._tokenizer
        return None if tokenizer is None else lambda text: tokenizer.encode(text, add_special_tokens=False).ids

    def _refuse_local(self, others: dict[str, Any]) -> None:
        for name, value in others.items():
            given = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
            if given not in (None, False, []):
                cure = (
                    "pass stop_sequences=['<text>'] for stops, and in extra={...} of load what the server understands"
                )
                raise refuse(name, given, f"be left out for {self.name}", cure)

    @property
    def _own_tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise LacksCapability(
                f"{self.name} has no tokenizer here; pass tokenizer='hf:<folder>' to load, or use texts."
            )
        return self._tokenizer


def _checked_prices(prices: Mapping[str, float]) -> dict[str, float]:
    cure = "pass USD per million tokens, e.g. prices={'input': 0.15, 'output': 0.6}"
    if not isinstance(prices, Mapping) or set(prices) != {"input", "output"}:
        raise refuse("prices", prices, "have exactly the entries 'input' and 'output'", cure)
    return {name: require_number(f"prices[{name!r}]", price, low=0, cure=cure) for name, price in prices.items()}


def _encode(tokenizer: Any, text: str, name: str) -> list[int]:
    try:
        return tokenizer.encode(text).ids
    except Exception:  # tokenizers raises nothing narrower for a word it does not know
        must = f"be made of tokens that the tokenizer of {name} knows"
        raise refuse("text", text, must, "check that tokenizer= is the model's") from None


def _count(tokenizer: Any, name: str, text: str) -> int:
    return len(_encode(tokenizer, text, name))


def _tokenizer(given: str | os.PathLike[str]) -> tuple[Any, tuple[int, ...]]:
    """The tokenizer in a folder, and the ids that end a text according to the config beside it."""
    from tokenizers import Tokenizer

    from workbench.models.loading import folder_of

    text = str(given)
    folder = folder_of(text) if text.startswith(("embedded/", "hf:")) else Path(given)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise refuse("tokenizer", text, "be a folder with a tokenizer.json", "pass 'hf:<folder>' or 'embedded/<name>'")
    ends: Any = None
    for name in ("generation_config.json", "config.json"):
        if ends is None and (folder / name).is_file():
            ends = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
    return Tokenizer.from_file(str(path)), () if ends is None else tuple(ends) if isinstance(ends, list) else (
        int(ends),
    )
