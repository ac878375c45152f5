import json
import math

import pytest

import workbench as wb
from workbench.budget import charge
from workbench.errors import WorkbenchError
from workbench.measure import CLAIM_MIME
from workbench.papers import find_paper


@pytest.fixture
def scaled():
    return next(
        claim for claim in find_paper("saber").claims if claim.mode == "scaled" and claim.passes.startswith(">=")
    )


def test_measure_records_value_verdict_and_spend(scaled, capsys):
    paper = wb.paper("saber", seed=3)
    charge(tokens=10)
    bar = float(scaled.passes.split()[-1])
    paper.measure(scaled.id, bar + 1, interval=(bar + 0.5, bar + 1.5))
    measured = paper.measured[scaled.id]
    assert measured.verdict == "reproduced" and measured.spend.tokens == 10
    assert scaled.id in capsys.readouterr().out
    record = measured._repr_mimebundle_()[CLAIM_MIME]
    assert json.loads(json.dumps(record))["seed"] == 3 and record["expected"] == scaled.expected
    charge(tokens=1)
    paper.measure(scaled.id, bar - 1, interval=(bar - 2, bar - 0.5))
    assert paper.measured[scaled.id].verdict == "not reproduced" and paper.measured[scaled.id].spend.tokens == 1
    table = paper.verdicts()
    assert "not reproduced" in str(table) and "not run" in table._repr_html_()


def test_a_statistical_value_needs_its_interval_and_sense(scaled):
    paper = wb.paper("saber")
    for arguments in [(1.0, None), (math.nan, (0, 1)), (1.0, (0, math.inf)), (2.0, (0, 1))]:
        with pytest.raises(WorkbenchError, match=rf"Claim {scaled.id} was measured"):
            paper.measure(scaled.id, *arguments)
    with pytest.raises(WorkbenchError, match=r"write it into saber\.toml before measuring it"):
        paper.measure("C99", 1.0, interval=(0, 2))


def test_parameters_are_checked():
    with pytest.raises(WorkbenchError, match="did you mean 'quick'"):
        wb.paper("saber", scale="quik")
    with pytest.raises(WorkbenchError, match="seed is"):
        wb.paper("saber", seed=-1)
    assert [wb.paper("saber", scale=scale).pick(1, 2) for scale in ("quick", "full", "gpu")] == [1, 2, 2]
    assert wb.paper("saber", scale="gpu").pick(1, 2, 3) == 3


def test_cards_are_escaped(scaled):
    paper = wb.paper("saber")
    paper.measure(scaled.id, 1.0, interval=(0.0, 2.0), note="<script>alert(1)</script>")
    assert "<script>" not in paper.measured[scaled.id]._repr_html_()
