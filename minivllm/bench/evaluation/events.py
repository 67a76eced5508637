"""Runs of the real scheduler under a computed clock: how many requests per second a system can serve.

Two kinds of run. *Saturated*: the queue is never empty; what then comes out per second is the capacity. At a
lower rate the queue stays short; at a higher one it grows for as long as the trace lasts. *Arriving*: they
come at random moments (Poisson), each waits for its turn, and its latency is measured::

    normalized   |              /          latency / output tokens, the mean over the requests
    latency      |             /
                 |____________/_____       At 3% above the capacity an hour of requests waits 54 s on average:
                              ^  rate      so the rate "sustained" is the capacity, whatever limit is chosen
                           capacity

A `System` is one bar of the paper's figures: a memory manager, a scheduler, and how requests come in. Where
memory is contiguous, n completions are n requests: nothing can be shared, so the prompt is computed n times.

Paper: section 6.1. vLLM V1: `vllm/benchmarks/serve.py` measures the same on a running server.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from minivllm.baselines import ReservationPolicy, StaticBatchScheduler, orca
from minivllm.bench import simulation
from minivllm.bench.evaluation.setups import EXTRA_PER_BLOCK, Deployment
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.scheduler import Scheduler
from minivllm.sequence import Sequence, SequenceGroup

Lengths = Iterator[tuple[int, int]]  # (prompt tokens, output tokens)
Arrival = tuple[float, int, int]  # (seconds from the start, prompt tokens, output tokens)
MAX_MODEL_LEN = simulation.MAX_MODEL_LEN


@dataclass(frozen=True)
class System:
    """One way of serving.

    Attributes:
        memory: "paged", or how much a contiguous run reserves: "max", "pow2", "oracle".
        static: whether a batch is closed until its last request is done (FasterTransformer).
        swap: whether a preempted sequence is moved to CPU memory; else it is computed again.
        shares_prefix: whether the prefix cache is on.
        lookup_tokens: what finding a block costs a paged kernel, in tokens that it could have read.
        watermark: share of paged memory kept free of newcomers, 1% as in vLLM of 2023. At OPT-175B, where
            computing a prompt again is dear, a tenth of the rate is lost without it.
    """

    memory: str
    block_size: int = 16
    static: bool = False
    swap: bool = False
    shares_prefix: bool = False
    lookup_tokens: float = EXTRA_PER_BLOCK
    watermark: float = 0.01

    def scheduler(self, where: Deployment) -> Scheduler:
        """With empty queues, and the memory and limits of a deployment."""
        num_blocks = where.num_slots // self.block_size
        if self.memory == "paged":
            cpu_blocks = num_blocks if self.swap else 0
            kv = KVCacheManager(num_blocks, self.block_size, self.shares_prefix, cpu_blocks, self.watermark)
        else:
            kv = orca(ReservationPolicy(self.memory), MAX_MODEL_LEN)(num_blocks, self.block_size)
        kind = StaticBatchScheduler if self.static else Scheduler
        mode = "swap" if self.swap else "recompute"
        return kind(kv, where.max_num_seqs, where.max_num_batched_tokens, preemption_mode=mode)


@dataclass(frozen=True)
class Demand:
    """What each request asks for, besides its lengths: n completions or beams, and a common prefix."""

    width: int = 1
    beams: bool = False
    prefix_len: int = 0

    @property
    def params(self) -> SamplingParams | BeamSearchParams:
        """For a system that can share; dummy tokens are no end of sequence."""
        if self.beams:
            return BeamSearchParams(self.width, MAX_MODEL_LEN, ignore_eos=True)
        return SamplingParams(n=self.width, ignore_eos=True)


ONE = Demand()


class Simulation:
    """One system on one deployment; the clock starts at 0 and moves by the seconds of each step.

    `totals` counts "tokens" sampled, "steps", "running" requests (of each step), and "preemptions".
    """

    def __init__(self, system: System, where: Deployment, demand: Demand = ONE) -> None:
        self.system, self.demand = system, demand
        self.scheduler = system.scheduler(where)
        paged = system.memory == "paged"
        self.model = replace(where.model, extra_per_block=system.lookup_tokens if paged else 0.0)
        self.runner = simulation.dummy_outputs
        if demand.beams and paged:
            self.runner = simulation.random_beam_outputs(seed=0)
        self.copies = 1 if paged else demand.width  # requests queued for each that comes
        self.clock = 0.0
        self.totals: Counter[str] = Counter()

    def add(self, prompt_len: int, output_len: int) -> list[str]:
        """Queue what stands for one request; -> request ids. The prefix is zeros, the rest its own number."""
        request_ids = []
        for _ in range(self.copies):
            seq_id = self.scheduler.new_seq_id()
            prompt = [0] * self.demand.prefix_len + [seq_id + 1] * prompt_len
            params = simulation.ONE_SAMPLE if self.copies > 1 else self.demand.params
            longest = len(prompt) + output_len
            group = SequenceGroup(
                str(seq_id), None, [Sequence(seq_id, prompt, 0)], params, max_num_tokens=longest
            )
            self.scheduler.add(group)
            request_ids.append(group.request_id)
        return request_ids

    def step(self) -> list[str]:
        """One step of the real scheduler; -> ids of the requests which it finished."""
        plan = self.scheduler.schedule()
        shares = self.demand != ONE and self.system.memory == "paged"
        num_shared = self.scheduler.kv.num_blocks_saved if shares else 0
        self.clock += self.model.seconds(plan, self.system.block_size, num_shared)
        running, preempted = len(self.scheduler.running), len(plan.preempted)
        tokens = sum(row.num_samples for row in plan.scheduled)
        self.totals.update(steps=1, running=running, tokens=tokens, preemptions=preempted)
        updated = self.scheduler.update_from_output(plan, self.runner(plan))
        return [group.request_id for group, _ in updated if group.is_finished]


@dataclass(frozen=True)
class Capacity:
    """What a saturated system does, on average over the steps that count."""

    rate: float  # requests per second
    batch: float  # requests running
    step_seconds: float


def saturate(
    system: System, where: Deployment, lengths: Lengths, count: int, demand: Demand = ONE
) -> Capacity:
    """Step until `count` requests have finished, or twice as many as run at once where those are more; after
    half as many that do not count, because all begin together.

    The rate is that of tokens divided by the tokens of a request: it varies less than finished requests.
    """
    run = Simulation(system, where, demand)
    queued: list[int] = []  # output tokens of each request
    for share in (0.5, 1.0):
        run.clock, num_finished = 0.0, 0
        run.totals.clear()
        while num_finished < share * max(count * run.copies, 2 * len(run.scheduler.running)):
            while len(run.scheduler.waiting) < where.max_num_seqs:
                prompt_len, output_len = next(lengths)
                run.add(prompt_len, output_len)
                queued.append(output_len)
            num_finished += len(run.step())
    tokens_each = demand.width * sum(queued) / len(queued)
    steps, copies = run.totals["steps"], run.copies
    return Capacity(
        rate=run.totals["tokens"] / run.clock / tokens_each,
        batch=run.totals["running"] / steps / copies,
        step_seconds=run.clock / steps,
    )


@dataclass(frozen=True)
class Arrived:
    """What came of a run with arrivals: seconds on its clock, latency per output token, preemptions."""

    seconds: float
    normalized_latency: float
    num_preemptions: int


def arrivals(lengths: Lengths, rate: float, count: int, seed: int = 0) -> list[Arrival]:
    """`count` requests of a Poisson process. Another rate stretches the same moments."""
    rng = random.Random(f"{seed}/arrivals")
    moments = itertools.accumulate(rng.expovariate(1.0) / rate for _ in range(count))
    return [(moment, *each) for moment, each in zip(moments, lengths, strict=False)]


def arrive(system: System, where: Deployment, requests: list[Arrival]) -> Arrived:
    """Serve requests, in order of arrival. Each is added after the step during which it came."""
    run, coming = Simulation(system, where), deque(requests)
    unfinished: dict[str, tuple[float, int]] = {}
    latencies: list[float] = []
    while coming or unfinished:
        if not unfinished:
            run.clock = max(run.clock, coming[0][0])  # idle until the next one comes
        while coming and coming[0][0] <= run.clock:
            moment, prompt_len, output_len = coming.popleft()
            (request_id,) = run.add(prompt_len, output_len)
            unfinished[request_id] = moment, output_len
        for request_id in run.step():
            moment, output_len = unfinished.pop(request_id)
            latencies.append((run.clock - moment) / output_len)
    return Arrived(run.clock, sum(latencies) / len(latencies), run.totals["preemptions"])
