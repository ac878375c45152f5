"""Loading refuses, in one sentence with the file and the cure, whatever can't be loaded; and never opens a pickle."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from tests.models.conftest import network, words
from workbench import Stream
from workbench.errors import LacksCapability, WorkbenchError
from workbench.models import Steering, load, memory, next_log_probs, sample, score
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
        (
            "codeword",
            {},
            "spec is 'codeword' but must begin with embedded/, grammar/, hf:, openai: or replay:; .*'hf:codeword'",
        ),
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


def test_weights_on_disk_give_the_same_logits(folder):
    pytest.importorskip("accelerate")
    base = next_log_probs(load(f"hf:{folder}", device="cpu"), [[4, 5, 6], [7, 7, 7]])
    for room in (40_000, 1_000):
        model = load(f"hf:{folder}", max_memory={"cpu": room})
        assert "disk" in set(model.network.hf_device_map.values())
        assert model.device == torch.device("cpu")
        np.testing.assert_allclose(next_log_probs(model, [[4, 5, 6], [7, 7, 7]]), base, atol=1e-6)
        drawn = sample(model, [4, 5], n=3, max_new_tokens=4, stream=Stream.of(0))
        np.testing.assert_allclose(drawn.log_probs[0, :2], score(model, [4, 5], drawn.tokens[0, :2])[0], atol=1e-5)
    whole = load(f"hf:{folder}", max_memory={"cpu": "1GB"})
    np.testing.assert_allclose(next_log_probs(whole, [[4, 5, 6], [7, 7, 7]]), base, atol=1e-6)


def test_weights_in_int8_are_near_and_can_be_sampled_steered_and_adapted(folder):
    """A weight is off by at most half of 1/127 of its row's largest, 0.4 %; two layers keep that well below 0.1."""
    pytest.importorskip("torchao")
    base = load(f"hf:{folder}", device="cpu")
    model = load(f"hf:{folder}", device="cpu", quantization="int8")
    apart = np.abs(next_log_probs(model, [[4, 5, 6]]) - next_log_probs(base, [[4, 5, 6]])).max()
    assert 0 < apart < 0.1 * np.abs(next_log_probs(base, [[4, 5, 6]])).max()
    drawn = sample(model, [4, 5], n=3, max_new_tokens=4, stream=Stream.of(0))
    assert len(drawn) == 3
    steered = model.steered(Steering(np.ones(32), 1.0, "add", 1))
    assert not np.array_equal(next_log_probs(steered, [[4, 5, 6]]), next_log_probs(model, [[4, 5, 6]]))


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_the_kind_of_attention_is_as_asked(folder, kind):
    model = load(f"hf:{folder}", attn_implementation=kind)
    assert model.network.config._attn_implementation == kind


@pytest.mark.parametrize(
    "options, told",
    [
        (
            {"attn_implementation": "flash"},
            "attn_implementation is 'flash' but must be one of eager, .*or leave it out",
        ),
        ({"max_memory": {}}, "max_memory is {} but must map devices to the memory each may take; pass e.g. {0: '20GB'"),
        ({"max_memory": "8GB"}, "max_memory is '8GB' but must map devices to the memory each may take; pass e.g."),
        ({"max_memory": {"cpu": "much"}}, r"does not load with max_memory=.*much.* \(.*\); load it without"),
        ({"device": "cuda:77"}, "device is 'cuda:77' but must be on this machine; pass device='auto'"),
    ],
)
def test_bad_placements_are_refused(folder, options, told):
    pytest.importorskip("accelerate")
    refused(folder, told, **options)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="this machine has it")
def test_a_kind_of_attention_that_is_not_installed_is_refused(folder):
    refused(
        folder,
        r"attn_implementation is 'flash_attention_2' but must be one that this model and machine have \(.*\); pass 'sdpa'",
        attn_implementation="flash_attention_2",
    )


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
