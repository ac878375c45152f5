"""What an OpenAI-compatible server can do, found out by asking it once.

Does: about twenty small requests, counted and kept in the transcript like any other, so that a replay or a resumed run
asks nothing twice.
Does not: trust what a server accepts without a word; where it can, it looks whether an option had its effect.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import LacksCapability, require_choice
from workbench.models.answers import Choice, read_choice, usage
from workbench.models.transport import Call, Fault, Reply

if TYPE_CHECKING:
    from workbench.models.client import Client

_LENGTH = 8
_SEEDS = (11, 12, 13, 14)
_MOST_TOP = (20, 5, 1)
RAW, AFTER_TEMPERATURE = "before temperature", "after temperature"


@dataclass(frozen=True)
class Offers:
    """What the probe found. None: it could not tell.

    api: "completions" or "chat", the one in use; models: those listed by the server; usage: it counts tokens;
    log_probs: those of generated tokens; top_log_probs: the largest k that was answered (0: none); law: whether
    log-probs are "before temperature" or "after temperature"; echo: log-probs of the prompt; prompt_ids: takes token
    ids; n: several choices in one request; stop: a string
    that ends an answer is "left out" of it, "kept" in it, "ignored" or "refused"; seed: "honoured" (same seed, same answer;
    others differ), "ignored", "refused"; varies: answers at temperature 1 are not all the greedy one;
    idempotent: a repeated Idempotency-Key is answered from store.
    """

    api: str
    completions: bool
    chat: bool
    models: tuple[str, ...] | None
    context_length: int | None
    usage: bool
    log_probs: bool
    top_log_probs: int
    law: str | None
    echo: bool | None
    prompt_ids: bool | None
    n: bool | None
    stop: str | None
    seed: str | None
    varies: bool | None
    idempotent: bool | None

    def lines(self) -> list[tuple[str, str]]:
        """(what, found) for people."""
        said = {True: "yes", False: "no", None: "could not tell"}
        top = f"top {self.top_log_probs}" if self.top_log_probs else "of the generated token only"
        listed = "not listed" if self.models is None else ", ".join(self.models[:8]) or "none listed"
        return [
            ("models", listed + (", ..." if self.models and len(self.models) > 8 else "")),
            ("context", "not told" if self.context_length is None else f"{self.context_length:,} tokens"),
            ("completions", said[self.completions]),
            ("chat", said[self.chat]),
            ("in use", self.api),
            ("usage", said[self.usage]),
            (
                "log-probs",
                f"{top}, {self.law or 'whether before or after temperature: could not tell'}"
                if self.log_probs
                else "no",
            ),
            ("log-probs of the prompt", said[self.echo]),
            ("token ids as prompt", said[self.prompt_ids]),
            ("several choices (n)", said[self.n]),
            ("stop strings", self.stop or "could not tell"),
            ("seed", self.seed or "could not tell"),
            (
                "answers vary at temperature 1",
                "no, all are the greedy one" if self.varies is False else said[self.varies],
            ),
            ("repeated Idempotency-Key answered from store", said[self.idempotent]),
        ]


def probe(client: Client, api: str, prompt: str) -> Offers:
    """Asks the server what it can do. api: "auto" (completions where offered, else chat) or one of the two."""
    require_choice("api", api, ("auto", "completions", "chat"))
    listed, context = _listed(client)
    greedily = {"max_tokens": _LENGTH, "temperature": 0}
    basics = [client.call(prompt, ("probe", 0), greedily, kind) for kind in ("completions", "chat")]
    first = _asked(client, basics)
    offered = {kind: isinstance(outcome, Reply) for kind, outcome in zip(("completions", "chat"), first, strict=True)}
    wanted = api if api != "auto" else "completions" if offered["completions"] or not offered["chat"] else "chat"
    outcome = first[("completions", "chat").index(wanted)]
    if isinstance(outcome, Fault):
        other = "chat" if wanted == "completions" else "completions"
        # Of two refusals, "no such path" says less than whatever else the other path answered.
        if api == "auto" and outcome.status in (404, 405):
            outcome = next((o for o in first if isinstance(o, Fault) and o.status not in (404, 405)), outcome)
        if api != "auto" and offered[other]:
            raise LacksCapability(f"{client.name} does not answer {wanted} ({outcome.what}); pass api={other!r}.")
        raise client.error("a probe", outcome, listed)
    offers = _examined(client, prompt, wanted, offered, outcome, basics, listed, context)
    client.file_refusals()
    return offers


def _examined(
    client: Client,
    prompt: str,
    api: str,
    offered: dict[str, bool],
    greedy: Reply,
    basics: list[Call],
    listed: tuple[str, ...] | None,
    context: int | None,
) -> Offers:
    shown = read_choice(greedy.body)
    plain: dict[str, Any] = {"max_tokens": _LENGTH, "temperature": 1}
    one: dict[str, Any] = {"max_tokens": 1, "temperature": 1}
    ask: dict[str, Call] = {}

    def add(name: str, fields: dict[str, Any], *, text: Any = prompt, salt: int = 0) -> None:
        ask[name] = client.call(text, ("probe", salt), fields, api)

    # Each seed twice: one pair alone agrees by chance too often.
    for at, seed in enumerate(np.repeat(_SEEDS, 2).tolist()):
        add(f"seed{at}", plain | {"seed": seed}, salt=at)
    add("n", one | {"n": 2})
    for k in _MOST_TOP:
        add(f"top{k}", one | asking_log_probs(api, k))
    add("halved", one | {"temperature": 0.5} | asking_log_probs(api, 5))
    if api == "completions":
        add("ids", one, text=[1, 1, 1])
        add("echo", one | {"echo": True, "logprobs": 1})
    words = shown.text.split()
    stop = words[len(words) // 2] if words else ""
    if stop:
        add("stop", plain | {"temperature": 0, "stop": [stop]})
    got = dict(zip(ask, _asked(client, list(ask.values())), strict=True))
    choices = {name: read_choice(reply.body) for name, reply in got.items() if isinstance(reply, Reply)}
    tops = {k: choices[f"top{k}"].top[0] for k in _MOST_TOP if f"top{k}" in choices and choices[f"top{k}"].top}
    most = max((k for k, top in tops.items() if top), default=0)
    at_one = choices.get("top1")
    offers = Offers(
        api=api,
        completions=offered["completions"],
        chat=offered["chat"],
        models=listed,
        context_length=context,
        usage=usage(greedy.body) is not None,
        log_probs=at_one is not None and at_one.log_probs is not None,
        # A server may give fewer than it was asked for without a word.
        top_log_probs=min(most, len(tops[most])) if most else 0,
        law=_law(tops.get(5) or tops.get(20), choices.get("halved")),
        echo=_echo(got, choices),
        prompt_ids=_takes_ids(got),
        n=_told(got["n"]) and len(_body(got["n"]).get("choices", [])) == 2,
        stop=_stop(shown.text, stop, got, choices),
        seed=_seed(got, choices),
        varies=any(choices[name].text != shown.text for name in choices if name.startswith("seed")) or None,
        idempotent=_idempotent(client, basics[("completions", "chat").index(api)], greedy, list(got.values())),
    )
    drawn = sum(name.startswith("seed") for name in choices)
    if not offers.varies and drawn:
        offers = replace(offers, varies=False)
        warnings.warn(
            f"All {drawn} probe answers of {client.name} at temperature 1 are its greedy one; either it is very sure of "
            "it, or the server ignores the temperature; try another probe_prompt=, or pass what it needs in extra=.",
            stacklevel=6,  # the caller of load
        )
    return offers


def asking_log_probs(api: str, k: int) -> dict[str, Any]:
    """The fields that ask for log-probs of the generated tokens and of the k likeliest at each position."""
    return {"logprobs": k} if api == "completions" else {"logprobs": True, "top_logprobs": k}


def _asked(client: Client, calls: list[Call]) -> list[Reply | Fault]:
    patience = replace(client.patience, longest_wait=min(1.0, client.patience.longest_wait))
    return client.outcomes(calls, patience=patience, go_on=True)


def _listed(client: Client) -> tuple[tuple[str, ...] | None, int | None]:
    """The server's models, and the context of ours; the first contact, so that a server that isn't there is told soon."""
    call = Call(client.key("models"), f"{client.base_url}/models", None)
    patience = replace(client.patience, max_tries=min(3, client.patience.max_tries), longest_wait=1.0)
    [outcome] = client.outcomes([call], patience=patience, go_on=True, completion=False)
    if isinstance(outcome, Fault):
        unreachable = outcome.unpaid and outcome.status in (0, 200) and not client.offline
        if unreachable or outcome.status in (401, 403):
            raise client.error("the list of its models", outcome, None)
        return None, None
    entries = [entry for entry in outcome.body.get("data") or [] if isinstance(entry, dict) and "id" in entry]
    ours = next((entry for entry in entries if entry["id"] == client.model), {})
    length = ours.get("max_model_len") or ours.get("context_length")
    return tuple(str(entry["id"]) for entry in entries), length if isinstance(length, int) else None


def _body(outcome: Reply | Fault) -> dict[str, Any]:
    return outcome.body if isinstance(outcome, Reply) else {}


def _told(outcome: Reply | Fault) -> bool | None:
    """True for a reply, False for a refusal, None where it was not answered for another reason."""
    return True if isinstance(outcome, Reply) else None if outcome.again or outcome.status == 0 else False


def _law(at_one: dict[str, float] | None, halved: Choice | None) -> str | None:
    """Whether log-probs at temperature 1/2 are those at temperature 1 for the tokens in both."""
    if not at_one or halved is None or not halved.top or not halved.top[0]:
        return None
    both = at_one.keys() & halved.top[0].keys()
    if not any(at_one[token] < -0.01 for token in both):
        return None
    return (
        RAW
        if all(abs(at_one[token] - halved.top[0][token]) < 0.02 * (1 - at_one[token]) for token in both)
        else AFTER_TEMPERATURE
    )


def _stop(whole: str, stop: str, got: dict[str, Reply | Fault], choices: dict[str, Choice]) -> str | None:
    if "stop" not in choices:
        return "refused" if "stop" in got and _told(got["stop"]) is False else None
    text, before = choices["stop"].text, whole[: whole.find(stop)]
    if text.rstrip() == before.rstrip():
        return "left out"
    return "kept" if text.rstrip() == before + stop and text.rstrip() != whole.rstrip() else "ignored"


def _echo(got: dict[str, Reply | Fault], choices: dict[str, Choice]) -> bool | None:
    if "echo" not in got:
        return False
    if "echo" not in choices:
        return _told(got["echo"])
    echoed, counted = choices["echo"], usage(_body(got["echo"]))
    return bool(echoed.log_probs) and counted is not None and len(echoed.log_probs or []) == sum(counted)


def _takes_ids(got: dict[str, Reply | Fault]) -> bool | None:
    if "ids" not in got:
        return False
    counted = usage(_body(got["ids"]))
    return _told(got["ids"]) and (None if counted is None else counted[0] == 3)


def _seed(got: dict[str, Reply | Fault], choices: dict[str, Choice]) -> str | None:
    names = [f"seed{at}" for at in range(2 * len(_SEEDS))]
    if any(_told(got[name]) is False for name in names):
        return "refused"
    texts = [choices[name].text for name in names if name in choices]
    if len(texts) < len(names):
        return None
    if texts[::2] != texts[1::2]:
        return "ignored"
    return "honoured" if len(set(texts)) > 1 else None


def _idempotent(client: Client, first: Call, reply: Reply, others: list[Reply | Fault]) -> bool | None:
    """The first question again with its own Idempotency-Key: an answer with the same id came from store and was free.
    None where other questions' answers have that id too, or there is none."""
    again = replace(first, key=client.key("probe", "idempotent"), idempotency=first.key)
    [outcome] = client.outcomes([again], go_on=True, charged=False)
    if not isinstance(outcome, Reply):
        return None
    name = reply.body.get("id")
    telling = bool(name) and all(_body(other).get("id") != name for other in others)
    if telling and outcome.body.get("id") == name:
        return True
    client.charge(again, outcome)
    return False if telling else None
