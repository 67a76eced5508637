"""A GPU that is not there: tensors that say they are on `cuda:0`, and refuse what tensors there refuse.

Most mistakes in code for a GPU have nothing to do with speed. A tensor was left on the CPU; the host looks at
a value in the middle of a CUDA graph; a graph replays a decision of another step. This file finds them on any
machine. Each tensor "on the GPU" is an `OnGpu` around an ordinary one::

    torch.zeros(3, device="cuda") + torch.ones(3)         RuntimeError: aten.add.Tensor: cuda:0 and cpu
    torch.zeros(3, device="cuda").numpy()                 TypeError, as on a GPU
    kernel[grid](a tensor on the CPU)                     RuntimeError

**Recording.** A CUDA graph is a list of operations with the addresses they had when it was recorded. `Recorder`
keeps just that: every operation on an `OnGpu` with its inputs and outputs. A replay computes the operations
again on the same inputs and writes into the same outputs; no line of Python that chose them runs again.
Moving a value to the host meanwhile is an error, as it is on a GPU.

What it cannot show: speed, races, shared memory, anything asynchronous. And Triton's kernels run in the
interpreter, in order.

How: torch calls `__torch_dispatch__` for each of its basic operations. torch itself believes the tensors to be
on "meta", a device that exists everywhere; only Python sees "cuda:0". So all code that looks at the device in C++
has to be caught earlier, in `_Catcher`.
"""

from contextlib import ExitStack, contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import minivllm.kernels.common  # while torch still says that there is no GPU: the kernels are to be interpreted
from minivllm.backends import cuda_graphs

assert minivllm.kernels.common.INTERPRETED, "on a machine with a GPU there is nothing to pretend"

from triton.runtime.interpreter import InterpretedFunction  # noqa: E402

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
# Operations whose inputs may be on two devices.
BETWEEN_DEVICES = ("aten._to_copy.default", "aten.copy_.default")
# Indexing: torch sends an index to the device by itself.
INDEXING = ("aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default")


class OnGpu(torch.Tensor):
    """A tensor that says it is on `cuda:0`; `value` is where its numbers really are."""

    @staticmethod
    def __new__(cls, value):
        return torch.Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), storage_offset=value.storage_offset(),
            dtype=value.dtype, device="meta",
        )  # fmt: skip

    def __init__(self, value):
        self.value = value

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _carry_out(func, args, kwargs or {}, None)

    def cpu(self):
        return self.to("cpu")

    def tolist(self):
        return self.to("cpu").tolist()

    def item(self):
        return self.to("cpu").item()

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def pin_memory(self):
        raise RuntimeError("cannot pin 'torch.cuda.Tensor': only dense CPU tensors can be pinned")


def unwrap(value):
    return value.value if isinstance(value, OnGpu) else value


class Recorder:
    """Stands in for `CudaGraphCapture`: records the operations of a step, and returns their replay."""

    def __init__(self):
        self.tape = None  # a list while recording
        self.num_recorded = 0

    def __call__(self, step):
        self.tape, tape = [], None
        try:
            output = step()
        finally:
            self.tape, tape = None, self.tape
        self.num_recorded += 1

        def replay():
            for operation in tape:
                operation()
            return output

        return replay

    def launched(self, func, args, kwargs, out):
        """Record an operation and the tensors it has written."""
        if self.tape is None:
            return

        def operation():
            new = func(*args, **kwargs)
            for to, result in zip(tree_leaves(out), tree_leaves(new), strict=True):
                # A view, or something done in place, is there already.
                if isinstance(to, torch.Tensor) and to.data_ptr() != result.data_ptr():
                    to.copy_(result)

        self.tape.append(operation)

    def host_looks(self, what):
        """Raise while recording: the host would have to wait for something that does not run."""
        if self.tape is not None:
            raise RuntimeError(f"{what}: operation not permitted when stream is capturing")


def _carry_out(func, args, kwargs, recorder):
    """One basic operation of torch; its result is on the GPU if its inputs are, or if it is asked for there."""
    name = str(func)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_gpu = [isinstance(tensor, OnGpu) for tensor in tensors]
    if any(
        not isinstance(tensor, OnGpu) and torch.Tensor.device.__get__(tensor).type == "meta"
        for tensor in tensors
    ):
        raise NotImplementedError(f"{name} got a tensor of torch's own making: catch it in _Catcher")
    # A CPU tensor with a single number and no axis may take part in anything.
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.dim() > 0]
    if any(on_gpu) and on_cpu and name not in BETWEEN_DEVICES + INDEXING:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, got cuda:0 and cpu")

    asked = kwargs.get("device")
    here = any(on_gpu) if asked is None else torch.device(asked).type == "cuda"
    if name == "aten.copy_.default":
        here = on_gpu[0]
        if recorder is not None and len(set(on_gpu)) > 1:
            recorder.host_looks("a copy between host and device")
    if asked is not None:
        kwargs = {**kwargs, "device": CPU}
    args, kwargs = tree_map(unwrap, args), tree_map(unwrap, kwargs)
    out = func(*args, **kwargs)
    if recorder is not None and here:
        recorder.launched(func, args, kwargs, out)
    for tensor in tensors:
        if isinstance(tensor, OnGpu) and out is tensor.value:
            return tensor  # done in place
    return (
        tree_map(lambda leaf: OnGpu(leaf) if isinstance(leaf, torch.Tensor) else leaf, out) if here else out
    )


class _Operations(TorchDispatchMode):
    """Sees every basic operation, also those that make a tensor out of nothing."""

    def __init__(self, recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _carry_out(func, args, kwargs or {}, self.recorder)


class _Catcher(TorchFunctionMode):
    """Catches the functions that would look for a real device before any operation: making, moving, indexing."""

    def __init__(self, recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.tensor and torch.device(kwargs.get("device") or CPU).type == "cuda":
            return torch.tensor(*args, **{**kwargs, "device": CPU}).to(GPU)
        if func is torch.Tensor.to:
            return self.move(*args, **kwargs)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], OnGpu):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in index):
                self.recorder.host_looks("an index that is a list")
            index = tuple(OnGpu(torch.tensor(part)) if isinstance(part, list) else part for part in index)
            args = (args[0], index, *args[2:])
        return func(*args, **kwargs)

    def move(self, tensor, *wanted, device=None, dtype=None, non_blocking=False):
        """`tensor.to(...)`: itself if there is nothing to do, else a copy, as torch does."""
        for value in wanted:
            if isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, torch.Tensor):
                device, dtype = value.device, value.dtype
            else:
                device = value
        was, will = isinstance(tensor, OnGpu), torch.device(device or tensor.device).type == "cuda"
        if was == will and dtype in (None, tensor.dtype):
            return tensor
        if was and will:
            # By an operation, so that a recording has it.
            return torch.ops.aten._to_copy.default(tensor, dtype=dtype)
        if was != will:
            self.recorder.host_looks("a copy between host and device")
        copy = unwrap(tensor).to(dtype or tensor.dtype, copy=True)
        return OnGpu(copy) if will else copy


@contextmanager
def pretend_gpu(monkeypatch):
    """Within it torch has a GPU as far as Python code can tell; yields the recorders of CUDA graphs."""
    recorder = Recorder()
    make_launch = InterpretedFunction.__getitem__

    def getitem(kernel, grid):
        interpreted = make_launch(kernel, grid)

        def launch(*args, **kwargs):
            if any(isinstance(a, torch.Tensor) and not isinstance(a, OnGpu) for a in args):
                raise RuntimeError(f"{kernel.fn.__name__}: a pointer to the CPU in a kernel")
            args = [unwrap(a) for a in args]
            interpreted(*args, **kwargs)
            recorder.launched(interpreted, args, kwargs, None)

        return launch

    on = {"is_available": True, "current_device": 0, "get_device_capability": (9, 0), "_lazy_init": None}
    for name, answer in on.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer: answer)
    # Inference tensors and wrappers do not go together; the engine's results do not depend on the mode.
    monkeypatch.setattr(torch.inference_mode, "__enter__", lambda self: None)
    monkeypatch.setattr(torch.inference_mode, "__exit__", lambda self, *error: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(InterpretedFunction, "__getitem__", getitem)
    monkeypatch.setattr(cuda_graphs, "CudaGraphCapture", lambda: recorder)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_Operations(recorder))
        stack.enter_context(_Catcher(recorder))
        yield recorder
