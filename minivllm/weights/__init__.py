"""From the name of a model to its weights in memory.

    "smollm2-135m-instruct"  --download-->  a folder in Hugging Face's format
                                             --loader-->  config, weights, tokenizer

| module | what it does |
|---|---|
| `download.py` | a name -> a folder: by package, or from the hub |
| `gguf.py` | the bundled model's file format -> Hugging Face's format, once |
| `files.py` | JSON and weight files, read with care |
| `hf_config.py` | `config.json` -> `ModelConfig` |
| `generation_config.py` | where answers end, and how the model's authors want it sampled |
| `registry.py` | the name of an architecture -> the class that computes it |
| `loader.py` | a folder -> model, tokenizer |
| `random_model.py` | random Llamas: tiny for tests, large for a GPU |

vLLM V1: `vllm/model_executor/model_loader/`.
"""
