"""Chapter 12: requests arrive.

A server cannot choose its load. Say how long a newcomer will wait, stop working for clients that have left, and
share the seats between users.

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex12a
or, in the notebook, with   %check ex12a.
"""

from minivllm.scheduler import Scheduler
from minivllm.scheduler_output import SchedulerOutput


def steps_until_seat(running: list[int], waiting: list[int], seats: int) -> int:
    """ex12a. How many steps pass before a request that comes now gets a seat.

    Admission control: a server which knows that a newcomer would wait too long can say so at once (HTTP 503), and
    the client can go elsewhere. Batching is continuous: a seat that becomes free in one step is taken in the next.
    First come, first served: the newcomer comes after all that wait. Memory and the token budget never run out here.

    Example, 2 seats: steps_until_seat([3, 5], [4], seats=2) == 5. After 3 steps the first seat is free, and the
    waiting request takes it, for 4 steps: until step 7. The other seat is free after 5 steps: the newcomer's.

    Args:
        running: steps that each running request still needs, 1 or more; at most `seats` requests.
        waiting: steps that each waiting request will need once it has a seat, 1 or more, head of the queue first.
            Neither list is changed.
        seats: requests that may run at once, 1 or more.

    Returns:
        0 if the newcomer gets a seat in the very next step.
    """
    raise NotImplementedError("ex12a")


class Impatient(Scheduler):
    """ex12b. A scheduler that does no work for clients which have given up.

    Each client waits `patience` steps for its first token and then goes away. To compute its prompt after that is
    work for the bin, and while a server does it, the next clients lose their patience, too.

    A request which waits, came `patience` steps ago, and has no token yet is aborted, before the step is planned.
    One that is running is computed to its end, even if its long prompt takes some steps more. One that has a token
    and waits again (it was preempted) stays: its client reads on.

    What you can look at and use:

        self.waiting            deque of groups; group.request_id, len(group.seqs[0]), group.num_prompt_tokens
        self.stats.num_steps    steps so far; a request that is added at 7 is aborted at 7 + patience
        self.add(group)         called when a request comes
        self.abort(request_id)  ends a request, whatever its state
    """

    patience = 10  # steps; a subclass may set another number

    def schedule(self) -> SchedulerOutput:
        """Drop the waiting requests whose clients have left, then plan the step as `Scheduler` does."""
        raise NotImplementedError("ex12b")


class FairQueue(Scheduler):
    """ex12c. A scheduler that shares the engine between users, not between requests.

    First come, first served lets a user with forty requests push aside a user with one. Here the next seat goes to
    the user which has been given least: the user with the fewest output tokens *promised* so far. A request's
    promise is all of `group.max_num_tokens - group.num_prompt_tokens`, and it counts from the moment the request is
    admitted. Among the requests of one user, and between users with equal sums, the order of arrival decides.

    The user is the part of `group.request_id` before the slash: "ann/3" is a request of ann.

    Example, one seat, each request asks for 5 tokens; the queue is ann/0 ann/1 ann/2 ben/0. The order is ann/0
    (both users have 0, ann came first), ben/0 (ben has 0, ann 5), ann/1 (both have 5), ann/2.

    A request that was preempted has been promised its tokens already: it goes before all others, and counts once.
    """

    def schedule(self) -> SchedulerOutput:
        """Put the queue in order, then plan the step as `Scheduler` does.

        Within a step several requests may be admitted; the second of them is to be chosen as if the first had its
        tokens already. `self.waiting` is a `collections.deque` and must stay one.
        """
        raise NotImplementedError("ex12c")
