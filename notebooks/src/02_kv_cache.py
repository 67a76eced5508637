# %% [markdown]
# # 02 · The KV cache and its price
#
# ## Before you start
#
# **You need:** chapter 01: what a key and a value are, and why no token's key ever changes.
#
# **You will be able to:** generate with a KV cache and prove that the logits are the same, derive the bytes per token
# from a model's configuration, and say how many requests fit into a given memory.
#
# **Minutes:** 35 to read and run, 30 for the exercises.

# %%
import torch

from minivllm.attention import AttentionMetadata
from minivllm.baselines.no_cache import greedy_without_cache, llama_logits
from minivllm.config import ModelConfig
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import encode, greedy, run_workload, toy_llm
from minivllm.kv_cache import KVCache
from minivllm.viz import new_figure, request_area, show

seed_all()
llm = toy_llm(num_blocks=64)
model = llm.llm_engine.runner.model
prompt = encode("Four score and seven years ago")

# %% [markdown]
# ## The problem
#
# Chapter 01 ended with a number: 24 new tokens after a prompt of 6 cost 420 positions through the model, although only
# 29 different positions exist. Attention is the only place where a token looks at earlier ones, and it asks them for a
# key and a value. So we keep the key and the value of every token, in every layer, and compute each position once.
#
# Count again, with the same hook. The engine keeps keys and values by itself.


# %%
def positions_computed(run):
    """How many positions go through the model in each call while `run()` runs."""
    counts = []
    hook = model.register_forward_hook(lambda module, inputs, output: counts.append(len(inputs[0])))
    result = run()
    hook.remove()
    return counts, result


num_new = 24
without, tokens_without = positions_computed(
    lambda: greedy_without_cache(llama_logits(model), prompt, num_new)
)
with_cache, outputs = positions_computed(
    lambda: llm.generate({"prompt_token_ids": prompt}, greedy(num_new), use_tqdm=False)
)
print("without:", without)
print("with:   ", with_cache)
print(f"positions: {sum(without)} without, {sum(with_cache)} with a KV cache")

# %% [markdown]
# The prompt of $P$ tokens is computed once, and then one position for each new token except the last: $P + n - 1$. What
# was quadratic is now linear. The first step of a request is often called its **prefill**, and the others **decode**
# steps; in this engine they are the same step with different numbers of positions. (Attention itself still looks at all
# earlier tokens, so its part of the work still grows with the length. That part stays small until texts become long.)
#
# Nothing is free. We trade work for memory, and the price is set by the model's shape.
#
# ## Predict, then run
#
# SmolLM2-135M, the small model of chapter 11, has 30 layers, 3 KV heads, a head size of 64, and numbers of 4 bytes.
# How many bytes must be kept for *one* token? Guess before you calculate.

# %%
guess = None

# %%
smollm2 = ModelConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
)
reveal(guess, smollm2.kv_bytes_per_token(bytes_per_element=4), "bytes per token")

# %% [markdown]
# That is 45 KiB for a single word, in a model that is tiny by today's standards. The formula is short; every factor
# is a line of the configuration:
#
# $$\text{bytes per token} = 2 \cdot \text{layers} \cdot \text{KV heads} \cdot \text{head size} \cdot \text{bytes per number}$$
#
# The 2 is for key *and* value. Query heads do not appear: that is what grouped-query attention saves.

# %%
show_source(ModelConfig.kv_bytes_per_token)


# %%
def shape(layers, heads, kv_heads, head_dim):
    """A model of this shape; the other sizes play no part here."""
    return ModelConfig(32000, heads * head_dim, 1, layers, heads, kv_heads, head_dim)


print(f"{'model':<28}{'bytes per token':>16}{'tokens in 12 GiB':>18}{'requests of 2,048':>19}")
for name, config, size in (
    ("the toy Llama, float32", model.config, 4),
    ("SmolLM2-135M, float32", smollm2, 4),
    ("OPT-13B, float16 (the paper)", shape(40, 40, 40, 128), 2),
    ("Llama-2-7B, float16", shape(32, 32, 32, 128), 2),
    ("Llama-3-8B, bfloat16", shape(32, 32, 8, 128), 2),
):
    per_token = config.kv_bytes_per_token(size)
    fit = (12 << 30) // per_token
    print(f"{name:<28}{per_token:>16,}{fit:>18,}{fit // 2048:>19,}")

# %% [markdown]
# Bytes must not only be stored, they must be read. A decode step reads all weights once, which is 540 MB for SmolLM2 in
# float32, and for each request the keys and values of all its tokens: 46 MB after 1,000 tokens. A dozen such requests
# read as many bytes of KV cache as of weights. So the first few requests of a step are nearly free; with many of them,
# each costs what it stores.
#
# Read the line of the paper. On a GPU with 40 GB, the 26 GB of OPT-13B's weights leave about 12 GB: fewer than 8
# requests of full length. The weights are loaded once; it is the KV cache that decides how many requests can share a
# step, and chapter 00 showed that sharing steps is the whole business. **Memory is throughput.**
#
# ## How the code does it
#
# The KV cache is a tensor for the keys and one for the values of each layer, made once when the engine starts. The
# scheduler's side decides where in it a token's vectors go; here they are only written. A *slot* is the place of one
# token: the same row in the tensors of every layer.

# %%
show_source(KVCache.write)

# %% [markdown]
# To see that a cached key is as good as a fresh one, we do by hand what the engine does. First all six words of the
# prompt, into slots 0 to 5. Then the seventh alone, which finds the others in the cache tensors. Slots are handed out
# in a straight line, the simplest possible way; what is wrong with that is the subject of chapter 03.

# %%
kv_cache = KVCache(model.config, num_blocks=8, block_size=4, dtype=torch.float32, device="cpu")


def forward(token_ids, start):
    """Logits after the last of `token_ids`, which stand at positions start, start + 1, ..."""
    end = start + len(token_ids)
    positions = torch.arange(start, end)  # (T,)
    metadata = AttentionMetadata(
        slot_mapping=positions,  # position p goes to slot p
        block_tables=torch.arange(8, dtype=torch.int32)[None],
        seq_lens=torch.tensor([end], dtype=torch.int32),
        query_start_loc=torch.tensor([0, len(token_ids)], dtype=torch.int32),
        max_query_len=len(token_ids),
        max_seq_len=end,
    )
    with torch.inference_mode():
        hidden = model(torch.tensor(token_ids), positions, kv_cache, metadata)  # (T, hidden)
        return model.compute_logits(hidden[-1:])[0]  # (V,)


first = forward(prompt, start=0)
seventh = int(first.argmax())
cached = forward([seventh], start=6)  # one position through the model
fresh = llama_logits(model)([*prompt, seventh])  # seven positions
print(
    f"largest difference of the logits: {(cached - fresh).abs().max():.1e}, largest logit {fresh.abs().max():.1f}"
)
print("slots in use:", int((kv_cache.key[0].flatten(0, 1).abs().sum((1, 2)) > 0).sum()), "of", 8 * 4)

# %% [markdown]
# The difference is rounding: sums of the same numbers in another order. The cut between the two calls can be anywhere;
# 6 + 1, 3 + 4 or seven times 1 all give the same logits. Remember this. In chapter 06 the scheduler cuts prompts into
# pieces, whenever that suits it.
#
# ## The picture
#
# Four requests from the workload of chapter 03 run together. Each starts with the bytes of its prompt, grows by one
# token per step, and vanishes when it is done. Every layer of the drawing is counted from the trace of the run.

# %%
lengths = ((6, 8), (11, 30), (4, 5), (9, 12))
trace, _ = run_workload(toy_llm(num_blocks=64), lengths)
per_token = llm.llm_engine.memory().bytes_per_token
stored = [sum(row.start + row.num_tokens for row in record.scheduled) for record in trace.steps]
show(
    request_area(trace, per_token),
    alt=f"KV bytes of four requests: together {stored[0] * per_token:,} bytes after the prompts, at most "
    f"{max(stored) * per_token:,}, and {stored[-1] * per_token:,} in the last step, when only the longest is left.",
)

# %% [markdown]
# And the other side of the trade: positions computed up to each step, for the example request.

# %%
fig = new_figure(7.5, 2.8)
ax = fig.subplots()
ax.plot(
    [sum(without[: i + 1]) for i in range(num_new)], "o-", ms=3, color="#D55E00", label="without a KV cache"
)
ax.plot(
    [sum(with_cache[: i + 1]) for i in range(num_new)], "s--", ms=3, color="#0072B2", label="with a KV cache"
)
ax.set(xlabel="step", ylabel="positions so far")
ax.spines[["top", "right"]].set_visible(False)
ax.legend()
show(
    fig,
    alt=f"Positions computed so far: without a KV cache a curve up to {sum(without)}, with it a line up to "
    f"{sum(with_cache)} after {num_new} new tokens.",
)

# %% [markdown]
# ## Claims

# %%
P, n = len(prompt), num_new
claim(
    "with a KV cache, n new tokens cost P + n - 1 positions",
    sum(with_cache) == P + n - 1,
    measured=sum(with_cache),
)
claim(
    "and the text is the same",
    list(outputs[0].outputs[0].token_ids) == tokens_without,
    measured=f"{n} tokens",
)

text = [*prompt, *tokens_without[:10]]
fresh = llama_logits(model)(text)
worst = 0.0
for cuts in ([6, 10], [1] * 16, [16], [15, 1], [3, 5, 8]):
    done = 0
    for piece in cuts:
        cached = forward(text[done : done + piece], start=done)
        done += piece
    worst = max(worst, (cached - fresh).abs().max().item())
claim(
    "wherever a text is cut, the logits are the same",
    worst < 1e-4,
    measured="16 tokens cut in 5 ways, below 1e-4",
)

claim(
    "the formula gives the bytes that are really allocated",
    kv_cache.nbytes == 8 * 4 * model.config.kv_bytes_per_token(4),
    measured=f"{kv_cache.nbytes:,} bytes for 32 slots of {per_token} bytes",
)

# %% [markdown]
# ## Exercises
#
# In `notebooks/exercises/ch02_kv_cache.py`:
#
# - **ex02a** `kv_bytes_per_token(config)`: the formula, from a configuration. Two factors are easily forgotten.
# - **ex02b** `decode_step`: one more token with what is stored, for any cut between prompt and continuation.
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex02a`:
#
#     %load_ext minivllm.course
#     %check ex02a
#
# ## Check yourself
#
# <details><summary>Why are queries not kept?</summary>
#
# A token's query is compared with the keys of all tokens up to its own, once, when the token is computed. No later
# token ever asks for it.
# </details>
#
# <details><summary>The example request has 6 prompt tokens and 24 new ones. How many slots does it fill?</summary>
#
# 29. The last token is chosen from the logits of the one before; it never goes through the model, so it has neither
# key nor value.
# </details>
#
# <details><summary>Llama-3-8B has the same number of layers and query heads as Llama-2-7B. Why does a token take a
# quarter of the bytes there?</summary>
#
# It has 8 KV heads where Llama-2-7B has 32; four query heads share one KV head. Nothing else in the formula differs.
# </details>
#
# ## In real vLLM
#
# The tensors are allocated in [`vllm/v1/worker/gpu_model_runner.py`], after a trial step has shown how much memory the
# model itself needs at its busiest. `gpu_memory_utilization` is the share of the GPU's whole memory that vLLM may use;
# what weights and the trial step leave of it becomes blocks. Writing is a CUDA kernel,
# `reshape_and_cache`, of which this project has a Triton version in `kernels/`. Keys and values can also be
# stored in 8 bits, which halves the price once more.
#
# [`vllm/v1/worker/gpu_model_runner.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/worker/gpu_model_runner.py
#
# ## Key points
#
# - Keys and values of earlier tokens never change: keep them, and every position is computed once.
# - The price is 2 · layers · KV heads · head size · bytes per number, for every token of every request.
# - How many requests share a step is decided by memory, not by arithmetic.
# - A text may be cut anywhere between calls; the logits do not notice.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), section 3. **Next:** [03 · Naive batching: where the memory and the time go](03_naive_batching.ipynb).
