# %% [markdown]
# # 16 · Guess and check: speculative decoding
#
# ## Before you start
#
# **You need:** chapter 06: the rule "catch up" (`num_computed_tokens`). Chapter 08: how a token is drawn. Chapter 09:
# why a full block has a name.
#
# **You will be able to:** say why five tokens can be checked in hardly more time than one is computed, follow the KV
# cache through a wrong guess, prove that the text stays the model's own, and compute when guessing pays.
#
# **Minutes:** 40 to read and run, 50 for the exercises.

# %%
import random
import tempfile
from itertools import pairwise
from pathlib import Path

from safetensors.torch import load_file, save_file

from minivllm import LLM, SamplingParams
from minivllm.bench.speculative import PROMPTS
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import encode, greedy, toy_llm
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.scheduler import Scheduler
from minivllm.speculative.break_even import break_even, largest_ratio, speedup, tokens_per_step
from minivllm.speculative.ngram import propose_ngram
from minivllm.speculative.rejection import accept_or_redraw
from minivllm.speculative.speculator import Speculator
from minivllm.speculative.verification import accept, sampled_rows
from minivllm.viz import new_figure, show
from minivllm.viz.trace import Trace
from minivllm.weights.random_model import random_llama

seed_all()

# %% [markdown]
# ## The problem
#
# A model writes one token per step, and for each step all of its weights are read from memory once. Here a real model
# (SmolLM2-135M) is asked for a file that it has just seen, with one more method:

# %%
print(PROMPTS["code"])

# %%
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 1}
NUM_TOKENS = 60
plain = LLM("smollm2-135m-instruct", num_blocks=32, enable_prefix_caching=False, trace=Trace())
(expected,) = plain.generate(PROMPTS["code"], greedy(NUM_TOKENS), use_tqdm=False)
print(expected.outputs[0].text)
num_plain_steps = len(plain.llm_engine.trace.steps)
print(f"{NUM_TOKENS} tokens in {num_plain_steps} steps")

# %% [markdown]
# We could have told most of these tokens before the model did: they stand in the prompt. Only the model's word counts,
# of course. But *checking* a word is cheaper than producing one. A step that computes five tokens of a sequence reads
# the weights once, as does a step that computes one. (That is why the whole prompt takes one step.) All that a checker
# needs is five tokens to compute, and four of them may be guesses: **drafts**.
#
# ## Predict, then run
#
# Drafts are made without a model: take the last few tokens of the text, find them at an earlier place, and copy the
# four tokens that followed there. How many steps will the 60 tokens take now, instead of 60?

# %%
guess = None

# %%
drafting = LLM(
    "smollm2-135m-instruct", num_blocks=32, enable_prefix_caching=False, trace=Trace(),
    speculative_config=NGRAM,
)  # fmt: skip
(checked,) = drafting.generate(PROMPTS["code"], greedy(NUM_TOKENS), use_tqdm=False)
num_drafting_steps = len(drafting.llm_engine.trace.steps)
reveal(guess, num_drafting_steps, "steps")
same_text = checked.outputs[0].token_ids == expected.outputs[0].token_ids

# %% [markdown]
# The text is the same, token for token. That is not luck, and it needs no trust in the drafts.
#
# ## How the code does it
#
# ### Guess
#
# `bytes.rfind` finds the latest earlier place of the last n tokens; the longest n comes first.

# %%
show_source(propose_ngram)

# %%
for text in ([7, 1, 2, 3, 9, 4, 8, 1, 2, 3], [1, 5, 6, 5, 6], [1, 2, 3, 4]):
    print(f"after {text}: {propose_ngram(text, 4, longest=4)}")

# %% [markdown]
# ### Check
#
# The row of the plan carries the drafts behind its last known token. All are computed in one step, and the sampler
# is asked once for each position: what would you have chosen here?

# %%
show_source(sampled_rows)
show_source(accept)

# %% [markdown]
# Two drafts right and the third wrong gives three tokens: the third is the model's own choice in place of the wrong
# draft. Even if all drafts are wrong, the step yields the one token it would have yielded anyhow.
#
# ### Take back
#
# The wrong draft has written its key and value into a slot. What has to be undone? The invariant of the scheduler
# speaks of positions $[0, \text{num\_computed\_tokens})$. The number grows by what was accepted, so the wrong
# draft's slot lies behind it. The next step begins there, and overwrites it.

# %%
show_source(Scheduler._append_run)

# %% [markdown]
# There is one trap. A block gets its name when it is *full of accepted tokens*, so `cache_blocks` comes after the
# tokens are appended. Named at the time of the plan, a block with a wrong draft in it would be found by the next prompt
# that really has this text.
#
# ### Who gets drafts
#
# Drafts come last: what is left of the budget and of the free blocks. They preempt no request. And a sequence whose
# drafts were all wrong gets none for a while, for each miss twice as long as before.

# %%
show_source(Speculator)
show_source(KVCacheManager.extend)

# %% [markdown]
# ## The picture
#
# The steps of the run above, one line each: which positions a step has computed, and what became of them.

# %%
LEFT = len(expected.prompt_token_ids) - 1


def draw_steps(trace):
    """Positions of each step: known tokens, accepted drafts, rejected drafts."""
    rows = [record.scheduled[0] for record in trace.steps]
    ends = [after.start for _, after in pairwise(rows)] + [LEFT + NUM_TOKENS]
    fig = new_figure(9.5, 4.2)
    ax = fig.subplots()
    counts = {"known": 0, "accepted": 0, "rejected": 0}
    styles = {"known": ("#0072B2", ""), "accepted": ("#009E73", "///"), "rejected": ("#FFFFFF", "xxx")}
    for step, (row, end) in enumerate(zip(rows, ends, strict=True)):
        first = LEFT if step == 0 else row.start  # of the prompt only the last token is drawn
        known = first + 1
        spans = {"known": (first, known), "accepted": (known, end), "rejected": (end, row.start + row.num_tokens)}
        for name, (start, stop) in spans.items():
            if stop > start:
                colour, hatch = styles[name]
                label = None if counts[name] else name
                ax.barh(step, stop - start, left=start, color=colour, hatch=hatch, edgecolor="#222222", label=label)
                counts[name] += stop - start
    ax.set(xlabel="position in the text", ylabel="step", ylim=(len(rows) - 0.4, -0.6), yticks=range(0, len(rows), 3))
    ax.legend(loc="lower left")
    show(fig, alt=f"{len(rows)} steps compute {counts['known']} known tokens and {counts['accepted'] + counts['rejected']} "
         f"drafts, of which {counts['accepted']} are accepted and {counts['rejected']} rejected.")  # fmt: skip
    return counts


counts = draw_steps(drafting.llm_engine.trace)

# %% [markdown]
# A rejected draft and the known token of the next line stand at the same position: the slot is written twice. In the
# lines with one token the sequence rests, or nothing was found to copy.
#
# ## Drawing instead of choosing
#
# With `temperature` above 0 a token is drawn. The paper (Leviathan et al. 2022) allows a guesser which draws as well,
# from a distribution `q` of its own, and asks that the result be distributed as the model's `p`:

# %%
show_source(accept_or_redraw)


# %%
def shares(rule, p, q, draws=20_000):
    """How often each token comes out, if drafts are drawn from q."""
    r, found = random.Random(0), [0] * len(p)
    for draft in r.choices(range(len(q)), q, k=draws):
        found[rule(p, q, draft, r.random(), r.random())] += 1
    return [count / draws for count in found]


def right(p, q, draft, u, v):
    return accept_or_redraw(p, q, draft, u, v)[0]


def accept_always(p, q, draft, u, v):
    return draft


def draw_from_p_again(p, q, draft, u, v):
    return draft if u * q[draft] < p[draft] else random.Random(v).choices(range(len(p)), p)[0]


P, Q = [0.35, 0.05, 0.25, 0.2, 0.1, 0.05], [0.1, 0.3, 0.25, 0.05, 0.2, 0.1]
rules = {"the rule": right, "accept always": accept_always, "draw from p again": draw_from_p_again}
results = {name: shares(rule, P, Q) for name, rule in rules.items()}
errors = {name: max(abs(a - b) for a, b in zip(found, P, strict=True)) for name, found in results.items()}
fig = new_figure(9.5, 2.8)
for index, (ax, (name, found)) in enumerate(zip(fig.subplots(1, 3, sharey=True), results.items(), strict=True)):
    ax.bar(range(len(P)), found, color=["#009E73", "#E69F00", "#CC79A7"][index], edgecolor="#222222")
    ax.step([x - 0.5 for x in range(len(P) + 1)], [*P, P[-1]], where="post", color="#222222", lw=1.2)
    ax.set(title=f"{name}: off by {errors[name]:.3f}", xlabel="token")
show(fig, alt="Bars: how often each token comes out; line: p. " + ", ".join(f"{k} is off by {v:.3f}" for k, v in errors.items()))

# %% [markdown]
# Our engine has no `q`, and does not need one. An n-gram draft is *certain*: `q` is 1 at the draft. Then the rule
# accepts it with probability `p(draft)`, and otherwise draws from `p` without it. Drawing once from `p`, and accepting
# the draft if it is what was drawn, is the same: that is what `accept` does. And since a draw here depends on the seed
# and the position alone (chapter 08), even the *same* tokens come out as without drafts.
#
# ## A draft model
#
# A smaller model guesses better than a search, and costs more. It has a KV cache with the same block numbers, so a
# block is one place in two caches. We have no smaller model that goes with the toy, so we take the toy itself, with
# every weight changed by up to 2%: a guesser which is often right.

# %%
prompt = {"prompt_token_ids": encode("Four score and seven years ago")}
with tempfile.TemporaryDirectory() as folder:
    draft = random_llama(Path(folder) / "draft", byte_tokenizer=True)
    weights = load_file(draft / "model.safetensors")
    noisy = {name: weight * (1 + 0.02 * (weight * 1e4).sin()) for name, weight in weights.items()}
    save_file(noisy, draft / "model.safetensors", {"format": "pt"})
    config = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 3}
    guided = toy_llm(speculative_config=config)
alone = toy_llm()
drawn = SamplingParams(temperature=0.8, seed=1, max_tokens=60, ignore_eos=True)
texts = {}
for name, params in (("greedy", greedy(60)), ("drawn", drawn)):
    texts[name] = [llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids for llm in (alone, guided)]
stats = guided.llm_engine.stats()
print(f"{stats.num_draft_tokens} drafts, {stats.draft_acceptance_rate:.0%} accepted")
print(f"accepted as 1st, 2nd, 3rd draft: {stats.num_accepted_tokens_per_pos}")
print(f"{stats.mean_acceptance_length:.2f} tokens for a row with drafts")
print(guided.llm_engine.memory())

# %% [markdown]
# The later a draft stands, the fewer are accepted: it needs all drafts before it to be right.
#
# ## When it pays
#
# If a draft is accepted with probability $a$, a step with $k$ drafts yields $1 + a + a^2 + \dots + a^k$ tokens. It
# takes `cost` times as long as a step without drafts. `python -m minivllm bench speculative` measures the cost on your
# machine; here is what follows from it:

# %%
fig = new_figure(7.5, 3.4)
ax = fig.subplots()
grid = [i / 100 for i in range(101)]
for cost, colour in ((1.25, "#009E73"), (2.0, "#0072B2"), (4.0, "#D55E00")):
    ax.plot(grid, [speedup(share, 4, cost) for share in grid], color=colour, label=f"a step with 4 drafts costs {cost}")
    ax.plot([break_even(4, cost)], [1.0], marker="o", color=colour, markeredgecolor="#222222")
ax.axhline(1.0, color="#222222", lw=0.6)
ax.set(xlabel="acceptance of a draft", ylabel="tokens per second, with / without")
ax.legend(frameon=False)
thresholds = {cost: break_even(4, cost) for cost in (1.25, 2.0, 4.0)}
show(fig, alt="Speedup over acceptance; break-even at " + ", ".join(f"{a:.0%} for cost {c}" for c, a in thresholds.items()))
print(f"cost 2.0, 80% accepted: a pass of the draft model may take {largest_ratio(0.8, 4, 2.0):.2f} steps at most")

# %% [markdown]
# Two things make the cost high. A step that is already full of tokens is bound by arithmetic: each draft costs its full
# price, so a busy server guesses little (`max_tokens_per_step`). And a small model is read so quickly that there is
# little to save: on a CPU a draft model loses with models of this size, and n-grams win only where text repeats.
#
# ## Claims

# %%
claim("greedy text is the same with n-gram drafts, token for token", same_text, f"{NUM_TOKENS} tokens")
few = num_drafting_steps * 3 < num_plain_steps * 2
claim("a text that repeats takes less than two thirds of the steps", few, num_drafting_steps)
claim("with a draft model as well, greedy and drawn", all(a == b for a, b in texts.values()))
accepted = stats.num_accepted_tokens_per_pos
claim("later drafts are accepted less often", accepted == sorted(accepted, reverse=True), accepted)
claim("rejected drafts were computed too", counts["rejected"] > 0, counts)
claim("the paper's rule gives p within 1%", errors["the rule"] < 0.01, round(errors["the rule"], 4))
claim("two wrong rules do not", min(errors["accept always"], errors["draw from p again"]) > 0.03)
overlap, r = sum(map(min, P, Q)), random.Random(1)
hits = [accept_or_redraw(P, Q, r.choices(range(6), Q)[0], r.random(), r.random())[1] for _ in range(20_000)]
rate = sum(hits) / len(hits)
claim("a draft survives with the share that p and q have in common", abs(rate - overlap) < 0.02, f"{rate:.3f}")
claim("at the break-even nothing is gained", abs(speedup(break_even(4, 2.0), 4, 2.0) - 1) < 1e-9)
claim("k drafts give at most k + 1 tokens", tokens_per_step(1.0, 4) == 5)
engines = [llm.llm_engine.scheduler.kv.pool for llm in (plain, drafting, guided, alone)]
claim("in the end all blocks are free", all(pool.num_used == 0 for pool in engines), len(engines))

# %% [markdown]
# ## Exercises
#
# In `notebooks/exercises/ch16_guess_and_check.py`:
#
# - **ex16a** `propose`: drafts by looking up the last tokens. The engine runs with it.
# - **ex16b** `accept_or_redraw`: the rule of the paper, tested for the distribution it gives.
# - **ex16c** `after_check`: which tokens are new, how many are computed, which blocks get a name.
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex16a`:
#
#     %load_ext minivllm.course
#     %check ex16a
#
# ## Check yourself
#
# <details><summary>Drafts 1 and 3 are what the model chose, draft 2 is not. How many tokens does the step
# yield?</summary>
#
# Two: draft 1, and the model's choice in place of draft 2. What the model said about draft 3 was said after a text with
# the wrong draft 2 in it.
# </details>
#
# <details><summary>A draft model is the model itself. How many drafts are accepted, and is it faster?</summary>
#
# All of them, and it is slower: for 5 tokens the weights are read 4 times to draft, once more to fill the draft
# model's cache, and once to check: 6 times.
# </details>
#
# <details><summary>Why does the draft model compute its last draft, too, although the logits are not used?</summary>
#
# If all drafts are accepted, that position belongs to the text, and the next drafts attend to it. Without the pass its
# key and value are missing in the draft model's cache. No token would be wrong, for only the model decides; but the
# drafts would get worse.
# </details>
#
# ## In real vLLM
#
# The same `speculative_config`, with more guessers: EAGLE and MTP heads, which read the model's hidden states, are what
# is used in practice. Drafts are made after a step for the next one (`vllm/v1/spec_decode/`), the scheduler plans them
# as `spec_token_ids`, and [`vllm/v1/sample/rejection_sampler.py`] has the paper's rule on the GPU. The n-gram proposer
# compiles its search with Numba. There is no rest after misses: users whose text does not repeat are slower with it
# (issue 19254).
#
# [`vllm/v1/sample/rejection_sampler.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/sample/rejection_sampler.py
#
# ## Key points
#
# - A step reads all weights, for one token or for five. Checking guesses is cheaper than computing one after the
#   other.
# - A guess is never trusted: each token is the model's own choice at its position. Greedy text stays the same.
# - Taking a wrong draft back costs nothing: `num_computed_tokens` does not grow over it, and its slot is overwritten.
# - Blocks get names for accepted tokens only.
# - It pays above the break-even acceptance, which follows from the cost of a longer step.
#
# **Read on:** [Leviathan, Kalman and Matias: Fast Inference from Transformers via Speculative Decoding](https://arxiv.org/abs/2211.17192).
# **To finish:** build an engine of your own, from a loop to paging, prefix cache and chunks, in six milestones:
# `python -m minivllm.course project start DIR`; `docs/project.md` has a picture of each.
