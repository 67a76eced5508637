# %% [markdown]
# # 00 · Start here
#
# ## Before you start
#
# **You need:** Python, and PyTorch by sight. No GPU.
#
# **You will be able to:** run the engine on three requests, say in which step each of them ran or waited, and find
# the module behind each idea of the chapters to come.
#
# **Minutes:** 25 to read and run, 5 for the self-test at the end.
#
# This is the first of a short series of chapters. Each begins with something that is wrong or too expensive, *measures*
# it, and then reads the module that repairs it. The code you see is the code that runs: it is displayed from the
# package, not copied into a notebook. Every statement that matters is a **claim** with an assertion behind it. If it
# stops being true, this notebook stops running.

# %%
from minivllm.baselines.no_cache import greedy_without_cache, llama_logits
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import decode, encode, example_llm, greedy, real_llm, word
from minivllm.engine import LLMEngine
from minivllm.viz.trace import Trace
from minivllm.viz import gantt, show, trace_player

seed_all()

# %% [markdown]
# ## The problem
#
# A language model writes one token at a time, and each new token needs the whole model: every weight is read from
# memory once. Reading them takes nearly as long for one request as for thirty. So a server that answers requests
# one after the other pays full price for each token of each of them.
#
# Here are three requests. They go to a tiny Llama with random weights; each of its 258 tokens is shown as an English
# word (two are marks, `<s>` and `</s>`). The model talks nonsense, but it is a real Llama: two layers, four query
# heads, two KV heads. What we say about steps and memory holds for a trained model as well.

# %%
prompts = ["Four score and seven years ago", "all men are created equal", "the world will"]
lengths = [8, 4, 6]  # output tokens wanted
llm = example_llm(max_num_seqs=2)

one_by_one = []
steps_one_by_one = 0
for prompt, length in zip(prompts, lengths, strict=True):
    before = llm.llm_engine.stats().num_steps
    (output,) = llm.generate({"prompt_token_ids": encode(prompt)}, greedy(length), use_tqdm=False)
    steps_one_by_one += llm.llm_engine.stats().num_steps - before
    one_by_one.append(output.outputs[0].token_ids)
    print(f"{prompt!r} -> {decode(one_by_one[-1])!r}")
print(
    f"\none after the other: {steps_one_by_one} steps, that is, {steps_one_by_one} times through all the weights"
)

# %% [markdown]
# A **step** is one pass through the model. Each request takes one step for its prompt, which also gives the first
# token, and one more for each further token: 8 + 4 + 6.
#
# ## Predict, then run
#
# The engine may run two requests at once (`max_num_seqs=2`), and the third has to wait for a place. How many steps
# will the three requests take together? Write a number in place of `None`.

# %%
guess = None

# %%
llm = example_llm(max_num_seqs=2, trace=Trace(word_of=word))
outputs = llm.generate(
    [{"prompt_token_ids": encode(prompt)} for prompt in prompts],
    [greedy(length) for length in lengths],
    use_tqdm=False,
)
trace = llm.llm_engine.trace
reveal(guess, len(trace.steps), "steps")

# %% [markdown]
# The engine has written down what happened in each step: a **trace**. Every figure in this course is drawn from such
# a trace and from nothing else. As plain text:

# %%
print("step  computes (request: positions)              running after   waiting after")
for record in trace.steps:
    work = ", ".join(
        f"{row.request_id}: {row.start}..{row.start + row.num_tokens - 1}" for row in record.scheduled
    )
    running, waiting = " ".join(record.running) or "-", " ".join(record.waiting) or "-"
    print(f"{record.step:>4}  {work:<43}{running:<16}{waiting}")

# %% [markdown]
# Read the first lines slowly; the whole course is in them. In step 0, request 0 computes positions 0 to 5: the six
# words of its prompt, all at once. From step 1 on it computes one position per step, because each new word has to be
# known before the next one can be worked out. Request 1 runs *in the same steps*, on the same passes over the weights.
# As soon as request 1 is done, request 2 takes its place. No request waits for the slowest one.
#
# ## How the code does it
#
# All of that is three calls. The **scheduler** decides which tokens run, the **runner** takes them through the model,
# and the scheduler takes in the result:

# %%
show_source(LLMEngine.step)

# %% [markdown]
# `plan` is a list of rows such as "request 0, positions 0 to 5, in blocks 7 and 2". It contains no tensor. `outputs`
# is a list of token ids. So the half of the system that makes decisions is plain Python, which you can read, test and
# change without a GPU, and the half that calculates knows nothing about queues.
#
# What does "in blocks 7 and 2" mean? While it works on a request, the model must remember two vectors for each token
# in each layer, the key and the value. They are kept in a large pool of memory, cut into **blocks** of
# `block_size` tokens. This pool has 8 blocks of 4 **slots**; a slot is the place of one token. A request's
# **block table** lists its blocks. Here is the first request after its first step, the example that you will meet in
# every chapter:

# %%
row = trace.steps[0].scheduled[0]
slots = [row.block_ids[position // 4] * 4 + position % 4 for position in range(6)]
print("words         ", *row.words)
print("block table   ", list(row.block_ids))
print("slots         ", slots)

# %% [markdown]
# Six words need two blocks of four. Blocks 7 and 2 happened to be free. Positions 0 to 3 went to block 7, which
# begins at slot 28; positions 4 and 5 went to block 2, which begins at slot 8. Two slots of block 2 are still empty,
# so the next two words need no new memory at all. That is the idea of the paper, in one line of numbers.
#
# | question | module | chapter |
# |---|---|---|
# | what does the model compute? | `llama.py`, `attention.py` | 01 |
# | what is remembered, and what does it cost? | `kv_cache.py` | 02 |
# | how was it done before, and what was wrong with it? | `baselines/` | 03 |
# | which request holds which block? | `block_pool.py`, `block_table.py`, `kv_cache_manager.py` | 04 |
# | how does attention find its tokens again? | `kv_cache.py`, `attention.py` | 05 |
# | which requests run in this step? | `scheduler.py`, `sequence.py` | 06 |
# | how do lists become tensors? | `model_runner.py` | 05, 06 |
# | what does it all buy? | `engine.py`, `llm.py` | 11 |
#
# ## The picture
#
# One row is a place in the batch (a *seat*), one column is a step. A framed cell is a prompt. Below: how many of the
# eight blocks are in use.

# %%
joins = next(record.step for record in trace.steps if "2" in {row.request_id for row in record.scheduled})
figure = gantt({"three requests, two seats": trace})
show(
    figure,
    alt=f"Requests 0 and 1 run side by side from step 0; request 2 takes the seat of request 1 in step {joins}. All three "
    f"are done after {len(trace.steps)} steps, where one after the other takes {steps_one_by_one}.",
)

# %% [markdown]
# And the memory, with a real model whose words make sense. On the left is what each request sees: its words, and beside
# each block of four the number of the block in memory. On the right is the memory. Press *play*, or step with the arrow
# keys. What all of it is for is the subject of the chapters to come; watch where the words of one request really are.

# %% tags=["machine"]
story = real_llm(max_num_seqs=2)
answers = story.generate(
    ["The capital of France is", "Water boils at a", "The opposite of hot is"],
    [greedy(6), greedy(3), greedy(5)],
    use_tqdm=False,
)
trace_player(story.llm_engine.trace)

# %% [markdown]
# ## Claims
#
# Running requests together is worth nothing if it changes their text. The strictest judge we have is a loop with
# nothing clever in it, and so with little that can go wrong: it feeds the whole text through the model again for every
# word, one request at a time, with no memory and no batch.

# %%
show_source(greedy_without_cache)

# %%
together = [output.outputs[0].token_ids for output in outputs]
next_logits = llama_logits(llm.llm_engine.runner.model)
naive = [
    greedy_without_cache(next_logits, encode(prompt), length)
    for prompt, length in zip(prompts, lengths, strict=True)
]
claim(
    "paged and batched, the engine writes exactly what the naive loop writes",
    [list(tokens) for tokens in together] == naive,
    measured=f"{sum(map(len, naive))} tokens of {len(naive)} requests compared",
)
claim(
    "together the requests take fewer steps than one after the other",
    len(trace.steps) < steps_one_by_one,
    measured=f"{len(trace.steps)} against {steps_one_by_one}",
)
claim(
    "afterwards every block is free again", llm.llm_engine.scheduler.kv.pool.num_free == 8, measured="8 of 8"
)

# %% [markdown]
# The same calls work on the model that comes with this project, SmolLM2-135M, with real text. Most chapters use
# it somewhere, and chapter 11 throughout; on the command line, `python -m minivllm demo` does.
#
# ## Exercises
#
# None yet. Check that your machine is ready for those to come: in a terminal, at the top of the repository,
#
#     python -m minivllm.course doctor
#
# Exercises are files in `notebooks/exercises/`. You edit them there and test them from a notebook with
# `%load_ext minivllm.course` and then, for example, `%check ex04b`.
#
# ## Check yourself
#
# <details><summary>Why does request 0 compute six positions in step 0 but only one in each later step?</summary>
#
# The words of a prompt are all known beforehand, so they can go through the model together. A generated word depends
# on the one before it, so it can only be computed once that one has been chosen.
# </details>
#
# <details><summary>Request 1 asked for 4 tokens and took 4 steps. How many of its tokens are in memory when it
# finishes?</summary>
#
# Its prompt of 5 and 3 of the 4 generated ones, 8 in all. The last token was chosen and returned, but nothing comes
# after it, so it never goes through the model.
# </details>
#
# <details><summary>Where would you look if a request got the wrong text only when others run beside it?</summary>
#
# Where requests share something: the block tables (`kv_cache_manager.py`) and the packing of the batch
# (`model_runner.py`). The model itself never sees which request a row belongs to; only attention asks.
# </details>
#
# ## In real vLLM
#
# `LLM`, `SamplingParams` and `generate` have the same names and arguments there, and so do most ideas:
# [`vllm/v1/engine/core.py`] has the same three calls in `EngineCore.step`. What differs is around it: the scheduler and
# the model run in different processes, and several GPUs share the work. The paper's version of 2023 also had
# copy-on-write and swapping in its scheduler; vLLM has dropped them since, and this project keeps them.
#
# [`vllm/v1/engine/core.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/engine/core.py
#
# ## Key points
#
# - A step is one pass over all the weights, and the requests in it share the price: on a GPU up to a few hundred cost
#   hardly more than one, on a CPU about ten (chapter 06 measures it).
# - The engine is a loop over three calls: schedule, execute, update.
# - Keys and values live in blocks; a block table says which blocks belong to a request.
# - Batching and paging must not change a single token, and here they do not.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), section 4. **Next:** [01 · Llama forward, one token at a time](01_llama_forward.ipynb).
