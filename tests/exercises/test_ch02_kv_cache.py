"""Chapter 2: kv_bytes_per_token and decode_step; each alone and inside the engine."""

import pytest

from tests.exercises.engine import generate, make_llm, remembered
from tests.exercises.expect import expect, expect_close, expect_unchanged, same_text

TOLERANCE = 1e-5  # float32, outputs of size 1

# -- ex02a ------------------------------------------------------------------------------------------


def config_of(layers, heads, kv_heads, head_dim, hidden):
    from minivllm.config import ModelConfig

    return ModelConfig(
        vocab_size=1000, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
    )  # fmt: skip


def check_bytes(ex, expected, layers, heads, kv_heads, head_dim, hidden, size):
    got = ex.kv_bytes_per_token(config_of(layers, heads, kv_heads, head_dim, hidden), size)
    model = f"{layers} layers, {heads} query heads, {kv_heads} KV heads, head_dim {head_dim}, hidden_size {hidden}"
    expect(got, expected, f"kv_bytes_per_token of {model}, {size} bytes a number")


@pytest.mark.exercise("ex02a", points=1, hint="Two tensors, K and V, in every layer.")
def test_the_models_of_the_paper_and_of_this_course(ex):
    """Forgetting that both K and V are stored, or that every layer has its own, is off by 2 or by 40."""
    check_bytes(ex, 819_200, 40, 40, 40, 128, 5120, 2)
    check_bytes(ex, 46_080, 30, 9, 3, 64, 576, 4)
    check_bytes(ex, 11_520, 30, 9, 3, 64, 576, 1)


@pytest.mark.exercise("ex02a", points=1, hint="Which heads have keys and values?")
def test_query_heads_store_nothing(ex):
    """With grouped queries the cache shrinks: counting query heads would admit four times too few requests."""
    check_bytes(ex, 2 * 2 * 2 * 16 * 4, 2, 8, 2, 16, 128, 4)
    check_bytes(ex, 2 * 32 * 8 * 128 * 2, 32, 32, 8, 128, 4096, 2)


@pytest.mark.exercise(
    "ex02a", points=1, hint="head_dim is a field of its own: not always hidden_size / heads."
)
def test_heads_may_be_wider_than_hidden_size_suggests(ex):
    """Some models have heads that do not divide hidden_size evenly; the cache holds head_dim numbers."""
    check_bytes(ex, 2 * 3 * 2 * 32 * 2, 3, 4, 2, 32, 64, 2)


@pytest.mark.exercise("ex02a", points=2, hint="The bytes of the engine's cache, divided by its slots.")
def test_the_engine_holds_as_many_bytes(ex, tiny_model):
    """Measured: the bytes of the tensors that the engine really allocates, for its number of slots."""
    engine = make_llm(tiny_model, num_blocks=10, block_size=8).llm_engine
    got = 80 * ex.kv_bytes_per_token(engine.model_config, 4)
    expect(
        got,
        engine.runner.kv_cache.nbytes,
        "bytes of 80 slots by your kv_bytes_per_token, against the tensors",
    )


# -- ex02b ------------------------------------------------------------------------------------------


def drawn(rng, num_tokens, heads=2, dim=4):
    """query, key, value of a text of `num_tokens` tokens, N(0, 1)."""
    import torch

    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return [torch.randn(num_tokens, heads, dim, generator=generator) for _ in range(3)]


def empty_caches(max_len, heads=2, dim=4, garbage=float("nan")):
    import torch

    return [torch.full((max_len, heads, dim), garbage) for _ in range(2)]


def oracle(query, key, value):
    """Causal attention of the whole text at once, in float64."""
    from tests.exercises.backends import attend

    return attend(query.double(), key.double(), value.double(), query.shape[-1] ** -0.5).to(query.dtype)


def run_in_parts(ex, query, key, value, parts):
    """The text through decode_step, a part at a time."""
    import torch

    caches, outputs, start = empty_caches(len(query) + 2), [], 0
    for count in parts:
        rows = slice(start, start + count)
        new = [each[rows].clone() for each in (query, key, value)]
        outputs.append(ex.decode_step(*new, *caches, start))
        call = f"decode_step of {count} new tokens, num_cached = {start}"
        expect_unchanged(new, [each[rows] for each in (query, key, value)], call)
        start += count
    return torch.cat(outputs), caches


@pytest.mark.exercise(
    "ex02b", points=1, hint="key_cache[num_cached : num_cached + T] = key, and the same for value."
)
def test_new_keys_and_values_go_behind_those_cached(ex, rng):
    """Position p is row p: written one row off, the next token reads a wrong key; rows behind stay as they are."""
    query, key, value = drawn(rng, 5)
    _, caches = run_in_parts(ex, query, key, value, [2, 3])
    for cache, expected, name in zip(caches, (key, value), ("key_cache", "value_cache"), strict=True):
        expect_close(cache[:5], expected, f"{name}[:5] after a part of 2 tokens and one of 3", 0.0)
        expect(cache[5:].isnan().all().item(), True, f"{name}[5:] is left alone")


@pytest.mark.exercise(
    "ex02b", points=1, hint="Write the new key first, so that the token sees itself as well."
)
def test_a_generated_token_sees_the_past_and_itself(ex, rng):
    """One new token: attention over the cache and itself, and over no row behind it (those hold NaN here)."""
    query, key, value = drawn(rng, 6)
    caches = empty_caches(8)
    caches[0][:5], caches[1][:5] = key[:5], value[:5]
    got = ex.decode_step(query[5:].clone(), key[5:], value[5:], *caches, 5)
    expect_close(got, oracle(query, key, value)[5:], "decode_step of the token at position 5", TOLERANCE)


@pytest.mark.exercise(
    "ex02b", points=1, hint="Scores to positions after the query's own become -inf before softmax."
)
def test_no_token_of_a_prompt_sees_its_future(ex, rng):
    """A whole prompt in an empty cache: without a mask the first token would look at the last."""
    query, key, value = drawn(rng, 6)
    got, _ = run_in_parts(ex, query, key, value, [6])
    expect_close(
        got, oracle(query, key, value), "decode_step of a prompt of 6 tokens, num_cached = 0", TOLERANCE
    )


@pytest.mark.exercise(
    "ex02b", points=2, hint="Query number i has position num_cached + i. torch.tril has a second argument."
)
def test_any_split_gives_the_same(ex, rng):
    """A prompt in parts: a mask aligned at the top left forgets the cached tokens, and the text changes."""
    query, key, value = drawn(rng, 9)
    expected = oracle(query, key, value)
    for parts in ([4, 5], [1, 1, 7], [3, 3, 3], [8, 1], [1] * 9, [2, 6, 1]):
        got, _ = run_in_parts(ex, query, key, value, parts)
        expect_close(got, expected, f"decode_step of 9 tokens in parts of {parts}", TOLERANCE)


@pytest.mark.exercise("ex02b", points=1, hint="Divide by the square root of D, the size of one head.")
def test_the_scores_are_scaled_by_the_head_size(ex, rng):
    """Heads of 4 and of 64 numbers: a scale that is forgotten or taken from another size shows in the weights."""
    for heads, dim in ((1, 4), (3, 64)):
        query, key, value = drawn(rng, 4, heads, dim)
        caches = empty_caches(4, heads, dim)
        got = ex.decode_step(query.clone(), key, value, *caches, 0)
        expect_close(
            got, oracle(query, key, value), f"decode_step with {heads} heads of size {dim}", TOLERANCE
        )


@pytest.mark.exercise(
    "ex02b",
    points=2,
    hint="Subtract each row's own maximum before exp; what is masked becomes -inf, not -100.",
)
def test_neither_garbage_nor_large_scores_disturb(ex, rng):
    """Heads whose scores lie far apart, a future that scores higher, a past below -10,000, rows never written."""
    import torch

    for garbage in (float("nan"), float("inf"), float("-inf"), 1e4):
        query, key, value = drawn(rng, 6)
        query[:, :, 0] = 1.0
        key[:, 0, 0], key[:, 1, 0] = 1200.0, -1200.0
        key[:, :, 0] += 400.0 * drawn(rng, 6, 1, 1)[0][:, :, 0].abs().cumsum(0)  # later keys score higher
        caches = empty_caches(9, garbage=garbage)
        caches[0][:2], caches[1][:2] = key[:2], value[:2]
        new = [each[2:].clone() for each in (query, key, value)]
        got = ex.decode_step(*new, *caches, 2)
        call = f"decode_step with scores from -600 to 600 and more, and {garbage} in the rows behind"
        expect_close(got, oracle(query, key, value)[2:], call, 1e-3)
    ramp = torch.linspace(-40_000.0, 40_000.0, 6)
    key[:, 0, 0], key[:, 1, 0] = ramp, -ramp
    got, _ = run_in_parts(ex, query, key, value, [2, 4])
    call = "decode_step with scores from -20,000 to 20,000, rising in one head and falling in the other"
    expect_close(got, oracle(query, key, value), call, 1e-3)


class ContiguousAttention:
    """A backend whose blocks are so large that each sequence has one: a contiguous cache."""

    name = "student"

    def __init__(self, step):
        self._step = step

    def prepare(self, metadata):
        return metadata

    def forward(self, query, key, value, kv_cache, layer, metadata, scale):
        import torch

        outputs, starts = [], metadata.query_start_loc.tolist()
        for row, seq_len in enumerate(metadata.seq_lens.tolist()):
            rows, block = slice(starts[row], starts[row + 1]), int(metadata.block_tables[row, 0])
            caches = kv_cache.key[layer][block], kv_cache.value[layer][block]
            num_cached = seq_len - (rows.stop - rows.start)
            outputs.append(self._step(query[rows], key[rows], value[rows], *caches, num_cached))
        return torch.cat(outputs)


@pytest.mark.exercise("ex02b", points=2, hint="The engine calls it once per layer, step and sequence.")
def test_the_engine_generates_with_it(ex, tmp_path_factory):
    """Inside the engine, prompts in parts of at most 8 tokens: the same text as from the engine's own attention."""
    from minivllm.weights.random_model import random_llama

    def make():
        model = random_llama(tmp_path_factory.mktemp("models") / "mha", num_key_value_heads=4)
        return model, generate(model)

    model, expected = remembered("as many KV heads as query heads", make)
    options = {"block_size": 64, "num_blocks": 8, "max_num_batched_tokens": 8, "max_num_seqs": 8}
    got = generate(model, attention_backend=ContiguousAttention(ex.decode_step), **options)
    same_text(got, expected, "the engine with your decode_step")
