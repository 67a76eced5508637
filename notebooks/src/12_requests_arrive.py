# %% [markdown]
# # 12 · Requests arrive
#
# ## Before you start
#
# **You need:** chapters 03 and 06: static batches, reservations, and `schedule()`.
#
# **You will be able to:** read a latency curve and find its knee, say what moves it, name the two latencies that users
# feel, and explain how a server hands requests to an engine which never stops.
#
# **Minutes:** 45 to read and run, 50 for the exercises.

# %%
import asyncio
import random

from minivllm import SamplingParams
from minivllm.baselines import ReservationPolicy, StaticBatchScheduler, orca
from minivllm.bench.backends import make_baseline
from minivllm.bench.serve import serve as serve_for_real
from minivllm.bench.workloads import BenchRequest, with_arrivals
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import WORKLOAD, decode, encode, greedy, toy_llm
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.outputs import SequenceOutput
from minivllm.sampling_params import RequestOutputKind
from minivllm.scheduler import Scheduler
from minivllm.sequence import Sequence, SequenceGroup
from minivllm.server.async_llm import AsyncLLM
from minivllm.viz import new_figure, show

seed_all()

# %% [markdown]
# ## The problem
#
# So far every request was there when the engine began. A server has no such luck: requests come when they like, while
# the engine is in the middle of a step, and each has a user who waits. Two things follow, and this chapter is about
# both. Something has to take requests while the engine computes. And speed is no longer one number: "tokens per second"
# says nothing about the user who has been looking at an empty screen for ten seconds.
#
# ### An engine for coroutines
#
# `AsyncLLM` gives the engine a thread of its own, which does nothing but step. Everything else is handed to it as a
# function, and called between two steps. Here is the whole loop:

# %%
show_source(AsyncLLM._run, docstring=False)

# %% [markdown]
# Jobs, one step, jobs, one step. A new request is a job; so is an abort. What comes of a step goes back to the
# coroutine that waits for it. Watch three requests that arrive one after the other, the first of them our example
# request:

# %%
llm = toy_llm(num_blocks=16)
engine = AsyncLLM(lambda: llm.llm_engine)  # a function: an engine is best made in the thread that steps it
DELTA = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA)
arrived = {}


async def client(name, text):
    """Send a request and note the step in which each of its tokens came."""
    tokens = []
    async for output in engine.generate({"prompt_token_ids": encode(text)}, DELTA, name):
        tokens += output.outputs[0].token_ids
    arrived[name] = decode(tokens)


PROMPTS = {"ann": "Four score and seven years ago", "ben": "all men are created", "cleo": "the world will little note"}


async def three_clients():
    await asyncio.gather(*(client(*each) for each in PROMPTS.items()))
    return await engine.call(lambda inner: inner.stats().num_steps)


steps = await three_clients()
for name, text in sorted(arrived.items()):
    print(f"{name:<5} {text}")

# %% [markdown]
# And a reader that leaves? Its generator is closed, which hands an abort to the thread, and the blocks are free before
# the next step. To see it, the engine can be paused: then it steps when it is told to.

# %%
async def leaves():
    held = lambda: engine.call(lambda inner: inner.scheduler.kv.pool.num_used)
    await engine.pause()
    stream = engine.generate({"prompt_token_ids": encode(PROMPTS["ann"])}, DELTA, "dora")
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await engine.step()
    await first
    during = await held()
    await stream.aclose()
    return during, await held()


during, after = await leaves()
engine.shutdown()
print(f"blocks held: {during} after one step, {after} when the reader has left, with no step in between")

# %% [markdown]
# ## Predict, then run
#
# Now the second half: time. To measure without a stop watch we let steps cost what they cost on a real machine, more or
# less: reading the weights, which is the same for every step, and then something for each token. One *tick* is the
# price of the weights, and each token costs a twentieth of it. A step of 12 sequences, one token each, takes 1.6 ticks;
# a prompt of 40 takes 3. The scheduler and the memory manager are the real ones; the model is left out, because which
# tokens it would write makes no difference to the time.

# %%
TOKEN_COST = 0.05
LENGTHS = WORKLOAD * 6  # chapter 06's requests, six times over


def serve(rate, lengths=LENGTHS, scheduler_cls=Scheduler, kv_cls=KVCacheManager, num_blocks=48, budget=2048):
    """Requests arrive at `rate` per 100 ticks and are served; for each: when it came, and when its tokens came."""
    kv = kv_cls(num_blocks=num_blocks, block_size=4, enable_prefix_caching=False)
    scheduler = scheduler_cls(kv, max_num_seqs=12, max_num_batched_tokens=budget)
    rng, clock = random.Random(7), 0.0
    coming = [(clock := clock + rng.expovariate(rate / 100), i) for i in range(len(lengths))][::-1]
    served, now = [(arrival, []) for arrival, _ in coming[::-1]], 0.0
    while coming or scheduler.has_unfinished:
        if not scheduler.has_unfinished:
            now = max(now, coming[-1][0])  # idle until the next one comes
        while coming and coming[-1][0] <= now:
            prompt, output = lengths[i := coming.pop()[1]]
            seq = Sequence(i, [0] * prompt, seed=0)
            scheduler.add(SequenceGroup(str(i), None, [seq], greedy(output), prompt + output))
        plan = scheduler.schedule()
        now += 1 + TOKEN_COST * plan.num_scheduled_tokens
        tokens = [SequenceOutput(((0,),) * row.num_samples) for row in plan.scheduled]  # which ones, does not matter
        for group, _ in scheduler.update_from_output(plan, tokens):
            served[int(group.request_id)][1].append(now)
    return served


def normalized(served):
    """The paper's measure: from arrival to the last token, per token; the mean over the requests."""
    return sum((times[-1] - arrival) / len(times) for arrival, times in served) / len(served)


RESERVING = orca(ReservationPolicy.MAX, 64)
SYSTEMS = {
    "naive batching": {"scheduler_cls": StaticBatchScheduler, "kv_cls": RESERVING},
    "Orca-like": {"kv_cls": RESERVING},
    "paged": {},
}
RATES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
curves = {"naive batching": [normalized(serve(rate, **SYSTEMS["naive batching"])) for rate in RATES]}
print("rate    " + "  ".join(f"{rate:5}" for rate in RATES))
print("naive   " + "  ".join(f"{value:5.1f}" for value in curves["naive batching"]))

# %% [markdown]
# Read from left to right. At a low rate a request finds an empty machine; more traffic costs little. Somewhere
# the curve turns: requests come faster than they are served, the queue grows for as long as the run lasts, and so does
# the wait of each newcomer. That is the **knee**, and its place is the capacity of the system. Let us say a system
# *sustains* a rate while the latency is at most three times that of an idle machine.
#
# An idle machine takes 1.1 ticks per token, so naive batching sustains a rate of 4. Which is the highest of the rates
# above that paging with continuous batching sustains, in the same 48 blocks?

# %%
guess = None

# %%
for name in ("Orca-like", "paged"):
    curves[name] = [normalized(serve(rate, **SYSTEMS[name])) for rate in RATES]
idle = curves["paged"][0]
sustained = {name: max([0, *(r for r, v in zip(RATES, curve, strict=True) if v <= 3 * idle)]) for name, curve in curves.items()}
reveal(guess, sustained["paged"], "requests per 100 ticks")

# %% [markdown]
# ## How the code does it
#
# Nothing in the scheduler knows of a rate. The knee moves because a step serves more requests: reservations let three
# requests of 64 slots into 192 slots, paging lets in as many as their tokens fill. And nothing in the engine waits for
# a reader: what has not been read yet is merged into one output, so a slow reader costs no memory.

# %%
from minivllm.server.output_stream import OutputStream

show_source(OutputStream.put, docstring=False)

# %% [markdown]
# ### Two latencies
#
# The mean over whole requests hides what users feel. The **time to first token** (TTFT) is the empty screen. The **time
# per output token** (TPOT) is the speed at which text appears afterwards; it is the mean of the gaps between tokens,
# and a single gap is an **inter-token latency** (ITL). TTFT and ITL pull in opposite directions, and the budget of
# tokens per step decides: a large budget computes a waiting prompt at once, and all that run wait for that long step; a
# small one cuts the prompt in pieces. To see it, every fifth request gets a prompt of 160:

# %%
mixed = [(160 if i % 5 == 0 else prompt, output) for i, (prompt, output) in enumerate(LENGTHS[:40])]


def latencies(budget):
    """Mean TTFT, and the longest gap between two tokens of one request, in ticks."""
    served = serve(6, mixed, num_blocks=256, budget=budget)
    ttft = sum(times[0] - arrival for arrival, times in served) / len(served)
    gaps = [b - a for _, times in served for a, b in zip(times, times[1:])]
    return ttft, max(gaps)


budgets = (12, 16, 32, 64, 256)
by_budget = {budget: latencies(budget) for budget in budgets}
for budget, (ttft, gap) in by_budget.items():
    print(f"budget {budget:3}: first token after {ttft:5.1f} ticks, longest pause between two tokens {gap:4.1f}")

# %% [markdown]
# With 256 tokens per step, a whole prompt goes through at once, and readers see a pause as long as eight ordinary
# steps. With 16 the text flows evenly, and the first token comes later: the prompt needs ten steps or more, each of
# which pays for the weights again. There is no best value. A chat wants even text, a program that waits for the whole
# answer does not care.
#
# ## The picture

# %%
LOOKS = {"naive batching": ("s:", "#D55E00"), "Orca-like": ("D--", "#0072B2"), "paged": ("o-", "#009E73")}

def draw(rates, curves, **axis):
    fig = new_figure(7, 3.4)
    axes = fig.subplots()
    for name, (look, color) in LOOKS.items():
        axes.plot(rates, curves[name], look, color=color, label=name)
    axes.set(**axis)
    axes.legend()
    return fig


fig = draw(RATES, curves, xlabel="requests per 100 ticks", ylabel="ticks per token", ylim=(0, 16))
fig.axes[0].axhline(3 * idle, color="#999999", linewidth=1)
show(
    fig,
    alt=f"Latency per token against the request rate. Within three times the idle latency of {idle:.1f} ticks stay naive "
    f"batching up to a rate of {sustained['naive batching']}, the Orca-like system up to {sustained['Orca-like']}, paging "
    f"up to {sustained['paged']}.",
)

# %% [markdown]
# This is the shape of the paper's Figure 12: three flat lines which turn upwards one after the other.
#
# ### With a real model and a real clock
#
# The same three systems with SmolLM2 and a stopwatch: twelve requests, in memory for three reservations. How fast
# your computer is decides which rates are high. So the unit of the rate is one request in the time that a request takes
# alone: at 1, a server that takes one at a time could just keep up.

# %% tags=["machine"]
MEMORY = {"num_blocks": 12, "max_model_len": 64, "enable_prefix_caching": False}  # of 16 tokens
BACKENDS = {"naive batching": "static-contiguous", "Orca-like": "orca-max", "paged": "minivllm"}
real = {name: make_baseline(each, "smollm2-135m-instruct", MEMORY).llm.llm_engine for name, each in BACKENDS.items()}
requests = [BenchRequest(tuple(range(100, 100 + prompt)), output) for prompt, output in WORKLOAD]
warm_up = [serve_for_real(system, requests) for system in real.values()]  # first use of memory and kernels
alone = sum(serve_for_real(real["paged"], [each])[1] for each in requests) / len(requests)


def ms_per_token(system, rate):
    served, _ = serve_for_real(system, with_arrivals(requests, rate / alone, seed=3))
    return round(1000 * normalized([(each.arrival, each.tokens) for each in served]))


REAL_RATES = (1, 2, 4, 8)
measured = {name: [ms_per_token(system, rate) for rate in REAL_RATES] for name, system in real.items()}
told = "; ".join(f"{name} {', '.join(map(str, times))}" for name, times in measured.items())
figure = draw(REAL_RATES, measured, xlabel="requests in the time of one alone", ylabel="ms per token", ylim=(0, None))
show(figure, alt=f"A request alone takes {alone:.2f} s. ms per token at rates 1, 2, 4 and 8: {told}.")

# %% [markdown]
# Twelve requests are a sketch. `python -m minivllm bench serve` measures the curve properly, and `bench http` puts a
# server in between.
#
# ## Claims

# %%
outputs = llm.generate([{"prompt_token_ids": encode(text)} for text in PROMPTS.values()], greedy(6), use_tqdm=False)
expected = {name: decode(each.outputs[0].token_ids) for name, each in zip(PROMPTS, outputs, strict=True)}
claim("coroutines get the texts that each prompt gets alone", arrived == expected, measured=f"{len(arrived)} texts")
claim("three requests together took fewer steps than one after the other", steps < 18, measured="fewer than 18")
claim("a reader that leaves gives its blocks back without a step", during > 0 and after == 0, measured=f"{during} blocks")
claim(
    "paging sustains a higher rate than reservations, and both a higher one than naive batching",
    sustained["paged"] > sustained["Orca-like"] > sustained["naive batching"],
    measured=", ".join(f"{name} {rate}" for name, rate in sustained.items()),
)
claim(
    "on an idle machine the three are alike",
    all(curve[0] < 1.5 * idle for curve in curves.values()),
    measured=", ".join(f"{name} {curve[0]:.2f}" for name, curve in curves.items()) + " ticks per token",
)
claim(
    "a small budget shortens the pauses between tokens",
    by_budget[16][1] < 0.5 * by_budget[256][1],
    measured=f"{by_budget[16][1]:.1f} against {by_budget[256][1]:.1f} ticks",
)
claim(
    "and makes the first token come later",
    by_budget[16][0] > by_budget[256][0],
    measured=f"{by_budget[16][0]:.1f} against {by_budget[256][0]:.1f} ticks",
)

# %% [markdown]
# ## Exercises
#
# In `notebooks/exercises/ch12_requests_arrive.py`:
#
# - **ex12a** `steps_until_seat`: how long a newcomer would wait. A server that knows it can say no at once.
# - **ex12b** `Impatient`: a scheduler that does no work for clients which have given up.
# - **ex12c** `FairQueue`: a user with forty requests does not push aside a user with one.
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex12a`:
#
#     %load_ext minivllm.course
#     %check ex12a
#
# Without a test: start `python -m minivllm serve --num-blocks 24`, open it in a browser, press Pause, send three
# prompts, and say before each Step what will happen.
#
# ## Check yourself
#
# <details><summary>A benchmark sends a new request whenever the last one is answered. Why does it never show a
# knee?</summary>
#
# It slows down with the server: the load is always what the server can do. Users do not wait for each other; the
# arrivals have to be drawn beforehand (an open loop).
# </details>
#
# <details><summary>Beyond the knee, is the latency of a system a number?</summary>
#
# No. The queue grows for as long as the run lasts, so a run of twice the length gives about twice the wait. Only the
# place of the knee says something.
# </details>
#
# <details><summary>Why is an abort a job of the engine's thread, and not done at once?</summary>
#
# In the middle of a step the plan has been made: rows of it will be written into the blocks. Freed now, they could be
# given to another request and written twice. Between two steps nothing is under way.
# </details>
#
# ## In real vLLM
#
# `AsyncLLM` has the same name and the same `generate`. Its engine core is another process, reached by sockets, so that
# the event loop, the tokenizer and the HTTP server never take the interpreter from the loop that steps; requests and
# outputs cross as messages. Where several engines run, a load balancer decides which of them takes a request. Chunked
# prefill is on, with a budget of 2,048 to 8,192 tokens: on a GPU a token costs far less than a twentieth of the
# weights, so the budget can be larger before readers notice. The paper measures with Poisson arrivals and gives vLLM
# 1.7 to 2.7 times the request rate of Orca (Oracle) and 2.7 to 8 times that of Orca (Max), on chats.
#
# ## Key points
#
# - One thread steps; requests, aborts and questions are functions which it calls between two steps.
# - Latency against rate is flat, then turns. The knee is the capacity; beyond it there is no latency, only a queue.
# - Paging moves the knee because more requests fit into a step.
# - TTFT and the pauses between tokens (ITL) are two different promises; the token budget trades one for the other.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), section 5. **Next:** [13 · Two workers, one answer](13_two_workers.ipynb).
