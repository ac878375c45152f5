"""Steering does at every named point of every family what its formula says; capturing keeps what was asked for."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.families import FAMILIES, family_network
from workbench import Meter, Stream
from workbench.errors import LacksCapability, WorkbenchError
from workbench.models import Steering, hidden_states, load, next_log_probs, persona_vectors, projections, sample
from workbench.models.architecture import POINTS, architecture_of
from workbench.models.base import on_one_thread
from workbench.models.hf import HFModel
from workbench.models.steering import active

IDS = torch.tensor([[4, 5, 6, 7, 30], [8, 8, 1, 2, 3]])
PROMPTS = IDS.tolist()
D = np.random.default_rng(5).standard_normal(32)


@pytest.fixture(autouse=True)
def one_thread():
    with on_one_thread():
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return HFModel(family_network(request.param), None, request.param, micro_batch=4)


def seen_at_points(model, steerings):
    """What passes each named point of each layer while `steerings` are on: {(layer, point): (n, length, width)}."""
    a, seen, hooks = architecture_of(model.network), {}, []
    with active(model.layers, steerings), torch.inference_mode():
        # Registered after the steering's own hooks, these see what the rest of the network sees.
        for index, layer in enumerate(a.layers):

            def look(module, args, output=None, key=None):
                value = args[0] if output is None else output
                seen[key] = value[0] if isinstance(value, tuple) else value

            for point in POINTS[1:]:
                key = (index, point)
                hooks.append(
                    getattr(layer, point).register_forward_hook(
                        lambda module, args, output, key=key, look=look: look(module, args, output, key)
                    )
                )
            key = (index, "layer_input")
            hooks.append(
                layer.module.register_forward_pre_hook(
                    lambda module, args, key=key, look=look: look(module, args, None, key)
                )
            )
        logits = model.network(IDS).logits
        for hook in hooks:
            hook.remove()
    return seen, logits


@pytest.mark.parametrize("points", [None, ("attention_output",), ("mlp_output", "layer_input")])
def test_adding_at_a_point_adds_there_and_nowhere_before(model, points):
    base, _ = seen_at_points(model, [])
    steering = Steering(D, 0.5, "add", 1, points)
    seen, logits = seen_at_points(model, [steering])
    order = ["layer_input", *POINTS[1:]]
    first = min(order.index(point) for point in steering.points)
    for point in order[: first + 1]:
        change = (seen[1, point] - base[1, point]).double().numpy()
        # Phi's MLP runs beside its attention, so a change of the attention's output reaches neither.
        expected = 0.5 * D if point == order[first] else 0
        np.testing.assert_allclose(change, np.broadcast_to(expected, change.shape), atol=1e-5)
    assert torch.equal(seen[0, "mlp_output"], base[0, "mlp_output"])
    steered = next_log_probs(model.steered(steering), PROMPTS)
    np.testing.assert_allclose(steered, torch.log_softmax(logits[:, -1].double(), -1).numpy(), atol=1e-5)
    assert np.abs(steered - next_log_probs(model, PROMPTS)).max() > 1e-3


def test_ablation_leaves_nothing_along_the_direction_at_any_point(model):
    unit = D / np.linalg.norm(D)
    base, _ = seen_at_points(model, [])
    seen, _ = seen_at_points(model, [Steering(D, 1.0, "ablate")])
    for key, value in seen.items():
        size = float(value.double().norm(dim=-1).max())
        assert float((value.double() @ torch.as_tensor(unit)).abs().max()) < 1e-5 * size, key
        assert float((base[key].double() @ torch.as_tensor(unit)).abs().max()) > 1e-3 * size, key
    only, _ = seen_at_points(model, [Steering(D, 1.0, "ablate", 1, ("mlp_output",))])
    assert torch.equal(only[1, "attention_output"], base[1, "attention_output"])
    assert float((only[1, "mlp_output"].double() @ torch.as_tensor(unit)).abs().max()) < 1e-5 * size


def test_strength_zero_is_the_base_bit_for_bit_and_steerings_compose_in_order(model):
    base = next_log_probs(model, PROMPTS)
    for steering in (Steering(D, 0.0, "add", 1, "mlp_output"), Steering(D, 0.0, "ablate")):
        assert np.array_equal(next_log_probs(model.steered(steering), PROMPTS), base)
    add, ablate = Steering(D, 0.8, "add", 1), Steering(D, 1.0, "ablate", 1, "layer_input")
    ablated = next_log_probs(model.steered(ablate), PROMPTS)
    np.testing.assert_allclose(next_log_probs(model.steered(add).steered(ablate), PROMPTS), ablated, atol=1e-5)
    assert np.abs(next_log_probs(model.steered(ablate).steered(add), PROMPTS) - ablated).max() > 1e-3


def test_hidden_states_are_those_of_the_network_at_every_layer(model):
    with torch.inference_mode():
        states = model.network(IDS, output_hidden_states=True).hidden_states
    found = hidden_states(model, PROMPTS, range(3))
    whole = hidden_states(model, PROMPTS, [2, 0], positions="all")
    for layer in range(3):
        np.testing.assert_allclose(found[:, layer], states[layer][:, -1].double().numpy(), atol=1e-5)
    for row in range(2):
        np.testing.assert_allclose(whole[row], torch.stack([states[2][row], states[0][row]]).double(), atol=1e-5)
    mean = hidden_states(model, PROMPTS, 1, positions="mean")
    np.testing.assert_allclose(mean[:, 0], states[1].double().mean(dim=1), atol=1e-5)


def test_states_of_completions_are_those_of_their_own_tokens():
    model = HFModel(family_network("llama"), None, "llama", micro_batch=4)
    prompts, completions = [[4, 5], [6, 7, 8], [4, 5]], [[9, 10, 11], [12], [13, 14, 15]]
    with Meter() as meter:
        means = hidden_states(model, prompts, [0, 2, 3], positions="mean", completions=completions)
    assert (meter.spend.tokens, meter.spend.model_calls) == (14, 3)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        everything = hidden_states(model, [prompt + completion], [0, 2, 3], positions="all")[0]
        np.testing.assert_allclose(means[row], everything[:, len(prompt) :].mean(axis=1), atol=1e-6)
    many = hidden_states(model, prompts * 3, 2, completions=completions * 3)
    assert np.array_equal(many[4], hidden_states(model, prompts[1], 2, completions=completions[1])[0])


class LiveBytes(TorchDispatchMode):
    """The most bytes of new tensors alive at one time."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return out

    def freed(self, key, size):
        self.known.discard(key)
        self.live -= size


def test_memory_does_not_grow_with_the_layers_that_were_not_asked_for():
    """Sixty tokens of width 32 are 30 kB a layer in blocks of four; six layers more cost not a fifth of one."""
    peaks = {}
    for depth in (3, 9):
        model = HFModel(family_network("llama", num_hidden_layers=depth), None, "llama", micro_batch=4)
        prompts = [[5] * 60] * 4
        for layers in ((1,), tuple(range(3))):
            with LiveBytes() as memory:
                hidden_states(model, prompts, layers, positions="mean")
            peaks[depth, layers] = memory.peak
        with LiveBytes() as memory, torch.inference_mode():
            model.network(torch.full((4, 60), 5), output_hidden_states=True, use_cache=False)
        peaks[depth, "all"] = memory.peak
    layer_bytes = 4 * 60 * 32 * 4
    assert peaks[9, (1,)] - peaks[3, (1,)] < layer_bytes / 5
    assert peaks[9, (0, 1, 2)] - peaks[9, (1,)] < layer_bytes / 5
    assert peaks[9, "all"] - peaks[3, "all"] > 5 * layer_bytes


@pytest.fixture(scope="module")
def codeword():
    return load("embedded/codeword")


def test_persona_vectors_are_the_difference_of_mean_states_over_response_tokens(codeword):
    positive, negative, questions = [[8, 8]], [[4, 4], [5, 5]], [[6], [7]]
    stream = Stream.of(0, "persona")
    vectors = persona_vectors(codeword, positive, negative, questions, stream=stream, n=4, max_new_tokens=3)
    means = []
    for name, systems in (("positive", positive), ("negative", negative)):
        prompts = [system + question for system in systems for question in questions]
        drawn = sample(codeword, prompts, n=4, max_new_tokens=3, stream=stream.child(name))
        states = []
        for row, response in enumerate(drawn.completions()):
            whole = torch.tensor([prompts[row // 4] + response.tolist()])
            with torch.inference_mode():
                output = codeword.network.model(whole, output_hidden_states=True)
                last = []
                hook = codeword.network.model.layers[-1].register_forward_hook(
                    lambda m, a, out, last=last: last.append(out)
                )
                codeword.network.model(whole)
                hook.remove()
            layers = [*output.hidden_states[:-1], last[0]]
            states.append([layer[0, -len(response) :].double().mean(dim=0).numpy() for layer in layers])
        means.append(np.mean(states, axis=0))
    np.testing.assert_allclose(vectors, means[0] - means[1], atol=1e-5)
    assert vectors.shape == (codeword.n_layers + 1, codeword.width)
    again = persona_vectors(codeword, positive, negative, questions, stream=stream, n=4, max_new_tokens=3)
    assert np.array_equal(vectors, again)
    np.testing.assert_allclose(projections(vectors[1], vectors[1]), np.linalg.norm(vectors[1]))


def test_only_responses_that_show_the_persona_count(codeword):
    stream, told = Stream.of(0, "persona"), "positive responses that fit is 0 but must be at least 1; sample more"
    with pytest.raises(WorkbenchError, match=told):
        persona_vectors(codeword, [[8]], [[4]], [[6]], stream=stream, shows=lambda text: False)
    with pytest.raises(WorkbenchError, match="negative responses that fit is 0"):
        persona_vectors(codeword, [[8]], [[4]], [[6]], stream=stream, shows=lambda text: True)


@pytest.mark.parametrize(
    "ask, told",
    [
        (lambda m: hidden_states(m, PROMPTS, 4), r"layer is 4 but must .* at most 3; llama has 3 layers"),
        (lambda m: hidden_states(m, PROMPTS, []), "layers is 'empty' but must name at least one layer; pass e.g."),
        (lambda m: hidden_states(m, PROMPTS, [0, -1]), "layer is -1 but must be a whole number at least 0"),
        (lambda m: hidden_states(m, PROMPTS, 0, positions="first"), "positions is 'first' but must be one of last"),
        (lambda m: hidden_states(m, PROMPTS, 0, completions=[[1]]), "completions is '1 sequences' but must be as many"),
        (lambda m: hidden_states(m, [[1]], 0, completions=[[]]), r"completion\[0\] is 'empty' but must hold at least"),
        (lambda m: m.steered(Steering(D, 1.0, "add", 3)), "steering layer is 3 but must .* at most 2; count layers"),
        (lambda m: Steering(D, 1.0, "add", 1, "logits"), "steering point is 'logits' but must be one of layer_input"),
        (
            lambda m: Steering(D, 1.0, "add", 1, ()),
            "steering points is .* but must hold at least one .* name each once",
        ),
        (lambda m: projections(np.ones((2, 3)), [1.0, 2.0]), r"direction is 'of shape \(2,\)' but must be one vector"),
        (lambda m: projections(np.ones((2, 2)), [np.nan, 2.0]), r"direction\[0\] is nan but must be finite"),
        (
            lambda m: persona_vectors(m, [[1]], [[1]], [], stream=Stream.of(0)),
            "positive system prompts and questions is 'empty or of two kinds' but must be of one kind; pass lists",
        ),
    ],
)
def test_bad_input_is_refused(ask, told):
    model = HFModel(family_network("llama"), None, "llama", micro_batch=4)
    with pytest.raises(WorkbenchError, match=told):
        ask(model)


def test_an_unknown_block_can_be_added_to_but_not_ablated():
    from transformers import OlmoConfig, OlmoForCausalLM

    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = HFModel(OlmoForCausalLM(OlmoConfig(vocab_size=41, pad_token_id=0, **size)), None, "olmo", micro_batch=4)
    added = next_log_probs(model.steered(Steering(D, 3.0, "add", 1)), PROMPTS)
    assert np.abs(added - next_log_probs(model, PROMPTS)).max() > 1e-3
    told = "OlmoDecoderLayer is no decoder layer whose parts are known here; use kind='add', .* families llama, mistral"
    with pytest.raises(LacksCapability, match=told):
        model.steered(Steering(D, 1.0, "ablate"))


def test_threads_never_see_each_others_steering():
    from concurrent.futures import ThreadPoolExecutor

    model = load("embedded/codeword")
    model._decoder = None  # the network's own forward pass, with hooks on modules that all views share
    direction = np.random.default_rng(0).standard_normal(model.width)
    views = [model, model.steered(Steering(direction, 3.0, kind="add", layer=1))]
    prompts = [[5, 6, 7]] * 4
    alone = [next_log_probs(view, prompts) for view in views]

    def ask(number: int) -> bool:
        return np.array_equal(next_log_probs(views[number % 2], prompts), alone[number % 2])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(200)))
