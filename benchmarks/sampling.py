"""The sampler against `transformers.generate` on the same weights, in one run, interleaved; medians of `PAIRS` pairs.

On the CPU: embedded/chat (about 0.9 M parameters), 16 prompt and 32 new tokens, log-probabilities of the drawn tokens
from both sides, no early end on either. On a GPU also networks with the shapes of Llama 3.2 1B and Llama 3.1 8B, random
weights in bfloat16, and the share of the machine's limits that is reached.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workbench import Stream
from workbench.models import Steering, load, products, sample, sample_in_step, score
from workbench.models.hf import HFModel

PAIRS = 9
PROMPT, NEW = 16, 32
RESULTS = Path(__file__).parent / "results"
SHAPES = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", choices=("ours", "peer"), help="only say how much memory one side takes")
    asked = parser.parse_args()
    if asked.peak:
        return print(peak_memory(asked.peak))
    model = endless(load("embedded/chat", device="cpu"))
    prompt = np.arange(20, 20 + PROMPT).tolist()
    stream = Stream.of(0, "benchmark")
    rows = []
    for batch, target in ((1, 2.5), (32, 2.0), (256, 1.7), (1024, 1.7)):
        rows.append(
            compare(
                f"tokens/s, one prompt, batch {batch}",
                lambda batch=batch: sample(model, prompt, n=batch, max_new_tokens=NEW, stream=stream),
                lambda batch=batch: generate(model, [prompt] * batch),
                work=batch * NEW,
                target=target,
            )
        )
    many = np.random.default_rng(0).integers(20, model.vocab_size, size=(256, PROMPT)).tolist()
    rows.append(
        compare(
            "tokens/s, 256 prompts, batch 256",
            lambda: sample(model, many, max_new_tokens=NEW, stream=stream),
            lambda: generate(model, many),
            work=256 * NEW,
            target=1.7,
        )
    )
    rows += in_step(model, prompt, stream) + exactness(model, prompt, stream) + scoring(model, many)
    rows.append(matrix_share(model, prompt, stream, rows[2]))
    rows.append(memory())
    if torch.cuda.is_available():
        for shape in SHAPES:
            rows += on_gpu(shape, stream)
    else:
        print("no GPU on this machine: the 1B and 8B shapes were not run")
    record(rows)


def compare(name: str, ours: Callable, peer: Callable, *, work: float, target: float, unit: str = "tokens/s") -> dict:
    """Rates of `PAIRS` alternating runs after one of each; ratio above 1 means ours is faster."""
    ours(), peer()
    pairs = np.array([(seconds(ours), seconds(peer)) for _ in range(PAIRS)])
    ratios = np.sort(pairs[:, 1] / pairs[:, 0])
    mine, theirs = work / np.median(pairs, axis=0)
    # The 2nd smallest and 2nd largest of 9 bracket the median with 96.1 % confidence.
    low, ratio, high = ratios[1], np.median(ratios), ratios[-2]
    return row(name, mine, theirs, unit, ratio, low, high, target)


def row(name: str, ours: float, peer: float, unit: str, ratio: float, low: float, high: float, target: float) -> dict:
    made = {"name": name, "ours": ours, "peer": peer, "unit": unit, "ratio": ratio, "low": low, "high": high}
    made = {key: value if isinstance(value, str) else float(value) for key, value in made.items()}
    made |= {"target": target, "holds": bool(ratio >= target)}
    print(
        "{name}: ours {ours:,.4g}, peer {peer:,.4g} {unit}, ratio {ratio:.2f} ({low:.2f} to {high:.2f})".format(**made)
    )
    return made


def seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def endless(model: Any) -> Any:
    """The model without an end of sequence, so that both sides generate equally many tokens."""
    model.eos_ids = ()
    model.network.generation_config.eos_token_id = None
    return model


@torch.inference_mode()
def generate(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    """What a user would write with transformers: sampled tokens and their log-probabilities."""
    ids = torch.tensor(prompts, device=model.device)
    out = model.network.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        top_p=1.0,
        max_new_tokens=NEW,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    tokens = out.sequences[:, ids.shape[1] :]
    assert tokens.shape == (len(prompts), NEW)
    log_probs = torch.log_softmax(torch.stack(out.logits, dim=1).float(), dim=-1)
    return log_probs.gather(2, tokens[..., None])[..., 0]


def in_step(model: Any, prompt: list[int], stream: Stream) -> list[dict]:
    """A target and a steered proposal in step, against one plain pass: twice the work and the ratios."""
    direction = np.random.default_rng(0).normal(size=model.width)
    steered = model.steered(Steering(direction / np.linalg.norm(direction), 1.0, "add", 1))
    settings = {"n": 256, "max_new_tokens": NEW, "stream": stream}
    made = compare(
        "one plain pass against target and steered proposal in step, batch 256",
        lambda: sample_in_step([model, steered], prompt, fuse=lambda laws, rows, steps: laws[1], **settings),
        lambda: sample(model, prompt, **settings),
        work=256 * NEW,
        target=1 / 2.1,
    )
    return [made]


def exactness(model: Any, prompt: list[int], stream: Stream) -> list[dict]:
    """What exact replay costs: the same sampler, free to take torch's product of any width."""
    largest, products.LARGEST = products.LARGEST, 0
    free = endless(load("embedded/chat", device="cpu"))
    products.LARGEST = largest
    for layer in free.decoder.by_rows.layers:
        layer.qkv.quantum = layer.out.quantum = layer.gate_up.quantum = layer.down.quantum = 1
    free.decoder.by_rows.head.quantum = 1
    settings = {"max_new_tokens": NEW, "stream": stream}
    return [
        compare(
            f"exact replay against free batching, batch {batch}",
            lambda batch=batch: sample(model, prompt, n=batch, **settings),
            lambda batch=batch: sample(free, prompt, n=batch, **settings),
            work=batch * NEW,
            target=1 / 1.25,
        )
        for batch in (1, 7, 256)
    ]


def scoring(model: Any, prompts: list[list[int]]) -> list[dict]:
    completions = np.random.default_rng(1).integers(20, model.vocab_size, size=(len(prompts), NEW)).tolist()
    sequences = torch.tensor(np.concatenate([prompts, completions], axis=1))

    @torch.inference_mode()
    def peer() -> torch.Tensor:
        logits = model.network(sequences[:, :-1]).logits[:, PROMPT - 1 :]
        return torch.log_softmax(logits.float(), dim=-1).gather(2, sequences[:, PROMPT:, None])

    return [
        compare(
            "tokens scored/s, 256 sequences of 48, against one plain forward pass",
            lambda: score(model, prompts, completions),
            peer,
            work=sequences.numel(),
            target=1.0,
        )
    ]


def matrix_share(model: Any, prompt: list[int], stream: Stream, measured: dict) -> dict:
    """The share of the machine's matrix-product rate, by the faster of two libraries, that sampling reaches at batch 256."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    packed, rows = products.Packed(b, None), a.numpy()
    ways: list[Callable] = [lambda: torch.mm(a, b), lambda: packed.many(rows)]
    peak = 2 * 2048**3 / min(seconds(way) for way in ways for _ in range(7))
    reached = measured["ours"] * 2 * model.parameters
    share = reached / peak
    return row(
        "matrix products, batch 256: share of the machine's rate", reached, peak, "flop/s", share, share, share, 0
    )


def peak_memory(side: str) -> int:
    """Bytes that 4,096 samples of one request add to this process at their peak."""
    import resource

    model = endless(load("embedded/chat", device="cpu"))
    prompt, stream = np.arange(20, 20 + PROMPT).tolist(), Stream.of(0, "benchmark")
    sample(model, prompt, n=1, max_new_tokens=NEW, stream=stream)
    generate(model, [prompt])
    before = psutil.Process().memory_info().rss
    if side == "ours":
        sample(model, prompt, n=4096, max_new_tokens=NEW, stream=stream)
    else:
        generate(model, [prompt] * 4096)
    return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def memory() -> dict:
    ours, peer = (
        int(subprocess.run([sys.executable, __file__, "--peak", side], capture_output=True, check=True).stdout)
        for side in ("ours", "peer")
    )
    ratio = peer / max(ours, 1)
    return row("peak memory of one request for 4,096 samples", ours / 1e6, peer / 1e6, "MB", ratio, ratio, ratio, 1.0)


def on_gpu(shape: str, stream: Stream) -> list[dict]:
    """The same with a random network of a real model's shape; 128 prompt tokens, batches that servers use."""
    config = LlamaConfig(
        vocab_size=128256,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        head_dim=SHAPES[shape]["hidden_size"] // 32,
        tie_word_embeddings=shape == "1B",
        **SHAPES[shape],
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        network = LlamaForCausalLM(config).to(torch.bfloat16)
    model = endless(HFModel(network, None, f"llama-{shape} shape"))
    prompt = list(range(100, 100 + PROMPT))
    rows = [
        compare(
            f"GPU, {shape} shape, bfloat16, tokens/s, batch {batch}",
            lambda batch=batch: sample(model, prompt, n=batch, max_new_tokens=NEW, stream=stream),
            lambda batch=batch: generate(model, [prompt] * batch),
            work=batch * NEW,
            target=3.0 if (shape, batch) == ("1B", 256) else 1.0,
        )
        for batch in (1, 32, 256, 1024)
    ]
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    block = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    bandwidth = 2 * 2**30 / min(seconds(lambda: block.clone()) for _ in range(7))
    side = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    peak = 2 * 8192**3 / min(seconds(lambda: side @ side) for _ in range(7))
    for made, batch in zip(list(rows), (1, 32, 256, 1024), strict=True):
        passes = made["ours"] / batch
        share = passes * weights / bandwidth
        rows.append(
            row(
                f"{made['name']}: share of memory bandwidth", passes * weights, bandwidth, "B/s", share, share, share, 0
            )
        )
        share = made["ours"] * 2 * model.parameters / peak
        rows.append(
            row(
                f"{made['name']}: share of matrix rate",
                made["ours"] * 2 * model.parameters,
                peak,
                "flop/s",
                share,
                share,
                share,
                0,
            )
        )
    return rows


def record(rows: list[dict]) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    about = {
        "machine": f"{platform.machine()}, {platform.system()}, {device}",
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")}
        | {"python": platform.python_version()},
        "date": datetime.now(UTC).date().isoformat(),
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps([made | about for made in rows], indent=1) + "\n"
    (RESULTS / "sampling.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
