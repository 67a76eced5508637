# %% [markdown]
# # 07 · Running out: preemption and chunked prefill
#
# ## Before you start
#
# **You need:** chapter 04: what `allocate_slots` answers. Chapter 06: the rule "catch up", and the two budgets.
#
# **You will be able to:** say which request gives way when memory runs out, why, and what that costs; and choose a
# token budget by the longest time that a generating request has to wait.
#
# **Minutes:** 40 to read and run, 55 for the exercises.

# %%
from itertools import pairwise

from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import WORKLOAD, encode, greedy, real_llm, run_workload, toy_llm, workload_prompts
from minivllm.course.turn import turn
from minivllm.scheduler import Scheduler
from minivllm.viz.trace import Trace
from minivllm.viz import blocks_in_use, gantt, new_figure, show, trace_player

seed_all()

# %% [markdown]
# ## The problem
#
# Blocks are handed out when they are needed, and no request has to say how long its answer will get. That is why paging
# wastes so little. It has a price: the pool can run out *in the middle of an answer*. SmolLM2, with six blocks:

# %% tags=["machine"]
story = real_llm(num_blocks=6)
answers = story.generate(["The capital of France is", "Water boils at a"], greedy(10), use_tqdm=False)
print(*[answer.prompt + answer.outputs[0].text for answer in answers], sep="\n")
steps = story.llm_engine.trace.steps
print("preempted:", *[f"request {name} in step {step.step}" for step in steps for name in step.preempted])

# %% [markdown]
# The text shows nothing of it. How is that possible? Chapter 06 ended with twelve seats and 64 blocks. How many blocks
# did that take?


# %%
def run(num_blocks, **parts):
    """Chapter 03's twelve requests at once, on an engine with so many blocks: trace, token ids, engine."""
    llm = toy_llm(**{"num_blocks": num_blocks, "max_num_seqs": 12, "max_model_len": 64} | parts)
    trace, outputs = run_workload(llm)
    return trace, [output.outputs[0].token_ids for output in outputs], llm.llm_engine


def tokens_of(record):
    """Tokens that went through the model in one step."""
    return sum(row.num_tokens for row in record.scheduled)


def tokens_computed(trace):
    """Tokens that went through the model in all steps."""
    return sum(tokens_of(record) for record in trace.steps)


plenty, _, _ = run(64)
print(
    f"64 blocks: {len(plenty.steps)} steps, {tokens_computed(plenty)} tokens computed, "
    f"at most {max(blocks_in_use(plenty))} blocks in use"
)
try:
    run(10)
except ValueError as error:
    print(f"10 blocks: {error}")

# %% [markdown]
# With fewer than 37 blocks these twelve requests do not fit side by side. With fewer than 11 one of them does not even
# fit alone, and the engine says so before it begins. In between there are three answers:
#
# - **Reserve** for the longest answer of every request. Then memory cannot run out, and chapter 03 measured what that
#   wastes.
# - **Wait** until a request finishes. If all of them wait, each holding the blocks that another one needs, none ever
#   finishes.
# - **Take blocks back** from a running request, and let that one start again later. This is **preemption**.
#
# ## Predict, then run
#
# The twelve requests need 262 tokens computed, each once. In 24 blocks some of the requests will be preempted and come
# back. How many tokens will the model compute in all?

# %%
guess = None

# %%
tight, texts, _ = run(24)
reveal(guess, tokens_computed(tight), "tokens")
num_preemptions = sum(len(record.preempted) for record in tight.steps)
print(f"{num_preemptions} preemptions, {len(tight.steps)} steps")

# %% [markdown]
# ## How the code does it
#
# Chapter 06 gave one rule: each step, let `num_computed_tokens` catch up with `len(seq)`. Then coming back needs no
# code at all. Take the blocks, set `num_computed_tokens` to 0, put the request into the waiting queue: what the next
# steps do with it follows from the rule.

# %%
show_source(Scheduler.preempt)

# %% [markdown]
# A `group` is a request; "swap" comes below. Nothing here touches the tokens. The prompt and the answer so far stay
# known; only their keys and values are lost. When the request comes back, its answer is treated like a longer prompt:
# many tokens in one step, of which only the last one samples. This is preemption by **recompute**.
#
# Which request is the victim? The `while` that chapter 06 promised to explain:

# %%
show_source(Scheduler.schedule_running)

# %% [markdown]
# `self.running` is in order of admission. The loop goes through it from the oldest on, and `self.running[-1]` is the
# victim, at the other end: the **newest**. Three things follow.
#
# - *Every request finishes.* The oldest is not a victim while another request runs, and alone it fits: that was checked
#   when it came. So it makes progress in every step until it is done; then there is another oldest.
# - *No plan is undone.* A request with a place in this step stands before `index`, and victims come from behind it.
# - *Order is kept.* The victim goes to the head of `waiting`, since it came before every request there.
#
# The newest may be the very request that asked. Then it has given way itself and the loop returns. Its own blocks are
# free now, and might be enough, but it no longer runs: it waits. And after a preemption `schedule` admits no request in
# the same step: a newcomer would take the blocks just freed for the running ones.
#
# ### One preemption, step by step
#
# The example request and a companion of six words, five new tokens each, in a pool of 4 blocks of 4 slots. Both have
# 2 blocks, and both need a third one for their ninth token.

# %%
llm = toy_llm(num_blocks=4, max_num_seqs=2, trace=Trace())
prompts = ["Four score and seven years ago", "all men are created equal now"]
llm.generate([{"prompt_token_ids": encode(text)} for text in prompts], greedy(5), use_tqdm=False)
small = llm.llm_engine.trace
for record in small.steps:
    rows = ", ".join(
        f"request {row.request_id} computes {row.start}..{row.start + row.num_tokens - 1}"
        for row in record.scheduled
    )
    gone = f"   preempted: {', '.join(record.preempted)}" if record.preempted else ""
    print(f"step {record.step}: {rows}; free blocks {len(record.free)}{gone}")

# %% [markdown]
# In step 3 request 0 asks for a block and there is none. Request 1, the newest, gives up its two. In step 4 it still
# waits: its 9 tokens need 3 blocks, and one is free. In step 5 it computes positions 0 to 8 in one go and samples its
# next token, as if nothing had happened. Eight of these nine positions had been computed before.
#
# ### What it costs
#
# It costs what the victim had computed. The trace knows that, because each record says how many slots of each sequence
# are filled. And there are two ways to pay less. With the prefix cache (chapter 09) a victim that comes back soon finds
# some of its old blocks, not yet overwritten. With `preemption_mode="swap"` the blocks are copied to memory of the CPU,
# if `swap_space_bytes` has room for them, and copied back later; nothing is computed twice.


# %%
def tokens_lost(trace):
    """What all victims together had computed when their blocks were taken."""
    lost = 0
    for before, record in pairwise(trace.steps):
        filled = {before.requests[seq_id]: count for seq_id, count in before.filled.items()}
        lost += sum(filled[request_id] for request_id in record.preempted)
    return lost


swap = {"preemption_mode": "swap", "swap_space_bytes": 2**17}
cached, cached_texts, _ = run(24, enable_prefix_caching=True)
swapped, swapped_texts, _ = run(24, **swap)
for name, trace in {"recompute": tight, "with prefix cache": cached, "swap": swapped}.items():
    moved = sum(len(record.blocks_to_swap_out) + len(record.blocks_to_swap_in) for record in trace.steps)
    print(
        f"{name:<18} {len(trace.steps)} steps, {tokens_computed(trace)} tokens computed, "
        f"of these again {tokens_computed(trace) - 262:>2}, blocks copied {moved}"
    )

# %% [markdown]
# Swap looks free, since copies are not counted here. But the link between a GPU and the CPU is slow, and it is used
# block by block, while more tokens in a step cost little. The paper measures both (section 7.3): recompute is never
# much slower, and for small blocks far quicker. It is the default.
#
# ### The other thing that makes requests wait
#
# A preempted request waits. So does, for a moment, every request which shares a step with a long prompt: a step ends
# for all of its rows at the same time. Here three requests are generating, and after five steps a prompt of 90 tokens
# comes in. Chunked prefill cuts it into pieces, as large as `max_num_batched_tokens` allows. We count the **gap**: the
# tokens that the model computes from one token of a request to its next.


# %%
def with_a_late_prompt(budget):
    """Three requests generate 24 tokens each; a prompt of 90 tokens joins after 5 steps."""
    lengths = ((6, 24), (4, 24), (5, 24), (90, 6))
    engine = toy_llm(max_num_seqs=4, max_num_batched_tokens=budget, trace=Trace()).llm_engine
    for number, (prompt, (_, answer)) in enumerate(zip(workload_prompts(lengths), lengths, strict=True)):
        for _ in range(5 if number == 3 else 0):
            engine.step()
        engine.add_request(str(number), {"prompt_token_ids": prompt}, greedy(answer))
    while engine.has_unfinished_requests():
        engine.step()
    return engine.trace


def work_at_samples(trace, request_id):
    """How many tokens the model has computed in all, at each token of one request."""
    work, seen = 0, []
    for record in trace.steps:
        work += tokens_of(record)
        seen += [work for row in record.scheduled if row.request_id == request_id and row.num_samples]
    return seen


budgets = (128, 64, 32, 16, 8, 4)
late = {budget: with_a_late_prompt(budget) for budget in budgets}
gaps, waits = [], []
for budget, trace in late.items():
    gaps.append(max(b - a for name in "012" for a, b in pairwise(work_at_samples(trace, name))))
    waits.append(work_at_samples(trace, "3")[0] - sum(map(tokens_of, trace.steps[:5])))
    print(
        f"budget {budget:>3}: longest gap {gaps[-1]:>2}, the long prompt answers after {waits[-1]:>3} tokens, "
        f"{len(trace.steps)} steps, {tokens_computed(trace)} tokens in all"
    )

# %% [markdown]
# With 128 tokens per step the whole prompt is one piece, and the three requests wait for 93 tokens of work: the
# prompt's 90 and one each. With 16 none of them waits for more than 16. Running requests come first, each takes its one
# token, and the long prompt gets the rest; so a budget that cuts the prompt *is* the longest gap. And the work is the
# same, 179 tokens: each piece finds the keys and values of those before it in the blocks.
#
# Two things get worse. The answer to the long prompt begins later, because the prompt shares its steps with others. And
# small budgets make more steps. Each reads all weights: 49 steps in place of 24 are a waste.
#
# ## The picture
#
# The twelve requests in 24 blocks. A heavy frame is a prompt, or a request which catches up after a preemption. First
# 9, 8 and 7 are preempted, the newest first, later 11, three times, and 10. Turn the pool and
# the budget: what becomes of the work?


# %%
def twelve(num_blocks=24, budget=2048):
    """The plan of the twelve requests with this pool and this token budget."""
    trace, _, _ = run(num_blocks, max_num_batched_tokens=budget)
    gone = [name for record in trace.steps for name in record.preempted]
    return gantt({f"{num_blocks} blocks": trace}), (
        f"12 requests in {num_blocks} blocks, at most {budget} tokens per step: {len(trace.steps)} steps, "
        f"{tokens_computed(trace)} tokens computed, {len(gone)} preemptions, of requests {' '.join(gone) or '-'}."
    )


turn(twelve, num_blocks=(11, 16, 24, 32, 37, 64), budget=(12, 16, 32, 2048))

# %% [markdown]
# Next, what one step costs every request in it. Each bar is a step; its height is the wait of all generating requests.

# %%
fig = new_figure(9, 2.8)
for ax, budget in zip(fig.subplots(1, 2, sharey=True), (128, 16), strict=True):
    steps = late[budget].steps
    long = [sum(row.num_tokens for row in record.scheduled if row.request_id == "3") for record in steps]
    others = [tokens_of(record) - count for record, count in zip(steps, long, strict=True)]
    ax.bar(range(len(steps)), others, color="#0072B2", label="the three that were there first")
    ax.bar(range(len(steps)), long, bottom=others, color="#E69F00", hatch="///", label="the long prompt")
    ax.axhline(budget, color="#222222", lw=0.8, ls="--")
    ax.set(title=f"max_num_batched_tokens = {budget}", xlabel="step", ylabel="tokens computed", ylim=(0, 140))
    ax.spines[["top", "right"]].set_visible(False)
ax.legend(loc="upper right", fontsize=8)
highest = [max(map(tokens_of, late[budget].steps)) for budget in (128, 16)]
show(
    fig,
    alt=f"Tokens computed in each step. With a budget of 128 (dashed) one step has {highest[0]}; with a budget of 16 "
    f"none has more than {highest[1]}, and the long prompt is spread over several steps.",
)

# %%
fig = new_figure(6.5, 3.2)
ax = fig.subplots()
ax.plot(budgets, gaps, "o-", color="#0072B2", label="longest gap")
ax.plot(budgets, waits, "s--", color="#D55E00", label="until the long prompt answers")
ax.set_xscale("log", base=2)
ax.set_xticks(budgets, [str(budget) for budget in budgets])
ax.set(xlabel="max_num_batched_tokens", ylabel="tokens computed", ylim=(0, 170))
ax.spines[["top", "right"]].set_visible(False)
ax.legend(fontsize=8)
show(
    fig,
    alt=f"From a budget of 128 down to 4 the longest gap shrinks from {gaps[0]} to {gaps[-1]} tokens, while the long "
    f"prompt waits for {waits[0]} up to {waits[-1]} tokens of work.",
)

# %% [markdown]
# And the preemption of the beginning: the newest request loses its blocks; their content stays (hatched).

# %% tags=["machine"]
trace_player(story.llm_engine.trace)

# %% [markdown]
# ## Claims
#
# The hardest case: 11 blocks, just enough for the longest request, and only 16 tokens per step. Each request must get
# the text that it gets alone.

# %%
llm = toy_llm()
alone = [
    llm.generate({"prompt_token_ids": prompt}, greedy(answer), use_tqdm=False)[0].outputs[0].token_ids
    for prompt, (_, answer) in zip(workload_prompts(), WORKLOAD, strict=True)
]
hardest, hardest_texts, engine = run(11, max_num_batched_tokens=16)
count = sum(len(record.preempted) for record in hardest.steps)
claim(
    "in 11 blocks every request finishes, with the text it gets alone",
    hardest_texts == alone and count > 0,
    measured=f"{count} preemptions, {len(hardest.steps)} steps",
)
claim("afterwards all blocks are free", engine.scheduler.kv.pool.num_free == 11)
most = max(map(tokens_of, hardest.steps))
claim("no step exceeds its budget of 16 tokens", most <= 16, measured=f"at most {most}")
same = texts == cached_texts == swapped_texts == alone
claim("in 24 blocks: no text changes, be it by recompute, prefix cache or swap", same)

# %%
claim(
    "recompute costs what the victims had computed, and nothing else",
    tokens_computed(tight) - 262 == tokens_lost(tight) > 0 and tokens_computed(swapped) == 262,
    measured=f"{tokens_lost(tight)} tokens for {num_preemptions} preemptions",
)
pairs = [pair for trace in (tight, hardest) for pair in pairwise(trace.steps) if pair[1].preempted]
is_newest = [record.preempted == before.running[::-1][: len(record.preempted)] for before, record in pairs]
claim("the victim is always the newest", all(is_newest), measured=f"{len(pairs)} steps that preempt")
stayed = [set(before.running) - set(record.preempted) for before, record in pairs]
rows = [{row.request_id for row in record.scheduled} for _, record in pairs]
claim("a step that preempts admits no request, its victims included", all(map(set.issubset, rows, stayed)))
queues = [[*record.running, *record.waiting] for trace in (tight, hardest) for record in trace.steps]
in_order = all(queue == sorted(queue, key=int) for queue in queues)
claim("running, then waiting requests: in every step in the order in which they came", in_order)

# %%
claim(
    "the longest gap is the budget; or, if that is less, the whole prompt and a token for each of the three",
    gaps == [min(budget, 90 + 3) for budget in budgets],
    measured=f"{gaps} for budgets {list(budgets)}",
)
claim("a prompt in pieces costs no token more", {tokens_computed(trace) for trace in late.values()} == {179})

# %% [markdown]
# ## Exercises
#
# In `notebooks/exercises/ch07_preemption.py`:
#
# - **ex07a** `preempt`: choose the victims, give their blocks back, keep the order. Mind the request which gives way
#   itself.
# - **ex07b** `next_chunks`: how many tokens of each request the next step computes, and which requests sample.
# - **ex07c** `breaking_workload` (goes further): find requests that bring a bad policy to a standstill, and some for
#   which even this engine does most of its work twice.
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex07a`:
#
#     %load_ext minivllm.course
#     %check ex07a
#
# ## Check yourself
#
# <details><summary>Why not preempt the largest request? It frees the most blocks.</summary>
#
# It has also computed the most, so bringing it back costs most. And it may be the oldest: then two long requests can
# throw each other out again and again.
# </details>
#
# <details><summary>A request is preempted after 30 of its 33 answer tokens. What does its user see?</summary>
#
# A pause, and then the last three tokens. The 30 tokens are known; only keys and values are computed again, those of
# the prompt too.
# </details>
#
# <details><summary>A prompt of 90 tokens waits, two blocks are free, and the budget is 8. Our engine admits its first
# 8 tokens. Is that wise?</summary>
#
# Often not. If the running requests need the next blocks, the newcomer is the newest: it loses its 8 tokens, comes
# back, and computes them again. The order is kept, but much can be wasted. Exercise ex07c shows how much.
# </details>
#
# ## In real vLLM
#
# [`vllm/v1/core/sched/scheduler.py`] has the same loop: `allocate_slots` until it is not `None`, `self.running.pop()`,
# `_preempt_request`, and no request is admitted in a step that preempted. Swap
# went away with the first engine: V1 only recomputes, and its prefix cache makes that cheaper. The last question above
# is real: in one report generation fell from 100 tokens per second to 1.5, while a prompt of 100,000 was admitted
# again and again (pull request #37307). With `scheduler_reserve_full_isl`, today the default, a
# request is admitted only when its whole input fits. A second option, `watermark` (ours has it too, 0 unless asked
# for), is the share of the blocks which a newcomer must leave free.
#
# [`vllm/v1/core/sched/scheduler.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/core/sched/scheduler.py
#
# ## Key points
#
# - Memory given out late can run out. Then the newest request gives way, so that the oldest makes progress in every
#   step.
# - Preemption is `num_computed_tokens = 0` and a place at the head of the queue; the rule "catch up" does the rest.
# - Preemption costs what the victim had computed, and no token of its text.
# - The token budget bounds the gap of every request which generates and is not preempted; a smaller budget makes long
#   prompts wait instead.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), section 4.5. **Next:** [08 · The sampler](08_sampler.ipynb).
