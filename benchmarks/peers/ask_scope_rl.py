"""What scope-rl answers on the logs that `off_policy_estimators.py` hands it; runs in an environment of its own.

python ask_scope_rl.py LOGS.npz ANSWERS.npz. Not to be run by hand.
"""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import numpy as np
from scope_rl.ope.discrete import (  # pyright: ignore[reportMissingImports]
    DirectMethod,
    DoublyRobust,
    PerDecisionImportanceSampling,
    StateActionMarginalIS,
)
from scope_rl.ope.ops import OffPolicySelection  # pyright: ignore[reportMissingImports]


def estimates(log) -> dict[str, list[float]]:
    """DM, PDIS, DR and MIS of each target policy."""
    n, horizon = log["state"].shape
    flat = {
        "step_per_trajectory": horizon,
        "action": log["action"].ravel(),
        "reward": log["reward"].ravel(),
        "pscore": log["behaviour"][log["state"], log["action"]].ravel(),
        "gamma": 1.0,
    }
    found: dict[str, list[float]] = {"DM": [], "PDIS": [], "DR": [], "MIS": []}
    for target, q, weight in zip(log["targets"], log["q"], log["weight"], strict=True):
        policy = target[log["state"].ravel()]
        values = q[np.arange(horizon), log["state"]].reshape(n * horizon, -1)
        with_model = flat | {"evaluation_policy_action_dist": policy, "state_action_value_prediction": values}
        found["DM"].append(DirectMethod().estimate_policy_value(**with_model))
        found["DR"].append(DoublyRobust().estimate_policy_value(**with_model))
        found["PDIS"].append(
            PerDecisionImportanceSampling().estimate_policy_value(**flat, evaluation_policy_action_dist=policy)
        )
        found["MIS"].append(
            StateActionMarginalIS().estimate_policy_value(
                **flat,
                evaluation_policy_action_dist=policy,
                state_action_marginal_importance_weight=weight.ravel(),
                n_step_pdis=0,
            )
        )
    return found


def sharpe(log, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """SharpeRatio@k, k = 1, ..., m, of portfolios chosen by each of the estimates `found`."""
    names = [f"policy {i:02}" for i in range(len(log["values"]))]

    def ranked(numbers: np.ndarray) -> list[str]:
        return [names[i] for i in np.argsort(-numbers, kind="stable")]

    order = np.argsort(-log["values"], kind="stable")
    me = SimpleNamespace(step_per_trajectory=log["state"].shape[1], behavior_policy_reward={"b": log["reward"]})
    answer = OffPolicySelection._obtain_topk_policy_performance(
        me,
        true_dict={"ranking": [names[i] for i in order], "policy_value": log["values"][order]},
        estimation_dict={name: {"estimated_ranking": ranked(np.asarray(values))} for name, values in found.items()},
        input_dict={name: {"gamma": 1.0, "behavior_policy": "b"} for name in names},
        true_dict_ranking_arg="ranking",
        true_dict_value_arg="policy_value",
        estimation_dict_ranking_arg="estimated_ranking",
        compared_estimators=list(found),
        max_topk=len(names),
        safety_threshold=0.0,
    )
    return {name: answer[name]["sharpe_ratio"][:, 0] for name in found}


def main() -> None:
    log = dict(np.load(sys.argv[1]))
    times = []
    for _ in range(int(log["runs"])):
        start = time.perf_counter()
        found = estimates(log)
        middle = time.perf_counter()
        ratios = sharpe(log, {name: np.array(values) for name, values in found.items()})
        times.append((middle - start, time.perf_counter() - middle))
    np.savez(
        sys.argv[2],
        times=np.array(times),
        **{f"value {name}": np.array(values) for name, values in found.items()},
        **{f"sharpe {name}": values for name, values in ratios.items()},
    )


if __name__ == "__main__":
    main()
