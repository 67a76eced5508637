"""Chapter 6: continuous batching.

Between any two steps the scheduler may let requests in and see others out. Write both decisions, and then
change the order of the queue.

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex06a
or, in the notebook, with   %check ex06a.
"""

from minivllm.scheduler import Scheduler
from minivllm.scheduler_output import SchedulerOutput


def admit(waiting: list[int], seats: int, token_budget: int, free_blocks: int, block_size: int) -> list[int]:
    """ex06a. Which waiting requests join in this step, and with how many tokens each.

    First come, first served: go through the queue from its head. A request joins if
      - a seat is free (one each),
      - the step has token budget left: it computes its whole prompt, or as much of it as the budget allows,
      - there are free blocks for the tokens it computes in this step (a started block counts whole).
    The first request that cannot join ends the round. The requests behind it wait too, even if they would fit:
    letting them pass would make a long request wait forever.

    Example, block_size 4: admit([6, 30, 2], seats=4, token_budget=16, free_blocks=9, block_size=4) == [6, 10].
    6 tokens take 2 blocks; of the 30 the budget leaves room for 10, which take 3 blocks; then the budget is used
    up. With free_blocks=4 the answer is [6]: 10 tokens need 3 blocks and 2 are left.

    Args:
        waiting: tokens that each waiting request has to compute, 1 or more, head of the queue first. Not changed.
        seats: how many more sequences may run.
        token_budget: how many tokens this step may still compute.
        free_blocks: blocks that no sequence holds.
        block_size: tokens per block.

    Returns:
        The number of tokens for each request admitted, in the order of the queue.
    """
    raise NotImplementedError("ex06a")


def finish_reason(
    token_ids: list[int], num_prompt_tokens: int, max_tokens: int, stop_token_ids: set[int]
) -> str | None:
    """ex06b. Whether the newest token ends the sequence. Called after every sampled token.

    Returns "stop" if the newest token is a stop token (the model's end-of-sequence token is one of them),
    "length" if the sequence now has `max_tokens` output tokens, else None. If both hold, the answer is "stop": the
    model has said all it wanted to say.

    Example: the prompt is [5, 9], max_tokens=3, stop_token_ids={0}. After [5, 9, 4]: None. After [5, 9, 4, 0]:
    "stop". After [5, 9, 4, 8, 8]: "length".

    Args:
        token_ids: the prompt, then all output tokens; at least one of these. The last one is the newest. Not changed.
        num_prompt_tokens: how many of `token_ids` are the prompt. It may contain stop tokens; they end nothing.
        max_tokens: output tokens the request asked for, 1 or more.
        stop_token_ids: tokens that end the text.
    """
    raise NotImplementedError("ex06b")


class ShortestJobFirst(Scheduler):
    """ex06c. A scheduler that lets the shortest waiting job in first.

    First come, first served is fair, but one long answer makes many short ones wait. If it is known how long
    each answer will be (here it is: every request runs to its `max_num_tokens`), the mean time to completion is
    lowest when short jobs go first.

    Target: 24 requests come at once, 6 long ones (40 to 70 tokens) at the head of the queue and 18 short ones
    (3 to 10) behind them; there are 4 seats. The mean completion step has to be at most 0.50 of what first come,
    first served needs. Every request still gets exactly the same tokens.
    """

    def schedule(self) -> SchedulerOutput:
        """Put the queue in order, shortest job first, then plan the step as `Scheduler` does.

        `self.waiting` is a `collections.deque` of sequence groups, its head on the left; it must stay one.
        A group whose sequence is `group.seqs[0]` has `len(group.seqs[0])` tokens now (prompt and output) and
        `group.max_num_tokens` when it is done. A job's length is the number of tokens it has yet to generate:
        even a long prompt is computed in a step or two. Requests join the queue at any time, and come back to its
        head when they are preempted.

        `super().schedule()` does the rest: it admits from the head of `self.waiting`.
        """
        raise NotImplementedError("ex06c")
