"""`batch_invariant`: the logits of a request are the same bits whatever else is in the batch."""

import pytest
import torch

from minivllm import LLM, SamplingParams
from minivllm.backends import linears
from minivllm.kernels.linear_cpu import KINDS, TILE, PanelLinear, TiledLinear, agrees
from minivllm.weights.random_model import random_llama

BATCHES = (1, 2, 8, 17, 64)
PROMPT = [7, 3, 200, 41, 19, 88, 5, 60, 61]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama so small that it takes `F.linear`, which chooses its order of addition by the number of rows."""
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "num_key_value_heads": 2}
    return random_llama(folder, **sizes, num_hidden_layers=2, seed=0)


def logits_of(llm, batch_size):
    """Logits (steps, V) of `PROMPT` over its prefill and 5 decode steps, among `batch_size` - 1 others."""
    engine, seen = llm.llm_engine, []
    sampler = engine.runner.sampler

    def watching(logits, *args, **kwargs):
        seen.append(logits[0].clone())
        return sampler(logits, *args, **kwargs)

    engine.runner.sampler = watching
    others = [[(i * 31 + j) % 250 for j in range(4 + i % 23)] for i in range(batch_size - 1)]
    prompts = [{"prompt_token_ids": ids} for ids in (PROMPT, *others)]
    llm.generate(prompts, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True), use_tqdm=False)
    engine.runner.sampler = sampler
    assert engine.scheduler.kv.pool.num_used == 0
    return torch.stack(seen[:6])


def make(folder, **options):
    options = {"num_blocks": 512, "max_num_seqs": 64, "enable_prefix_caching": False} | options
    return LLM(str(folder), skip_tokenizer_init=True, max_model_len=64, **options)


def test_logits_are_the_same_bits_in_every_batch(folder):
    """Would catch any operator that takes another order of addition for another number of rows."""
    llm = make(folder, batch_invariant=True)
    alone = logits_of(llm, 1)
    for batch_size in BATCHES[1:]:
        assert torch.equal(logits_of(llm, batch_size), alone), batch_size


def test_panels_give_the_same_bits_without_tiles(folder, monkeypatch):
    """Would catch a product that is said to need no tiles, and rounds by the number of rows all the same."""
    monkeypatch.setattr(linears, "choose_linear_kernel", lambda weights, memory: PanelLinear)
    llm = make(folder, batch_invariant=True)
    kernels = [module.kernel for module in llm.llm_engine.runner.model.modules() if hasattr(module, "pack")]
    assert {type(kernel) for kernel in kernels} == {PanelLinear}
    alone = logits_of(llm, 1)
    assert all(torch.equal(logits_of(llm, batch_size), alone) for batch_size in BATCHES[1:])


def test_chunks_and_the_prefix_cache_change_no_bit(folder):
    """Would catch attention whose order depends on how many queries of a prompt share a step."""
    alone = logits_of(make(folder, batch_invariant=True), 1)
    llm = make(folder, batch_invariant=True, block_size=4, enable_prefix_caching=True)
    assert torch.equal(logits_of(llm, 1), alone)
    assert torch.equal(logits_of(llm, 1), alone)
    assert llm.llm_engine.scheduler.stats.prefix_cache_hits > 0
    # 4 tokens per step: the prompt's last chunk is one token. Chunks before it sample nothing.
    chunked = make(folder, batch_invariant=True, max_num_batched_tokens=4, max_num_seqs=4)
    first = logits_of(chunked, 1)[-1]
    assert torch.equal(first, alone[-1])


def test_without_the_option_bits_differ(folder):
    """Negative control: the same assertion sees the difference that it is about, in the texts' logits."""
    llm = make(folder, attention_backend="torch")
    for module in llm.llm_engine.runner.model.modules():
        if hasattr(module, "pack"):
            assert module.kernel.name == "F.linear"  # a small model takes the plain product
    alone = logits_of(llm, 1)
    others = [logits_of(llm, batch_size) for batch_size in BATCHES[1:]]
    assert any(not torch.equal(each, alone) for each in others)
    assert all(torch.allclose(each, alone, atol=1e-4) for each in others)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_tiled_product_is_the_product(kind):
    """Would catch a last tile that is cut wrongly, or whose zeros reach a result."""
    torch.manual_seed(0)
    weight, rows = torch.randn(48, 96), torch.randn(2 * TILE + 3, 96)
    if not agrees(kind, weight):
        kind = KINDS[0]  # a way that this processor lacks
    tiled = TiledLinear(kind(weight, None))
    for count in (1, TILE - 1, TILE, TILE + 1, 2 * TILE + 3):
        torch.testing.assert_close(tiled(rows[:count]), rows[:count] @ weight.T, atol=1e-5, rtol=1e-5)
        assert torch.equal(tiled(rows[:count]), tiled(rows)[:count])
    assert not torch.allclose(tiled(rows), torch.zeros(2 * TILE + 3, 48), atol=1e-5)


def test_it_says_what_it_cannot_be_combined_with():
    """Would catch an option that is silently without effect."""
    from minivllm.config import EngineConfig

    with pytest.raises(ValueError, match="attention_backend"):
        EngineConfig("m", batch_invariant=True, attention_backend="numba")
