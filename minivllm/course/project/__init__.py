"""The final project: a student's own serving engine, in six milestones (docs/project.md).

A student writes one class, `Engine`, in a file of their own. What the engine is given and what it has to do
are fixed; how the engine does it is the student's::

    Engine(model, limits).generate(prompts, max_tokens)  ->  the generated token ids of each prompt

    the student's                        the project's
    my_engine.py                         model.forward([Row(token_ids, slots), ...])  ->  a token for each row
      which rows, when                     GlassModel    counts, and sees into its memory: the tests use it
      which tokens of each                 LlamaModel    a real Llama, on the same interface
      in which slots

The engine can do nothing without calling the model, and a call says everything: how many rows (batching), how
many new tokens (the KV cache, chunks), and which slots (paging, sharing). So the tests read the calls which
the model received, and never the engine. No name inside the engine is known to them.

Modules: `model.py` (the interface), `glass.py`, `llama_model.py` (torch), `benchmark.py`, `commands.py`.
"""

from minivllm.course.project.glass import GlassModel
from minivllm.course.project.model import Limits, Model, ModelMisuse, Row

__all__ = ["GlassModel", "Limits", "Model", "ModelMisuse", "Row"]
