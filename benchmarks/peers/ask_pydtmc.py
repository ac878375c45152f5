"""What PyDTMC answers on the chains that `absorbing_chains.py` hands it; runs in an environment of its own.

python ask_pydtmc.py CHAINS.npz ANSWERS.npz. Writes its answers, says "ready", and then times itself once for every line
that names a task, so that the two sides can take turns. Not to be run by hand.
"""

from __future__ import annotations

import platform
import sys
import time
from importlib.metadata import version

import numpy as np
from pydtmc import MarkovChain  # pyright: ignore[reportMissingImports]


def closed_form(matrix: np.ndarray) -> tuple[MarkovChain, np.ndarray, np.ndarray, np.ndarray]:
    """The chain, its fundamental matrix, its absorption probabilities and its mean absorption times."""
    chain = MarkovChain(matrix, [str(i) for i in range(len(matrix))])
    return chain, chain.fundamental_matrix, chain.absorption_probabilities(), chain.mean_absorption_times()


def within(chain: MarkovChain, states: list[str], ends: list[str], longest: int) -> np.ndarray:
    """(longest, S) P(absorbed within h steps | state), h = 1, ...: first passage probabilities, summed up."""
    return np.cumsum([chain.first_passage_probabilities(longest, state, ends) for state in states], axis=1).T


def main() -> None:
    asked = dict(np.load(sys.argv[1]))
    longest, answers, tasks = int(asked.pop("longest")), {}, {}
    for name, matrices in asked.items():
        made = [closed_form(matrix) for matrix in matrices]
        places = [(list(map(int, c.transient_states)), list(map(int, c.absorbing_states))) for c, *_ in made]
        answers |= {
            f"{name} inner": np.array([place[0] for place in places]),
            f"{name} ends": np.array([place[1] for place in places]),
            f"{name} visits": np.array([visits for _, visits, _, _ in made]),
            f"{name} absorbed": np.array([absorbed.T for _, _, absorbed, _ in made]),
            f"{name} steps": np.array([steps for _, _, _, steps in made]),
        }
        chains = [(chain, chain.transient_states, chain.absorbing_states, longest) for chain, *_ in made]
        answers[f"{name} within"] = np.array([within(*each) for each in chains])
        tasks[f"{name} closed"] = lambda matrices=matrices: [closed_form(matrix) for matrix in matrices]
        tasks[f"{name} within"] = lambda chains=chains: [within(*each) for each in chains]
    versions = {name: version(name) for name in ("PyDTMC", "numpy", "scipy", "networkx")}
    versions["python"] = platform.python_version()
    np.savez(sys.argv[2], versions=[f"{name}=={number}" for name, number in versions.items()], **answers)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        tasks[line.strip()]()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
