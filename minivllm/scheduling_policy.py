"""The order of the scheduler's queues: which group goes first, and which gives way.

The scheduler takes from the head of `waiting` and `swapped`, and preempts the last of `running`. Where a
group is put into these queues is all there is to a policy::

    first come, first served       waiting [C, D]           a preempted B comes back:   [B, C, D]
                                   running [A, B]           the next victim is B, admitted last
    by priority, 0 before 1        waiting [C 1, D 1]       a new E 0 is the next to be admitted
                                   running [A 0, E 0, B 1]  the next victim is B, admitted before E

Between the two queues there is no order: while a group is swapped out, none that waits is admitted
(`Scheduler.schedule_waiting`), however early or urgent. What is said below is of each queue by itself.

The policy object is the only one that inserts into a queue. To try another order, write a class with these
three methods and enter it in `POLICIES`.

Paper: section 4.5 (first come, first served, for fairness and against starvation).
vLLM V1: `vllm/v1/core/sched/request_queue.py`.
"""

from __future__ import annotations

from bisect import insort_left, insort_right
from collections import deque

from minivllm.sequence import SequenceGroup


class FirstComeFirstServed:
    """Groups are admitted in the order of their arrival, and preempted in the reverse order."""

    def add(self, waiting: deque[SequenceGroup], group: SequenceGroup) -> None:
        """Queue a new request."""
        waiting.append(group)

    def put_back(self, queue: deque[SequenceGroup], group: SequenceGroup) -> None:
        """Return a preempted group to a queue: it came before all that wait there."""
        queue.appendleft(group)

    def start(self, running: list[SequenceGroup], group: SequenceGroup) -> None:
        """Enter an admitted group among those running."""
        running.append(group)


class Priority(FirstComeFirstServed):
    """Groups are admitted, and keep their blocks, in the order of priority, then of arrival, as in vLLM.

    An urgent group goes before all others that wait, and gets its tokens before all others that run; it does
    not take the blocks of a running one. A group of low priority may wait for as long as urgent ones arrive.
    """

    def add(self, waiting: deque[SequenceGroup], group: SequenceGroup) -> None:
        """Queue a new request, behind those that are as urgent."""
        insort_right(waiting, group, key=_urgency)

    def put_back(self, queue: deque[SequenceGroup], group: SequenceGroup) -> None:
        """Return a preempted group to a queue, ahead of those that are as urgent."""
        insort_left(queue, group, key=_urgency)

    def start(self, running: list[SequenceGroup], group: SequenceGroup) -> None:
        """Enter an admitted group among those running; the last of them is the first to be preempted."""
        insort_right(running, group, key=_urgency)


def _urgency(group: SequenceGroup) -> tuple[int, float]:
    """Smaller is more urgent."""
    return group.priority, group.arrival_time


POLICIES = {"fcfs": FirstComeFirstServed, "priority": Priority}
"""By the name that `EngineConfig.scheduling_policy` gives."""
