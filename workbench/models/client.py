"""The one that asks an endpoint, pays for it and files what it answers.

Does: makes requests, takes answers from the transcript where it has them and from the server where it hasn't, charges
the open meters for both alike, and turns what went wrong into one sentence.
Does not: know what a language model is; see `endpoint`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from workbench.budget import charge
from workbench.errors import LacksCapability, WorkbenchError
from workbench.models.answers import read_choice, usage, wrong_with
from workbench.models.keys import VARIABLES, api_key, scrub
from workbench.models.transcript import Transcript, request_key
from workbench.models.transport import Call, Fault, Patience, Reply, exchange

_PATHS = {"completions": "completions", "chat": "chat/completions"}


@dataclass
class Client:
    """offline: the transcript alone answers. extra: fields of every request (None takes one out). prices: USD per
    million tokens, "input" and "output". count: tokens of a text by a local tokenizer, where there is one."""

    base_url: str
    model: str
    transcript: Transcript
    patience: Patience
    offline: bool
    extra: Mapping[str, Any]
    prices: Mapping[str, float] | None
    key_variable: str | None
    count: Callable[[str], int] | None
    refusals: list[tuple[Call, Fault]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"openai:{self.base_url}#{self.model}"

    def key(self, *parts: Any) -> str:
        """The name in the transcript of something asked of this endpoint and model."""
        return request_key(self.base_url, self.model, *parts)

    def call(self, prompt: Any, salt: Sequence[Any], fields: Mapping[str, Any], api: str) -> Call:
        """A request to complete `prompt` (a text, token ids or a chat); `salt` tells requests apart that ask the same."""
        chat = prompt if is_chat(prompt) else [{"role": "user", "content": prompt}]
        asked = {"prompt": prompt} if api == "completions" else {"messages": chat}
        body = {"model": self.model, **asked, **fields, **self.extra}
        body = {name: value for name, value in body.items() if value is not None}
        url = f"{self.base_url}/{_PATHS[api]}"
        # A token takes at least one byte of the request, so a prompt has no more than this.
        size = len(prompt) if is_ids(prompt) else len(json.dumps(asked, ensure_ascii=False).encode())
        return Call(self.key(url, body, list(salt)), url, body, at_most=size + _longest(body))

    def outcomes(
        self,
        calls: Sequence[Call],
        *,
        patience: Patience | None = None,
        go_on: bool = False,
        charged: bool = True,
        completion: bool = True,
    ) -> list[Reply | Fault]:
        """The outcome of each call, from the transcript or the server, charged to the open meters.

        go_on: a fault is an answer too (`file_refusals` keeps it); without it the first one stops the rest, and stands
        for every call that was not answered. completion: the replies are completions, and cost something.
        """
        kept = self.transcript.answers
        found = {call.key: kept[call.key] for call in calls if call.key in kept}
        for call in calls:
            reply = found.get(call.key)
            if charged and completion and isinstance(reply, Reply):
                self.charge(call, reply)
        missing = {call.key: call for call in calls if call.key not in found}
        if self.offline:
            nothing = Fault("it is not in the transcript", again=False, unpaid=True)
            return [found.get(call.key, nothing) for call in calls]
        failed: list[Fault] = []

        def done(call: Call, outcome: Reply | Fault) -> None:
            found[call.key] = outcome
            if isinstance(outcome, Fault):
                failed.append(outcome)
                if go_on:
                    self.refusals.append((call, outcome))
                return
            counted = usage(outcome.body)
            at_most = counted[0] + _longest(call.body or {}) if counted else call.at_most
            key = api_key(self.base_url, self.key_variable)
            self.transcript.answered(replace(call, body=scrub(call.body, key)), outcome, at_most)
            if charged and completion:
                self.charge(call, outcome)

        try:
            exchange(
                missing.values(),
                done,
                self.transcript,
                patience or self.patience,
                key_variable=self.key_variable,
                check=wrong_with if completion else lambda body: "",
                stop_at_fault=not go_on,
            )
        finally:
            self.transcript.sync()
        if failed and not go_on:
            # The others gave up because of this one.
            found |= {key: failed[0] for key in missing if not isinstance(found.get(key), Reply)}
        return [found[call.key] for call in calls]

    def replies(self, calls: Sequence[Call], listed: tuple[str, ...] | None = None) -> list[Reply]:
        """The reply to each call; where one was refused, or never answered, an error says so in one sentence."""
        outcomes = self.outcomes(calls)
        replies = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
        for row, outcome in enumerate(outcomes):
            if isinstance(outcome, Fault):
                done = f"a request ({len(replies)} of {len(calls)} done)"
                raise self.error(f"request {row} of {len(calls)}" if self.offline else done, outcome, listed)
        return replies

    def file_refusals(self) -> None:
        """Keeps in the transcript what the server refused, once it is known to be there and to have the model."""
        for call, fault in self.refusals:
            if fault.status:
                self.transcript.refused(call, fault)
        self.refusals.clear()

    def charge(self, call: Call, reply: Reply) -> None:
        """Charges the open meters for one answer."""
        read, written = usage(reply.body) or self._counted(call, reply)
        usd = 0.0 if self.prices is None else (read * self.prices["input"] + written * self.prices["output"]) / 1e6
        charge(tokens=read + written, model_calls=1, usd=usd)

    def error(self, asked: str, fault: Fault, listed: tuple[str, ...] | None) -> WorkbenchError:
        """One sentence: what was asked, how often, what came, and the cure. listed: the models that are served."""
        tries = f" after {fault.tries} tries" if fault.tries > 1 else ""
        return WorkbenchError(f"{self.name} did not answer {asked}{tries} ({fault.what}); {self._cure(fault, listed)}.")

    def _cure(self, fault: Fault, listed: tuple[str, ...] | None) -> str:
        path = self.transcript.path
        kept = f"what was answered is kept, so pass transcript={str(path)!r} to pay for the rest only"
        if self.offline:
            return f"{path} holds no answer to this very request; ask as the earlier run did, or connect"
        if fault.status in (401, 403):
            variable = self.key_variable or " or ".join(VARIABLES)
            return f"put the right key into the environment variable {variable}, or name yours with key_variable="
        if fault.status == 404:
            told = (
                f"it serves {', '.join(listed[:8])}" if listed else f"GET {self.base_url}/models lists what it serves"
            )
            return f"check the model's name and the URL, which usually ends in /v1; {told}"
        if 300 <= fault.status < 400:
            return "the server points elsewhere; pass the URL that it redirects to"
        if fault.status == 200 and fault.unpaid:
            return "the URL leads to a web page (a proxy's login?); it usually ends in /v1"
        if fault.status == 0 and fault.unpaid:
            return f"start the server, or check host and port; {kept}"
        if 400 <= fault.status < 500 and not fault.again and fault.wait is None:
            return "change what the server objects to, e.g. with extra={'<field>': None} to leave a field out"
        return f"wait for the server, or lower concurrency or raise max_tries; {kept}"

    def _counted(self, call: Call, reply: Reply) -> tuple[int, int]:
        """Tokens of the prompt and of the answers by our own tokenizer, where the server doesn't count them."""
        if self.count is None:
            raise LacksCapability(
                f"{self.name} does not say how many tokens an answer took (no usage), so its spend can't be counted; "
                "pass its tokenizer='hf:<folder>'."
            )
        body = call.body or {}
        parts = [body["prompt"]] if "prompt" in body else [message["content"] for message in body["messages"]]
        texts = [read_choice(reply.body, at).text for at in range(len(reply.body["choices"]))]
        read = sum(len(part) if is_ids(part) else self.count(part) for part in parts)
        return read, sum(self.count(text) for text in texts)


def is_ids(given: Any) -> bool:
    return isinstance(given, (list, tuple, np.ndarray)) and len(given) > 0 and isinstance(given[0], (int, np.integer))


def is_chat(given: Any) -> bool:
    return isinstance(given, list) and len(given) > 0 and isinstance(given[0], dict)


def _longest(body: Mapping[str, Any]) -> int:
    """Tokens that the answers to a request may have together."""
    return int(body.get("max_tokens") or body.get("max_completion_tokens") or 0) * int(body.get("n") or 1)
