"""Language models behind one interface: bundled, grammar and Hugging Face; sampled, scored, enumerated, steered.

    model = workbench.models.load("embedded/codeword")
    samples = workbench.models.sample(model, [4, 5, 6], n=100, max_new_tokens=5, stream=Stream.of(0, "first look"))

Names are loaded when first used, so that a grammar does not wait for transformers.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "base": ("CAPABILITIES", "LanguageModel", "Session"),
    "sampling": ("PairedSamples", "Samples", "draw", "sample", "sample_mixture"),
    "scoring": ("next_log_probs", "score"),
    "enumerate": ("Bounds", "PrefixTree", "contains", "event_bounds", "prefix_tree"),
    "grammar": ("GrammarModel", "Tilt"),
    "grammars": ("bigram", "codeword_grammar", "codeword_prompts", "comply_probability", "two_branch"),
    "steering": ("Steering", "mean_difference_direction"),
    "loading": ("load",),
    "memory": ("memory_estimate",),
    "embedded": ("build", "card", "info", "list_embedded"),
    "tasks": ("arith_prompts", "parse_answer", "step_labels", "true_answer", "worked_solution"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
