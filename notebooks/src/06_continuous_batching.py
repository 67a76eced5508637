# %% [markdown]
# # 06 · Continuous batching
#
# ## Before you start
#
# **You need:** chapter 03: the empty seats of a static batch. Chapter 04: what `allocate_slots` answers.
#
# **You will be able to:** explain a schedule step by step from one rule, say what the two budgets limit, show that
# scheduling changes no text here, and name the cases in which it may.
#
# **Minutes:** 40 to read and run, 45 for the exercises.

# %%
import torch

from minivllm.baselines import StaticBatchScheduler
from minivllm.bench.report import processor_name
from minivllm.bench.steps import MatmulBound, median_seconds
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import (
    WORKLOAD,
    encode,
    example_llm,
    greedy,
    real_llm,
    run_workload,
    toy_llm,
    workload_prompts,
)
from minivllm.scheduler import Scheduler
from minivllm.viz.trace import Trace
from minivllm.viz import gantt, new_figure, seating, show, trace_player

seed_all()

# %% [markdown]
# ## The problem
#
# Chapter 05 repaired the memory. The other problem of chapter 03 is still there: static batches. Three requests to
# SmolLM2, two seats:

# %% tags=["machine"]
texts_in = ["The capital of France is", "Water boils at a", "The opposite of hot is cold, and the opposite of small is"]
lengths = [greedy(8), greedy(3), greedy(4)]


def tell(llm):
    """Let SmolLM2 answer the three, and print in which steps each of them ran."""
    answers = llm.generate(texts_in, lengths, use_tqdm=False)
    for number, answer in enumerate(answers):
        rows = [(r.step, row) for r in llm.llm_engine.trace.steps for row in r.scheduled]
        mine = [step for step, row in rows if row.request_id == str(number)]
        print(f"request {number}, steps {mine[0]} to {mine[-1]}: {answer.prompt + answer.outputs[0].text!r}")


tell(real_llm(max_num_seqs=2, scheduler_cls=StaticBatchScheduler))

# %% [markdown]
# Request 1 is done after step 2, and its seat stays empty: request 2 has to wait until request 0 is done, too. The
# twelve requests of chapter 03, now with paging, four seats, on the toy:

# %%
options = {"num_blocks": 64, "block_size": 4, "max_num_seqs": 4, "max_model_len": 64}
static, _ = run_workload(toy_llm(scheduler_cls=StaticBatchScheduler, **options))
seats = 4 * len(static.steps)
print(
    f"static batches: {len(static.steps)} steps, {seats - len(seating(static))} of {seats} seat-steps empty"
)

# %% [markdown]
# Memory is free, requests are waiting, and more than half of the seats are empty, because a seat can be filled only
# when *every* request of the batch is done. Orca, a system of 2022, had the idea: the batch need not be the same in
# two steps. Decide anew, before every step, which requests take part. This is called **iteration-level scheduling** or
# **continuous batching**.
#
# ## Predict, then run
#
# The answers have 180 tokens in all, and there are four seats, so fewer than 45 steps are impossible. Static batching
# takes 103. What do you expect of continuous batching?

# %%
guess = None

# %%
continuous, outputs = run_workload(toy_llm(**options))
reveal(guess, len(continuous.steps), "steps")

# %% [markdown]
# Why not 45? The last request to finish, request 10, has an answer of 33 tokens, and it started late (see the picture
# below). In the end it runs alone, with three empty seats. A scheduler which knew the lengths could avoid that: let
# the longest answers start first, and the short ones fill the gaps:

# %%
longest_first, _ = run_workload(toy_llm(**options), sorted(WORKLOAD, key=lambda lengths: -lengths[1]))
print(f"longest answers first: {len(longest_first.steps)} steps")

# %% [markdown]
# That is the bound. But a server does not know how long an answer will get, and the short requests would wait for the
# long ones.
#
# ## How the code does it
#
# One rule does everything. Each sequence has two numbers: how many tokens it has (`len(seq)`), and how many of them
# have their keys and values in the cache tensors (`num_computed_tokens`). **Each step lets the second number catch up
# with the first.** There is no "prefill phase" and no "decode phase" in the code:
#
# | situation | tokens | computed | this step |
# |---|---|---|---|
# | a new prompt of 6 | 6 | 0 | 6 |
# | it generates | 7 | 6 | 1 |
# | a prompt found in the prefix cache (chapter 09) | 6 | 4 | 2 |
# | after preemption, when memory ran out (chapter 07) | 9 | 0 | 9 |
#
# Two budgets limit a step. `max_num_seqs` is the number of seats. `max_num_batched_tokens` is the number of tokens
# that go through the model; it bounds how long a step can take.
#
# In the code a *group* is one request. Chapter 07 explains `swapped`, chapter 09 `computed_blocks` and `copies`,
# chapter 16 the `speculator`.

# %%
show_source(Scheduler.schedule)

# %% [markdown]
# The requests already running come first, then those waiting. Here is the part that decides about newcomers:

# %%
show_source(Scheduler.schedule_waiting)

# %% [markdown]
# Read the exits of the loop; each is a policy in one line. No tokens left in the budget: stop. No seat: stop.
# `allocate_slots` answers `None`, so there is no memory: stop. And it *stops*: it does not look whether a request
# further back would fit. If small requests could pass, a large one at the head of the queue might wait forever. First
# come, first served is slower now and then, but no request starves.
#
# And the part for those running:

# %%
show_source(Scheduler.schedule_running)

# %% [markdown]
# The `while` in the middle is for the case that memory runs out: the newest request gives its blocks back and starts
# again later. Chapter 07 is about that.
#
# ### A small budget
#
# Give the example request a neighbour with a prompt of 12 tokens, and only 8 tokens per step:

# %%
llm = example_llm(max_num_seqs=2, max_num_batched_tokens=8, trace=Trace())
prompts = [
    "Four score and seven years ago",
    "a new nation conceived in liberty dedicated to the proposition that all",
]
llm.generate([{"prompt_token_ids": encode(text)} for text in prompts], [greedy(6), greedy(3)], use_tqdm=False)
small = llm.llm_engine.trace
for record in small.steps:
    rows = ", ".join(
        f"request {row.request_id}: positions {row.start}..{row.start + row.num_tokens - 1}"
        + ("" if row.num_samples else " (no sample yet)")
        for row in record.scheduled
    )
    print(f"step {record.step}, tokens: {sum(row.num_tokens for row in record.scheduled)}   {rows}")

# %% [markdown]
# Step 0 has room for six tokens of the first prompt and two of the second. In step 1 the first request takes its one
# token *before* the long prompt gets the other seven. So a long prompt makes no running request miss a step, although
# each step takes longer meanwhile: this delay is what a prefill costs its neighbours (chapter 12 measures it). The long
# prompt is computed in three pieces, of which only the last yields a token. This is **chunked prefill**, and it needed
# no code of its own: a piece of a prompt is just a sequence that has not caught up yet.
#
# How can a step work on seven positions of one sequence and one of another? A batch is not a rectangle here. The eight
# tokens lie one behind the other, without padding, and `query_start_loc = [0, 1, 8]` says where each sequence begins
# and where the last one ends. A matrix product takes them as eight rows and need not know whose they are; attention
# alone looks at the borders, and at the block table of each sequence. A rectangle of 2 sequences and 7 positions would
# have had 14 cells, six of them empty.
#
# ### What a step costs
#
# Why is it a good idea to mix? A step reads every weight once, whether one row goes through it or sixty. Here are all
# matrix products of SmolLM2's 30 layers, timed on one thread:

# %% tags=["machine"]
story = real_llm(max_num_seqs=2, max_num_batched_tokens=6)
bound, counts = MatmulBound(story.llm_engine.runner.model, []), (1, 2, 4, 8, 16, 32, 64)
with torch.inference_mode():
    ms = [1e3 * median_seconds(bound.layers_function(count)) for count in counts]
bend = counts[-1] * ms[0] / ms[-1]  # where the two roofs meet
fig = new_figure(6.5, 3)
ax = fig.subplots()
ax.loglog(counts, ms, "o-", base=2, color="#0072B2", label="measured")
ax.loglog(counts, [ms[0] for _ in counts], "--", base=2, color="#D55E00", label="reading the weights")
ax.loglog(counts, [ms[-1] * count / 64 for count in counts], ":", base=2, color="#222222", label="computing")
ax.set_xticks(counts, [str(count) for count in counts])
ax.set_yticks([ms[0], ms[-1]], [f"{ms[0]:.0f}", f"{ms[-1]:.0f}"])
ax.set(xlabel="rows (tokens) in a step", ylabel="ms")
ax.legend(fontsize=8)
times = ", ".join(f"{count}: {each:.0f} ms" for count, each in zip(counts, ms, strict=True))
show(fig, alt=f"Time by rows, on {processor_name()}, one thread: {times}. The roofs meet at {bend:.0f}.")

# %% [markdown]
# This is the **roofline** of this machine. Two lines bound the time from below (the name comes from plots of speed,
# which they bound from above). Reading the weights (dashed) takes the time of one row, however many there are.
# Computing (dotted) takes the same for each row: a 64th of the time of 64. Left of the bend, where the lines meet,
# reading is the larger cost, and all rows share it; right of it each row pays for its own arithmetic. So 64 rows cost
# far less than 64 times one row.
#
# Decode steps of few requests are on the left, so a piece of a prompt costs less beside them than alone. An H100
# computes 295 operations while it reads one byte. A bfloat16 weight has two bytes and takes two operations per row, so
# the bend is near 300 rows: that is why batches there are large. Keys and values, of which each request reads its own,
# gain nothing from a batch.
#
# ## The picture
#
# The twelve requests again, in both schedules: a row for each seat, and in it the requests by number. Of the 232 empty
# seat-steps of static batching, the 166 with grey dots are the loss: a request waits. The other 66 come at the end,
# when no request is left to wait.


# %%
def idle_while_waiting(trace):
    """Seat-steps that are empty although a request waits."""
    return sum(4 - len(record.scheduled) for record in trace.steps if record.waiting)


show(
    gantt({"static batching": static, "continuous batching": continuous}),
    alt=f"Static batching: {len(static.steps)} steps, {idle_while_waiting(static)} seat-steps empty while a "
    f"request waits. Continuous batching: {len(continuous.steps)} steps, {idle_while_waiting(continuous)} such seats.",
)

# %%
fig = new_figure(9, 2.6)
for ax, (title, trace) in zip(
    fig.subplots(1, 2, sharex=True, sharey=True),
    {"static": static, "continuous": continuous}.items(),
    strict=True,
):
    ax.stairs([len(record.scheduled) for record in trace.steps], color="#0072B2", lw=2, label="running")
    ax.stairs(
        [len(record.waiting) for record in trace.steps], color="#D55E00", lw=2, ls="--", label="waiting"
    )
    ax.set(title=title, xlabel="step", ylabel="requests")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend()
last_wait = [max(r.step for r in trace.steps if r.waiting) for trace in (static, continuous)]
fewest = [min(len(r.scheduled) for r in trace.steps if r.waiting) for trace in (static, continuous)]
show(
    fig,
    alt=f"Requests running and waiting. Static: requests wait until step {last_wait[0]}, at times with {fewest[0]} "
    f"running. Continuous: requests wait until step {last_wait[1]}, and until then never fewer than {fewest[1]} run.",
)

# %% [markdown]
# The three requests from the beginning again: SmolLM2, two seats, continuous batching, at most 6 tokens per step. Step
# through it. In which step does request 2 get the seat of request 1, and in how many pieces is its prompt computed?

# %% tags=["machine"]
tell(story)
trace_player(story.llm_engine.trace)

# %% [markdown]
# In step 4, and in three pieces: 5 tokens, 5 and 3. Request 0 takes one token of each of these steps.
#
# ## Claims
#
# The batch changes in every step. Whatever else is in it, a request must get the text it would get alone.

# %%
llm = toy_llm(**options)
alone = [
    llm.generate({"prompt_token_ids": prompt}, greedy(answer), use_tqdm=False)[0].outputs[0].token_ids
    for prompt, (_, answer) in zip(workload_prompts(), WORKLOAD, strict=True)
]
claim(
    "scheduling changes no text here: each request gets what it gets alone",
    [output.outputs[0].token_ids for output in outputs] == alone,
    measured=f"{sum(map(len, alone))} tokens of {len(alone)} requests",
)
claim(
    "continuous batching needs fewer steps",
    len(continuous.steps) < len(static.steps),
    measured=f"{len(static.steps)} / {len(continuous.steps)} = {len(static.steps) / len(continuous.steps):.2f}",
)
claim(
    "with the longest answers first the bound is reached",
    len(longest_first.steps) == sum(answer for _, answer in WORKLOAD) / 4,
    measured=len(longest_first.steps),
)
claim(
    "no seat is empty while a request waits", idle_while_waiting(continuous) == 0 < idle_while_waiting(static)
)
tokens = [sum(row.num_tokens for row in record.scheduled) for record in small.steps]
claim(
    "no step exceeds its budgets: 4 seats, or 8 tokens",
    max(len(record.scheduled) for record in continuous.steps) <= 4 and max(tokens) <= 8,
    measured=f"tokens per step: {tokens}",
)

# %%
order = [request_id for record in continuous.steps for request_id in record.finished]
first_step = {}
for record in continuous.steps:
    for row in record.scheduled:
        first_step.setdefault(row.request_id, record.step)
arrivals = sorted(first_step, key=int)
claim(
    "first come, first served: requests start in the order in which they came",
    [first_step[request_id] for request_id in arrivals] == sorted(first_step.values()),
    measured=f"they finish in the order {' '.join(order)}",
)

# %% [markdown]
# ## Exercises
#
# In `notebooks/exercises/ch06_continuous_batching.py`:
#
# - **ex06a** `admit`: first come, first served, under a budget of seats, of tokens and of free blocks. The tests try
#   many random workloads.
# - **ex06b** `finish_reason`: when is a request done? End-of-sequence as the very first token, `max_tokens`, and both
#   at once.
# - **ex06c** `ShortestJobFirst` (goes further). Reach a mean completion step below the target, then find out which
#   requests pay for it.
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex06a`:
#
#     %load_ext minivllm.course
#     %check ex06a
#
# ## Check yourself
#
# <details><summary>A request has 9 tokens, and 6 of them are computed. How can that happen, and what does the next
# step do?</summary>
#
# Its prompt of 9 was cut by the token budget after 6. The next step computes the remaining 3, if the budget allows,
# and samples one token.
# </details>
#
# <details><summary>Why is a token sampled only when a sequence has caught up completely?</summary>
#
# The logits at position $p$ speak about the token at $p + 1$. In the middle of a prompt that token is already known,
# so there is nothing to choose.
# </details>
#
# <details><summary>Would more seats make our workload faster still?</summary>
#
# Yes, while there is memory. With 12 seats the 64 blocks hold all twelve requests at once and 40 steps are enough, as
# many as the longest answer has tokens (chapter 05 printed it). But each step takes longer, and at some point memory
# runs out: chapter 07.
# </details>
#
# ## In real vLLM
#
# [`vllm/v1/core/sched/scheduler.py`] follows the same rule, and says so in a note: no decoding phase nor prefill phase,
# just `num_computed_tokens` catching up. It adds priorities, speculative tokens, encoder inputs and transfers between
# machines, which is how about 80 lines become 600. A server on a large GPU there takes up to 1,024 sequences and 8,192
# tokens per step by default.
#
# [`vllm/v1/core/sched/scheduler.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/core/sched/scheduler.py
#
# ## Key points
#
# - The batch is decided anew in every step: requests which are done leave, requests which wait come in.
# - One rule: let `num_computed_tokens` catch up with the tokens, under a budget of seats and tokens.
# - Prompts, pieces of prompts and single tokens are rows of one batch.
# - Scheduling decides when a token is computed, not which one. In float32 on a small model each text is what it would
#   be alone; in bfloat16, or with other kernels for other batch sizes, two nearly equal logits may change places
#   (`python -m minivllm compare` looks for such tokens).
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), section 4.3. **Next:** [07 · Running out: preemption and chunked prefill](07_preemption.ipynb).
