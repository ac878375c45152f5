"""Bounded losses whose tail functionals are known: CVaR, expectile, quantile.

A loss in [0, 1] is a mixture of atoms and of Beta laws, as per-prompt risks are: most are exactly 0, some spread, a few
sit at 1. Everything follows from the survival function S and from the stop-loss transform
E(L - c)+, for Beta(a, b): a / (a + b) S_{a+1,b}(c) - c S_{a,b}(c).
Does: draws and exact functionals. Does not: estimate; see `workbench.methods.tail_risk`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincc, betaincinv

from workbench.errors import refuse, require_choice, require_number, require_probability
from workbench.streams import Stream

FUNCTIONALS = ("cvar", "expectile", "quantile")


@dataclass(frozen=True)
class LossLaw:
    """A law on [0, 1]: `atoms` ((value, mass), ...) and `betas` ((a, b, mass), ...); the masses sum to 1."""

    atoms: tuple[tuple[float, float], ...] = ()
    betas: tuple[tuple[float, float, float], ...] = ()

    def __post_init__(self) -> None:
        for value, mass in self.atoms:
            require_number("an atom's value", value, low=0, high=1, cure="losses lie in [0, 1]")
            require_number("an atom's mass", mass, low=0, high=1, cure="pass a probability")
        for a, b, mass in self.betas:
            for name, shape in (("a", a), ("b", b)):
                require_number(f"Beta({name})", shape, low=0, open_low=True, cure="pass a positive shape")
            require_number("a Beta's mass", mass, low=0, high=1, cure="pass a probability")
        total = sum(mass for *_, mass in (*self.atoms, *self.betas))
        if abs(total - 1) > 1e-12:
            raise refuse("the sum of the masses", total, "be 1", "divide the masses by their sum")

    @property
    def mean(self) -> float:
        return sum(value * mass for value, mass in self.atoms) + sum(a / (a + b) * mass for a, b, mass in self.betas)

    def survival(self, c: float) -> float:
        """P(L > c)."""
        rest = sum(mass for value, mass in self.atoms if value > c)
        return rest + sum(mass * float(betaincc(a, b, np.clip(c, 0, 1))) for a, b, mass in self.betas)

    def stop_loss(self, c: float) -> float:
        """E(L - c)+."""
        rest = sum(mass * max(value - c, 0.0) for value, mass in self.atoms)
        at = float(np.clip(c, 0, 1))
        for a, b, mass in self.betas:
            rest += mass * float(a / (a + b) * betaincc(a + 1, b, at) - c * betaincc(a, b, at))
        return rest

    def quantile(self, level: float) -> float:
        """The smallest c with P(L <= c) >= level."""
        if 1 - self.survival(0.0) >= level:
            return 0.0
        low, high = 0.0, 1.0
        while (middle := (low + high) / 2) not in (low, high):
            low, high = (low, middle) if 1 - self.survival(middle) >= level else (middle, high)
        # An atom is met exactly.
        return min((value for value, _ in self.atoms if low <= value <= high), default=high)

    def draw(self, uniforms: np.ndarray) -> np.ndarray:
        """(n,) losses from uniforms (n, 2): the first chooses the part, the second the place in it."""
        edges = np.cumsum([mass for *_, mass in (*self.atoms, *self.betas)])
        part = np.minimum(np.searchsorted(edges, uniforms[:, 0], side="right"), len(edges) - 1)
        values = [np.full(len(uniforms), value) for value, _ in self.atoms]
        values += [betaincinv(a, b, uniforms[:, 1]) for a, b, _ in self.betas]
        return np.choose(part, values)


@dataclass(frozen=True)
class LossTail:
    """A tail functional of a loss, from independent draws of it.

    functional "cvar": min_c c + E(L - c)+ / (1 - level), the mean of the worst share 1 - level;
    "expectile": the e with level E(L - e)+ = (1 - level) E(e - L)+; "quantile": the smallest c with P(L <= c) >= level.
    """

    functional: str
    level: float
    law: LossLaw
    label: str

    def __post_init__(self) -> None:
        require_choice("functional", self.functional, FUNCTIONALS)
        require_probability("level", self.level, cure="pass e.g. level=0.95")

    @property
    def name(self) -> str:
        return f"{self.functional}({self.level:g}, {self.label})"

    @property
    def truth(self) -> float:
        if self.functional == "expectile":
            return expectile_of(self.law, self.level)
        place = self.law.quantile(self.level)
        if self.functional == "quantile":
            return place
        return place + self.law.stop_loss(place) / (1 - self.level)

    def losses(self, n: int, stream: Stream) -> dict[str, np.ndarray]:
        """{"loss": (n,)} in [0, 1]: independent draws."""
        return {"loss": self.law.draw(stream.uniforms(n, 2))}


def expectile_of(law: LossLaw, level: float) -> float:
    """The root of level E(L - e)+ - (1 - level) E(e - L)+, which falls in e; E(e - L)+ = e - E L + E(L - e)+."""

    def balance(e: float) -> float:
        above = law.stop_loss(e)
        return level * above - (1 - level) * (e - law.mean + above)

    found = float(brentq(balance, 0.0, 1.0, xtol=1e-15, rtol=8.9e-16))  # type: ignore[arg-type]
    return found if math.isfinite(found) else law.mean


RARE_HARM = LossLaw(atoms=((0.0, 0.9), (1.0, 0.002)), betas=((0.5, 8.0, 0.098),))
SPREAD = LossLaw(betas=((0.5, 8.0, 1.0),))
TWO_POINT = LossLaw(atoms=((0.0, 0.97), (1.0, 0.03)))
