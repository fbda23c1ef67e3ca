"""HTML pages from the Jinja templates of this package: self-contained, without scripts, fonts or network.

Every string is plain text and escaped; only figures (SVG of `ebrm.report.svg`) are markup and marked `safe`.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ebrm.metrics import Estimate
from ebrm.report import words
from ebrm.report.words import count
from ebrm.utils.neutral import clean

#: With fewer prompts a bootstrap interval is too narrow to rely on.
FEW_PROMPTS = 20
_FOLD_AT = 700
_CUT_AT = 6000


def render(template: str, **context: Any) -> str:
    """Render a template of `report/templates` to one HTML document."""
    environment = _environment()
    style = environment.loader.get_source(environment, "page.css")[0]  # type: ignore[union-attr]
    return environment.get_template(template).render(style=Markup(style), **context)  # noqa: S704 - our own style


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ebrm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
        finalize=lambda value: clean(value) if type(value) is str else value,  # not Markup, which is ours
    )
    formats = (
        words.count, words.decimal, words.group_name, words.interval, words.listing, words.p_number, words.p_value,
        words.percent, words.percent_estimate, words.points_estimate, words.reward_digits, words.setting_rows,
        words.too_few,
    )  # fmt: skip
    environment.filters |= {function.__name__: function for function in formats}
    environment.filters |= {"name": words.name_in_text, "folded": folded, "breakable": breakable}
    environment.filters |= {"number": number, "ends": ends, "counted": counted}
    environment.globals |= {"NONE": words.NONE, "NO_BREAK": words.NO_BREAK}
    return environment


def counted(number: int, noun: str) -> str:
    """`count` that stays on one line."""
    return count(number, noun).replace(" ", words.NO_BREAK)


def folded(text: str) -> tuple[str, str]:
    """Split a text into what is shown and what is folded away; cut the end of a very long one, saying so."""
    text = clean(text)
    if len(text) <= _FOLD_AT:
        return text, ""
    shown = text[:_FOLD_AT]
    if " " in shown[-80:]:  # not in the middle of a word
        shown = shown[: shown.rindex(" ")]
    rest = text[len(shown) : _CUT_AT]
    if len(text) > _CUT_AT:
        rest += f"\u2026 [{count(len(text) - _CUT_AT, 'more character')} not shown]"
    return shown, rest


def breakable(text: str) -> Markup:
    """Let a name be broken after slashes and underscores, and in endless words, before it is broken anywhere else."""
    return Markup(re.sub(r"([/_]|[^\W_]{16})(?=\w)", r"\1<wbr>", str(escape(clean(text)))))  # noqa: S704 - escaped here


def number(estimate: Estimate | None, unit: str = "%") -> str:
    """The value of an estimate in a unit: "%" (of a share), "points" (signed), "p", or a number of decimals."""
    if estimate is None:
        return words.NONE
    if unit == "p":
        return words.p_number(estimate.value)
    scale, digits, sign = _format(unit)
    return words.decimal(scale * estimate.value, digits, sign)


def ends(estimate: Estimate | None, unit: str = "%") -> str:
    """The interval of an estimate in a unit; see `number`."""
    if estimate is None:
        return ""
    scale, digits, sign = _format(unit)
    return words.interval(scale * estimate.low, scale * estimate.high, digits, sign)


def _format(unit: str) -> tuple[float, int, bool]:
    return (100.0, 1, unit == "points") if unit in ("%", "points") else (1.0, int(unit), False)
