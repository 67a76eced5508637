"""`LLM`: the offline API. What a user types.

    >>> from minivllm import LLM, SamplingParams
    >>> llm = LLM(model="smollm2-135m-instruct")
    >>> outputs = llm.generate(["The capital of France is"], SamplingParams(temperature=0, max_tokens=8))
    >>> outputs[0].outputs[0].text
    ' Paris. The capital of France is Paris'

Names, defaults and behaviour are vLLM's. Everything here is a loop over `LLMEngine.step()` and the sorting
of what comes out of it: results are in the order of the prompts, whatever order they finished in.

All four ways of asking end in one generator, `_outputs_of`, which owns its requests from the first check to
the last output::

    generate, chat, beam_search -> _run ---+
                                           +--> _outputs_of: check all, queue all, step until done, clean up
    stream --------------------------------+

Two such generators may be alive at once (two open streams, or `generate` inside a `for` over a stream).
Whichever is asked next runs the step, for everybody's requests; what is not its own it puts into the mail of
the request it belongs to.

vLLM V1: `vllm/entrypoints/llm.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from minivllm.attention import AttentionBackend
from minivllm.config import EngineConfig
from minivllm.engine import LLMEngine
from minivllm.inputs import Message, Prompt, as_conversations, as_list
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.model_runner import SamplerFunction
from minivllm.outputs import RequestOutput
from minivllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from minivllm.scheduler import Scheduler
from minivllm.weights.generation_config import default_sampling_params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from minivllm.viz.trace import Trace


class LLM:
    """A language model that generates text for many prompts at once.

    Args:
        model: a built-in name, a local folder in Hugging Face format, or a hub id.
        tokenizer: a folder or name to take the tokenizer from; None: the model's own.
        skip_tokenizer_init: run on token ids alone, without a tokenizer.
        scheduler_cls, kv_cache_manager_cls, sampler, attention_backend: parts to use instead of the
            engine's own (`attention_backend` may also be a name).
        trace: a `Trace` that is told about every step.
        options: every other field of `EngineConfig`: dtype, device, seed, max_model_len, block_size,
            num_blocks, max_num_seqs, max_num_batched_tokens, enable_prefix_caching, ...

    Raises:
        TypeError: an option that does not exist.
        ValueError: one that is out of range.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        tokenizer: str | PathLike[str] | None = None,
        skip_tokenizer_init: bool = False,
        scheduler_cls: type[Scheduler] = Scheduler,
        kv_cache_manager_cls: type[KVCacheManager] = KVCacheManager,
        sampler: SamplerFunction | None = None,
        attention_backend: str | AttentionBackend = "auto",
        trace: Trace | None = None,
        **options: Any,
    ) -> None:
        by_name = isinstance(attention_backend, str)
        model, tokenizer = (str(name) if isinstance(name, PathLike) else name for name in (model, tokenizer))
        options |= {"tokenizer": tokenizer, "skip_tokenizer_init": skip_tokenizer_init}
        options |= {"attention_backend": attention_backend if by_name else "auto"}
        self.llm_engine = LLMEngine(
            EngineConfig.from_kwargs(model, options),
            scheduler_cls=scheduler_cls,
            kv_cache_manager_cls=kv_cache_manager_cls,
            sampler=sampler,
            attention_backend=None if by_name else attention_backend,
            trace=trace,
        )
        self._num_requests = 0  # so far; the next request's id
        # Outputs that a step produced for a loop other than the one that ran it (two open streams).
        self._mail: dict[str, deque[RequestOutput]] = {}

    # -- generating ---------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | list[Prompt],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete the prompts, all in one continuous batch.

        Args:
            prompts: one prompt or a list: `str`, `{"prompt": str}`, `{"prompt_token_ids": [int]}`.
            sampling_params: one for all, or one each. None: the model's own defaults
                (`get_default_sampling_params`).
            use_tqdm: show progress.

        Returns:
            One finished `RequestOutput` a prompt, in the order of the prompts.

        Raises:
            ValueError, TypeError: a prompt or its parameters are wrong; then none of them has run.
        """
        params = self._one_each(prompts, sampling_params)
        # Whatever the user's parameters say: nobody would see the outputs before the last one.
        params = [replace(each, output_kind=RequestOutputKind.FINAL_ONLY) for each in params]
        return self._run(as_list(prompts), params, use_tqdm)

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
            As `generate`; `prompt` is the rendered template, that is, what the model was really told.
        """
        conversations = as_conversations(messages)
        tokenizer = self.get_tokenizer()
        prompts: list[Prompt] = []
        for conversation in conversations:
            text = tokenizer.apply_chat_template(
                conversation,
                chat_template=chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
            )
            # The template has put the special tokens in already.
            token_ids = tokenizer.encode(text, add_special_tokens=False)
            prompts.append({"prompt": text, "prompt_token_ids": token_ids})
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def beam_search(
        self, prompts: Prompt | list[Prompt], params: BeamSearchParams, use_tqdm: bool = False
    ) -> list[RequestOutput]:
        """Complete each prompt in the `beam_width` most likely ways, best first (see `beam_search.py`)."""
        if not isinstance(params, BeamSearchParams):
            raise TypeError(f"params must be BeamSearchParams, got {type(params).__name__}.")
        prompts = as_list(prompts)
        return self._run(prompts, [params] * len(prompts), use_tqdm)

    def stream(
        self,
        prompts: Prompt | list[Prompt],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
    ) -> Iterator[RequestOutput]:
        """Yield what is new, as it comes: `outputs[i].text` is the piece to print.

        Request ids tell several prompts apart: they count up in the order of the prompts. The requests are
        queued by the first `next`; leaving the loop early aborts what is still running. Several streams may
        be open at once: they then share the steps.
        """
        params = self._one_each(prompts, sampling_params)
        params = [replace(each, output_kind=RequestOutputKind.DELTA) for each in params]
        return self._outputs_of(as_list(prompts), params)

    # -- asking -------------------------------------------------------------------------------------

    def get_tokenizer(self) -> PreTrainedTokenizerFast:
        """The Hugging Face tokenizer."""
        if self.llm_engine.tokenizer is None:
            raise ValueError("This LLM was made with skip_tokenizer_init=True: it has no tokenizer.")
        return self.llm_engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What `sampling_params=None` means: the model's `generation_config.json`, as in vLLM.

        Not `SamplingParams()`, a frequent surprise: a chat model's file may say temperature 0.6, top_p 0.9.
        Read anew at each call: it is small, and an edit counts at once. See `weights/generation_config.py`.
        """
        return default_sampling_params(self.llm_engine.model_folder)

    def reset_prefix_cache(self) -> None:
        """Forget all cached prompt blocks."""
        self.llm_engine.reset_prefix_cache()

    # -- the loop -----------------------------------------------------------------------------------

    def _one_each(
        self, prompts: Prompt | list[Prompt], params: SamplingParams | list[SamplingParams] | None
    ) -> list[SamplingParams]:
        """Sampling parameters for each prompt; raises before anything has happened."""
        prompts = as_list(prompts)
        if params is None:
            params = self.get_default_sampling_params()
        if not isinstance(params, list | tuple):
            params = [params] * len(prompts)
        if len(params) != len(prompts):
            raise ValueError(
                f"The lengths of prompts ({len(prompts)}) and params ({len(params)}) must be the same."
            )
        for each in params:
            if not isinstance(each, SamplingParams):
                raise TypeError(f"sampling_params must be SamplingParams, got {type(each).__name__}.")
        return list(params)

    def _run(
        self,
        prompts: list[Prompt],
        params: list[SamplingParams] | list[BeamSearchParams],
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        """Run until all these requests are finished; results in the order of the prompts."""
        finished: dict[str, RequestOutput] = {}
        num_input, num_output = 0, 0  # tokens of finished requests
        bar_text = "est. speed input: {:.2f} toks/s, output: {:.2f} toks/s"
        with tqdm(
            total=len(prompts),
            desc="Processed prompts",
            dynamic_ncols=True,
            postfix=bar_text.format(0, 0),
            disable=not use_tqdm,
        ) as bar:
            for output in self._outputs_of(prompts, params):
                if not output.finished:
                    continue
                finished[output.request_id] = output
                num_input += len(output.prompt_token_ids)
                num_output += sum(len(completion.token_ids) for completion in output.outputs)
                # Finished requests only, so the estimate starts low and rises towards the end.
                if use_tqdm:
                    elapsed = max(bar.format_dict["elapsed"], 1e-9)
                    bar.postfix = bar_text.format(num_input / elapsed, num_output / elapsed)
                    bar.update(1)
        # Ids count up, and a dictionary keeps them as strings: "10" must not sort before "9".
        return [finished[request_id] for request_id in sorted(finished, key=int)]

    def _outputs_of(
        self, prompts: list[Prompt], params: list[SamplingParams] | list[BeamSearchParams]
    ) -> Iterator[RequestOutput]:
        """Queue requests (all, or none if one is refused), then step until they are finished.

        However this ends (a refusal, the caller leaves, an error, Ctrl-C), none of them stays behind.
        """
        # Every request is checked before the first is queued, so a refusal leaves no trace at all.
        groups = [
            self.llm_engine.make_group(str(request_id), prompt, each)
            for request_id, (prompt, each) in enumerate(zip(prompts, params, strict=True), self._num_requests)
        ]
        self._num_requests += len(groups)
        unfinished = dict.fromkeys(group.request_id for group in groups)  # in order
        self._mail |= {request_id: deque() for request_id in unfinished}
        try:
            for group in groups:
                self.llm_engine.add_group(group)
            while unfinished:
                # One output a request and round: each is yielded before the next step is run, so a caller who
                # prints sees a token when it is made and not when the batch is done.
                mail = [
                    self._mail[request_id].popleft() for request_id in unfinished if self._mail[request_id]
                ]
                for output in mail:
                    if output.finished:
                        del unfinished[output.request_id], self._mail[output.request_id]
                    yield output
                if not mail:
                    self._step(unfinished)
        finally:
            # Also reached by `close()`, which Python calls on a generator that nobody will ask again.
            for request_id in unfinished:
                self.llm_engine.abort_request(request_id)
                del self._mail[request_id]

    def _step(self, wanted: Iterable[str]) -> None:
        """Run one step and put its outputs into the mail of their requests.

        Without the check a caller whose request is gone would step an idle engine for ever.
        """
        lost = [request_id for request_id in wanted if request_id not in self.llm_engine.scheduler.groups]
        if lost:
            raise RuntimeError(
                f"requests {', '.join(lost)} are no longer in the engine: they were aborted, or an error in "
                f"a step that another loop ran dropped them."
            )
        for output in self.llm_engine.step():
            # Without a mailbox it belongs to nobody here: somebody used `llm_engine.add_request` directly.
            if output.request_id in self._mail:
                self._mail[output.request_id].append(output)
