"""Chapter 1: rms_norm, apply_rope, grouped_attention; each alone and inside the model."""

import cmath

import pytest

from tests.exercises.engine import default_prompts, generate
from tests.exercises.expect import expect, expect_close, expect_that, expect_unchanged, same_text

TOLERANCE = 2e-5  # float32, results of size 1


def normal(rng, *shape):
    """N(0, 1), float32."""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))


# -- ex01a ------------------------------------------------------------------------------------------


def norm_oracle(x, weight, eps):
    """The formula in float64."""
    wide = x.double()
    return wide / (wide.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.exercise(
    "ex01a", points=1, hint="x.square().mean(dim=-1, keepdim=True): the mean, not the sum, of each row."
)
def test_rows_are_scaled_to_size_one(ex, rng):
    """Each row by its own size, then times weight: another dimension or a sum gives other numbers."""
    import torch

    got = ex.rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), 0.0)
    expect_close(
        got, torch.tensor([[0.848528, 1.131371]]), "rms_norm([[3, 4]], weight=[1, 1], eps=0)", TOLERANCE
    )
    x, weight = normal(rng, 5, 8) * 3 + 1, normal(rng, 8)
    expect_close(
        ex.rms_norm(x, weight, 1e-5), norm_oracle(x, weight, 1e-5), "rms_norm of (5, 8) numbers", TOLERANCE
    )


@pytest.mark.exercise("ex01a", points=1, hint="No mean is subtracted: that would be LayerNorm.")
def test_the_scale_of_the_input_does_not_matter(ex, rng):
    """1000 x gives what x gives; but x + 1 does not: an answer that subtracts the mean gets that wrong."""
    x, weight = normal(rng, 4, 16), normal(rng, 16)
    expect_close(
        ex.rms_norm(1000 * x, weight, 0.0), ex.rms_norm(x, weight, 0.0), "rms_norm(1000 * x), against x", 1e-4
    )
    got, expected = ex.rms_norm(x + 1, weight, 0.0), norm_oracle(x + 1, weight, 0.0)
    expect_close(got, expected, "rms_norm(x + 1)", TOLERANCE)


@pytest.mark.exercise("ex01a", points=1, hint="eps is added to the mean square, under the root.")
def test_a_row_of_zeros_stays_zero(ex):
    """Padding rows are zeros: without eps they become NaN; eps outside the root has another weight."""
    import torch

    weight = torch.ones(4)
    expect_close(ex.rms_norm(torch.zeros(2, 4), weight, 1e-5), torch.zeros(2, 4), "rms_norm of zeros", 0.0)
    x = torch.full((1, 4), 1e-3)
    expect_close(
        ex.rms_norm(x, weight, 1e-6), norm_oracle(x, weight, 1e-6), "rms_norm([0.001, ...], eps=1e-6)", 1e-4
    )


@pytest.mark.exercise("ex01a", points=1, hint="x.float() before squaring, .to(x.dtype) at the end.")
def test_half_precision_does_not_overflow(ex, rng):
    """The square of 300 does not fit into float16: squares taken there are infinite, and the row becomes 0."""
    import torch

    x = (normal(rng, 3, 8) * 1000).half()
    got = ex.rms_norm(x, torch.ones(8).half(), 1e-5)
    expect(got.dtype, torch.float16, "dtype of rms_norm of float16 numbers")
    expect_close(got, norm_oracle(x, torch.ones(8), 1e-5), "rms_norm of float16 numbers of size 1000", 5e-3)


@pytest.mark.exercise(
    "ex01a", points=1, hint="x.float() whatever the dtype is, and .to(x.dtype) after the division."
)
def test_bfloat16_is_computed_in_float32(ex, rng):
    """bfloat16 cannot overflow, but it has 8 bits: a root that is rounded to them is up to 0.4 % off, for a whole row."""
    import torch

    x, weight = normal(rng, 64, 64).bfloat16(), torch.ones(64).bfloat16()
    got, expected = ex.rms_norm(x, weight, 1e-5), norm_oracle(x, weight, 1e-5).bfloat16()
    expect_close(got, expected, "rms_norm of bfloat16 numbers", 0.1)
    share = (got == expected).double().mean().item()
    expect_that(share > 0.98, "rms_norm of bfloat16 numbers, weight 1, is the float32 result rounded once: nearly all "
                "numbers are equal", share_that_is_equal=round(share, 3))  # fmt: skip


@pytest.mark.exercise("ex01a", points=1, hint="x * ... makes a new tensor; x *= ... writes into the old one.")
def test_the_norm_leaves_its_input_alone_and_keeps_its_dtype(ex, rng):
    """The model adds x to the result of the layer: a norm that writes into x changes what is added."""
    import torch

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x, weight = (3 * normal(rng, 4, 8)).to(dtype), normal(rng, 8).to(dtype)
        before = x.clone(), weight.clone()
        got = ex.rms_norm(x, weight, 1e-5)
        expect_unchanged((x, weight), before, f"rms_norm of {dtype} numbers")
        expect(got.dtype, dtype, f"dtype of rms_norm of {dtype} numbers")


@pytest.mark.exercise(
    "ex01a",
    points=1,
    hint="The model normalises 5 times for each token: 2 layers twice, and once at the end.",
)
def test_the_model_writes_the_same_text_with_it(ex, tiny_model, reference_text, monkeypatch):
    """Inside the model, in place of its own norm."""
    from minivllm.backends.layers_kernels import NumbaRMSNorm
    from minivllm.layers import RMSNorm

    monkeypatch.setattr(RMSNorm, "normalize", lambda self, x: ex.rms_norm(x, self.weight, float(self.eps)))
    monkeypatch.setattr(NumbaRMSNorm, "forward", RMSNorm.forward)  # which adds, then calls `normalize`
    same_text(generate(tiny_model), reference_text, "the model with your rms_norm")


# -- ex01b ------------------------------------------------------------------------------------------


def rope_oracle(heads, positions, theta):
    """Rotation as multiplication by a complex number of length 1, one number at a time."""
    out, half = heads.double().clone(), heads.shape[-1] // 2
    for t, position in enumerate(positions.tolist()):
        for head in range(heads.shape[1]):
            for i in range(half):
                turn = cmath.exp(1j * position * theta ** (-i / half))
                pair = complex(heads[t, head, i], heads[t, head, i + half]) * turn
                out[t, head, i], out[t, head, i + half] = pair.real, pair.imag
    return out


def positions_of(*numbers):
    import torch

    return torch.tensor(numbers)


@pytest.mark.exercise("ex01b", points=1, hint="At position 0 every angle is 0, for every pair.")
def test_position_zero_turns_nothing(ex, rng):
    """Positions count from 0: a table that begins at 1 turns everything by one position too much."""
    heads = normal(rng, 2, 3, 8)
    expect_close(ex.apply_rope(heads, positions_of(0, 0), 1e4), heads, "apply_rope at position 0", 1e-6)


@pytest.mark.exercise("ex01b", points=1, hint="First half and second half: x[..., :D//2] and x[..., D//2:].")
def test_pairs_are_first_and_second_half(ex):
    """Neighbours as pairs is another layout of the same idea: weights trained for one are noise in the other."""
    import torch

    got = ex.apply_rope(torch.tensor([[[1.0, 0.0]]]), positions_of(2), 1e4)
    expect_close(
        got, torch.tensor([[[-0.416147, 0.909297]]]), "apply_rope([[[1, 0]]], positions=[2])", TOLERANCE
    )
    got = ex.apply_rope(torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]), positions_of(2), 1e4)
    expected = torch.tensor([[[-0.416147, 0.0, 0.909297, 0.0]]])
    expect_close(got, expected, "apply_rope([[[1, 0, 0, 0]]], positions=[2])", TOLERANCE)


@pytest.mark.exercise(
    "ex01b", points=2, hint="theta ** (-2 * i / D) for i = 0, 1, ..., D/2 - 1: the first is 1."
)
def test_the_angles_are_those_of_the_formula(ex, rng):
    """Position times frequency, and the positions given, not those counted: against complex numbers in float64."""
    heads, positions = normal(rng, 5, 2, 8), positions_of(0, 7, 3, 41, 100)
    for theta in (1e4, 500.0):
        got = ex.apply_rope(heads, positions, theta)
        expect_close(got, rope_oracle(heads, positions, theta), f"apply_rope at positions [0, 7, 3, 41, 100], theta={theta:g}", 2e-4)  # fmt: skip


@pytest.mark.exercise(
    "ex01b", points=1, hint="positions.float() and float32 frequencies; cast the result only."
)
def test_far_positions_are_told_apart(ex, rng):
    """bfloat16 has 8 bits: 257 becomes 256, and 100,001 becomes 99,840. Neighbours would get one position."""
    import torch

    for dtype, tolerance in ((torch.float32, 0.05), (torch.float16, 0.05), (torch.bfloat16, 0.1)):
        heads, positions = normal(rng, 4, 2, 8).to(dtype), positions_of(257, 4099, 30_001, 100_001)
        got = ex.apply_rope(heads, positions, 1e4)
        call = f"apply_rope of {dtype} heads at positions {positions.tolist()}"
        expect(got.dtype, dtype, f"dtype of {call}")
        expect_close(got, rope_oracle(heads, positions, 1e4), call, tolerance)


@pytest.mark.exercise("ex01b", points=1, hint="Turn query and key in the same direction.")
def test_a_score_depends_on_the_distance_only(ex, rng):
    """The point of it all: shift both tokens by the same distance and their score stays."""
    query, key = normal(rng, 1, 2, 8), normal(rng, 1, 2, 8)

    def score(p, q):
        return (ex.apply_rope(query, positions_of(p), 1e4) * ex.apply_rope(key, positions_of(q), 1e4)).sum(-1)

    for shift in (1, 10, 90):
        expect_close(score(9 + shift, 4 + shift), score(9, 4), f"score of positions {9 + shift} and {4 + shift}, against 9 and 4", 1e-4)  # fmt: skip


@pytest.mark.exercise("ex01b", points=1, hint="torch.cat makes a new tensor; writing into a slice does not.")
def test_the_input_is_left_alone(ex, rng):
    """The heads are a view of a larger tensor: writing into it changes what others still read."""
    heads = normal(rng, 3, 2, 8)
    before = heads.clone()
    ex.apply_rope(heads, positions_of(1, 2, 3), 1e4)
    expect_close(heads, before, "heads after apply_rope", 0.0)


@pytest.mark.exercise(
    "ex01b", points=1, hint="The engine passes query and key heads together: (T, Hq + Hkv, D)."
)
def test_the_model_writes_the_same_text_with_your_rotation(ex, tiny_model, reference_text):
    """Inside the model, with prompts and single tokens in one batch: positions are not row numbers."""

    from minivllm.weights.loader import load_model_config

    theta = load_model_config(tiny_model).rope.rope_theta

    def prepare(model):
        model.rotary_emb.look_up = lambda positions, dtype: (positions, theta)
        for layer in model.layers:
            layer.self_attn.rotate = lambda heads, positions, theta: ex.apply_rope(heads, positions, theta)

    same_text(generate(tiny_model, prepare=prepare), reference_text, "the model with your apply_rope")


# -- ex01c ------------------------------------------------------------------------------------------


def check_attention(ex, rng, num_tokens, heads, kv_heads, dim):
    from tests.exercises.backends import attend

    query, key, value = (
        normal(rng, num_tokens, heads, dim),
        *(normal(rng, num_tokens, kv_heads, dim) for _ in "kv"),
    )
    expected = attend(query.double(), key.double(), value.double(), dim**-0.5).to(query.dtype)
    before = query.clone(), key.clone(), value.clone()
    call = (
        f"grouped_attention of {num_tokens} tokens, {heads} query heads, {kv_heads} KV heads, head_dim {dim}"
    )
    got = ex.grouped_attention(query, key, value)
    expect_unchanged((query, key, value), before, call)
    expect_close(got, expected, call, TOLERANCE)


@pytest.mark.exercise(
    "ex01c", points=1, hint="Begin with one head: scores (T, T), softmax over the last dimension."
)
def test_with_as_many_kv_heads_it_is_plain_attention(ex, rng):
    """Hq = Hkv: the ordinary case, each head by itself."""
    check_attention(ex, rng, 5, 2, 2, 4)


@pytest.mark.exercise("ex01c", points=1, hint="Scores where key index > query index become -inf.")
def test_no_token_sees_its_future(ex, rng):
    """One token alone sees only itself; without the mask each token would know the next one."""
    check_attention(ex, rng, 1, 2, 1, 4)
    check_attention(ex, rng, 12, 1, 1, 4)


@pytest.mark.exercise(
    "ex01c", points=2, hint="repeat and repeat_interleave give different orders. Which is 0, 0, 1, 1?"
)
def test_neighbouring_query_heads_share_a_kv_head(ex, rng):
    """Heads 0 and 1 use KV head 0: repeating the KV heads as a whole gives 0, 1, 0, 1, which is another model."""
    check_attention(ex, rng, 6, 4, 2, 4)
    check_attention(ex, rng, 6, 9, 3, 8)


@pytest.mark.exercise(
    "ex01c",
    points=2,
    hint="Subtract each row's own maximum before exp; what is masked becomes -inf, not -100.",
)
def test_scores_of_any_size_give_the_right_weights(ex, rng):
    """Heads whose scores lie far apart, a future that scores higher, a past that scores lower than a mask of -10,000."""
    import torch

    from tests.exercises.backends import attend

    query, key, value = normal(rng, 5, 4, 4), normal(rng, 5, 2, 4), normal(rng, 5, 2, 4)
    query[:, :, 0], key[:, :, 0] = 1.0, 0.0
    # The first number of query and key makes the offset: 600 and -600 for the two KV heads.
    key[:, 0, 0], key[:, 1, 0] = 1200.0, -1200.0
    key[:, :, 0] += 400.0 * normal(rng, 5, 1).abs().cumsum(0)  # later keys score higher
    before = query.clone(), key.clone(), value.clone()
    got = ex.grouped_attention(query, key, value)
    expected = attend(*(each.double() for each in before), 0.5).to(query.dtype)
    call = "grouped_attention with scores from -600 to 600 and more"
    expect_close(got, expected, call, 1e-3)
    ramp = torch.linspace(-40_000.0, 40_000.0, 5)
    key[:, 0, 0], key[:, 1, 0] = ramp, -ramp
    expected = attend(query.double(), key.double(), value.double(), 0.5).to(query.dtype)
    call = (
        "grouped_attention with scores from -20,000 to 20,000, rising in one KV head and falling in the other"
    )
    expect_close(ex.grouped_attention(query, key, value), expected, call, 1e-3)


@pytest.mark.exercise("ex01c", points=1, hint="sqrt of D = head_dim, not of hidden_size.")
def test_scores_are_divided_by_the_root_of_the_head_size(ex, rng):
    """Without it, wide heads give weights that are almost all or nothing."""
    check_attention(ex, rng, 4, 2, 1, 64)
    check_attention(ex, rng, 4, 4, 1, 16)


@pytest.mark.exercise(
    "ex01c", points=2, hint="The whole text goes through the model for each new token, as in the notebook."
)
def test_the_model_writes_the_same_text_without_a_cache(ex, tiny_model, reference_text):
    """Inside the model, in the loop without a KV cache: 4 query heads on 2 KV heads, in both layers."""
    import torch

    from minivllm.baselines.no_cache import greedy_without_cache, llama_logits
    from minivllm.weights.loader import load_model
    from tests.exercises.backends import StudentAttention

    backend = StudentAttention(
        attend=lambda query, key, value, scale: ex.grouped_attention(query, key, value)
    )
    model = load_model(tiny_model, backend, torch.float32, "cpu")
    prompts = default_prompts(tiny_model)[:3]
    got = [greedy_without_cache(llama_logits(model, block_size=4), prompt, 11) for prompt in prompts]
    same_text(got, reference_text[:3], "the model with your grouped_attention")
