"""Language models behind one interface: bundled, grammar, Hugging Face, or on a server; sampled, scored, steered.

    model = workbench.models.load("embedded/codeword")
    samples = workbench.models.sample(model, [4, 5, 6], n=100, max_new_tokens=5, stream=Stream.of(0, "first look"))

Names are loaded when first used, so that a grammar does not wait for transformers.
"""

from workbench.lazy import attach

_HOME = {
    "base": ("CAPABILITIES", "LanguageModel", "Session"),
    "sampling": ("PairedSamples", "Samples", "event_mass", "sample", "sample_in_step", "sample_mixture"),
    "laws": ("Law", "draw"),
    "scoring": ("next_log_probs", "score"),
    "enumerate": ("Bounds", "PrefixTree", "contains", "event_bounds", "prefix_tree"),
    "grammar": ("GrammarModel", "Tilt"),
    "grammars": ("bigram", "codeword_grammar", "codeword_prompts", "comply_probability", "two_branch"),
    "steering": ("Steering",),
    "directions": ("hidden_states", "mean_difference_direction", "persona_vectors", "projections"),
    "loading": ("load",),
    "endpoint": ("EndpointModel",),
    "answers": ("TextSamples", "TopLogProbs"),
    "endpoint_check": ("check_endpoint",),
    "memory": ("memory_estimate",),
    "embedded": ("build", "card", "info", "list_embedded"),
    "chat": (
        "chat_grammar",
        "chat_messages",
        "chat_prompts",
        "codeword_probability",
        "codeword_questions",
        "compliance_probability",
        "contains_codeword",
        "is_refusal",
    ),
    "timeline": ("outcome_risk", "timeline_grammar", "timeline_histories"),
    "masked": ("MaskedModel",),
    "equations": ("carried_sums", "equation_is_right", "exact_marginals"),
    "verifier": ("step_probabilities",),
    "tasks": ("arith_prompts", "parse_answer", "step_labels", "true_answer", "worked_solution"),
}
__getattr__, __dir__, __all__ = attach(__name__, _HOME)
