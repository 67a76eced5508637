"""The order of the scheduler's queues: which group goes first, and which gives way.

The scheduler takes from the head of `waiting` and `swapped`, and preempts the last of `running`. Where a
group is
put into these queues is all there is to a policy::

    first come, first served       waiting [C, D]           a preempted B comes back:   [B, C, D]
                                   running [A, B]           the next victim is B, admitted last

The policy object is the only one that inserts into a queue. To try another order, write a class with these
three methods and hand it to `Scheduler(policy=...)`.

Paper: section 4.5 (first come, first served, for fairness and against starvation).
vLLM V1: `vllm/v1/core/sched/request_queue.py`.
"""

from __future__ import annotations

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


POLICIES = {"fcfs": FirstComeFirstServed}
"""By the name that `EngineConfig.scheduling_policy` gives."""
