# caught by: test_the_ends_of_the_curve
"""Gives the first rate to a curve that begins above the limit."""


def sustained_rate(points, limit):
    x0, y0 = points[0]
    if y0 > limit:
        return x0
    for x1, y1 in points[1:]:
        if y1 > limit:
            return x0 + (x1 - x0) * (limit - y0) / (y1 - y0)
        x0, y0 = x1, y1
    return x0
