"""An endpoint samples and scores as the model behind it, says what it can't do, counts what it spends, and keeps all of it."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.models.endpoint_rig import PROBE, QUICK, billed, client
from tests.models.faulty_proxy import proxying
from tests.models.reference_server import Service, serving
from workbench.budget import Budget, Meter
from workbench.cli import app
from workbench.errors import LacksCapability, WorkbenchError
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.models import TopLogProbs, load, next_log_probs, sample, sample_mixture, score
from workbench.models.endpoint_check import check_endpoint
from workbench.models.keys import api_key, scrub
from workbench.problems.event import ModelEvent
from workbench.run import run
from workbench.streams import Stream

SECRET = "sk-never-to-be-seen-4711"
STREAM = Stream.of(3, "endpoint")


@pytest.fixture(autouse=True)
def no_key_of_mine(monkeypatch):
    for name in ("WORKBENCH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def service():
    return Service()


@pytest.fixture(scope="module")
def port(service):
    with serving(service) as port:
        yield port


@pytest.fixture
def tiny(port, tmp_path):
    return client(port, tmp_path / "t.jsonl", tokenizer="embedded/codeword")


@contextmanager
def answering(status: int, content: bytes, kind: str = "application/json", headers: tuple = ()):
    """A server that answers everything alike; yields (port, the paths asked)."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(content))), *headers):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server.server_address[1], asked
    server.shutdown()
    server.server_close()


def refused(told: str, call, kind=WorkbenchError) -> str:
    with pytest.raises(kind, match=told) as refusal:
        call()
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")
    return str(refusal.value)


def test_the_probe_finds_what_the_server_has(tiny):
    offers = tiny.offers
    assert (offers.api, offers.completions, offers.chat, offers.models) == ("completions", True, True, ("tiny",))
    assert (offers.usage, offers.log_probs, offers.top_log_probs, offers.law) == (True, True, 9, "before temperature")
    assert (offers.echo, offers.prompt_ids, offers.n, offers.stop) == (True, True, True, "left out")
    assert (offers.seed, offers.varies, offers.idempotent) == ("honoured", True, False)
    assert tiny.capabilities == {"sample", "log_probs"}
    assert tiny.replay == "same in distribution"
    for what in ("top 9, before temperature", "honoured", str(tiny.transcript.path)):
        assert what in tiny.describe()


@pytest.mark.parametrize(
    "lacks, field, found",
    [
        ("logprobs", "log_probs", False),
        ("logprobs", "top_log_probs", 0),
        ("echo", "echo", False),
        ("ids", "prompt_ids", False),
        ("seed", "seed", "refused"),
        ("usage", "usage", False),
        ("completions", "api", "chat"),
        ("chat", "chat", False),
    ],
)
def test_the_probe_finds_what_the_server_lacks(tmp_path, lacks, field, found):
    with serving(Service(lacks=(lacks,))) as port:
        model = client(port, tmp_path / "t", tokenizer="embedded/codeword")
        assert getattr(model.offers, field) == found
        drawn = model.sample(PROBE, n=3, max_new_tokens=4, stream=STREAM)
        assert len(drawn.texts) == 3


def test_a_server_that_ignores_the_temperature_is_told(tmp_path):
    with serving(Service(lacks=("temperature",))) as port, pytest.warns(UserWarning, match="ignores the temperature"):
        assert client(port, tmp_path / "t").offers.varies is False


def test_samples_follow_the_law_of_the_model_behind(service, tiny):
    prompt, n = "f0 f1 f2", 600
    drawn = sample(tiny, prompt, n=n, max_new_tokens=2, stream=STREAM)
    law = np.exp(next_log_probs(service.model, [[2, 4, 5], [4, 5, 6, 2]]))[1]
    second = drawn.tokens[drawn.tokens[:, 0] == 2, 1]
    for token in np.flatnonzero(law > 0.05):
        share, p = (second == token).mean(), law[token]
        # 5.5 standard errors of a binomial share, for at most 9 tokens: a false alarm in fewer than 1e-6 runs.
        assert abs(share - p) < 5.5 * np.sqrt(p * (1 - p) / len(second)), token
    seeds = [
        json.loads(line).get("ask", {}).get("seed")
        for line in tiny.transcript.path.read_text().splitlines()[1:]
        if '"ask":{' in line
    ]
    ours = [seed for seed in seeds if seed is not None and seed > 100]
    assert len(ours) == n == len(set(ours))


def test_tokens_and_log_probs_are_those_of_the_model_behind(service, tiny):
    prompts = ["f0 f1 f2", [4, 4, 8]]
    drawn = tiny.sample(prompts, n=6, max_new_tokens=5, stream=STREAM)
    rows = [[4, 5, 6]] * 6 + [[4, 4, 8]] * 6
    for row, values in enumerate(score(service.model, rows, drawn.completions())):
        np.testing.assert_allclose(drawn.log_probs[row, : len(values)], values, atol=1e-12)
        assert not drawn.log_probs[row, len(values) :].any()
        assert tiny.decode(drawn.tokens[row]) == drawn.texts[row]
    assert drawn.lengths.tolist() == [len(row) for row in drawn.completions()]
    assert set(drawn.finish_reasons) <= {"eos", "length"}
    ended = drawn.finish_reasons == "eos"
    assert [bool(0 in row) for row in drawn.completions()] == ended.tolist()


def test_a_sample_depends_on_its_index_alone_and_is_paid_for_once(service, tiny):
    whole = tiny.sample(PROBE, n=12, max_new_tokens=4, stream=STREAM)
    before = dict(service.ledger)
    with Meter() as meter:
        parts = [tiny.sample(PROBE, n=4, max_new_tokens=4, stream=STREAM.at(at)).texts for at in (8, 0, 4)]
    assert parts[1] + parts[2] + parts[0] == whole.texts
    assert service.ledger == before
    # Charged as when they were paid for, so that a budget ends at the same sample after a restart.
    assert meter.spend.tokens == 12 * 3 + whole.lengths.sum()
    assert meter.spend.model_calls == 12
    assert tiny.sample(PROBE, n=12, max_new_tokens=4, stream=STREAM.child("other")).texts != whole.texts


def test_the_meter_is_the_servers_own_count(tmp_path):
    with serving(service := Service()) as port, Meter() as meter:
        model = client(port, tmp_path / "t", prices={"input": 2.0, "output": 8.0})
        model.sample([PROBE, "f4 f4 f4"], n=20, max_new_tokens=5, stream=STREAM)
        model.next_log_probs(PROBE)
    assert meter.spend.tokens == billed(service.ledger)
    assert meter.spend.model_calls == service.ledger["completions"]
    usd = (2 * service.ledger["prompt_tokens"] + 8 * service.ledger["completion_tokens"]) / 1e6
    assert meter.spend.usd == pytest.approx(usd, rel=1e-9)
    assert model.lost.requests == 0


def test_without_usage_the_local_tokenizer_counts_or_nothing_is_sampled(tmp_path):
    with serving(service := Service(lacks=("usage",))) as port:
        with Meter() as meter:
            model = client(port, tmp_path / "a", tokenizer="embedded/codeword")
            model.sample(PROBE, n=5, max_new_tokens=5, stream=STREAM)
        # An end of sequence leaves no trace in a text, so it is not in our count: at most one for each answer.
        assert 0 <= billed(service.ledger) - meter.spend.tokens <= service.ledger["completions"] + 1
        refused("no usage.*can't be counted; pass its tokenizer=", lambda: client(port, tmp_path / "b"))


def test_replay_needs_no_server_and_refuses_what_it_never_heard(tmp_path):
    with serving(Service()) as port:
        model = client(port, tmp_path / "t", tokenizer="embedded/codeword")
        drawn = model.sample(PROBE, n=5, max_new_tokens=4, stream=STREAM)
        top = next_log_probs(model, PROBE)[0]
        assert top.tokens == model.next_log_probs(PROBE)[0].tokens and 0 <= top.missing_mass < 1
    spec = f"openai:http://127.0.0.1:{port}/v1#tiny"
    for again in (load(f"replay:{tmp_path / 't'}"), load(spec, transcript=tmp_path / "t", replay=True)):
        assert again.offers == model.offers and again.replay == "exact replay"
        replayed = again.sample(PROBE, n=5, max_new_tokens=4, stream=STREAM)
        assert replayed.texts == drawn.texts and (replayed.log_probs == drawn.log_probs).all()
        assert again.next_log_probs(PROBE)[0].tokens == top.tokens
        told = "request 5 of 6 .it is not in the transcript.; .* holds no answer to this very request"
        refused(told, lambda again=again: again.sample(PROBE, n=6, max_new_tokens=4, stream=STREAM))
    refused("There is no transcript .*nowhere; check the path", lambda: load(f"replay:{tmp_path / 'nowhere'}"))
    other = spec.replace("#tiny", "#other")
    refused(
        "is of .*#tiny, not of .*#other; pass another path",
        lambda: load(other, transcript=tmp_path / "t", replay=True),
    )
    refused("is of .*#tiny, not of .*#other; pass another path", lambda: load(other, transcript=tmp_path / "t"))
    refused("replay=True needs transcript=", lambda: load(spec, replay=True))


def test_an_estimate_is_replayed_from_its_transcript_to_the_last_bit(port, tmp_path):
    def estimate(model):
        judge = lambda tokens: np.isin(tokens, [1]).any(axis=1)  # noqa: E731
        problem = ModelEvent(model, [8, 8, 8], judge, max_new_tokens=5, name="afar")
        return run(problem, MonteCarlo(), Budget(samples=290), seed=1, progress=False)

    live = estimate(client(port, tmp_path / "t", tokenizer="embedded/codeword"))
    again = estimate(load(f"replay:{tmp_path / 't'}", tokenizer="embedded/codeword"))
    assert (live.value, live.low, live.high) == (again.value, again.low, again.high)
    # A budget of samples: one of tokens also counts what the last batch overran, and the speed sizes batches.
    assert live.spend.tokens == again.spend.tokens >= 1_500


def test_the_default_transcript_is_in_the_runs_folder(port, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = load(f"openai:http://127.0.0.1:{port}/v1#tiny", **QUICK)
    [path] = (tmp_path / "runs" / "transcripts").glob("*.jsonl")
    assert model.transcript.path.resolve() == path


def test_a_torn_last_line_is_dropped_and_other_damage_refused(port, tmp_path):
    path = tmp_path / "t"
    model = client(port, path)
    texts = model.sample(PROBE, n=4, max_new_tokens=4, stream=STREAM).texts
    whole = path.read_bytes()
    path.write_bytes(whole[:-25])
    again = client(port, path)
    assert again.sample(PROBE, n=4, max_new_tokens=4, stream=STREAM).texts == texts
    assert path.read_bytes().endswith(b"\n")
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], b'{"key": \n', *lines[5:]]))
    refused(r"Line 6 of the transcript .* is damaged; delete that line", lambda: client(port, path))
    path.write_text('{"some": "thing"}\n')
    refused("is no transcript of an endpoint; pass another path", lambda: client(port, path))


def test_a_transcript_that_cannot_be_written_is_told(port, tmp_path):
    (tmp_path / "file").write_text("")
    refused("can't be written .*; free space or pass transcript=", lambda: client(port, tmp_path / "file" / "t"))


def test_it_works_where_an_event_loop_runs_already(tiny):
    async def cell():
        return tiny.sample(PROBE, n=3, max_new_tokens=4, stream=STREAM)

    assert len(asyncio.run(cell())) == 3


def test_scores_from_an_echo_are_those_of_the_model(service, tiny):
    prompts, completions = [[4, 5, 6], [8]], [[2, 4, 0], [3, 4]]
    for ours, theirs in zip(score(tiny, prompts, completions), score(service.model, prompts, completions), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_top_log_probs_are_the_likeliest_tokens_and_the_rest_is_missing(service, port, tmp_path, api):
    model = client(port, tmp_path / "t", api=api, tokenizer="embedded/codeword")
    law = np.exp(next_log_probs(service.model, [[4, 5, 6]])[0])
    names = [model._own_tokenizer.id_to_token(i) for i in range(9)]
    for k in (1, 2, 9):
        [top] = model.next_log_probs(PROBE, k=k)
        likeliest = np.argsort(-law, kind="stable")[:k]
        assert set(top.tokens) == {names[i] for i in likeliest}
        np.testing.assert_allclose(np.sort(np.exp(top.log_probs)), np.sort(law[likeliest]), rtol=1e-9)
        assert top.missing_mass == pytest.approx(1 - law[likeliest].sum(), abs=1e-12)
    refused("k is 10 but must be a whole number at least 1 and at most 9", lambda: model.next_log_probs(PROBE, k=10))


def test_event_bounds_hold_and_meet_where_all_is_known():
    draw = np.random.default_rng(5)
    for _ in range(300):
        size = int(draw.integers(2, 30))
        law = draw.dirichlet(np.full(size, 0.3)) + 1e-12
        law /= law.sum()
        k = int(draw.integers(1, size + 1))
        chosen = np.argsort(-law)[:k]
        if draw.random() < 0.3:  # a server that adds the token it sampled
            chosen = np.union1d(chosen, draw.integers(size))
        top = TopLogProbs.of({str(i): float(np.log(law[i])) for i in chosen}, k)
        event = draw.choice(size, size=int(draw.integers(1, size + 1)), replace=False)
        low, high = top.event_mass_bounds(str(i) for i in event)
        assert low - 1e-9 <= law[event].sum() <= high + 1e-9
        if set(event) <= set(chosen):
            assert low == high
        assert high - low <= top.missing_mass + 1e-12


def test_event_bounds_of_odd_tokens_and_laws():
    top = TopLogProbs.of({"a": np.log(0.5), "\ufffd": np.log(0.3)}, 2)
    assert top.event_mass_bounds("a") == pytest.approx((0.5, 0.5))
    # Three unlisted tokens share what is missing; one alone is no likelier than that either.
    assert top.event_mass_bounds(["x", "y", "z"]) == pytest.approx((0.0, 0.2))
    assert top.event_mass_bounds(["\ufffd"]) == pytest.approx((0.3, 0.5))
    refused("tokens is .3. but must be texts", lambda: top.event_mass_bounds([3]))
    refused("sum to at most 1; check the server", lambda: TopLogProbs.of({"a": -0.1, "b": -0.1}, 2))


def test_stop_sequences_end_an_answer(tiny):
    plain = tiny.sample(PROBE, n=30, max_new_tokens=5, stream=STREAM)
    stopped = sample(tiny, PROBE, n=30, max_new_tokens=5, stream=STREAM, stop_sequences=["f3"])
    for whole, text, reason in zip(plain.texts, stopped.texts, stopped.finish_reasons, strict=True):
        assert text == whole.split("f3")[0]
        assert reason in (("stop",) if "f3" in whole else ("stop", "length"))


def test_log_probs_are_refused_where_their_law_is_not_what_was_sampled(tiny, port, tmp_path):
    cold = tiny.sample(PROBE, n=2, max_new_tokens=3, stream=STREAM, temperature=0.5)
    refused(
        "gives log-probs before temperature, not those of what was sampled .temperature=0.5, top_p=1.; sample at",
        lambda: cold.log_probs,
        LacksCapability,
    )
    refused(
        "not those of what was sampled", lambda: tiny.sample(PROBE, max_new_tokens=3, stream=STREAM, top_p=0.9).log_prob
    )
    assert np.isfinite(tiny.sample(PROBE, max_new_tokens=3, stream=STREAM, greedy=True).log_probs).all()
    bare = client(port, tmp_path / "bare")
    refused(
        "texts, not token ids; use .texts .pass its tokenizer=",
        lambda: bare.sample(PROBE, max_new_tokens=3, stream=STREAM).tokens,
    )


def test_what_an_endpoint_cannot_do_is_refused_by_name(tiny, grammar):
    for call, told in (
        (lambda: tiny.steered(None), "can't do 'steer'; steer locally, sample remotely"),
        (lambda: tiny.hidden_states(PROBE, 0), "can't do 'hidden_states'; load the model locally"),
        (lambda: tiny.start([[4]]), "can't be decoded token by token"),
        (lambda: sample_mixture(tiny, tiny, PROBE, mixture=0.5, switch=None, n=1, max_new_tokens=2, stream=STREAM),
         "can't do 'next_log_probs'"),
    ):  # fmt: skip
        refused(told, call, LacksCapability)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"stop": lambda tokens: tokens[:, 0] > 0}, "stop is .* but must be left out for openai:.*stop_sequences"),
        ({"stop_ids": [1]}, r"stop_ids is \[1\] but must be left out for openai:"),
        ({"stop_sequences": [[1, 2]]}, "stop_sequences is .* but must be texts"),
        ({"top_k": 5}, "top_k is 5 but must be left out .*extra="),
        ({"record": lambda p: p}, "record is .* but must be left out"),
        ({"temperature": 0}, "temperature is 0 but must be greater than 0; pass greedy=True"),
        ({"temperature": float("nan")}, "temperature is nan but must"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0 but must be a whole number at least 1"),
        ({"max_new_tokens": 62}, "must fit the context of openai:.*, 64 tokens"),
        ({"n": 0}, "n is 0 but must"),
        ({"prompts": []}, "prompts is 'empty' but must hold at least one prompt"),
        ({"prompts": [""]}, r"prompt\[0\] is 'empty' but must hold at least one token"),
        ({"prompts": [[4, 99]]}, r"prompt\[0\]\[1\] is 99 but must be a token id from 0 to 8"),
        ({"prompts": [3.5]}, r"prompt\[0\] is 3.5 but must be a text, token ids or a chat"),
        ({"prompts": [[{"role": "user", "content": "f0"}]]}, r"prompt\[0\] is 'a chat' but must be .*pass api='chat'"),
    ],
)
def test_bad_requests_are_refused_before_they_are_sent(service, tiny, options, told):
    before = dict(service.ledger)
    asked = {"prompts": [[4, 5, 6]], "max_new_tokens": 3, "stream": STREAM} | options
    refused(told, lambda: sample(tiny, asked.pop("prompts"), **asked))
    assert service.ledger == before


@pytest.mark.parametrize(
    "spec, options, told",
    [
        (
            "openai:http://127.0.0.1:1/v1",
            {},
            "must name the model after '#'; write 'openai:http://127.0.0.1:1/v1#<model>'",
        ),
        ("openai:", {}, "must name a URL and a model"),
        ("openai:127.0.0.1:1/v1#m", {}, "must begin with http:// or https:// and name a host"),
        ("openai:http://127.0.0.1:nine/v1#m", {}, "must be a URL"),
        ("openai:http://me:secretive@host/v1#m", {}, "for host holds a user, a password or a query.*WORKBENCH_API_KEY"),
        ("openai:http://host/v1?api-key=secretive#m", {}, "for host holds a user, a password or a query"),
        ("openai:http://127.0.0.1:1/v1#m", {}, "connection refused.; start the server, or check host and port"),
        (
            "openai:http://127.0.0.1:1/v1#m",
            {"api_key": "secretive"},
            "option of an endpoint is 'api_key' but must be one",
        ),
        ("openai:http://127.0.0.1:1/v1#m", {"concurrency": 0}, "concurrency is 0 but must be a whole number"),
        ("openai:http://127.0.0.1:1/v1#m", {"timeout": -1}, "timeout is -1 but must be a finite number greater than 0"),
        ("openai:http://127.0.0.1:1/v1#m", {"prices": {"input": 1}}, "prices is .* exactly the entries 'input' and"),
        ("openai:http://127.0.0.1:1/v1#m", {"prices": {"input": 1, "output": -1}}, "prices\\['output'\\] is -1 but"),
        ("openai:http://127.0.0.1:1/v1#m", {"tokenizer": "nowhere"}, "tokenizer is 'nowhere' but must be a folder"),
        (
            "openai:http://127.0.0.1:1/v1#m",
            {"key_variable": "NO_SUCH"},
            "key_variable is 'NO_SUCH' but the environment",
        ),
        ("embedded/codeword", {"transcript": "t"}, "begin with openai: or replay: to take transcript="),
        ("replay:", {}, "must name a transcript"),
    ],
)
def test_bad_specs_and_options_are_refused(tmp_path, monkeypatch, spec, options, told):
    monkeypatch.chdir(tmp_path)
    quick = {"first_wait": 0.01, "longest_wait": 0.02} if spec.startswith("openai") else {}
    assert "secretive" not in refused(told, lambda: load(spec, **quick, **options)).replace("'secretive'", "")


@pytest.mark.parametrize(
    "status, content, kind, told, most",
    [
        (200, b"<!doctype html>", "text/html", "an HTML page instead of JSON.; the URL leads to a web page", 1),
        (200, b"<html>", "application/json", "an HTML page instead of JSON", 1),
        (
            404,
            b'{"error": {"message": "no model"}}',
            "application/json",
            "HTTP 404: no model.; check the model's name",
            3,
        ),
        (401, b"", "text/plain", "HTTP 401.; put the right key into .*WORKBENCH_API_KEY or OPENAI_API_KEY", 1),
        (403, b"<html>", "text/html", "HTTP 403: an HTML page.; put the right key", 1),
        (
            400,
            b'{"detail": "too\\n long"}',
            "application/json",
            "HTTP 400: too long.; change what the server objects to",
            3,
        ),
        (307, b"", "text/plain", "HTTP 307.; the server points elsewhere; pass the URL", 3),
        (200, b'{"choices": []}', "application/json", "after 3 tries .a response without choices.; wait for", 7),
        (200, b'{"choices": [{"te', "application/json", "after 3 tries .a response that is not whole JSON.", 9),
        (200, b'{"error": "busy"}', "application/json", "a response without choices .busy.", 7),
        (200, b'{"choices": [{"text": 3}]}', "application/json", "whose choices can't be read", 7),
        (200, b'{"choices": [{"text": NaN}]}', "application/json", "not whole JSON", 9),
        (503, b"", "text/plain", "after 3 tries .HTTP 503.; wait for the server", 9),
        (200, b"[]", "application/json", "JSON that is no object", 9),
    ],
)
def test_a_server_that_answers_wrongly_is_told_in_one_sentence(tmp_path, status, content, kind, told, most):
    with answering(status, content, kind) as (port, asked):
        refused(told, lambda: client(port, tmp_path / "t", max_tries=3))
        assert len(asked) <= most


def test_a_model_that_is_not_served_is_told_with_those_that_are(port, tmp_path):
    spec = f"openai:http://127.0.0.1:{port}/v1#huge"
    refused(
        "HTTP 404: no model 'huge'.; check .*; it serves tiny", lambda: load(spec, transcript=tmp_path / "t", **QUICK)
    )
    spec = f"openai:http://127.0.0.1:{port}#tiny"
    refused("HTTP 404: no such path.; .*usually ends in /v1", lambda: load(spec, transcript=tmp_path / "u", **QUICK))


def test_a_wait_that_the_server_asks_for_is_kept_and_one_too_long_is_told(tmp_path):
    with answering(429, b"", headers=(("Retry-After", "1"),)) as (port, _):
        began = time.monotonic()
        refused("after 2 tries .HTTP 429.", lambda: client(port, tmp_path / "a", max_tries=2))
        assert time.monotonic() - began >= 2.0  # once for the list of models, once for the probe
    with answering(429, b"", headers=(("Retry-After", "86400"),)) as (port, asked):
        refused("HTTP 429, to be asked again in 86400 s", lambda: client(port, tmp_path / "b"))
        assert len(asked) == 3


def test_no_more_requests_are_under_way_than_allowed(port, tmp_path):
    with proxying(port, rate=0.0) as (front, proxy):
        model = client(front, tmp_path / "t", concurrency=3)
        model.sample(PROBE, n=60, max_new_tokens=2, stream=STREAM)
        assert proxy.most_under_way == 3


def test_the_key_comes_from_the_environment_and_is_seen_nowhere(tmp_path, monkeypatch):
    service = Service(key=SECRET)
    service.leaks = True
    with serving(service) as port:
        monkeypatch.setenv("WORKBENCH_API_KEY", "wrong-" + SECRET)
        told = [refused("HTTP 401", lambda: client(port, tmp_path / "wrong"))]
        monkeypatch.setenv("WORKBENCH_API_KEY", SECRET + "\n")
        model = client(port, tmp_path / "t", tokenizer="embedded/codeword")
        drawn = model.sample([PROBE], n=3, max_new_tokens=3, stream=STREAM)
        artefacts = [*told, repr(model), model.describe(), str(vars(model)), repr(drawn), str(vars(drawn))]
        artefacts += [str(vars(model.transcript)), pickle.dumps(model).decode("latin-1")]
        artefacts += [path.read_text() for path in tmp_path.iterdir()]
        assert "[key]" in (tmp_path / "t").read_text()  # the server did send it back
        monkeypatch.setenv("WORKBENCH_API_KEY", "")
        monkeypatch.setenv("MINE", SECRET)
        assert client(port, tmp_path / "u", key_variable="MINE").offers.completions
        artefacts.append((tmp_path / "u").read_text())
        monkeypatch.setenv("WORKBENCH_API_KEY", SECRET)
        prompt = f"f0 {SECRET}"
        artefacts.append(refused("400", lambda: model.sample(prompt, n=1, max_new_tokens=2, stream=STREAM)))
        artefacts.append((tmp_path / "t").read_text())
    assert not any(SECRET in artefact for artefact in artefacts)


def test_a_key_goes_to_its_own_host_only(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for url in ("https://api.openai.com/v1", "http://127.0.0.1:8000/v1", "http://localhost/v1"):
        assert api_key(url, None) == SECRET
    for url in ("https://openai.com.example.org/v1", "https://myopenai.com/v1", "http://10.0.0.1/v1"):
        assert api_key(url, None) is None
        assert api_key(url, "OPENAI_API_KEY") == SECRET
    monkeypatch.setenv("WORKBENCH_API_KEY", "another-key")
    assert api_key("https://api.openai.com/v1", None) == "another-key"
    monkeypatch.setenv("WORKBENCH_API_KEY", "two words")
    refused("WORKBENCH_API_KEY has characters that no HTTP header can carry", lambda: api_key("http://a/v1", None))
    assert scrub({"a": [f"x{SECRET}y"]}, SECRET) == {"a": ["x[key]y"]}
    assert scrub("EMPTY is no secret", "EMPTY") == "EMPTY is no secret"


def test_extra_fields_are_sent_and_none_takes_one_out(port, tmp_path):
    model = client(port, tmp_path / "t", extra={"top_k": 7, "seed": None})
    model.sample(PROBE, n=2, max_new_tokens=2, stream=STREAM)
    last = json.loads((tmp_path / "t").read_text().splitlines()[-1])["ask"]
    assert last["top_k"] == 7 and "seed" not in last
    refused(
        "asked with extra=.*isn't known", lambda: model.sample(PROBE, n=2, max_new_tokens=2, stream=STREAM).log_probs
    )


def test_the_check_counts_what_agrees(port, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("f0 f1 f2\n\nf4 f4 f4\n")
    asked = [
        "models",
        "check",
        f"openai:http://127.0.0.1:{port}/v1#tiny",
        "--prompts",
        "p.txt",
        "--max-new-tokens",
        "4",
    ]
    told = CliRunner().invoke(app, [*asked, "--json", "--against", "embedded/codeword"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert [row["what"].split(",")[0] for row in found["rows"]] == ["greedy", "same seed", "greedy"]
    for row in found["rows"]:
        assert row["identical"] == row["of"] == 2 and row["agree"] == row["compared"] > 0
    assert [row["unit"] for row in found["rows"]] == ["tokens", "tokens", "characters"]
    assert found["lost"]["requests"] == 0
    told = CliRunner().invoke(app, asked)
    assert "2 of 2" in told.stdout and "latency at 16 at a time" in told.stdout and "seed" in told.stdout
    told = CliRunner().invoke(app, ["models", "check", "embedded/codeword"])
    assert "must begin with openai:" in str(told.exception)


def test_a_server_that_does_not_repeat_itself_is_found_out(tmp_path):
    service = Service()
    service.forgets_seeds = True
    with serving(service) as port:
        model = client(port, tmp_path / "t")
        assert model.offers.seed == "ignored"
        greedy, seeded = check_endpoint(model, prompts=[PROBE, "f4 f4 f4"] * 8, max_new_tokens=4)["rows"]
        assert greedy["identical"] == 16 and seeded["identical"] < 16 and seeded["agree"] < seeded["compared"]
    refused("which always agrees with itself; load it live", lambda: check_endpoint(load(f"replay:{tmp_path / 't'}")))


def test_a_key_in_a_prompt_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_API_KEY", SECRET)
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    reply = {"choices": [{"text": f"{SECRET}?", "finish_reason": "length"}], "usage": usage}
    with answering(200, json.dumps(reply).encode()) as (port, _), pytest.warns(UserWarning, match="ignores the temp"):
        model = client(port, tmp_path / "t", probe_prompt=f"is it {SECRET}")
        drawn = model.sample(f"{SECRET}!", max_new_tokens=1, stream=STREAM)
    assert drawn.texts == ["[key]?"]
    assert model.offers.idempotent is None  # answers without an id prove nothing
    assert SECRET not in (tmp_path / "t").read_text() + repr(model) + model.describe()


def test_a_key_that_was_wrong_is_not_remembered(tmp_path, monkeypatch):
    with serving(Service(key=SECRET)) as port:
        refused("HTTP 401", lambda: client(port, tmp_path / "t"))
        monkeypatch.setenv("WORKBENCH_API_KEY", SECRET)
        assert client(port, tmp_path / "t").offers.completions


def test_text_that_cannot_be_sent_is_refused(tiny):
    refused("be plain JSON in whole characters", lambda: tiny.sample("\ud800", max_new_tokens=2, stream=STREAM))
