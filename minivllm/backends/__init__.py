"""What makes the model fast on a device, behind the contracts of `attention.py`, `layers.py` and `model.py`.

`attention.py` has the contract of paged attention and its oracle, `layers.py` each layer by PyTorch's
operators. The files of this folder keep to them and are chosen by device, dtype and what is installed::

    attention.py  <---  attention_torch.py     gather the blocks, then PyTorch's own attention: any device
                  <---  attention_kernels.py   kernels that follow the block table: CPU (Numba), GPU (Triton)
    layers.py     <---  linears.py             the matrix product that is the fastest on this machine
                  <---  layers_kernels.py      norm, rotation and activation in one pass each
    model.py      <---  cuda_graphs.py         a decode step recorded, then replayed: GPU
                  <---  compiled_steps.py      a decode step compiled, all its layers in one call: CPU

Paper: section 5 (kernel-level optimization). vLLM V1: `vllm/v1/attention/backends/`,
`vllm/model_executor/custom_op.py`.
"""
