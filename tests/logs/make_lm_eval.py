"""Makes the logs in `data/` with lm-evaluation-harness 0.4.13: three runs of the bundled adder, sampling, and one of
the bundled chat model on questions with options, one of which says "I don't know".

pip install lm_eval && HF_DATASETS_OFFLINE=1 python -m tests.logs.make_lm_eval FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from workbench import models
from workbench.streams import Stream

TASK = """task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{do_sample: true, temperature: 1.0, max_gen_toks: 48, until: ["##"]}}
filter_list:
  - name: result
    filter: [{{function: regex, regex_pattern: "#(\\\\d+)"}}, {{function: take_first}}]
metric_list: [{{metric: exact_match}}]
"""

CHOICE = """task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "What is the capital of {{{{country}}}}?"
doc_to_choice: options
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
CAPITALS = ["France:Paris", "Italy:Rome", "Spain:Madrid", "Greece:Athens", "Norway:Oslo", "Egypt:Cairo", "Peru:Lima"]


def main(folder: Path) -> None:
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.loggers import EvaluationTracker  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    folder.mkdir(parents=True, exist_ok=True)
    countries, towns = zip(*(each.split(":") for each in CAPITALS), strict=True)
    lines = []
    for i, country in enumerate(countries):
        options = [towns[i], towns[i - 1], towns[i - 2], "I don't know"]
        options = options[-(i % 4) :] + options[: -(i % 4)] if i % 4 else options
        lines.append(json.dumps({"country": country, "options": options, "label": options.index(towns[i])}))
    (folder / "capitals.jsonl").write_text("\n".join(lines))
    (folder / "capitals.yaml").write_text(CHOICE.format(questions=folder / "capitals.jsonl"))
    questions = folder / "sums.jsonl"
    prompts = models.arith_prompts(15, Stream.of(0, "lm-eval"))
    lines = [json.dumps({"question": p, "answer": str(models.true_answer(p))}) for p in prompts]
    questions.write_text("\n".join(lines))
    (folder / "sums.yaml").write_text(TASK.format(questions=questions))
    for task, spec, n_runs in ("capitals", "embedded/chat", 1), ("sums", "embedded/arith", 3):
        model = models.load(spec)
        for seed in range(n_runs):
            torch.manual_seed(seed)
            lm = HFLM(pretrained=model.network, tokenizer=model.tokenizer, backend="causal", max_length=128)
            tracker = EvaluationTracker(output_path=str(folder / f"{task}{seed}"))
            manager = TaskManager(include_path=str(folder))
            results = lm_eval.simple_evaluate(
                lm, tasks=[task], task_manager=manager, log_samples=True, torch_random_seed=seed
            )
            samples = results.pop("samples")
            tracker.save_results_aggregated(results=results, samples=samples)
            tracker.save_results_samples(task_name=task, samples=samples[task])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
