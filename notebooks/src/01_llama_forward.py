# %% [markdown]
# # 01 · Llama forward, one token at a time
#
# ## Before you start
#
# **You need:** chapter 00; matrix products, softmax, and how to read a PyTorch module.
#
# **You will be able to:** write down the shape of every tensor between token ids and logits, explain what RMSNorm,
# RoPE, grouped-query attention and SwiGLU compute, and say why generating without a memory is quadratic.
#
# **Minutes:** 40 to read and run, 40 for the exercises.

# %%
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from minivllm.baselines.no_cache import greedy_without_cache, llama_logits
from minivllm.course.notebook import claim, reveal, seed_all, show_source
from minivllm.course.toy import decode, encode, toy_llm
from minivllm.layers import RMSNorm, RotaryEmbedding
from minivllm.llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP
from minivllm.weights.random_model import random_llama
from minivllm.viz import new_figure, show

seed_all()

# %% [markdown]
# ## The problem
#
# The simplest way to generate text: put all tokens through the model, take the likeliest next one, append it, repeat.
# Let us count how often it computes something it has computed before. A hook on the model notes how many positions
# go through it in each call.

# %%
model = toy_llm().llm_engine.runner.model
prompt = encode("Four score and seven years ago")
positions_per_step = []
hook = model.register_forward_hook(lambda module, inputs, output: positions_per_step.append(len(inputs[0])))

# %% [markdown]
# ## Predict, then run
#
# The prompt has 6 tokens, and we want 24 more. How many positions go through the model in all?

# %%
guess = None

# %%
new_tokens = greedy_without_cache(llama_logits(model), prompt, max_tokens=24)
hook.remove()
print(decode(new_tokens))
reveal(guess, sum(positions_per_step), "positions")

# %% [markdown]
# Only 29 different positions exist: the 6 of the prompt, and 23 of the new ones (the last is chosen but never needed as
# input). All the other work had been done before, and its results thrown away. In step $i$ the loop computes $P + i$
# positions, so $n$ new tokens cost $\sum_{i=0}^{n-1} (P + i) = nP + n(n-1)/2$: quadratic in $n$.
#
# To see which part of that work could be kept, we have to know what is inside.
#
# ## How the code does it
#
# A batch in this engine is one row of $T$ tokens, without padding. We run the six prompt tokens through the model and
# let every module tell the shape of what it returns. `T` is 6, hidden size 64, `Hq` = 4 query heads and `Hkv` = 2 KV
# heads of `D` = 16.

# %%
shapes = []


def note(name):
    """A hook that writes down a module's name and the shape of its output."""

    def write_down(module, inputs, output):
        first = output[0] if isinstance(output, tuple) else output  # a norm returns the norm and the sum
        shapes.append((name, tuple(first.shape)))

    return write_down


watched = {"": "the whole model", "model.norm": "final norm"}
watched |= {
    f"model.layers.0.{part}": part
    for part in (
        "input_layernorm",
        "self_attn.qkv_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_up_proj",
        "mlp.down_proj",
    )
}
hooks = [
    module.register_forward_hook(note(watched[name]))
    for name, module in model.named_modules()
    if name in watched
]
logits = llama_logits(model)(prompt)
for hook in hooks:
    hook.remove()
for name, shape in [*shapes, ("logits of the last token", tuple(logits.shape))]:
    print(f"{name:<28}{shape}")

# %% [markdown]
# Six vectors of 64 numbers go in and six come out of every layer; nothing between two layers looks at another token's
# vector, except attention. The table is in the order of the calls: "the whole model" returns last.
#
# **RMSNorm** divides each vector by its root mean square and multiplies by a learned weight. The scale of the input
# vanishes: `norm(3 x)` equals `norm(x)`.

# %%
show_source(RMSNorm.normalize)

# %% [markdown]
# **Attention.** One product makes queries, keys and values for all heads: 4 · 16 + 2 · 16 + 2 · 16 = 128 numbers per
# token. Queries and keys are rotated, then each query looks at the keys of its own sequence.

# %%
show_source(LlamaAttention.forward)

# %% [markdown]
# There are fewer KV heads than query heads: this is *grouped-query attention*. Query heads 0 and 1 share KV head 0,
# heads 2 and 3 share KV head 1. Grouping halves what has to be remembered for each token, which will matter a lot in
# chapter 02.
#
# **RoPE** puts the position into queries and keys by rotating pairs of numbers. Pair $i$ of a head, which is
# $(x_i, x_{i+D/2})$, turns by an angle proportional to the position, fast for small $i$ and slowly for large $i$.
# (`roll` puts each number beside its partner. `sin` comes from a table in which the first half has a minus sign.)

# %%
show_source(RotaryEmbedding.rotate)

# %% [markdown]
# Why rotate, when one could add a position vector? Because a dot product of two rotated vectors depends only on the
# *difference* of the angles. A query at position 15 sees a key at position 12 exactly as a query at position 103 sees a
# key at 100. The score depends on the distance, and yet each key is rotated by its own position only, whatever comes
# after it. So it can be rotated once, stored, and used by every later query. (Learned absolute positions, as in OPT,
# the paper's model, allow that too. A scheme which moved positions when the text grows would not.)

# %%
query, key = torch.randn(2, 1, 1, 16)  # one token, one head, D = 16


def score(query_position, key_position):
    """Dot product of the query and the key, each rotated to its position."""
    rotary = model.model.rotary_emb
    rotation = rotary.look_up(torch.tensor([query_position, key_position]), torch.float32)
    rotated = rotary.rotate(torch.cat((query, key)), *rotation)
    return float(rotated[0, 0] @ rotated[1, 0])


for pair in ((3, 0), (15, 12), (103, 100), (15, 2)):
    print(f"query at {pair[0]:>3}, key at {pair[1]:>3}, distance {pair[0] - pair[1]}: {score(*pair):.5f}")

# %% [markdown]
# **SwiGLU**, the feed-forward half of a layer, is three matrices: a gate, a value and the way back. Where the gate
# is very negative, nothing passes.

# %%
show_source(LlamaMLP.forward)
show_source(LlamaDecoderLayer.forward)

# %% [markdown]
# Put together: of all the numbers that a token causes in a layer, later tokens read exactly two vectors per KV head,
# its rotated key and its value. Its query, its gate and its hidden state serve that token alone. Here this is 2 · 2 ·
# 16 = 64 numbers per layer, against 64 + 128 + 64 + 64 + 256 + 64 in the table above. An engine which keeps those 64
# can throw everything else away and need not compute that token again. That is the plan for chapter 02.
#
# ## The picture
#
# The bars show how many positions each step computed. The dark part of a bar is new in that step; everything above
# it was there before.

# %%
steps = range(len(positions_per_step))
new = [len(prompt)] + [1] * (len(steps) - 1)
again = [total - fresh for total, fresh in zip(positions_per_step, new, strict=True)]
fig = new_figure(8, 3)
ax = fig.subplots()
ax.bar(steps, new, color="#0072B2", edgecolor="#222222", lw=0.5, label="computed for the first time")
ax.bar(
    steps,
    again,
    bottom=new,
    color="#F0E442",
    edgecolor="#222222",
    lw=0.5,
    hatch="///",
    label="computed again",
)
ax.set(xlabel="step", ylabel="positions through the model")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(loc="upper left")
show(
    fig,
    alt=f"Without a memory the steps grow from {positions_per_step[0]} to {positions_per_step[-1]} positions; of "
    f"{sum(positions_per_step)} positions computed, {sum(again)} had been computed before.",
)

# %% [markdown]
# ## Claims
#
# Is this module really Llama? We write the forward pass once more, from the formulas: separate weight matrices
# under their Hugging Face names, complex numbers for the rotation, `einsum` for attention. It shares no line with
# `llama.py`, and has no blocks, no batch and no KV cache.

# %%
with tempfile.TemporaryDirectory() as folder:
    weights = load_file(random_llama(Path(folder) / "toy", byte_tokenizer=True) / "model.safetensors")


def rotate(heads):
    """(T, heads, 16): each pair as a complex number, times e^(i * angle)."""
    angles = torch.arange(len(heads))[:, None] * 10000.0 ** (-torch.arange(8) / 8)  # (T, 8)
    pairs = torch.complex(heads[..., :8], heads[..., 8:]) * torch.polar(torch.ones(()), angles)[:, None]
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def independent_logits(token_ids):
    """Llama from its formulas; returns the logits after the last token."""
    norm = lambda x, name: x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weights[name]
    x = weights["model.embed_tokens.weight"][token_ids]
    for layer in ("model.layers.0.", "model.layers.1."):
        get = lambda name: weights[f"{layer}{name}.weight"]
        h = norm(x, layer + "input_layernorm.weight")
        q, k, v = (
            torch.einsum("td,ed->te", h, get(f"self_attn.{n}_proj")).unflatten(1, (-1, 16)) for n in "qkv"
        )
        k, v = (each.repeat_interleave(2, dim=1) for each in (rotate(k), v))
        scores = torch.einsum("qhd,khd->hqk", rotate(q), k) / 4  # sqrt(16)
        hidden_future = torch.ones(len(h), len(h)).triu(1).bool()
        mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden_future, -torch.inf).softmax(-1), v)
        x = x + mixed.flatten(1) @ get("self_attn.o_proj").T
        h = norm(x, layer + "post_attention_layernorm.weight")
        gate, up = h @ get("mlp.gate_proj").T, h @ get("mlp.up_proj").T
        x = x + (torch.nn.functional.silu(gate) * up) @ get("mlp.down_proj").T
    return norm(x, "model.norm.weight")[-1] @ weights["lm_head.weight"].T


# %%
differences = [
    (llama_logits(model)(tokens) - independent_logits(tokens)).abs().max().item()
    for tokens in (prompt, prompt + new_tokens, [255], list(range(100)))
]
claim(
    "llama.py computes what an independent implementation computes",
    max(differences) < 1e-4,
    measured=f"largest difference of 4 x 258 logits below 1e-4, logits up to {logits.abs().max():.1f}",
)
P, n = len(prompt), len(new_tokens)
claim(
    "without a memory, n new tokens cost n P + n (n - 1) / 2 positions",
    sum(positions_per_step) == n * P + n * (n - 1) // 2,
    measured=f"{sum(positions_per_step)} for P = {P}, n = {n}",
)
claim(
    "the score of a query and a key depends on their distance only",
    abs(score(3, 0) - score(103, 100)) < 1e-4 < abs(score(15, 12) - score(15, 2)),
)

# %% [markdown]
# ## Exercises
#
# In `notebooks/exercises/ch01_llama_forward.py`:
#
# - **ex01a** `rms_norm`: any scale of the input gives the same output.
# - **ex01b** `apply_rope`: with pairs (first half, second half), not neighbours; the difference is a classic bug
#   that produces fluent nonsense.
# - **ex01c** grouped attention for any `Hq` and `Hkv`: which KV head belongs to query head $h$?
#
# Edit the file, then ask here in a new cell, or in a terminal with `python -m minivllm.course check ex01a`:
#
#     %load_ext minivllm.course
#     %check ex01a
#
# ## Check yourself
#
# <details><summary>The model has 4 query heads and 2 KV heads of size 16. How many numbers does one token leave
# behind in one layer, if we keep its key and its value?</summary>
#
# 2 (key and value) · 2 heads · 16 = 64. With 4 KV heads it would be 128. The query is used once and never needed
# again.
# </details>
#
# <details><summary>Which step of the forward pass mixes information between tokens?</summary>
#
# Attention only. Norms, projections, the feed-forward part and the output matrix work on each of the T rows alone. That
# is why a batch can be one row of tokens of many requests: only attention has to know which token belongs to which
# request.
# </details>
#
# <details><summary>A prompt has 1,000 tokens and 1,000 are generated. How many positions are computed without a
# memory, and how many different ones are there?</summary>
#
# 1,000 · 1,000 + 1,000 · 999 / 2 = 1,499,500 computed; 1,999 different ones. A factor of 750.
# </details>
#
# ## In real vLLM
#
# [`vllm/model_executor/models/llama.py`] has the same classes and the same fused projections (`qkv_proj`,
# `gate_up_proj`), made of layers that can be split over several GPUs. Positions are an argument there too, and the
# tokens of all requests lie in one row. Normalisation and the residual addition are one fused kernel.
#
# [`vllm/model_executor/models/llama.py`]: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/model_executor/models/llama.py
#
# ## Key points
#
# - Token ids (T,) become hidden vectors (T, hidden); every layer adds attention, then a gated feed-forward part.
# - Only attention looks at other tokens, and it needs nothing of them but keys and values.
# - RoPE makes scores depend on distance, and rotates a key by its own position only: a stored key stays right.
# - Computing everything again for each token is quadratic: that is the problem the KV cache solves.
#
# **Read on:** [the paper](https://arxiv.org/abs/2309.06180), section 2. **Next:** [02 · The KV cache and its price](02_kv_cache.ipynb).
