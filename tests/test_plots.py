"""The figure kinds: ticks of logarithmic axes are matplotlib's, their labels plain text."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from workbench import plots
from workbench.plots import ticks


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
    with ticks.quick_ticks(fig):
        fig.draw_without_rendering()
        labels = {tick.get_text() for tick in [*ax.get_yticklabels(), *ax.get_yticklabels(minor=True)]}
    assert said <= labels and not any("$" in label for label in labels)


def logarithmic():
    fig, axes = plots.figure(ncols=3, width=11)
    for power, ax in enumerate(axes, start=1):
        ax.plot(np.arange(1, 41), np.arange(1, 41.0) ** power)
        ax.set(xscale="log", yscale="log", xlabel="n")
    axes[1].secondary_xaxis("top", functions=(lambda x: 3 * x, lambda x: x / 3))
    axes[2].set(xlim=(1e-5, 1e3), ylim=(2, 150))
    for ax in [*axes, *axes[1].child_axes]:
        ax.tick_params(which="both", labelbottom=False, labelleft=False, labeltop=False)
    return fig


def test_marks_are_where_matplotlib_has_its_minor_ticks():
    def pixels(png):
        return np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=float)

    def theirs(minor):
        fig, buffer = logarithmic(), io.BytesIO()
        fig.__class__ = Figure
        for ax in [] if minor else [*fig.axes, *fig.axes[1].child_axes]:
            ax.minorticks_off()
        fig.savefig(buffer, format="png", dpi=110, facecolor="white")
        return pixels(buffer.getvalue())

    ours, with_ticks, without = pixels(plots.to_png(logarithmic())), theirs(True), theirs(False)
    assert np.sum(abs(ours - with_ticks) > 64) < 0.05 * np.sum(abs(without - with_ticks) > 64)


def test_a_figure_is_left_as_it_was():
    fig = logarithmic()
    kept = [(axis.minor.locator, axis.major.formatter, len(ax.get_children())) for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)]  # fmt: skip
    canvas = fig.canvas
    for draw in (plots.to_png, plots.to_rough_png, plots.to_png):
        draw(fig)
    assert kept == [(axis.minor.locator, axis.major.formatter, len(ax.get_children())) for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)]  # fmt: skip
    assert fig.canvas is canvas


def test_other_labels_are_left_alone():
    fig, axes = plots.figure(ncols=2)
    axes[0].set(yscale="log", ylim=(1, 100))
    axes[0].set_yticks([1, 10], ["one", "ten"])
    axes[1].set_ylim(0, 0.5)
    plots.to_png(fig)
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["one", "ten"]
    assert "0.5" in [tick.get_text() for tick in axes[1].get_yticklabels()]
