"""Against a server that is not ours: `transformers serve` with a bundled model, over HTTP on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from workbench.errors import LacksCapability
from workbench.models import load, sample
from workbench.models.endpoint_check import check_endpoint
from workbench.paths import datasets_folder
from workbench.streams import Stream

pytest.importorskip("fastapi", reason="transformers serve needs the packages of transformers[serving]")
pytest.importorskip("uvicorn", reason="transformers serve needs the packages of transformers[serving]")

QUESTIONS = ("How do I bake bread?", "Is there music tonight?", "Which song should I learn?")
PROMPTS = tuple(f"<user>{question}<assistant>" for question in QUESTIONS)
# It samples only where the model's own settings say so, so it is told to with a field of its own.
SAMPLING = {"generation_config": json.dumps({"do_sample": True, "top_k": 0, "eos_token_id": 0, "pad_token_id": 0})}
STREAM = Stream.of(2, "serve")


@pytest.fixture(scope="module")
def folder():
    return datasets_folder() / "models" / "chat"


@pytest.fixture(scope="module")
def spec(folder, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("hub")
    here = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    command += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    log = (home / "log").open("w")
    process = subprocess.Popen(command, env=os.environ | here, stdout=log, stderr=log)
    ends = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < ends, (home / "log").read_text()[-2000:]
            time.sleep(0.2)
    yield f"openai:http://127.0.0.1:{port}/v1#{folder}"
    process.terminate()
    process.wait(timeout=30)
    log.close()


def endpoint(spec, path, **options):
    options = {
        "probe_prompt": PROMPTS[0],
        "max_tries": 2,
        "first_wait": 0.05,
        "tokenizer": "embedded/codeword",
    } | options
    return load(spec, transcript=path, **options)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_it_is_probed_and_its_greedy_answers_are_those_of_the_model(spec, tmp_path, api):
    with pytest.warns(UserWarning, match="at temperature 1 are its greedy one"):
        model = endpoint(spec, tmp_path / "t", api=api)
    offers = model.offers
    assert (offers.completions, offers.chat, offers.api, offers.usage) == (True, True, api, True)
    assert (offers.log_probs, offers.top_log_probs, offers.n, offers.echo) == (False, 0, False, False)
    assert (offers.varies, offers.idempotent, offers.stop) == (False, False, "kept")
    asked = PROMPTS if api == "completions" else QUESTIONS  # for the latter the server applies the model's template
    ours = sample(model, list(asked), max_new_tokens=30, stream=STREAM, greedy=True)
    local = load("embedded/chat", device="cpu")
    theirs = sample(local, list(PROMPTS), max_new_tokens=30, stream=STREAM, greedy=True)
    # Texts, since one that was cut within a word reads as other tokens than those that made it.
    assert ours.texts == [local.decode(tokens.tolist()) for tokens in theirs.completions()]
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    assert ours.finish_reasons.tolist() == theirs.finish_reasons.tolist()
    with pytest.raises(LacksCapability, match="gives no log-probs; load the model locally"):
        _ = ours.log_probs
    with pytest.raises(LacksCapability, match="gives no log-probs of likely tokens"):
        model.next_log_probs(PROMPTS[0])


def test_it_samples_where_it_is_told_to_and_honours_seeds_one_at_a_time(spec, tmp_path):
    drawn = [
        sample(
            endpoint(spec, tmp_path / name, extra=SAMPLING, concurrency=1),
            PROMPTS[0],
            n=20,
            max_new_tokens=20,
            stream=STREAM,
        )
        for name in ("a", "b")
    ]
    assert drawn[0].texts == drawn[1].texts
    assert len(set(drawn[0].texts)) > 3


def test_a_check_finds_that_greedy_answers_repeat(spec, tmp_path):
    model = endpoint(spec, tmp_path / "t", extra=SAMPLING)
    found = check_endpoint(model, prompts=PROMPTS, max_new_tokens=12, against=load("embedded/chat"))
    twice, _, against = found["rows"]
    assert (twice["identical"], twice["of"], twice["unit"]) == (3, 3, "characters")
    assert against["identical"] == 3 and against["agree"] == against["compared"] > 0
    assert found["latency"]["0.5"] > 0
