"""`python -m minivllm demo`: fetch the model, answer a question, complete four prompts, show the memory.

All requests run in one continuous batch: the chat question is just the fifth prompt. The report at the end
is computed from the trace of that run and the engine's own tensors.

Its last lines are the paper's point in small. SmolLM2-135M in float32, 46,080 bytes per token, blocks of 16,
four sequences still running with 33, 35, 33 and 33 tokens::

    used         134 tokens                             5.89 MiB
    allocated    4 x 3 blocks = 192 slots               8.44 MiB      69.8% used
    reserved     4 x 8,192 slots, the model's longest   1,440 MiB      0.4% used

Even 69.8% is low: on average half a block is lost at the end of each sequence, long or short, so the shorter
the texts, the larger the share.

Paper: section 3 and Figure 2, where reserving the longest length leaves 20.4% used.
"""

from __future__ import annotations

import time
from typing import Any

from minivllm.llm import LLM
from minivllm.outputs import RequestOutput
from minivllm.prompts import render_chat
from minivllm.sampling_params import SamplingParams
from minivllm.viz.drawing import draw_block_tables, fullest_step
from minivllm.viz.trace import StepRecord, Trace

# The four prompts are those of vLLM's first example, so that the output can be compared.
QUESTION = "What is the capital of France?"
PROMPTS = (
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
)
MIB = 1 << 20


def run_demo(model: str, options: dict[str, Any], max_tokens: int, temperature: float) -> None:
    """Run the whole demonstration and print it.

    Args:
        model: a name, a folder or a hub id, see `LLM`; it needs a chat template.
        options: fields of `EngineConfig`.
        max_tokens: output tokens of each of the five requests, at most.
        temperature: 0 is greedy, and then the same text at every run.
    """
    trace = Trace()
    llm = LLM(model=model, trace=trace, **options)
    engine = llm.llm_engine
    print(f"Model {model} ({engine.dtype} on {engine.device}): {engine.memory()}\n")

    # `LLM.chat` does the same, but would run the question in a batch of its own.
    question = render_chat(llm.get_tokenizer(), [{"role": "user", "content": QUESTION}])
    prompts = [question, *PROMPTS]
    params = SamplingParams(temperature=temperature, top_p=0.95, max_tokens=max_tokens)

    # Loading the model is not in the time.
    start = time.perf_counter()
    answer, *completions = llm.generate(prompts, params)
    seconds = time.perf_counter() - start

    print(f"\nQuestion: {QUESTION}\nAnswer:  {answer.outputs[0].text.strip()}\n")
    for output in completions:
        print(f"Prompt: {output.prompt!r}, Generated text: {output.outputs[0].text!r}")
    print_report(llm, trace, [answer, *completions], seconds)


def print_report(llm: LLM, trace: Trace, outputs: list[RequestOutput], seconds: float) -> None:
    """Speed, the block tables at the fullest step, and what reserving memory would have taken.

    The speed is of one small batch and says little about the engine: `python -m minivllm bench` measures.
    """
    num_prompt = sum(len(output.prompt_token_ids) for output in outputs)
    num_output = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
    record = fullest_step(trace)
    print(
        f"\n{len(outputs)} requests, {num_prompt} prompt and {num_output} output tokens in {seconds:.2f} s "
        f"and {len(trace.steps)} steps: {num_output / seconds:.1f} output tokens/s"
    )
    print(
        f"\nBlock tables after step {record.step}, the fullest "
        f"(# a token, . an empty slot, blocks of {trace.block_size}):\n"
    )
    print(draw_block_tables(record, trace.block_size))
    print("\n" + memory_comparison(llm, record, trace.block_size))


def memory_comparison(llm: LLM, record: StepRecord, block_size: int) -> str:
    """KV memory used, allocated, and what reserving the maximum length would take, at one step.

    Args:
        llm: for the bytes of a token and for `max_model_len`.
        record: the step; at least one sequence holds a block after it.
        block_size: tokens per block.
    """
    engine = llm.llm_engine
    per_token = engine.memory().bytes_per_token
    # A set: a block that two sequences share is allocated once.
    held = {block_id for block_ids in record.block_tables.values() for block_id in block_ids}
    used = sum(record.filled.values()) * per_token
    allocated = len(held) * block_size * per_token
    reserved = len(record.block_tables) * engine.max_model_len * per_token
    return (
        f"KV memory at that step:  used {used / MIB:.2f} MiB,  allocated {allocated / MIB:.2f} MiB "
        f"({used / allocated:.1%} used)\n"
        f"Reserving max_model_len = {engine.max_model_len} tokens for each of the {len(record.block_tables)} "
        f"sequences would take {reserved / MIB:.0f} MiB ({used / reserved:.1%} used), "
        f"{reserved / allocated:.0f} times as much."
    )
