# %% [markdown]
# # 04 · The block table
#
# ## Before you start
#
# **You need:** chapter 03: why memory in one piece is wasted. Python lists and dictionaries; no PyTorch today.
#
# **You will be able to:** translate a position into a slot, say when a sequence needs a new block and when it does
# not, and state the invariants that keep an allocator honest.
#
# **Minutes:** 35 to read and run, 45 for the exercises.

# %%
import random

from minivllm.block_pool import BlockPool
from minivllm.block_table import BlockTable, cdiv
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import decode, encode, example_llm, greedy, real_llm, word
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.sequence import Sequence
from minivllm.viz.trace import Trace
from minivllm.viz import show, three_panel, trace_player

seed_all()

# %% [markdown]
# ## The problem
#
# Chapter 03 found more than two thirds of the held memory empty, because each request had to own one unbroken piece,
# as long as it might ever get. Operating systems had that problem sixty years ago. Each program, too, wanted one piece
# of memory, how much it would need was not known, and the gaps between the pieces were lost. The answer was to let the
# program *believe* in one piece, and to keep a table that says where each part of it really is.
#
# Do the same with keys and values. Cut the pool into **blocks** of `block_size` slots. Give a sequence one block at a
# time, when it needs it. All blocks have one size, so any free block will do, and no gap between blocks is lost. Keep a
# **block table** for each sequence. With $S$ slots in a block, entry $i$ names the physical block that holds positions
# $i \cdot S$ to $(i + 1) \cdot S - 1$.
#
# Here is the real model, SmolLM2, with eight blocks of 4 slots. Its two requests take a block when they need one. Left
# is what request 0 sees: one line of words, cut into *logical* blocks. In the middle is its block table. Right is the
# memory, the *physical* blocks, with request 1 hatched. Cells written in this step have a thick outline:

# %% tags=["machine"]
story = real_llm()
answers = story.generate(["The capital of France is", "Water boils at a"], [greedy(7), greedy(9)], use_tqdm=False)
print(*[output.prompt + output.outputs[0].text for output in answers], sep="\n")
now = story.llm_engine.trace.steps[5]
tables = [list(row.block_ids) for row in now.scheduled]
show(three_panel(story.llm_engine.trace, 5, "0"), alt=f"SmolLM2, step 5: two requests with the block tables {tables}.")

# %% [markdown]
# The rest of this chapter counts, and so it uses the toy, whose words are noise and whose steps take a millisecond.
#
# ## Predict, then run
#
# A sequence has 6 tokens in blocks of 4, so it holds 2 blocks. It grows one token at a time. What is the smallest
# number of tokens for which it needs a *fifth* block?

# %%
guess = None

# %%
tokens = 6
while cdiv(tokens, 4) < 5:
    tokens += 1
reveal(guess, tokens, "tokens")

# %% [markdown]
# ## How the code does it
#
# The arithmetic is short, and it is worth reading twice, because the whole system leans on it.

# %%
show_source(BlockTable.slot)
show_source(BlockTable.num_missing_blocks)

# %% [markdown]
# `num_missing_blocks` is one subtraction: blocks needed for the tokens, minus blocks held. It has no case for "the
# last block is just full" and none for "this is the first token". Some small engines ask `length % block_size == 1`
# instead. That is right only when tokens come one at a time, and only when it is asked right after the new token was
# appended.
#
# The worked example, by hand. The sequence has blocks 7 and 2:

# %%
pool = BlockPool(num_blocks=8)
table = BlockTable(block_size=4, blocks=[pool.blocks[7], pool.blocks[2]])
print("position:", *[f"{position:>3}" for position in range(8)])
print("slot:    ", *[f"{table.slot(position):>3}" for position in range(8)])
print("missing blocks for 7, 8 and 9 tokens:", [table.num_missing_blocks(count) for count in (7, 8, 9)])

# %% [markdown]
# Positions 6 and 7 have slots although the prompt has only six tokens: the last block has room for them. The ninth
# token is the first to need a new block. So a sequence wastes at most `block_size - 1` slots, those at the end of its
# last block, and its final length need not be known in advance.
#
# The **block pool** knows which blocks are free. It keeps a queue of free blocks, and for each block its *reference
# count*, the number of sequences that hold it. In this chapter that number is 0 or 1. In chapter 09 sequences share
# blocks, and the number grows; a block's *hash* and `_forget` belong to that chapter, too.

# %%
show_source(BlockPool.allocate)
show_source(BlockPool.free)

# %% [markdown]
# Two details matter. `allocate` checks *before* it takes anything: if it raised halfway, some blocks would be in no
# queue and in no table. And freeing a block twice raises an error. In a queue that is a plain list the block would then
# stand twice, two sequences would get it, and each would overwrite the other's keys and values. You would see strange
# text, now and then, under load only.
#
# So two rules have to hold after every operation, the **invariants** of the pool. A block stands in the free queue
# exactly when its count is 0. And its count is the number of tables that name it.
#
# The **manager** puts tables and pool together. Before each step it answers one question: can this sequence compute
# this many more tokens? If it can, the blocks are taken, and the answer is a list of blocks to copy first (empty until
# chapter 09). If not, the answer is `None`, and nothing has changed.

# %%
manager = KVCacheManager(num_blocks=4, block_size=4, enable_prefix_caching=False)
short, long = Sequence(0, [0] * 6, seed=0), Sequence(1, [0] * 9, seed=0)
for name, seq, count in (("6 tokens", short, 6), ("9 tokens", long, 9)):
    answer = manager.allocate_slots([(seq, count)])
    print(
        f"{name}: {'does not fit' if answer is None else 'table ' + str(manager.block_tables[seq.seq_id].block_ids)}"
        f", free blocks {manager.pool.free_block_ids}"
    )
manager.free(short)
print(f"after the first is done: free blocks {manager.pool.free_block_ids}")

# %% [markdown]
# Nine tokens need three blocks, and only two were free. Note the order in the last line: freed blocks join the end of
# the queue, last block first. So the beginning of a sequence is overwritten later than its end, which the prefix cache
# will need (chapter 09).
#
# ## The picture
#
# The example request and a companion, run by the engine on the toy. The pool was shuffled, as it would be after an
# hour of traffic, and hands out blocks 7 and 2 first. Here is step 0, which computes the prompts:

# %%
llm = example_llm(trace=Trace(word_of=word))
prompts = ["Four score and seven years ago", "all men are"]
outputs = llm.generate(
    [{"prompt_token_ids": encode(text)} for text in prompts], [greedy(6), greedy(4)], use_tqdm=False
)
trace = llm.llm_engine.trace


def describe(step):
    """One sentence about request 0 at one step, from the trace."""
    row = next(row for row in trace.steps[step].scheduled if row.request_id == "0")
    count = row.start + row.num_tokens
    return (
        f"Step {step}: request 0 has {count} tokens in {len(row.block_ids)} blocks, table {list(row.block_ids)}; "
        f"{len(row.block_ids) * 4 - count} slots of its last block are empty."
    )


show(three_panel(trace, 0, "0"), alt=describe(0))

# %% [markdown]
# Where is the word that step 0 generated? It was chosen at the end of the step, from the logits; its own keys and
# values are computed when it is the input, in step 1. So step 1 writes the first generated word into block 2, step 2
# writes the second and fills the block, and step 3 takes a new block for the third:

# %%
show(three_panel(trace, 3, "0"), alt=describe(3))

# %% [markdown]
# Now step through all of it, with the real model from above. Watch the free queue: blocks leave it at the front and
# come back at its end.

# %% tags=["machine"]
trace_player(story.llm_engine.trace)

# %% [markdown]
# ## Claims
#
# A thousand random operations: start a sequence, let one grow, end one. After each of them `check_invariants` checks
# the two rules, and the cell itself that no block is lost and none has two owners.

# %%
rng = random.Random(0)
manager = KVCacheManager(num_blocks=40, block_size=4, enable_prefix_caching=False)
alive, next_id, refused, worst_waste, most_blocks, clean = [], 0, 0, 0, 0, 0
for _ in range(1000):
    action = rng.random()
    if action < 0.15 or not alive:
        alive.append(Sequence(next_id, [0] * rng.randint(1, 30), seed=0))
        next_id += 1
    if action < 0.9:
        seq = rng.choice(alive)
        count = seq.num_uncomputed_tokens
        before = manager.pool.free_block_ids
        if manager.allocate_slots([(seq, count)]) is None:
            refused += 1
            assert manager.pool.free_block_ids == before, "a refusal changed something"
            manager.free(alive.pop(rng.randrange(len(alive))))
        else:
            seq.num_computed_tokens += count
            seq.append(0)
    else:
        manager.free(alive.pop(rng.randrange(len(alive))))
    manager.check_invariants()
    owned = [block_id for each in manager.block_tables.values() for block_id in each.block_ids]
    clean += len(owned) == len(set(owned)) == manager.pool.num_used
    most_blocks = max(most_blocks, len(owned))
    for seq in alive:
        if seq.seq_id in manager.block_tables:
            held = len(manager.block_tables[seq.seq_id]) * 4
            worst_waste = max(worst_waste, held - seq.num_computed_tokens)

claim(
    "after each of 1,000 random operations no block has two owners",
    clean == 1000,
    measured=f"{next_id} sequences",
)
claim(
    "the pool was really short of memory", refused > 20 and most_blocks == 40, measured=f"{refused} refusals"
)
claim("no sequence ever wastes a whole block", worst_waste < 4, measured=f"at most {worst_waste} slots")
for seq in alive:
    manager.free(seq)
claim("when all are gone, all blocks are free", manager.pool.num_free == 40)

# %%
last = max(
    i for i, record in enumerate(trace.steps) if any(row.request_id == "0" for row in record.scheduled)
)
row = next(row for row in trace.steps[last].scheduled if row.request_id == "0")
claim(
    "the example begins in blocks 7 and 2, and takes a third for its ninth token",
    row.block_ids[:2] == (7, 2)
    and [len(record.scheduled[0].block_ids) for record in trace.steps[:4]] == [2, 2, 2, 3],
    measured=f"table {list(row.block_ids)}, text: {decode(outputs[0].outputs[0].token_ids)}",
)

# %% [markdown]
# ## Exercises
#
# In `notebooks/exercises/ch04_block_table.py`:
#
# - **ex04a** `blocks_needed`: how many blocks a number of tokens needs.
# - **ex04b** `append_tokens`: grow a sequence by its next tokens. Try the boundaries: an empty table, one slot left,
#   none left, no free block. Nothing may change when there is no room.
# - **ex04c** `free`: give everything back, once. The tests accept any order of the queue, but not a double free.
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex04a`:
#
#     %load_ext minivllm.course
#     %check ex04a
#
# ## Check yourself
#
# <details><summary>A pool has 1,000 blocks of 16 slots, and 50 sequences are running. How much is wasted at
# most?</summary>
#
# At most 15 slots per sequence, 750 of 16,000: 4.7 %. On average about half of that.
# </details>
#
# <details><summary>Why not blocks of one slot? Then nothing would be wasted.</summary>
#
# The table would have an entry for every token, and attention would jump in memory for every token. Blocks are a
# compromise: large enough to read in one go, small enough to waste little. Chapter 05 says why 16 is a good one.
# </details>
#
# <details><summary>What would happen if `allocate_slots` took the free blocks first, and then noticed that one is
# missing?</summary>
#
# The sequence would hold blocks for tokens that were not scheduled, or the blocks would be in no table and lost. The
# pool would shrink with each refusal, until the server stops. "All or nothing" is what makes `None` safe.
# </details>
#
# ## In real vLLM
#
# [`vllm/v1/core/block_pool.py`] has the same queue, as a linked list, so that a block can leave from its middle (here:
# an `OrderedDict`). The tables are in [`vllm/v1/core/single_type_kv_cache_manager.py`] as `req_to_blocks`. Block size
# is 16 by default. Models with several kinds of attention have several groups of blocks there, which is most of the
# difference in length.
#
# [`vllm/v1/core/block_pool.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/core/block_pool.py
# [`vllm/v1/core/single_type_kv_cache_manager.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/core/single_type_kv_cache_manager.py
#
# ## Key points
#
# - A block table turns "position" into "block and offset"; the sequence never notices where it lives.
# - Needed minus held: that subtraction is the whole rule of allocation.
# - Waste is less than one block per sequence, whatever its length.
# - All or nothing, and never free twice: these two keep the pool whole.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), section 4.2. **Next:** [05 · KV paging](05_kv_paging.ipynb).
