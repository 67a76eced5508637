"""Chapter 14: why is the text not the same?

Two questions about two runs that should agree: is this difference a tie or a bug, and can it be made to go away?

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex14a
or, in the notebook, with   %check ex14a.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def first_flip(ours: Tensor, theirs: Tensor) -> tuple[int, float] | None:
    """ex14a. Where two greedy texts part, and how close the call was.

    Both programs have read the same tokens. Row t holds the logits from which they choose token t, by the largest.
    The first row in which they choose differently is where the texts part; what comes after it says nothing, because
    from there on the two have read different tokens.

    The gap is what *they* see between the two tokens in question: their logit of their choice minus their logit of
    ours. A small gap is a tie that rounding decides. A large one is a bug.

    Example: ours [[1, 3, 2], [5, 4.9, 0]], theirs [[1, 3, 2], [4.9, 5, 0]] -> (1, 0.1), as 5 - 4.9 = 0.1.
    If all choices agree, the answer is None, however much the numbers differ; if one does not, it is found, however
    little they differ.

    Args:
        ours, theirs: (T, V), the same shape. No row has its maximum twice.

    Returns:
        (row, gap) of the first difference, an int and a float, no tensors; or None.
    """
    raise NotImplementedError("ex14a")


def in_tiles(x: Tensor, product: Callable[[Tensor], Tensor], tile: int) -> Tensor:
    """ex14b. A product whose result for a row does not depend on how many other rows there are.

    `product` maps (n, in) to (n, out), each row for itself. But a library chooses the order of its additions by n, so
    that the last bits of a row change with n. Call it with exactly `tile` rows each time, and they cannot.

    Cut the rows into tiles, in order. Fill up the last one with rows of zeros, of the dtype of x, and drop their
    results.

    Example: 5 rows and tile=4: two calls with 4 rows each, the second with one row and three rows of zeros.
    The result has 5 rows.

    Args:
        x: (T, in), T >= 1. It stays as it is.
        product: called with (tile, in) and nothing else.
        tile: rows of a call, at least 1.

    Returns:
        (T, out).
    """
    raise NotImplementedError("ex14b")
