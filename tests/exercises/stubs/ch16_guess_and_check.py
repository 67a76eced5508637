"""Chapter 16: guess and check.

Speculative decoding guesses tokens and has the model check all guesses in one step. Write the three pieces: a
guesser that needs no model, the rule which accepts a guess without bending the distribution, and the bookkeeping
of the KV cache after a guess was wrong.

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex16a
or, in the notebook, with   %check ex16a.
"""


def propose(token_ids: list[int], count: int, longest: int) -> list[int]:
    """ex16a. Guess the next `count` tokens: look up the last tokens of the text, and copy what followed them.

    For n = longest, longest - 1, ..., 1: find the last n tokens of the text at an *earlier* place, the latest such
    place. The first n for which there is one decides. An earlier place may overlap the end of the text, but is not
    the end itself, so at least one token follows it. Copy from there. If the copy reaches the end of the
    text, it goes on with what it has copied. If no n has such a place, there are no guesses: return [].

    Examples:
        propose([7, 1, 2, 3, 9, 4, 1, 2, 3], 2, longest=4) == [9, 4]
            [4, 1, 2, 3] stands nowhere else; [1, 2, 3] does, and 9, 4 followed.
        propose([1, 2, 8, 1, 2, 9, 1, 2], 2, longest=2) == [9, 1]          the latest place
        propose([5, 6, 5, 6], 5, longest=2) == [5, 6, 5, 6, 5]             the copy runs into itself
        propose([1, 2, 3], 2, longest=2) == []

    Args:
        token_ids: the text so far, prompt and output; do not change it.
        count: how many guesses, at least 1.
        longest: tokens of the longest run that is looked up, at least 1; the text may be shorter.
    """
    raise NotImplementedError("ex16a")


def accept_or_redraw(p: list[float], q: list[float], draft: int, u_accept: float, u_redraw: float) -> int:
    """ex16b. The token that follows: the draft, or another one; in all, distributed as `p`.

    The draft was drawn with the probabilities `q`, by a cheaper guesser. The model wants `p`.
      - Accept the draft with probability min(1, p[draft] / q[draft]): if u_accept is *below* it.
      - Otherwise draw from what q left over: max(0, p - q) of each token, divided by its sum. Draw by adding up: the
        first token at which the sum of these probabilities is *above* u_redraw. A token of which nothing is left over
        never comes: not at u_redraw = 0, and not if rounding leaves the sum of all at 0.9999999.

    Example, p = [0.7, 0.3] and q = [0.4, 0.6]. A draft of 0 is accepted for any u_accept, since 0.7 / 0.4 is above 1.
    A draft of 1 is accepted for u_accept < 0.5. Otherwise what is left over is [0.3, 0], divided by its sum
    [1, 0]: the answer is 0 for any u_redraw.

    Args:
        p, q: probabilities of each token; each list sums up to 1. Not changed.
        draft: a token with q[draft] > 0.
        u_accept, u_redraw: two independent random numbers from [0, 1).
    """
    raise NotImplementedError("ex16b")


def after_check(
    num_known: int, drafts: list[int], chosen: list[int], block_size: int
) -> tuple[list[int], int, list[int]]:
    """ex16c. What a sequence has become after a step that computed its last known token and some drafts.

    Before the step `num_known` tokens are known; all but the last of them have K and V in the cache. The step computes
    the last known token and all drafts, so that K and V of each are in the cache afterwards, of the wrong ones as
    well. `chosen` is what the model wants after the last known token and after each draft:
    len(chosen) == len(drafts) + 1.

    A draft counts if it is what was chosen there and all drafts before it count. The new tokens are the drafts
    that count, and one token more: the first choice that is no draft.

    Returns three things:
      - the new tokens;
      - num_computed: how many tokens, from the first on, now have K and V in the cache *and* are part of the text;
      - the numbers of the logical blocks (block i holds positions i * block_size and on) that became full of such
        tokens in this step, in order. These get names, and other requests may find them.

    Example: after_check(6, [21, 22, 23], [21, 22, 99, 40], block_size=4) == ([21, 22, 99], 8, [1])
        21 and 22 count, at positions 6 and 7. 99 is new, and its K and V are not computed: at position 8 the
        cache has those of 23, which the next step overwrites. 8 tokens are computed; block 1 became full.

    Args:
        num_known: tokens known before the step, at least 1.
        drafts: 0 or more tokens. Not changed.
        chosen: one more than drafts. Not changed.
        block_size: tokens per block, 1 or more.
    """
    raise NotImplementedError("ex16c")
