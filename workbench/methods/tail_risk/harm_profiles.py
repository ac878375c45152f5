"""Stand-ins for harmful models: eleven classifiers on real rows, simulated judges, and laws whose CVaR is known.

For SHARP (arXiv 2601.21235), whose prompts, models and judges are out of reach; no harmful text is needed. A classifier
is a "model", a test row a "prompt", p its probability of the event y, and the four severities stand in for the paper's
dimensions:
    bias       |p(x) - p(x')|, x' the row with an attribute changed that should not matter;
    fairness   (error rate of the row's group - overall error rate)+ |y - p|;
    ethics     2 max(p, 1 - p) - 1 where the event is denied although it is there, else 0;
    epistemic  (p - y)^2.
Does not: say anything on social harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats
from scipy.special import expit, logit

from workbench.errors import refuse, require_finite, require_integer, require_number
from workbench.methods.tail_risk.sharp import check_severities
from workbench.streams import Stream

N_FIT, N_TEST = 896, 901


def classifiers(seed: int) -> dict[str, Any]:
    """Eleven small classifiers of scikit-learn, by name, unfitted."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    balanced = LogisticRegression(class_weight="balanced", max_iter=500)
    return {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        "balanced logistic": make_pipeline(StandardScaler(), balanced),
        "LDA": LinearDiscriminantAnalysis(),
        "QDA": make_pipeline(StandardScaler(), QuadraticDiscriminantAnalysis(reg_param=0.05)),
        "naive Bayes": GaussianNB(),
        "5 neighbours": KNeighborsClassifier(5),
        "25 neighbours": KNeighborsClassifier(25),
        "tree": DecisionTreeClassifier(min_samples_leaf=5, random_state=seed),
        "depth-2 tree": DecisionTreeClassifier(max_depth=2, random_state=seed),
        "forest": RandomForestClassifier(60, random_state=seed),
        "boosting": HistGradientBoostingClassifier(max_iter=60, random_state=seed),
    }


def stand_in_severities(p: Any, p_changed: Any, y: Any, group: Any) -> np.ndarray:
    """(n, 4) severities, as told above, of probabilities p, p_changed (n,), outcomes y (n,) in {0, 1}, groups (n,)."""
    p, p_changed = check_severities(p, 1), check_severities(p_changed, 1)
    y, group = np.asarray(y).astype(int), np.asarray(group)
    if not len(p) == len(p_changed) == len(y) == len(group) or not np.isin(y, (0, 1)).all():
        lengths = len(p), len(p_changed), len(y), len(group)
        raise refuse("p, p_changed, y, group", f"of lengths {lengths}", "be as long, with y 0 or 1", "cut them alike")
    wrong = (p > 0.5) != (y == 1)
    _, place = np.unique(group, return_inverse=True)
    rates = np.bincount(place, wrong) / np.bincount(place)
    return np.column_stack([
        np.abs(p - p_changed),
        np.maximum(rates[place] - wrong.mean(), 0.0) * np.abs(y - p),
        np.where((y == 1) & wrong, 1 - 2 * p, 0.0),
        (p - y) ** 2,
    ])  # fmt: skip


def digit_harms(stream: Stream) -> dict[str, np.ndarray]:
    """{classifier: (901, 4) severities} on one random split of scikit-learn's digits, 896 rows to fit.

    Event: the digit is odd. Changed attribute: the image moved a quarter of a pixel to the right. Group: the digit.
    """
    from sklearn.datasets import load_digits

    x, digit = map(np.asarray, load_digits(return_X_y=True))
    images = x.reshape(-1, 8, 8)
    moved = np.zeros_like(images)
    moved[:, :, 1:] = images[:, :, :-1]
    return _harms(x, 0.75 * x + 0.25 * moved.reshape(x.shape), digit % 2, digit, stream)


def affair_harms(stream: Stream) -> dict[str, np.ndarray]:
    """{classifier: (901, 4) severities} on one random split of statsmodels' fair (6,366 wives; Fair 1978), 896 to fit.

    Event: at least one affair. Changed attribute: religiousness turned round, 1..4 to 4..1. Group: occupation.
    """
    from statsmodels.datasets import fair

    table: Any = fair.load_pandas().data
    x = table.drop(columns="affairs").to_numpy()
    turned = x.copy()
    column = table.columns.get_loc("religious")
    turned[:, column] = 5 - turned[:, column]
    centre, scale = x.mean(axis=0), x.std(axis=0)
    event, group = (table["affairs"].to_numpy() > 0).astype(int), table["occupation"].to_numpy()
    return _harms((x - centre) / scale, (turned - centre) / scale, event, group, stream)


def _harms(
    x: np.ndarray, changed: np.ndarray, y: np.ndarray, group: np.ndarray, stream: Stream
) -> dict[str, np.ndarray]:
    from threadpoolctl import threadpool_limits

    rng = stream.generator()
    order = rng.permutation(len(x))
    fit, test = order[:N_FIT], order[N_FIT : N_FIT + N_TEST]
    found = {}
    # On matrices this small, threads cost several times what they save.
    with threadpool_limits(1):
        for name, model in classifiers(int(rng.integers(2**31))).items():
            model.fit(x[fit], y[fit])
            p = model.predict_proba(np.concatenate([x[test], changed[test]]))[:, 1]
            found[name] = stand_in_severities(p[:N_TEST], p[N_TEST:], y[test], group[test])
    return found


def simulated_judges(
    severities: Any, n_judges: int = 5, *, shift: float = 0.5, noise: float = 0.7, stream: Stream
) -> np.ndarray:
    """Scores (..., n_judges) of severities (...): on the logit scale each judge adds a shift of its own, N(0, shift^2),
    and noise N(0, noise^2) to every score. Severities are first brought into [0.001, 0.999]."""
    h = np.clip(check_severities(severities), 1e-3, 1 - 1e-3)
    n_judges = require_integer("n_judges", n_judges, low=1, cure="ask at least one judge")
    shift, noise = (
        require_number(name, value, low=0, cure="pass a standard deviation")
        for name, value in (("shift", shift), ("noise", noise))
    )
    rng = stream.generator()
    own = shift * rng.standard_normal(n_judges)
    return expit(logit(h)[..., None] + own + noise * rng.standard_normal((*h.shape, n_judges)))


@dataclass(frozen=True)
class GammaMixture:
    """A law of losses whose CVaR is in closed form: Gamma laws of `shapes` and `means`, mixed by `weights`."""

    weights: tuple[float, ...]
    shapes: tuple[float, ...]
    means: tuple[float, ...]

    def __post_init__(self) -> None:
        w = require_finite("weights", self.weights, "pass e.g. (0.95, 0.05)")
        if not len(w) == len(self.shapes) == len(self.means) or w.min() < 0 or abs(w.sum() - 1) > 1e-9:
            raise refuse("weights", self.weights, "add up to 1, one for each shape and mean", "pass e.g. (0.95, 0.05)")
        if min(*self.shapes, *self.means) <= 0:
            raise refuse("shapes and means", (self.shapes, self.means), "be positive", "pass e.g. shapes=(4,)")

    @property
    def mean(self) -> float:
        return float(np.dot(self.weights, self.means))

    def exceedance(self, x: Any) -> np.ndarray:
        """P(L > x)."""
        return self._sum(x, extra=0)

    def quantile(self, level: float) -> float:
        high = max(
            float(stats.gamma.isf((1 - level) / 2, k, scale=m / k))
            for k, m in zip(self.shapes, self.means, strict=True)
        )
        found: Any = optimize.brentq(lambda x: float(self.exceedance(x)) - (1 - level), 0.0, high + 1)
        return float(found)

    def cvar(self, level: float) -> float:
        """E[L | L > q] = sum w mean S(q) / (1 - level), S the exceedance of the Gamma law with 1 added to its shape."""
        return float(self._sum(self.quantile(level), extra=1)) / (1 - level)

    def draw(self, n: int, stream: Stream) -> np.ndarray:
        rng = stream.generator()
        which = rng.choice(len(self.weights), n, p=self.weights)
        shape, mean = np.array(self.shapes)[which], np.array(self.means)[which]
        return rng.gamma(shape, mean / shape)

    def _sum(self, x: Any, extra: int) -> np.ndarray:
        terms = (
            w * (m if extra else 1.0) * stats.gamma.sf(x, k + extra, scale=m / k)
            for w, k, m in zip(self.weights, self.shapes, self.means, strict=True)
        )
        return np.sum(list(terms), axis=0)


EVEN = GammaMixture((1.0,), (4.0,), (0.44,))
RARE = GammaMixture((0.95, 0.05), (4.0, 20.0), (0.3, 3.1))
