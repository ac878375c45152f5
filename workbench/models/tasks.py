"""Questions for the bundled models, and what their answers are worth: worked sums for `embedded/arith`.

A prompt is "23+45+18=" and its worked answer "23+45=68;68+18=86;#86": running sums, then the result after '#'.
Terms have two digits; more terms make a harder question.
"""

from __future__ import annotations

import re

from workbench.errors import refuse, require_integer
from workbench.streams import Stream

_PROMPT = re.compile(r"\d+(\+\d+)+=")
_ANSWER = re.compile(r"#(\d+)")


def arith_prompts(n: int, stream: Stream, *, fewest: int = 2, most: int = 4) -> list[str]:
    """n prompts with `fewest` to `most` terms (each number of terms equally likely) from 10 to 99.

    Prompt j depends on row j of `stream` alone. The model was trained on 2 to 4 terms.
    """
    n = require_integer("n", n, low=1, cure="ask for at least one prompt")
    fewest = require_integer("fewest", fewest, low=2, cure="a sum has at least two terms")
    most = require_integer("most", most, low=fewest, cure="pass most >= fewest")
    prompts = []
    for row in stream.uniforms(n, most + 1):
        terms = fewest + int(row[0] * (most - fewest + 1))
        prompts.append("+".join(str(10 + int(u * 90)) for u in row[1 : terms + 1]) + "=")
    return prompts


def terms_of(prompt: str) -> list[int]:
    """The terms of a prompt such as "23+45="; refuses anything else."""
    if not isinstance(prompt, str) or not _PROMPT.fullmatch(prompt):
        raise refuse("prompt", prompt, "be a sum such as '23+45+18='", "make prompts with arith_prompts")
    return [int(term) for term in prompt[:-1].split("+")]


def true_answer(prompt: str) -> int:
    """The sum that the prompt asks for."""
    return sum(terms_of(prompt))


def parse_answer(text: str) -> int | None:
    """The number after the first '#' of a completion; None where there is none, e.g. in a text cut short."""
    found = _ANSWER.search(text)
    return int(found.group(1)) if found else None


def worked_solution(prompt: str) -> str:
    """The completion without a slip."""
    total, *rest = terms_of(prompt)
    steps = []
    for term in rest:
        steps.append(f"{total}+{term}={total + term};")
        total += term
    return "".join(steps) + f"#{total}"


def step_labels(prompt: str, text: str) -> list[bool]:
    """For each finished step of a completion ("23+45=68;"), whether it is right given the steps before it: it adds the
    next term to the running sum as it stands (a slip made earlier counts once) and the result is their sum."""
    total, *rest = terms_of(prompt)
    labels = []
    for position, step in enumerate(text.split("#")[0].split(";")[:-1]):
        found = re.fullmatch(r"(\d+)\+(\d+)=(\d+)", step)
        if not found or position >= len(rest):
            labels.append(False)
            continue
        left, right, result = (int(group) for group in found.groups())
        labels.append((left, right, result) == (total, rest[position], total + rest[position]))
        total = result
    return labels
