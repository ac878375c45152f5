"""An adapter learns, leaves its base alone bit for bit, travels in peft's format, and knows whose it is."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.models.conftest import words
from tests.models.families import FAMILIES, family_network
from workbench import Meter, Stream
from workbench.errors import LacksCapability, WorkbenchError
from workbench.models import Steering, adapters, load, next_log_probs, sample_mixture, score
from workbench.models.base import on_one_thread
from workbench.models.grammars import codeword_grammar
from workbench.models.hf import HFModel

TEXTS = [[4, 5, 6, 7, 8, 9], [4, 5, 6, 7, 8, 9, 10], [11, 12, 13]]
PROMPTS = [[4, 5, 6], [11, 12, 30]]


def wrapped(family="llama", **changes):
    return HFModel(family_network(family, **changes), None, family, micro_batch=4)


@pytest.fixture(autouse=True)
def one_thread():
    with on_one_thread():
        yield


@pytest.fixture(scope="module")
def base():
    return wrapped()


@pytest.fixture(scope="module")
def adapted(base):
    return adapters.train_lora(base, TEXTS, rank=4, steps=30, learning_rate=1e-2)


@pytest.fixture
def folder(adapted, tmp_path):
    return adapters.save(adapted, tmp_path / "adapter")


@pytest.mark.parametrize("family", FAMILIES)
def test_training_makes_the_texts_likelier_and_leaves_the_base_alone_bit_for_bit(family):
    base = wrapped(family)
    before = {name: tensor.clone() for name, tensor in base.network.state_dict().items()}
    law, asked = next_log_probs(base, PROMPTS), [p.requires_grad for p in base.network.parameters()]
    adapted = adapters.train_lora(base, TEXTS, rank=4, steps=12, learning_rate=1e-2)
    assert np.mean(adapted.losses[-3:]) < 0.8 * adapted.losses[0]
    ends = [text[1:] for text in TEXTS]
    gain = np.concatenate(score(adapted, [t[:1] for t in TEXTS], ends)).mean()
    assert gain > np.concatenate(score(base, [t[:1] for t in TEXTS], ends)).mean() + 0.2
    after = base.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert np.array_equal(next_log_probs(base, PROMPTS), law)
    assert [p.requires_grad for p in base.network.parameters()] == asked
    assert all(p.grad is None for p in base.network.parameters())
    mine = {p.data_ptr() for p in base.network.parameters()}
    extra = [p for p in adapted.network.parameters() if p.data_ptr() not in mine]
    assert sum(p.numel() for p in extra) == adapted.parameters - base.parameters
    assert adapters.unload(adapted) is base
    np.testing.assert_allclose(
        next_log_probs(adapters.merged(adapted), PROMPTS), next_log_probs(adapted, PROMPTS), atol=1e-4
    )
    assert np.array_equal(next_log_probs(base, PROMPTS), law)


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(base, adapted):
    torch.rand(7)  # The adapter's randomness is its seed's, whatever the global generator has been through.
    state = torch.get_rng_state()
    again = adapters.train_lora(base, TEXTS, rank=4, steps=30, learning_rate=1e-2)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(again.losses, adapted.losses)
    assert np.array_equal(next_log_probs(again, PROMPTS), next_log_probs(adapted, PROMPTS))
    other = adapters.train_lora(base, TEXTS, rank=4, steps=30, learning_rate=1e-2, seed=1)
    assert not np.array_equal(next_log_probs(other, PROMPTS), next_log_probs(adapted, PROMPTS))


@pytest.mark.parametrize("target", ["qkv", "attention_projection", "gate_up", "mlp_projection", "v_proj"])
def test_every_target_can_be_adapted_alone(base, target):
    adapted = adapters.train_lora(base, TEXTS, targets=(target,), steps=3, learning_rate=1e-2)
    law = next_log_probs(adapted, PROMPTS)
    assert np.abs(law - next_log_probs(base, PROMPTS)).max() > 1e-4
    np.testing.assert_allclose(next_log_probs(adapters.merged(adapted), PROMPTS), law, atol=1e-5)
    paths = [path for path, _ in adapted.network.named_parameters() if ".lora_A." in path]
    known = {"qkv": {"q_proj", "k_proj", "v_proj"}, "attention_projection": {"o_proj"}, "v_proj": {"v_proj"}}
    known |= {"gate_up": {"gate_proj", "up_proj"}, "mlp_projection": {"down_proj"}}
    assert {path.split(".lora_A.")[0].rpartition(".")[2] for path in paths} == known[target]


def test_an_untrained_adapter_is_the_base_and_only_completions_are_learnt(base):
    # A learning rate at the bottom of float32 moves B by too little to show.
    still = adapters.train_lora(base, TEXTS, steps=1, learning_rate=1e-30)
    np.testing.assert_allclose(next_log_probs(still, PROMPTS), next_log_probs(base, PROMPTS), atol=1e-6)
    prompts, completions = [[4, 5, 6]], [[7, 8]]
    with Meter() as meter:
        view = adapters.train_lora(base, prompts, completions, steps=1, batch_size=2)
    expected = -np.mean(score(base, prompts, completions)[0])
    np.testing.assert_allclose(view.losses[0], expected, atol=1e-5)
    assert (meter.spend.tokens, meter.spend.model_calls) == (10, 2)


def test_base_and_adapted_run_in_step_over_the_same_tokens(base, adapted):
    drawn = sample_mixture(
        base, adapted, [4, 5, 6], mixture=0.25, switch=2, n=20, max_new_tokens=3, stream=Stream.of(0, "step")
    )
    completions = drawn.completions()
    p, q = (score(model, [[4, 5, 6]] * 20, completions) for model in (base, adapted))
    for row, kept in enumerate(map(len, completions)):
        mixed = np.logaddexp(np.log(0.75) + q[row], np.log(0.25) + p[row])
        mixed[2:] = p[row][2:]
        np.testing.assert_allclose(drawn.log_p[row, :kept], p[row], atol=1e-5)
        np.testing.assert_allclose(drawn.log_q[row, :kept], mixed, atol=1e-5)
    assert np.abs(drawn.log_weights).max() > 0.01


def test_an_error_inside_the_adapted_pass_leaves_the_base_as_it_was(base, adapted):
    law = next_log_probs(base, PROMPTS)

    def fails(module, args):
        raise RuntimeError("in the middle")

    hook = adapted.layers[1].register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        next_log_probs(adapted, PROMPTS)
    assert np.array_equal(next_log_probs(base, PROMPTS), law)
    hook.remove()
    assert not np.array_equal(next_log_probs(adapted, PROMPTS), law)


def test_adapters_and_steering_go_together(base, adapted):
    steering = Steering(np.random.default_rng(0).standard_normal(32), 0.5, "add", 1)
    both = next_log_probs(adapted.steered(steering), PROMPTS)
    assert not np.array_equal(both, next_log_probs(adapted, PROMPTS))
    assert not np.array_equal(both, next_log_probs(base.steered(steering), PROMPTS))
    onto = adapters.train_lora(base.steered(steering), TEXTS, steps=2)
    assert onto.steerings == (steering,)
    np.testing.assert_allclose(next_log_probs(adapters.merged(adapted.steered(steering)), PROMPTS), both, atol=1e-5)
    there = pickle.loads(pickle.dumps(adapted))
    assert np.array_equal(next_log_probs(there, PROMPTS), next_log_probs(adapted, PROMPTS))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_what_was_saved_loads_here_and_in_peft(family, tmp_path):
    from peft import PeftModel

    base = wrapped(family)
    adapted = adapters.train_lora(base, TEXTS, rank=3, steps=3, learning_rate=1e-2, targets=("qkv", "mlp_projection"))
    folder = adapters.save(adapted, tmp_path / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    law = next_log_probs(adapted, PROMPTS)
    assert np.array_equal(next_log_probs(adapters.load(base, folder), PROMPTS), law)
    theirs = PeftModel.from_pretrained(family_network(family), folder).eval()
    with torch.inference_mode():
        logits = theirs(torch.tensor(PROMPTS)).logits[:, -1].double()
    np.testing.assert_allclose(torch.log_softmax(logits, -1), law, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    assert np.array_equal(next_log_probs(adapters.load(base, tmp_path / "theirs"), PROMPTS), law)


def test_an_adapter_fits_its_base_in_another_dtype(base, folder):
    half = HFModel(family_network("llama").to(torch.bfloat16), None, "llama in 16 bits", micro_batch=4)
    there = adapters.load(half, folder)
    apart = np.abs(next_log_probs(there, PROMPTS) - next_log_probs(adapters.load(base, folder), PROMPTS)).max()
    assert apart < 0.2
    assert next_log_probs(adapters.merged(there), PROMPTS).shape == (2, 41)


@pytest.mark.parametrize(
    "other, told",
    [
        (lambda: wrapped("qwen3"), "adapter for llama, of LlamaForCausalLM, but qwen3 is of Qwen3ForCausalLM; load it"),
        (
            lambda: wrapped(hidden_size=48),
            "adapter for llama, of width 32, but llama is of width 48; load it onto the base",
        ),
        (
            lambda: wrapped(num_hidden_layers=2),
            "adapter for llama, of 3 layers, but llama is of 2 layers; load it onto",
        ),
        (lambda: wrapped(seed=1), "adapter for llama, whose weights are not those of llama; load it onto the base"),
    ],
)
def test_an_adapter_for_another_base_is_refused_with_what_differs(folder, other, told):
    with pytest.raises(WorkbenchError, match=told):
        adapters.load(other(), folder)


@pytest.mark.parametrize(
    "other, told",
    [
        (
            lambda: wrapped("gpt2"),
            r"a model with model.layers.0.mlp.down_proj, but gpt2 \(GPT2LMHeadModel, 3 layers\) has none; load",
        ),
        (
            lambda: wrapped(num_hidden_layers=2),
            r"with model.layers.2.*, but llama \(LlamaForCausalLM, 2 layers\) has none",
        ),
        (
            lambda: wrapped(intermediate_size=64),
            "for width 48 at model.layers.0.mlp.down_proj, but llama has width 64 there",
        ),
    ],
)
def test_an_adapter_without_our_note_is_held_against_the_shapes(base, folder, other, told):
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(family_network("llama"), folder)
    theirs.save_pretrained(folder)
    with pytest.raises(WorkbenchError, match=told):
        adapters.load(other(), folder)


def test_a_folder_that_is_no_lora_adapter_is_refused(base, folder, tmp_path):
    def refused(told):
        with pytest.raises(WorkbenchError, match=told) as refusal:
            adapters.load(base, folder)
        assert "\n" not in str(refusal.value)

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole, settings = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(whole[:-5])
    refused("adapter_model.safetensors is cut short or damaged .*; download or save the file again")
    weights.unlink()
    refused("has no adapter_model.safetensors; save it again")
    with (folder / "adapter_model.bin").open("wb") as file:
        pickle.dump(Trap(), file)
    refused("adapter_model.bin, a pickle, which can run code and is never opened; save it again")
    assert not (tmp_path / "sprung").exists()
    weights.write_bytes(whole)
    config.write_text(json.dumps(settings | {"target_modules": ["self_attn.q_proj"]}))
    refused("holds 42 matrices but its adapter_config.json asks for 6; save the adapter again")
    config.write_text(json.dumps(settings | {"peft_type": "LOHA"}))
    refused("holds an adapter of kind LOHA but only LORA is loaded here")
    config.write_text("{")
    refused("adapter_config.json is no adapter's configuration; save it again")
    config.unlink()
    refused("has no adapter_config.json; pass the folder of a LoRA adapter")


@pytest.mark.parametrize(
    "options, told",
    [
        ({"rank": 0}, "rank is 0 but must be a whole number at least 1"),
        ({"alpha": 0}, "alpha is 0 but must be a finite number greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan but must be a finite number greater than 0"),
        ({"steps": 0}, "steps is 0 but must be a whole number at least 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5 but must be a whole number"),
        (
            {"targets": ("qkw",)},
            "targets is 'qkw' but must be made of qkv, attention_projection, .* or names such as q_proj",
        ),
        ({"targets": ()}, "targets is 'empty' but must name at least one projection; pass e.g. targets="),
        ({"learning_rate": 1e30, "steps": 5}, "loss at step . is (nan|inf) but must be finite; lower learning_rate"),
    ],
)
def test_bad_settings_are_refused(base, options, told):
    law = next_log_probs(base, PROMPTS)
    with pytest.raises(WorkbenchError, match=told):
        adapters.train_lora(base, TEXTS, **options)
    assert np.array_equal(next_log_probs(base, PROMPTS), law)
    assert all(p.requires_grad for p in base.network.parameters())


def test_what_has_no_adapter_or_one_already_is_refused(base, adapted, folder, monkeypatch):
    for ask in (adapters.merged, adapters.unload, lambda model: adapters.save(model, folder)):
        with pytest.raises(LacksCapability, match=r"llama has no adapter; pass what adapters.train_lora or"):
            ask(base)
    for ask in (lambda: adapters.load(adapted, folder), lambda: adapters.train_lora(adapted, TEXTS)):
        with pytest.raises(LacksCapability, match=r"llama \(adapted\) has an adapter already; pass adapters.merged"):
            ask()
    with pytest.raises(LacksCapability, match="has no weights here to adapt; load one with 'hf:<folder>'"):
        adapters.train_lora(codeword_grammar(), TEXTS)  # type: ignore[arg-type]
    with pytest.raises(
        WorkbenchError, match=r"prompt\[0\] is 'one token' but must be at least two tokens to learn from"
    ):
        adapters.train_lora(base, [[4]])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for ask in (lambda: adapters.load(base, folder), lambda: adapters.train_lora(base, TEXTS)):
        with pytest.raises(LacksCapability, match="adapters need the package peft; install research-workbench"):
            ask()


def test_the_saved_matrices_are_those_of_the_formula(base, adapted, folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    a, b = (tensors[f"base_model.model.{name}.lora_{matrix}.weight"] for matrix in "AB")
    weight = base.network.get_submodule(name).weight
    expected = weight + (16 / 4) * b @ a
    torch.testing.assert_close(adapters.merged(adapted).network.get_submodule(name).weight, expected)


def test_quantised_weights_take_an_adapter_but_no_merging_and_offloaded_ones_take_none(tmp_path):
    pytest.importorskip("torchao")
    home = tmp_path / "model"
    family_network("llama").save_pretrained(home)
    words().save_pretrained(home)
    model = load(f"hf:{home}", device="cpu", quantization="int8")
    law = next_log_probs(model, PROMPTS)
    adapted = adapters.train_lora(model, TEXTS, steps=5, learning_rate=1e-2)
    assert adapted.losses[-1] < adapted.losses[0]
    assert np.array_equal(next_log_probs(model, PROMPTS), law)
    onto = adapters.load(load(f"hf:{home}"), adapters.save(adapted, tmp_path / "adapter"))
    np.testing.assert_allclose(next_log_probs(onto, PROMPTS), next_log_probs(adapted, PROMPTS), atol=0.2)
    with pytest.raises(
        LacksCapability, match="has quantised weights, which can't take up an adapter; keep the adapted"
    ):
        adapters.merged(adapted)
    offloaded = load(f"hf:{home}", max_memory={"cpu": 40_000})
    with pytest.raises(
        LacksCapability, match="has weights that are offloaded, which take no adapter; load it without max"
    ):
        adapters.load(offloaded, tmp_path / "adapter")
