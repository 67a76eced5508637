# %% [markdown]
# # 03 · Naive batching: where the memory and the time go
#
# ## Before you start
#
# **You need:** chapter 02: what a slot is, and why memory decides how many requests share a step.
#
# **You will be able to:** name the five kinds of slots in a KV cache and count them at any step, and count the seats
# of a batch in which nothing happens.
#
# **Minutes:** 35 to read and run, 40 for the exercises.

# %%
from minivllm.baselines import ContiguousKVCacheManager, ReservationPolicy, StaticBatchScheduler, orca
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import WORKLOAD, run_workload, toy_llm
from minivllm.viz import gantt, memory_area, memory_use, seating, show, wasted_share

seed_all()

# %% [markdown]
# ## The problem
#
# You have a model, a KV cache of 256 slots, and twelve requests. How would you have served them in 2022?
#
# Attention kernels of that time wanted the keys and values of a sequence in one unbroken piece. How long an answer will
# get is not known beforehand, so the server **reserved** the longest that was allowed (`max_model_len`) for each
# request when the request started. And a batch was a tensor with one row for each request. It was formed once and ran
# until its longest member was done; only then was the next one formed: **static batching**.
#
# This project has both, as parts that plug into the same engine. Twelve requests, answers from 4 to 40 tokens,
# at most 64 tokens each, four in a batch:

# %%
print("request:       ", *[f"{number:>3}" for number in range(len(WORKLOAD))])
print("prompt tokens: ", *[f"{prompt:>3}" for prompt, _ in WORKLOAD])
print("answer tokens: ", *[f"{answer:>3}" for _, answer in WORKLOAD])

MAX_MODEL_LEN = 64
options = {"num_blocks": 64, "block_size": 4, "max_num_seqs": 4, "max_model_len": MAX_MODEL_LEN}


def naive(policy):
    """Static batches over contiguous reservations; returns the trace of the workload."""
    llm = toy_llm(
        scheduler_cls=StaticBatchScheduler, kv_cache_manager_cls=orca(policy, MAX_MODEL_LEN), **options
    )
    return run_workload(llm)[0]


trace = naive(ReservationPolicy.MAX)
print(f"\n{sum(answer for _, answer in WORKLOAD)} tokens in {len(trace.steps)} steps")

# %% [markdown]
# ## Predict, then run
#
# Every request holds 64 slots from its first step to its last. Over the whole run, what share of the slots that are
# held do *not* hold a token? Write a number between 0 and 1.

# %%
guess = None

# %%
reveal(guess, round(wasted_share(trace), 2))

# %% [markdown]
# More than two thirds of the memory that is taken is empty. The paper found the same on real traffic: in the systems
# of the time, only 20.4 % to 38.2 % of the KV memory held tokens. To see why, sort every slot into one of five kinds:
#
# - **used**: holds the key and value of a token;
# - **reserved**: empty now, but the request which holds it will fill it;
# - **internal** waste: held by a request which will not need it, because its answer ends earlier;
# - **rounding**: handed out by the allocator on top of what was asked for. Together with free pieces that are too small
#   for any request, this is *external* waste;
# - **free**.
#
# Only "reserved" and "internal" need a look into the future. A trace can give it: it knows how long each request
# became.

# %%
use = memory_use(trace)
for step in (0, 10, 30, 60):
    at = use[step]
    print(
        f"step {step:>3}: used {at.used:>3}, reserved {at.reserved:>3}, internal {at.internal:>3}, "
        f"rounding {at.rounding:>3}, free {at.free:>3}   sum {at.capacity}"
    )

# %% [markdown]
# ## How the code does it
#
# A request gets its slots once, when it is admitted, as a run of consecutive blocks. If no run is long enough, it
# waits, whatever the sum of the free slots.

# %%
show_source(ContiguousKVCacheManager._reserve)

# %% [markdown]
# The example request needs 6 + 8 - 1 = 13 slots and gets 64. How much to ask for is a **policy**. `MAX` reserves the
# longest possible. `POW2` guesses the length of the answer within a factor of two. `ORACLE` knows it exactly, which no
# real system does. The paper simulated all three; here they are on our workload. The allocator under them is a buddy
# allocator, which hands out powers of two.

# %%
policies = {policy.name: naive(policy) for policy in ReservationPolicy}
print("policy   held slots without a token   of all held: reserved  internal  rounding")
for name, each in policies.items():
    uses = memory_use(each)
    held = sum(use.held for use in uses)
    parts = [sum(getattr(use, kind) for use in uses) / held for kind in ("reserved", "internal", "rounding")]
    print(f"{name:<9}{wasted_share(each):>24.1%}" + " " * 17 + "".join(f"{part:>10.1%}" for part in parts))

# %% [markdown]
# Look at the last line. Even a server that knows the future wastes more than half, because *reserved* slots stand empty
# until their tokens arrive, and because pieces have to be of sizes that fit together. The guess is not what is bad; the
# rule is, which says that a request's memory must be in one piece and decided at the start.
#
# The other half of the baseline is the schedule. It admits only when the batch is empty:

# %%
show_source(StaticBatchScheduler.schedule_waiting)

# %% [markdown]
# A batch member that is done early leaves its seat empty until the whole batch is done. How many seat-steps is that?
# For a batch with answers of lengths $a_1, a_2, \ldots$ it is $\sum_i (\max_j a_j - a_i)$: each waits for the longest.

# %%
answers = [answer for _, answer in WORKLOAD]
batches = [answers[start : start + 4] for start in range(0, len(answers), 4)]
idle_by_formula = sum(max(batch) - answer for batch in batches for answer in batch)
for batch in batches:
    print(
        f"answers {batch}: {max(batch)} steps, empty seat-steps {[max(batch) - answer for answer in batch]}"
    )
print("sum:", idle_by_formula)

# %% [markdown]
# ## The picture
#
# First the memory: every slot of the pool at every step, stacked by kind. This is the yardstick of the course. You
# will see it again in chapter 05, on the same axes.

# %%
show(
    memory_area({"longest allowed length reserved": trace, "exact length known beforehand": policies["ORACLE"]}),
    alt=f"Slots by kind over {len(trace.steps)} steps. Reserving the maximum, {wasted_share(trace):.0%} of the held "
    f"slots hold no token; knowing each length beforehand, still {wasted_share(policies['ORACLE']):.0%}.",
)

# %% [markdown]
# Then the time. Each row is a seat of the batch, a grey dot a seat in which nothing happens although a request waits.

# %%
idle = 4 * len(trace.steps) - len(seating(trace))
show(
    gantt({"static batching": trace}),
    alt=f"Static batching takes {len(trace.steps)} steps for three batches; {idle} of "
    f"{4 * len(trace.steps)} seat-steps are empty, because short answers wait for the longest of their batch. In some of "
    "these a request waits (dots, counted in the title); the others come at the end.",
)

# %% [markdown]
# ## Claims

# %%
claim(
    "every slot is of exactly one kind: they add up to the pool in each step",
    all(each.capacity == 256 for policy in policies.values() for each in memory_use(policy)),
    measured=f"{sum(len(policy.steps) for policy in policies.values())} steps",
)
claim(
    "naive batching leaves more than half of the memory it holds empty",
    wasted_share(trace) > 0.5,
    measured=f"{wasted_share(trace):.1%}",
)
claim(
    "knowing all lengths beforehand does not save it",
    all(wasted_share(policy) > 0.5 for policy in policies.values()),
    measured=", ".join(f"{name} {wasted_share(policy):.1%}" for name, policy in policies.items()),
)
claim(
    "empty seat-steps are the sum of the distances to the longest answer of each batch",
    idle == idle_by_formula,
    measured=f"{idle}, {idle / (4 * len(trace.steps)):.0%} of all",
)

# %% [markdown]
# Two problems, then, each with its own cause. Reservations waste memory, so fewer requests run at once. Static batches
# waste seats, so the same requests take more steps. Chapters 04 and 05 repair the first, chapter 06 the second, and
# chapter 11 measures each alone and both together.
#
# ## Exercises
#
# In `notebooks/exercises/ch03_naive_batching.py`:
#
# - **ex03a** `fragmentation(snapshot)`: the shares of the kinds. Take numerator and denominator from the same
#   snapshot: to mix two is the classic mistake.
# - **ex03b** `static_batch_steps(lengths, batch_size)`: steps and empty seat-steps, without running anything.
# - **ex03c** `order_by_length` (goes further): put requests of similar length into one batch. How many steps does
#   that save here, and what would a real server have to know?
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex03a`:
#
#     %load_ext minivllm.course
#     %check ex03a
#
# ## Check yourself
#
# <details><summary>Request 2 has 4 prompt and 5 answer tokens. How many of its 64 slots does it ever fill?</summary>
#
# 4 + 5 - 1 = 8. The other 56 are internal waste, from its first step to its last.
# </details>
#
# <details><summary>Would a larger batch (more seats) help?</summary>
#
# Not here: 256 slots hold four reservations of 64, so the memory is full with four requests, although most of it is
# empty. That is how wasted memory turns into lost throughput.
# </details>
#
# <details><summary>Why not reserve little and move a sequence when it grows out of its piece?</summary>
#
# Moving means copying all its keys and values, in every layer, and finding a larger free piece first. Meanwhile the
# kernels have to wait. Paging grows a sequence without moving anything.
# </details>
#
# ## In real vLLM
#
# There is nothing left of this: vLLM was written to replace it. The baseline is the paper's reconstruction of Orca, the
# system of its section 6.1 (our `baselines/contiguous.py` and `baselines/buddy.py`), and static batching is what
# Hugging Face's `model.generate` still does with a list of prompts.
#
# ## Key points
#
# - Memory in one piece must be reserved before the length is known. Most of it stays empty.
# - Used, reserved, internal, rounding, free: every slot is one of them, and they add up to the pool.
# - Perfect knowledge of the lengths does not help enough; the piece is the problem.
# - A static batch runs as long as its longest member; the seats of the others stand empty in the end.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), section 3. **Next:** [04 · The block table](04_block_table.ipynb).
