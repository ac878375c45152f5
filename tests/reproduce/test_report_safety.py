"""Nothing in a record or a notebook runs, fetches, or tells whose machine it was; formulas and our own tables come through."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import nbformat
import pytest

from workbench.reproduce.formulas import mathml
from workbench.reproduce.notebook_html import LONGEST_OUTPUT, notebook_html
from workbench.reproduce.scrub import scrub

from .written_runs import ATTACK, attacks, executed, row, site, write_run

SLUG = "saber"
HOME = "/home" + "/ann"  # in two parts: whole, it would be taken for a path of somebody's machine


class Fetching(HTMLParser):
    """What a page would run or fetch: scripts, and addresses that a browser follows by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            address = (value or "").strip().lower()
            if name.startswith("on") or (
                name in ("src", "srcset", "data", "poster", "background", "action", "xlink:href")
            ):
                if not address.startswith("data:image/"):
                    self.found.append(f"<{tag} {name}={value}>")
            elif (name == "href" and (tag != "a" or address.startswith(("javascript:", "data:")))) or (
                name == "style" and ("url(" in address or "@import" in address)
            ):
                self.found.append(f"<{tag} {name}={value}>")
        if tag in ("iframe", "object", "embed", "link", "base", "form") and (
            tag != "form" or dict(attrs).get("action")
        ):
            self.found.append(f"<{tag}>")


def scripts(text: str) -> list[str]:
    return re.findall(r"<script.*?</script>", text, flags=re.DOTALL | re.IGNORECASE)


def test_nothing_in_a_record_or_a_notebook_runs_or_fetches(tmp_path):
    rows = [row(SLUG, "C1", statement=ATTACK, paper=ATTACK, measure=ATTACK, note=ATTACK, control=ATTACK)]
    run = write_run(tmp_path, "20260101-000000", {SLUG: rows}, notebook=executed(attacks()), trouble=[ATTACK])
    for one in run.notebooks.values():
        one.error = one.why = ATTACK
    for name, page in site(run).items():
        assert len(scripts(page)) == 1 and "localStorage" in scripts(page)[0], name
        assert Fetching(page).found == [], name
        assert "default-src 'none'" in page and "evil.example" not in page.replace("evil.example/i.png)", "")
    page = site(run)["saber.html"]
    assert page.count("&lt;script&gt;") >= 8, "what was said is still to be read"


def test_the_check_for_fetching_sees_what_it_should():
    for seen in (
        "<img src=http://x>",
        "<b onclick=x>",
        "<link href=x>",
        "<a href='javascript:x'>",
        "<p style='a:url(x)'>",
    ):
        assert Fetching(seen).found
    assert not Fetching('<img src="data:image/png;base64,AA"><a href="https://arxiv.org">').found


def test_paths_keys_and_names_are_scrubbed_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "very-secret-value")
    secret = f"{HOME}/project/x.py and very-secret-value and hf_abcdefghijklmnopqrst in C:\\Users\\Ann\\y.txt"
    code = nbformat.v4.new_code_cell(f"open({secret!r})")
    code.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text=secret),
        nbformat.v4.new_output("display_data", data={"text/html": f"<p>{secret}</p>", "text/plain": secret}),
        nbformat.v4.new_output("error", ename="OSError", evalue=secret, traceback=[f"\x1b[32m{secret}\x1b[39m"]),
    ]
    cells = [code, nbformat.v4.new_markdown_cell(f"[link](file://{HOME}/z.html) {secret}")]
    rows = [row(SLUG, "C1", note=secret, measure=secret)]
    run = write_run(tmp_path, "20260101-000000", {SLUG: rows}, notebook=executed(cells), trouble=[secret])
    run.notebooks[SLUG].error = secret
    for name, page in site(run, tmp_path / "public").items():
        for part in ("ann/", "/home", "Ann\\", "very-secret", "hf_abc", str(tmp_path)):
            assert part not in page, (name, part)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("File /usr/lib/python3.11/site-packages/numpy/core.py:3", "File site-packages/numpy/core.py:3"),
        ("in /srv/checkout/workbench/models/hf.py", "in workbench/models/hf.py"),
        ("see file:///mnt/a/b.txt", "see .../b.txt"),
        (HOME, "~"),
        ("a ratio of 1/2/3, and/or </td></tr> https://arxiv.org/abs/2601.22636 p(y)/q(y)/r(y)", None),
        ("$\\frac{a}{b}/c/d$ in m/s/s", None),
        ("data:image/jpeg;base64,/9j/4AAQ/abc/def==", None),
        ("sk-abcdefghijklmnop1234", "[key]"),
        ("Authorization: Bearer abcdef0123456789", "Authorization: Bearer [key]"),
    ],
)
def test_scrubbing_shortens_paths_and_leaves_the_rest(text, expected):
    assert scrub(text) == (text if expected is None else expected)


def test_formulas_become_mathml_and_unknown_ones_stay_as_they_are():
    assert "<mfrac>" in mathml(r"\frac{1}{2}", block=False) and 'display="block"' in mathml("x", block=True)
    assert "𝔼" in mathml(r"\mathbb E[x]", block=False) and "\u223c" in mathml(r"x\sim p", block=False).replace(
        "&#x223C;", "∼"
    )
    assert 'form="prefix"' in mathml("f(-N)", block=False) and 'form="prefix"' not in mathml("a-N", block=False)
    assert r"\{" not in mathml(r"\Big\{ a \Big\}", block=False)
    assert mathml(r"\frac{", block=False) == r'<code class="tex">\frac{</code>'
    assert "<script>" not in mathml(r"\text{<script>}", block=False)


def test_every_formula_of_our_notebooks_is_typeset():
    from workbench.papers import all_papers

    n_formulas = 0
    for paper in all_papers().values():
        if paper.status != "ready":
            continue
        cells = [cell for cell in nbformat.read(paper.notebook, as_version=4).cells if cell.cell_type == "markdown"]
        fragment = notebook_html(nbformat.v4.new_notebook(cells=cells))
        n_formulas += fragment.count("<math")
        assert 'class="tex"' not in fragment, paper.slug
        for formula in re.findall(r"<math.*?</math>", fragment, flags=re.DOTALL):
            assert "\\" not in formula and ">&amp;<" not in formula, (paper.slug, formula)
        assert "$" not in re.sub(r"<(code|pre).*?</\1>", "", fragment, flags=re.DOTALL), paper.slug
    assert n_formulas > 100


def test_a_long_output_is_cut_and_says_so():
    cell = nbformat.v4.new_code_cell(
        "", outputs=[nbformat.v4.new_output("stream", name="stdout", text="x" * 3_000_000)]
    )
    fragment = notebook_html(nbformat.v4.new_notebook(cells=[cell]))
    assert len(fragment) < LONGEST_OUTPUT + 2000 and "cut here: 2,900,000 more characters" in fragment


def test_our_own_rich_output_keeps_its_look():
    from workbench.estimate import Estimate

    html = Estimate(value=0.5, low=0.4, high=0.6, estimator="a <b>", problem="p")._repr_html_()
    cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", data={"text/html": html})])
    fragment = notebook_html(nbformat.v4.new_notebook(cells=[cell]))
    assert "<caption" in fragment and "text-align:left" in fragment.replace(" ", "") and "a &lt;b&gt;" in fragment


def test_the_style_and_the_script_name_no_address():
    from workbench.reproduce.report import page

    text = page("base.html.j2", title="t")
    assert "http" not in text.replace('http-equiv="', "")
