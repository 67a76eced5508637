"""How `bench kernels` checks and times one call on a GPU.

A contender is first compared with torch's attention in float32; a fast wrong kernel is not measured. How one
time is taken, `--repeats` times over::

    flush (512 MB read push K and V out of the L2 cache) | start event | graph replay | end event

Events are recorded on the GPU's own queue, so neither Python nor the wait for the flush is in between. The
flush reads: had it written, those numbers would be pushed out to memory while the kernel is timed.

What goes wrong is no reason to lose what comes after it. A peer that fails is left out; one of ours becomes a
`Failure` in the file, and the benchmark ends with exit status 1. vLLM: `triton.testing.do_bench`, which its
kernel benchmarks call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from minivllm.bench.kernel_report import Failure, Measurement

FLUSH_BYTES = 512 << 20  # more than any GPU's L2 cache
Call = Callable[[], torch.Tensor]
Wanted = Callable[[str], bool]
"""Which contenders, by name."""
EVERYTHING: Wanted = lambda name: True  # noqa: E731


@dataclass(frozen=True)
class Subject:
    """What all contenders on a shape share: kind, name and work as in `Measurement`, and the right answer.

    `splits` has the number of splits by contender, for those which have one.
    """

    kind: str
    shape: str
    work: int
    expected: torch.Tensor
    splits: Mapping[str, int] = field(default_factory=dict)


class Timer:
    """Times calls on the GPU with a cold L2 cache, each `repeats` times."""

    device = torch.device("cuda")

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.flush = torch.zeros(FLUSH_BYTES // 4, dtype=torch.float32, device=self.device)

    def __call__(self, call: Call) -> list[float]:
        """Microseconds of every replay of `call` from a CUDA graph: launching from Python may take longer."""
        # A graph cannot hold the loading of a kernel. PyTorch asks for this warm-up to be on a side stream.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graph.replay()  # once untimed: the first replay uploads the graph
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self.repeats)]
        for start, end in events:
            self.flush.sum()
            start.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 for start, end in events]


def measure_copy(timer: Timer, num_bytes: int = 1 << 31) -> float:
    """Bytes per second read and written, the 100% of the results: the faster of the driver's and a kernel."""
    source = torch.randn(num_bytes // 4, device=timer.device)
    target = torch.empty_like(source)
    copies: tuple[Call, ...] = (lambda: target.copy_(source), lambda: torch.neg(source, out=target))
    times = [Measurement("rows", "copy", "copy", timer(copy), 2 * source.nbytes).median for copy in copies]
    return 2 * source.nbytes / (min(times) * 1e-6)


def measure_floor(timer: Timer) -> list[float]:
    """Microseconds of a kernel with nothing to do: what graph and events alone add to every time."""
    number = torch.zeros(1, device=timer.device)
    return timer(lambda: number.add_(1))


def is_right(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether the relative error (2-norm) is below 1%. Rounding is a few tenths of a percent; with one block
    of 64 left out, and near-equal weights, the error is about sqrt(1/64) = 12%.
    """
    return bool((actual.float() - expected).norm() < 0.01 * expected.norm())


def measure_all(
    ours: Mapping[str, Call],
    peers: Mapping[str, Call],
    subject: Subject,
    timer: Timer,
    wanted: Wanted = EVERYTHING,
) -> Iterator[Measurement | Failure]:
    """Check and time each contender. One of ours that fails is a `Failure`; a peer that fails is left out."""
    for name, call in {**ours, **peers}.items():
        if not wanted(name):
            continue
        try:
            if not is_right(call().reshape(subject.expected.shape), subject.expected):
                raise RuntimeError(f"{name} gives a wrong answer; its time would mean nothing.")
            times = timer(call)
        except Exception as error:  # whatever was raised is no reason to lose the results after it
            text = f"{type(error).__name__}: {str(error)[:200]}"
            print(f"{subject.shape}: {name}: {text}", flush=True)
            if name in ours:
                yield Failure(subject.shape, name, text)
            continue
        yield Measurement(subject.kind, subject.shape, name, times, subject.work, subject.splits.get(name))
