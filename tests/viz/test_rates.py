"""Rates with all of their rounds, and the grid of what a kernel has loaded: every number is in the picture."""

import pytest

from minivllm.viz import rate_bars, rate_curves, rate_square
from minivllm.viz.loads import how_often, in_which_turn, loads_grid

CORNERS = {
    ("contiguous", "static"): [30.0, 31.0, 35.0],
    ("contiguous", "continuous"): [45.0, 46.0, 44.0],
    ("paged", "static"): [48.0, 50.0, 49.0],
    ("paged", "continuous"): [60.0, 66.0, 62.0],
}


def with_gid(fig, gid):
    return fig.findobj(lambda artist: artist.get_gid() == gid)


def test_a_bar_ends_at_the_median_and_shows_every_round():
    """Would catch a figure that hides how far apart the rounds were."""
    fig = rate_bars({"slow": [5.0, 1.0, 2.0], "fast": [9.0]}, "tokens per second")
    assert [bar.get_width() for bar in with_gid(fig, "bar")] == [2.0, 9.0]
    assert [list(points.get_xdata()) for points in with_gid(fig, "rounds")] == [[5.0, 1.0, 2.0], [9.0]]
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["slow", "fast"]


def test_along_each_side_of_the_square_one_thing_changes():
    """Would catch a 2x2 that is drawn as a chain, in which one step changes two things."""
    seen = []

    def factor(before, after):
        seen.append((before, after))
        return f"x {len(seen)}"

    fig = rate_square(CORNERS, factor, "tokens per second")
    a, b, c, d = CORNERS.values()
    assert seen == [(a, b), (c, d), (a, c), (b, d), (a, d)]
    assert [list(points.get_xdata()) for points in with_gid(fig, "rounds")] == [a, b, c, d]
    texts = [text.get_text() for ax in fig.axes for text in ax.texts]
    assert all(f"x {number}" in texts for number in (1, 2, 3, 4)) and fig.get_suptitle().endswith("x 5")
    for corners in (
        dict(list(CORNERS.items())[:3]),
        dict(reversed(CORNERS.items())) | {("other", "static"): [1.0]},
    ):
        with pytest.raises(ValueError, match="two rows and two columns"):
            rate_square(corners, factor, "tokens per second")


def test_a_curve_goes_through_the_medians_and_marks_every_round():
    """Would catch a curve through the best round, and rounds that are left out."""
    fig = rate_curves({"paged": {1.0: [3.0, 1.0, 2.0], 2.0: [4.0]}})
    line, *marks = fig.axes[0].lines
    assert list(line.get_xdata()) == [1.0, 2.0] and list(line.get_ydata()) == [2.0, 4.0]
    assert [list(mark.get_ydata()) for mark in marks] == [[1.0, 3.0], [3.0, 1.0, 2.0]]


def test_the_grid_of_loads_has_a_cell_for_each_row_that_was_loaded():
    """Would catch a key drawn in another block, slot or head."""
    loads = [((0, 0, 0), 0, 9), ((0, 1, 0), 0, 9), ((0, 0, 0), 1, 3), ((1, 0, 0), 0, 14)]
    assert how_often(loads) == {0: {9: "2x", 3: "1x"}, 1: {14: "1x"}}
    assert in_which_turn(loads) == {0: {9: "0", 3: "1"}, 1: {14: "0"}}
    fig = loads_grid({"how often": how_often(loads), "when": in_which_turn(loads)}, (4, 2, 2))
    assert [(cell.get_x(), cell.get_y()) for cell in with_gid(fig, "load")] == [(1, 2), (3, 0)] * 2 + [
        (2, 3)
    ] * 2
    assert [text.get_text() for text in fig.axes[0].get_xticklabels()] == ["h0", "h1", "h0", "h1"]
    for panels in ({}, {"empty": {}}):
        with pytest.raises(ValueError, match="at least one panel"):
            loads_grid(panels, (4, 2, 2))
