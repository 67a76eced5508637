"""The paper's machines and models, and what is guessed about them.

    OPT-13B     1 x A100-40GB     12 GB for K and V    15.7K slots      Table 1 of the paper
    OPT-66B     4 x A100-40GB     21 GB                 9.7K slots
    OPT-175B    8 x A100-80GB    264 GB                60.1K slots

From data sheets: bandwidth (1,555 and 2,039 GB/s), arithmetic rate (312 TFLOPS), of which 80% and 60% are
reached in practice. From the paper: slots, and `EXTRA_PER_BLOCK`, because its paged kernel takes 20 to 26%
longer than a contiguous one (Figure 18a) at 16 tokens per block.

**Fitted, to two numbers of the paper**: the host's time (`fitted_host`). Little's law says that the requests
which run = rate x seconds that each of them takes. Figure 13 counts 30.42 requests at 2 per second with 338
tokens each, which is 45 ms per token, and 132.44 at 30 per second with 58 each, 76 ms. The roofline explains
32 and 33 ms of that. The rest grows with the sequences: the Python of 2023. No ratio between two systems was
used, so all ratios are predictions.

Guessed: all-reduce (20 us each, 100 GB/s), copies to CPU memory (8 us each, 25 GB/s, PCIe 4.0).

Paper: Table 1, sections 6.1, 7.1. Shapes: the OPT paper (Zhang et al., 2022), Table 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from minivllm.aot.chips import CHIPS
from minivllm.bench.evaluation.step_time import Chip, Shape, StepModel, Work
from minivllm.bench.workloads import ALPACA_LIKE, SHAREGPT_LIKE

OPT_VOCAB = 50_272


def opt(name: str, num_layers: int, hidden_size: int) -> Shape:
    """An OPT model: 12 x hidden^2 parameters per layer (4 for attention, 8 for the MLP), float16."""
    layers = 12.0 * num_layers * hidden_size**2
    return Shape(name, num_layers, hidden_size, hidden_size, layers, float(OPT_VOCAB * hidden_size))


A100_40 = Chip("A100-40GB", 0.8 * 1555e9, 0.8 * 1555e9, 0.6 * 312e12, 0.6 * 312e12, overlaps=True,
               copy_seconds=8e-6, host_bandwidth=25e9)  # fmt: skip
_BANDWIDTH = 0.8 * CHIPS[80].gb_per_second * 1e9
A100_80 = replace(A100_40, name="A100-80GB", weight_bandwidth=_BANDWIDTH, kv_bandwidth=_BANDWIDTH)
EXTRA_PER_BLOCK = 0.23 * 16  # tokens: the middle of 20 to 26%, at 16 tokens per block


@dataclass(frozen=True)
class Deployment:
    """A model on its chips, the slots that its KV memory has, and vLLM's limits of 2023 for a step."""

    model: StepModel
    num_slots: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2560


def fitted_host(model: StepModel) -> tuple[float, float]:
    """(seconds per step, seconds per sequence) that explain Figure 13 on OPT-13B beyond the roofline."""
    rest = {}
    for batch, rate, lengths in ((30.42, 2.0, SHAREGPT_LIKE), (132.44, 30.0, ALPACA_LIKE)):
        prompt, output = lengths.prompt.mean, lengths.output.mean
        step = batch / (rate * output)  # Little's law
        # A running sequence is met in proportion to its length: E[output^2] / E[output], half of it done.
        context = prompt + output * (1 + lengths.output.cv**2) / 2
        kv_tokens = batch * context * (1 + EXTRA_PER_BLOCK / 16)
        rows = batch + rate * prompt * step
        work = Work(round(rows), round(batch), kv_tokens, batch * context)
        rest[batch] = step - sum(model.parts(work).values())
    (few, little), (many, much) = rest.items()
    slope = (much - little) / (many - few)
    return little - slope * few, slope


OPT_13B = opt("OPT-13B", 40, 5120)
FIXED_SECONDS, SEQUENCE_SECONDS = fitted_host(StepModel(OPT_13B, A100_40))


def deployment(shape: Shape, chip: Chip, num_chips: int, num_slots: int) -> Deployment:
    """With the host and the links of all of them."""
    model = StepModel(shape, chip, num_chips, FIXED_SECONDS, SEQUENCE_SECONDS, 20e-6, 100e9)
    return Deployment(model, num_slots)


DEPLOYMENTS = {
    "13B": deployment(OPT_13B, A100_40, 1, 15_728),
    "66B": deployment(opt("OPT-66B", 64, 9216), A100_40, 4, 9_700),
    "175B": deployment(opt("OPT-175B", 96, 12288), A100_80, 8, 60_100),
}
