# %% [markdown]
# # 05 · KV paging
#
# ## Before you start
#
# **You need:** chapter 04: block tables. Chapter 03: the picture of wasted memory.
#
# **You will be able to:** follow a key from the model into its slot and back into attention, show that paging changes
# no bit of the result, and measure what it does to the memory of chapter 03.
#
# **Minutes:** 35 to read and run, 40 for the exercises.

# %%
import json
import random

import torch

from minivllm.attention import AttentionMetadata, paged_attention_reference
from minivllm.baselines import ReservationPolicy, StaticBatchScheduler, orca
from minivllm.bench import paper
from minivllm.course.catalog import ROOT
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import (
    WORKLOAD,
    arrange_free_blocks,
    encode,
    example_llm,
    greedy,
    real_llm,
    run_workload,
    toy_llm,
)
from minivllm.course.turn import turn
from minivllm.kv_cache import KVCache
from minivllm.model_runner import ModelRunner
from minivllm.viz import blocks_in_use, memory_area, memory_use, show, slot_map, wasted_share

seed_all()

# %% [markdown]
# ## The problem
#
# The block table of chapter 04 is a list of numbers in plain Python. The model works on tensors. Somewhere the two
# must meet, twice in every layer:
#
# - **writing**: this step's keys and values must go to their slots, wherever these are;
# - **reading**: attention must find the keys of all earlier tokens of *its* sequence, in order, although they are
#   scattered over the pool.
#
# If either goes to a wrong slot, nothing crashes. The text is just wrong, in a way that depends on which other requests
# are running. So we will insist on equality to the last bit.
#
# Here is SmolLM2, with a pool of 8 blocks in which 7, 2 and 4 are the next free ones. Behind each token is the slot of
# its keys and values. To choose the word after "is", all 30 layers read slots 28 to 31 and slot 8, in this order:

# %% tags=["machine"]
story, scattered_order = real_llm(), (7, 2, 4, 1, 0, 3, 6, 5)
arrange_free_blocks(story, scattered_order)
(told,) = story.generate("The capital of France is", greedy(7), use_tqdm=False)
row, word_of = story.llm_engine.trace.steps[-1].scheduled[0], story.llm_engine.trace.word_of
words = [word_of(token) for token in (*told.prompt_token_ids, *told.outputs[0].token_ids)]
print("block table", list(row.block_ids))
print(*[f"{words[p]!r} {row.block_ids[p // 4] * 4 + p % 4}," for p in range(row.start + 1)])

# %% [markdown]
# ## Predict, then run
#
# The workload of chapter 03 again: twelve requests, static batches of four, a pool of 256 slots. There 70 % of the
# held slots held no token. We change one thing: blocks of 4 slots, taken when needed, in place of reservations of 64.
# What share of the held slots is empty now? (The queue of free blocks is shuffled first, as it would be after an hour
# of traffic. If anything depended on blocks lying side by side, that would show.)

# %%
guess = None

# %%
options = {
    "num_blocks": 64,
    "block_size": 4,
    "max_num_seqs": 4,
    "max_model_len": 64,
    "scheduler_cls": StaticBatchScheduler,
}
reserved, text_reserved = run_workload(
    toy_llm(kv_cache_manager_cls=orca(ReservationPolicy.MAX, 64), **options)
)
paged_llm = toy_llm(**options)
arrange_free_blocks(paged_llm, random.Random(0).sample(range(64), 64))
paged, text_paged = run_workload(paged_llm)
reveal(guess, round(wasted_share(paged), 3))

# %% [markdown]
# ## How the code does it
#
# Before each step the **runner** turns the plan into tensors. For every token it looks up the slot, through the block
# table: one number per token, the `slot_mapping`. (A and B in the comments are two sequences, packed one behind the
# other as in the print below. Drafts belong to chapter 16: read `draft_token_ids` as empty.)

# %%
show_source(ModelRunner.prepare_inputs)

# %% [markdown]
# That is most of what paging costs: a few small arrays of integers for each step, made once and used by all layers.
# For the example request with its six words, and a companion with three:


# %%
class PrintingRunner(ModelRunner):
    """A runner that shows what it hands to the model."""

    def prepare_inputs(self, plan):
        inputs = super().prepare_inputs(plan)
        rows = inputs.metadata
        print(
            f"step {plan.step}: positions {inputs.positions.tolist()}, slot_mapping {rows.slot_mapping.tolist()}"
        )
        print(
            f"        block_tables {rows.block_tables.tolist()}, seq_lens {rows.seq_lens.tolist()}, "
            f"query_start_loc {rows.query_start_loc.tolist()}"
        )
        return inputs


llm = example_llm()
engine = llm.llm_engine
engine.executor.runner = PrintingRunner(engine.runner.model, engine.runner.kv_cache, engine.runner.sampler)
prompts = [{"prompt_token_ids": encode(text)} for text in ("Four score and seven years ago", "all men are")]
outputs = llm.generate(prompts, greedy(4), use_tqdm=False)

# %% [markdown]
# Step 0 writes the six keys of the first request to slots 28 to 31, 8 and 9. Steps 1 and 2 write one each, to slots 10
# and 11, in the block that is already there. Step 3 needs a new one. `seq_lens` says how far attention may look,
# `query_start_loc` where each sequence begins in the row of tokens.
#
# So all block tables of a step are *one* tensor of int32: a row for each sequence, as wide as the longest table. The
# companion's table is `[4]`, its row `[4, 0]`. The 0 is padding, although there is a block 0; `seq_lens` ends at 3, so
# it is never looked up.
#
# Writing is one indexed copy (chapter 02 showed it). Reading is the interesting half. The slow, obvious version of
# attention spells out what every fast one must do: collect the slots of a sequence through its table, in order of
# position, and then forget that there ever were blocks.

# %%
show_source(paged_attention_reference, docstring=False)

# %% [markdown]
# The line with `slots` is the only one that knows about paging. After the lookup, `key` is a plain tensor of shape
# `(n, Hq, D)`, as if it had always been in one piece. A fast kernel does not build that tensor: it walks the table and
# reads block after block straight from the pool. But it must come to the same result.
#
# ### The experiment
#
# Six random keys and values for a made-up sequence. Write them twice: once into a pool in a straight line (table
# `[0, 1]`), once by the table `[7, 2]`. Fill both pools with rubbish first, as other requests would have left them.
# Then read both back, and attend over both.

# %%
config = toy_llm().llm_engine.model_config
key, value = torch.randn(2, 6, config.num_key_value_heads, config.head_dim)  # (T, Hkv, D) each
query = torch.randn(6, config.num_attention_heads, config.head_dim)  # (T, Hq, D)


def written(table, read_by=None):
    """Write the six tokens by `table` into a pool full of rubbish, read them back by `read_by`, attend to them."""
    kv_cache = KVCache(config, num_blocks=8, block_size=4, dtype=torch.float32, device="cpu")
    for tensor in (kv_cache.key[0], kv_cache.value[0]):
        tensor.normal_(std=100.0)
    slot_mapping = torch.tensor([table[position // 4] * 4 + position % 4 for position in range(6)])
    kv_cache.write(0, key, value, slot_mapping)
    metadata = AttentionMetadata(
        slot_mapping=slot_mapping,
        block_tables=torch.tensor([table], dtype=torch.int32),
        seq_lens=torch.tensor([6], dtype=torch.int32),
        query_start_loc=torch.tensor([0, 6], dtype=torch.int32),
        max_query_len=6,
        max_seq_len=6,
    )
    read_by = read_by or table
    slots = [read_by[position // 4] * 4 + position % 4 for position in range(6)]
    gathered = kv_cache.key[0].flatten(0, 1)[slots]  # (6, Hkv, D)
    attended = paged_attention_reference(query, kv_cache.key[0], kv_cache.value[0], metadata, scale=0.25)
    return gathered, attended


(straight, attended_straight), (scattered, attended_scattered) = written([0, 1]), written([7, 2])
by_another_table, _ = written([7, 2], read_by=[2, 7])
print(
    "read back equal:",
    torch.equal(straight, scattered),
    "  attention equal:",
    torch.equal(attended_straight, attended_scattered),
)

# %% [markdown]
# This is also why freed blocks are not zeroed. An earlier request's keys lie in slots behind `seq_lens`, and a slot
# comes before `seq_lens` only when its owner has written it. The rubbish above is a hundred times as large as a key,
# and it has moved no bit.
#
# ## The picture
#
# Every slot of the pool, in the middle of the workload; a number is the position of a token in its sequence. Left,
# reservations: each request fills the beginning of 64 slots in a row. Right, blocks: at most four neighbours, wherever
# there was room.

# %%
show(
    slot_map({"reserved": reserved, "paged": paged}, [33, 33]),
    alt=f"The 256 slots at step 33. Reserved: four requests hold all of them and fill {memory_use(reserved)[33].used}. "
    f"Paged: the same {memory_use(paged)[33].used} tokens in pieces of 4, within {blocks_in_use(paged)[33]} blocks.",
)

# %% [markdown]
# And the picture of chapter 03, on the same axes. Left as it was there, right with paging. Static batching is
# unchanged, so the tokens (dark) are exactly the same in both; all the rest of the left side is gone.

# %%
show(
    memory_area({"reserved": reserved, "paged": paged}),
    alt=f"Slots by kind over {len(paged.steps)} steps: with reservations {wasted_share(reserved):.0%} of the held slots "
    f"hold no token, with paging {wasted_share(paged):.0%}; the most blocks in use fall from "
    f"{max(blocks_in_use(reserved))} to {max(blocks_in_use(paged))} of 64.",
)

# %% [markdown]
# The free area on the right is room for other requests. With 64 slots reserved for each,
# four filled the pool. How many fit now?

# %%
for name, manager in (("reserved", {"kv_cache_manager_cls": orca(ReservationPolicy.MAX, 64)}), ("paged", {})):
    trace, _ = run_workload(toy_llm(**(options | {"max_num_seqs": 12} | manager)))
    most = max(len({row.request_id for row in record.scheduled}) for record in trace.steps)
    print(
        f"{name:<9} at most {most:>2} requests at once, {len(trace.steps):>3} steps, {max(blocks_in_use(trace))} blocks"
    )
    together = most

# %% [markdown]
# ## Claims

# %%
claim(
    "what is read through the table is bit for bit what was written",
    torch.equal(scattered, key) and torch.equal(straight, key) and not torch.equal(by_another_table, key),
)
claim(
    "attention over scattered blocks equals attention over one piece, to the last bit",
    torch.equal(attended_straight, attended_scattered),
)
claim(
    "paging changes no token of the workload",
    [each.outputs[0].token_ids for each in text_reserved]
    == [each.outputs[0].token_ids for each in text_paged],
    measured=f"{sum(answer for _, answer in WORKLOAD)} tokens",
)
claim(
    "with paging, no sequence wastes a whole block, at any step",
    all(
        use.held - use.used < 4 * max(1, len(record.scheduled))
        for use, record in zip(memory_use(paged), paged.steps, strict=True)
    ),
)
claim(
    "the share of empty slots falls by more than a factor of five",
    wasted_share(reserved) > 5 * wasted_share(paged),
    measured=f"{wasted_share(reserved):.1%} to {wasted_share(paged):.1%}",
)
claim(
    "in the same memory, three times as many requests run at once",
    together == 12,
    measured="12 in place of 4",
)

# %% [markdown]
# Last, the real model, whose first request lay in blocks 7, 2 and 4. Now the same blocks are handed out in order:

# %% tags=["machine"]
arrange_free_blocks(story, range(8))
(again,) = story.generate(told.prompt, greedy(7), use_tqdm=False)
claim(
    "SmolLM2 writes the same text in blocks 7, 2, 4 and in blocks 0, 1, 2",
    again.outputs[0].token_ids == told.outputs[0].token_ids and row.block_ids == scattered_order[:3],
    measured=again.outputs[0].text,
)

# %% [markdown]
# ## Why 16?
#
# vLLM's blocks have 16 slots, ours here 4. Half a block is lost at the end of each sequence, so small blocks waste
# less. Turn the size: at 64 a block is as long as a request may get, which is a reservation again.


# %%
def in_blocks_of(block_size=16):
    """The workload in the same 256 slots: where they stand, and how long the tables get."""
    blocks = {"block_size": block_size, "num_blocks": 256 // block_size}
    trace, _ = run_workload(toy_llm(**(options | blocks)))
    entries = max(len(row.block_ids) for record in trace.steps for row in record.scheduled)
    return memory_area({f"blocks of {block_size}": trace}), (
        f"In blocks of {block_size} {wasted_share(trace):.0%} of the held slots hold no token, and the longest block "
        f"table has {entries} entries."
    )


turn(in_blocks_of, block_size=(1, 2, 4, 8, 16, 32, 64))

# %% [markdown]
# The other side: tables get longer (a text of 1,024 tokens has 64 entries at size 16, and 1,024 at size 1), and a
# kernel reads shorter pieces. With lengths as in the paper (`bench memory`, simulated with this scheduler and this
# memory manager, lower right), blocks of 16 leave little empty, and longer ones soon more. The paper measured speed
# (section 7.2): on chats 16 to 128 are equally good, on short instructions 16 and 32.

# %%
saved = json.loads((ROOT / "docs" / "data" / "memory.json").read_text(encoding="utf-8"))["figures"]
used = {each["system"]: each["used"] for each in saved["2"] if each["dataset"] == "ShareGPT"}
waste = {(each["dataset"], each["block_size"]): each["waste"] for each in saved["18b"]}
show(
    paper.figure_of(saved),
    alt=f"Of all slots, reserving the longest length fills {used['max']:.1%} (fitted to the paper's 20.4%), paging "
    f"{used['paged']:.1%} (96.3%). Empty slots of held blocks: {waste['ShareGPT', 16]:.1%} at size 16 and "
    f"{waste['ShareGPT', 128]:.1%} at 128 with chats, {waste['Alpaca', 16]:.1%} and {waste['Alpaca', 128]:.1%} with short "
    "instructions.",
)

# %% [markdown]
# Upper left is the paper's main point: with lengths like those of real chats the last block matters even less than with
# our short ones (chapter 11 does the sum). The lengths are drawn with the paper's means. Their spread was fitted to the
# paper's 20.4%, so that bar agrees by construction, and the others are predictions. Upper right: how many requests run
# at once. (The paper's 132 for paging on Alpaca are left out, because there the arrival rate was the limit and not
# memory.) What sharing saves, lower left, is chapter 09; the beams follow random logits, so they show a shape and not a
# number.
#
# ## Exercises
#
# In `notebooks/exercises/ch05_kv_paging.py`:
#
# - **ex05a** `slot_mapping`: for any table and range of positions. Swapping `//` and `%` gives slots that look fine.
# - **ex05b** `gather_kv`: read back a batch of sequences of different lengths.
# - **ex05c** `block_size_sweep`: waste and length of the tables for blocks of 1, 4, 16 and 64. Which would you
#   choose?
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex05a`:
#
#     %load_ext minivllm.course
#     %check ex05a
#
# ## Check yourself
#
# <details><summary>Where in the forward pass does paging make a difference?</summary>
#
# In two places of each layer: where keys and values are written, and where attention reads them. Norms, projections
# and the feed-forward part never see a block.
# </details>
#
# <details><summary>A key is rotated by RoPE for its position. Does it have to be rotated again if its block is
# somewhere else?</summary>
#
# No. The rotation depends on the position in the sequence, the slot on where there was room. They have nothing to do
# with each other.
# </details>
#
# <details><summary>Is attention over blocks faster than over one piece?</summary>
#
# For one request it is rather a little slower: there is a table to walk, and memory is read in pieces. What it buys is
# room for more requests in each step. Paging is a gain in throughput that is paid for with a bit of latency.
# </details>
#
# ## In real vLLM
#
# The runner's work is in [`vllm/v1/worker/gpu_model_runner.py`] and `block_table.py`; the names `slot_mapping`,
# `seq_lens` and `query_start_loc` are the same. Reading is done by FlashAttention or FlashInfer, which accept block
# tables today; the paper's own kernel (`csrc/attention/`) was removed in 0.25. This project's
# Triton kernels are in `kernels/`, and chapter 10 reads one.
#
# [`vllm/v1/worker/gpu_model_runner.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/worker/gpu_model_runner.py
#
# ## Key points
#
# - `slot_mapping` says where to write, `block_tables` and `seq_lens` where to read; both are made once per step.
# - Behind the lookup, attention is unchanged, and so is every bit of the result.
# - Less than one block of waste per sequence: from 70 % of the held memory to a few per cent here.
# - Saved memory becomes more requests per step, and that becomes throughput.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), sections 4.1 and 4.3. **Next:** [06 · Continuous batching](06_continuous_batching.ipynb).
