from __future__ import annotations

import random

import pytest


@pytest.fixture(scope="package")
def inspect_logs(tmp_path_factory):
    """Two logs of one run of Inspect AI's mock model, as .eval and as .json: 6 prompts, 4 epochs, 3 scorers."""
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput, ModelUsage, get_model
    from inspect_ai.scorer import Score, includes, mean, scorer
    from inspect_ai.solver import generate

    @scorer(metrics=[mean()])
    def severity():
        async def score(state, target):
            if "p5" in state.input_text:
                raise ValueError("the judge is away")
            return Score(value=float(state.output.completion.split()[-1]))

        return score

    @scorer(metrics={"*": [mean()]})
    def parts():
        async def score(state, target):
            harm = float(state.output.completion.split()[-1])
            return Score(value={"harm": harm, "refusal": 1 - harm})

        return score

    def answer(asked, tools, tool_choice, config):
        chance = random.Random(f"{asked[-1].text} {len(said)}").random()
        said.append(chance)
        made = ModelOutput.from_content("mockllm/model", f"{'yes' if chance > 0.5 else 'no'} {chance:.3f}")
        made.usage = ModelUsage(input_tokens=2, output_tokens=2, total_tokens=4)
        return made

    folder = tmp_path_factory.mktemp("inspect")
    for log_format in ("eval", "json"):
        said: list[float] = []
        task = Task(
            name="probe",
            dataset=[Sample(id=f"p{i}", input=f"prompt p{i}", target="yes") for i in range(6)],
            solver=generate(),
            scorer=[includes(), severity(), parts()],
        )
        model = get_model("mockllm/model", custom_outputs=answer)
        eval(task, model=model, epochs=4, log_dir=str(folder), log_format=log_format, display="none", fail_on_error=False, max_connections=1, max_samples=1)  # fmt: skip
    return {path.suffix: path for path in folder.iterdir()}
