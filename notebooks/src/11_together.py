# ---
# jupyter:
#   minivllm:
#     timed: true
# ---

# %% [markdown]
# # 11 · Putting it together
#
# ## Before you start
#
# **You need:** chapters 02 to 06, and 1.6 GB of free memory for a real model (its weights take 0.65 GB).
#
# **You will be able to:** say how much of the gain of a serving system comes from the KV cache, from batching, from
# continuous batching and from paging, and measure each alone on your own machine.
#
# **Minutes:** 35 to read and run, 60 for the exercises.
#
# The model is SmolLM2-135M-Instruct, a trained Llama with 30 layers. It is fetched as a package when it is used for
# the first time (93 MB). The seconds in this notebook are processor time on one core of the machine it was built on;
# yours will differ. Everything that is *counted* will not.

# %%
import time

from minivllm import LLM, SamplingParams
from minivllm.baselines import ReservationPolicy, StaticBatchScheduler, orca
from minivllm.baselines.no_cache import greedy_without_cache, llama_logits
from minivllm.bench.backends import HfStaticBackend, load_hf_model
from minivllm.bench.report import processor_name
from minivllm.bench.roofline import step_roofline
from minivllm.bench.workloads import BenchRequest
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.engine import LLMEngine
from minivllm.viz.trace import Trace
from minivllm.viz import (
    blocks_in_use,
    memory_area,
    memory_use,
    show,
    throughput_waterfall,
    tokens_per_second,
    tokens_per_step,
    wasted_share,
)

seed_all()

# %% [markdown]
# ## The problem
#
# Eighteen requests arrive at the same time. Some want a word, some a sentence. The memory for keys and values is fixed:
# 256 slots, which is 11 MiB for this model. There are 12 seats, so some requests have to wait in any case. How do you
# get the most text per second out of one machine?

# %%
MAX_MODEL_LEN = 64
questions = [
    "The capital of France is",
    "Water boils at",
    "My favourite season is autumn because",
    "The first president of the United States was",
    "To make bread you need",
    "The moon is",
    "A dog and a cat met in the garden.",
    "In the year 1969",
    "The largest ocean on Earth is",
    "Once upon a time there was a small village where",
    "The opposite of cold is",
    "Three things to see in Rome are",
]
tokens_wanted = [3, 10, 2, 4, 2, 14, 4, 2, 6, 3, 12, 4]  # a few long ones among short ones, as in chapter 03
prompts, answers = questions + questions[:6], tokens_wanted + tokens_wanted[:6]
params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in answers]


class ProcessorTrace(Trace):
    """A trace by the clock of this process: what other programs do in the meantime does not count."""

    def __init__(self):
        super().__init__(start_time=time.process_time())

    def record(self, plan, updated, scheduler, now):
        super().record(plan, updated, scheduler, time.process_time())


options = {"num_blocks": 32, "block_size": 8, "max_model_len": MAX_MODEL_LEN, "enable_prefix_caching": False}


def run(**parts):
    """Run the workload on a fresh engine with some parts exchanged; returns its trace, its texts and the engine."""
    llm = LLM("smollm2-135m-instruct", **(options | {"max_num_seqs": 12} | parts))
    llm.generate("Hello", SamplingParams(max_tokens=2), use_tqdm=False)  # the first call of all is slow
    llm.llm_engine.trace = trace = ProcessorTrace()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    llm.llm_engine.trace = None
    return trace, [output.outputs[0] for output in outputs], llm


one_by_one, texts, llm = run(max_num_seqs=1)
print(llm.llm_engine.memory(), "\n")
for prompt, text in list(zip(prompts, texts, strict=True))[:4]:
    print(f"{prompt!r} -> {text.text!r}")

# %% [markdown]
# Real words, though not always true: 135 million parameters are few, so do not learn history here.
#
# One after the other, with paging and a KV cache, is our starting point. Even that is far from the bottom. For a
# single request of 12 tokens, count and time what happens without a KV cache, as in chapter 01:

# %% tags=["machine"]
prompt_ids = [llm.get_tokenizer().encode(prompt) for prompt in prompts]
token_ids, twelve = prompt_ids[0], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
start = time.process_time()
without = greedy_without_cache(llama_logits(llm.llm_engine.runner.model), token_ids, 12)
middle = time.process_time()
(output,) = llm.generate({"prompt_token_ids": token_ids}, twelve, use_tqdm=False)
end = time.process_time()
del llm  # each run below loads the model anew; one at a time is enough
P = len(token_ids)
print(
    f"without KV cache: {12 * P + 66} positions, {middle - start:.2f} s    with: {P + 11} positions, {end - middle:.2f} s"
)

# %% [markdown]
# Eight times as many positions, and yet nothing like eight times as many seconds. For so short a text, a step costs
# little more than reading the weights once, some 540 MB, whether one row goes through them or seventeen. With 1,000
# tokens it would be different: then the rows themselves are the work, up to a thousand in a step in place of one.
# Remember that fact. It makes a wasteful loop look harmless here, and batching lives on it: the rows of a step may as
# well belong to different people.
#
# ## Predict, then run
#
# Five systems, on the same 256 slots:
#
# | | reserve `max_model_len` for each | blocks of 8 on demand |
# |---|---|---|
# | one request at a time | | A |
# | static batches | B: naive batching | C: paging alone |
# | continuous batching | D: the best before 2023 | E: minivllm |
#
# A takes 101 steps, one for each token. B takes 60, because its reservations let only four requests in. How many steps
# does E take?

# %%
guess = None

# %%
reserving = orca(ReservationPolicy.MAX, MAX_MODEL_LEN)
static, texts_static = run(scheduler_cls=StaticBatchScheduler, kv_cache_manager_cls=reserving)[:2]
static_paged, texts_static_paged = run(scheduler_cls=StaticBatchScheduler)[:2]

# %%
continuous, texts_continuous = run(kv_cache_manager_cls=reserving)[:2]

# %%
paged, texts_paged = run()[:2]
reveal(guess, len(paged.steps), "steps")

# %% [markdown]
# ## How the code does it
#
# Nothing new. Look once more at the three calls of a step: the parts we exchanged are behind the first one. The model,
# the kernels and the sampler are the same in all five systems.

# %%
show_source(LLMEngine.step)

# %%
systems = {
    "A one at a time": one_by_one,
    "B static, reserved": static,
    "C static, paged": static_paged,
    "D continuous, reserved": continuous,
    "E continuous, paged": paged,
}
steps = {name[0]: len(trace.steps) for name, trace in systems.items()}
at_once = {name[0]: max(len(record.scheduled) for record in trace.steps) for name, trace in systems.items()}
print(f"{'':<24}{'steps':>6}{'most at once':>14}{'tokens/step':>13}{'empty slots':>13}")
for name, trace in systems.items():
    print(
        f"{name:<24}{len(trace.steps):>6}{at_once[name[0]]:>14}{tokens_per_step(trace):>13.2f}"
        f"{wasted_share(trace):>13.1%}"
    )

# %% [markdown]
# Read it column by column. *Most at once*: reservations of 64 slots let four requests in, blocks fill all twelve seats.
# *Tokens/step* is throughput in its purest form: how much text one pass over the weights yields. *Empty slots* is the
# share of the held memory that holds nothing.
#
# ### How much is due to what?
#
# Compare the cells of the table in pairs. Paging alone (B to C) and continuous batching alone (B to D):

# %%
paging, continuous_alone, together = (steps["B"] / steps[name] for name in "CDE")
print(f"paging alone {paging:.2f}, continuous batching alone {continuous_alone:.2f}")
print(f"their product {paging * continuous_alone:.2f}, both together {together:.2f}")
print(f"paging where batching is continuous already: {steps['D'] / steps['E']:.2f}")
print(f"continuous batching where memory is paged already: {steps['C'] / steps['E']:.2f}")

# %% [markdown]
# The factors do **not** multiply. Both ideas fill the same empty seats, and a seat can be filled only once. With twelve
# seats the 18 requests make two static batches, each as long as its longest answer of 14 tokens; that leaves less for
# continuous batching to win than four seats do. And no schedule takes fewer than 14 steps. So "how much is due to
# paging?" has no single answer: it depends on what was there before. (If all requests had seats at once, static and
# continuous batching would be the same. That is why there are more requests than seats.)
#
# ### Why are 27 % empty, although paging wastes so little?
#
# Chapter 05 had 7 % of empty slots, and the paper has less than 4 %. There is no contradiction. Of its last block a
# sequence leaves, on average, half a block empty: $(S - 1) / 2$ slots for blocks of $S$. The *share* depends on how
# many tokens stand in front of them:

# %%
mean_length = sum(use.used for use in memory_use(paged)) / sum(len(record.scheduled) for record in paged.steps)
for name, block_size, tokens in (
    ("this chapter", 8, mean_length),
    ("chapter 05", 4, 19.3),
    ("the paper's chats", 16, 161 + 338 / 2),
):
    empty = (block_size - 1) / 2
    print(f"{name:<18} blocks of {block_size:>2}, {tokens:5.1f} tokens in a sequence: {empty / (tokens + empty):.1%} empty")

# %% [markdown]
# (The paper's chats: prompts of 161 and answers of 338 tokens on average, half of the answer written.) Our sequences
# are very short and our blocks are not. With texts of a usual length the last block hardly matters.
#
# ## The picture
#
# From A to E there are two ways. Each bar says how much it gains on the one above it, and on the first. Beside them,
# the same requests by Hugging Face's `generate`, in static batches of twelve. Its cache grows with the longest of the
# batch, so memory, which is what limits B, does not limit it.

# %% tags=["machine"]
hf = HfStaticBackend(load_hf_model("smollm2-135m-instruct", "float32", "cpu"), max_batch_size=12)
requests = [BenchRequest(tuple(ids), count) for ids, count in zip(prompt_ids, answers, strict=True)]
hf.run(requests[:2])  # the first call of all is slow
start = time.process_time()
hf.run(requests)
hf_rate = sum(answers) / (time.process_time() - start)
hf_per_step = sum(answers) / (max(answers[:12]) + max(answers[12:]))  # a step for each token of the longest
del hf

# %% [markdown]
# First paging, then continuous batching:

# %% tags=["machine"]
rates = {name[0]: tokens_per_second(trace) for name, trace in systems.items()}


def show_way(names):
    """The bars of some of the systems, in this order."""
    way = {name: trace for name, trace in systems.items() if name[0] in names}
    counted = ", ".join(f"{name[0]} {tokens_per_step(trace):.1f}" for name, trace in way.items())
    timed = ", ".join(f"{name} {rates[name]:.0f}" for name in names)
    show(
        throughput_waterfall(way, {"Hugging Face, static": (hf_per_step, hf_rate)}),
        alt=f"Output tokens per step: {counted}, Hugging Face {hf_per_step:.1f}; output tokens per second on one core of "
        f"{processor_name()}: {timed}, Hugging Face {hf_rate:.0f}.",
    )


show_way("ABCE")

# %% [markdown]
# First continuous batching, then paging:

# %% tags=["machine"]
show_way("ABDE")

# %% [markdown]
# The two panels do not show the same factors. A step with twelve rows is more work than a step with one: weights are
# read once, but there is more to multiply, and on a CPU multiplication is not free. On a GPU that
# extra work is much smaller, and batching pays even more.
#
# Hugging Face has C's bar on the left and a far shorter one on the right: its schedule is C's, its steps take several
# times as long. So what the left panel shows of E's lead is scheduling and paging, and the rest faster kernels.
#
# ### Where does a step's time go?
#
# The roofline of chapter 06, with a point for each part of a step of one sequence, and of twelve:

# %% tags=["machine"]
llm = LLM("smollm2-135m-instruct", **options | {"max_num_seqs": 12, "num_blocks": 128})
figure, sentence = step_roofline(llm, (prompt_ids[0] * 8)[:40], row_counts=(1, 12))
del llm
show(figure, alt=sentence)

# %% [markdown]
# Twelve rows move the products to the right: twelve uses for the same bytes. Attention does not move to the right, as
# each sequence has keys and values of its own. The rest is norms, sampling and the Python between two steps: all layers
# of a step are one compiled call (`kernels/decode_step_cpu.py`).
#
# And the reason for the waterfall's last bar:

# %%
show(
    memory_area({"D: reserved": continuous, "E: paged": paged}),
    alt=f"Slots by kind. Continuous batching with reservations: {wasted_share(continuous):.0%} of the held slots are "
    f"empty over {len(continuous.steps)} steps. With paging {wasted_share(paged):.0%}, and done after "
    f"{len(paged.steps)} steps; at most {max(blocks_in_use(paged))} of 32 blocks in use.",
)

# %% [markdown]
# ## Claims

# %%
reference = [text.token_ids for text in texts]
claim(
    "all five systems write the same text, token for token",
    all(
        [text.token_ids for text in each] == reference
        for each in (texts_static, texts_static_paged, texts_continuous, texts_paged)
    ),
    measured=f"{sum(map(len, reference))} tokens each",
)
claim(
    "in the same bytes, paging runs at least twice as many requests at once",
    at_once["E"] >= 2 * at_once["D"] and at_once["C"] >= 2 * at_once["B"],
    measured=f"{at_once['E']} against {at_once['D']}",
)
claim(
    "each of the two ideas helps, whether the other is there or not",
    steps["B"] > steps["C"] > steps["E"] and steps["B"] > steps["D"] > steps["E"],
    measured=", ".join(f"{name} {count}" for name, count in steps.items()),
)
claim(
    "but their factors do not multiply",
    together < 0.9 * paging * continuous_alone,
    measured=f"{together:.2f} against {paging:.2f} x {continuous_alone:.2f} = {paging * continuous_alone:.2f}",
)
expected = 3.5 / (mean_length + 3.5)
claim(
    "half a block per sequence explains the empty slots of the paged engine",
    abs(wasted_share(paged) - expected) < 0.03,
    measured=f"{wasted_share(paged):.1%}, expected {expected:.1%}",
)
claim("the KV cache changes no token either", without == list(output.outputs[0].token_ids), measured="12 tokens")

# %% [markdown]
# The last claim is about the clock. It is one-sided and modest, because machines differ.

# %% tags=["machine"]
gain = rates["E"] / rates["B"]
claim("and it is faster by the clock", gain > 1.2, measured=f"{gain:.2f} times the rate of naive batching")

# %% [markdown]
# What remains is honest accounting. Eighteen short requests are a toy; the shares depend on how different the lengths
# are. If all answers had the same length, static batches would lose nothing. If every answer were as long as
# `max_model_len`, reservations would lose nothing. Real traffic is neither: a few answers are long, most are short,
# and which ones is not known beforehand. `python -m minivllm bench throughput` measures on a larger workload, beside
# Hugging Face's `generate`, and `bench memory` repeats the paper's own figures with 400 requests.
#
# ## Exercises
#
# In `notebooks/exercises/ch11_together.py`:
#
# - **ex11a** (capstone) `MyScheduler`: a scheduler of your own, plugged in as `LLM(scheduler_cls=MyScheduler)`. It is
#   scored by goodput (requests that finish within their deadline) on a workload with a seed that you do not know.
# - Without a test: report a result of your own in 300 words: what you changed, what you expected, what you measured,
#   how often, and what would prove you wrong. Hand in the numbers as `results.json`.
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex11a`:
#
#     %load_ext minivllm.course
#     %check ex11a
#
# ## Check yourself
#
# <details><summary>Which of the four ideas (KV cache, batching, continuous batching, paging) still gain when all
# answers have the same length?</summary>
#
# The KV cache, as always, and batching. Continuous batching gains nothing, since all members of a batch end together.
# Paging still gains if the reservations were longer than the answers.
# </details>
#
# <details><summary>Why does paging help throughput, although attention itself does not get faster?</summary>
#
# Because memory limits how many requests run in a step, and the cost of a step grows far more slowly than the number of
# its requests. Paging turns wasted slots into seats.
# </details>
#
# <details><summary>You read "24 times the throughput" in an advertisement. What do you ask first?</summary>
#
# Compared with what, on which lengths, on how much memory, and is the text the same? Each of the systems B to E would
# look good beside one of the others.
# </details>
#
# ## In real vLLM
#
# The same ideas, on GPUs. Beyond them it captures whole steps as CUDA graphs, splits models over devices, overlaps
# scheduling with computing, and guesses several tokens ahead. Our D and E are the paper's Orca (Max) and vLLM. At the
# same latency the paper gives vLLM 2.7 to 8 times the request rate of Orca (Max) on chats, and 1.7 to 2.7 times that of
# Orca (Oracle), which knows the length of each answer beforehand. `python -m minivllm bench headline` measures it with
# SmolLM2 and the paper's memory (7.7 reservations): on two cores of an AMD EPYC (Zen 5) E wrote 1.66 times the tokens
# of D, and 1.99 times with `watermark=0.05`: 5% of the blocks stay free of newcomers, which spares most preemptions.
# With memory for 4, 7.7 and 16, and half as many requests, E writes 2.03, 1.83 and 1.07 times as much as D.
#
# ## Key points
#
# - KV cache: each position is computed once. Batching: weights are read once for many. Continuous batching: no seat
#   stands empty while a request waits. Paging: at most one block per sequence is partly empty.
# - Each is one exchangeable part behind `schedule()`, so each can be measured alone. Gains on the same empty seats do
#   not multiply.
# - Throughput is tokens per step times steps per second; memory decides the first factor.
# - A gain counts only with the same text, the same memory and the same requests.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), section 6. **Next:** [12 · Requests arrive](12_requests_arrive.ipynb).
