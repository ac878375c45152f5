"""What counts as a success, as a short expression over an attempt's scores: "score >= 0.75", "includes == 'C'".

Does: comparisons joined by and, or, not; a score is named by its scorer, `scores["a name with blanks"]`, or plain
`score` where an attempt has only one. Does not: call functions, compute, or run anything.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping
from typing import Any

from workbench.errors import WorkbenchError, refuse

# Inspect AI's letters for correct, partly correct, incorrect, no answer, as its own `value_to_float` reads them.
GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_COMPARE = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_CURE = "write e.g. 'score >= 0.75', \"includes == 'C'\" or 'harm > 0.5 and not refused'"


class MissingScore(WorkbenchError):
    """An attempt lacks a score that the condition names."""


class Condition:
    """A function of an attempt's scores, {scorer: value}, that says whether it is a success.

    >>> Condition("score >= 0.75")({"severity": 0.8})
    True

    Raises WorkbenchError for an expression that is more than comparisons, MissingScore where the attempt lacks a score
    that it names, and WorkbenchError for a comparison that makes no sense (a word with a number; the grades C, P, I, N of Inspect AI count as 1, 0.5, 0, 0).
    """

    def __init__(self, text: str) -> None:
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, AttributeError):
            raise refuse("success", text, "be a comparison of scores", _CURE) from None
        self.text, self._tree = text, tree
        self._check(tree)

    def __call__(self, scores: Mapping[str, Any]) -> bool:
        return bool(self._value(self._tree, scores))

    def _check(self, node: ast.expr) -> None:
        if isinstance(node, ast.BoolOp):
            for part in node.values:
                self._check(part)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._check(node.operand)
        elif isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
            for part in (node.left, *node.comparators):
                if not (_is_number(part) or isinstance(part, ast.Constant) or _name(part) is not None):
                    raise refuse("success", self.text, "compare scores with numbers or words", _CURE)
        elif _name(node) is None:
            raise refuse("success", self.text, "be a comparison of scores", _CURE)

    def _value(self, node: ast.expr, scores: Mapping[str, Any]) -> Any:
        if isinstance(node, ast.BoolOp):
            results = (self._value(part, scores) for part in node.values)
            return all(results) if isinstance(node.op, ast.And) else any(results)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self._value(node.operand, scores)
        if isinstance(node, ast.Compare):
            left = self._value(node.left, scores)
            for op, right_node in zip(node.ops, node.comparators, strict=True):
                right = self._value(right_node, scores)
                if not self._compare(op, left, right):
                    return False
                left = right
            return True
        if _is_number(node) or isinstance(node, ast.Constant):
            return ast.literal_eval(node)
        return self._score(_name(node) or (), scores)

    def _compare(self, op: ast.cmpop, left: Any, right: Any) -> bool:
        if isinstance(left, str) != isinstance(right, str):
            left, right = (GRADES.get(side, side) if isinstance(side, str) else side for side in (left, right))
        try:
            return _COMPARE[type(op)](left, right)
        except TypeError:
            raise WorkbenchError(
                f"success={self.text!r} compares {left!r} with {right!r}; compare words with words and numbers with "
                "numbers."
            ) from None

    def _score(self, path: tuple[str, ...], scores: Mapping[str, Any]) -> Any:
        found: Any = scores
        rest = path
        while rest:
            if not isinstance(found, Mapping):
                break
            # A scorer's name may hold dots itself, as garak's detectors do.
            take = next((n for n in range(len(rest), 0, -1) if ".".join(rest[:n]) in found), 0)
            if not take:
                break
            found, rest = found[".".join(rest[:take])], rest[take:]
        if not rest and not isinstance(found, Mapping):
            return found
        if path == ("score",) and len(scores) == 1:
            [only] = scores.values()
            if not isinstance(only, Mapping):
                return only
        raise MissingScore(
            f"success={self.text!r} names {'.'.join(path)}, but an attempt has the scores {', '.join(_listed(scores))}; "
            "name one of them."
        )


def _is_number(node: ast.expr) -> bool:
    signed = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd)
    inner = node.operand if signed and isinstance(node, ast.UnaryOp) else node
    return isinstance(inner, ast.Constant) and isinstance(inner.value, int | float)


def _name(node: ast.expr) -> tuple[str, ...] | None:
    """The parts of `a`, `a.b`, `a["b"]`, `scores["a"]`; None for anything else."""
    if isinstance(node, ast.Name):
        return () if node.id == "scores" else (node.id,)
    if isinstance(node, ast.Attribute):
        above = _name(node.value)
        return None if above is None else (*above, node.attr)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        above = _name(node.value)
        return None if above is None else (*above, str(node.slice.value))
    return None


def _listed(scores: Mapping[str, Any]) -> list[str]:
    names = []
    for name, value in scores.items():
        inner = [f"{name}[{key!r}]" for key in value] if isinstance(value, Mapping) else [name]
        names += inner
    return names or ["(none)"]
