"""The paper's memory experiments without a model: real scheduler, real memory manager, pretend tokens.

How much of the KV memory holds tokens, and how many requests run at once, depends on lengths only: which
prompts arrive, how long the answers get, and who reserves what. So scheduler and manager serve hundreds of
requests, in thousands of steps, with a runner that returns the same token every time (`dummy_outputs`)::

    endless lengths -> queue -> schedule() -> [look at every slot] -> dummy tokens -> update_from_output()

Why no model is needed: neither scheduler nor manager looks at what a token *is*, only at how many there are.
The one exception is beam search, whose forks depend on scores; it gets random ones.

Setting of the paper: OPT-13B on an A100 with 40 GB, 12 GiB for K and V at 800 KiB a token = 15,728 slots,
sequences of at most 2,048 tokens. The queue is never empty, so memory alone decides how many run.

A step is looked at when it is planned and its tokens count as written, before what finishes in it is freed:
the memory that a step needs while it runs. Steps before the first half as many requests again are finished do
not count, because everybody starts together then.
Seconds are processor time, so that other programs on the machine do not count.

Paper: sections 6.2 (Figures 2 and 13), 6.3 (15) and 7.2 (18b). vLLM V1 has no counterpart; the authors
measured inside their scheduler.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from minivllm.baselines import ContiguousKVCacheManager, ReservationPolicy, orca, paged_slot_usage
from minivllm.bench.workloads import LengthModel, draw_lengths
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.outputs import SequenceOutput
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.scheduler import Scheduler
from minivllm.scheduler_output import SchedulerOutput
from minivllm.sequence import Sequence, SequenceGroup

# A slot is room for one token's K and V in all layers.
NUM_SLOTS = 15_728  # 12 GiB / 800 KiB
MAX_MODEL_LEN = 2048
QUEUE_LENGTH = 512  # more than any step admits
VOCAB_SIZE = 1000  # of the random logits behind beam search

Runner = Callable[[SchedulerOutput], list[SequenceOutput]]
# Called between plan and execution, when all blocks of the step are held.
Look = Callable[[Scheduler, SchedulerOutput], None]


@dataclass(frozen=True)
class Usage:
    """Means over the steps that count.

    Attributes:
        used, reserved, internal, external: shares of all slots, as in `SlotUsage`; they add up to 1.
        waste: share of the slots in *held* blocks that hold no token. Free blocks do not count.
        batch: requests running.
        seconds: of scheduler and manager, a step.
    """

    used: float
    reserved: float
    internal: float
    external: float
    waste: float
    batch: float
    num_steps: int
    num_preemptions: int
    seconds: float


# -- what is simulated ------------------------------------------------------------------------------


def endless_lengths(model: LengthModel, seed: int) -> Iterator[tuple[int, int]]:
    """(prompt, output) lengths without end; one seed gives every system the same requests.

    Drawn in chunks of 1,000, each with a seed of its own, so that the stream is the same however far it is
    read.
    """
    for chunk in itertools.count():
        yield from draw_lengths(model, 1000, seed * 1_000_000 + chunk)


def make_manager(system: str, block_size: int, num_slots: int = NUM_SLOTS) -> KVCacheManager:
    """ "paged", or contiguous memory with the policy "max", "pow2" or "oracle".

    No prefix caching: the prompts are unrelated, so there is nothing to find.

    Args:
        system: who manages the memory.
        block_size: tokens a block, or the smallest chunk.
        num_slots: rounded down to whole blocks. 15,728 are 983 blocks of 16; of 256 they are 61, and 112 are
            lost.
    """
    if system == "paged":
        return KVCacheManager(num_slots // block_size, block_size, enable_prefix_caching=False)
    return orca(ReservationPolicy(system), MAX_MODEL_LEN)(num_slots // block_size, block_size)


def make_scheduler(kv: KVCacheManager, max_num_seqs: int = 256) -> Scheduler:
    """vLLM's limits of 2023: 256 sequences and 2,560 tokens a step. Memory is meant to run out first."""
    return Scheduler(kv, max_num_seqs, max_num_batched_tokens=max(2560, max_num_seqs))


def add_request(
    scheduler: Scheduler, prompt_len: int, output_len: int, params: SamplingParams | BeamSearchParams
) -> None:
    """Queue a request for exactly `output_len` tokens. Its prompt is all zeros: nobody reads it."""
    seq = Sequence(scheduler.new_seq_id(), [0] * prompt_len, seed=0)
    longest = prompt_len + output_len
    scheduler.add(SequenceGroup(str(seq.seq_id), None, [seq], params, max_num_tokens=longest))


def dummy_outputs(plan: SchedulerOutput) -> list[SequenceOutput]:
    """Token 0 for everybody who samples."""
    return [SequenceOutput(((0,),) * row.num_samples) for row in plan.scheduled]


def random_beam_outputs(seed: int) -> Runner:
    """A runner that offers beam search the likeliest tokens of independent logits ~ N(0, 1).

    For width w it offers 2 w candidates: more than w, because some of them may be an end of sequence.
    """
    rng = np.random.default_rng(seed)

    def outputs(plan: SchedulerOutput) -> list[SequenceOutput]:
        logits = rng.standard_normal((len(plan.scheduled), VOCAB_SIZE))  # (R, V)
        # log-softmax without the usual shift by the maximum: standard normal numbers do not overflow exp.
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        count = max((row.num_candidates for row in plan.scheduled), default=0)
        top = np.argpartition(log_probs, -count)[:, -count:]  # (R, count), in no order
        return [
            SequenceOutput(
                candidates=tuple(
                    sorted(zip(ids.tolist(), row[ids].tolist(), strict=True), key=lambda pair: -pair[1])
                )
            )
            for ids, row in zip(top, log_probs, strict=True)
        ]

    return outputs


# -- running it -------------------------------------------------------------------------------------


def run_requests(
    scheduler: Scheduler,
    lengths: Iterator[tuple[int, int]],
    num_requests: int,
    look: Look,
    params: SamplingParams | BeamSearchParams | None = None,
    runner: Runner = dummy_outputs,
) -> float:
    """Step until `num_requests` requests have finished, with a queue that never empties.

    Args:
        look: called in the middle of each step.

    Returns:
        Seconds a step spent in `schedule` and `update_from_output`.
    """
    params = SamplingParams(ignore_eos=True) if params is None else params
    seconds, num_steps, num_finished = 0.0, 0, 0
    while num_finished < num_requests:
        # Refilled before every step: an empty queue would leave memory unused for want of requests.
        while len(scheduler.waiting) < QUEUE_LENGTH:
            add_request(scheduler, *next(lengths), params)
        start = time.process_time()
        plan = scheduler.schedule()
        seconds += time.process_time() - start
        # Outside of both clocks.
        look(scheduler, plan)
        outputs = runner(plan)
        start = time.process_time()
        updated = scheduler.update_from_output(plan, outputs)
        seconds += time.process_time() - start
        num_steps += 1
        num_finished += sum(group.is_finished for group, _ in updated)
    return seconds / num_steps


def pass_by(scheduler: Scheduler, plan: SchedulerOutput) -> None:
    """The `look` of the steps that do not count."""


def measure_usage(
    system: str, block_size: int, model: LengthModel, num_requests: int, seed: int = 0
) -> Usage:
    """Where the slots are, and how many requests run, while `num_requests` requests are served.

    Args:
        system: as for `make_manager`.
        block_size: tokens a block.
        model: what lengths are drawn from.
        num_requests: finished requests over which the mean is taken, after half as many that do not count.
        seed: of the lengths.
    """
    scheduler = make_scheduler(make_manager(system, block_size))
    lengths = endless_lengths(model, seed)
    sums = dict.fromkeys(("used", "reserved", "internal", "external", "waste", "batch", "num_steps"), 0)

    def look(scheduler: Scheduler, plan: SchedulerOutput) -> None:
        kv = scheduler.kv
        contiguous = isinstance(kv, ContiguousKVCacheManager)
        usage = kv.slot_usage() if contiguous else paged_slot_usage(scheduler)
        # The plan's tokens count as written, as at the end of the forward pass; see the module's docstring.
        usage = usage.with_written(plan.num_scheduled_tokens)
        assert usage.capacity == kv.pool.num_blocks * kv.block_size
        for kind in ("used", "reserved", "internal", "external"):
            sums[kind] += getattr(usage, kind) / NUM_SLOTS
        sums["external"] += (NUM_SLOTS - usage.capacity) / NUM_SLOTS  # too few to make another block
        sums["waste"] += 1 - usage.used / (kv.pool.num_used * kv.block_size)
        sums["batch"] += len(scheduler.running)
        sums["num_steps"] += 1

    run_requests(scheduler, lengths, max(1, num_requests // 2), pass_by)
    preemptions_before = scheduler.stats.num_preemptions
    seconds = run_requests(scheduler, lengths, num_requests, look)
    num_steps = sums.pop("num_steps")
    means = {name: total / num_steps for name, total in sums.items()}
    num_preemptions = scheduler.stats.num_preemptions - preemptions_before
    return Usage(**means, num_steps=num_steps, num_preemptions=num_preemptions, seconds=seconds)


def measure_sharing(
    params: SamplingParams | BeamSearchParams,
    model: LengthModel,
    num_requests: int,
    seed: int = 0,
    block_size: int = 16,
) -> float:
    """The paper's saving: blocks saved by sharing, out of the blocks that the same tables hold without.

    Example: two beams hold 10 blocks each by their tables, 8 of them the same: 12 blocks are held, 8 are
    saved, and the saving is 8 / 20 = 40%.

    Args:
        params: `n` completions, or beams.
        model: what lengths are drawn from.
        num_requests: as for `measure_usage`.
        seed: of the lengths, and of the random logits.
        block_size: tokens a block.
    """
    scheduler = make_scheduler(make_manager("paged", block_size))
    lengths = endless_lengths(model, seed)
    runner = random_beam_outputs(seed) if isinstance(params, BeamSearchParams) else dummy_outputs
    saved = held = 0

    def look(scheduler: Scheduler, plan: SchedulerOutput) -> None:
        nonlocal saved, held
        saved += scheduler.kv.num_blocks_saved
        held += scheduler.kv.pool.num_used

    run_requests(scheduler, lengths, max(1, num_requests // 2), pass_by, params, runner)
    run_requests(scheduler, lengths, num_requests, look, params, runner)
    return saved / (saved + held)


def scheduling_seconds(num_running: int, num_steps: int = 10, context: int = 256) -> list[float]:
    """Seconds of `schedule` and `update_from_output` for each step that generates with `num_running`.

    Nobody finishes and nothing is admitted meanwhile: the plain case, one token for everybody.

    Args:
        num_running: sequences, all admitted in the first step.
        num_steps: steps that are timed.
        context: prompt tokens of each.
    """
    kv = make_manager("paged", 16, num_slots=num_running * (context + 2 * num_steps + 16))
    scheduler = Scheduler(kv, num_running, max_num_batched_tokens=num_running * context)
    for _ in range(num_running):
        add_request(scheduler, context, 2 * num_steps, SamplingParams(ignore_eos=True))
    seconds = []
    for _ in range(num_steps + 1):
        start = time.process_time()
        plan = scheduler.schedule()
        planned = time.process_time()
        outputs = dummy_outputs(plan)
        ready = time.process_time()
        scheduler.update_from_output(plan, outputs)
        seconds.append(planned - start + time.process_time() - ready)
    return seconds[1:]  # the first one admits everybody
