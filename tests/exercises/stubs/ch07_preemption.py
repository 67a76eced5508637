"""Chapter 7: preemption and chunked prefill.

Two decisions of a scheduler under pressure: which request gives way when memory runs out, and how many tokens each
request computes in a step. Then be the user that no scheduler wants: find the requests that bring a bad policy down.

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex07a
or, in the notebook, with   %check ex07a.
"""

from dataclasses import dataclass


@dataclass
class Request:
    """One request, as `preempt` sees it. Its prompt and all tokens generated so far count as its tokens.

    num_tokens           tokens that are known; at least 1
    num_computed_tokens  how many of them have their keys and values in memory, counted from the first
    block_table          the physical blocks that hold these; empty while the request waits
    """

    name: str
    num_tokens: int
    num_computed_tokens: int
    block_table: list[int]


def preempt(
    index: int, num_blocks: int, running: list[Request], waiting: list[Request], free_blocks: list[int]
) -> bool:
    """ex07a. Make room for `running[index]`, which needs `num_blocks` more blocks in this step.

    While fewer than `num_blocks` blocks are free, the newest running request gives way. It
      - gives all its blocks back to `free_blocks`, in any order, and holds none,
      - has computed nothing: its `num_computed_tokens` is 0. It keeps its tokens (`num_tokens`),
      - leaves `running` and becomes the head of `waiting`: it came before all requests that wait there.
    The newest may be `running[index]` itself. Then no other request gives way, and `running[index]` does not run in
    this step, even if the blocks that it has just given back would be enough for it.

    Nothing happens if there is room already. No block is taken for `running[index]`: the caller does that.

    Example: running A (blocks 0, 1), B (blocks 2, 3), C (block 4); waiting D; free_blocks [].
    preempt(0, 2, ...): C gives way, one block is free; B gives way, three are. It returns True. Now running is
    [A], waiting is [B, C, D], and free_blocks holds 2, 3 and 4. preempt(2, 1, ...) in its place would return False:
    C itself gives way. Then running is [A, B], waiting is [C, D], and free_blocks holds 4.

    Args:
        index: the request that needs blocks. The requests before it have their places in this step already.
        num_blocks: 0 or more.
        running: oldest first, in the order in which they were admitted. Changed in place.
        waiting: head of the queue first. Changed in place.
        free_blocks: blocks that no request holds. Changed in place.

    Returns:
        True if the request runs in this step, False if it has given way itself.
    """
    raise NotImplementedError("ex07a")


def next_chunks(
    running: list[tuple[int, int]], waiting: list[int], token_budget: int
) -> list[tuple[int, bool]]:
    """ex07b. How many tokens each request computes in the next step, and which requests sample. Memory is plenty.

    Every request computes all its tokens that are not computed yet, as far as the budget goes: running requests
    first, in their order, then waiting requests, in theirs. A request samples its next token in a step that
    computes the last of its tokens, and only then. When the budget is used up the step is full: the requests that
    are left are not in it, so no row of the result has 0 tokens.

    Example: next_chunks([(7, 6), (12, 4)], [5], token_budget=8) == [(1, True), (7, False)].
    The first request generates: one token is missing. The second lacks 8 of its 12 tokens, gets the 7 that are left
    of the budget, and does not sample yet. For the third nothing is left. With token_budget=16 the result is
    [(1, True), (8, True), (5, True)].

    Args:
        running: (tokens, computed tokens) of each running request, oldest first; computed < tokens. Not changed.
        waiting: tokens of each waiting request, head of the queue first; none of them is computed. Not changed.
        token_budget: most tokens of this step, 0 or more.

    Returns:
        (number of tokens, whether it samples) for each request in the step, running ones first.
    """
    raise NotImplementedError("ex07b")


def breaking_workload(policy: str) -> list[tuple[int, int]]:
    """ex07c. Requests that bring a scheduling policy down.

    The scheduler has 12 blocks of 4 slots, 4 seats and a budget of 8 tokens per step. You hand in 2 to 4 requests,
    all at the same time, as (prompt tokens, output tokens), both at least 1. Together the two are at most 48, so
    each request would fit into the memory alone. The course's own policy ("engine" below) finishes them all.

      "hold"    No request is ever preempted. A running request whose next tokens do not fit keeps its blocks and
                sits out until another one finishes. Everything else is as in the engine.
                Hand in requests that never finish.
      "turns"   Every request gets a turn. At the start of each step, if a request waits and the free blocks are too
                few for all tokens of the head of the queue, the *oldest* running request is preempted and goes to
                the *tail* of the queue. Then the step is planned as in the engine.
                Hand in requests that never finish.
      "engine"  The newest gives way, goes to the head of the queue, and comes back as soon as its next chunk fits,
                but not in a step in which a request was preempted. All requests finish. Hand in requests for which
                the engine computes at least 2.5 times as many tokens as with plenty of memory (that would be
                prompt + output - 1 for each: the last token is only read).

    Start from two requests and a sheet of paper: how many blocks does each hold after each step? The policies are
    written out in tests/exercises/test_ch07_preemption.py; a failed test says what your requests did.

    Example of an answer that breaks none of the three: [(9, 5), (6, 3)]. Both fit at once.

    Args:
        policy: one of the three names.
    """
    raise NotImplementedError("ex07c")
