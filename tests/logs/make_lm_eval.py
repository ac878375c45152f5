"""Makes the logs in `data/`: three runs of lm-evaluation-harness 0.4.13 on the bundled adder, sampling.

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


def main(folder: Path) -> None:
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.loggers import EvaluationTracker  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    folder.mkdir(parents=True, exist_ok=True)
    questions = folder / "sums.jsonl"
    prompts = models.arith_prompts(15, Stream.of(0, "lm-eval"))
    lines = [json.dumps({"question": p, "answer": str(models.true_answer(p))}) for p in prompts]
    questions.write_text("\n".join(lines))
    (folder / "sums.yaml").write_text(TASK.format(questions=questions))
    model = models.load("embedded/arith")
    for seed in range(3):
        torch.manual_seed(seed)
        lm = HFLM(pretrained=model.network, tokenizer=model.tokenizer, backend="causal", max_length=128)
        tracker = EvaluationTracker(output_path=str(folder / f"run{seed}"))
        results = lm_eval.simple_evaluate(
            lm,
            tasks=["sums"],
            task_manager=TaskManager(include_path=str(folder)),
            log_samples=True,
            torch_random_seed=seed,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        tracker.save_results_samples(task_name="sums", samples=samples["sums"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
