"""Pairs of neighbours, from the left; what lies above the limit is taken off the right end."""

from itertools import pairwise


def sustained_rate(points, limit):
    if points[0][1] > limit:
        return 0
    for (left, low), (right, high) in pairwise(points):
        if high > limit:
            return right - (right - left) * (high - limit) / (high - low)
    return max(points)[0]
