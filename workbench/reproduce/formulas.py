"""TeX formulas as MathML, so that a page shows them without a network and a screen reader reads them.

Does: translates a formula with latex2mathml and mends what browsers and readers would stumble over.
Does not: know user macros; a formula that can't be translated stays as its TeX source, marked as such.

What is mended: blackboard and script letters become the Unicode letters that browsers have (they ignore
mathvariant); \\sim and a colon are relations, not names; a minus after an opening bracket or a relation is a
sign; a vertical bar has no space around it; log, exp and the like stand apart from a name that follows.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache

_STYLES = {"double-struck": "DOUBLE-STRUCK", "script": "SCRIPT", "fraktur": "FRAKTUR"}
_TEXT = re.compile(r"(\\text\w*\{)([^{}]*)\}")
_LETTER = re.compile(r'<mi mathvariant="([\w-]+)">(\w)</mi>')
_BEFORE_SIGN = "&#x00028;|&#x0003D;|&#x0002C;|&#x02264;|&#x02265;|&#x0003C;|&#x0003E;|&#x0005B;|&#x02208;|\\["
_SIGN = re.compile(rf"(<mo[^>]*>(?:{_BEFORE_SIGN})</mo>)<mo>&#x02212;</mo>")
_NAMED = re.compile(r"(<mi>(?:log|exp|ln|sin|cos|max|min)</mi>)(?=<m(?:i|n|sub|sup|subsup|row|frac|sqrt|over)>)")


@lru_cache(maxsize=4096)
def mathml(tex: str, *, block: bool) -> str:
    """`tex` (without its dollars) as a MathML element; `<code>` with the source where that fails."""
    from latex2mathml.converter import convert

    source = tex.strip().replace("{aligned}", "{align*}")
    try:
        # The library escapes everything but what stands in \text.
        formula = convert(_TEXT.sub(lambda match: f"{match[1]}{html.escape(match[2], quote=False)}}}", source))
    except Exception:  # the library raises many kinds, and IndexError for unbalanced braces
        return f'<code class="tex">{html.escape(tex)}</code>'
    for brace in "{}":
        formula = formula.replace(f">\\{brace}</mo>", f">{brace}</mo>")
    formula = _LETTER.sub(_letter, formula)
    formula = formula.replace("<mi>&#x0007E;</mi>", "<mo>&#x223C;</mo>").replace("<mi>:</mi>", "<mo>:</mo>")
    formula = formula.replace(
        '<mo stretchy="false">&#x0007C;</mo>', '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo>'
    )
    formula = _SIGN.sub(r'\1<mo form="prefix">&#x02212;</mo>', formula)
    formula = _NAMED.sub(r'\1<mspace width="0.17em"></mspace>', formula)
    return formula.replace('display="inline"', f'display="{"block" if block else "inline"}"', 1)


def _letter(match: re.Match[str]) -> str:
    """A letter of a style as the one Unicode character for it; a few live outside the mathematical block."""
    style, letter = _STYLES.get(match[1]), match[2]
    if style is None or not letter.isascii() or not letter.isalpha():
        return match[0]
    case = "CAPITAL" if letter.isupper() else "SMALL"
    outside = style.replace("FRAKTUR", "BLACK-LETTER")
    for name in (f"MATHEMATICAL {style} {case} {letter.upper()}", f"{outside} {case} {letter.upper()}"):
        try:
            return f"<mi>{unicodedata.lookup(name)}</mi>"
        except KeyError:
            continue
    return match[0]
