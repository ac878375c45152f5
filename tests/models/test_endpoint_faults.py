"""Through a network that fails, an endpoint loses no answer, pays for none twice, and says what it can't know."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.models.endpoint_rig import PROBE, billed, client
from tests.models.faulty_proxy import AFTER, BEFORE, proxying
from tests.models.reference_server import Service, serving
from workbench.budget import Meter
from workbench.errors import WorkbenchError
from workbench.models import load
from workbench.streams import Stream

ROOT = Path(__file__).resolve().parents[2]
STREAM = Stream.of(7, "faults")
# With a fifth of attempts failing, 20 tries fail together once in 1e14 calls.
PATIENT = {"max_tries": 20, "timeout": 0.6}


def answers(path: Path) -> int:
    return path.read_bytes().count(b'"reply":') if path.exists() else 0


def test_nothing_is_lost_and_nothing_paid_twice(tmp_path):
    with serving(service := Service()) as port, proxying(port, stall=0.8) as (front, proxy):
        with Meter() as meter:
            model = client(front, tmp_path / "t", **PATIENT)
            drawn = model.sample([PROBE, "f4 f4 f4", "f3"], n=100, max_new_tokens=3, stream=STREAM)
        assert model.offers.idempotent
        assert len(drawn) == 300 and all(drawn.texts)
        # Each of 8 kinds has a chance of 1/40 an attempt: none of one kind in more than 375 attempts, once in 1e4 for
        # each; all together faults come surely enough to be asked for.
        assert sum(proxy.counts[kind] for kind in BEFORE) > 5 and sum(proxy.counts[kind] for kind in AFTER) > 5
        assert proxy.counts["from store"] > 0
        assert service.ledger["completions"] == len(proxy.stored) - 1  # the list of models is stored too
        assert meter.spend.tokens == billed(service.ledger)
        assert meter.spend.model_calls == service.ledger["completions"]
        assert model.lost.requests == 0


def test_without_a_store_the_servers_count_lies_in_the_stated_interval(tmp_path):
    with serving(service := Service()) as port, proxying(port, store=False, stall=0.8) as (front, _):
        with Meter() as meter:
            model = client(front, tmp_path / "t", **PATIENT)
            model.sample([PROBE, "f4 f4 f4"], n=100, max_new_tokens=3, stream=STREAM)
        assert not model.offers.idempotent
        lost, counted = model.lost, meter.spend.tokens
        assert counted < billed(service.ledger) <= counted + lost.tokens_at_most
        vain = service.ledger["completions"] - meter.spend.model_calls
        assert 0 < vain <= lost.requests
        # The bound is one prompt and one longest answer for each lost request of ours.
        assert lost.tokens_at_most <= lost.requests * 11 + 30
        assert str(lost.requests) in model.describe()
        again = client(front, tmp_path / "t", **PATIENT)
        assert again.lost == lost  # the transcript knows


@pytest.mark.parametrize("store", [True, False])
def test_a_killed_client_goes_on_and_pays_for_nothing_twice(tmp_path, store):
    path = tmp_path / "t"
    code = f"""
from tests.models.endpoint_rig import client
from workbench.streams import Stream
import sys
client(int(sys.argv[1]), {str(path)!r}, **{PATIENT!r}).sample({PROBE!r}, n=400, max_new_tokens=3, stream=Stream.of(7, "faults"))
"""
    with serving(service := Service()) as port, proxying(port, store=store, stall=0.8) as (front, _):
        process = subprocess.Popen([sys.executable, "-c", code, str(front)], cwd=ROOT)
        until(lambda: answers(path) > 120 or process.poll() is not None)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        before = answers(path)
        assert before < 400
        with Meter() as meter:
            model = client(front, path, **PATIENT)
            drawn = model.sample(PROBE, n=400, max_new_tokens=3, stream=STREAM)
        assert len(drawn) == 400
        if store:
            assert meter.spend.tokens == billed(service.ledger)
            assert meter.spend.model_calls == service.ledger["completions"]
            assert model.lost.requests == 0
        else:
            # What was under way when the client died is in the interval too.
            assert meter.spend.tokens <= billed(service.ledger) <= meter.spend.tokens + model.lost.tokens_at_most
    assert len(load(f"replay:{path}").sample(PROBE, n=400, max_new_tokens=3, stream=STREAM)) == 400


def test_an_interrupt_keeps_what_is_done(tmp_path):
    path = tmp_path / "t"
    code = f"""
from tests.models.endpoint_rig import client
from workbench.budget import Meter
from workbench.streams import Stream
import sys
model = client(int(sys.argv[1]), {str(path)!r})
with Meter() as meter:
    try:
        model.sample({PROBE!r}, n=3000, max_new_tokens=3, stream=Stream.of(7, "faults"))
    except KeyboardInterrupt:
        print("interrupted", int(meter.spend.model_calls))
"""
    with serving(service := Service()) as port:
        process = subprocess.Popen([sys.executable, "-c", code, str(port)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        until(lambda: answers(path) > 100 or process.poll() is not None)
        os.kill(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        word, charged = said.split()
        model = client(port, path)
        model.sample(PROBE, n=int(charged), max_new_tokens=3, stream=STREAM)
        assert word == "interrupted" and 80 < int(charged) < 3000
        assert answers(path) >= int(charged)
        # Only what was under way, 16 requests at most, may have been paid for in vain.
        assert 0 <= model.lost.requests <= 16
        assert 0 <= service.ledger["completions"] - answers(path) <= 16 + 1


def test_a_network_that_never_works_ends_in_one_sentence_and_keeps_what_came(tmp_path):
    with serving(service := Service()) as port, proxying(port, rate=0.0, kinds=("503",)) as (front, proxy):
        model = client(front, tmp_path / "t", max_tries=3, concurrency=4)
        model.sample(PROBE, n=10, max_new_tokens=3, stream=STREAM)
        proxy.rate = 1.0
        done = service.ledger["completions"]
        with pytest.raises(WorkbenchError) as refusal:
            model.sample(PROBE, n=40, max_new_tokens=3, stream=STREAM)
        told = str(refusal.value)
        assert "did not answer a request (10 of 40 done) after 3 tries (HTTP 503: {}); wait for the server" in told
        assert f"pass transcript='{tmp_path / 't'}' to pay for the rest only" in told and "\n" not in told
        # After the first one that failed for good, no other was begun.
        assert proxy.counts["503"] <= 4 * 3
        proxy.rate = 0.0
        model.sample(PROBE, n=40, max_new_tokens=3, stream=STREAM)
        assert service.ledger["completions"] == done + 30


def test_a_server_that_goes_away_for_a_moment_is_waited_for(tmp_path):
    service = Service()
    with serving(service) as port, proxying(port, rate=0.0) as (front, proxy):
        model = client(front, tmp_path / "t", max_tries=12, longest_wait=0.3)
        upstream, proxy.upstream = proxy.upstream, 1
        threading.Timer(0.5, lambda: setattr(proxy, "upstream", upstream)).start()
        assert len(model.sample(PROBE, n=5, max_new_tokens=3, stream=STREAM)) == 5


def until(there) -> None:
    ends = time.monotonic() + 120
    while not there():
        assert time.monotonic() < ends, "the client did not get going within two minutes"
        time.sleep(0.01)
