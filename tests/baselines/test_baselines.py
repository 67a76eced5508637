"""The baselines: the buddy allocator, the reservation policies, static batching, and one text from all."""

import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from minivllm import SamplingParams
from minivllm.backends.attention_kernels import make_attention_backend
from minivllm.baselines import (
    BuddyAllocator,
    ContiguousKVCacheManager,
    ReservationPolicy,
    SlotUsage,
    StaticBatchScheduler,
    orca,
    paged_slot_usage,
)
from minivllm.baselines.buddy import next_power_of_two
from minivllm.baselines.no_cache import greedy_without_cache, hugging_face_logits, llama_logits
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.scheduler import Scheduler
from minivllm.weights.loader import load_model, load_model_config
from tests import helpers

# -- the buddy allocator ------------------------------------------------------------------------------


class BitmapBuddy:
    """The same allocator, slow and obvious: it remembers which units are taken and nothing else.

    A free chunk is an aligned, free power of two that is not half of a larger one.
    """

    def __init__(self, capacity):
        self.taken = [False] * capacity

    def free_chunks(self):
        chunks, size, covered = [], next_power_of_two(len(self.taken)), set()
        while size:
            for start in range(0, len(self.taken) - size + 1, size):
                if start not in covered and not any(self.taken[start : start + size]):
                    chunks.append((size, start))
                    covered |= set(range(start, start + size))
            size //= 2
        return chunks

    def allocate(self, count):
        wanted = next_power_of_two(count)
        fitting = [chunk for chunk in self.free_chunks() if chunk[0] >= wanted]
        if not fitting:
            return None
        _, start = min(fitting)
        self.taken[start : start + wanted] = [True] * wanted
        return start

    def free(self, start, count):
        self.taken[start : start + next_power_of_two(count)] = [False] * next_power_of_two(count)


class ForgetfulBuddy(BuddyAllocator):
    """Negative control: never merges."""

    def free(self, start):
        self.free_chunks[self.taken_chunks[start]].add(start)
        del self.taken_chunks[start]


def play(allocator, operations):
    """Run (allocate count | free the i-th held chunk) on an allocator and on its twin, side by side."""
    twin, held = BitmapBuddy(allocator.capacity), []
    for is_free, number in operations:
        if is_free and held:
            start, count = held.pop(number % len(held))
            allocator.free(start)
            twin.free(start, count)
        elif not is_free:
            start = allocator.allocate(number)
            assert start == twin.allocate(number)
            if start is not None:
                held.append((start, number))
        allocator.check_invariants()
        assert allocator.num_free == twin.taken.count(False)
        assert sorted(twin.free_chunks()) == sorted(
            (size, start) for size, starts in allocator.free_chunks.items() for start in starts
        )
    return held


OPERATIONS = st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=40)


@given(capacity=st.integers(1, 75), operations=OPERATIONS)
@settings(max_examples=150, deadline=None)
def test_buddy_allocator_equals_its_obvious_twin(capacity, operations):
    """Would catch overlapping chunks, lost units, chunks of a wrong size or place, buddies left unmerged."""
    allocator = BuddyAllocator(capacity)
    fresh = {size: set(starts) for size, starts in allocator.free_chunks.items()}
    for start, _ in play(allocator, operations):
        allocator.free(start)
    allocator.check_invariants()
    assert allocator.free_chunks == fresh, "giving everything back does not restore the first day"


def test_an_allocator_that_never_merges_is_noticed():
    """Negative control for the twin: halves that stay apart fail the comparison and the invariants."""
    operations = [(False, 3), (True, 0)]
    play(BuddyAllocator(16), operations)
    with pytest.raises(AssertionError, match="not merged"):
        play(ForgetfulBuddy(16), operations)


def test_buddy_allocator_splits_and_merges_as_in_its_docstring():
    """Would catch a chunk that is not the smallest fitting one, at the lowest address."""
    buddy = BuddyAllocator(16)
    assert (buddy.allocate(5), buddy.allocate(2)) == (0, 8)
    assert {size: starts for size, starts in buddy.free_chunks.items() if starts} == {2: {10}, 4: {12}}
    assert buddy.num_free == 6
    assert buddy.allocate(5) is None, "6 units are free, but no 8 in one piece"
    buddy.free(0)
    buddy.free(8)
    assert buddy.free_chunks[16] == {0}


def test_buddy_allocator_starts_with_the_binary_digits_of_its_capacity():
    """Would catch memory lost at the start because the paper's 15,728 slots are no power of two."""
    chunks = {size for size, starts in BuddyAllocator(15728).free_chunks.items() if starts}
    assert chunks == {8192, 4096, 2048, 1024, 256, 64, 32, 16}


def test_buddy_allocator_refuses_what_makes_no_sense():
    """Would catch a double free that silently duplicates memory."""
    buddy = BuddyAllocator(8)
    start = buddy.allocate(2)
    buddy.free(start)
    with pytest.raises(ValueError, match="Double free!"):
        buddy.free(start)
    with pytest.raises(ValueError, match="at least 1 unit"):
        buddy.allocate(0)
    with pytest.raises(ValueError, match="at least 1 unit"):
        BuddyAllocator(0)
    assert buddy.allocate(9) is None


# -- reservation --------------------------------------------------------------------------------------


def contiguous_scheduler(policy, num_blocks=16, block_size=4, max_model_len=32, **options):
    """A scheduler on contiguous memory."""
    kv = orca(policy, max_model_len)(num_blocks, block_size, False, 0)
    return Scheduler(kv, **({"max_num_seqs": 8, "max_num_batched_tokens": 32} | options))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        # 6 prompt tokens, 9 to come, 32 at most: stored 6, later 8 (the last token is never computed).
        (ReservationPolicy.MAX, SlotUsage(used=6, reserved=8, internal=18, external=32)),
        (ReservationPolicy.POW2, SlotUsage(used=6, reserved=8, internal=8, external=10 + 32)),
        (ReservationPolicy.ORACLE, SlotUsage(used=6, reserved=8, internal=0, external=2 + 48)),
    ],
)
def test_policies_reserve_as_the_docstring_draws_it(policy, expected):
    """Would catch a policy that reserves the wrong length, and slots counted under the wrong name."""
    scheduler = contiguous_scheduler(policy)
    helpers.add(scheduler, 0, prompt=6, max_tokens=9)
    helpers.step(scheduler)
    assert scheduler.kv.slot_usage() == expected
    assert expected.capacity == 64


@pytest.mark.parametrize(
    ("output", "reserved"), [(1, 8), (2, 9), (25, 39), (32, 39), (33, 71), (65, 80), (73, 80)]
)
def test_pow2_reserves_the_next_power_of_two_of_the_output(output, reserved):
    """Would catch rounding prompt and output together (the paper rounds 25 -> 32), and a missing limit."""
    scheduler = contiguous_scheduler(ReservationPolicy.POW2, num_blocks=128, block_size=1, max_model_len=80)
    helpers.add(scheduler, 0, prompt=7, max_tokens=output)
    scheduler.schedule()
    assert scheduler.kv.reserved_slots == {0: reserved}


@pytest.mark.parametrize("policy", list(ReservationPolicy))
@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=12),
    num_blocks=st.sampled_from([8, 13, 32]),
    chunked=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_slots_add_up_to_the_capacity_in_every_step(policy, lengths, num_blocks, chunked):
    """Would catch slots counted twice or lost, a run given to two sequences, and a run not given back."""
    options = {"enable_chunked_prefill": chunked}
    scheduler = contiguous_scheduler(policy, num_blocks, max_model_len=32, **options)
    for name, (prompt, output) in enumerate(lengths):
        helpers.add(scheduler, name, prompt=prompt, max_tokens=output)
    while scheduler.has_unfinished:
        helpers.step(scheduler)
        usage = scheduler.kv.slot_usage()
        assert usage.capacity == num_blocks * 4
        assert min(usage.used, usage.reserved, usage.internal, usage.external) >= 0
    assert scheduler.stats.num_preemptions == 0
    assert scheduler.kv.slot_usage() == SlotUsage(0, 0, 0, external=num_blocks * 4)
    assert scheduler.kv.buddy.free_chunks == BuddyAllocator(num_blocks).free_chunks


def test_a_waiting_request_does_not_pass_the_one_it_stands_behind():
    """Would catch admission out of order: a run of 16 is not free, one of 4 is, and still no request passes."""
    scheduler = contiguous_scheduler(ReservationPolicy.ORACLE, num_blocks=24, block_size=1)
    for name, prompt in enumerate([12, 12, 3]):
        helpers.add(scheduler, name, prompt=prompt, max_tokens=4)
    plan = helpers.step(scheduler)
    assert [row.request_id for row in plan.scheduled] == ["0"]
    assert scheduler.kv.pool.num_free == 8


def test_contiguous_memory_refuses_what_it_cannot_do():
    """Would catch a baseline that silently does not share: sharing has to be refused by name."""
    make = orca(ReservationPolicy.MAX, 32)
    with pytest.raises(ValueError, match="enable_prefix_caching=False"):
        make(16, 4, True, 0)
    with pytest.raises(ValueError, match="swap_space_bytes=0"):
        make(16, 4, False, 2)
    scheduler = contiguous_scheduler(ReservationPolicy.MAX)
    for options in ({"n": 2}, {"beam_width": 2}):
        with pytest.raises(ValueError, match="cannot share a prompt"):
            helpers.add(scheduler, 0, prompt=4, **options)
    with pytest.raises(ValueError, match="may grow to 44 tokens"):
        helpers.add(scheduler, 0, prompt=4, max_tokens=40)
    group = helpers.add(scheduler, 0, prompt=4)
    helpers.step(scheduler)
    with pytest.raises(ValueError, match="cannot fork"):
        scheduler.kv.fork(group.seqs[0], group.seqs[0])
    scheduler.abort("0")
    assert not scheduler.has_unfinished
    assert scheduler.kv.pool.num_used == 0


def test_a_request_larger_than_the_largest_chunk_is_refused_when_it_comes():
    """Would catch a request that waits for ever: 24 blocks are free, but never 32 in one piece."""
    scheduler = contiguous_scheduler(ReservationPolicy.MAX, num_blocks=24, block_size=1)
    with pytest.raises(ValueError, match="may need 32 KV blocks"):
        helpers.add(scheduler, 0, prompt=4)


def test_abort_and_reset_give_all_runs_back():
    """Would catch a run that stays taken in the buddy allocator when its sequence ends early."""
    scheduler = contiguous_scheduler(ReservationPolicy.POW2)
    for name in range(3):
        helpers.add(scheduler, name, prompt=5, max_tokens=6)
    helpers.step(scheduler)
    scheduler.abort("1")
    scheduler.kv.check_invariants()
    assert len(scheduler.kv.reservations) == 2
    scheduler.reset()
    scheduler.kv.check_invariants()
    assert scheduler.kv.buddy.num_free == 16


def test_paged_slot_usage_counts_as_its_docstring_draws_it():
    """Would catch the end of a last block counted as usable when its owner will never use it."""
    scheduler = helpers.make_scheduler(num_blocks=3)
    helpers.add(scheduler, 0, prompt=5, max_tokens=2)
    helpers.step(scheduler)
    assert paged_slot_usage(scheduler) == SlotUsage(used=5, reserved=1, internal=2, external=4)


# -- static batching ----------------------------------------------------------------------------------


def test_a_static_batch_admits_no_request_until_it_is_empty():
    """Would catch continuous batching under another name: seats fall free, and the queue has to wait."""
    scheduler = StaticBatchScheduler(KVCacheManager(32, 4, False), max_num_seqs=2, max_num_batched_tokens=32)
    for name, output in enumerate([2, 5, 2, 2]):
        helpers.add(scheduler, name, prompt=3, max_tokens=output)
    batches = [[row.request_id for row in plan.scheduled] for plan in helpers.run_to_end(scheduler)]
    assert batches == [["0", "1"], ["0", "1"], ["1"], ["1"], ["1"], ["2", "3"], ["2", "3"]]


def test_the_continuous_scheduler_fills_the_seat_at_once():
    """Negative control: the same requests on `Scheduler` give other batches."""
    scheduler = Scheduler(KVCacheManager(32, 4, False), max_num_seqs=2, max_num_batched_tokens=32)
    for name, output in enumerate([2, 5, 2, 2]):
        helpers.add(scheduler, name, prompt=3, max_tokens=output)
    batches = [[row.request_id for row in plan.scheduled] for plan in helpers.run_to_end(scheduler)]
    assert batches[2] == ["1", "2"]


def test_a_static_batch_may_be_filled_over_several_steps():
    """Would catch a batch that is cut to the prompts of one step: the token budget is no reason to close."""
    scheduler = StaticBatchScheduler(KVCacheManager(64, 4, False), max_num_seqs=8, max_num_batched_tokens=8)
    for name in range(4):
        helpers.add(scheduler, name, prompt=6, max_tokens=9)
    plans = helpers.run_to_end(scheduler)
    assert max(len(plan.scheduled) for plan in plans) == 4


def test_a_static_batch_closes_when_its_first_sequence_leaves():
    """Would catch a batch that never closes because every step's budget is used up by new prompts."""
    scheduler = StaticBatchScheduler(KVCacheManager(64, 4, False), max_num_seqs=4, max_num_batched_tokens=4)
    for name in range(6):
        helpers.add(scheduler, name, prompt=7, max_tokens=1)
    plans = helpers.run_to_end(scheduler)
    for before, after in itertools.pairwise(plans):
        left = {row.request_id for row in before.scheduled if row.num_samples}
        came = {row.request_id for row in after.scheduled if row.start == 0}
        still = {row.request_id for row in before.scheduled} - left
        assert not (left and came and still), "a request joined a batch that another one had left"


@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8)), min_size=1, max_size=10),
    num_blocks=st.integers(6, 20),
)
@settings(max_examples=40, deadline=None)
def test_a_static_batch_always_ends(lengths, num_blocks):
    """Would catch a deadlock between preemption and a closed batch: small pools preempt all the time."""
    scheduler = StaticBatchScheduler(KVCacheManager(num_blocks, 4, False), 4, 16)
    for name, (prompt, output) in enumerate(lengths):
        helpers.add(scheduler, name, prompt=prompt, max_tokens=output)
    helpers.run_to_end(scheduler)
    assert scheduler.kv.pool.num_used == 0


# -- one text from all --------------------------------------------------------------------------------

PROMPTS = [[72, 101, 108, 108, 111], [1], list(range(40, 61)), [9, 8, 7, 6, 5, 4, 3, 2], [200] * 12]
OUTPUT_LENGTHS = [11, 18, 3, 9, 14]


@pytest.fixture(scope="module")
def expected_tokens(tiny_llama):
    """What Hugging Face's model says without any cache: an oracle that we did not write."""
    next_logits = hugging_face_logits(AutoModelForCausalLM.from_pretrained(tiny_llama))
    return [
        greedy_without_cache(next_logits, prompt, length)
        for prompt, length in zip(PROMPTS, OUTPUT_LENGTHS, strict=True)
    ]


def generate(engine):
    """All prompts through one engine, in order."""
    for name, (prompt, length) in enumerate(zip(PROMPTS, OUTPUT_LENGTHS, strict=True)):
        params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
        engine.add_request(str(name), {"prompt_token_ids": prompt}, params)
    finished = {}
    while engine.has_unfinished_requests():
        finished |= {output.request_id: output for output in engine.step() if output.finished}
    return [finished[str(name)].outputs[0].token_ids for name in range(len(PROMPTS))]


MANAGERS = {policy.value: orca(policy, 40) for policy in ReservationPolicy} | {"paged": KVCacheManager}


@pytest.mark.parametrize("manager", MANAGERS)
@pytest.mark.parametrize("scheduler_cls", [StaticBatchScheduler, Scheduler])
def test_all_combinations_give_the_text_of_the_no_cache_loop(
    make_engine, expected_tokens, manager, scheduler_cls
):
    """Would catch runs that overlap, and any part of the engine that only works with scattered blocks."""
    parts = {"scheduler_cls": scheduler_cls, "kv_cache_manager_cls": MANAGERS[manager]}
    engine = make_engine(parts=parts, num_blocks=29, enable_prefix_caching=False, max_num_seqs=3)
    assert generate(engine) == expected_tokens
    assert engine.scheduler.kv.pool.num_free == 29


def test_overlapping_runs_would_change_the_text(make_engine, expected_tokens):
    """Negative control: a manager that gives every sequence the same run does not pass."""

    class Overlapping(ContiguousKVCacheManager):
        def _reserve(self, seq):
            if not super()._reserve(seq):
                return False
            first = next(iter(self.block_tables.values()))
            self.pool.free(self.block_tables[seq.seq_id].blocks)
            self.pool.touch(first.blocks)
            self.block_tables[seq.seq_id].blocks = list(first.blocks)
            return True

    def manager(**options):
        return Overlapping(**options, policy=ReservationPolicy.MAX, max_model_len=40)

    engine = make_engine(parts={"kv_cache_manager_cls": manager}, enable_prefix_caching=False)
    assert generate(engine) != expected_tokens


def test_our_model_gives_the_same_text_without_a_cache(tiny_llama, expected_tokens):
    """Would catch a difference between our forward pass and Hugging Face's that caching hides."""
    import torch

    config = load_model_config(tiny_llama)
    attention = make_attention_backend("torch", config, 16, torch.float32, torch.device("cpu"))
    next_logits = llama_logits(load_model(tiny_llama, attention, torch.float32, torch.device("cpu")))
    assert greedy_without_cache(next_logits, PROMPTS[0], OUTPUT_LENGTHS[0]) == expected_tokens[0]
    assert greedy_without_cache(next_logits, PROMPTS[1], OUTPUT_LENGTHS[0]) != expected_tokens[0]


def test_the_no_cache_loop_stops_at_a_stop_token():
    """Would catch a loop that drops the stop token, or goes on behind it."""
    import torch

    def next_logits(token_ids):
        return torch.eye(8)[(token_ids[-1] + 1) % 8]

    assert greedy_without_cache(next_logits, [2], 5) == [3, 4, 5, 6, 7]
    assert greedy_without_cache(next_logits, [2], 5, stop_token_ids={4}) == [3, 4]


def test_the_baselines_load_without_torch():
    """Would catch torch coming in: the memory simulation has to start in milliseconds."""
    code = "import sys, minivllm.baselines; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
