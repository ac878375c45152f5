import math
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import WorkbenchError
from workbench.papers import (
    FAMILIES,
    MEASURED_VERDICTS,
    Claim,
    Condition,
    all_papers,
    find_paper,
    how_many,
    load_paper,
)
from workbench.paths import notebooks_folder

# The map of the design: every family with its slugs.
SLUGS = {
    "tail_risk": "lm-tail-risk saber scope-reach multi-expectation-ais risk-under-pressure sharp expectile-var safety-drift"
    " sharpe-ratio-at-k swiss-round distributional-correctness simple-audit",
    "conformal": "froc batch-pi rscp-plus pac-code-sets lp-icp optcs conformal-abstention sdm colep predictive-multiplicity"
    " cape aifs-crps",
    "decoding": "anchored-decoding budget-guidance bavt plan-and-budget best-of-majority saffron info-gain-sampler budgetmem"
    " chain-of-risk strategic-games pttrust lora-undoes-safety",
    "budgeted_rl": "v05 knapsack-rl rex anytime-reasoner hbpo riskpo safe-rlhf capo mopps ipo-safe-reasoning star-dss dr-irl"
    " selfie",
    "verifiers": "fover verifier-pitfalls fin-prm pav tattoo genprm aurora flexguard xguard deepknown-guard gspr safepred",
    "learning": "mab-intro groupwise-regret pref-rl-randomization reward-free-mixture-mdp latent-mdp dp-continual-observation"
    " equitable-sampling unsupervised-pretraining",
    "causal": "which-invariance image-cate eo-rct-heterogeneity censored-erm domain-constraints",
    "applied": "basir pa-riskranker foresight-sec i-glide oss-cessation thermoacoustic-bnn splain safe-vision-language"
    " pragma-vl oyster risk-gui",
    "audits": "fortress riskcards t2i-riskyprompt propensitybench riosworld managerbench outsafe-bench das-redteam"
    " frontier-risk finance-ai-risk trustworthy-survey regulation-promise ethical-risks",
}


def test_the_whole_map_is_there():
    papers = {slug: paper for slug, paper in all_papers().items() if paper.kind != "ours"}
    found = {family: {slug for slug, paper in papers.items() if paper.family == family} for family in FAMILIES}
    assert found == {family: set(slugs.split()) for family, slugs in SLUGS.items()}
    assert len(papers) == 98 and how_many(papers.values()) == "98 papers"
    assert how_many(all_papers().values()).startswith("98 papers and ")


@pytest.mark.parametrize("slug", sorted(all_papers()))
def test_a_header_says_what_a_reader_needs(slug):
    paper = all_papers()[slug]
    assert paper.title and paper.authors and 1990 <= paper.year <= 2026
    assert paper.summary.endswith(".") and 5 <= len(paper.summary.split()) <= 30
    assert not paper.code or paper.code.startswith("https://")
    assert paper.citation.count(paper.title) == 1
    if paper.status == "ready":
        name = slug.replace("-", "_")
        root = notebooks_folder().parent
        for file in (
            paper.notebook,
            root / "workbench" / "methods" / paper.family / f"{name}.py",
            root / "tests" / "methods" / paper.family / f"test_{name}.py",
        ):
            assert file.is_file(), f"a newcomer looks for {file.name}"
        assert any(claim.control for claim in paper.claims), "no claim of this paper has a control"


@pytest.mark.parametrize(
    "text, inside, outside",
    [
        (">= 3", [3, 4], [2.999]),
        ("> 3", [3.001], [3]),
        ("<= -0.5", [-0.5, -1], [0]),
        ("< 1e-3", [0], [1e-3]),
        ("in [0.9, 1.1]", [0.9, 1, 1.1], [0.899, 1.101]),
    ],
)
def test_conditions(text, inside, outside):
    condition = Condition(text)
    assert all(condition.holds(value) for value in inside) and not any(condition.holds(value) for value in outside)


@pytest.mark.parametrize(
    "text", ["", "3", "=> 3", "about 3", ">= three", "in [1]", "in [2, 1]", ">= 3 or so", "in (0, 1)"]
)
def test_a_condition_that_can_not_be_read_is_refused(text):
    with pytest.raises(WorkbenchError, match="passes"):
        Condition(text)


numbers = st.floats(-10, 10)


@given(
    st.sampled_from([">= 1", "> 1", "<= 1", "< 1", "in [0, 1]"]), st.lists(numbers, min_size=3, max_size=3).map(sorted)
)
def test_verdicts_follow_the_conservative_end(text, ends):
    low, value, high = ends
    condition = Condition(text)
    verdict = condition.verdict(value, low, high)
    grid = [low + (high - low) * i / 20 for i in range(21)]
    if verdict == "reproduced":
        assert all(condition.holds(point) for point in [low, value, high]) and sum(map(condition.holds, grid)) >= 20
    elif verdict == "consistent":
        assert condition.holds(value) and not (condition.holds(low) and condition.holds(high))
    else:
        assert not condition.holds(value)


CLAIM = dict(id="C1", statement="s", source="t", paper="1", mode="scaled", measure="m", passes=">= 3", bar="paper")


@pytest.mark.parametrize("expected", MEASURED_VERDICTS)
@pytest.mark.parametrize("verdict", MEASURED_VERDICTS)
def test_alarms(expected, verdict):
    claim = Claim(**CLAIM, expected=expected, control="off")
    assert claim.alarming(verdict) == (MEASURED_VERDICTS.index(verdict) > MEASURED_VERDICTS.index(expected))
    assert claim.alarming(verdict, control=True) == (verdict != "not reproduced")
    without = Claim(**CLAIM, expected=expected)
    assert without.alarming(verdict, control=True) == without.alarming(verdict)
    assert claim.alarming("not run") and claim.alarming("needs gpu")
    assert not Claim(**CLAIM | {"mode": "gpu"}).alarming("needs gpu")


def test_unknown_slugs_get_a_near_one():
    with pytest.raises(WorkbenchError, match="did you mean saber"):
        find_paper("sabre")
    for slug in ("", ".", "../saber", "saber.toml", "SABER"):
        with pytest.raises(WorkbenchError, match="There is no paper with the slug"):
            find_paper(slug)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_torn_toml_never_shows_library_internals(tmp_path_factory, data):
    original = find_paper("saber").path.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "flip", "drop line", "double line"]))
    at = data.draw(st.integers(0, len(original) - 1))
    lines = original.splitlines(keepends=True)
    row = data.draw(st.integers(0, len(lines) - 1))
    content = {
        "cut": original[:at],
        "flip": original[:at] + bytes([original[at] ^ data.draw(st.integers(1, 255))]) + original[at + 1 :],
        "drop line": b"".join(lines[:row] + lines[row + 1 :]),
        "double line": b"".join(lines[: row + 1] + lines[row:]),
    }[kind]
    folder = tmp_path_factory.mktemp("t") / "tail_risk"
    folder.mkdir()
    path = folder / "saber.toml"
    path.write_bytes(content)
    try:
        paper = load_paper(path)
    except WorkbenchError as refusal:
        text = str(refusal)
        assert text.startswith("tail_risk/saber.toml: ") and text.rstrip().endswith(".")
        assert "msgspec" not in text and "Traceback" not in text
    else:
        assert paper.slug == "saber" and math.isfinite(paper.year)


def test_every_toml_is_read_by_the_standard_library_too():
    for path in notebooks_folder().glob("*/*.toml"):
        assert tomllib.loads(path.read_text(encoding="utf-8"))["title"]
