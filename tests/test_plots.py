"""The figure kinds: labels of logarithmic axes are matplotlib's, as plain text."""

from __future__ import annotations

import pytest

from workbench import plots


@pytest.mark.parametrize(
    "low, high, said",
    [
        (1e-7, 1e3, {"10⁻⁷", "10⁻¹", "10³"}),
        (1.0, 40.0, {"10⁰", "10¹"}),
        (1e-3, 5e-3, {"10⁻³", "2×10⁻³", "4×10⁻³"}),
    ],
)
def test_powers_of_ten_are_plain_text(low, high, said):
    fig, ax = plots.figure()
    ax.plot([0, 1], [low, high])
    ax.set_yscale("log")
    plots.to_png(fig)
    labels = {tick.get_text() for tick in [*ax.get_yticklabels(), *ax.get_yticklabels(minor=True)]}
    assert said <= labels and not any("$" in label for label in labels)


def test_other_labels_are_left_alone():
    fig, axes = plots.figure(ncols=2)
    axes[0].set(yscale="log", ylim=(1, 100))
    axes[0].set_yticks([1, 10], ["one", "ten"])
    axes[1].set_ylim(0, 0.5)
    plots.to_png(fig)
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["one", "ten"]
    assert "0.5" in [tick.get_text() for tick in axes[1].get_yticklabels()]
