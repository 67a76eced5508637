# %% [markdown]
# # 08 · The sampler
#
# ## Before you start
#
# **You need:** chapter 06: the batch may be another one in every step. Softmax, and what a probability is.
#
# **You will be able to:** say what temperature, top_k, top_p and min_p do to a row of numbers, draw from what is left
# without sorting, and prove that a seeded request gets its tokens no matter what runs beside it.
#
# **Minutes:** 35 to read and run, 45 for the exercises.

# %%
import numpy as np
import torch

from minivllm import SamplingParams
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import decode, encode, real_llm, toy_llm, word, workload_prompts
from minivllm.course.turn import turn
from minivllm.outputs import SequenceOutput
from minivllm.sampler import apply_min_p, draw, draw_top_p, invert_cdf, kept_tokens_reference, uniform
from minivllm.viz.trace import Trace
from minivllm.viz import new_figure, show
from minivllm.viz.style import PALETTE

seed_all()

# %% [markdown]
# ## The problem
#
# SmolLM2 goes on four times: twice with the likeliest token each time, twice by chance.

# %% tags=["machine"]
story = real_llm(num_blocks=64, max_model_len=64)


def tell(**options):
    """Print what SmolLM2 makes of a prompt."""
    params = SamplingParams(max_tokens=16, **options)
    print(options, repr(story.generate("My cat is called", params, use_tqdm=False)[0].outputs[0].text))


for options in ({"temperature": 0}, {"temperature": 0}, {"seed": 1}, {"seed": 2}):
    tell(**options)

# %% [markdown]
# A model gives a score, a **logit**, to each of its tokens (the toy has 258), and softmax makes probabilities of them.
# One token has to be chosen. All chapters so far were **greedy**: they took the token with the largest logit. Here is
# what comes of it with the toy and the example request: the first words, and later ones.

# %%
llm = toy_llm(max_logprobs=258, max_num_seqs=4096, max_num_batched_tokens=4096)
prompt = {"prompt_token_ids": encode("Four score and seven years ago")}


def write(max_tokens=60, prompt=prompt, **options):
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **options)
    return llm.generate(prompt, params, use_tqdm=False)[0]


# %%
greedy_output = write(temperature=0, logprobs=-1)
reported = greedy_output.outputs[0].logprobs  # log-probabilities of the whole vocabulary, step by step
steps = np.exp([[entry[token].logprob for token in range(258)] for entry in reported])  # (60, 258)
chosen = greedy_output.outputs[0].token_ids
print(decode(chosen[:6]), "...", decode(chosen[28:46]), "...")
print("steps 0 to 11, probability of the token chosen:", *[f"{probs.max():.2f}" for probs in steps[:12]])
print("step 11, the likeliest:", *[f"{share:.3f}" for share in np.sort(steps[11])[:-4:-1]])

# %% [markdown]
# Greedy text runs into loops, and it hides what the model says: in step 11 the token chosen is hardly likelier than the
# next. So let chance decide. The simplest way is one random generator, from which the rows of the batch take numbers in
# turn. Our request, alone and with seven others:


# %%
class OneGenerator:
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, logits, rows):  # what the engine asks of a sampler: one output per row
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=self.generator)
        return [SequenceOutput(((token,),)) for token in drawn[:, 0].tolist()]


everyone = [prompt["prompt_token_ids"], *workload_prompts()[:7]]


def run(which, **options):
    """Some of the eight requests together, each with its number as seed: (their tokens, preemptions)."""
    engine = toy_llm(trace=Trace(), **options)
    prompts = [{"prompt_token_ids": everyone[i]} for i in which]
    params = [SamplingParams(seed=i, max_tokens=16, ignore_eos=True) for i in which]
    tokens = [each.outputs[0].token_ids for each in engine.generate(prompts, params, use_tqdm=False)]
    return tokens, sum(len(record.preempted) for record in engine.llm_engine.trace.steps)


# %%
one_alone, one_in_batch = (run(range(count), sampler=OneGenerator())[0][0] for count in (1, 8))
print("alone:     ", decode(one_alone[:8]), "\nin a batch:", decode(one_in_batch[:8]))

# %% [markdown]
# The same request, the same generator, another text (the second word agrees by luck): in the batch seven other rows
# take numbers before it has its next turn. In chapter 06 scheduling changed no text; here it does. Neither a run nor a
# bug could be repeated.
#
# ## Predict, then run
#
# `top_p = 0.9` keeps the likeliest tokens that have 90 % of the probability (the **mass**) together, as few as
# possible, and drops the rest. In step 0 above the likeliest token has 84 %, and five tokens are enough. In step 6 it
# has 16 %. How many of the 258 tokens are kept there?

# %%
guess = None


# %%
def kept_by(step, top_p):
    return kept_tokens_reference(steps[step].tolist(), 258, top_p)


reveal(guess, len(kept_by(6, 0.9)), "tokens")

# %% [markdown]
# ## How the code does it
#
# What happens to a row of logits, in this order:
#
# | step | what it does | off at |
# |---|---|---|
# | restrictions | forbidden tokens get the logit $-\infty$; a bias, if asked for, is added | none |
# | penalties | tokens that are in the text already lose some of their logit | 0, 0, 1 |
# | `temperature` | logits are divided by it: below 1 the likely get likelier, above 1 all get more alike | 1 |
# | `min_p` | drops tokens less likely than `min_p` times the likeliest | 0 |
# | `top_k` | keeps the `k` likeliest | 0 |
# | `top_p` | keeps the fewest with mass `p` | 1 |
# | draw | takes one, with the probabilities that are left | temperature 0 |
#
# With temperature 0 the row is done after the penalties: the largest logit wins. There are three **penalties**: two
# subtract from the logits of tokens in the output, once for each time or once for all; the third, `repetition_penalty`,
# divides positive logits, and looks at the prompt as well. It breaks the loop:

# %%
for options in ({}, {"repetition_penalty": 1.3}):
    tokens = write(temperature=0, **options).outputs[0].token_ids
    print(f"{len(set(tokens))} different tokens of 60 with {options}")
show_source(draw)

# %% [markdown]
# ### A random number that needs no generator
#
# Drawing takes one number $u$ between 0 and 1. Lay the probabilities end to end and see where $u$ falls:

# %%
show_source(invert_cdf)
show_source(uniform)

# %% [markdown]
# There is no generator with a state. The number is a hash of three others: the request's seed, the position of the
# token in the text, and an attempt, which is 0 unless a draw has to be repeated. (The hash is Python's own generator,
# made anew and asked once.) So nothing has to be kept between steps, and neither neighbours in the batch nor a
# preemption (chapter 07: a request loses its memory and starts again) can shift anything. A request without a seed is
# given one when it arrives. The $k$-th of `n` completions draws like a request with seed + $k$.
#
# ### top_p without sorting
#
# Which tokens does top_p keep? Sort, add up, cut: that is what the definition says. But sorting the 49,152 logits of
# the real model (SmolLM2, chapter 11) takes longer on a CPU than one of its layers, for each row.
# And *one* token can be judged without any order: it is kept if the likelier tokens have less than `p` together.

# %%
show_source(kept_tokens_reference)

# %% [markdown]
# So draw first, and look afterwards. If the token drawn is not kept, refuse it, together with everything less likely,
# and draw again from what is left:

# %%
show_source(draw_top_p)

# %% [markdown]
# Is that the same distribution? Take five tokens and `top_p = 0.7`:
#
# | token | a | b | c | d | e |
# |---|---|---|---|---|---|
# | probability | 0.40 | 0.25 | 0.20 | 0.10 | 0.05 |
# | the likelier ones have | 0 | 0.40 | 0.65 | 0.85 | 0.95 |
# | less than 0.7: kept | yes | yes | yes | no | no |
#
# Sorting and cutting leaves a, b and c with 0.85 together, so a gets 40/85 = 8/17. Now by refusing:
#
# - 85 of 100 draws give a, b or c, in the ratio 40 : 25 : 20. Done.
# - 10 of 100 give d: refused. Left are a, b and c; the next draw gives one of them, in the ratio 40 : 25 : 20.
# - 5 of 100 give e: refused. Left are a, b, c and d. Either one of the first three comes, in that ratio, or d, and then
#   we are in the line above.
#
# Whichever way it ends, a, b and c stood in the last draw with the weights they always had. A refusal favours none of
# them, except in proportion:
#
# $$P(a) = 0.4 + 0.1 \cdot \tfrac{40}{85} + 0.05 \left(\tfrac{40}{95} + \tfrac{10}{95} \cdot \tfrac{40}{85}\right) = \tfrac{8}{17}$$
#
# And here is one that is refused, with real random numbers:

# %%
five = torch.tensor([[0.4, 0.25, 0.2, 0.1, 0.05]])
for seed in (11, 12, 13):
    drawn = draw_top_p(five, [(seed, 0)], [0.7])[0]
    print(f"seed {seed}: u = {uniform(seed, 0, 0):.3f}, then {uniform(seed, 0, 1):.3f} -> {'abcde'[drawn]}")

# %% [markdown]
# Seed 12: 0.853 is beyond 0.85, so d, refused. The second number is 0.840; 0.840 of what is left, 0.85, is 0.714, which
# is beyond b's 0.65: c. The other two were accepted at once, as is a share of at least `p` of all draws.
#
# ## The picture
#
# Your prediction, drawn, with the tokens sorted. What is kept is blue. Turn both numbers:


# %%
def cut(temperature=1.0, top_p=0.9):
    """The likeliest 80 tokens in two steps, those that top_p keeps, and the sum of the probabilities."""
    fig, ranks, told = new_figure(9, 3.2), np.arange(1, 81), []
    for ax, step in zip(fig.subplots(1, 2, sharey=True), (0, 6), strict=True):
        row = np.sort(steps[step] ** (1 / temperature))[::-1]
        row /= row.sum()
        count, best = len(kept_tokens_reference(row.tolist(), 258, top_p)), row[:80]
        ax.axvspan(0.5, count + 0.5, color="#56B4E9", alpha=0.25, label=f"kept: {count} tokens")
        ax.bar(ranks[:count], best[:count], 1, color="#0072B2", edgecolor="white", lw=0.3)
        ax.bar(ranks[count:], best[count:], 1, color="#BBBBBB", label=f"dropped: {258 - count}")
        ax.plot(ranks, row.cumsum()[:80], color="#222222", label="summed up")
        ax.axhline(top_p, color="#222222", ls="--", lw=1, label=f"top_p = {top_p}")
        ax.axvline(10.5, color="#D55E00", ls=":", lw=2, label="top_k = 10 would cut here")
        ax.set(title=f"step {step}", xlabel="token, likeliest first", xlim=(0.5, 80), ylim=(0, 1.02))
        ax.legend(loc="center right", framealpha=1, fontsize=8)
        told.append(f"{count} tokens in step {step}, where top_k = 10 would keep {row[:10].sum():.0%}")
    fig.axes[0].set_ylabel("probability")
    return fig, f"Temperature {temperature}: top_p = {top_p} keeps {told[0]}, and {told[1]} of the probability."


turn(cut, temperature=(0.5, 0.75, 1.0, 1.5, 2.0), top_p=(0.5, 0.7, 0.8, 0.9, 0.95, 0.99))

# %% [markdown]
# top_k keeps ten, whether the model is sure or not. top_p follows the model. A temperature comes *before* the cuts.
# Above 1 it flattens the row, so top_p keeps more, and so does min_p, which compares with the likeliest only:

# %%
temperatures = np.arange(1, 13) / 4
rows = [torch.tensor(np.log(steps[2]) / temperature).softmax(-1) for temperature in temperatures]
lines = {
    "top_p = 0.9": [len(kept_tokens_reference(row.tolist(), 258, 0.9)) for row in rows],
    "min_p = 0.1": [int((apply_min_p(row[None], torch.tensor([[0.1]])) > 0).sum()) for row in rows],
    "top_k = 10": [10 for _ in rows],
}
fig = new_figure(9, 2.6)
ax = fig.subplots()
for (name, kept), colour, style in zip(lines.items(), PALETTE[1::2], ("o-", "s--", "^:"), strict=True):
    ax.plot(temperatures, kept, style, color=colour, label=name)
ax.set(xlabel="temperature", ylabel="tokens kept of 258", ylim=(0, 258))
ax.legend(loc="upper left")
text = ", ".join(f"{kept[3]} and {kept[7]} with {name}" for name, kept in lines.items())
show(fig, alt=f"Tokens kept in step 2 at temperatures 1 and 2: {text}.")

# %% [markdown]
# Last, does chance do what softmax says? 4,000 completions of one token each, with seeds 0 to 3,999, after the words
# "... ago door add", that is, in step 2. The bars reach three standard deviations (sd) up and down from what is
# expected of 4,000 draws.

# %%
longer = {"prompt_token_ids": [*prompt["prompt_token_ids"], *encode("door add")]}


def draws(**options):
    output = write(1, longer, n=4000, seed=0, **options)
    return np.bincount([each.token_ids[0] for each in output.outputs], minlength=258)


# %%
counts, probs, best = draws(), steps[2], np.argsort(-steps[2])[:25]
expected, spread = 4000 * probs, 3 * np.sqrt(4000 * probs * (1 - probs))
inside = int((np.abs(counts - expected) <= spread)[best].sum())
fig = new_figure(9, 3)
ax = fig.subplots()
low = (expected - spread)[best]
ax.bar(range(25), 2 * spread[best], bottom=low, color="#56B4E9", label="expected, ± 3 sd")
ax.plot(range(25), counts[best], "o", ms=4, color="#222222", label="drawn")
ax.set_xticks(range(25), [word(token) for token in best], rotation=60, ha="right", fontsize=8)
ax.set(ylabel="times in 4,000", yscale="log", ylim=(5, 1300))
ax.legend()
show(
    fig,
    alt=f"The 25 likeliest tokens of 258. The likeliest is expected {expected[best[0]]:.0f} times and was drawn "
    f"{counts[best[0]]} times; {inside} of the 25 counts are within three standard deviations.",
)

# %% [markdown]
# ## Claims
#
# The chi-square statistic adds up the squared distances between counts and expectations, each divided by its
# expectation. Chance alone makes it about as large as the number of tokens (minus one), give or take the square root of
# twice that number. We count how many such spreads it is off.


# %%
def off_by(counts, probs):
    """Spreads between the chi-square of the counts and what chance gives; the rare tokens count as one."""
    expected = np.maximum(probs / probs.sum() * counts.sum(), 1e-9)
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum())
    observed = np.append(counts[~rare], counts[rare].sum())
    chi_square, free = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    return (chi_square - free) / np.sqrt(2 * free)


# %%
hotter = probs ** (1 / 1.1)
claim(
    "drawn frequencies are those of the softmax; those of temperature 1.1 are ruled out",
    off_by(counts, probs) < 4 < off_by(counts, hotter),
    measured=f"{off_by(counts, probs):.1f} and {off_by(counts, hotter):.1f} spreads",
)
claim(
    "greedy is the argmax, in each of 60 steps",
    list(chosen) == steps.argmax(-1).tolist(),
)

# %%
smallest = []
for step in range(12):
    for top_p in (0.1, 0.3, 0.5, 0.7, 0.9, 0.95):
        kept = np.sort(steps[step][kept_by(step, top_p)])
        enough = kept.sum() >= top_p > kept[1:].sum()
        smallest.append(enough and np.array_equal(kept, np.sort(steps[step])[-len(kept) :]))
claim("top_p keeps the smallest set with mass p", all(smallest), measured=f"{len(smallest)} sets")
num_kept, refusing = len(kept_by(2, 0.8)), draws(top_p=0.8)
off = [off_by(refusing, np.where(probs >= np.sort(probs)[-n], probs, 0)) for n in (num_kept, num_kept + 1)]
claim(
    "drawing with refusals is drawing from the row sorted and cut; one more token is ruled out",
    off[0] < 4 < off[1] and np.count_nonzero(refusing) == num_kept,
    measured=f"{off[0]:.1f} and {off[1]:.1f} spreads, {num_kept} tokens drawn",
)

# %% [markdown]
# And the promise of chapter 06, now with chance in it:

# %%
alone = [run([i])[0][0] for i in range(8)]
together, _ = run(range(8))
squeezed, preempted = run(range(8), num_blocks=16)
claim("a seeded request writes the same alone and in a batch of 8", together == alone, measured="8 requests")
claim(
    "also when memory runs out and requests start again",
    squeezed == alone and preempted > 0,
    measured=f"{preempted} preemptions",
)
claim("one generator for the batch breaks that", one_alone != one_in_batch)

# %% [markdown]
# SmolLM2 with one seed, at temperature 0.5, at 2, and at 2 with a cut:

# %% tags=["machine"]
for options in ({"temperature": 0.5}, {"temperature": 2.0}, {"temperature": 2.0, "min_p": 0.1}):
    tell(seed=1, **options)

# %% [markdown]
# ## Exercises
#
# In `notebooks/exercises/ch08_sampler.py`:
#
# - **ex08a** `sample`: temperature and the draw. Try temperature 0, logits of 1,000, and u = 1.
# - **ex08b** `top_p`: the cut itself, by sorting or not. Which token crosses `p`, and does it stay?
# - **ex08c** `top_n_sigma` (goes further): a cut on the logits which the engine does not have and which no temperature
#   moves. The tests put it into the engine as a sampler.
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex08a`:
#
#     %load_ext minivllm.course
#     %check ex08a
#
# ## Check yourself
#
# <details><summary>Two users send the same prompt with the same seed, in one batch. What do they get?</summary>
#
# The same text. Seed, position and attempt are equal, and so are the logits. A seed says "repeat this".
# </details>
#
# <details><summary>Some engines apply top_p first and the temperature afterwards. With temperature 2, which order lets
# more tokens through?</summary>
#
# Temperature first. It flattens the row, so top_p keeps more tokens. In the other order the set is that of temperature
# 1, and only the choice within it gets wilder.
# </details>
#
# <details><summary>How often is a draw refused with <code>top_p = 0.7</code> and our five tokens?</summary>
#
# The first draw in 15 of 100 cases: 1 minus the mass that is kept, 0.85, not 1 minus `p`. A second refusal takes e and
# then d: 0.05 times 10/95, once in 190 draws.
# </details>
#
# ## In real vLLM
#
# [`vllm/v1/sample/sampler.py`] has the same order, penalties before temperature before min_p before top_k before top_p,
# and takes log-probabilities from the untouched logits, as here. [`vllm/v1/sample/ops/topk_topp_sampler.py`] cuts in two
# ways. On an NVIDIA GPU it uses FlashInfer's kernels, which refuse as we do, but know no seed of a request. With a
# seeded request in the batch, or elsewhere, it masks the row, divides each probability by an exponential random number
# and takes the largest quotient; a request with a seed has a generator of its own for that, with a state. So a seed
# repeats a text within one engine; another engine gives another.
#
# [`vllm/v1/sample/sampler.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/sample/sampler.py
# [`vllm/v1/sample/ops/topk_topp_sampler.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/sample/ops/topk_topp_sampler.py
#
# ## Key points
#
# - Temperature divides the logits; top_k, top_p and min_p set probabilities to 0; greedy is none of these, just the
#   largest logit.
# - top_p keeps the token that crosses `p`; whether a token is kept needs no sorting.
# - Draw, look, refuse, draw again: the same distribution, exactly.
# - The random number is a function of seed, position and attempt, so a text depends on its own request only.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), section 4.4. **Next:** [09 · Sharing blocks: prefix cache and copy-on-write](09_sharing.ipynb).
