"""Ahead of time: the kernels compiled for GPUs that are not there, and what their machine code tells.

Only a compiler is needed, no engine and no GPU: `chips.py` holds data sheets, `kernel_compile.py` compiles in
    a process of its own, `resources.py` is the command `python -m minivllm bench resources`.
"""
