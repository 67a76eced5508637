"""Building blocks for tests of the pure Python wing: groups without text, a model without weights."""

from weakref import WeakKeyDictionary

from minivllm.kv_cache_manager import KVCacheManager
from minivllm.outputs import SequenceOutput
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.scheduler import Scheduler
from minivllm.sequence import Sequence, SequenceGroup


def make_group(name, prompt, max_tokens=8, *, seq_id=None, n=1, beam_width=None, stop_token_ids=(), **params):
    """A sequence group as `InputProcessor` would make it."""
    prompt = list(range(prompt)) if isinstance(prompt, int) else list(prompt)
    if beam_width is not None:
        asked = BeamSearchParams(beam_width, max_tokens, **params)
    else:
        asked = SamplingParams(n=n, max_tokens=max_tokens, temperature=1.0, seed=0, **params)
    return SequenceGroup(
        request_id=str(name),
        prompt=None,
        seqs=[Sequence(name if seq_id is None else seq_id, prompt, seed=0)],
        params=asked,
        max_num_tokens=len(prompt) + max_tokens,
        stop_token_ids=frozenset(stop_token_ids),
    )


def add(scheduler, name, prompt, max_tokens=8, *, priority=0, arrival_time=0.0, **options):
    """Make a group with an id from the scheduler, and queue it."""
    group = make_group(name, prompt, max_tokens, seq_id=scheduler.new_seq_id(), **options)
    group.priority, group.arrival_time = priority, arrival_time
    scheduler.add(group)
    return group


def make_scheduler(num_blocks=16, block_size=4, num_cpu_blocks=0, prefix_caching=False, **options):
    """A scheduler over a real manager."""
    kv = KVCacheManager(num_blocks, block_size, prefix_caching, num_cpu_blocks)
    return Scheduler(kv, **({"max_num_seqs": 8, "max_num_batched_tokens": 32} | options))


def token_after(token_ids):
    """A pretend model: the next token depends on the whole past."""
    state = 7
    for token in token_ids:
        state = (state * 31 + token + 1) % 997
    return state


class PretendKVCache:
    """Keeps tokens where K and V would be, and finds them as attention does: through the block tables."""

    def __init__(self, block_size):
        self.block_size = block_size
        self.blocks, self.cpu_blocks = {}, {}  # block id -> {offset: token}

    def move(self, plan):
        for source, destination, pairs in (
            (self.blocks, self.cpu_blocks, plan.blocks_to_swap_out),
            (self.cpu_blocks, self.blocks, plan.blocks_to_swap_in),
            (self.blocks, self.blocks, plan.blocks_to_copy),
        ):
            destination.update({to: dict(source[at]) for at, to in pairs})

    def write(self, row):
        for position, token in enumerate(row.token_ids, row.start):
            block = row.block_ids[position // self.block_size]
            self.blocks.setdefault(block, {})[position % self.block_size] = token

    def read(self, row):
        """All tokens from position 0 to the row's last."""
        positions = range(row.start + row.num_tokens)
        size = self.block_size
        return [self.blocks[row.block_ids[position // size]][position % size] for position in positions]


_KV_CACHES = WeakKeyDictionary()  # scheduler -> its cache


def run_model(scheduler, plan):
    """What a runner would return for `plan`, from `token_after`. All rows are written before any is read."""
    cache = _KV_CACHES.setdefault(scheduler, PretendKVCache(scheduler.kv.block_size))
    cache.move(plan)
    for row in plan.scheduled:
        cache.write(row)
    outputs = []
    for row in plan.scheduled:
        token = token_after(cache.read(row))
        if row.num_candidates:
            candidates = tuple((token + k, -0.5 * (k + 1) - 0.01 * (token % 7)) for k in range(16))
            outputs.append(SequenceOutput(candidates=candidates))
        else:
            outputs.append(SequenceOutput(tuple((token + k,) for k in range(row.num_samples))))
    return outputs


def step(scheduler):
    """One step without a model, with the invariants checked before and after."""
    check_invariants(scheduler)
    plan = scheduler.schedule()
    check_plan(scheduler, plan)
    scheduler.update_from_output(plan, run_model(scheduler, plan))
    check_invariants(scheduler)
    return plan


def run_to_end(scheduler, max_steps=2000):
    """Step until nothing is left; returns the plans."""
    plans = []
    while scheduler.has_unfinished:
        plans.append(step(scheduler))
        assert len(plans) < max_steps, "the scheduler makes no progress"
    return plans


def check_invariants(scheduler):
    """The invariant of scheduler.py, and that queues, statuses and blocks agree with each other."""
    kv = scheduler.kv
    kv.check_invariants()
    assert not kv.in_flight, "a block is in flight between two steps"
    queues = {"RUNNING": scheduler.running, "WAITING": scheduler.waiting, "SWAPPED": scheduler.swapped}
    names = [group.request_id for queue in queues.values() for group in queue]
    assert sorted(names) == sorted(scheduler.groups), "a group is in no queue, or in two"
    for status, queue in queues.items():
        for group in queue:
            assert group.unfinished, "a finished group is still queued"
            for seq in group.unfinished:
                assert seq.status.name == status
                assert seq.num_uncomputed_tokens >= 1
                held = kv.block_tables.get(seq.seq_id)
                covered = len(held) * kv.block_size if held else 0
                if status == "RUNNING":
                    assert seq.num_computed_tokens <= covered
                else:
                    assert held is None
                if status == "WAITING":
                    assert seq.num_computed_tokens == 0
    live = {seq.seq_id for group in scheduler.groups.values() for seq in group.unfinished}
    assert set(kv.block_tables) | set(kv.swapped_tables) <= live, "a finished sequence holds blocks"


def check_plan(scheduler, plan):
    """Budgets are kept, every scheduled token has a slot of its own, no shared block is written."""
    assert plan.num_scheduled_tokens <= scheduler.max_num_batched_tokens
    assert len(plan.scheduled) <= scheduler.max_num_seqs
    size = scheduler.kv.block_size
    slots = []
    for row in plan.scheduled:
        assert row.num_tokens >= 1
        group = scheduler.groups[row.request_id]
        (seq,) = [seq for seq in group.seqs if seq.seq_id == row.seq_id]
        assert row.start == seq.num_computed_tokens
        assert row.token_ids == tuple(seq.token_ids[row.start : row.start + row.num_tokens])
        for position in range(row.start, row.start + row.num_tokens):
            block = row.block_ids[position // size]
            slots.append(block * size + position % size)
            # A second holder is right only if it found the block in the very step that fills it.
            physical = scheduler.kv.pool.blocks[block]
            assert physical.ref_count == 1 or physical in scheduler.kv.in_flight.values()
    assert len(slots) == len(set(slots)), "two tokens are written to one slot"
    moved = [source for source, _ in plan.blocks_to_copy]
    assert not set(moved) & {destination for _, destination in plan.blocks_to_copy}
