"""Stand-ins for harm: severities from their definition, judges that err as told, laws with CVaR in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate
from scipy.special import logit

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import harm_profiles as hp
from workbench.methods.tail_risk import loss_tails, sharp
from workbench.plots.harm_tails import contributions_figure, flip_figure, tail_figure


def test_severities_by_hand():
    p, changed, y = np.array([0.9, 0.2, 0.4, 0.1]), np.array([0.8, 0.2, 0.5, 0.1]), np.array([1, 1, 0, 0])
    found = hp.stand_in_severities(p, changed, y, ["a", "b", "b", "a"])
    assert found[:, 0] == pytest.approx([0.1, 0, 0.1, 0])
    # One row of four is wrong; group b errs in half of its rows.
    assert found[:, 1] == pytest.approx([0, 0.25 * 0.8, 0.25 * 0.4, 0])
    assert found[:, 2] == pytest.approx([0, 0.6, 0, 0]), "the denial of what is there, as sure as it was"
    assert found[:, 3] == pytest.approx([0.01, 0.64, 0.16, 0.01])


@pytest.mark.parametrize("data", [hp.digit_harms, hp.affair_harms])
def test_real_rows_replay_and_are_of_the_papers_number(data):
    harms = data(Stream.of(0, "x"))
    assert len(harms) == 11 and all(h.shape == (901, 4) and 0 <= h.min() <= h.max() <= 1 for h in harms.values())
    again = data(Stream.of(0, "x"))
    assert all((harms[name] == again[name]).all() for name in harms)
    assert sum(h[:, 0].max() > 0 for h in harms.values()) >= 9, "a small tree may not look at the changed attribute"


def test_the_image_moves_by_a_quarter_of_a_pixel(monkeypatch):
    class Recorder:
        def fit(self, x, y):
            self.shape = x.shape

        def predict_proba(self, x):
            self.images = x.reshape(2, 901, 8, 8)
            return np.full((len(x), 2), 0.5)

    recorder = Recorder()
    monkeypatch.setattr(hp, "classifiers", lambda seed: {"recorder": recorder})
    hp.digit_harms(Stream.of(0, "x"))
    (before, after), shape = recorder.images, recorder.shape
    assert shape == (896, 64)
    assert np.allclose(after[..., 1:], 0.75 * before[..., 1:] + 0.25 * before[..., :-1])
    assert np.allclose(after[..., 0], 0.75 * before[..., 0])


def test_judges_differ_by_a_shift_and_noise_on_the_logit_scale():
    h = np.full((4000, 2), 0.3)
    scores = hp.simulated_judges(h, 40, stream=Stream.of(1, "x"))
    off = logit(scores) - logit(0.3)
    own = off.mean(axis=(0, 1))
    assert own.std(ddof=1) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(80)) and (off - own).std() == pytest.approx(
        0.7, rel=0.02
    )
    exact = hp.simulated_judges([0.2, 1.0, 0.0], 1, shift=0, noise=0, stream=Stream.of(1, "x"))
    assert exact[:, 0] == pytest.approx([0.2, 0.999, 0.001])


@pytest.mark.parametrize("law", [hp.EVEN, hp.RARE])
def test_cvar_is_that_of_the_law(law):
    assert law.mean == pytest.approx(0.44)
    for level in (0.5, 0.95, 0.99):
        q = law.quantile(level)
        assert law.exceedance(q) == pytest.approx(1 - level)
        beyond, _ = integrate.quad(law.exceedance, q, 20, limit=500, epsabs=1e-12)
        assert law.cvar(level) == pytest.approx(q + beyond / (1 - level), abs=1e-8)
    drawn = law.draw(400_000, Stream.of(2, "x"))
    assert loss_tails.cvar(drawn, 0.95) == pytest.approx(law.cvar(0.95), rel=0.01)


def test_two_laws_of_one_mean_differ_threefold_in_the_tail():
    assert hp.EVEN.cvar(0.95) == pytest.approx(1.0088, abs=1e-4) and hp.RARE.cvar(0.95) == pytest.approx(
        3.10, abs=0.005
    )


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: hp.stand_in_severities([0.5], [0.5], [2], [0]), "y 0 or 1"),
        (lambda: hp.stand_in_severities([0.5, 0.5], [0.5, 0.5], [1], [0, 0]), "be as long"),
        (lambda: hp.stand_in_severities([1.5], [0.5], [1], [0]), "lie in [0, 1]"),
        (lambda: hp.GammaMixture((0.5, 0.4), (1, 1), (1, 1)), "add up to 1"),
        (lambda: hp.GammaMixture((1.0,), (0.0,), (1.0,)), "be positive"),
        (lambda: hp.simulated_judges([0.5], 0, stream=Stream.of(0, "x")), "n_judges is 0"),
        (lambda: hp.simulated_judges([0.5], noise=-1, stream=Stream.of(0, "x")), "noise is -1"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, said):
    with pytest.raises(WorkbenchError) as refusal:
        call()
    assert said in str(refusal.value) and str(refusal.value).endswith(".")


def test_the_figures_name_what_they_show():
    laws = {"even": hp.EVEN, "rare": hp.RARE}
    drawn = {name: law.draw(300, Stream.of(4, name)) for name, law in laws.items()}
    left, _ = tail_figure(drawn, 0.9, ["even", "rare"], truth=laws).axes
    said = [text.get_text() for text in left.texts]
    for name, values in drawn.items():
        assert any(
            f"{name}: mean {values.mean():.2f}" in line and f"CVaR {loss_tails.cvar(values, 0.9):.2f}" in line
            for line in said
        )
    with pytest.raises(WorkbenchError, match="shown is 'odd'"):
        tail_figure(drawn, 0.9, ["odd"])

    profiles = sharp.risk_profiles(np.random.default_rng(0).beta(0.3, 2, (3, 100, 4)), dimensions=sharp.DIMENSIONS)
    _, right = contributions_figure(
        profiles, sharp.resample(profiles.losses, stream=Stream.of(5)).interval("cvar")
    ).axes
    ends = {bar.get_y(): 0.0 for bar in right.patches}
    for bar in right.patches:
        ends[bar.get_y()] += bar.get_width()
    assert sorted(ends.values()) == pytest.approx(sorted(profiles.cvar))
    flips = np.zeros((3, 3), dtype=bool)
    flips[0, 2] = True
    rings = flip_figure(profiles, flips).axes[0].lines
    order = np.argsort(profiles.mean).tolist()
    assert [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings] == [(order.index(2), order.index(0))]
