"""The models that come with the workbench: small transformers in ordinary Hugging Face format.

Does: lists them, describes them, checks their weights against the checksum on their card, and makes them again
from their recipe. Each lives in datasets/models/<name>/ with its card.toml (for programs) and CARD.md (for people).
"""

from __future__ import annotations

import hashlib
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

from workbench import paths
from workbench.errors import WorkbenchError, require_choice
from workbench.models.quiet import quietly

_WEIGHTS = "model.safetensors"
_NO_RECIPES = ("__init__", "ngram", "text", "training")


def list_embedded() -> tuple[str, ...]:
    """The names after "embedded/"."""
    return tuple(sorted(card.parent.name for card in _root().glob("*/card.toml")))


def card(name: str) -> dict[str, Any]:
    """The card of a bundled model: name, summary, recipe, seed, loss, tolerance, sha256, licence, and the figures that
    its recipe measures beside the loss, among them `ngram_loss` and `ngram_order` of the baseline that it beats."""
    require_choice("embedded model", name, list_embedded(), cure="see workbench.models.list_embedded()")
    path = _root() / name / "card.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise WorkbenchError(f"{path} is not TOML ({error}); restore it from the repository.") from None


def verified_folder(name: str) -> Path:
    """The folder of a bundled model whose weights are those on its card."""
    expected = card(name)["sha256"]
    folder = _root() / name
    if not (folder / _WEIGHTS).is_file() or sha256(folder / _WEIGHTS) != expected:
        raise WorkbenchError(
            f"{_WEIGHTS} of embedded/{name} is missing or not the file on its card; restore it from the repository, or "
            f"make it again with workbench.models.build({name!r}, out=folder)."
        )
    return folder


def info(spec: str, tokens: int | None = None) -> dict[str, Any]:
    """What there is to know of an "embedded/" or "hf:" model without loading it.

    architecture, parameters, bytes (on disk), dtype (as it would be loaded), context, vocabulary, memory (a
    `MemoryEstimate`), weights (bytes in memory for each dtype and quantisation), cache_bytes_per_token,
    cache_bytes_of_context (one sequence that fills the context), fits (a sentence for each device found: the largest
    batch of sequences of `tokens` tokens, prompt and answer together; by default 1,024 or the context), checksum_ok
    (None for models without a card).
    """
    from workbench.models import memory
    from workbench.models.folder import checked, weight_files
    from workbench.models.loading import folder_of

    name = spec.removeprefix("embedded/") if spec.startswith("embedded/") else None
    folder = _root() / require_choice("embedded model", name, list_embedded()) if name else folder_of(spec)
    config, tensors = checked(folder)
    estimates = memory.every_estimate(config, tensors)
    first = estimates[0]
    length = memory.require_tokens(tokens, first.context_length)
    text = config.get("text_config") or config
    return {
        "architecture": (config.get("architectures") or [config.get("model_type")])[0],
        "parameters": first.parameters,
        "bytes": sum(path.stat().st_size for path in weight_files(folder)),
        "dtype": first.dtype,
        "context": first.context_length,
        "vocabulary": text.get("vocab_size"),
        "memory": first,
        "weights": memory.weights_by_kind(config, tensors),
        "cache_bytes_per_token": first.cache_bytes_per_token,
        "cache_bytes_of_context": first.cache_bytes(first.context_length or first.tokens),
        "fits": [estimate.sentence(length) for estimate in estimates],
        "checksum_ok": sha256(folder / _WEIGHTS) == card(name)["sha256"] if name else None,
    }


def build(name: str, out: str | Path | None = None) -> dict[str, Any]:
    """Makes a bundled model again from its recipe, and checks that it comes out as good as the one on its card.

    Returns {"name", "loss", "card_loss", "tolerance", "folder"}. The loss is measured on texts that are the same
    each time; it must not exceed the card's by more than the card's tolerance (a share of it), since another
    machine rounds differently and training amplifies that. out: a folder to write the model to, card included;
    None writes nothing. Raises WorkbenchError where the loss is too large.
    """
    recipe = _recipe(name)
    network, tokenizer = recipe.make(recipe.SEED)
    loss = recipe.measured_loss(network)
    stated = card(name)["loss"] if name in list_embedded() else loss
    if loss > stated * (1 + recipe.TOLERANCE):
        raise WorkbenchError(
            f"embedded/{name} came out with a loss of {loss:.3g}, more than {1 + recipe.TOLERANCE:g} times the "
            f"{stated:.3g} on its card; check that torch and transformers are the versions in requirements.lock."
        )
    folder = None if out is None else Path(out)
    if folder is not None:
        _write(folder, name, recipe, network, tokenizer, loss)
    return {"name": name, "loss": loss, "card_loss": stated, "tolerance": recipe.TOLERANCE, "folder": folder}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _root() -> Path:
    return paths.datasets_folder() / "models"


def _recipe(name: str) -> Any:
    recipes = Path(__file__).with_name("recipes")
    known = sorted(path.stem.replace("_", "-") for path in recipes.glob("*.py") if path.stem not in _NO_RECIPES)
    stem = require_choice("embedded model", name, known).replace("-", "_")
    return import_module(f"workbench.models.recipes.{stem}")


def _write(folder: Path, name: str, recipe: Any, network: Any, tokenizer: Any, loss: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with quietly():
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / _WEIGHTS).chmod(0o644)
    checksum = sha256(folder / _WEIGHTS)
    figures = recipe.figures(network) if hasattr(recipe, "figures") else {}
    shown = {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in figures.items()}
    lines = [
        f'name = "{name}"',
        f'summary = "{recipe.SUMMARY}"',
        f'recipe = "{recipe.__name__}"',
        f"seed = {recipe.SEED}",
        f"parameters = {sum(p.numel() for p in network.parameters())}",
        f"loss = {loss:.6g}",
        f"tolerance = {recipe.TOLERANCE}",
        *(f"{key} = {value}" for key, value in shown.items()),
        f'sha256 = "{checksum}"',
        f'licence = "{getattr(recipe, "LICENCE", "Apache-2.0")}"',
    ]
    (folder / "card.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    measured = ", ".join(f"{key} {value}" for key, value in {"loss": f"{loss:.6g}", **shown}.items())
    text = recipe.CARD.strip() + (f"\n- **Measured**: {measured}.\n" if figures else "\n")
    (folder / "CARD.md").write_text(text, encoding="utf-8")
