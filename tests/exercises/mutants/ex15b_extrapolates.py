# caught by: test_the_ends_of_the_curve
"""Draws the last line on beyond the last point."""

from itertools import pairwise


def sustained_rate(points, limit):
    if points[0][1] > limit:
        return 0.0
    if len(points) == 1:
        return points[0][0]
    lines = list(pairwise(points))
    (x0, y0), (x1, y1) = next((line for line in lines if line[1][1] > limit), lines[-1])
    return x0 + (x1 - x0) * (limit - y0) / (y1 - y0)
