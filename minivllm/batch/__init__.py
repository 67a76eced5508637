"""Many requests from a file: `python -m minivllm run-batch`, by one engine or by replicas on a cluster::

    in.jsonl  --lines-->  run_batch.py  --at most so many at once-->  replica.py          one engine
                               |                                      ray_replicas.py     many, on Ray
    out.jsonl <--a line each---+   as they finish

A replica is a whole engine with a whole model. Replicas know nothing of each other, so N of them answer N
times as many requests; the workers of `minivllm.distributed` share one model, and answer each request
together.

vLLM V1: `vllm/entrypoints/openai/run_batch.py`.
"""
