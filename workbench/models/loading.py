"""`load`: one way to any model, from a hundred kilobytes to seventy billion parameters.

load("embedded/codeword")            bundled with the workbench, checked against its checksum
load("grammar/codeword")             a finite automaton with exact probabilities
load("hf:folder or id")              Hugging Face format: safetensors only, no remote code unless asked for
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from workbench.errors import LacksCapability, WorkbenchError, refuse, require_choice
from workbench.models import grammars
from workbench.models.base import LanguageModel

_GRAMMARS = {
    "codeword": grammars.codeword_grammar,
    "bigram": grammars.bigram,
    "two_branch": lambda: grammars.two_branch(c=1e-3, r=0.3),
}
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja"]


def load(
    spec: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    max_memory: dict[int | str, int | str] | None = None,
    attn_implementation: str | None = None,
    micro_batch: int | None = None,
) -> LanguageModel:
    """The model that `spec` names: "embedded/<name>", "grammar/<name>" or "hf:<folder or hub id>".

    device: "auto" (cuda, mps, cpu, the first that is there) or one of them. dtype: "auto" (float32 on the CPU;
    elsewhere bfloat16 for weights stored in 16 bits, as stored otherwise) or a name. max_memory: spread over
    devices, as in accelerate. micro_batch: rows of one forward pass (see `hf`). Options that a grammar has no use
    for are ignored there.
    Raises WorkbenchError (DoesNotFit, LacksCapability) with the file or setting at fault and the cure.
    """
    if not isinstance(spec, str):
        raise refuse("spec", spec, "be a text", "pass e.g. 'embedded/codeword' or 'hf:Qwen/Qwen2.5-0.5B'")
    if spec.startswith("grammar/"):
        name = require_choice("grammar", spec.removeprefix("grammar/"), _GRAMMARS)
        return _GRAMMARS[name]()
    options = {"max_memory": max_memory, "attn_implementation": attn_implementation, "micro_batch": micro_batch}
    folder = folder_of(spec, trust_remote_code=trust_remote_code)
    return from_folder(folder, spec, device=device, dtype=dtype, trust_remote_code=trust_remote_code, **options)


def folder_of(spec: str, *, trust_remote_code: bool = False) -> Path:
    """The folder on this machine with the model of an "embedded/" or "hf:" spec, checked or downloaded."""
    if spec.startswith("embedded/"):
        from workbench.models.embedded import verified_folder

        return verified_folder(spec.removeprefix("embedded/"))
    if not spec.startswith("hf:"):
        must = "begin with embedded/, grammar/ or hf:"
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
    wanted = memory.estimate(config, tensors, place, dtype)
    if max_memory is None:
        memory.check_fits(name, wanted)
    elif importlib.util.find_spec("accelerate") is None:
        raise LacksCapability("max_memory needs the package accelerate; install research-workbench[gpu].")

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from workbench.models.hf import HFModel

    common = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    placing: dict[str, Any] = {} if max_memory is None else {"device_map": "auto", "max_memory": max_memory}
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **common)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=memory.torch_dtype(wanted.dtype),
            use_safetensors=True,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            **placing,
            **common,
        )
        network, report = loaded
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise WorkbenchError(f"{folder} is no causal language model that loads ({told}); check its files.") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    absent = sorted(report["missing_keys"])
    if absent:
        raise WorkbenchError(
            f"{folder} lacks {len(absent)} of the model's tensors, {absent[0]} first; without them it would answer "
            "from random weights, so save or download it again."
        )
    network = network if placing else network.to(place)
    return HFModel(network, tokenizer, name, micro_batch=micro_batch)


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
