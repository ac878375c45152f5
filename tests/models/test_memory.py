"""What is said of memory before loading is what the loaded network takes, to the byte, in every family."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.models.conftest import words
from tests.models.families import FAMILIES, family_network
from workbench.errors import DoesNotFit, LacksCapability, WorkbenchError
from workbench.models import info, load, memory, memory_estimate
from workbench.models.folder import checked

TIED = ("qwen3", "gemma", "gemma2", "gemma3", "gpt2")


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """{family: folder}"""
    made = {}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp(family)
        family_network(family).save_pretrained(made[family])
        words().save_pretrained(made[family])
    return made


def held(cache):
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_cache_are_those_of_the_network_to_the_byte(homes, family):
    for dtype in ("float32", "bfloat16"):
        said = memory_estimate(homes[family], device="cpu", dtype=dtype)
        network = family_network(family).to(getattr(torch, dtype))
        assert said.parameters == sum(p.numel() for p in network.parameters())
        assert said.weights_bytes == sum(p.numel() * p.element_size() for p in network.parameters())
        assert (network.lm_head.weight is network.get_input_embeddings().weight) == (family in TIED)
        for tokens in (3, 17):
            with torch.inference_mode():
                cache = network(torch.full((2, tokens), 5), use_cache=True).past_key_values
            assert 2 * said.cache_bytes(tokens) == held(cache), tokens
        assert said.context_length == 64


def test_an_embedding_that_is_stored_twice_is_counted_once(homes, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(homes["qwen3"], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert memory_estimate(folder).parameters == memory_estimate(homes["qwen3"]).parameters


def test_a_kind_that_transformers_does_not_know_is_counted_from_its_files(homes, tmp_path):
    folder = shutil.copytree(homes["llama"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of"}))
    strange, known = memory_estimate(folder), memory_estimate(homes["llama"])
    assert (strange.parameters, strange.weights_bytes) == (known.parameters, known.weights_bytes)
    assert strange.cache_bytes_per_token == known.cache_bytes_per_token


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3"])
def test_int8_weights_are_counted_to_the_byte(homes, family):
    pytest.importorskip("torchao")
    for dtype in ("float32", "bfloat16"):
        said = memory_estimate(homes[family], device="cpu", dtype=dtype, quantization="int8")
        network = load(f"hf:{homes[family]}", device="cpu", dtype=dtype, quantization="int8").network
        taken = 0
        for parameter in network.parameters():
            parts = [parameter.qdata, parameter.scale] if hasattr(parameter, "qdata") else [parameter]
            taken += sum(part.numel() * part.element_size() for part in parts)
        assert said.weights_bytes == taken
        assert taken < memory_estimate(homes[family], device="cpu", dtype=dtype).weights_bytes


def test_int4_takes_half_a_byte_and_a_scale_and_zero_for_each_group():
    assert memory._quantised((4096, 4096), "int4", 2) == 4096 * 4096 // 2 + 4 * 4096 * 32 - 2 * 4096 * 4096
    # A width that is no multiple of the group stays as it is; one below a whole tile is filled up.
    assert memory._quantised((4096, 100), "int4", 2) == 0
    assert memory._quantised((4, 128), "int4", 2) == 8 * 1024 // 2 + 4 * 8 * 8 - 2 * 4 * 128


def test_the_largest_batch_is_the_largest(homes, monkeypatch):
    for free in (200_000, 1_000_000, 50_000_000):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        said = memory_estimate(homes["mistral"], device="cpu")
        for tokens in (1, 5, 64):
            batch = said.largest_batch(tokens)
            assert said.needed_bytes(batch, tokens) <= 0.9 * free < said.needed_bytes(batch + 1, tokens)
    assert said.sentence(64) == f"fits on cpu as float32: largest batch {said.largest_batch(64):,} at 64 tokens"
    assert said.sentence(64) in str(said)


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded_with_what_would(homes, monkeypatch):
    def refused(told, **options):
        with pytest.raises(DoesNotFit, match=told) as refusal:
            load(f"hf:{homes['llama']}", device="cpu", **options)
        assert "\n" not in str(refusal.value)

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    said = memory_estimate(homes["llama"], device="cpu")
    assert said.weights_bytes == 103_552
    monkeypatch.setattr(memory, "free_memory", lambda device: 100_000)
    refused(
        r"needs 0\.1 MB as float32 \(0\.1 MB of weights and 25\.4 kB for one sequence of 64 tokens\), 38\.9 kB more than "
        r"can be counted on of the 0\.1 MB free on cpu; dtype='bfloat16' would fit \(64\.8 kB\) or quantization='int8'"
    )
    monkeypatch.setattr(memory, "free_memory", lambda device: 70_000)
    refused(r"free on cpu; quantization='int8' would fit \(62\.5 kB\)\.")
    monkeypatch.setattr(memory, "free_memory", lambda device: 10_000)
    refused(
        r"nothing smaller fits here either \(quantization='int8' takes 62\.\d kB\), so spread it over devices and disk "
        r"with max_memory=\{...\}, or use a larger machine",
        dtype="bfloat16",
    )
    lacking = memory_estimate(homes["llama"], device="cpu").sentence()
    assert lacking.startswith("does not fit on cpu as float32: 0.1 MB too little for one sequence of 64 tokens")


def test_info_says_what_fits_where(homes):
    facts = info(f"hf:{homes['gemma2']}", tokens=40)
    assert list(facts["weights"]) == ["float32", "bfloat16", "int8"]
    assert facts["weights"]["float32"] == 2 * facts["weights"]["bfloat16"]
    said = memory_estimate(homes["gemma2"], device="cpu")
    assert facts["cache_bytes_of_context"] == said.cache_bytes(64) < 64 * facts["cache_bytes_per_token"]
    assert len(facts["fits"]) == len(memory.devices_found())
    assert any(line.startswith("fits on cpu as float32: largest batch ") for line in facts["fits"])
    assert all("at 40 tokens" in line for line in facts["fits"])
    assert list(info(f"hf:{homes['gpt2']}")["weights"]) == ["float32", "bfloat16"]
    with pytest.raises(WorkbenchError, match="tokens is 65 but must be a whole number at least 1 and at most 64; pass"):
        info(f"hf:{homes['gemma2']}", tokens=65)


@pytest.mark.parametrize(
    "family, options, told",
    [
        ("llama", {"quantization": "int3"}, "quantization is 'int3' but must be one of int8, int4; .*or leave it out"),
        ("gpt2", {"quantization": "int8"}, "must be left out for hf:.*, which has no linear layers that torchao"),
        (
            "llama",
            {"quantization": "int4"},
            "quantization is 'int4' but must be one that cpu has kernels for; pass quant",
        ),
    ],
)
def test_quantisations_that_are_not_to_be_had_are_refused(homes, family, options, told):
    pytest.importorskip("torchao")
    with pytest.raises(WorkbenchError, match=told):
        load(f"hf:{homes[family]}", device="cpu", **options)


def test_an_estimate_for_an_unknown_quantisation_is_refused(homes):
    with pytest.raises(
        WorkbenchError, match=r"quantization is 'int3' but must be one of int8, int4; .*or leave it out"
    ):
        memory_estimate(homes["llama"], quantization="int3")


def test_a_checkpoint_that_is_quantised_already_is_not_quantised_again(homes, tmp_path):
    pytest.importorskip("torchao")
    folder = shutil.copytree(homes["llama"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(
        WorkbenchError, match=r"must be left out for hf:.*, which is quantised already; leave quantization"
    ):
        load(f"hf:{folder}", device="cpu", quantization="int8")


def test_int4_wants_bfloat16_and_torchao_has_to_be_there(homes, monkeypatch):
    _, tensors = checked(homes["llama"])
    assert memory.chosen_dtype(tensors, "cuda", "auto", "int4") == "bfloat16"
    with pytest.raises(
        WorkbenchError, match="dtype is 'float32' but must be 'bfloat16' with quantization='int4'; leave"
    ):
        memory.chosen_dtype(tensors, "cuda", "float32", "int4")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LacksCapability, match="quantization needs the package torchao; install research-workbench"):
        load(f"hf:{homes['llama']}", device="cpu", quantization="int8")
