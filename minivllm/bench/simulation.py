"""The paper's memory experiments without a model: real scheduler, real memory manager, pretend tokens.

How much of the KV memory holds tokens, and how many requests run at once, depends on lengths only: which
prompts arrive, how long the answers get, and what is reserved for them. So scheduler and manager serve
hundreds of requests, in thousands of steps, with a runner that returns the same token every time
(`dummy_outputs`)::

    endless lengths -> queue -> schedule() -> [look at every slot] -> dummy tokens -> update_from_output()

Neither scheduler nor manager looks at what a token *is*, only at how many there are. The one exception is
beam search, whose forks depend on scores; it gets random ones.

Setting of the paper: OPT-13B on an A100 with 40 GB, 12 GiB for K and V at 800 KiB per token = 15,728 slots,
sequences of at most 2,048 tokens. The queue is never empty, so memory alone decides how many run.

A step is looked at when it is planned and its tokens count as written, before what finishes in it is freed:
the memory that a step needs while it runs. Steps before the first half as many requests again are finished do
not count, because all requests start together then. Seconds are processor time, so that other programs on the
machine do not count.

Paper: sections 6.2 (Figures 2 and 13), 6.3 (15) and 7.2 (18b). vLLM V1 has no counterpart; the authors
measured inside their scheduler.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
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
KINDS = ("used", "reserved", "internal", "external")

Params = SamplingParams | BeamSearchParams
ONE_SAMPLE = SamplingParams(ignore_eos=True)
Runner = Callable[[SchedulerOutput], list[SequenceOutput]]


@dataclass(frozen=True)
class Usage:
    """Means over the steps that count.

    Attributes:
        used, reserved, internal, external: shares of all slots, as in `SlotUsage`; they add up to 1.
        waste: share of the slots in *held* blocks that hold no token. Free blocks do not count.
        batch: requests running.
        seconds: of scheduler and manager, per step.
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
    """ "paged", or contiguous memory with the policy "max", "pow2" or "oracle"; no prefix caching.

    Args:
        system: what manages the memory.
        block_size: tokens per block, or the smallest chunk.
        num_slots: rounded down to whole blocks. 15,728 are 983 blocks of 16; of 256 they are 61, and 112 are
            lost.
    """
    if system == "paged":
        return KVCacheManager(num_slots // block_size, block_size, enable_prefix_caching=False)
    return orca(ReservationPolicy(system), MAX_MODEL_LEN)(num_slots // block_size, block_size)


def make_scheduler(kv: KVCacheManager, max_num_seqs: int = 256) -> Scheduler:
    """vLLM's limits of 2023: 256 sequences and 2,560 tokens per step. Memory is meant to run out first."""
    return Scheduler(kv, max_num_seqs, max_num_batched_tokens=max(2560, max_num_seqs))


def add_request(scheduler: Scheduler, prompt_len: int, output_len: int, params: Params) -> None:
    """Queue a request for exactly `output_len` tokens. Its prompt is all zeros: it is never read."""
    seq = Sequence(scheduler.new_seq_id(), [0] * prompt_len, seed=0)
    longest = prompt_len + output_len
    scheduler.add(SequenceGroup(str(seq.seq_id), None, [seq], params, max_num_tokens=longest))


def dummy_outputs(plan: SchedulerOutput) -> list[SequenceOutput]:
    """Token 0 for each sample."""
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
        top = np.argpartition(-log_probs, count, axis=1)[:, :count]  # (R, count), in no order
        results = []
        for ids, row in zip(top, log_probs, strict=True):
            ids = ids[np.argsort(-row[ids])]  # best first
            results.append(
                SequenceOutput(candidates=tuple(zip(ids.tolist(), row[ids].tolist(), strict=True)))
            )
        return results

    return outputs


# -- running it -------------------------------------------------------------------------------------


def step(scheduler: Scheduler, runner: Runner, look: Callable[[SchedulerOutput], None]) -> tuple[float, int]:
    """One step; `look` sees its plan when all blocks of the step are held.

    Returns:
        Seconds spent in `schedule` and `update_from_output`, and the requests that finished.
    """
    start = time.process_time()
    plan = scheduler.schedule()
    seconds = time.process_time() - start
    look(plan)
    outputs = runner(plan)
    start = time.process_time()
    updated = scheduler.update_from_output(plan, outputs)
    return seconds + time.process_time() - start, sum(group.is_finished for group, _ in updated)


@dataclass(frozen=True)
class Experiment:
    """A scheduler with a queue that is never empty.

    Attributes:
        scheduler: and with it the memory under test.
        lengths: of the requests to come.
        params: of all requests.
        runner: what stands in for the model.
    """

    scheduler: Scheduler
    lengths: Iterator[tuple[int, int]]
    params: Params = ONE_SAMPLE
    runner: Runner = dummy_outputs

    def serve(self, num_requests: int, look: Callable[[SchedulerOutput], None]) -> float:
        """Step until `num_requests` more requests have finished; -> seconds per step, as of `step`."""
        seconds, num_steps, num_finished = 0.0, 0, 0
        while num_finished < num_requests:
            # Refilled before every step: an empty queue would leave memory unused for want of requests.
            while len(self.scheduler.waiting) < QUEUE_LENGTH:
                add_request(self.scheduler, *next(self.lengths), self.params)
            of_step, finished = step(self.scheduler, self.runner, look)
            seconds, num_steps, num_finished = seconds + of_step, num_steps + 1, num_finished + finished
        return seconds / num_steps

    def warm_up(self, num_requests: int) -> None:
        """Serve half as many requests as will count."""
        self.serve(max(1, num_requests // 2), lambda plan: None)


def measure_usage(
    system: str, block_size: int, model: LengthModel, num_requests: int, seed: int = 0
) -> Usage:
    """Where the slots are, and how many requests run, while `num_requests` requests are served.

    Args:
        system: as for `make_manager`.
        block_size: tokens per block.
        model: what lengths are drawn from.
        num_requests: finished requests over which the mean is taken, after half as many that do not count.
        seed: of the lengths.
    """
    scheduler = make_scheduler(make_manager(system, block_size))
    kv, sums = scheduler.kv, Counter()

    def look(plan: SchedulerOutput) -> None:
        contiguous = isinstance(kv, ContiguousKVCacheManager)
        usage = kv.slot_usage() if contiguous else paged_slot_usage(scheduler)
        # The plan's tokens count as written, as at the end of the forward pass; see the module's docstring.
        usage = usage.with_written(plan.num_scheduled_tokens)
        assert usage.capacity == kv.pool.num_blocks * kv.block_size
        sums.update({kind: getattr(usage, kind) / NUM_SLOTS for kind in KINDS})
        sums["external"] += (NUM_SLOTS - usage.capacity) / NUM_SLOTS  # too few to make another block
        sums["waste"] += 1 - usage.used / (kv.pool.num_used * kv.block_size)
        sums.update(batch=len(scheduler.running), num_steps=1)

    experiment = Experiment(scheduler, endless_lengths(model, seed))
    experiment.warm_up(num_requests)
    before = scheduler.stats.num_preemptions
    seconds = experiment.serve(num_requests, look)
    num_steps = sums.pop("num_steps")
    means = {name: total / num_steps for name, total in sums.items()}
    return Usage(**means, num_steps=num_steps, num_preemptions=scheduler.stats.num_preemptions - before,
                 seconds=seconds)  # fmt: skip


def measure_sharing(
    params: Params, model: LengthModel, num_requests: int, seed: int = 0, block_size: int = 16
) -> float:
    """The paper's saving: blocks saved by sharing, out of the blocks that the same tables hold without.

    Example: two beams hold 10 blocks each by their tables, 8 of them the same: 12 blocks are held, 8 are
    saved, and the saving is 8 / 20 = 40%.

    Args:
        params: `n` completions, or beams.
        model: what lengths are drawn from.
        num_requests: as for `measure_usage`.
        seed: of the lengths, and of the random logits.
        block_size: tokens per block.
    """
    scheduler, blocks = make_scheduler(make_manager("paged", block_size)), Counter()
    runner = random_beam_outputs(seed) if isinstance(params, BeamSearchParams) else dummy_outputs

    def look(plan: SchedulerOutput) -> None:
        blocks.update(saved=scheduler.kv.num_blocks_saved, held=scheduler.kv.pool.num_used)

    experiment = Experiment(scheduler, endless_lengths(model, seed), params, runner)
    experiment.warm_up(num_requests)
    experiment.serve(num_requests, look)
    return blocks["saved"] / blocks.total()


def generating(
    num_running: int, num_steps: int, context: int = 256
) -> Iterator[tuple[SchedulerOutput, float]]:
    """Plans of `num_running` sequences and the seconds of `step` for each.

    The first admits all sequences with their prompts of `context` tokens; then each generates one token per
    step, for `num_steps` steps and more. None finishes and none is admitted meanwhile.
    """
    kv = make_manager("paged", 16, num_slots=num_running * (context + 2 * num_steps + 16))
    scheduler = Scheduler(kv, num_running, max_num_batched_tokens=num_running * context)
    for _ in range(num_running):
        add_request(scheduler, context, 2 * num_steps, ONE_SAMPLE)
    while scheduler.has_unfinished:
        plans: list[SchedulerOutput] = []
        seconds, _ = step(scheduler, dummy_outputs, plans.append)
        yield plans[0], seconds


def scheduling_seconds(num_running: int, num_steps: int = 10) -> list[float]:
    """Seconds of `schedule` and `update_from_output` for each of `num_steps` steps that only generate."""
    return [seconds for _, seconds in itertools.islice(generating(num_running, num_steps), 1, num_steps + 1)]
