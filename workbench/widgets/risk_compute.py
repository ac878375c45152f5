"""Explorer of risk against compute: how a risk grows with tries, the budget for a target, and what it costs.

Does: add tries, target and prices to the controls of a curve. Does not: compute one; see `plots.risk_compute`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from workbench.plots.risk_compute import Price, RiskCurve, risk_figure
from workbench.widgets.controls import Choice, Short, Slider, spec
from workbench.widgets.explorer import check_controls, explore


def explore_risk(
    curve: Callable[..., RiskCurve], *, static: Sequence[Mapping[str, Any]] | None = None, **controls: Short
) -> None:
    """Show `curve(**values)` for the values of `controls`, with its cost: N, the target and the prices are added.

    Raises WorkbenchError as `explore` does; the names planned, target, tokens_per_try, price, size and cost are taken.
    """

    def draw(
        planned: float, target: float, cost: str, tokens_per_try: float, price: float, size: float, **values: Any
    ) -> Figure:
        each = Price(tokens_per_try, price, 1e9 * size)
        return risk_figure(curve(**values), planned, target, each, cost)

    check_controls(curve, {name: spec(name, short) for name, short in controls.items()})
    explore(
        draw,
        alt="Risk against tries per query, with the tries for a target and their cost",
        static=static,
        **controls,
        planned=Slider(1, 10_000, 1000, label="N planned", unit="tries per query", log=True),
        target=Slider(0.05, 0.99, 0.9, label="target risk", unit="share of queries"),
        cost=Choice({"tokens": "tokens", "FLOPs": "flops", "USD": "usd"}, label="cost in"),
        tokens_per_try=Slider(10, 10_000, 200, label="length of a try", unit="tokens", log=True),
        price=Slider(1e-5, 0.1, 0.002, label="price", unit="USD per 1,000 tokens", log=True),
        size=Slider(0.1, 1000.0, 8.0, label="model's size", unit="billion parameters", log=True),
    )
