"""Chapter 7: preempt, next_chunks, breaking_workload; each alone and inside the engine."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minivllm import step_rules
from minivllm.block_table import BlockTable, cdiv
from minivllm.scheduler import Scheduler
from minivllm.scheduler_output import StepDraft
from tests.exercises.engine import BLOCK_SIZE, generate
from tests.exercises.expect import expect, expect_that, expect_unchanged, same_text
from tests.helpers import check_invariants, check_plan, make_group, make_scheduler, run_model

# -- ex07a ------------------------------------------------------------------------------------------


def requests_of(ex, tables, names="ABCDEFGH"):
    """Requests that hold these blocks, every block full but for the last, with one token still to compute."""
    return [
        ex.Request(name, 4 * len(table), 4 * len(table) - 1, list(table))
        for name, table in zip(names, tables, strict=False)
    ]


class Case:
    """One call of `preempt`, its lists, and what they were before."""

    def __init__(self, ex, tables, free_blocks, num_waiting=1):
        self.running = requests_of(ex, tables)
        self.waiting = [ex.Request(name, 5, 0, []) for name in "UVWXYZ"[:num_waiting]]
        self.free_blocks = list(free_blocks)
        shown = ", ".join(f"{each.name} {each.block_table}" for each in self.running)
        self.before = f"running {shown}; waiting {self.names(self.waiting)}; free_blocks {self.free_blocks}"
        self.ex = ex

    @staticmethod
    def names(requests):
        return "".join(request.name for request in requests)

    def call(self, index, num_blocks):
        """Call it; `self.shown` says how, in words."""
        self.shown = f"preempt({index}, {num_blocks}, ...) with {self.before}"
        return self.ex.preempt(index, num_blocks, self.running, self.waiting, self.free_blocks)

    def expect_queues(self, running, waiting):
        got = self.names(self.running), self.names(self.waiting)
        expect(got, (running, waiting), f"names in (running, waiting) after {self.shown}")


EXAMPLE = [[0, 1], [2, 3], [4]]


@pytest.mark.exercise("ex07a", points=1, hint="running is in order of admission: the newest is its last.")
def test_the_newest_gives_way(ex):
    """The oldest must make progress, or no request ever finishes: victims come from the end of `running`."""
    case = Case(ex, EXAMPLE, [])
    expect(case.call(0, 1), True, case.shown)
    case.expect_queues("AB", "CU")
    case = Case(ex, [[0, 1], [2], [3, 4, 5]], [7])
    expect(case.call(1, 2), True, case.shown)
    case.expect_queues("AB", "CU")


@pytest.mark.exercise("ex07a", points=1, hint="Count the free blocks again after each victim: while, not if.")
def test_as_many_give_way_as_needed_and_no_more(ex):
    """One victim may be too few; preempting all the others throws away work without need."""
    case = Case(ex, EXAMPLE, [])
    expect(case.call(0, 2), True, case.shown)
    expect(len(case.running), 1, f"requests still running after {case.shown}")
    case = Case(ex, [[0], [1], [2], [3]], [])
    expect(case.call(0, 2), True, case.shown)
    expect(len(case.running), 2, f"requests still running after {case.shown}")
    for num_blocks, free_blocks in ((0, []), (1, [8]), (2, [8, 9])):
        case = Case(ex, EXAMPLE, free_blocks)
        expect(case.call(0, num_blocks), True, case.shown)
        case.expect_queues("ABC", "U")


@pytest.mark.exercise(
    "ex07a", points=1, hint="waiting.insert(0, victim), one victim after the other, newest first."
)
def test_the_victim_is_next_in_line(ex):
    """A victim came before all requests that wait. At the tail of the queue it would be overtaken by them."""
    case = Case(ex, EXAMPLE, [], num_waiting=3)
    case.call(1, 1)
    case.expect_queues("AB", "CUVW")
    case = Case(ex, EXAMPLE, [], num_waiting=2)
    case.call(0, 2)
    case.expect_queues("A", "BCUV")


@pytest.mark.exercise("ex07a", points=1, hint="Its blocks join free_blocks, and its table becomes empty.")
def test_every_block_of_the_victim_comes_back_once(ex):
    """A block in no list is lost for good; one in two lists gets two owners, which overwrite each other."""
    case = Case(ex, EXAMPLE, [9])
    case.call(0, 3)
    expect(sorted(case.free_blocks), [2, 3, 4, 9], f"free_blocks, sorted, after {case.shown}")
    for victim in case.waiting:
        expect(victim.block_table, [], f"block_table of {victim.name} after {case.shown}")


@pytest.mark.exercise("ex07a", points=1, hint="One assignment. What does 'catch up' make of it?")
def test_the_victim_has_computed_nothing_and_forgets_nothing(ex):
    """Keys and values are gone with the blocks, so all are computed again; the tokens themselves stay."""
    case = Case(ex, EXAMPLE, [])
    case.call(0, 1)
    victim = case.waiting[0]
    got = victim.num_computed_tokens, victim.num_tokens
    expect(got, (0, 4), f"(num_computed_tokens, num_tokens) of {victim.name} after {case.shown}")


@pytest.mark.exercise(
    "ex07a", points=2, hint="Compare the victim with running[index], which you kept from before."
)
def test_a_request_that_gives_way_itself_does_not_run(ex):
    """It holds no blocks and stands in `waiting`: a step that runs it all the same runs it from two queues."""
    case = Case(ex, EXAMPLE, [])
    expect(case.call(2, 1), False, case.shown)
    case.expect_queues("AB", "CU")
    expect(case.free_blocks, [4], f"free_blocks after {case.shown}")
    case = Case(ex, EXAMPLE, [])
    expect(case.call(2, 3), False, case.shown)
    case.expect_queues("AB", "CU")
    case = Case(ex, EXAMPLE, [])
    expect(case.call(1, 4), False, case.shown)
    case.expect_queues("A", "BCU")


@pytest.mark.exercise(
    "ex07a", points=2, hint="Work the example through by hand; write down all three lists after each victim."
)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    num_free=st.integers(0, 3),
    num_blocks=st.integers(0, 6),
    data=st.data(),
)
def test_the_order_of_arrival_survives_any_preemption(ex, sizes, num_free, num_blocks, data):
    """In any case: running, then waiting, is still in order of arrival, and no block is lost."""
    tables, block = [], 0
    for size in sizes:
        tables.append(list(range(block, block + size)))
        block += size
    case = Case(ex, tables, range(block, block + num_free), num_waiting=2)
    index = data.draw(st.integers(0, len(sizes) - 1))
    wanted = case.names(case.running)[index]
    order = case.names(case.running) + case.names(case.waiting)
    got = case.call(index, num_blocks)
    after = case.names(case.running) + case.names(case.waiting)
    expect(after, order, f"names in running, then waiting, after {case.shown}")
    expect(got, wanted in case.names(case.running), case.shown)
    blocks = sorted([*case.free_blocks, *(b for each in case.running for b in each.block_table)])
    expect(blocks, list(range(block + num_free)), f"blocks held and free, sorted, after {case.shown}")
    expect_that(index <= len(case.running), f"those before running[{index}] stay, {case.shown}", got=after)
    if got:
        expect_that(len(case.free_blocks) >= num_blocks, f"there is room after {case.shown}")
    # One victim fewer would not have been enough.
    if len(case.running) < len(sizes):
        before = len(case.free_blocks) - sizes[len(case.running)]
        expect_that(before < num_blocks, f"no request gives way without need in {case.shown}", got=after)


@pytest.mark.exercise("ex07a", points=2, hint="The engine has 10 blocks here; its longest request needs 7.")
def test_the_engine_preempts_with_it(ex, tiny_model, reference_text):
    """Inside the engine, in little memory: requests are preempted and come back, and the text is as before."""
    victims = []

    class Student(Scheduler):
        def schedule_running(self, step):
            index = 0
            while index < len(self.running) and step.budget > 0:
                group = self.running[index]
                chunks = step_rules.chunks_of(group, step.budget)
                if not self.make_room(index, chunks, step):
                    return
                copies = self.kv.allocate_slots(chunks)
                expect_that(copies is not None, "there is room for a request for which preempt returns True",
                            request=group.request_id)  # fmt: skip
                self.plan(group, chunks, copies, step)
                index += 1

        def make_room(self, index, chunks, step):
            """Ask the student's `preempt`, then do with the engine's queues what it did with its own."""
            groups = {group.request_id: group for group in (*self.running, *self.waiting)}
            running, waiting = ([self.seen(group) for group in q] for q in (self.running, self.waiting))
            free_blocks = list(self.kv.pool.free_block_ids)
            ((seq, count),) = chunks
            missing = self.kv.block_tables[seq.seq_id].num_missing_blocks(seq.num_computed_tokens + count)
            runs = ex.preempt(index, missing, running, waiting, free_blocks)
            names = sorted(request.name for request in (*running, *waiting))
            expect(names, sorted(groups), "requests in running or waiting after preempt, sorted")
            for request in waiting:
                group = groups[request.name]
                expect(request.num_computed_tokens, 0, "num_computed_tokens of a request that waits")
                if group in self.running:
                    victims.append(request.name)
                    self.preempt(group, step)
            self.running = [groups[request.name] for request in running]
            self.waiting.clear()
            self.waiting.extend(groups[request.name] for request in waiting)
            expect(
                sorted(free_blocks), sorted(self.kv.pool.free_block_ids), "free_blocks after preempt, sorted"
            )
            return runs

        def seen(self, group):
            seq = group.seqs[0]
            table = self.kv.block_tables.get(seq.seq_id) or BlockTable(BLOCK_SIZE)
            return ex.Request(group.request_id, len(seq), seq.num_computed_tokens, list(table.block_ids))

    got = generate(tiny_model, scheduler_cls=Student, num_blocks=10)
    same_text(got, reference_text, "the engine with your preempt")
    expect_that(len(victims) > 0, "a request was preempted on the way")


# -- ex07b ------------------------------------------------------------------------------------------


def check_chunks(ex, expected, running, waiting, budget):
    """All of the result; or, if `expected` is a list of numbers, only how many tokens each request computes."""
    given = list(running), list(waiting)
    got = ex.next_chunks(*given, budget)
    call = f"next_chunks({running}, {waiting}, token_budget={budget})"
    expect_that(
        isinstance(got, list) and all(isinstance(row, list | tuple) and len(row) == 2 for row in got),
        f"{call} is a list of pairs (number of tokens, whether it samples)",
        got=got,
    )
    if expected and isinstance(expected[0], int):
        expect([count for count, _ in got], expected, f"numbers of tokens in the result of {call}")
    else:
        expect([tuple(row) for row in got], expected, call)
    expect_unchanged(given, (list(running), list(waiting)), call)


@pytest.mark.exercise("ex07b", points=1, hint="tokens - computed tokens, or the budget if that is less.")
def test_each_request_catches_up(ex):
    """One rule for prompts, parts of prompts and single tokens: what is missing, all of it if possible."""
    check_chunks(ex, [(1, True), (8, True), (5, True)], [(7, 6), (12, 4)], [5], 16)
    check_chunks(ex, [(6, True)], [], [6], 64)
    check_chunks(ex, [], [], [], 64)


@pytest.mark.exercise("ex07b", points=1, hint="Subtract what each request gets from the budget.")
def test_no_step_exceeds_the_budget(ex):
    """The budget bounds how long a step takes, and so the longest wait of all requests that are generating."""
    check_chunks(ex, [8], [], [20], 8)
    check_chunks(ex, [5, 3], [], [5, 5], 8)
    check_chunks(ex, [8], [(40, 8)], [5], 8)


@pytest.mark.exercise(
    "ex07b", points=1, hint="Go through running first, then through waiting; never sort by size."
)
def test_a_long_prompt_delays_no_generating_request(ex):
    """A generating request needs one token; behind a prompt of 90 tokens it would wait for the whole prompt."""
    check_chunks(ex, [1, 1, 6], [(7, 6), (5, 4)], [90], 8)
    check_chunks(ex, [1, 1, 6], [(7, 6), (5, 4), (90, 12)], [], 8)


@pytest.mark.exercise("ex07b", points=1, hint="Stop when the budget is 0, before the next row is made.")
def test_no_request_is_in_the_step_with_zero_tokens(ex):
    """A row of no tokens has no logits; nano-vllm crashed on one (its issue #114)."""
    check_chunks(ex, [8], [], [20, 4, 1], 8)
    check_chunks(ex, [1, 1], [(7, 6), (5, 4), (9, 8)], [3], 2)
    check_chunks(ex, [], [(7, 6)], [3], 0)


@pytest.mark.exercise("ex07b", points=1, hint="Does this step compute the last of its tokens?")
def test_a_part_of_a_prompt_samples_nothing(ex):
    """The next token of a half-read prompt is known: sampling there would write into the middle of the question."""
    check_chunks(ex, [(7, False)], [(20, 8)], [], 7)
    check_chunks(ex, [(12, True)], [(20, 8)], [], 12)
    check_chunks(ex, [(8, True), (1, False)], [], [8, 2], 9)


def obvious_chunks(running, waiting, budget):
    """Hand out the budget token by token, as a child would deal cards: to the first request that lacks one."""
    missing = [tokens - computed for tokens, computed in running] + list(waiting)
    counts = [0] * len(missing)
    for _ in range(budget):
        lacking = [i for i, count in enumerate(counts) if count < missing[i]]
        if lacking:
            counts[lacking[0]] += 1
    return [(count, count == lacks) for count, lacks in zip(counts, missing, strict=True) if count > 0]


@pytest.mark.exercise("ex07b", points=2, hint="Deal the budget out token by token, on paper, for this case.")
@given(
    running=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=4),
    waiting=st.lists(st.integers(1, 12), max_size=4),
    budget=st.integers(0, 24),
)
@example(running=[(3, 2)], waiting=[4], budget=5)
def test_the_budget_is_dealt_out_in_order(ex, running, waiting, budget):
    """Random queues against the obvious way: one token after the other, to the first request that lacks one."""
    running = [(missing + computed, computed) for missing, computed in running]
    check_chunks(ex, obvious_chunks(running, waiting, budget), running, waiting, budget)


@pytest.mark.exercise(
    "ex07b", points=2, hint="The engine has a budget of 7 tokens and plenty of memory here."
)
def test_the_engine_plans_with_it(ex, tiny_model, reference_text):
    """Inside the engine, with 7 tokens per step: prompts are computed in parts, and the text is as before."""

    class Student(Scheduler):
        def schedule(self):
            step = StepDraft(self.max_num_batched_tokens)
            groups = [*self.running, *self.waiting]
            running = [(len(each.seqs[0]), each.seqs[0].num_computed_tokens) for each in self.running]
            waiting = [len(each.seqs[0]) for each in self.waiting]
            for (count, samples), group in zip(
                ex.next_chunks(running, waiting, step.budget), groups, strict=False
            ):
                expect_that(count > 0, "every row has tokens", running=running, waiting=waiting)
                chunks = [(group.seqs[0], count)]
                copies = self.kv.allocate_slots(chunks)
                if group not in self.running:
                    self.start_running(self.waiting, step)
                    group.num_cached_tokens = 0
                self.plan(group, chunks, copies, step)
                expect(bool(samples), step.scheduled[-1].num_samples > 0,
                       f"whether a request samples that has {len(group.seqs[0])} tokens, "
                       f"{group.seqs[0].num_computed_tokens} computed, and computes {count}")  # fmt: skip
            plan = step.finish(self.stats.num_steps)
            expect_that(plan.num_scheduled_tokens <= self.max_num_batched_tokens, "a step stays within its budget",
                        tokens=plan.num_scheduled_tokens, budget=self.max_num_batched_tokens)  # fmt: skip
            self.stats.count(plan)
            return plan

    options = {"max_num_seqs": 7, "max_num_batched_tokens": 7}
    got = generate(tiny_model, scheduler_cls=Student, **options)
    same_text(got, reference_text, "the engine with your next_chunks")


# -- ex07c ------------------------------------------------------------------------------------------

POOL, SEATS, BUDGET = 12, 4, 8
STEP_LIMIT = 1000  # the engine takes less than 200 for any workload that is allowed


class HoldAndWait(Scheduler):
    """The policy "hold": a request that does not fit keeps its blocks and sits out this step. None is preempted."""

    def schedule_running(self, step):
        for group in self.running:
            if step.budget == 0:
                return
            chunks = step_rules.chunks_of(group, step.budget)
            copies = self.kv.allocate_slots(chunks)
            if copies is not None:
                self.plan(group, chunks, copies, step)


class TakeTurns(Scheduler):
    """The policy "turns": if the head of the queue does not fit as a whole, the oldest running goes to its tail."""

    def schedule(self):
        if self.waiting and self.running:
            needed = cdiv(len(self.waiting[0].seqs[0]), self.kv.block_size)
            if needed > self.kv.pool.num_free:
                self.preempt(self.running[0], StepDraft(0))  # it is the head of the queue now
                self.waiting.rotate(-1)  # and now its tail
        return super().schedule()


POLICIES = {"hold": HoldAndWait, "turns": TakeTurns, "engine": Scheduler}


def run_policy(policy, workload):
    """(steps, or None if it never ends; tokens computed) of a workload; an account of it in words."""
    scheduler = POLICIES[policy](
        make_scheduler(num_blocks=POOL, block_size=BLOCK_SIZE).kv,
        max_num_seqs=SEATS, max_num_batched_tokens=BUDGET,
    )  # fmt: skip
    for index, (prompt, output) in enumerate(workload):
        scheduler.add(make_group(index, prompt, output, seq_id=scheduler.new_seq_id()))
    num_tokens = most_blocks = 0
    for step in range(STEP_LIMIT):
        if not scheduler.has_unfinished:
            account = (
                f"all finish after {step} steps and {num_tokens} tokens computed, in {most_blocks} blocks"
            )
            return step, num_tokens, account
        check_invariants(scheduler)
        plan = scheduler.schedule()
        check_plan(scheduler, plan)
        num_tokens += plan.num_scheduled_tokens
        most_blocks = max(most_blocks, scheduler.kv.pool.num_used)
        scheduler.update_from_output(plan, run_model(scheduler, plan))
    return None, num_tokens, f"not finished after {STEP_LIMIT} steps and {num_tokens} tokens computed"


def workload_of(ex, policy):
    """The student's requests for a policy; they have to be such as the exercise allows."""
    workload = ex.breaking_workload(policy)
    call = f'breaking_workload("{policy}")'
    expect_that(isinstance(workload, list | tuple) and 2 <= len(workload) <= SEATS,
                f"{call} is a list of 2 to {SEATS} requests", got=workload)  # fmt: skip
    for request in workload:
        is_pair = isinstance(request, list | tuple) and len(request) == 2
        fits = (
            is_pair and all(type(n) is int and n >= 1 for n in request) and sum(request) <= POOL * BLOCK_SIZE
        )
        expect_that(fits, f"every request of {call} is (prompt, output), both at least 1 and at most 48 together",
                    got=request)  # fmt: skip
    return [tuple(request) for request in workload]


@pytest.mark.exercise("ex07c", points=1, hint="prompt + output at most 48, in 2 to 4 requests.")
def test_each_request_fits_and_the_engine_finishes_all(ex):
    """Requests that could never run are refused, and prove nothing: the good policy must finish what the bad cannot."""
    for policy in POLICIES:
        workload = workload_of(ex, policy)
        steps, _, account = run_policy("engine", workload)
        expect_that(steps is not None, f"the engine finishes {workload}", got=account)


@pytest.mark.exercise(
    "ex07c",
    points=2,
    hint="Both get in while they are small, and grow. What does each hold when memory is full?",
)
def test_hold_and_wait_never_finishes(ex):
    """Deadlock: each holds what the other needs. Without preemption, memory given out late is a trap."""
    workload = workload_of(ex, "hold")
    steps, _, account = run_policy("hold", workload)
    expect_that(steps is None, f'"hold" never finishes {workload}', got=account)


@pytest.mark.exercise(
    "ex07c",
    points=2,
    hint="How many steps does a prompt of 40 tokens take, and how many does it get in a turn?",
)
def test_taking_turns_never_finishes(ex):
    """Livelock: a turn too short to get to the first token is all lost, and the next one starts from nothing."""
    workload = workload_of(ex, "turns")
    steps, _, account = run_policy("turns", workload)
    expect_that(steps is None, f'"turns" never finishes {workload}', got=account)


@pytest.mark.exercise(
    "ex07c",
    points=2,
    hint="An old request that needs many steps, and a new one whose first chunk always fits.",
)
def test_the_engine_computes_most_tokens_again(ex):
    """Thrashing: all requests finish, and most of the work was for nothing. Even a good policy has a worst case."""
    workload = workload_of(ex, "engine")
    needed = sum(prompt + output - 1 for prompt, output in workload)
    steps, num_tokens, account = run_policy("engine", workload)
    expect_that(steps is not None and num_tokens >= 2.5 * needed,
                f"the engine computes at least 2.5 * {needed} = {2.5 * needed:g} tokens for {workload}",
                got=account)  # fmt: skip


@pytest.mark.exercise("ex07c", points=1, hint="Nothing to do here: your requests, run by the real engine.")
def test_the_text_survives_the_worst_case(ex, tiny_model):
    """Inside the engine: a request that is preempted again and again writes the text that it writes in plenty of memory."""
    workload = [request for policy in POLICIES for request in workload_of(ex, policy)]
    prompts = [[(31 * i + j) % 251 for j in range(prompt)] for i, (prompt, _) in enumerate(workload)]
    outputs = [output for _, output in workload]
    want = generate(tiny_model, prompts, outputs, num_blocks=200)
    got = generate(
        tiny_model, prompts, outputs, num_blocks=POOL, max_num_seqs=SEATS, max_num_batched_tokens=BUDGET
    )
    same_text(got, want, f"the engine with {POOL} blocks")
