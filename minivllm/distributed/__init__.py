"""More than one worker: one scheduler, several processes which each hold a part of the model::

    engine.py          plan = scheduler.schedule()                     one scheduler, which knows of no rank
                          |  pickled, once
    executor.py        Executor: uniproc (here), or multiproc.py: the processes
                          |  broadcast from rank 0 to all
    worker.py          rank 0         rank 1         rank 2            the same program on other weights
                       runner         runner         runner
    parallel_layers.py    +--- all-reduce, twice a layer ---+
                          |
                       tokens of rank 0

`config.py` checks what was asked for. Read `sharding.py` first (what each rank holds), then
`parallel_layers.py` (how parts add up to the whole), and last how the plan travels: `executor.py`,
`worker.py`, `worker_process.py`, `multiproc.py`.

Paper: section 4.6 (distributed execution). vLLM V1: `vllm/v1/executor/`, `vllm/distributed/`.
"""
