"""A Hugging Face model behind our interface is the model itself; steering touches nothing else."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.conftest import network
from workbench import Stream
from workbench.errors import LacksCapability, WorkbenchError
from workbench.models import Steering, load, mean_difference_direction, next_log_probs, sample, score
from workbench.models.hf import HFModel
from workbench.models.steering import active

PROMPT = [4, 5, 6, 7]


def direction(model):
    return mean_difference_direction(model, [[8, 8, 8], [8, 7, 8]], [[4, 4, 4], [4, 5, 4]], 1)


def test_log_probs_are_those_of_a_plain_forward_pass(model):
    sequence = [4, 5, 6, 7, 3, 1, 8, 2]
    with torch.no_grad():
        logits = model.network(torch.tensor([sequence])).logits[0].double()
    plain = torch.log_softmax(logits, dim=-1).numpy()
    np.testing.assert_allclose(next_log_probs(model, sequence)[0], plain[-1], atol=1e-6)
    scored = score(model, sequence[:3], sequence[3:])[0]
    np.testing.assert_allclose(scored, plain[np.arange(2, 7), sequence[3:]], atol=1e-6)
    session = model.start([sequence[:3]])
    for at, token in enumerate(sequence[3:], start=2):
        np.testing.assert_allclose(session.log_probs[0].numpy(), plain[at], atol=1e-6)
        session.advance([token])


def test_hidden_states_are_the_layers_inputs(model):
    prompts = [PROMPT, [8, 8], [5, 5, 5, 5]]
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            states = model.network(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        for layer in (0, 1):
            found = model.hidden_states(prompts, layer)
            np.testing.assert_allclose(found[i], states[layer][0, -1].double().numpy(), atol=1e-5)
    assert model.hidden_states(PROMPT, 2).shape == (1, 32)
    with pytest.raises(WorkbenchError, match=r"layer is 3 but must be a whole number .* at most 2; .* has 2 layers"):
        model.hidden_states(PROMPT, 3)


def test_a_session_branches_without_touching_its_origin(model):
    session = model.start([PROMPT, [8, 8, 8, 8]])
    before = session.log_probs.clone()
    branches = session.select([1, 0, 0, 1, 0])
    branches.advance([4, 5, 6, 7, 8])
    assert torch.equal(session.log_probs, before)
    alone = model.start([PROMPT])
    alone.advance([6])
    assert torch.equal(branches.log_probs[2], alone.log_probs[0])
    wide = session.select([0] * 150)
    wide.advance([6] * 150)
    narrow = wide.select([149, 3])
    narrow.advance([1, 2])
    alone.advance([1])
    assert torch.equal(narrow.log_probs[0], alone.log_probs[0])


def test_large_models_read_each_prompt_on_its_own_and_sample_the_same_law(folders):
    small = load(f"hf:{folders['llama']}")
    large = load(f"hf:{folders['llama']}", micro_batch=8)
    large._sizes.prefill_width = 1
    stream = Stream.of(0, "widths")
    prompts = [PROMPT, [8, 8, 8, 8], PROMPT]
    left = sample(small, prompts, n=9, max_new_tokens=6, stream=stream)
    right = sample(large, prompts, n=9, max_new_tokens=6, stream=stream)
    np.testing.assert_allclose(
        left.log_probs[left.tokens == right.tokens], right.log_probs[left.tokens == right.tokens], atol=1e-5
    )
    assert (left.tokens == right.tokens).mean() > 0.99
    one = sample(large, PROMPT, n=1, max_new_tokens=6, stream=stream.at(20))
    assert np.array_equal(one.log_probs[0], right.log_probs[20])


@pytest.mark.parametrize("kind, layer", [("add", 1), ("ablate", None), ("ablate", 0)])
def test_strength_zero_is_the_base_model_bit_for_bit(model, kind, layer):
    steered = model.steered(Steering(direction(model), 0.0, kind, layer))
    assert np.array_equal(next_log_probs(steered, PROMPT), next_log_probs(model, PROMPT))
    stream = Stream.of(0, "zero")
    base = sample(model, PROMPT, n=20, max_new_tokens=5, stream=stream)
    same = sample(steered, PROMPT, n=20, max_new_tokens=5, stream=stream)
    assert np.array_equal(base.log_probs, same.log_probs)


def test_adding_a_direction_adds_it_to_the_layers_input_and_views_stack(model):
    d = direction(model)
    steered = model.steered(Steering(d, 3.0, "add", 1))
    twice = steered.steered(Steering(d, 2.0, "add", 1))
    base = model.hidden_states(PROMPT, 1)
    np.testing.assert_allclose(steered.hidden_states(PROMPT, 0), model.hidden_states(PROMPT, 0), atol=0)
    after = []
    with active(steered.layers, steered.steerings):
        hook = model.layers[1].register_forward_pre_hook(
            lambda m, a, k: after.append(a or k["hidden_states"]), with_kwargs=True
        )
        model.network(torch.tensor([PROMPT]))
        hook.remove()
    seen = after[0][0] if isinstance(after[0], tuple) else after[0]
    np.testing.assert_allclose(seen[0, -1].detach().double().numpy(), base[0] + 3.0 * d, atol=1e-5)
    assert not np.array_equal(next_log_probs(steered, PROMPT), next_log_probs(model, PROMPT))
    assert not np.array_equal(next_log_probs(twice, PROMPT), next_log_probs(steered, PROMPT))
    np.testing.assert_allclose(
        next_log_probs(twice, PROMPT), next_log_probs(model.steered(Steering(d, 5.0, "add", 1)), PROMPT), atol=1e-5
    )


def test_ablation_removes_the_direction_from_the_stream(model):
    d = direction(model)
    steered = model.steered(Steering(d, 1.0, "ablate"))
    seen = []
    hooks = []
    with active(steered.layers, steered.steerings):
        for layer in model.layers:
            for child in layer.children():
                hooks.append(child.register_forward_pre_hook(lambda m, a, k: seen.append((a, k)), with_kwargs=True))
        hooks.append(model.layers[-1].register_forward_hook(lambda m, a, out: seen.append(((out,), {}))))
        output = model.network(torch.tensor([PROMPT]), output_hidden_states=True)
        for hook in hooks:
            hook.remove()
    # What leaves the last block is a sum of an ablated input and two ablated parts: nothing along d is left in it.
    last = seen[-1][0][0]
    last = last[0] if isinstance(last, tuple) else last
    along = (last.detach().double().numpy() @ d).max()
    assert abs(along) < 1e-5 * np.linalg.norm(last.detach().numpy())
    assert output.logits.isfinite().all()
    half = next_log_probs(model.steered(Steering(d, 0.5, "ablate")), PROMPT)
    assert not np.array_equal(half, next_log_probs(model, PROMPT))
    assert not np.array_equal(half, next_log_probs(steered, PROMPT))


def test_the_base_is_untouched_after_a_steered_pass_and_after_an_error_inside_one(model):
    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.network.modules())

    before, standing = next_log_probs(model, PROMPT), hooks()
    steered = model.steered(Steering(direction(model), 8.0, "ablate"))
    next_log_probs(steered, PROMPT)
    assert np.array_equal(next_log_probs(model, PROMPT), before)

    def fails(module, args):
        raise RuntimeError("in the middle")

    # A user's own hooks are always called: while they stand, the fast decoder, which would not call them, is not used.
    hook = model.layers[1].register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        next_log_probs(steered, PROMPT)
    hook.remove()
    assert np.array_equal(next_log_probs(model, PROMPT), before)
    assert hooks() == standing


def test_steered_views_share_the_weights(model):
    steered = model.steered(Steering(direction(model), 2.0, "add", 0))
    assert steered.network is model.network
    assert steered.name != model.name
    assert model.steerings == ()


def test_models_travel_to_other_processes(llama, grammar):
    steered = llama.steered(Steering(direction(llama), 2.0, "add", 1))
    for model in (llama, steered, grammar):
        there = pickle.loads(pickle.dumps(model))
        assert np.array_equal(next_log_probs(there, PROMPT), next_log_probs(model, PROMPT))


def test_a_mean_difference_is_a_unit_vector_that_separates(model):
    d = direction(model)
    assert np.linalg.norm(d) == pytest.approx(1)
    assert (model.hidden_states([[8, 8, 8]], 1) - model.hidden_states([[4, 4, 4]], 1)) @ d > 0
    with pytest.raises(WorkbenchError, match="mean difference is 0 but must be a vector other than zero; pass two"):
        mean_difference_direction(model, [PROMPT], [PROMPT], 1)


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda d: Steering(d, float("nan"), "add", 1), "steering strength is nan"),
        (lambda d: Steering(d, 1.0, "subtract", 1), "steering kind is 'subtract' but must be one of add, ablate"),
        (lambda d: Steering(d, 1.0, "add"), "steering layer is None but must name one layer"),
        (lambda d: Steering(0 * d, 1.0, "add", 1), "must be one vector other than zero; use mean_difference_direction"),
        (lambda d: Steering(np.full(32, np.inf), 1.0, "add", 1), r"steering direction\[0\] is inf but must be finite"),
        (lambda d: Steering(d[:5], 1.0, "add", 1), "'of length 5' but must have length 32; take the direction from"),
        (
            lambda d: Steering(d, 1.0, "add", 2),
            "steering layer is 2 but must be a whole number at least 0 and at most 1",
        ),
    ],
)
def test_bad_steerings_are_refused(llama, make, told):
    with pytest.raises(WorkbenchError, match=told):
        llama.steered(make(direction(llama)))


def test_models_without_one_list_of_layers_or_known_parts_are_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = network("llama")
            self.b = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(2))
            self.config = self.a.config

        def forward(self, input_ids):
            return self.a(input_ids)

    with pytest.raises(
        LacksCapability, match=r"Twice has 2 lists of 2 decoder layers but .* exactly one; use a decoder"
    ):
        HFModel(Twice(), None, "twice").steered(Steering(np.ones(32), 1.0, "add", 0))

    odd = network("llama")
    for layer in odd.model.layers:
        layer.mixer = layer._modules.pop("mlp")
    with pytest.raises(LacksCapability, match=r"no single part named mlp .* use kind='add'"):
        HFModel(odd, None, "odd").steered(Steering(np.ones(32), 1.0, "ablate"))


def test_non_finite_logits_are_refused(llama):
    poisoned = HFModel(network("llama"), None, "poisoned")
    poisoned.network.lm_head.weight.data[3] = torch.inf
    for ask in (
        lambda: next_log_probs(poisoned, PROMPT),
        lambda: score(poisoned, PROMPT, [4]),
        lambda: sample(poisoned, PROMPT, n=2, max_new_tokens=2, stream=Stream.of(0)),
    ):
        with pytest.raises(
            WorkbenchError,
            match=r"logits of poisoned (in row 0|for prompt 0, sample 0, step 0) are not numbers .*; load the",
        ):
            ask()


def test_a_session_stops_at_the_context(llama):
    session = llama.start([[4] * 31])
    session.advance([5])
    with pytest.raises(WorkbenchError, match="must fit the context"):
        session.advance([5])
    with pytest.raises(WorkbenchError, match="prompts is 'empty' but must hold at least one token"):
        llama.start([[]])
    with pytest.raises(WorkbenchError, match=r"prompts is 'of lengths \[1, 2\]' but must have one length; group them"):
        llama.start([[1], [1, 2]])


def test_experts_and_devices_say_what_they_can_promise(llama):
    assert llama.replay == "exact replay"
    mixture = network("llama")
    mixture.config.num_local_experts = 4
    assert HFModel(mixture, None, "mixture").replay == "same in distribution"
