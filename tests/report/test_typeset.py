from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebrm.report import Entry, markdown
from ebrm.report.typeset import Table, escape_latex, escape_markdown, latex

TABLE = Table(
    "Scores, percent",
    ["Benchmark", "my_rm", "a|b"],
    [
        [Entry("RM-Bench"), Entry("71.2", after="[69.0, 73.1]", strong=True), Entry("70.0", mark="†")],
        [Entry("50% & more"), Entry("1"), Entry("+2.0", after="p < 0.001", mark="*")],
    ],
)


def test_markdown() -> None:
    assert markdown([TABLE], ["Note on *."]) == (
        "Scores, percent\n"
        "\n"
        "| Benchmark | my\\_rm | a\\|b |\n"
        "| :-- | --: | --: |\n"
        "| RM-Bench | **71.2** \\[69.0, 73.1\\] | 70.0† |\n"
        "| 50% &amp; more | 1 | +2.0\\* p \\< 0.001 |\n"
        "\n"
        "Note on \\*.\n"
    )


def test_latex() -> None:
    assert latex([TABLE], ["Note on *."]) == (
        "\\begin{table}[htbp]\n"
        "\\centering\n"
        "\\caption{Scores, percent}\n"
        "\\begin{tabular}{lrr}\n"
        "\\toprule\n"
        "Benchmark & my\\_rm & a\\textbar{}b \\\\\n"
        "\\midrule\n"
        "RM{-}Bench & \\textbf{71.2} {[}69.0, 73.1{]} & 70.0\\textsuperscript{\\dag{}} \\\\\n"
        "50\\% \\& more & 1 & +2.0\\textsuperscript{\\(\\ast\\)} p \\textless{} 0.001 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\end{table}\n"
        "\n"
        "{\\footnotesize Note on \\(\\ast\\).\\par}\n"
    )


def test_several_tables_and_nothing_at_all() -> None:
    assert markdown([TABLE, TABLE], []).count("| Benchmark |") == 2
    assert latex([TABLE, TABLE], []).count(r"\toprule") == 2
    assert markdown([], ["Only this."]) == "Only this.\n"


texts = st.text(st.characters(codec="utf-8"), max_size=40)


@given(texts)
def test_markdown_shows_what_was_given_on_one_line(text: str) -> None:
    escaped = escape_markdown(text)
    assert "\n" not in escaped and "\r" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*[|*_<>`\[\]]", escaped)
    shown = re.sub(r"\\([\\`*_{}\[\]<>|~#$])", r"\1", escaped.replace("&amp;", "&"))
    assert shown == escape_markdown_free(text)


def escape_markdown_free(text: str) -> str:
    from ebrm.report.words import clean

    return re.sub(r"[^\S\u00a0]+", " ", clean(text)).strip()


@given(texts)
def test_latex_has_no_bare_special_characters(text: str) -> None:
    escaped = escape_latex(text)
    assert "\n" not in escaped
    for command in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}", r"\(\ast\)", r"\(-\)"):
        escaped = escaped.replace(command, "")
    assert not re.search(r"(?<!\\)[&%$#_^|<>]", escaped)
    assert escaped.count("{") - escaped.count(r"\{") == escaped.count("}") - escaped.count(r"\}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\alpha", r"\textbackslash{}alpha"),
        ("{x}", r"\{x\}"),
        ("a_b^c~d", r"a\_b\textasciicircum{}c\textasciitilde{}d"),
        ("100% #1 $5", r"100\% \#1 \$5"),
        ("\u22122.0\u00a0points \u2013 \u2026", r"\(-\)2.0~points -- \ldots{}"),
        ("--x", "{-}{-}x"),
        ("`it's", r"\`{}it's"),
        ("two\nlines", "two lines"),
    ],
)
def test_latex_escapes(text: str, expected: str) -> None:
    assert escape_latex(text) == expected
