"""Importing Triton the right way, and the argument checks every kernel shares.

Every kernel file says `from .common import tl, triton` instead of `import triton`. What that buys:

1. **Interpreter or compiler.** Without a GPU Triton can still run a kernel, one program after the other, in
   numpy: slow (about 100 microseconds per tensor operation) but the same source, on a laptop, in a debugger.
   The switch is the environment variable `TRITON_INTERPRET`, read at two moments: when `@triton.jit`
   decorates a kernel, and, for Triton's own library (`tl.sum`, `tl.cdiv`, ...), when `triton` is imported.
2. **Triton may be imported already.** `import torch` does not do it, but `torch._dynamo` does, and so does
   `from transformers import LlamaForCausalLM`. Then the library was decorated for the compiler, and an
   interpreted kernel that calls `tl.sum` dies with "Cannot call @triton.jit'd outside of the scope of a
   kernel". `_interpret_library` decorates those few functions again.

Which half is made for the interpreter::

    import order               tl.sum is ...              @triton.jit makes ...        works?
    kernels first, no GPU      interpreted                interpreted kernels          yes
    transformers first         for the compiler           interpreted kernels          no: repaired here
    any order, with a GPU      for the compiler           compiled kernels             yes

The checks run before anything is written. A kernel trusts its arguments completely (a wrong stride reads the
memory of another tensor, on a GPU without any message), so only these checks can give an error that teaches.

An example::

    check_tensor("key", key, ("T", 3, 64))        key is (10, 3, 32)
    ValueError: key must have shape (T, 3, 64), got (10, 3, 32).

A string names an axis of any size, a number an axis that another tensor has fixed already. The checks cost
Python time at every launch; a CUDA graph does not repeat them when it is replayed.

vLLM V1: `vllm/triton_utils/importing.py`.
"""

import os

import torch


def use_interpreter_without_gpu() -> None:
    """Choose Triton's interpreter where no GPU is present and the environment says nothing else.

    A value of `TRITON_INTERPRET` that is already set wins: 0 keeps the compiler on a machine without a GPU,
    which is how the kernels are compiled ahead of time for chips that are not there.
    """
    if "TRITON_INTERPRET" not in os.environ and not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


use_interpreter_without_gpu()

import triton  # noqa: E402  (only now: see the docstring)
import triton.language as tl  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

# The mode when the first kernel file was imported, which stays: a kernel is decorated once.
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
# What the kernels load and compute with. 8-bit formats would need a scale for each tensor as well.
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Slots, positions, block tables, lengths. The kernels widen to 64 bits themselves before they multiply.
INDEX_DTYPES = (torch.int32, torch.int64)
# The next power of two, 512, is beyond what `heuristics.py` has tile sizes for.
MAX_HEAD_DIM = 256


def _interpret_library() -> None:
    """Switch Triton's own jit functions to the interpreter where triton was imported without it.

    They are in two modules, under public names and where they are defined, and both are in use: a kernel says
    `tl.sum`, and `tl.sum` calls functions of `tl.standard`. `value.fn` is the plain Python function which the
    decorator was given, so it can be wrapped anew.
    """
    from triton.runtime.interpreter import InterpretedFunction

    for module in (tl, tl.standard):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                setattr(module, name, InterpretedFunction(value.fn))


# `tl.sum` stands for all these functions: they are decorated together, when triton is imported.
if INTERPRETED and isinstance(tl.sum, JITFunction):
    _interpret_library()


def needs_float32_dot(dtype: torch.dtype) -> bool:
    """Whether `tl.dot` has to be fed float32: the interpreter treats bfloat16 as raw 16-bit integers.

    It loads, converts and stores bfloat16 correctly, but adds and multiplies the bit patterns, silently.
    On a GPU the same source keeps bfloat16 operands, and so the tensor cores.

    Example: 1.0 is 0x3F80 in bfloat16, so the interpreter would multiply 16256 where it should multiply 1.
    The kernels take the answer as the constexpr DOT_F32: on a GPU, where it is False, the conversion is not
    even compiled.
    """
    return INTERPRETED and dtype == torch.bfloat16


def check_launchable(tensor: torch.Tensor) -> None:
    """Raise ValueError unless a kernel can run where `tensor` lives, saying how to make it so.

    Two mistakes are possible: tensors on another GPU than the one launched on, whose pointers mean nothing
    there, and tensors on the CPU while Triton compiles for a GPU.
    """
    if tensor.is_cuda:
        if tensor.device.index != torch.cuda.current_device():
            raise ValueError(
                f"The tensors are on {tensor.device}, but the current device is "
                f"cuda:{torch.cuda.current_device()}, where Triton would launch. "
                f"Call torch.cuda.set_device({tensor.device.index}) first."
            )
    elif not INTERPRETED:
        raise ValueError(
            f"Triton compiles for the GPU in this process, but the tensors are on {tensor.device}. Move them "
            "to cuda, or set TRITON_INTERPRET=1 before Python starts to run the kernels in the interpreter."
        )


def check_tensor(name: str, tensor: torch.Tensor, shape: tuple[int | str, ...]) -> None:
    """Raise unless `tensor` has `shape`, in which a string names an axis whose size is free.

    The last axis must also be contiguous: the kernels add `d` to a row's address, not `d * stride`.

    Raises:
        TypeError: not a tensor.
        ValueError: another number of axes, another size, or a strided last axis.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}.")
    wanted = "(" + ", ".join(str(axis) for axis in shape) + (",)" if len(shape) == 1 else ")")
    # The number of axes first: `zip(..., strict=True)` raises its own, less helpful error on a mismatch.
    fits = tensor.dim() == len(shape) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}.")
    # An axis of size 1 has no neighbours: torch gives it any stride, and the kernels do not use it.
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"{name} {wanted} must be contiguous along its last axis, got strides {tensor.stride()}. "
            "Call .contiguous() on it, or slice along another axis."
        )


def check_dtypes(allowed: tuple[torch.dtype, ...], **tensors: torch.Tensor) -> None:
    """Raise TypeError unless all `tensors` share one dtype, and that dtype is in `allowed`.

    Example: `check_dtypes(FLOAT_DTYPES, query=q, key=k)` with k in float16 and q in float32 says "query and
    key must share one dtype, got query torch.float32, key torch.float16." The keywords are the names that the
    message uses. Tensors that may differ get a call each.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in allowed:
            names = ", ".join(str(dtype) for dtype in allowed)
            raise TypeError(f"{name} must have one of the dtypes {names}, got {tensor.dtype}.")
    # Each dtype is allowed, but they are mixed. A kernel would not fail: it would round unexpectedly.
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        got = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise TypeError(f"{' and '.join(tensors)} must share one dtype, got {got}.")


def check_devices(**tensors: torch.Tensor) -> None:
    """Raise ValueError unless all `tensors` are on one device and a kernel can be launched there.

    A launch is on one device, which would read another device's pointer as an address of its own.
    """
    if len({tensor.device for tensor in tensors.values()}) > 1:
        got = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"All tensors must be on one device, got {got}.")
    check_launchable(next(iter(tensors.values())))


def check_range(name: str, tensor: torch.Tensor, low: int, high: int) -> None:
    """Raise ValueError if a value lies outside `[low, high)`, on the CPU only.

    On a GPU reading the values back would make the host wait for the device in every layer, so there the
    caller's word is taken; the interpreter would end the whole process with a segmentation fault.

    Args:
        name: as the message should call it.
        tensor: integers of any shape; an empty tensor passes.
        low: smallest value allowed.
        high: first value too large: -1 and B * S for slots, so that -1 marks a token to skip.
    """
    if tensor.is_cuda or tensor.numel() == 0:
        return
    least, most = int(tensor.min()), int(tensor.max())
    if least < low or most >= high:
        raise ValueError(f"{name} must lie in [{low}, {high}), got values from {least} to {most}.")


def check_cache(key_cache: torch.Tensor, value_cache: torch.Tensor) -> None:
    """Raise unless both are floating point tensors of one shape (B, S, Hkv, D).

    Strides are free except the last: a layer of a tensor that holds all layers is as good as one of its own.
    """
    check_tensor("key_cache", key_cache, ("B", "S", "Hkv", "D"))
    check_tensor("value_cache", value_cache, tuple(key_cache.shape))
    check_dtypes(FLOAT_DTYPES, key_cache=key_cache, value_cache=value_cache)


def check_block_tables(
    block_tables: torch.Tensor, seq_lens: torch.Tensor, num_blocks: int, block_size: int
) -> None:
    """Raise ValueError if a block that a sequence uses does not exist; on the CPU only, as `check_range`.

    Entries beyond a sequence's length are padding: they may hold anything and are never looked at.

    Example, S = 4, seq_lens = [6]: entries 0 and 1 are used, as their first tokens 0 and 4 are before 6;
    entry 2 would start at token 8 and is not looked at. A stale block number there is harmless.

    Args:
        block_tables: (R, max_blocks).
        seq_lens: (R,), tokens of each sequence.
        num_blocks: B, the blocks there are.
        block_size: S, tokens in a block.
    """
    if block_tables.is_cuda or block_tables.numel() == 0:
        return
    first_token = torch.arange(block_tables.shape[1]) * block_size  # (max_blocks,) of each table entry
    used = block_tables[first_token[None, :] < seq_lens[:, None]]
    check_range("block_tables (up to each sequence's length)", used, 0, num_blocks)


def check_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
) -> None:
    """Raise unless the arguments fit together as the attention kernels need them.

    Shapes: query (N, Hq, D), caches (B, S, Hkv, D), block_tables (R, max_blocks), seq_lens (R,).

    N is the number of query rows: R of them for decode, T for prefill; the callers check which.

    Raises:
        TypeError: a dtype is not supported, or query and KV cache differ in theirs.
        ValueError: shapes, devices or values do not fit; values are looked at on the CPU only.
    """
    check_cache(key_cache, value_cache)
    num_blocks, block_size, num_kv_heads, head_dim = key_cache.shape
    # Hq is free here; that it is a multiple of Hkv comes next, with an error that says why.
    check_tensor("query", query, ("N", "Hq", head_dim))
    check_dtypes(FLOAT_DTYPES, query=query, key_cache=key_cache, value_cache=value_cache)
    if query.shape[1] % num_kv_heads:
        raise ValueError(
            f"The query heads must be a multiple of the KV heads, so that each KV head serves a group, got "
            f"{query.shape[1]} query heads and {num_kv_heads} KV heads."
        )
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be at most {MAX_HEAD_DIM} to fit in one tile, got {head_dim}.")
    check_tensor("seq_lens", seq_lens, ("R",))
    check_tensor("block_tables", block_tables, (seq_lens.shape[0], "max_blocks"))
    # One call each: int32 tables beside int64 lengths are fine, because the kernels load them separately.
    check_dtypes(INDEX_DTYPES, block_tables=block_tables)
    check_dtypes(INDEX_DTYPES, seq_lens=seq_lens)
    check_devices(
        query=query,
        key_cache=key_cache,
        value_cache=value_cache,
        block_tables=block_tables,
        seq_lens=seq_lens,
    )
    # A table of 2 blocks of 16 has room for 0 to 32 tokens. A longer sequence would read past its row.
    check_range("seq_lens", seq_lens, 0, block_tables.shape[1] * block_size + 1)
    check_block_tables(block_tables, seq_lens, num_blocks, block_size)


def check_query_start_loc(query_start_loc: torch.Tensor, query: torch.Tensor, seq_lens: torch.Tensor) -> None:
    """Raise unless `query_start_loc` (R + 1,) cuts the tokens of `query` (T, Hq, D) into R sequences.

    A sequence cannot have more queries than tokens. The values are looked at on the CPU only.

    Example, T = 4, R = 2: [0, 3, 4] is three queries of sequence 0 and one of sequence 1. Not allowed are
    [0, 3, 5], which names a fifth token, and [0, 3, 2], which has -1 queries. With seq_lens [2, 6] even
    [0, 3, 4] is refused: sequence 0 cannot have 3 queries among 2 tokens.
    """
    num_tokens = query.shape[0]
    check_tensor("query_start_loc", query_start_loc, (seq_lens.shape[0] + 1,))
    check_dtypes(INDEX_DTYPES, query_start_loc=query_start_loc)
    check_devices(query=query, query_start_loc=query_start_loc)
    if query_start_loc.is_cuda:
        return
    check_range("query_start_loc", query_start_loc, 0, num_tokens + 1)
    query_lens = query_start_loc[1:] - query_start_loc[:-1]  # (R,)
    check_range("the differences of query_start_loc", query_lens, 0, num_tokens + 1)
    check_range("seq_lens minus the differences of query_start_loc", seq_lens - query_lens, 0, 1 << 31)
