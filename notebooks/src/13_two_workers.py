# %% [markdown]
# # 13 · Two workers, one answer
#
# ## Before you start
#
# **You need:** chapter 01: what a layer computes, and that query heads share KV heads. Chapter 04: the block table.
# Chapter 06: that a plan is made anew in every step.
#
# **You will be able to:** say which rows and columns of each weight a worker holds, where the parts become one answer
# again, what is sent in a step and how many bytes that is; and why one block table serves all workers.
#
# **Minutes:** 40 to read and run, 40 for the exercises.

# %%
import multiprocessing

import torch
import torch.nn.functional as F

from minivllm.bench.parallel_model import GPUS, MODELS, matrix_elements, plan_rows
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import encode, greedy, toy_llm, workload_prompts
from minivllm.distributed.parallel_layers import RowParallelLinear, VocabParallelEmbedding
from minivllm.distributed.sharding import Shard, possible_sizes
from minivllm.distributed.worker_process import serve
from minivllm.viz import show
from minivllm.viz.parallel import shards_figure, step_time_figure

seed_all()

# %% [markdown]
# ## The problem
#
# All chapters so far had the model in one place. A large one does not fit there.

# %%
for name, config in MODELS.items():
    read = 2 * matrix_elements(config)  # of an embedding table which is no output matrix too, a step reads single rows
    weights = read + 2 * config.vocab_size * config.hidden_size * (not config.tie_word_embeddings)
    h100 = GPUS["H100"]
    print(
        f"{name:<14} {weights / 1e9:6.1f} GB in bfloat16, H100: {h100.memory / 1e9:.0f} GB. "
        f"A decode step reads {read / 1e9:5.1f} GB of it, in {1e3 * read / h100.memory_bandwidth:5.2f} ms."
    )

# %% [markdown]
# The largest needs at least two GPUs. The other two fit on one, and yet a second one would be welcome: a decode step
# takes as long as reading the weights, and two GPUs could read half of them each, at the same time.
#
# How to cut a model in two? One could give the first half of the layers to one worker and the rest to another. Then
# memory is halved, but while one computes, the other waits for its result: a token takes as long as before. The paper
# (section 4.6) cuts *each layer* instead, in the way of Megatron-LM: **tensor parallelism**. Both workers compute on
# every token, all the time.
#
# What makes this possible is that a layer is full of things which do not know of each other. Attention heads do not:
# each has its own rows of `q_proj` and its own past. The inner columns of the MLP do not either. So a worker, called
# **rank** here, gets some of the heads and some of the inner columns, with all that belongs to them.
#
# ## Predict, then run
#
# The toy model of these notebooks has 2 layers. On two ranks, one step of the engine: how many times do the ranks have
# to stop and add up what they have?

# %%
guess = None

# %%
whole = toy_llm()
two = toy_llm(tensor_parallel_size=2)  # two processes are started: this takes some seconds
group = two.llm_engine.executor.group


def ask(llm, max_tokens, *texts):
    """Greedy answers to some texts, as token ids."""
    prompts = [{"prompt_token_ids": encode(text)} for text in texts]
    return [output.outputs[0].token_ids for output in llm.generate(prompts, greedy(max_tokens), use_tqdm=False)]


TEXT = "Four score and seven years ago"
answers = [ask(llm, 1, TEXT) for llm in (whole, two)]
calls, nbytes = zip(*(group.call("traffic")[name] for name in ("all_reduce", "all_gather")), strict=True)
reveal(guess, calls[0], "sums")
print(f"one process says {answers[0]}, two say {answers[1]}; {nbytes[0]:,} bytes from each rank, and {calls[1]} gather")

# %% [markdown]
# Two sums in each layer and one for the embedding, and a last exchange, in which each rank learns the logits that the
# other one has computed. The rest of this chapter is about why it is these and no more.
#
# ## How the code does it
#
# ### Rows, then columns
#
# A linear layer is y = x Wᵀ, with W of shape (out, in). There are two ways to cut it. By **rows**: each rank computes
# some of the outputs, from all of the input. By **columns**: each rank has some of the inputs and computes one term of
# a sum. (Megatron-LM has the names the other way round, because it writes Wᵀ: a `ColumnParallelLinear` is cut by rows.)

# %%
x, up, down = torch.randn(3, 4), torch.randn(6, 4), torch.randn(4, 6)
expected = F.linear(F.relu(F.linear(x, up)), down)
terms = []
for rank in range(2):
    inner = F.relu(F.linear(x, up.chunk(2, dim=0)[rank]))  # (3, 3): this rank's inner columns
    terms.append(F.linear(inner, down.chunk(2, dim=1)[rank]))  # (3, 4): its term of the result
error = (sum(terms) - expected).abs().max().item()
print(f"largest difference between the sum of both terms and the whole: {error:.0e}")
print(f"and of one term alone: {(terms[0] - expected).abs().max().item():.1f}")

# %% [markdown]
# One after the other the two fit together. What the first product leaves on a rank is just the part of the input which
# the second one needs there; between them nothing is sent. So a whole MLP takes *one* sum, at its end. Attention does
# as well: `q_proj`, `k_proj` and `v_proj` by rows, which are heads; then the heads attend, each to its own past; then
# `o_proj` by columns.
#
# Which part of which weight, that is all a rank has to know:

# %%
show_source(Shard.part_of)

# %% [markdown]
# The loader reads that slice from the file and nothing around it. What it builds of the slices is an ordinary Llama,
# only smaller: half of the heads, half of the inner columns, half of the vocabulary. `llama.py` was not changed for it.
# Only where parts have to add up does a layer get a new one around it:

# %%
show_source(RowParallelLinear)

# %% [markdown]
# The `if` matters. A bias belongs to the sum, not to its terms: added on each rank it would count twice. That bug was
# in a well-known small engine; the text stays fluent and is another one with each number of ranks.
#
# The embedding is cut too, by tokens of the vocabulary. Each rank looks up the tokens it has, gives zeros for the
# others, and the sum is complete:

# %%
show_source(VocabParallelEmbedding.__call__)

# %% [markdown]
# ### One scheduler, many workers
#
# Nothing above chooses a block or a token to compute. That is still the scheduler's task, and there is still one
# scheduler, in this process. In every step it makes one plan, and the plan goes to all ranks:

# %%
show_source(serve)

# %% [markdown]
# `recv_bytes` is how the plan comes to rank 0, `broadcast` how it comes to all. The ranks carry it out and meet in the
# sums; rank 0 sends the tokens back. No rank asks the scheduler anything, and no rank remembers a request: each row of
# the plan is complete, with tokens, positions, block table and seed. (Chapter 06 made it so.) So what about the blocks?

# %%
one_plan_nbytes = group.plan_nbytes
reports = group.call("memory", from_all=True)
for rank, report in enumerate(reports):
    print(f"rank {rank}: {report.num_blocks} blocks, {report.bytes_per_token} bytes of K and V for a token")
report = whole.llm_engine.memory()
print(f"alone : {report.num_blocks} blocks, {report.bytes_per_token} bytes of K and V for a token")

# %% [markdown]
# The KV cache is cut along the heads and not along the tokens. Token 6 of the example request is in block 2 on *both*
# ranks: on rank 0 the keys and values of KV head 0, on rank 1 those of KV head 1. So there is one block table, made
# once, right everywhere. Had the tokens been dealt out instead, each rank would need a table and a scheduler of its
# own.
#
# How much is sent? The plan names tokens, positions and blocks; it contains no keys, values or hidden states. In the
# step above it was about a kilobyte. The sums carry a vector of `hidden_size` numbers for each token, five times in
# this model.
#
# ### Which sizes are possible
#
# A head cannot be cut. SmolLM2-135M has 9 query and 3 KV heads: three ranks can share them, two cannot.

# %%
for name, heads, kv_heads in (("the toy", 4, 2), ("SmolLM2-135M", 9, 3), ("Llama-3.1-70B", 64, 8)):
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    config = type(MODELS["Llama-3.2-1B"])(49_152, 576, 1536, 30, head_dim=64, **sizes)
    print(f"{name:<14} {heads:>2} query heads, {kv_heads} KV heads: {possible_sizes(config)} ranks")
try:
    toy_llm(tensor_parallel_size=3)
except ValueError as refused:
    print(refused)

# %% [markdown]
# ## The picture
#
# The weights of one layer of the toy, cut by the function which the loader calls. The parts that
# lie one above the other are never put together: each goes straight into the product that needs it.

# %%
config = whole.llm_engine.model_config
hidden, inner = config.hidden_size, config.intermediate_size
query, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
shapes = {"q": (query, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, query)}
shapes = {f"self_attn.{name}_proj.weight": shape for name, shape in shapes.items()}
shapes |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")} | {"mlp.down_proj.weight": (hidden, inner)}
show(
    shards_figure(shapes, 2),
    alt=f"The 7 weights of a layer, each in 2 parts: q, k, v, gate and up cut by rows, o and down by columns; "
    f"q_proj is {query} x {hidden}, down_proj {hidden} x {inner}.",
)

# %% [markdown]
# And what is it worth? On the CPU of a laptop nothing: the ranks share the cores and the memory which one process had
# for itself. On GPUs it can be computed. With one sequence a sum is a few kilobytes, and its time hardly depends on its
# size: what counts is how many sums there are, and how many GPUs each has to visit. With 256 sequences the bytes count
# too. So the products shrink with every GPU, and the sums grow:

# %%
rows = [row for row in plan_rows((1, 256)) if row["gpu"] == "H100"]
show(
    step_time_figure(rows),
    alt="Computed milliseconds of a decode step on 1, 2, 4 and 8 H100 for three models: the 70B model gains with every "
    "GPU, the 1B model is slower on 8 than on 4 when there is 1 sequence.",
)
for row in rows:
    cells = ", ".join(f"{cell['total'] * 1e3:.2f}{'' if cell['fits'] else ' (too large)'}" for cell in row["sizes"])
    end = f"stops paying at {row['stops_at']}" if row["stops_at"] else "pays up to 8"
    print(f"{row['model']:<14} {row['num_seqs']:>3} sequences: {cells} ms; {end}")

# %% [markdown]
# ## Claims

# %%
prompts = [{"prompt_token_ids": ids} for ids in workload_prompts()[:6]]


def texts(llm):
    """The answers to six prompts, 12 tokens each."""
    return [output.outputs[0].token_ids for output in llm.generate(prompts, greedy(12), use_tqdm=False)]


alone = texts(whole)
claim("two ranks write what one process writes", texts(two) == alone and len({tuple(ids) for ids in alone}) == 6)
two.llm_engine.shutdown()
tight = toy_llm(tensor_parallel_size=2, num_blocks=9, max_num_batched_tokens=16, max_num_seqs=16)
claim(
    "and so they do in 9 blocks, with preemptions and prompts in pieces",
    texts(tight) == alone and tight.llm_engine.stats().num_preemptions > 0,
    measured=f"{tight.llm_engine.stats().num_preemptions} preemptions",
)
claim("afterwards all blocks are free", tight.llm_engine.scheduler.kv.pool.num_free == 9)

# %%
sums = 2 * config.num_hidden_layers + 1
claim(
    "a step has two sums per layer and one for the embedding, each as large as the hidden states of its tokens",
    calls[0] == sums and nbytes[0] == sums * 6 * hidden * 4,
    measured=f"{calls[0]} sums, {nbytes[0]:,} bytes for 6 tokens",
)
claim("the plan of that step has fewer bytes than the sums", one_plan_nbytes < nbytes[0])
share = max(each.weights for each in reports) / report.weights
claim("a rank holds half of the weights, and at most 1% more", 0.5 <= share <= 0.51, measured=f"{share:.1%}")
claim("and half of each block", [each.kv_cache * 2 for each in reports] == [report.kv_cache] * 2)
tight.llm_engine.shutdown()
left = [child for child in multiprocessing.active_children() if "minivllm" in child.name]
claim("when the engine is shut down, no process is left", len(left) == 0)

# %% [markdown]
# ## Exercises
#
# In `notebooks/exercises/ch13_two_workers.py`:
#
# - **ex13a** `shard_linear`: the part of a linear layer that a rank holds, cut by rows or by columns. Mind the bias.
# - **ex13b** `split_heads`: which heads belong to which rank; also with more ranks than KV heads, which this engine
#   refuses and vLLM does not.
# - **ex13c** `bytes_of_a_step`: what a rank sends in a step, compared with what the engine's ranks have sent.
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex13a`:
#
#     %load_ext minivllm.course
#     %check ex13a
#
# ## Check yourself
#
# <details><summary>Could <code>gate_up_proj</code>, which is gate and up in one matrix, be cut in the middle?</summary>
#
# Then rank 0 would have all of gate and rank 1 all of up. silu(gate) * up needs both for the same inner column, so each
# would have to send its result to the other. Each of the two is cut by itself, and then a rank's halves are fused.
# </details>
#
# <details><summary>Does a request with temperature 1 and no seed get the same token on both ranks?</summary>
#
# Yes. The seed is drawn in the scheduler's process and stands in the plan; the logits are gathered, so all ranks have
# the same bits. An engine whose ranks draw for themselves lets each go on with another token (mini-sglang, #88).
# </details>
#
# <details><summary>Rank 1 is killed in the middle of a step. What does the user of <code>generate</code> see?</summary>
#
# An error which names rank 1 and SIGKILL, after about a second. The other rank stands in a sum that cannot be finished;
# its connection closes, it ends too. The KV cache is gone, so the engine does not go on. A new `LLM` works.
# </details>
#
# ## In real vLLM
#
# The classes have these names, in [`vllm/model_executor/layers/linear.py`]; vLLM's models are written with them from
# the start, while those which it runs through transformers get them put around their layers as here. The engine and the
# workers are processes ([`vllm/v1/executor/multiproc_executor.py`]); the plan goes through shared memory instead of a
# broadcast, and says only what changed since the step before, so workers keep a copy of each request. Sums of a few
# kilobytes do not use NCCL but a kernel which reads the other GPUs' memory directly: two to three times as fast. With
# more ranks than KV heads, heads are kept several times. And on several machines it is usual to cut by heads inside a
# machine, by layers between machines, since the links there are slower. Two sums per layer would be too many.
#
# [`vllm/model_executor/layers/linear.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/model_executor/layers/linear.py
# [`vllm/v1/executor/multiproc_executor.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/executor/multiproc_executor.py
#
# ## Key points
#
# - What makes heads is cut by rows, what reads heads is cut by columns; then one sum is enough for both.
# - A rank is a smaller model with the same hidden size. It reads its slices and nothing else.
# - One scheduler, one plan a step, one block table: blocks are cut along the heads, so an id means the same everywhere.
# - Products shrink with the number of GPUs, sums do not: that is where more GPUs stop paying.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), section 4.6. **Next:** [14 · Why is the text not the same?](14_same_text.ipynb).
