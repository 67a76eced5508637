# %% [markdown]
# # 09 · Sharing blocks: prefix cache and copy-on-write
#
# ## Before you start
#
# **You need:** chapter 04: the block table and the block pool. Chapter 06: what one step does.
#
# **You will be able to:** say when two sequences may share a block and when one of them must copy it, name a block by
# its content, and predict which free block is overwritten next.
#
# **Minutes:** 45 to read and run, 50 for the exercises.

# %%
from dataclasses import replace

import torch

from minivllm import SamplingParams
from minivllm.block_pool import BlockPool
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import WORKLOAD, decode, encode, example_llm, greedy, real_llm, toy_llm, word, workload_prompts
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.sampling_params import BeamSearchParams
from minivllm.sequence import Sequence
from minivllm.viz.trace import Trace
from minivllm.viz import new_figure, show, three_panel, trace_player

seed_all()

# %% [markdown]
# ## The problem
#
# SmolLM2 completes one prompt twice, and then gets another prompt with the same beginning. The last line counts two
# numbers for each step: the entries of all block tables, and the different blocks among them.


# %%
def texts(llm, prompts, params):
    """What an engine writes: one text for each completion of each prompt."""
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [decode(each.token_ids) for output in outputs for each in output.outputs]


def blocks_used(trace):
    """For each step: entries in its block tables, and different blocks among them."""
    rows = [[block for row in record.scheduled for block in row.block_ids] for record in trace.steps]
    return [(len(blocks), len(set(blocks))) for blocks in rows]


# %% tags=["machine"]
story = real_llm()
twice = SamplingParams(n=2, temperature=1.0, seed=4, max_tokens=6, ignore_eos=True)
(told,) = story.generate("The capital of France is", twice, use_tqdm=False)
story.generate("The capital of France is Paris. Italy's is", greedy(3), use_tqdm=False)
print(*[told.prompt + each.text for each in told.outputs], sep="\n")
print("entries, blocks:", *blocks_used(story.llm_engine.trace))

# %% [markdown]
# In steps 1 to 5 the tables have one entry more than there are blocks: one block stands in two tables.
#
# Six people use one chat server without sharing. The same instruction of 16 words stands before each question. Count
# the tokens that go through the model, and the blocks held in the fullest step:

# %%
instruction = "Four score and seven years ago our fathers brought forth on this continent a new nation"
questions = "we engaged great civil war,can long endure,testing whether any so,have come,red green blue,apple"
chats = [{"prompt_token_ids": encode(f"{instruction} {question}")} for question in questions.split(",")]
alone = toy_llm(trace=Trace())
plain_texts = texts(alone, chats, greedy(6))
num_prompt_tokens = sum(row.num_tokens for row in alone.llm_engine.trace.steps[0].scheduled)
most_alone = max(blocks_used(alone.llm_engine.trace))[1]
print(f"prompt tokens computed: {num_prompt_tokens}, of which 5 x 16 = 80 again; blocks held: {most_alone}")

# %% [markdown]
# The keys and values of the instruction depend on its tokens and their positions only. The same numbers are computed
# six times and stored six times.
#
# A block table is a list of numbers. Let two tables contain the same number, and the block is **shared**.
#
# ## Predict, then run
#
# The example request, "Four score and seven years ago", asks for four completions. Its 6 tokens lie in blocks 7 and 2;
# block 2 holds two of them, and has two empty slots. All four completions share both blocks. Then each has a first
# word of its own, and the place for it is the same slot of block 2. How many blocks have to be copied, so that no
# completion overwrites another's word?

# %%
guess = None

# %%
prompt = {"prompt_token_ids": encode("Four score and seven years ago")}
four = example_llm(trace=Trace(word_of=word))
several = SamplingParams(n=4, temperature=2.0, seed=0, max_tokens=3, ignore_eos=True)
completions = texts(four, prompt, several)
records = four.llm_engine.trace.steps
reveal(guess, sum(len(record.blocks_to_copy) for record in records), "blocks")

# %% [markdown]
# Not four. Three writers get a copy; then block 2 has one holder, which may write in place. From the trace:

# %%
for record in records:
    tables = [list(row.block_ids) for row in record.scheduled]
    print(f"step {record.step}: copies {list(record.blocks_to_copy)}, tables {tables}")
    print(f"        afterwards, block: holders  {record.ref_counts}")
print("completions:", ", ".join(completions))

# %% [markdown]
# The prompt was computed once, in step 0. From the logits of its last token four words were drawn. Then the sequence
# **forked**: blocks 7 and 2 have four holders each. In step 1 each completion wants to write position 6. Afterwards
# block 7 has four holders, the others one: five blocks, where separate requests hold eight. In step 2 each writes into
# a block of its own; then all are done, and no block has a holder.
#
# ## How the code does it
#
# The pool counts the holders of each block: its **reference count**. A fork is counting and nothing else.

# %%
show_source(KVCacheManager.fork)
show_source(BlockPool.touch)

# %% [markdown]
# A full block is never written again, so sharing it is safe. Only a last block that is not full is in danger. The rule
# is called **copy-on-write**: not at the fork (a sequence that ends there never needs a copy), but just before the
# first write, the writer gets a block of its own, with a copy of what is in the shared one.

# %%
show_source(KVCacheManager._shared_last_blocks)
show_source(KVCacheManager._copy_on_write)

# %% [markdown]
# `holders` makes it three copies and not four: it counts the writers which have got a copy in this step; the last
# keeps the block. The pairs (2, 4), (2, 1), (2, 0) travel with the plan of the step, and the tensors are copied before
# the step writes (`KVCache.copy_blocks`).
#
# ### Beam search
#
# Beam search keeps the `w` likeliest continuations, the **beams**. In each step every beam offers its likeliest next
# words, and of all the longer texts the `w` likeliest are the next beams. A beam chosen twice forks, a beam not chosen
# is dropped and gives its blocks back. The workload of chapter 03, each request with four completions, then with four
# beams:

# %%
savings, four_beams = {}, BeamSearchParams(beam_width=4, max_tokens=8, ignore_eos=True)
for name, kind in (("4 completions", several), ("4 beams", four_beams)):
    engine = toy_llm(num_blocks=512, trace=Trace()).llm_engine
    for index, (tokens, (_, answer)) in enumerate(zip(workload_prompts(), WORKLOAD, strict=True)):
        engine.add_request(str(index), {"prompt_token_ids": tokens}, replace(kind, max_tokens=answer))
    while engine.has_unfinished_requests():
        engine.step()
    entries, held = map(sum, zip(*blocks_used(engine.trace), strict=True))
    savings[name] = 1 - held / entries
    print(f"{name}: {entries - held} of {entries} blocks saved, over all steps: {savings[name]:.1%}")

# %% [markdown]
# The paper counts the same share for 2 to 6 of them on the Alpaca data set: 6.09 to 9.79 % for completions (its
# answers are longer beside the prompts) and 37.56 to 55.16 % for beams. Beams save more: they also share what they
# have generated.
#
# ### The prefix cache
#
# The six chats are different requests; none of them forks. Here blocks are found *by their content*. Every full block
# (the content of others still changes) gets a name: a **hash**, 32 bytes computed from the tokens.

# %%
show_source(Sequence.block_hash)

# %% [markdown]
# The name of the block before goes into the name of this one, so a name stands for the whole beginning. It has to: the
# same four words after another beginning have other keys and values.
#
# Can two beginnings get one name, and a user read from the prompt of another? With SHA-256 such a collision is likely
# only among $2^{128}$ blocks, and none is known. What leaks is *time*: a first word that comes sooner tells a user
# that another has sent this beginning. vLLM's `cache_salt`, a secret which is hashed into the first block's name,
# keeps groups of users apart.
#
# The search goes from the front and ends at the first block that is not found:

# %%
show_source(KVCacheManager.get_computed_blocks)

# %%
cached = toy_llm(enable_prefix_caching=True, trace=Trace(word_of=word))
cached_texts = texts(cached, chats, greedy(6))
rows = cached.llm_engine.trace.steps[0].scheduled
for row in rows:
    print(
        f"request {row.request_id}: {row.start:>2} found, {row.num_tokens:>2} computed, table {row.block_ids}"
    )
used = blocks_used(cached.llm_engine.trace)
hit_rate = cached.llm_engine.stats().prefix_cache_hit_rate
print(f"hit rate: {hit_rate:.1%}; blocks held: {max(used)[1]}, not {most_alone}")

# %% [markdown]
# All six came in the same step. The first computes blocks 0 to 3, and the others read them in that step already: in
# each layer all keys and values are written before any are read. The **hit rate** is the share of prompt tokens found.
# In practice the traffic decides: SGLang's authors [report](https://arxiv.org/abs/2312.07104) 50 to 99 % for agents,
# chats and prompts with examples; unrelated questions find nothing.
#
# The search stops before the last token (`max_tokens` is the length minus one), because a step that computes nothing
# has no logits to choose the next word from. With blocks of 4, a prompt of 9 that is known completely computes 1
# token, and a prompt of 8 computes 4, since a block is found whole or not at all.
#
# ### What is overwritten first
#
# When a request is done, its blocks go back to the free queue, *with their names*. They are free and findable at the
# same time, until they are taken for other tokens. So the order of the queue decides what is remembered:


# %%
def ask(text):
    """Generate a word, and print what was found and the free queue; a star: this block can be found."""
    (output,) = old.generate({"prompt_token_ids": encode(text)}, greedy(1), use_tqdm=False)
    pool = old.llm_engine.scheduler.kv.pool
    queue = [f"{block}{'*' if pool.blocks[block].block_hash else ''}" for block in pool.free_block_ids]
    print(f"{text.split()[0]:<5} ... {output.num_cached_tokens} words found; free queue {' '.join(queue)}")
    return output.num_cached_tokens


old = example_llm(enable_prefix_caching=True)
longer, other = "Four score and seven years ago our fathers brought", "river stone cloud green house"
hits = [ask(text) for text in (longer, other, longer, " ".join(["snow"] * 28), longer, other)]

# %% [markdown]
# The nine words used blocks 7, 2 and 4. These are queued last block first, so that the end of a sequence is
# overwritten before its beginning. In line 3 the nine words come again, and the hit moves 2 and 7 to the end, behind
# block 1. What was used longest ago is overwritten first: **LRU**, least recently used. The 28 words of snow take the
# seven blocks in front, 1 and 2 among them. So "river stone cloud green" is lost, and "years ago our fathers"; "Four
# score and seven" is still found in line 5.
#
# ## The picture
#
# Two completions of the example request. Right after the fork:


# %%
def draw(step):
    """The three panels, with a sentence about them."""
    record = trace.steps[step]
    tables = " and ".join(str(list(table)) for table in record.block_tables.values())
    holders = ", ".join(f"block {block} has {count}" for block, count in record.ref_counts.items())
    copies = "; ".join(f"block {old} is copied to block {new}" for old, new in record.blocks_to_copy)
    text = f"Step {step}: tables {tables}; holders: {holders}; {copies or 'no block is copied'}."
    show(three_panel(trace, step, "0"), alt=text)


two = example_llm(trace=Trace(word_of=word))
pair = replace(several, n=2, max_tokens=6)
right_texts = texts(two, prompt, pair)
trace = two.llm_engine.trace
draw(0)

# %%
draw(1)

# %% [markdown]
# One step later completion 0 has block 4, with a copy of "years ago", and has written its word behind. Completion 1
# wrote into block 2. Block 7, full and unchanged, still belongs to both. Next, what the six chats found:

# %%
fig = new_figure(9.5, 3.0)
left, right = fig.subplots(1, 2, width_ratios=[1.3, 1])
names = [f"request {row.request_id}" for row in rows]
starts, counts = [row.start for row in rows], [row.num_tokens for row in rows]
left.barh(names, starts, color="#56B4E9", hatch="///", edgecolor="#222222", label="found")
left.barh(names, counts, left=starts, color="#E69F00", edgecolor="#222222", label="computed")
left.set(xlabel="prompt tokens", title=f"six chats: {hit_rate:.1%} found", xticks=range(0, 24, 4))
left.invert_yaxis()
savings["6 chats"] = 1 - sum(held for _, held in used) / sum(entries for entries, _ in used)
heights = [100 * share for share in savings.values()]
right.bar_label(right.bar(list(savings), heights, color="#009E73", edgecolor="#222222"), fmt="%.0f %%")
right.set(ylabel="% of blocks", title="blocks saved by sharing", ylim=(0, 70))
fig.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2)
alt = f"Left: of {num_prompt_tokens} prompt tokens of six chats {sum(starts)} are found, {sum(counts)} computed. "
shares = ", ".join(f"{name} {share:.0%}" for name, share in savings.items())
show(fig, alt=alt + f"Right: blocks saved by sharing, over all steps: {shares}.")

# %% [markdown]
# SmolLM2's run, in motion: watch the holders (×2), the copy in step 1, and the red frame: block 0 is found by the
# second prompt.

# %% tags=["machine"]
trace_player(story.llm_engine.trace)

# %% [markdown]
# ## Claims
#
# First the arithmetic. A prompt of 30 tokens is running; another begins with the same $k$ full blocks. How many fewer
# blocks does it take from the pool?

# %%
saved = []
for k in range(8):
    manager = KVCacheManager(num_blocks=64, block_size=4)
    manager.allocate_slots([(Sequence(0, list(range(30)), seed=0), 30)])
    second = Sequence(1, list(range(4 * k)) + [99] * (30 - 4 * k), seed=0)
    hit, free = manager.get_computed_blocks(second, 29), manager.pool.num_free
    manager.allocate_slots([(second, 30 - 4 * len(hit))], hit)
    saved.append(8 - (free - manager.pool.num_free))  # alone, 30 tokens take 8 blocks
claim("k shared full blocks save exactly k allocations", saved == list(range(8)), measured=saved)

# %% [markdown]
# Then the tensors. Stop the engine between two steps and read the keys and values of both completions, each through
# its own block table. Then an engine that never copies.


# %%
def kv_of(seq_id, num_tokens):
    """K and V of a sequence's first tokens in all layers, (2 L, tokens, Hkv, D)."""
    slots, kv_cache = engine.scheduler.kv.block_tables[seq_id].slots(0, num_tokens), engine.runner.kv_cache
    return torch.stack([blocks.flatten(0, 1)[slots] for blocks in (*kv_cache.key, *kv_cache.value)])


engine = example_llm().llm_engine
engine.add_request("0", prompt, pair)
engine.step()
prompt_kv = kv_of(1, 6)
engine.step()
same = torch.equal(kv_of(0, 6), prompt_kv) and torch.equal(kv_of(1, 6), prompt_kv)
claim("after the write both have the prompt's K and V, bit for bit", same, f"{prompt_kv.numel()} numbers")
differ = (kv_of(0, 7) != kv_of(1, 7)).flatten(2).any(-1).any(0).tolist()
claim("they differ at position 6, the new one, and nowhere else", differ == [False] * 6 + [True])


# %%
class NeverCopies(KVCacheManager):
    def _shared_last_blocks(self, tables, starts):
        return []  # the bug: all holders write into the shared block


wrong_texts = texts(example_llm(kv_cache_manager_cls=NeverCopies), prompt, pair)
print("with copy-on-write:", " | ".join(right_texts))
print("without:           ", " | ".join(wrong_texts))
claim("without the copy a text changes", right_texts != wrong_texts)

# %% [markdown]
# The second completion wrote last and has its text. The first then read the second's key and value at position 6.

# %%
separate = texts(example_llm(), [prompt] * 4, [replace(several, n=1, seed=seed) for seed in range(4)])
claim("four writers of one block make three copies", sum(len(each.blocks_to_copy) for each in records) == 3)
claim("four completions that share are four separate requests, word for word", completions == separate)
claim("what is found in the prefix cache changes no text", cached_texts == plain_texts)
two_names = {Sequence(0, [*first, 7, 7, 7, 7], seed=0).block_hash(1, 4) for first in ([1] * 4, [2] * 4)}
claim("the same four tokens after another beginning have another name", len(two_names) == 2)
claim("snow leaves the first block of the prompt used last, and no other", hits == [0, 0, 8, 0, 4, 0], hits)
known, computed = toy_llm(enable_prefix_caching=True), []
for length in range(1, 17):
    again = [{"prompt_token_ids": list(range(length))}] * 2
    computed.append(length - known.generate(again, greedy(1), use_tqdm=False)[1].num_cached_tokens)
claim("a prompt known completely still computes a token", min(computed) == 1, computed)
pools = [llm.llm_engine.scheduler.kv.pool for llm in (alone, four, cached, old, two, known, story)]
claim("in the end all blocks are free", all(pool.num_free == pool.num_blocks for pool in pools), len(pools))

# %% [markdown]
# ## Exercises
#
# In `notebooks/exercises/ch09_sharing.py`:
#
# - **ex09a** `block_names`: names for full blocks that are equal exactly where the beginnings are equal.
# - **ex09b** `SharedBlocks`: `fork` and `append` with copy-on-write, on plain lists.
# - **ex09c** `eviction_order`: which free block is overwritten first, after any history.
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex09a`:
#
#     %load_ext minivllm.course
#     %check ex09a
#
# ## Check yourself
#
# <details><summary>The prompt has 8 tokens in blocks of 4, and asks for four completions. How many blocks are
# copied?</summary>
#
# None. Both blocks are full, so the next write of each completion opens a new block.
# </details>
#
# <details><summary>Two prompts differ in their first word and are equal in the 500 words after it. What does the prefix
# cache find?</summary>
#
# Nothing. The first block differs, and its name is part of every later one. So put what changes (a date, a user's name)
# at the end of an instruction.
# </details>
#
# <details><summary>A block is in the free queue, and a prompt finds it by its name. What has to happen?</summary>
#
# It leaves the queue, from wherever it stands, and has one holder. `touch` does both. In the queue it would be
# overwritten while a sequence still reads it.
# </details>
#
# ## In real vLLM
#
# [`vllm/v1/core/block_pool.py`] and `kv_cache_utils.py` there have the same chain of hashes over full blocks and the
# same LRU queue. What V1 no longer has is copy-on-write: only full blocks are shared. `n=4` becomes four child
# requests ([`vllm/v1/engine/parallel_sampling.py`]) that meet in the prefix cache, and beam search is a loop outside
# the engine that sends requests of one token (`LLM.beam_search`). Fork and copy-on-write as in the paper's section 4.4
# are in version 0.1, [`vllm/core/block_manager.py`].
#
# [`vllm/v1/core/block_pool.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/core/block_pool.py
# [`vllm/v1/engine/parallel_sampling.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/engine/parallel_sampling.py
# [`vllm/core/block_manager.py`]: https://github.com/vllm-project/vllm/blob/v0.1.0/vllm/core/block_manager.py
#
# ## Key points
#
# - To share a block, put its number into a second table and count one more holder.
# - Full blocks are never written again. A partly filled one is copied before the first write, by all holders but the
#   last.
# - A block's name is a hash of its tokens and of the name before it: it stands for the whole beginning.
# - Free blocks stay findable until they are taken: least recently used first, the end of a sequence before its
#   beginning.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), section 4.4. **Next:** [10 · A Triton paged-attention kernel](10_triton_kernel.ipynb).
