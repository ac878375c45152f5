"""One generation, token by token: how the target's and the proposal's odds differ, what it cost, what may still come.

Does: a table in HTML that reads without colour and without sight, all text escaped, scrolled by keyboard.
Does not: generate or score.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from workbench import plots
from workbench.errors import refuse, require_finite, require_number


def token_table(
    tokens: Sequence[str],
    log_p: np.ndarray,
    log_q: np.ndarray,
    *,
    spent: np.ndarray | None = None,
    hazard: np.ndarray | None = None,
    usd_per_1000_tokens: float = 0.0,
    caption: str = "",
) -> str:
    """The generation as an HTML table, a row a token.

    log_p, log_q  (T,) log-probability of each token under the target and under the proposal that drew it
    spent         (T,) tokens read and generated up to and with each token, by all models; by default 1, 2, ...
    hazard        (T + 1,) chance that the event still happens, before the first token and after each
    A bar to the right says that the target likes the token better than the proposal does, to the left the opposite.
    """
    length = len(tokens)
    ratio = require_finite("log_p", log_p, "score the tokens that were drawn") - require_finite(
        "log_q", log_q, "score the tokens that were drawn"
    )
    spent = np.arange(1, length + 1) if spent is None else np.asarray(spent)
    price = require_number("usd_per_1000_tokens", usd_per_1000_tokens, low=0, cure="pass e.g. 0.002") / 1000
    for name, values, wanted in (
        ("log_p", ratio, length),
        ("spent", spent, length),
        ("hazard", hazard, length + 1),
    ):
        if values is not None and np.shape(values) != (wanted,):
            raise refuse(f"the shape of {name}", np.shape(values), f"be ({wanted},)", "give one value a token")
    weight = np.exp(np.cumsum(ratio))
    largest = max(float(np.abs(ratio).max(initial=0.0)), 1e-12)
    heads = ["token", "log p / q", "weight so far", "tokens spent", "USD spent", "chance of the event after it"]
    rows = []
    for i, token in enumerate(tokens):
        cells = [f"{weight[i]:.3g}", f"{spent[i]:,.0f}", f"{spent[i] * price:.2g}"]
        cells.append("" if hazard is None else f"{hazard[i + 1]:.3g}")
        rows.append(
            f'<tr><th scope="row">{html.escape(token)}</th><td>{_bar(ratio[i] / largest)}{ratio[i]:+.2f}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    before = "" if hazard is None else f" Chance of the event before the first token: {hazard[0]:.3g}."
    said = html.escape(f"{caption}{before}".strip())
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<div class="workbench-tokens" role="region" aria-label="Tokens of one generation" tabindex="0"><table>'
        f"<caption>{said}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _bar(share: float) -> str:
    """A bar from the middle of its cell, to the right for a share above 0; the number beside it says the same."""
    color = plots.COLORS["ours"] if share >= 0 else plots.COLORS["baseline"]
    width, left = 50 * abs(share), 50 - 50 * max(0.0, -share)
    inner = f"left:{left:.0f}%;width:{width:.0f}%;background:{color}"
    return f'<span class="workbench-bar" aria-hidden="true"><span style="{inner}"></span></span>'
