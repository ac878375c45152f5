"""LoRA adapters through peft: trained, saved, loaded, merged and taken off again.

Does: gives a view of a model with an adapter on, h = W x + (alpha / rank) B A x at the projections chosen (Hu et al.,
arXiv 2106.09685). The view has module objects of its own around the very same weight tensors, so that base and adapted
run side by side over the same tokens, nothing has to be switched on or off, and no error can leave an adapter behind.
Does not: touch the base's weights, open pickles, or train anything but A and B.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from workbench.budget import charge
from workbench.errors import LacksCapability, WorkbenchError, refuse, require_integer, require_number
from workbench.models.adapter_folder import CONFIG, PREFIX, WEIGHTS, check_base, checked, identity
from workbench.models.architecture import projection_names
from workbench.models.base import on_one_thread
from workbench.models.directions import read_after
from workbench.models.hf import HFModel
from workbench.models.quiet import quietly
from workbench.models.steering import active
from workbench.streams import Stream

_NAME = "default"


class AdaptedModel(HFModel):
    """A view of `base` with a LoRA adapter on; the base's weights are shared. losses (steps,): those of its training,
    nats a token, each before its step; empty where it was loaded."""

    def __init__(self, base: HFModel, network: Any, config: Any, losses: Sequence[float] = ()) -> None:
        super().__init__(network, base.tokenizer, f"{base.name} (adapted)", micro_batch=base.micro_batch)
        self.base, self.config, self.losses = base, config, np.asarray(losses)


def train_lora(
    model: HFModel,
    prompts: Any,
    completions: Any = None,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = ("qkv", "attention_projection", "gate_up", "mlp_projection"),
    steps: int = 100,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> AdaptedModel:
    """A view of `model` with an adapter trained to make the completions likely; `model` itself stays as it is.

    Minimises the mean of -log p(token | tokens before it) over the completions' tokens (over all tokens after the first
    where completions is None) with AdamW at a constant learning_rate, gradients clipped to norm 1, for `steps` batches
    of batch_size sequences in seeded order; A is seeded too, B begins at 0. prompts and completions as in `score`.
    targets: "qkv", "attention_projection", "gate_up", "mlp_projection", or names such as "q_proj".
    Charges the tokens read, and twice the flops of a forward pass for the backward pass through frozen weights.
    Raises WorkbenchError: unknown targets, sequences of one token, a loss that is not a number; LacksCapability: an
    unknown architecture, a model that is adapted already, peft not installed.
    """
    _require_plain(model)
    model.require("train")
    require_integer("rank", rank, low=1, high=model.width, cure="pass e.g. rank=8")
    require_integer("steps", steps, low=1, cure="pass e.g. steps=100")
    require_integer("batch_size", batch_size, low=1, cure="pass e.g. batch_size=8")
    require_number("alpha", alpha, low=0, open_low=True, cure="pass e.g. alpha=16")
    require_number("learning_rate", learning_rate, low=0, open_low=True, cure="pass e.g. learning_rate=1e-3")
    sequences, first = read_after(model, prompts, completions)
    for i, sequence in enumerate(sequences):
        if len(sequence) < 2:
            raise refuse(f"prompt[{i}]", "one token", "be at least two tokens to learn from", "pass longer texts")

    with quietly():
        from peft import LoraConfig

    stream = Stream.of(seed, "lora")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=list(_target_names(model, targets)),
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name,
        fan_in_fan_out=_transposed(model.network),
    )
    view = _steered_as(model, AdaptedModel(model, _injected(model.network, config, stream.key[0]), config))
    view.losses = _train(view, sequences, first, steps, batch_size, learning_rate, stream.generator())
    return view


def save(model: HFModel, folder: str | Path) -> Path:
    """Writes the adapter in peft's own format, with a note of its base; the base's weights are not written."""
    from safetensors.torch import save_file

    adapted = _require_adapted(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    adapted.config.save_pretrained(folder)
    tensors = {_saved_name(name): p.detach().cpu().contiguous() for name, p in _adapter_parameters(adapted.network)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", "base": json.dumps(identity(adapted.base))})
    return folder


def load(model: HFModel, folder: str | Path) -> AdaptedModel:
    """A view of `model` with the adapter in `folder` on; one written by `save` or by peft.

    Raises WorkbenchError: files missing or damaged, a pickle, an adapter for another base (what differs), an adapter of
    another kind than plain LoRA; LacksCapability: peft not installed, a model that is adapted already.
    """
    _require_plain(model)
    folder = Path(folder)
    tensors = checked(folder)

    with quietly():
        from peft import LoraConfig
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        note = (file.metadata() or {}).get("base")
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_base(model, folder, tensors, json.loads(note) if note else None)
    config = LoraConfig.from_pretrained(str(folder))
    network = _injected(model.network, config, seed=0)
    wanted = dict(_adapter_parameters(network))
    if sorted(map(_saved_name, wanted)) != sorted(values):
        raise WorkbenchError(
            f"{folder / WEIGHTS} holds {len(values)} matrices but its {CONFIG} asks for {len(wanted)}; save the "
            "adapter again."
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(values[_saved_name(name)])
    return _steered_as(model, AdaptedModel(model, network, config))


def merged(model: HFModel) -> HFModel:
    """A model of its own with W + (alpha / rank) B A as its weights; whatever has no adapter is shared with the base.

    Raises LacksCapability for quantised weights, which a matrix can't be added to.
    """
    adapted = _require_adapted(model)
    network = _twin(adapted.base.network, own_parameters=True)
    for name, module in adapted.network.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        weight: Any = module.base_layer.weight  # type: ignore[union-attr]
        if type(weight) is not nn.Parameter:
            raise LacksCapability(
                f"{adapted.base.name} has quantised weights, which can't take up an adapter; keep the adapted view, or "
                "load the base without quantization."
            )
        with torch.no_grad():
            change = module.get_delta_weight(_NAME)  # type: ignore[operator]
            whole = (weight.to(torch.promote_types(weight.dtype, change.dtype)) + change).to(weight.dtype)
        network.get_submodule(name).weight = nn.Parameter(whole, requires_grad=weight.requires_grad)
    name = f"{adapted.base.name} (merged)"
    return _steered_as(adapted, HFModel(network, adapted.tokenizer, name, micro_batch=adapted.micro_batch))


def unload(model: HFModel) -> HFModel:
    """The base that the adapter was put on: the same object, the same bits."""
    return _require_adapted(model).base


def _steered_as(model: HFModel, other: Any) -> Any:
    """`other` with the steerings of `model`, under its own name."""
    name = other.name
    for steering in model.steerings:
        other = other.steered(steering)
    other.name = name
    return other


def _train(
    view: AdaptedModel,
    sequences: list[np.ndarray],
    first: list[int],
    steps: int,
    batch_size: int,
    learning_rate: float,
    order: np.random.Generator,
) -> np.ndarray:
    parameters = [parameter for _, parameter in _adapter_parameters(view.network)]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    losses, waiting = np.empty(steps), np.empty(0, dtype=np.int64)
    steering = active(view.layers if view.steerings else nn.ModuleList(), view.steerings)
    with _only_trainable(view.network, parameters), on_one_thread(view.small), steering, torch.enable_grad():
        for step in range(steps):
            while len(waiting) < batch_size:
                waiting = np.concatenate([waiting, order.permutation(len(sequences))])
            chosen, waiting = waiting[:batch_size], waiting[batch_size:]
            loss = _loss(view, [sequences[i] for i in chosen], [max(1, first[i]) for i in chosen])
            losses[step] = loss.item()
            if not np.isfinite(losses[step]):
                raise refuse(f"loss at step {step}", losses[step], "be finite", "lower learning_rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    return losses


def _loss(view: AdaptedModel, sequences: list[np.ndarray], first: list[int]) -> torch.Tensor:
    """Mean of -log p over the tokens from `first` on. Padded on the right, where a causal model does not look."""
    length = max(map(len, sequences))
    ids = np.stack([np.pad(sequence, (0, length - len(sequence))) for sequence in sequences])
    at = np.arange(1, length)
    counted = np.stack([(at >= f) & (at < len(s)) for s, f in zip(sequences, first, strict=True)])
    tokens = sum(map(len, sequences))
    charge(tokens=tokens, model_calls=len(sequences), flops=2 * view.flops_per_token * tokens)
    given = torch.as_tensor(ids, device=view.device)
    logits = view.network(given, use_cache=False).logits[:, :-1]
    kept = torch.as_tensor(counted, device=logits.device)
    return nn.functional.cross_entropy(logits[kept].float(), given[:, 1:].to(logits.device)[kept])


def _injected(network: nn.Module, config: Any, seed: int) -> nn.Module:
    """A twin of `network` with an adapter in it, whose A is drawn from `seed` and whose B is 0."""
    with quietly():
        from peft import inject_adapter_in_model

    twin = _twin(network)
    trainable = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    devices = sorted({p.device.index or 0 for p in network.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            inject_adapter_in_model(config, twin, _NAME)  # type: ignore[arg-type]
    except (ValueError, TypeError, NotImplementedError) as error:
        told = str(error).strip().split("\n")[0].rstrip(".")
        raise WorkbenchError(f"peft can't put this adapter on the model ({told}); use plain LoRA.") from error
    finally:
        # peft freezes whatever it does not train, and these tensors are the base's.
        for parameter, was in trainable:
            parameter.requires_grad_(was)
    # As transformers marks what it placed itself: these layers run as they are; a decoder that reads nothing but their
    # weight matrices would pass A and B by.
    twin.hf_device_map = getattr(twin, "hf_device_map", {"": next(network.parameters()).device})
    for _, parameter in _adapter_parameters(twin):
        if parameter.dtype in (torch.bfloat16, torch.float16):
            # Steps of 1e-4 vanish in 16 bits.
            parameter.data = parameter.data.float()
    return twin.eval()


def _twin(network: nn.Module, *, own_parameters: bool = False) -> Any:
    """Module objects of its own around the same parameters and buffers; with own_parameters around
    new parameters on the same memory, so that moving one network's weights elsewhere leaves the other's in place."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in network.buffers()}
    for parameter in network.parameters():
        memo[id(parameter)] = parameter
        if own_parameters:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    return copy.deepcopy(network, memo)


@contextmanager
def _only_trainable(network: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Gradients for `parameters` alone while the block runs."""
    chosen = set(map(id, parameters))
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, was in before:
            parameter.requires_grad_(was)


def _target_names(model: HFModel, targets: Sequence[str]) -> list[str]:
    """Paths from a block of the matrices that `targets` name."""
    points = projection_names(model.network)
    every = [path for paths in points.values() for path in paths]
    short: dict[str, list[str]] = {}
    for path in every:
        short.setdefault(path.rpartition(".")[2], []).append(path)
    known = points | short | {path: (path,) for path in every}
    chosen = [targets] if isinstance(targets, str) else list(targets)
    for target in chosen:
        if target not in known:
            must = f"be made of {', '.join(points)} or names such as {every[0].rpartition('.')[2]}"
            raise refuse("targets", target, must, f"{model.name} has {', '.join(every)}")
    if not chosen:
        raise refuse("targets", "empty", "name at least one projection", "pass e.g. targets=('qkv',)")
    return sorted({path for target in chosen for path in known[target]})


def _transposed(network: nn.Module) -> bool:
    from workbench.models.architecture import architecture_of

    return architecture_of(network).transposed


def _adapter_parameters(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in network.named_parameters() if ".lora_A." in name or ".lora_B." in name]


def _saved_name(name: str) -> str:
    return PREFIX + name.replace(f".{_NAME}.", ".")


def _require_adapted(model: HFModel) -> AdaptedModel:
    if not isinstance(model, AdaptedModel):
        raise LacksCapability(f"{model.name} has no adapter; pass what adapters.train_lora or adapters.load returned.")
    return model


def _require_plain(model: HFModel) -> None:
    """Refuses where peft is missing, and models that no adapter can be put on."""
    if importlib.util.find_spec("peft") is None:
        raise LacksCapability("adapters need the package peft; install research-workbench[gpu].")
    if not isinstance(model, HFModel):
        raise LacksCapability(
            f"{getattr(model, 'name', model)} has no weights here to adapt; load one with 'hf:<folder>'."
        )
    if isinstance(model, AdaptedModel):
        raise LacksCapability(f"{model.name} has an adapter already; pass adapters.merged(model), or its base.")
    if any(parameter.device.type == "meta" for parameter in model.network.parameters()):
        raise LacksCapability(
            f"{model.name} has weights that are offloaded, which take no adapter; load it without max_memory, e.g. with "
            "quantization='int8'."
        )
