"""The paper's memory experiments without a model: real scheduler, real memory manager, pretend tokens.

How much of the KV memory holds tokens, and how many requests run at once, depends on lengths only. So the
runner returns the same token every time; only beam search, whose forks depend on scores, gets random ones::

    endless lengths -> queue -> schedule() -> [look at every slot] -> dummy tokens -> update_from_output()

Setting of the paper: OPT-13B on an A100 with 40 GB, 12 GiB for K and V at 800 KiB per token = 15,728 slots,
sequences of at most 2,048 tokens. The queue is never empty, so memory alone decides how many run. A step is
looked at when it is planned and its tokens count as written: the memory that it needs while it runs. Steps
before half as many requests again have finished do not count, because all start together then. Seconds are
processor time.

Paper: sections 6.2 (Figures 2 and 13), 6.3 (15) and 7.2 (18b). vLLM V1 has no counterpart.
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
Look = Callable[[SchedulerOutput], None]
Runner = Callable[[SchedulerOutput], list[SequenceOutput]]


@dataclass(frozen=True)
class Usage:
    """Means over the steps that count. Shares of all slots add up to 1; `waste` is of the slots in *held*
    blocks.
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


def endless_lengths(model: LengthModel, seed: int) -> Iterator[tuple[int, int]]:
    """(prompt, output) lengths without end, the same for every system, and however far they are read."""
    for chunk in itertools.count():
        yield from draw_lengths(model, 1000, seed * 1_000_000 + chunk)


def make_manager(system: str, block_size: int, num_slots: int = NUM_SLOTS) -> KVCacheManager:
    """KV memory: "paged", or contiguous with the policy "max", "pow2" or "oracle"; only whole blocks."""
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
    """A runner that offers beams of width w the likeliest 2 w tokens of independent logits ~ N(0, 1)."""
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
            candidates = zip(ids.tolist(), row[ids].tolist(), strict=True)
            results.append(SequenceOutput(candidates=tuple(candidates)))
        return results

    return outputs


def step(scheduler: Scheduler, runner: Runner, look: Look) -> tuple[float, int]:
    """One step; `look` sees its plan. -> seconds in scheduler and manager, number of requests finished."""
    start = time.process_time()
    plan = scheduler.schedule()
    seconds = time.process_time() - start
    look(plan)
    outputs = runner(plan)
    start = time.process_time()
    updated = scheduler.update_from_output(plan, outputs)
    return seconds + time.process_time() - start, sum(group.is_finished for group, _ in updated)


def serve(
    scheduler: Scheduler, lengths: Iterator[tuple[int, int]], num_requests: int, look: Look,
    params: Params = ONE_SAMPLE, runner: Runner = dummy_outputs,
) -> float:  # fmt: skip
    """Step until `num_requests` more have finished, the queue never empty; -> mean seconds of `step`."""
    seconds, num_steps, num_finished = 0.0, 0, 0
    while num_finished < num_requests:
        # Refilled before every step: an empty queue would leave memory unused for want of requests.
        while len(scheduler.waiting) < QUEUE_LENGTH:
            add_request(scheduler, *next(lengths), params)
        of_step, finished = step(scheduler, runner, look)
        seconds, num_steps, num_finished = seconds + of_step, num_steps + 1, num_finished + finished
    return seconds / num_steps


def measure_usage(
    system: str, block_size: int, model: LengthModel, num_requests: int, seed: int = 0
) -> Usage:
    """Where the slots are, and how many requests run, while `num_requests` finish, after half as many."""
    scheduler = make_scheduler(make_manager(system, block_size))
    kv, sums = scheduler.kv, Counter()

    def look(plan: SchedulerOutput) -> None:
        contiguous = isinstance(kv, ContiguousKVCacheManager)
        usage = kv.slot_usage() if contiguous else paged_slot_usage(scheduler)
        usage = usage.with_written(plan.num_scheduled_tokens)
        assert usage.capacity == kv.pool.num_blocks * kv.block_size
        sums.update({kind: getattr(usage, kind) / NUM_SLOTS for kind in KINDS})
        sums["external"] += (NUM_SLOTS - usage.capacity) / NUM_SLOTS  # too few to make another block
        sums["waste"] += 1 - usage.used / (kv.pool.num_used * kv.block_size)
        sums.update(batch=len(scheduler.running), num_steps=1)

    lengths, stats = endless_lengths(model, seed), scheduler.stats
    serve(scheduler, lengths, max(1, num_requests // 2), lambda plan: None)
    before = stats.num_preemptions
    seconds = serve(scheduler, lengths, num_requests, look)
    num_steps, num_preemptions = sums.pop("num_steps"), stats.num_preemptions - before
    means = {name: total / num_steps for name, total in sums.items()}
    return Usage(**means, num_steps=num_steps, num_preemptions=num_preemptions, seconds=seconds)


def measure_sharing(
    params: Params, model: LengthModel, num_requests: int, seed: int = 0, block_size: int = 16
) -> float:
    """The paper's saving. Example: two beams hold 10 blocks each by their tables, 8 of them the same: 12
    blocks are held, 8 are saved, and the saving is 8 / 20 = 40%.
    """
    scheduler, blocks = make_scheduler(make_manager("paged", block_size)), Counter()
    runner = random_beam_outputs(seed) if isinstance(params, BeamSearchParams) else dummy_outputs

    def look(plan: SchedulerOutput) -> None:
        blocks.update(saved=scheduler.kv.num_blocks_saved, held=scheduler.kv.pool.num_used)

    lengths = endless_lengths(model, seed)
    serve(scheduler, lengths, max(1, num_requests // 2), lambda plan: None, params, runner)
    serve(scheduler, lengths, num_requests, look, params, runner)
    return blocks["saved"] / blocks.total()


def generating(
    num_running: int, num_steps: int, context: int = 256
) -> Iterator[tuple[SchedulerOutput, float]]:
    """Plans and seconds of `num_running` sequences: a prefill, then `num_steps` decode steps or more."""
    kv = make_manager("paged", 16, num_slots=num_running * (context + 2 * num_steps + 16))
    scheduler = Scheduler(kv, num_running, max_num_batched_tokens=num_running * context)
    for _ in range(num_running):
        add_request(scheduler, context, 2 * num_steps, SamplingParams(ignore_eos=True))
    while scheduler.has_unfinished:
        plans: list[SchedulerOutput] = []
        seconds, _ = step(scheduler, dummy_outputs, plans.append)
        yield plans[0], seconds


def scheduling_seconds(num_running: int, num_steps: int = 10) -> list[float]:
    """Seconds of scheduler and manager in `num_steps` steps that only generate."""
    return [seconds for _, seconds in itertools.islice(generating(num_running, num_steps), 1, num_steps + 1)]
