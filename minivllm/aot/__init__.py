"""Ahead of time: the kernels compiled before they are needed.

For GPUs that are not there, to see what the machine code tells. That takes a compiler, but no engine and no
GPU: `chips.py` holds data sheets, `kernel_compile.py` compiles in a process of its own, `resources.py` is the
command `python -m minivllm bench resources`. And on the GPU that is there, before the first request:
`warm_up.py`.
"""
