"""The server: an engine that coroutines share, OpenAI's API in front of it, and a page that shows its blocks.

    client      curl, the openai package, a browser
    launch      options, uvicorn, signals                           what `python -m minivllm serve` runs
    api         routes, errors, limits  --------  page              the pool as it fills; Pause and Step
    completions chat  protocol                    events
    async_llm   output_stream                     prometheus        the engine in a thread of its own
    ---------------------------------------------------------------------------------------------
    engine_loop, engine                           three calls

Read in this order: `output_stream.py`, `async_llm.py`, `protocol.py`, `token_names.py`, `responses.py`,
`api.py`, `limits.py`, `launch.py`; then the page: `events.py`, `page.py`. Only `AsyncLLM` is needed to serve
coroutines of your own; the rest needs the packages of the extra "server": `pip install 'minivllm[server]'`.

Paper: section 5. vLLM V1: `vllm/v1/engine/async_llm.py`, `vllm/entrypoints/openai/`.
"""
