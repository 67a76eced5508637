# %% [markdown]
# # 14 · Why is the text not the same?
#
# ## Before you start
#
# **You need:** chapter 01: logits, and the largest of them is the next token. Chapter 06: other requests in the batch.
#
# **You will be able to:** tell a tie that rounding decides from a bug; name the causes one by one, with the size of
# each; and make logits that do not depend on the batch, at a price.
#
# **Minutes:** 35 to read and run, 35 for the exercises.

# %%
import json

import torch
import torch.nn.functional as F

from minivllm import SamplingParams
from minivllm.baselines.no_cache import llama_logits
from minivllm.course.catalog import ROOT
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import encode, greedy, real_llm, toy_llm
from minivllm.kernels.linear_cpu import TiledLinear, TorchLinear
from minivllm.prompts import render_chat
from minivllm.viz import new_figure, show

seed_all()

# %% [markdown]
# ## The problem
#
# Same weights, same prompt, temperature 0: the likeliest token each time. Nothing is random. And yet minivllm and
# Hugging Face do not always write the same, nor do vLLM and Hugging Face. `python -m minivllm compare --with hf vllm`
# runs eight prompts through all three, 48 tokens each, with SmolLM2. Its last recorded run:

# %%
recorded = json.loads((ROOT / "docs" / "data" / "cpu_compare.json").read_text())
names = ("engine", "backend", "dtype", "batch_size")  # minivllm has two attention backends on a CPU
runs = {tuple(run[name] for name in names): run for run in recorded["comparisons"]}
for (engine, backend, dtype, batch_size), run in sorted(runs.items()):
    equal = run["num_prompts"] - len(run["divergences"])
    gaps = ", ".join(f"{each['gap']:.3f}" for each in run["divergences"])
    name = f"{engine}, {backend}" if engine == "minivllm" else engine
    print(f"{name:<15} {dtype:<8} batch {batch_size}: {equal} of {run['num_prompts']} equal {gaps and 'gaps ' + gaps}")

# %% [markdown]
# In float32 all texts agree, vLLM's too; in bfloat16 about half of them differ, minivllm's and vLLM's alike. Is that a
# bug? "vLLM is not deterministic" and "output differs from transformers" are among the most frequent reports there are.
# This chapter takes the causes one by one.
#
# The *gap* is how close the call was: the difference between Hugging Face's logits of the two tokens, where the texts
# part. If a key had been written to the wrong slot, gaps would be of any size. If rounding decided, they would be
# small.
#
# ## Predict, then run
#
# Logits of this model are between 10 and 25 where it is sure of itself. What is the *largest* gap at which two texts
# parted?

# %%
guess = None

# %%
all_gaps = [each["gap"] for run in runs.values() for each in run["divergences"]]
reveal(guess, max(all_gaps), "")
spacing = float(torch.tensor(24.0).bfloat16().nextafter(torch.tensor(100.0).bfloat16()) - 24)
print(f"numbers of bfloat16 near 24 are {spacing} apart; {all_gaps.count(0.0)} gaps are exactly 0")

# %% [markdown]
# bfloat16 keeps 8 significant bits, so near 24 there is nothing between 24.000 and 24.125. All gaps are at most 3 of
# these steps: ties, or nearly. Where the gap is exactly 0, the two likeliest tokens have *the same* logit, and which of
# them is "the largest" depends on who asks.
#
# ## How the code does it
#
# ### Cause 1: the order of the additions
#
# A logit is a sum of products. Computers round after each addition, so the order matters:

# %%
big, small = torch.tensor(1e8), torch.tensor(1.0)
print(f"(1e8 + 1) - 1e8 = {(big + small) - big:.0f}        (1e8 - 1e8) + 1 = {(big - big) + small:.0f}")
numbers = torch.randn(500, dtype=torch.float64)
errors = {}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    values = numbers.to(dtype)
    there, back = (sum(each, start=torch.zeros((), dtype=dtype)).item() for each in (values, values.flip(0)))
    errors[dtype] = abs(there - back)
    print(f"{str(dtype):<15} the same 500 numbers, added from both ends: {errors[dtype]:.6f} apart")

# %% [markdown]
# bfloat16 and float16 take the same two bytes. float16 spends more of them on digits and fewer on the exponent: smaller
# errors here, and an overflow above 65,504.
#
# Which order is taken? The library decides, by the *shape*. A product of 1 row and one of 64 rows are different
# programs. So what a request gets can depend on how many others share its step:

# %% tags=["machine"]
weight, rows = torch.randn(96, 256), torch.randn(64, 256)
product = TorchLinear(weight, None)
whole = product(rows)
differing = [n for n in range(1, 65) if not torch.equal(product(rows[:n]), whole[:n])]
print(f"of 64 numbers of rows {len(differing)} give other bits than 64 rows do, here: {differing[:12]} ...")

# %% [markdown]
# Which numbers these are depends on the processor. Nothing is wrong with any of the results; each is as near to the
# truth as another.
#
# ### Cause 2: the type
#
# The same toy Llama in float32 and in bfloat16, reading the same 200 tokens. At each position: would both choose the
# same next token? And how far apart are the two best logits there?

# %% tags=["machine"]
tokens = [(7 * i * i + 3 * i) % 256 for i in range(200)]
logits = {}
for dtype in ("float32", "bfloat16"):
    model = toy_llm(dtype=dtype, attention_backend="torch").llm_engine.runner.model
    logits[dtype] = torch.stack([llama_logits(model)(tokens[: n + 1]).float() for n in range(len(tokens))])
best = logits["float32"].topk(2).values
gap = best[:, 0] - best[:, 1]
noise = (logits["float32"] - logits["bfloat16"]).abs().amax(1)
flips = logits["float32"].argmax(1) != logits["bfloat16"].argmax(1)
print(f"{int(flips.sum())} of {len(tokens)} choices differ")
print(f"median gap of the two best: {gap.median():.4f} everywhere, {gap[flips].median():.4f} where the choices differ")
print(f"largest difference of a logit: {noise.max():.4f}; largest gap that was flipped: {gap[flips].max():.4f}")

# %% [markdown]
# That is the whole story of most reports. Every logit is off by a little. Where one token is clearly the best, nothing
# happens. Where two are nearly tied, the little decides; and once one token differs, everything after it does.
#
# ### Cause 3: the batch, the chunks, the prefix cache
#
# Continuous batching puts a request among others, in numbers that depend on traffic. Chunked prefill cuts its prompt
# where the budget ends; a hit in the prefix cache leaves out the beginning. All of these change shapes. If that must
# not be seen, each row has to be computed in an order of its own. Two things suffice on a CPU: products always with 16
# rows, and attention for one query at a time.

# %%
show_source(TiledLinear)


# %%
def logits_among(llm, batch_size):
    """Logits of request 0 at all its steps, among `batch_size` - 1 others."""
    runner, seen = llm.llm_engine.runner, []
    sampler = runner.sampler

    def watching(values, rows):
        seen.append(values[0].clone())
        return sampler(values, rows)

    runner.sampler = watching
    prompts = [[(37 * number + i) % 256 for i in range(5 + number % 9)] for number in range(1, batch_size)]
    prompts.insert(0, encode("Four score and seven years ago"))
    llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], greedy(6), use_tqdm=False)
    runner.sampler = sampler
    return torch.stack(seen[:6])


options = {"num_blocks": 512, "max_num_seqs": 64, "attention_backend": "torch"}
invariant = toy_llm(batch_invariant=True, **options)
alone = logits_among(invariant, 1)
same_bits = {n: torch.equal(logits_among(invariant, n), alone) for n in (2, 8, 33, 64)}
print("batch_invariant=True, the same bits as alone:", same_bits)

# %% tags=["machine"]
ordinary = toy_llm(**options)
plain = logits_among(ordinary, 1)
drift = {n: (logits_among(ordinary, n) - plain).abs().max().item() for n in (2, 8, 33, 64)}
print("without it, the largest difference:", {n: f"{value:.1e}" for n, value in drift.items()})

# %% [markdown]
# What does it cost? A tile has 16 rows even if 15 of them are zeros, so a single request pays for 16; and a prompt is
# attended to query by query. It is an option for tests and for research, not the default.
#
# ### Causes that are not rounding
#
# These move logits at least a hundred times as far as float32 rounding does. (bfloat16 rounding, above, is as large as
# some of them.) Check them first. Each on SmolLM2 with four questions: in how many does the next token change, and by
# how much the log-probability of the right one?

# %%
llm = real_llm(num_blocks=64, max_model_len=128)
tokenizer, next_logits = llm.get_tokenizer(), llama_logits(llm.llm_engine.runner.model)
questions = ["What is the capital of France?", "Name three colours.", "What do bees make?", "Is the sea salty?"]
chats = [render_chat(tokenizer, [{"role": "user", "content": text}])["prompt_token_ids"] for text in questions]
right, effects = [next_logits(chat) for chat in chats], {}


def effect(cause, wrong):
    """Compare logits, one row for each question, with the right ones."""
    pairs = list(zip(right, wrong, strict=True))
    changed = sum(bool(a.argmax() != b.argmax()) for a, b in pairs)
    shift = [(a.log_softmax(-1) - b.log_softmax(-1))[a.argmax()].abs().item() for a, b in pairs]
    effects[cause] = max(shift)
    print(f"{cause:<42} {changed} of 4 tokens change, log-probability by up to {max(shift):.5f}")


def penalized(values, chat):
    """Repetition penalty 1.3 on the tokens of the prompt."""
    seen = values[chat]
    return values.index_put((torch.tensor(chat),), torch.where(seen > 0, seen / 1.3, seen * 1.3))


pad, bos = tokenizer.pad_token_id, tokenizer.bos_token_id
by_torch = real_llm(num_blocks=64, max_model_len=128, attention_backend="torch").llm_engine.runner.model
effect("rounding: another attention backend", [llama_logits(by_torch)(chat) for chat in chats])
effect("tokenized twice: one more <|im_start|>", [next_logits([bos, *chat]) for chat in chats])
effect("no chat template", [next_logits(tokenizer.encode(text)) for text in questions])
effect("8 pads on the left, without a mask", [next_logits([pad] * 8 + chat) for chat in chats])
effect("a repetition penalty that counts the prompt", list(map(penalized, right, chats)))


# %% [markdown]
# A pad is a token like any other to a model that is not told to look away. (Its mask is enough here: positions may
# start at 8, since a rotation knows distances only.) Three more causes change no logit, only what is made of the
# logits:

# %%
def answers(**settings):
    """What the model says to the four questions, as token ids."""
    params = SamplingParams(**{"temperature": 0, "max_tokens": 24} | settings)
    prompts = [{"prompt_token_ids": chat} for chat in chats]
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]


warm = [1 - (values / 0.6).softmax(-1).max().item() for values in right]
print(f"a default temperature of 0.6: {sum(warm) / 4:.0%} of the first tokens are not the likeliest")
ended, endless = answers(), answers(ignore_eos=True)
print("tokens until <|im_end|>, and if it is not among the ids that end a text:", list(zip(map(len, ended), map(len, endless), strict=True)))
drawn = [each[0] for each in answers(temperature=1.0, seed=7, max_tokens=1)]
by_torch = [torch.multinomial(each.softmax(-1), 1, generator=torch.Generator().manual_seed(7)).item() for each in right]
other_draws = sum(a != b for a, b in zip(drawn, by_torch, strict=True))
print(f"seed 7 here and seed 7 in torch.multinomial: {other_draws} of 4 tokens differ")

# %% [markdown]
# | cause | how to find out |
# |---|---|
# | tokenized twice; no chat template | compare token ids, not texts; print the prompt that was built |
# | `generation_config.json` sets a temperature or top_p | compare all parameters, defaults too |
# | end of text: any of three ids, or the first of them only | compare lengths |
# | padding | run without a batch |
# | random numbers | temperature 0 |
# | a repetition penalty, over the prompt or not | set it to 1 |
#
# minivllm's random numbers are a function of seed and position, so they do not depend on the batch. That helps against
# minivllm's own batches, and not at all against another program.
#
# ## The picture

# %% tags=["machine"]
fig = new_figure(9, 3)
left, right = fig.subplots(1, 2)
edges = torch.linspace(0, float(gap.max()), 30)
left.hist([gap[~flips], gap[flips]], bins=edges, stacked=True, color=["#BBBBBB", "#D55E00"],
          label=["same choice", "another choice in bfloat16"])
left.set(xlabel="gap of the two best logits", ylabel="positions", title="where texts can part")
left.legend(fontsize=8)
right.plot(gap, noise, "o", ms=3, color="#BBBBBB")
right.plot(gap[flips], noise[flips], "o", ms=5, color="#D55E00")
limit = 2 * float(noise.max())
right.axvline(limit, color="#222222", lw=0.8, ls="--")
right.set(xlabel="gap of the two best logits", ylabel="largest error of a logit", title="dashed: twice the largest error")
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
show(
    fig,
    alt=f"Left: the gaps at 200 positions; the {int(flips.sum())} where bfloat16 chooses another token are at the left "
    f"end. Right: no choice is flipped where the gap is above twice the largest error, {limit:.3f}.",
)

# %% [markdown]
# ## Claims

# %%
exact = [run for run in runs.values() if run["dtype"] == "float32"]
claim("recorded: in float32 all texts are Hugging Face's", not any(run["divergences"] for run in exact), len(exact))
claim("recorded: no text parted at a gap of more than three steps of bfloat16", max(all_gaps) <= 3 * spacing, measured=f"{max(all_gaps)}")
claim("the shorter the number, the larger the error: float32, float16, bfloat16",
      errors[torch.float32] < errors[torch.float16] < errors[torch.bfloat16])
claim("choices differ somewhere, and nowhere beyond twice the largest error", bool(0 < flips.sum() and gap[flips].max() <= limit))
wrong_prompts = [shift for cause, shift in effects.items() if "rounding" not in cause]
claim("each cause that is not rounding moves a log-probability 100 times as far as float32 rounding does",
      min(wrong_prompts) > 100 * effects["rounding: another attention backend"], f"{min(wrong_prompts):.4f}")
claim("flips happen where the gap is small: their median is below a third of all", bool(gap[flips].median() < gap.median() / 3))
claim("batch_invariant: the same bits among 1, 7, 32 and 63 others", all(same_bits.values()))
padded = F.pad(rows[:5], (0, 0, 0, 11))
claim("a tile of 16 rows gives each row the bits it has in any other tile", torch.equal(
    TiledLinear(product)(rows[:5]), product(padded)[:5]) and torch.equal(TiledLinear(product)(rows)[:5], TiledLinear(product)(rows[:5])))

# %% [markdown]
# ## Exercises
#
# In `notebooks/exercises/ch14_same_text.py`:
#
# - **ex14a** `first_flip`: where two texts part, and how close the call was.
# - **ex14b** `in_tiles`: a product whose result for a row does not depend on the others.
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex14a`:
#
#     %load_ext minivllm.course
#     %check ex14a
#
# ## Check yourself
#
# <details><summary>Two texts part at token 3, at a gap of 6.0 in float32. Tie or bug?</summary>
#
# A bug, or another prompt. Rounding in float32 moves a logit by a hundred-thousandth or so. Compare the token ids of
# the two prompts first, then the hidden states layer by layer: `python -m minivllm compare` prints them.
# </details>
#
# <details><summary>Two texts agree for 48 tokens. Are the two programs equally right?</summary>
#
# Not shown. If one token is the best by far at each position, even a sizeable error flips nothing. Compare logits, with
# a tolerance that a known bug does not pass.
# </details>
#
# <details><summary>Why does a fixed seed not make a server's output repeatable?</summary>
#
# The seed fixes the random numbers. The probabilities they are compared with still depend, in their last bits, on the
# batch, and so on who else is asking at that moment.
# </details>
#
# ## In real vLLM
#
# `VLLM_BATCH_INVARIANT=1` replaces matrix products, norms and attention by kernels with a fixed order, on recent GPUs;
# the idea and its cost are described in "Defeating Nondeterminism in LLM Inference" (Thinking Machines, 2025). Its
# documentation has a chapter on reproducibility. Threads on the subject are numerous: #5898 and #15437 (greedy text
# changes with the batch), #590 and #1128 (other text than Hugging Face's), #7779, #11658.
#
# ## Key points
#
# - Floating-point sums depend on their order, and libraries choose the order by the shape.
# - Each logit is off by a little; a greedy text changes only where the two best are closer than twice that.
# - A large gap at the first difference is never rounding: look for a bug, or for another prompt.
# - Logits that depend on nothing else in the batch can be had, for the price of fixed shapes.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180). **Next:** [15 · The paper's figures](15_paper_figures.ipynb).
