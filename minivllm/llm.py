"""`LLM`: the offline API, which is what a user types.

    >>> from minivllm import LLM, SamplingParams
    >>> llm = LLM(model="smollm2-135m-instruct")
    >>> outputs = llm.generate(["The capital of France is"], SamplingParams(temperature=0, max_tokens=8))
    >>> outputs[0].outputs[0].text
    ' Paris. The capital of France is Paris'

Names are vLLM's, and most defaults (see `EngineConfig`). Each method checks its arguments, hands the requests
to the loop that steps the engine (`engine_loop.py`), and sorts what comes out: results are in the order of
the prompts, not in the order in which they finished::

    chat -> generate, beam_search -> _run ---+
                                             +--> EngineLoop: check all, queue all, step until done, clean up
    stream ----------------------------------+

One `LLM` may be used by several threads: their requests share the steps.

vLLM V1: `vllm/entrypoints/llm.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from minivllm.attention import AttentionBackend
from minivllm.config import EngineConfig
from minivllm.engine import LLMEngine, StepObserver
from minivllm.engine_loop import EngineLoop
from minivllm.inputs import Request
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.model_runner import SamplerFunction
from minivllm.outputs import RequestOutput
from minivllm.prompts import Message, Prompt, as_conversations, as_list, render_chat
from minivllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from minivllm.scheduler import Scheduler
from minivllm.sequence import SequenceGroup
from minivllm.weights.generation_config import default_sampling_params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class LLM:
    """A language model that generates text for many prompts at once.

    Args:
        model: a built-in name, a local folder in Hugging Face format, or a hub id.
        scheduler_cls, kv_cache_manager_cls, sampler, attention_backend: parts to use instead of the
            engine's own (`attention_backend` may also be a name).
        trace: a `Trace` (`viz/trace.py`) that is told about every step.
        options: every other field of `EngineConfig`: tokenizer (a folder or name; None: the model's own),
            skip_tokenizer_init (run on token ids alone), dtype, device, seed, max_model_len, block_size,
            num_blocks, max_num_seqs, max_num_batched_tokens, enable_prefix_caching, tensor_parallel_size, ...

    Raises:
        TypeError: an option that does not exist.
        ValueError: one that is out of range.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        scheduler_cls: type[Scheduler] = Scheduler,
        kv_cache_manager_cls: type[KVCacheManager] = KVCacheManager,
        sampler: SamplerFunction | None = None,
        attention_backend: str | AttentionBackend = "auto",
        trace: StepObserver | None = None,
        **options: Any,
    ) -> None:
        by_name = isinstance(attention_backend, str)
        options |= {"model": model, "attention_backend": attention_backend if by_name else "auto"}
        self.llm_engine = LLMEngine(
            EngineConfig.from_kwargs(options),
            scheduler_cls=scheduler_cls,
            kv_cache_manager_cls=kv_cache_manager_cls,
            sampler=sampler,
            attention_backend=None if by_name else attention_backend,
            trace=trace,
        )
        self.engine_loop = EngineLoop(self.llm_engine)

    # -- generating ---------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | list[Prompt],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: list[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete the prompts, all in one continuous batch.

        Args:
            prompts: one prompt or a list: `str`, `{"prompt": str}`, `{"prompt_token_ids": [int]}`.
            sampling_params: one for all, or one each. None: the model's own defaults
                (`get_default_sampling_params`).
            use_tqdm: show progress.
            priority: one number per prompt, for scheduling_policy="priority": the smaller goes first.

        Returns:
            One finished `RequestOutput` per prompt, in the order of the prompts.

        Raises:
            ValueError, TypeError: a prompt or its parameters are wrong; no prompt has run then.
        """
        prompts = as_list(prompts)
        # Only the last output of each request is returned, even if the user's parameters ask for others.
        params = self._one_each(prompts, sampling_params, RequestOutputKind.FINAL_ONLY)
        priority = [0] * len(prompts) if priority is None else priority
        _check_lengths(prompts, "priority", priority)
        requests = map(Request, prompts, params, [None] * len(prompts), priority)
        return self._run(self.engine_loop.make_groups(requests), use_tqdm)

    def chat(
        self,
        messages: list[Message] | list[list[Message]],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[RequestOutput]:
        """Answer conversations through the model's chat template.

        Args:
            messages: one conversation, `[{"role": "user", "content": "Hello"}]`, or a list of them.
            chat_template: a Jinja template in place of the model's own.
            add_generation_prompt: end the prompt where the assistant's turn begins.
            continue_final_message: let the model go on with the last message.

        Returns:
            As `generate`; `prompt` is the rendered template, which is the text that the model was given.
        """
        conversations = as_conversations(messages)
        tokenizer = self.get_tokenizer()
        with self.engine_loop.turn():  # the tokenizer is not to be used by two threads at once
            prompts: list[Prompt] = [
                render_chat(
                    tokenizer, conversation, chat_template, add_generation_prompt, continue_final_message
                )
                for conversation in conversations
            ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def beam_search(
        self, prompts: Prompt | list[Prompt], params: BeamSearchParams, use_tqdm: bool = False
    ) -> list[RequestOutput]:
        """Complete each prompt in the `beam_width` most likely ways, best first (see `beam_search.py`)."""
        if not isinstance(params, BeamSearchParams):
            raise TypeError(f"params must be BeamSearchParams, got {type(params).__name__}.")
        requests = [Request(prompt, params) for prompt in as_list(prompts)]
        return self._run(self.engine_loop.make_groups(requests), use_tqdm)

    def stream(
        self,
        prompts: Prompt | list[Prompt],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
    ) -> Iterator[RequestOutput]:
        """Yield what is new, as it comes: `outputs[i].text` is the piece to print.

        Request ids tell several prompts apart: they count up in the order of the prompts. The requests are
        checked right away and queued by the first `next`; leaving the loop early aborts those still running.
        Several streams may be open at once, and share the steps then.
        """
        prompts = as_list(prompts)
        params = self._one_each(prompts, sampling_params, RequestOutputKind.DELTA)
        return self.engine_loop.outputs_of(self.engine_loop.make_groups(map(Request, prompts, params)))

    # -- asking -------------------------------------------------------------------------------------

    def get_tokenizer(self) -> PreTrainedTokenizerFast:
        """The Hugging Face tokenizer."""
        if self.llm_engine.tokenizer is None:
            raise ValueError("This LLM was made with skip_tokenizer_init=True: it has no tokenizer.")
        return self.llm_engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What `sampling_params=None` means: the model's `generation_config.json`, as in vLLM.

        This is not `SamplingParams()`, a frequent surprise: a chat model's file may say temperature 0.6. The
        small file is read at each call, so an edit counts at once. See `weights/generation_config.py`.
        """
        return default_sampling_params(self.llm_engine.model_folder)

    def reset_prefix_cache(self) -> None:
        """Forget all cached prompt blocks, between two steps."""
        with self.engine_loop.turn():
            self.llm_engine.reset_prefix_cache()

    # -- the loop -----------------------------------------------------------------------------------

    def _one_each(
        self,
        prompts: list[Prompt],
        params: SamplingParams | list[SamplingParams] | None,
        output_kind: RequestOutputKind,
    ) -> list[SamplingParams]:
        """Sampling parameters for each prompt, with this output kind; raises before anything has happened."""
        if params is None:
            params = self.get_default_sampling_params()
        if not isinstance(params, list | tuple):
            params = [params] * len(prompts)
        _check_lengths(prompts, "params", params)
        for each in params:
            if not isinstance(each, SamplingParams):
                raise TypeError(f"sampling_params must be SamplingParams, got {type(each).__name__}.")
        # One copy for all prompts that were given the same object: fewer bytes in a pickled plan.
        copies = {id(each): replace(each, output_kind=output_kind) for each in params}
        return [copies[id(each)] for each in params]

    def _run(self, groups: list[SequenceGroup], use_tqdm: bool) -> list[RequestOutput]:
        """Run until all these requests are finished; results in the order of the prompts."""
        finished: dict[str, RequestOutput] = {}
        num_input, num_output, start = 0, 0, time.perf_counter()
        with (
            closing(self.engine_loop.outputs_of(groups)) as outputs,
            tqdm(
                desc="Processed prompts", total=len(groups), dynamic_ncols=True, disable=not use_tqdm
            ) as bar,
        ):
            for output in outputs:
                if not output.finished:
                    continue
                finished[output.request_id] = output
                # Tokens of finished requests only, so the estimate starts low and rises towards the end.
                num_input += len(output.prompt_token_ids)
                num_output += sum(len(completion.token_ids) for completion in output.outputs)
                seconds = time.perf_counter() - start
                speed = f"{num_input / seconds:.2f} toks/s, output: {num_output / seconds:.2f} toks/s"
                bar.set_postfix_str(f"est. speed input: {speed}", refresh=False)
                bar.update()
        return [finished[group.request_id] for group in groups]


def _check_lengths(prompts: list[Prompt], name: str, values: list[Any]) -> None:
    """Raise ValueError unless there is one value per prompt."""
    if len(values) != len(prompts):
        raise ValueError(
            f"The lengths of prompts ({len(prompts)}) and {name} ({len(values)}) must be the same."
        )
