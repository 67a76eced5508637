"""The final project, milestone 5: memory in blocks, given out when a token needs it."""

import pytest

from minivllm.course.project import ModelMisuse
from tests.exercises.expect import expect, expect_that
from tests.exercises.project import Bench, expect_blocks, prompts_of, rows_of, started, widest


def gaps(calls, prompt):
    """How many times a request had begun and was not among the rows of a call, before it ended."""
    numbers = [number for number, _ in rows_of(calls, prompt)]
    return numbers[-1] - numbers[0] + 1 - len(numbers)


@pytest.mark.exercise(
    "m5", points=2, hint="slot = table[position // block_size] * block_size + position % block_size"
)
def test_every_block_lies_in_one_piece(ex, rng):
    """Tokens of one block in slots that no block table can name: a kernel gets one number per block."""
    prompts = prompts_of(rng, [5, 1, 9, 4, 8, 3])
    for block_size in (4, 5):
        calls = Bench(ex, num_slots=12 * block_size, block_size=block_size).run(prompts, [9, 12, 3, 8, 1, 9])
        expect_blocks(calls, block_size)


@pytest.mark.exercise(
    "m5", points=3, hint="A prompt of 4 tokens needs one block of 4. What comes later is needed later."
)
def test_a_request_takes_what_its_prompt_needs_and_no_more(ex, rng):
    """Blocks for the whole answer taken at the start: memory that stays empty for most of the time."""
    calls = Bench(ex, num_slots=8 * 4).run(prompts_of(rng, [4, 4, 4, 4]), [5, 5, 5, 5])
    expect(len(calls[0]), 4, "rows of the first call: 4 prompts of 4 tokens, 8 blocks of 4")
    calls = Bench(ex, num_slots=6 * 4).run(prompts_of(rng, [4, 4, 4]), [13, 13, 13])
    expect(len(calls[0]), 3, "rows of the first call: 3 prompts of 4 tokens, 6 blocks of 4")


@pytest.mark.exercise("m5", points=4, key=True, hint="No free block: the request that was let in last gives its blocks back and waits. Later it computes its whole text again.")  # fmt: skip
def test_when_memory_is_full_the_last_request_gives_way(ex, rng):
    """Three requests that each grow to 4 of the 6 blocks: an engine that stops, or that lets the oldest give way."""
    prompts = prompts_of(rng, [4, 4, 4])
    calls = Bench(ex, num_slots=6 * 4).run(prompts, [13, 13, 13])
    expect(gaps(calls, prompts[0]), 0, "calls that the first request, the oldest, had to sit out")
    expect_that(
        gaps(calls, prompts[2]) > 0, "the last request sat out some calls: 12 blocks are needed, 6 are there"
    )


@pytest.mark.exercise("m5", points=2, hint="A request that was preempted came before all that wait: to the head of the queue.")  # fmt: skip
def test_a_preempted_request_comes_before_those_that_never_started(ex, rng):
    """Preempted requests put at the end of the queue: later ones pass them."""
    prompts = prompts_of(rng, [4] * 6)
    calls = Bench(ex, num_slots=6 * 4, max_num_seqs=3).run(prompts, [13] * 6)
    ends = [rows_of(calls, prompt)[-1][0] for prompt in prompts]
    expect(ends, sorted(ends), "the calls in which six equal requests end, in the order of the prompts")
    starts = started(calls, prompts)
    expect(starts, sorted(starts), "the calls in which they start")


@pytest.mark.exercise(
    "m5", points=3, hint="A request that leaves, finished or preempted, gives back every block."
)
def test_every_block_comes_back(ex, rng):
    """Blocks lost when a request ends or gives way: each round needs all of the memory, to the last slot."""
    bench = Bench(ex, num_slots=6 * 4)
    for number in range(4):
        prompts = [[100 + 10 * number + i, *prompt] for i, prompt in enumerate(prompts_of(rng, [3, 3, 3]))]
        bench.run(prompts, [13, 13, 13])
        # 24 slots: 5 for the prompt, 19 for all generated tokens but the last, which is never computed.
        calls = bench.run([[200 + number, 1, 2, 3, 4]], [20])
        expect(max(len(call[0].slots) for call in calls), 24, "slots of the longest row, in a memory of 24")


@pytest.mark.exercise("m5", points=2, hint="Compare the blocks it needs at its end with all blocks there are, before the first call.")  # fmt: skip
def test_what_can_never_fit_is_refused_at_once(ex):
    """A request that waits for ever, or takes others down in the middle of their texts."""
    bench = Bench(ex, num_slots=6 * 4)
    what = "generate([[1, 2], [3] * 20], [3, 20]) with 24 slots raises ValueError and does not call the model"
    try:
        got = bench.engine.generate([[1, 2], [3] * 20], [3, 20])
    except ModelMisuse as error:
        raise AssertionError(f"expected that {what}\n  got       {error}") from None
    except ValueError:
        expect(len(bench.model.calls), 0, "calls of the model before a ValueError")
        bench.run([[1, 2]], [3])
        return
    raise AssertionError(f"expected that {what}\n  got       {got}")


@pytest.mark.exercise("m5", points=1, hint="max_num_seqs still holds, however much memory there is.")
def test_the_seats_are_still_counted(ex, rng):
    """A call with more rows than max_num_seqs, now that memory decides who is let in."""
    calls = Bench(ex, num_slots=400, max_num_seqs=3).run(prompts_of(rng, [3] * 8), [4] * 8)
    expect(widest(calls), 3, "rows of the fullest call, with max_num_seqs=3")
