"""Loading refuses, in one sentence with the file and the cure, whatever can't be loaded; and never opens a pickle."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch

from tests.models.conftest import network, words
from workbench.errors import DoesNotFit, LacksCapability, WorkbenchError
from workbench.models import load, memory, memory_estimate
from workbench.models.folder import read_header


@pytest.fixture
def folder(folders, tmp_path):
    return shutil.copytree(folders["llama"], tmp_path / "model")


def refused(folder, told, **options):
    with pytest.raises(WorkbenchError, match=told) as refusal:
        load(f"hf:{folder}", **options)
    assert "\n" not in str(refusal.value)
    return refusal.value


def test_a_folder_that_is_whole_loads(folder):
    model = load(f"hf:{folder}", device="cpu")
    assert (model.vocab_size, model.eos_ids, model.context_length) == (9, (0,), 32)
    assert model.encode("f0 comply") == [4, 3]
    assert model.decode([4, 3]).split() == ["f0", "comply"]
    assert not model.network.training


def test_pickled_weights_are_refused_and_never_opened(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Trap(), file)
    refused(folder, "pytorch_model.bin, a pickle, which can run code .* save it again with")
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_beside_safetensors_is_left_alone(folder, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert load(f"hf:{folder}").vocab_size == 9


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 20_000, -1])
def test_a_file_cut_short_is_refused(folder, keep):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    refused(folder, r"model.safetensors is cut short or damaged .*; download or save the file again")
    with pytest.raises(WorkbenchError, match="cut short or damaged"):
        read_header(path)


def test_a_file_that_is_no_safetensors_is_refused(folder):
    (folder / "model.safetensors").write_bytes((5).to_bytes(8, "little") + b"hello" * 3)
    refused(folder, "its header is not that of a safetensors file")


def test_missing_files_are_named(folder, tmp_path):
    for name, told in (
        ("tokenizer.json", "has no tokenizer.json; save the tokenizer there too"),
        ("model.safetensors", "has no model.safetensors; save it again"),
        ("config.json", "has no config.json; copy the one"),
    ):
        (folder / name).unlink()
        refused(folder, told)
    refused(tmp_path / "nowhere", "nowhere is no folder; pass 'hf:'")


def test_a_config_that_is_no_json_is_refused(folder):
    (folder / "config.json").write_text("{")
    refused(folder, "config.json is not a JSON object")
    (folder / "config.json").write_text('{"model_type": "no-such-architecture"}')
    refused(folder, "is no causal language model that loads .*; check its files")


def test_shards_load_and_a_missing_one_is_named(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    network("llama").save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load(f"hf:{folder}").vocab_size == 9
    shards[1].unlink()
    refused(folder, rf"names {shards[1].name} but it is not in the folder \(1 of {len(shards)} shards are missing\)")
    (folder / "model.safetensors.index.json").write_text("[]")
    refused(folder, "model.safetensors.index.json is not a shard index; download the file again")


def test_tensors_that_are_absent_are_not_made_up(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "lacks 1 of the model's tensors, model.layers.1.mlp.up_proj.weight first; .* random weights")


def test_code_that_comes_with_a_model_is_not_run(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "trap.Trap"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    refused(folder, "asks to run code that came with the model; read that code, then pass trust_remote_code=True")
    assert not (tmp_path / "sprung").exists()


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(folder, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 50_000)
    error = refused(folder, r"needs 0\.\d MB as float32 but cpu has 0\.1 MB free; use dtype='bfloat16', another device")
    assert isinstance(error, DoesNotFit)


def test_the_memory_estimate_is_what_the_model_takes(folder):
    model = load(f"hf:{folder}")
    wide, narrow = (
        memory_estimate(f"hf:{folder}", device="cpu"),
        memory_estimate(folder, device="cpu", dtype="bfloat16"),
    )
    assert wide.parameters == model.parameters
    assert wide.weights_bytes == sum(p.numel() * p.element_size() for p in model.network.parameters())
    assert narrow.weights_bytes * 2 == wide.weights_bytes
    cache = model.forward([[4] * 10], use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert wide.cache_bytes_per_token * 10 == held
    assert wide.needed_bytes == wide.weights_bytes + 8 * 32 * wide.cache_bytes_per_token
    assert wide.fits
    assert "fits in the" in str(wide)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "llama"])
def test_the_memory_of_each_architecture_is_read_from_its_config(folders, kind):
    estimate = memory_estimate(folders[kind])
    assert estimate.context_length == 32
    assert estimate.cache_bytes_per_token == 2 * 2 * {"qwen2": 2}.get(kind, 4) * 8 * 4


@pytest.mark.parametrize(
    "dtype, wanted", [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float64", torch.float64)]
)
def test_the_dtype_is_as_asked(folder, dtype, wanted):
    model = load(f"hf:{folder}", dtype=dtype, device="cpu")
    assert next(model.network.parameters()).dtype == wanted


def test_sixteen_bits_widen_on_the_cpu_and_stay_bfloat16_on_a_gpu(tmp_path):
    network("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    assert next(load(f"hf:{tmp_path}", device="cpu").network.parameters()).dtype == torch.float32
    tensors = read_header(tmp_path / "model.safetensors")
    assert memory.chosen_dtype(tensors, "cuda", "auto") == "bfloat16"
    assert memory.chosen_dtype(tensors, "cpu", "auto") == "float32"


@pytest.mark.parametrize(
    "spec, options, told",
    [
        ("codeword", {}, "spec is 'codeword' but must begin with embedded/, grammar/ or hf:; .*'hf:codeword'"),
        ("hf:", {}, "spec is 'hf:' but must name a folder or a hub id"),
        (3, {}, "spec is 3 but must be a text"),
        ("embedded/codewort", {}, "embedded model is 'codewort' but must be one of .*did you mean 'codeword'"),
        ("embedded/codeword", {"device": "tpu"}, "device is 'tpu' but must be one of auto, cuda, mps, cpu"),
        ("embedded/codeword", {"dtype": "float23"}, "dtype is 'float23' but must be one of .*did you mean 'float32'"),
        ("embedded/codeword", {"micro_batch": 0}, "micro_batch is 0 but must be a whole number at least 1"),
    ],
)
def test_bad_specs_and_options_are_refused(spec, options, told):
    with pytest.raises(WorkbenchError, match=told):
        load(spec, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(WorkbenchError, match="device is 'cuda' but must be on this machine; pass device='auto'"):
        load("embedded/codeword", device="cuda")


def test_spreading_over_devices_needs_accelerate(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LacksCapability, match="max_memory needs the package accelerate; install research-workbench"):
        load(f"hf:{folder}", max_memory={"cpu": "1GB"})


def test_a_hub_that_is_out_of_reach_is_told_in_one_sentence(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection\nand a long story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    refused(
        "nobody/nothing", "hf:nobody/nothing is neither a folder here nor could it be fetched .* or pass 'hf:<folder>'"
    )
