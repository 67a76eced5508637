# %% [markdown]
# # 10 · A Triton paged-attention kernel
#
# ## Before you start
#
# **You need:** chapter 04: block tables. Chapter 05: slots and the gather. PyTorch's broadcasting.
#
# **You will be able to:** read and write an attention kernel that follows a block table, explain the online softmax
# with numbers, and say what grouped heads, tiles and split-KV each save.
#
# **Minutes:** 50 to read and run, 70 for the exercises. No GPU is needed, but Linux is, for Triton.

# %%
import os

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, and where there is a GPU too
import math
from unittest.mock import patch

import torch

from minivllm.bench.evaluation.kernel_cost import gather_call, kernel_call
from minivllm.bench.steps import median_seconds
from minivllm.kernels import online_softmax
from minivllm.kernels import paged_attention as attention
from minivllm.kernels.combine import combine_reference
from minivllm.kernels.paged_attention_naive import _naive_kernel
from minivllm.kernels.prefill_attention import find_tile, prefill_attention, prefill_attention_reference
from minivllm.course.loads import record
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import encode, example_llm, greedy, real_llm
from minivllm.course.turn import turn
from minivllm.viz.loads import how_often, in_which_turn, loads_grid
from minivllm.viz.trace import Trace
from minivllm.viz import new_figure, show
from minivllm.viz.style import INK, PALETTE

seed_all()

# %% [markdown]
# ## The problem
#
# For each word SmolLM2 reads the keys and values of all words so far, for every request:

# %% tags=["machine"]
question = "The capital of France is"
story = real_llm(attention_backend="torch", device="cpu")
(told,) = story.generate(question, greedy(2), use_tqdm=False)
print(question + told.outputs[0].text, f"({story.llm_engine.memory().bytes_per_token:,} bytes of K and V per token)")

# %% [markdown]
# PyTorch has no operator for the CPU that follows a block table. So chapter 05 *gathered*: it copied the keys and
# values of each sequence into one piece, and then attended. The example request and a companion in their fourth step:


# %%
prompts = [{"prompt_token_ids": encode(text)} for text in ("Four score and seven years ago", "all men are")]
llm = example_llm(attention_backend="torch", device="cpu", trace=Trace())
llm.generate(prompts, greedy(5), use_tqdm=False)
rows = llm.llm_engine.trace.steps[3].scheduled
lens, blocks = [row.start + row.num_tokens for row in rows], [list(row.block_ids) for row in rows]
print(f"fourth step: sequences of {lens} tokens, block tables {blocks}")
kv_cache = llm.llm_engine.runner.kv_cache
key_cache, value_cache = kv_cache.key[0], kv_cache.value[0]  # layer 0: (8 blocks, 4 slots, 2 KV heads, 16)
tables = torch.tensor([[*each, 0, 0][:3] for each in blocks], dtype=torch.int32)
needed, copied = sum(lens) * 2 * key_cache[0, 0].nbytes, sum(map(len, blocks)) * 2 * key_cache[0].nbytes
moved = f"{copied:,} (blocks read) + {copied:,} (copies written) + {needed:,} (read) = {2 * copied + needed:,}"
print(f"K and V in one layer: {needed:,} bytes; gathering moves {moved}")

# %% [markdown]
# With one query per sequence attention calculates little and reads much, so bytes are what counts; the copy moves
# almost four times as many as needed. The cure is to write the operator ourselves, as a **kernel**: a function that a
# GPU runs many times at once. Each run is a **program**; it learns its number from `tl.program_id`, returns nothing,
# and touches memory by address only. `kernel[(2, 4)](...)` starts a **grid** of 2 x 4 programs. The language is Triton:
# Python in form, its values small tensors, called **tiles**.
#
# Without a GPU there is Triton's *interpreter*, which runs one program after the other in numpy. It shows *what* a
# kernel computes and which addresses it touches. It cannot show how long a GPU would take, whether programs that run
# at the same time disturb each other (a *race*), or whether tiles fit into a processor's small fast memory (*shared
# memory*). So this chapter counts.
#
# To count, `minivllm.course.loads.record` notes which program loads which keys and values.

# %% [markdown]
# ## Predict, then run
#
# The two requests have 9 and 6 tokens. The model has 4 query heads and 2 KV heads, so there are 30 keys to look at in
# a layer. The simplest kernel has one program for each sequence and *query* head. How many keys does it load?

# %%
guess = None

# %%
query = torch.randn(2, 4, 16)  # one token of each sequence, 4 heads
batch = (query, key_cache, value_cache, tables, torch.tensor(lens), 16**-0.5)
_, naive = record(attention.paged_attention_naive, *batch)
reveal(guess, len(naive["K"]), "keys")

# %% [markdown]
# Twice as many as there are: two query heads share a KV head, and each program fetches its own keys.
#
# ## How the code does it
#
# ### One query head per program
#
# Pointers are plain addresses: `key_cache_ptr + 5` is the sixth number. A load takes a tile of addresses, a mask that
# says which of them to follow, and what to put in place of the others. The size of a tile must be known when the
# kernel is compiled (a `tl.constexpr`), and be a power of two.

# %%
show_source(_naive_kernel.fn)

# %% [markdown]
# Read it in four parts. *Which one am I?* Program (1, 3) is query head 3 of sequence 1; it reads KV head 3 // 2 = 1.
# *The walk*: for each logical block it asks the block table for the physical one and computes an address from it;
# nothing is copied. *The mask*: in the last block only some slots hold tokens. Masking the load is not enough:
# a key that was loaded as 0 has the score 0, and $e^0$ takes a share of the softmax. So its score becomes $-\infty$.
#
# ### The online softmax
#
# The fourth part is the arithmetic. A softmax needs the largest score and the sum of all exponentials before the first
# value can be weighted, but the program sees the keys block by block and cannot keep all scores. So it keeps three
# things: $m$, the largest score $S_j$ **so far**; $l$, the sum of $e^{S_j - m}$; $acc$, the sum of $e^{S_j - m} V_j$.
# When a larger score $m'$ comes, both sums were measured against the wrong maximum. Both are off by the same factor,
# and multiplying by $\alpha = e^{m - m'}$ repairs them. Three keys with scores 0, 2, 1 and values 1, 2, 3, one key per
# tile, out of a running kernel:


# %%
def one_head(scores, values, tile):
    """Attention of one query with these scores and values, and (m, l, acc) after each tile."""
    n, states, online_update = len(scores), [], online_softmax.online_update

    def update(*arguments):
        m, l, acc = result = online_update(*arguments)  # m in units of log 2
        states.append((m.handle.data[0] * math.log(2), l.handle.data[0], acc.handle.data[0, 0]))
        return result

    k, v = torch.zeros(2, n, 1, 1, 16)  # blocks of one slot
    k[:, 0, 0, 0], v[:, 0, 0, 0] = torch.tensor(scores), torch.tensor(values)
    one = (torch.eye(16)[:1, None], k, v, torch.arange(n)[None], torch.tensor([n]), 1.0)
    with patch.object(online_softmax, "online_update", update):
        out = attention.paged_attention(*one, num_splits=1, tiles=attention.Tiles(16, tile, 4, 1))
    return out[0, 0, 0].item(), states


out, states = one_head([0.0, 2.0, 1.0], [1.0, 2.0, 3.0], tile=1)
for j, (m, l, acc) in enumerate(states):
    print(f"after key {j}:  m = {m:.0f}   l = {l:.3f}   acc = {acc:.3f}")
print(f"acc / l = {out:.3f}")

# %% [markdown]
# After key 1 the first key's $e^0 = 1$ has become $e^{-2} = 0.135$, in both sums. The answer, 2.155, is the softmax
# average of 1, 2 and 3. No exponent is ever positive, so nothing can overflow.
#
# ### Grouped heads, and tiles apart from blocks
#
# The second kernel, the one that the engine uses, changes two things. One program takes **all query heads of a KV
# head**: $q$ becomes a matrix with a row for each head, the scores become a matrix product (`tl.dot`, for which GPUs
# have special units), and each key is loaded once for the whole group. And a turn of the loop handles a tile of
# `BLOCK_N` keys whatever the block size: every key looks up its own block, so blocks can be small and tiles large.
# (`BY_BLOCK`, an untimed variant, is off: read the `else` and the `else` within.)

# %%
show_source(online_softmax.load_keys_and_values.fn)
show_source(online_softmax.online_update.fn)
show_source(online_softmax.attend.fn)

# %% [markdown]
# `exp2` is one instruction, hence the scores times $\log_2 e$;
# `DOT_F32` is for the interpreter.
#
# ### Split-KV
#
# One long sequence with 8 KV heads gives 8 programs, and a large GPU has more than a hundred processors. So the tokens
# of a sequence are divided among several programs, each ends with its own $(m, l, acc)$, and a second kernel merges
# them: the $\alpha$ from above, for all parts at once. Its slow twin in PyTorch:

# %%
show_source(combine_reference)

# %% [markdown]
# ### Prompts: many queries of one sequence
#
# A prompt brings a query for each of its tokens. Its kernel walks over the keys with the same `attend`. What is new is
# its rows: a program takes a tile of neighbouring tokens with all their heads. The last row sees the most keys, so the
# program stops there, and half of a long prompt's scores are never computed. Tiles are numbered through the batch, so
# a program first has to find its sequence (`first_tile`: the first tile of each):

# %%
show_source(find_tile.fn)

# %% [markdown]
# ## The picture
#
# What was loaded from the keys of layer 0. Rows are the eight blocks; a slot has two cells, one for each KV head.

# %%
tiles = attention.Tiles(16, 8, 4, 1)  # 8 keys; the other numbers matter on a GPU only
_, grouped = record(attention.paged_attention, *batch, num_splits=1, tiles=tiles)
panels = {
    "naive: how often loaded": how_often(naive["K"]),
    "grouped: how often loaded": how_often(grouped["K"]),
    "grouped: in which turn": in_which_turn(grouped["K"]),
}
alt = f"Keys loaded: sequence 0 reads blocks {blocks[0]} in this order, sequence 1 blocks"
alt += f" {blocks[1]}; the naive programs load {len(naive['K'])} keys, the grouped ones {len(grouped['K'])}."
show(loads_grid(panels, key_cache.shape[:3]), alt=alt)

# %% [markdown]
# On the right, the turn of the loop that loads a key: a tile
# of 8 keys takes two blocks. Next, the online softmax on 48 rising scores, in six tiles.

# %%
scores = (2 * torch.randn(48) + torch.linspace(-3, 3, 48)).tolist()
_, states = one_head(scores, torch.randn(48).tolist(), tile=8)
m, l, _ = zip(*states, strict=True)
largest = max(scores)  # the two passes: first this, then the sum
total = sum(math.exp(score - largest) for score in scores)
fig = new_figure(9.5, 3.2)
left, right = fig.subplots(1, 2)
left.plot(scores, "o", ms=4, color="#56B4E9", label="scores")
left.stairs(m, range(0, 49, 8), baseline=None, color="#222222", lw=2, label="m after the tile")
left.axhline(largest, color="#D55E00", ls="--", label="two passes: the largest")
left.set(xlabel="key", ylabel="score", xticks=range(0, 49, 8))
right.plot(l, "s-", color="#222222", label="l, relative to its own m")
rescaled = [own * math.exp(then - largest) for then, own in zip(m, l, strict=True)]
right.plot(rescaled, "o:", color="#0072B2", label="l, relative to the last m")
right.axhline(total, color="#D55E00", ls="--", label="two passes: the sum")
right.set(xlabel="tile", ylabel="sum of exponentials", ylim=(0, 1.45 * total))
left.legend(fontsize=8, loc="lower right")
right.legend(fontsize=8, loc="upper left")
alt = f"Online softmax: m rises from {m[0]:.2f} to {m[-1]:.2f}, the largest score. l falls from {l[3]:.2f}"
show(fig, alt=f"{alt} to {l[4]:.2f} as m jumps, and ends at {l[-1]:.2f}; two passes give {total:.2f}.")

# %% [markdown]
# Where $m$ jumps, $l$ may fall, since what was summed so far is rescaled. Measured against the last $m$ (dotted) the
# sum only grows. Both end where the two passes end. Next, what grouping saves, for 8 query heads and 40 tokens.


# %%
def paged_batch(lens, heads=(4, 2), size=4):
    """Arguments of a kernel: blocks in random order, NaN in every slot without a token, tables padded with -1."""
    tables = torch.full((len(lens), max(lens) // size + 2), -1)
    k, v = torch.full((2, tables.numel(), size, heads[1], 16), math.nan)
    free = iter(torch.randperm(tables.numel()))
    for r, n in enumerate(lens):
        for p in range(n):
            if p % size == 0:
                tables[r, p // size] = next(free)
            slot = tables[r, p // size], p % size
            k[slot], v[slot] = torch.randn(2, heads[1], 16)
    return torch.randn(len(lens), heads[0], 16), k, v, tables, torch.tensor(lens), 16**-0.5


both = {"naive": attention.paged_attention_naive, "grouped": attention.paged_attention}
groups, kib, fig = [1, 2, 4, 8], {}, new_figure(5.5, 2.8)
ax = fig.subplots()
for (name, kernel), colour in zip(both.items(), (PALETTE[5], PALETTE[1]), strict=True):
    runs = [record(kernel, *paged_batch([40], heads=(8, 8 // group), size=16))[1] for group in groups]
    kib[name] = [sum(map(len, loaded.values())) * 64 // 1024 for loaded in runs]
    ax.plot(groups, kib[name], {"naive": "s--", "grouped": "o-"}[name], color=colour)
    ax.text(8, kib[name][-1] + 2, name, ha="right", color=colour)
ax.set(xlabel="query heads for each KV head", ylabel="KiB of K and V loaded", xticks=groups, ylim=(0, 47))
show(fig, alt=f"KiB loaded with {groups} query heads per KV head: naive {kib['naive']}, grouped {kib['grouped']}.")

# %% [markdown]
# For a prompt of 32 tokens, of which 8 were computed before: three programs for each KV head, 8 queries each.

# %%
_, k, v, table, n, scale = paged_batch([32])
chunk = (torch.randn(24, 4, 16), k, v, table, n, torch.tensor([0, 24]), scale)
out, loaded = record(prefill_attention, *chunk, tiles=attention.Tiles(16, 8, 4, 1))
seen = [sum(program == (i, 0, 0) for program, _, _ in loaded["K"]) for i in range(3)]
fig = new_figure(7.5, 2.2)
ax = fig.subplots()
ax.barh(range(3), seen, color=PALETTE[0], edgecolor=INK, lw=0.5, label="keys loaded")
ax.barh(range(3), 8, left=[8, 16, 24], height=0.25, color=PALETTE[1], label="its own queries")
ax.set(yticks=range(3), ylim=(2.6, -0.6), xlim=(0, 40), xlabel="position in the sequence", ylabel="program")
ax.legend(fontsize=8, loc="upper right")
show(fig, alt=f"Three programs of a prompt load {seen} keys: each up to its own last query.")
claim("each program reads up to its last query", seen == [16, 24, 32], measured=seen)
off = (out - prefill_attention_reference(*chunk)).abs().max().item()
claim("the prefill kernel agrees with PyTorch to 1e-4", off <= 1e-4, measured=f"{off:.0e}")

# %% [markdown]
# Split-KV of 50 tokens. A part is a whole number of tiles of 8 keys. How many tiles has the longest part? Move the
# slider.


# %%
long = paged_batch([50, 3])


def parts(num_splits):
    """The output for both sequences, and which rows each part of the first loads for KV head 0."""
    out, loaded = record(attention.paged_attention, *long, num_splits=num_splits, tiles=tiles)
    return out, [{row for program, _, row in loaded["K"] if program == (0, 0, i)} for i in range(num_splits)]


# %%
def in_parts(num_splits=4):
    """The keys of 50 tokens, divided among programs."""
    counts, fig = [*map(len, parts(num_splits)[1])], new_figure(7.5, 0.9 + 0.25 * num_splits)
    ax, most = fig.subplots(), math.ceil(max(counts) / 8)
    starts = [sum(counts[:i]) for i in range(num_splits)]
    ax.barh(range(num_splits), counts, left=starts, color=PALETTE[4], edgecolor=INK, lw=0.5)
    ax.set(yticks=range(num_splits), ylim=(num_splits - 0.4, -0.6), xlabel="position in the sequence", ylabel="part")
    return fig, f"50 tokens in {num_splits} parts load {counts} keys; the longest part has {most} tiles."


turn(in_parts, num_splits=(1, 2, 4, 7, 8))

# %% [markdown]
# The engine's kernel for CPUs (`kernels/paged_attention_cpu.py`, compiled by Numba) follows the table as well, and can
# be timed here: one layer of SmolLM2, 16 sequences of 512 tokens:

# %% tags=["machine"]
gather, follow = ways = gather_call(block_size=16), kernel_call(block_size=16)
off, times = abs(gather() - follow()).max(), [1e3 * median_seconds(way) for way in ways]
claim("following the table gives what the copies give, to 1e-5", off <= 1e-5, measured=f"{off:.0e}")
print(f"gathering {times[0]:.1f} ms, following the table {times[1]:.1f} ms")

# %% [markdown]
# Whether the grouped kernel is twice as fast as the naive one, `python -m minivllm bench kernels --only B16` tells on a
# GPU. By count (`docs/gpu.md`) its instructions need 19 % of the time in which an H100's memory brings the bytes, the
# naive kernel's 159 %.
#
# ## Claims
#
# The batches: one token; exactly a block; a ragged batch with four query heads for one KV head; blocks of 5. Every
# slot without a token holds NaN, and the tables are padded with -1.

# %%
shapes = (([1], (4, 2), 4), ([16], (4, 4), 16), ([7, 33, 16, 1], (4, 1), 16), ([5, 12, 26], (6, 2), 5))
errors = []
for shape in shapes:
    arguments = paged_batch(*shape)
    reference = attention.paged_attention_reference(*arguments)
    outs = attention.paged_attention_naive(*arguments), attention.paged_attention(*arguments, tiles=tiles)
    errors += [(out - reference).abs().max().item() for out in outs]
claim("no NaN of a slot without a token is ever seen", not any(map(math.isnan, errors)))
claim("both kernels agree with PyTorch to 1e-4", max(errors) <= 1e-4, measured=f"at most {max(errors):.0e}")
q, k, v, table, n, scale = paged_batch([9, 22])
one_more = attention.paged_attention(q, k, v, table, n + 1, scale)
claim("told of one token too many, a kernel gives NaN: the test can fail", one_more.isnan().all().item())
wrong = attention.paged_attention_reference(q, k.flip(2), v.flip(2), table, n, scale)  # KV heads exchanged
wrong_by = (attention.paged_attention(q, k, v, table, n, scale) - wrong).abs().max().item()
claim("the same bound rejects a wrong KV head", wrong_by > 1e-4, measured=f"wrong by {wrong_by:.2f}")

# %%
keys = [row for _, _, row in grouped["K"]]
claim("grouped: each key there is, once", len(keys) == len(set(keys)) == 2 * sum(lens), measured=len(keys))
ratio = [one / other for one, other in zip(*kib.values(), strict=True)]
claim("naive: each key once for every query head of its group", ratio == groups, measured=ratio)

# %%
results, by_split = zip(*[parts(num_splits) for num_splits in (1, 2, 4)], strict=True)
shares = [[*map(len, rows)] if len(set().union(*rows)) == 50 else [] for rows in by_split]
spread = max((out - results[0]).abs().max().item() for out in results)
claim("split-KV with 1, 2 and 4 parts gives the same", spread <= 1e-6, measured=f"to {spread:.0e}")
claim("each of 50 tokens belongs to one part", all(sum(share) == 50 for share in shares), measured=shares)

# %% [markdown]
# Last, SmolLM2 from the beginning, with its attention in the interpreter.

# %% tags=["machine"]
(again,) = real_llm(attention_backend="triton", device="cpu").generate(question, greedy(2), use_tqdm=False)
same = again.outputs[0].token_ids == told.outputs[0].token_ids
claim("SmolLM2 writes the same words with our kernels", same, measured=again.outputs[0].text)

# %% [markdown]
# ## Exercises
#
# In `notebooks/exercises/ch10_triton_kernel.py`:
#
# - **ex10a** `merge`: two parts of a softmax become one, in PyTorch.
# - **ex10b** `decode_kernel`: a kernel of your own, with one query head per program and tiles apart from blocks.
# - **ex10c** `split_kv`: divide the tokens fairly among several programs, and merge what they bring back.
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex10a`:
#
#     %load_ext minivllm.course
#     %check ex10a
#
# ## Check yourself
#
# <details><summary>A tile is full of keys that lie behind the end of the sequence. What would happen to m, l and acc
# if it were processed all the same, with the mask?</summary>
#
# Nothing. All its scores are $-\infty$, so $m$ stays, $\alpha = 1$ and every exponential is 0. Only the very first tile
# must not be so: then $m$ is still $-\infty$, and $-\infty - (-\infty)$ is not a number.
# </details>
#
# <details><summary>Why does a part of split-KV store m and l, and not its finished output alone?</summary>
#
# Two averages cannot be averaged without their weights: a part weighs $l \cdot e^m$.
# </details>
#
# <details><summary>All tests pass in the interpreter. Name two bugs that may still be there.</summary>
#
# A race, since programs run one after the other. A tile too large for shared memory.
# </details>
#
# ## In real vLLM
#
# The paper's kernel, one query head per program like our naive one, was written in CUDA:
# [`csrc/attention/attention_kernels.cu`] in version 0.1, removed in 0.25. Its nearest relative today is
# [`vllm/v1/attention/ops/triton_unified_attention.py`]: prompts and decode steps in one kernel; a row is a query token
# and a head of a group. Its split-KV cuts into 16 segments, and `reduce_segments` merges them. On many GPUs vLLM takes
# FlashAttention instead.
#
# [`csrc/attention/attention_kernels.cu`]: https://github.com/vllm-project/vllm/blob/v0.1.0/csrc/attention/attention_kernels.cu
# [`vllm/v1/attention/ops/triton_unified_attention.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/attention/ops/triton_unified_attention.py
#
# ## Key points
#
# - A kernel is one function run by many programs; each asks which one it is, and finds its keys through the block
#   table.
# - $m$, $l$ and $acc$ make softmax a matter of one pass; a new maximum rescales both sums.
# - Parts of a softmax can be merged in any order. Tiles, splits and online softmax all rest on that.
# - Following the table saves the copy. Grouped heads load each key once; only a GPU can time that.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), section 5.1. **Next:** [11 · Putting it together](11_together.ipynb).
