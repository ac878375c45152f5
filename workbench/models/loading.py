"""`load`: one way to any model, from a hundred kilobytes to seventy billion parameters.

load("embedded/codeword")            bundled with the workbench, checked against its checksum
load("grammar/codeword")             a finite automaton with exact probabilities
load("hf:folder or id")              Hugging Face format: safetensors only, no remote code unless asked for
load("openai:base url#model")        an OpenAI-compatible server; see `endpoint`
load("replay:transcript")            what such a server answered, from the file that was kept, without network
"""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

from workbench.errors import LacksCapability, WorkbenchError, refuse, require_choice
from workbench.models import chat, grammars, timeline
from workbench.models.base import LanguageModel
from workbench.models.quiet import quietly

_GRAMMARS = {
    "codeword": grammars.codeword_grammar,
    "bigram": grammars.bigram,
    "two_branch": lambda: grammars.two_branch(c=1e-3, r=0.3),
    "timeline": timeline.timeline_grammar,
    "chat": chat.chat_grammar,
}
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja"]


def load(
    spec: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    trust_remote_code: bool = False,
    max_memory: dict[int | str, int | str] | None = None,
    attn_implementation: str | None = None,
    micro_batch: int | None = None,
    **remote: Any,
) -> LanguageModel:
    """The model that `spec` names: "embedded/<name>", "grammar/<name>", "hf:<folder or hub id>",
    "openai:<base url>#<model>" or "replay:<transcript>".

    device: "auto" (cuda, mps, cpu, the first that is there) or one of them. dtype: "auto" (float32 on the CPU;
    elsewhere bfloat16 for weights stored in 16 bits, as stored otherwise) or a name. quantization:
    "int8" (a scale for each output) or "int4" (CUDA only; groups of 128), matrices of linear layers only. max_memory:
    e.g. {0: "20GB", "cpu": "60GB"}, as in accelerate; what these have no room for is read from disk at each pass.
    attn_implementation: "eager", "sdpa" or another that transformers knows. micro_batch: rows of one forward pass (see `hf`). Options that a grammar has no use
    for are ignored there. remote: for "openai:" and "replay:" only, where the others mean nothing; see
    `endpoint.connect`.
    Raises WorkbenchError (DoesNotFit, LacksCapability) with the file or setting at fault and the cure.
    """
    if not isinstance(spec, str):
        raise refuse("spec", spec, "be a text", "pass e.g. 'embedded/codeword' or 'hf:Qwen/Qwen2.5-0.5B'")
    if spec.startswith(("openai:", "replay:")):
        from workbench.models.endpoint import connect

        unknown = sorted(remote.keys() - inspect.signature(connect).parameters.keys())
        if unknown:
            require_choice("option of an endpoint", unknown[0], list(inspect.signature(connect).parameters)[1:])
        return connect(spec, **remote)
    if remote:
        name = next(iter(remote))
        raise refuse("spec", spec, f"begin with openai: or replay: to take {name}=", f"leave {name} out")
    if spec.startswith("grammar/"):
        name = require_choice("grammar", spec.removeprefix("grammar/"), _GRAMMARS)
        return _GRAMMARS[name]()
    options: dict[str, Any] = {"max_memory": max_memory, "attn_implementation": attn_implementation}
    options |= {"micro_batch": micro_batch, "quantization": quantization}
    folder = folder_of(spec, trust_remote_code=trust_remote_code)
    return from_folder(folder, spec, device=device, dtype=dtype, trust_remote_code=trust_remote_code, **options)


def folder_of(spec: str, *, trust_remote_code: bool = False) -> Path:
    """The folder on this machine with the model of an "embedded/" or "hf:" spec, checked or downloaded."""
    if spec.startswith("embedded/"):
        from workbench.models.embedded import verified_folder

        return verified_folder(spec.removeprefix("embedded/"))
    if not spec.startswith("hf:"):
        must = "begin with embedded/, grammar/, hf:, openai: or replay:"
        raise refuse("spec", spec, must, f"for a model's folder or an id on the Hugging Face hub pass 'hf:{spec}'")
    wanted = spec.removeprefix("hf:")
    if not wanted:
        raise refuse("spec", spec, "name a folder or a hub id", "pass e.g. 'hf:Qwen/Qwen2.5-0.5B'")
    path = Path(wanted).expanduser()
    looks_like_id = wanted.count("/") <= 1 and not wanted.startswith((".", "/", "~"))
    return _downloaded(wanted, trust_remote_code) if looks_like_id and not path.exists() else path


def from_folder(
    folder: Path,
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    trust_remote_code: bool = False,
    max_memory: dict[int | str, int | str] | None = None,
    attn_implementation: str | None = None,
    micro_batch: int | None = None,
) -> LanguageModel:
    """A model from its folder; see `load`."""
    from workbench.models import memory
    from workbench.models.folder import checked

    config, tensors = checked(folder)
    if config.get("auto_map") and not trust_remote_code:
        raise WorkbenchError(
            f"{folder / 'config.json'} asks to run code that came with the model; read that code, then pass "
            "trust_remote_code=True."
        )
    place = memory.chosen_device(device)
    if attn_implementation is not None:
        require_choice("attn_implementation", attn_implementation, ATTENTION, cure="or leave it out")
    if quantization is not None:
        memory.check_quantization(name, quantization, place, config)
    wanted = memory.estimate(config, tensors, place, dtype, quantization)
    if max_memory is None:
        memory.check_fits(name, wanted, config, tensors)
    placing = _placing(place, max_memory, quantization)
    masked = str((config.get("architectures") or [""])[0]).endswith("ForMaskedLM")
    with quietly():
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

        from workbench.models.hf import HFModel
        from workbench.models.masked import MaskedModel

    common = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    try:
        with quietly():
            tokenizer = AutoTokenizer.from_pretrained(folder, **common)
            loaded: Any = (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_pretrained(
                folder,
                dtype=memory.DTYPES[wanted.dtype],
                use_safetensors=True,
                attn_implementation=attn_implementation,
                output_loading_info=True,
                **placing,
                **common,
            )
        network, report = loaded
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, NotImplementedError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if attn_implementation is not None and any(word in told for word in ("ttention", "ttn_implementation")):
            must = f"be one that this model and machine have ({told.split('. ')[0]})"
            raise refuse("attn_implementation", attn_implementation, must, "pass 'sdpa' or 'eager'") from error
        if placing:
            asked = f"max_memory={max_memory}" if max_memory is not None else f"quantization={quantization!r}"
            raise WorkbenchError(f"{folder} does not load with {asked} ({told}); load it without.") from error
        kind = "masked" if masked else "causal"
        raise WorkbenchError(f"{folder} is no {kind} language model that loads ({told}); check its files.") from error
    absent = sorted(report["missing_keys"])
    if absent:
        raise WorkbenchError(
            f"{folder} lacks {len(absent)} of the model's tensors, {absent[0]} first; without them it would answer "
            "from random weights, so save or download it again."
        )
    network = network if "device_map" in placing else network.to(place)
    if quantization is not None:
        # As transformers marks what it placed itself: these weights stay where and as they are, and are not joined.
        network.hf_device_map = getattr(network, "hf_device_map", {"": place})
    if masked:
        return MaskedModel(network, tokenizer, name)
    model = HFModel(network, tokenizer, name, micro_batch=micro_batch)
    if model.device.type == "meta":
        # The first weights are on disk; tokens go to where the first layer computes.
        model.device = memory.first_device(network)
    return model


def _placing(place: str, max_memory: dict[int | str, int | str] | None, quantization: str | None) -> dict[str, Any]:
    """What transformers is told about where weights go and how they are stored."""
    placing: dict[str, Any] = {}
    if max_memory is not None:
        if not isinstance(max_memory, dict) or not max_memory:
            cure = "pass e.g. {0: '20GB', 'cpu': '60GB'}"
            raise refuse("max_memory", max_memory, "map devices to the memory each may take", cure)
        placing = {"device_map": "auto", "max_memory": max_memory}
    elif quantization is not None and place != "cpu":
        # Quantised as it arrives, so that the device never holds the whole of it.
        placing = {"device_map": {"": place}}
    if placing and importlib.util.find_spec("accelerate") is None:
        asked = "max_memory" if max_memory is not None else f"quantization on {place}"
        raise LacksCapability(f"{asked} needs the package accelerate; install research-workbench[gpu].")
    if quantization is not None:
        placing["quantization_config"] = _torchao_config(quantization)
    return placing


def _torchao_config(quantization: str) -> Any:
    from workbench.models.memory import INT4_GROUP

    with quietly():
        from torchao.quantization import (  # pyright: ignore[reportMissingImports]
            Int4WeightOnlyConfig,
            Int8WeightOnlyConfig,
        )
        from transformers import TorchAoConfig

        # set_inductor_config would change torch.compile's settings for the whole process.
        if quantization == "int8":
            return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
        packing: Any = "tile_packed_to_4d"
        return TorchAoConfig(
            Int4WeightOnlyConfig(group_size=INT4_GROUP, int4_packing_format=packing, set_inductor_config=False)
        )


def _downloaded(repository: str, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*_HUB_FILES, *(["*.py"] if trust_remote_code else [])]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise WorkbenchError(
            f"hf:{repository} is neither a folder here nor could it be fetched from the Hugging Face hub "
            f"({type(error).__name__}); check the spelling, the connection and your access, or pass 'hf:<folder>'."
        ) from error
