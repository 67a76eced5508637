# caught by: test_the_first_crossing_counts
"""Goes on to the last crossing."""

from itertools import pairwise


def sustained_rate(points, limit):
    if points[0][1] > limit:
        return 0.0
    answer, crossed = points[-1][0], False
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 <= limit < y1:
            answer = x0 + (x1 - x0) * (limit - y0) / (y1 - y0)
            crossed = True
    return answer if crossed else points[-1][0]
