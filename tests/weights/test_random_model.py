"""Random models as large as real ones, for benchmarks on a GPU. The tiny ones are used by all other tests."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from minivllm.weights.loader import iterate_weights, load_model_config
from minivllm.weights.random_model import CONFIG, SHAPES, main, random_llama


@pytest.mark.parametrize(
    ("shape", "count"), [("llama-3.2-1b", 1_235_814_400), ("llama-3.1-8b", 8_030_261_248)]
)
def test_the_shapes_have_as_many_parameters_as_the_models_they_are_named_after(shape, count):
    """Would catch a benchmark of "8B" on something smaller; transformers counts, the totals are published."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG | SHAPES[shape]))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_the_dtype_of_the_config_is_the_dtype_of_the_weights(tmp_path):
    """Would catch 32 GB on disk for a model of 16, and other numbers than float32's, rounded."""
    wide = dict(iterate_weights(random_llama(tmp_path / "wide")))
    narrow = dict(iterate_weights(random_llama(tmp_path / "narrow", torch_dtype="bfloat16")))
    assert {weight.dtype for weight in narrow.values()} == {torch.bfloat16}
    assert all(torch.equal(narrow[name], wide[name].bfloat16()) for name in wide)


def test_the_command_writes_a_folder_that_loads(tmp_path, monkeypatch, capsys):
    """Would catch a shape that the loader refuses: here the same keys, with two layers of width 64."""
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300}
    monkeypatch.setitem(SHAPES, "llama-3.2-1b", SHAPES["llama-3.2-1b"] | small)
    main(["llama-3.2-1b", str(tmp_path / "model"), "--num-shards", "2"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "model")
    config = load_model_config(tmp_path / "model")
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (32, 8, 64)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
