"""A small OpenAI-compatible server over the workbench's own models, which keeps its own count of what it did.

Does: /v1/models, /v1/completions (log-probs, echo, seeds, stop strings, n, token ids) and /v1/chat/completions, over
HTTP/1.1 on this machine; GET /ledger gives what was generated and billed, counted here, apart from any client.
Does not: batch, stream, or serve anybody in earnest.
"""

from __future__ import annotations

import argparse
import json
import threading
import uuid
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from tokenizers import Tokenizer

from workbench.models import load, next_log_probs, sample, score
from workbench.paths import datasets_folder
from workbench.streams import Stream


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Service:
    """What the server does, without HTTP. lacks: options it doesn't know ("usage", "seed", "logprobs", "echo", "ids",
    "completions", "chat", "temperature"); key: one that it demands."""

    def __init__(self, spec: str = "grammar/codeword", *, lacks: tuple[str, ...] = (), key: str | None = None) -> None:
        self.model, self.lacks, self.key = load(spec), frozenset(lacks), key
        folder = datasets_folder() / "models" / (spec.split("/")[1])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.lock = threading.Lock()
        self.ledger = {"completions": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self.leaks = self.forgets_seeds = False

    def text(self, ids) -> str:
        return self.tokenizer.decode([int(t) for t in ids], skip_special_tokens=True)

    def complete(self, body: dict, chat: bool) -> dict:
        if body.get("model") != "tiny":
            raise Refusal(404, f"no model {body.get('model')!r}")
        if ("chat" if chat else "completions") in self.lacks:
            raise Refusal(404, "no such path")
        if "seed" in self.lacks and "seed" in body:
            raise Refusal(422, "unexpected field: seed")
        prompt = " ".join(m["content"] for m in body["messages"]) if chat else body["prompt"]
        if not isinstance(prompt, str) and "ids" in self.lacks:
            raise Refusal(400, "prompt must be a string")
        try:
            ids = self.tokenizer.encode(prompt).ids if isinstance(prompt, str) else list(prompt)
        except Exception as error:  # tokenizers raises nothing narrower for a word it does not know
            raise Refusal(400, "a word that the tokenizer does not know") from error
        with self.lock:
            return self._generate(body, chat, ids)

    def _generate(self, body: dict, chat: bool, ids: list[int]) -> dict:
        temperature = 1.0 if "temperature" in self.lacks else float(body.get("temperature", 1.0))
        greedy = temperature == 0 or "temperature" in self.lacks
        seed = int(body["seed"]) % 2**63 if "seed" in body and not self.forgets_seeds else uuid.uuid4().int % 2**63
        steps, n = int(body.get("max_tokens") or 16), int(body.get("n") or 1)
        drawn = sample(
            self.model,
            [int(i) for i in ids],
            n=n,
            max_new_tokens=steps,
            stream=Stream.of(seed, "server"),
            temperature=temperature or 1.0,
            greedy=greedy,
        )
        choices, written = [], 0
        for index, tokens in enumerate(drawn.completions()):
            cut, finish = self._stopped(tokens, body.get("stop") or [])
            written += len(tokens)
            reason = "stop" if finish is not None or tokens[-1] in self.model.eos_ids else "length"
            text = finish if finish is not None else self.text(cut)
            if body.get("echo") and "echo" not in self.lacks and not chat:
                text = self.text(ids) + " " + text
            choice = {"index": index, "finish_reason": reason}
            choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            if body.get("logprobs") and "logprobs" not in self.lacks:
                choice["logprobs"] = self._log_probs(body, chat, ids, cut)
            choices.append(choice)
        self.ledger["completions"] += 1
        self.ledger["prompt_tokens"] += len(ids)
        self.ledger["completion_tokens"] += written
        usage = {"prompt_tokens": len(ids), "completion_tokens": written, "total_tokens": len(ids) + written}
        answer = {"id": f"cmpl-{uuid.uuid4()}", "model": "tiny", "choices": choices}
        return answer if "usage" in self.lacks else answer | {"usage": usage}

    def _stopped(self, tokens: np.ndarray, stops: list[str] | str) -> tuple[np.ndarray, str | None]:
        text = self.text(tokens)
        places = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop in text]
        return tokens, text[: min(places)] if places else None

    def _log_probs(self, body: dict, chat: bool, ids: list[int], tokens: np.ndarray) -> dict:
        k = int(body.get("top_logprobs") or 0) if chat else int(body["logprobs"])
        echo = bool(body.get("echo")) and "echo" not in self.lacks and not chat
        whole = [*ids, *map(int, tokens)]
        first = 1 if echo else len(ids)
        [values] = score(self.model, [whole[:first]], [whole[first:]])
        laws = next_log_probs(self.model, [whole[:at] for at in range(first, len(whole))])
        # Strings as a decoder writes them, special tokens included.
        names = [self.tokenizer.id_to_token(i) for i in range(self.model.vocab_size)]
        tops = [
            {names[i]: max(float(law[i]), -9999.0) for i in np.argsort(-law, kind="stable")[: min(k, 20)]}
            for law in laws
        ]
        strings = [names[i] for i in whole[first:]]
        if chat:
            return {
                "content": [
                    {
                        "token": token,
                        "logprob": float(value),
                        "top_logprobs": [{"token": t, "logprob": v} for t, v in top.items()],
                    }
                    for token, value, top in zip(strings, values, tops, strict=True)
                ]
            }
        start = [names[whole[0]]] if echo else []
        return {
            "tokens": start + strings,
            "token_logprobs": [None] * len(start) + [float(v) for v in values],
            "top_logprobs": [None] * len(start) + tops,
        }


def handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path == "/ledger":
                self.send(200, service.ledger)
            elif self.path == "/v1/models" and self.allowed():
                self.send(
                    200,
                    {"object": "list", "data": [{"id": "tiny", "max_model_len": service.model.context_length or 64}]},
                )
            elif self.path != "/v1/models":
                self.send(404, {"error": {"message": "no such path"}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.allowed():
                return
            chat = self.path == "/v1/chat/completions"
            if not chat and self.path != "/v1/completions":
                self.send(404, {"error": {"message": "no such path"}})
                return
            try:
                answer = service.complete(body, chat)
                if service.leaks:
                    answer["seen"] = {"authorization": self.headers.get("Authorization")}
                self.send(200, answer)
            except Refusal as refusal:
                self.send(refusal.status, {"error": {"message": str(refusal)}})

        def allowed(self) -> bool:
            given = self.headers.get("Authorization", "")
            if service.key is None or given == f"Bearer {service.key}":
                return True
            # Some servers echo the key that they refuse.
            self.send(401, {"error": {"message": f"wrong key in {given!r}"}})
            return False

        def send(self, status: int, body: dict) -> None:
            self.send_bytes(status, json.dumps(body).encode(), "application/json")

        def send_bytes(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # a client that went away
                super().handle()

    return Handler


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def serving(service: Service):
    """Serves from a thread; yields the port."""
    server = Server(("127.0.0.1", 0), handler(service))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="grammar/codeword")
    given = parser.parse_args()
    torch.set_num_threads(1)
    server = Server(("127.0.0.1", 0), handler(Service(given.model)))
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
