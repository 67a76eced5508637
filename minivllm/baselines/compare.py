"""Compare: where and by how much minivllm differs from Hugging Face. "Why is its output not HF's?", measured.

Both compute the same formula with the same weights. They add up the same numbers in another order, and
floating point addition is not associative: (a + b) + c rounds differently than a + (b + c). So the hidden
states differ in their last digits, a little more after each layer. Greedy text stays equal until a step where
the two best tokens are closer together than that difference; from there on the two texts go separate ways.

    $ python -m minivllm compare --with hf --max-tokens 48              (--with hf vllm: vLLM's texts as well)
    float32   batch 1  torch   8 of 8 texts equal
    bfloat16  batch 8  torch   5 of 8 texts equal    first difference at token 7, where the logits gap is 0.03

How a text splits (made-up logits)::

    past "The capital of France is"       Hugging Face         minivllm
    logit of " Paris"                     11.20                11.20
    logit of " the"                       11.19                11.21         gap 0.01: rounding decides
    next token                            " Paris"             " the"        and both go on from their own

What the table shows: the difference grows with the depth of the network and with the coarseness of the type,
not with paging. The same engine at batch size 1 and 8 differs from itself in the same way, because a matrix
product with another number of rows is computed by another kernel in another order.

vLLM's texts part from Hugging Face's in the same way. vLLM documents it in its page on reproducibility;
issues #5898, #590 and many others ask about it.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from tqdm import tqdm

from minivllm.bench import options, report
from minivllm.bench.backends import load_hf_model
from minivllm.bench.peers import PEERS, PeerBackend
from minivllm.bench.workloads import BenchRequest
from minivllm.llm import LLM
from minivllm.sampling_params import SamplingParams
from minivllm.weights.loader import load_tokenizer, resolve_model

# The first four are vLLM's own example prompts; code, prose and numbers differ in how sure a model is.
PROMPTS = [
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
    "def fibonacci(n):\n",
    "In a village at the foot of the mountains there lived",
    "Water boils at a temperature of",
    "1, 1, 2, 3, 5, 8,",
]


@dataclass(frozen=True)
class Divergence:
    """The first token at which two greedy texts differ.

    Attributes:
        prompt: the text that was continued.
        position: index of the token in the output, from 0.
        ours, theirs: the two token ids, the engine's and Hugging Face's.
        gap: the difference between Hugging Face's logits of the two tokens there, for the same past. A gap
            within the rounding error is a tie, and a large gap would be a bug.
    """

    prompt: str
    position: int
    ours: int
    theirs: int
    gap: float


@dataclass(frozen=True)
class Comparison:
    """One setting of an engine: all prompts, and the differences found.

    Attributes:
        engine: "minivllm" or "vllm"; of the latter only texts are compared, no layers.
        dtype, batch_size, backend: the setting; batch_size is our `max_num_seqs`.
        num_prompts: texts compared.
        divergences: those that differ, each at its first token.
        layer_differences: largest absolute difference of the hidden states after each layer, over all
            prompts. layer_scales: the largest absolute value in them, which says what is large.
    """

    engine: str
    dtype: str
    batch_size: int
    backend: str
    num_prompts: int
    divergences: tuple[Divergence, ...]
    layer_differences: tuple[float, ...] = ()
    layer_scales: tuple[float, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """By default two types, two batch sizes and one backend: four settings, each compared."""
    add = parser.add_argument
    add("--with", dest="peers", choices=("hf", "vllm"), nargs="+", default=["hf"],
        help="hf is what texts are compared with; vllm: compare vLLM's as well")  # fmt: skip
    add("--vllm-env", type=Path, default=Path(".venv-vllm"), help="environment of vLLM")
    add("--model", default="smollm2-135m-instruct", help="built-in name, folder or hub id")
    add("--max-tokens", type=int, default=48, help="tokens to generate for each prompt")
    add("--dtypes", nargs="+", default=["float32", "bfloat16"], help="types to compare in")
    add("--batch-sizes", nargs="+", type=int, default=[1, 8], help="our max_num_seqs")
    add("--backends", nargs="+", default=["torch"], help="our attention backends")
    add("--device", default="auto", help="where both run")
    add("--prompt", nargs="+", default=PROMPTS, help="prompts")
    options.add_output_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Compare every setting and print the table. A difference is a finding here and not a failure.

    Raises:
        ValueError: vLLM is to be compared and its environment is not there.
    """
    result = report.new_result("compare", model=args.model, max_tokens=args.max_tokens)
    found: dict[tuple[str, str, int], Comparison] = {}
    # A progress bar, because a type takes a minute or more and nothing is printed before the last is done.
    for dtype in tqdm(args.dtypes, desc="types"):
        hf = load_hf_model(args.model, dtype, args.device)  # once for all settings of a type
        for backend in args.backends:
            for batch_size in args.batch_sizes:
                # The prefix cache would compute a repeated prompt in another way than the first one, and
                # blur the picture.
                llm = LLM(args.model, dtype=dtype, device=args.device, attention_backend=backend,
                          max_num_seqs=batch_size, enable_prefix_caching=False)  # fmt: skip
                setting = (dtype, llm.llm_engine.attention.name, batch_size)
                if setting not in found:  # "auto" may turn out to be one of the others
                    found[setting] = compare(llm, hf, args.prompt, args.max_tokens)
        for batch_size in args.batch_sizes if "vllm" in args.peers else ():
            found[dtype, "vllm", batch_size] = compare_vllm(args, hf, dtype, batch_size)
    result["comparisons"] = [asdict(each) for each in found.values()]
    report.finish(args, result, print_report)


def compare(llm: LLM, hf: torch.nn.Module, prompts: list[str], max_tokens: int) -> Comparison:
    """Generate greedily with both, and look at the layers of both for the same prompts.

    Args:
        llm: ours, in some setting.
        hf: the same weights in Hugging Face's model, of the same type and on the same device.
        prompts: texts.
        max_tokens: tokens generated for each; end-of-sequence tokens are ignored, so that all have this many.
    """
    engine = llm.llm_engine
    # Tokenized once for both: a difference of tokenizers would be another subject.
    token_ids = [llm.get_tokenizer().encode(prompt) for prompt in prompts]
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in token_ids], params, use_tqdm=False)
    texts = [output.outputs[0].token_ids for output in outputs]
    # One prompt after the other at every batch size, because this part is about depth and type alone. Of all
    # tokens and channels the largest difference counts: relative differences would say little, as most hidden
    # values are near 0, where any difference is relatively large.
    pairs = [(hidden_states(llm, ids), hf_hidden_states(hf, ids)) for ids in token_ids]
    layers = range(len(pairs[0][0]))
    return Comparison(
        engine="minivllm",
        dtype=str(engine.dtype).removeprefix("torch."),
        batch_size=engine.config.max_num_seqs,
        backend=engine.attention.name,
        num_prompts=len(prompts),
        divergences=first_differences(hf, prompts, token_ids, texts),
        layer_differences=tuple(
            max((a[i].float() - b[i].float()).abs().max().item() for a, b in pairs) for i in layers
        ),
        layer_scales=tuple(max(b[i].float().abs().max().item() for _, b in pairs) for i in layers),
    )


def compare_vllm(args: argparse.Namespace, hf: torch.nn.Module, dtype: str, batch_size: int) -> Comparison:
    """vLLM's texts for the same prompts, from its own environment.

    Raises:
        ValueError: the environment is not there; the text has the command that makes it.
    """
    tokenizer = load_tokenizer(resolve_model(args.model))
    token_ids = [tokenizer.encode(prompt) for prompt in args.prompt]
    requests = [BenchRequest(tuple(ids), args.max_tokens) for ids in token_ids]
    settings = argparse.Namespace(
        model=args.model,
        dtype=dtype,
        max_model_len=None,
        max_num_seqs=batch_size,
        enable_prefix_caching=False,
    )
    peer = PEERS["vllm"]
    with PeerBackend(peer, args.vllm_env, peer.options(settings, args.vllm_env, requests)) as backend:
        texts = backend.run(requests).token_ids
    differences = first_differences(hf, args.prompt, token_ids, texts)
    return Comparison("vllm", dtype, batch_size, peer.package, len(args.prompt), differences)


def first_differences(
    hf: torch.nn.Module, prompts: list[str], token_ids: list[list[int]], texts: list[list[int]]
) -> tuple[Divergence, ...]:
    """`first_difference` of each prompt's text; nothing for a text that is Hugging Face's."""
    found = map(first_difference, [hf] * len(prompts), prompts, token_ids, texts)
    return tuple(each for each in found if each is not None)


@torch.inference_mode()
def first_difference(
    hf: torch.nn.Module, prompt: str, prompt_ids: list[int], ours: list[int]
) -> Divergence | None:
    """Where Hugging Face's greedy text leaves ours; None if it does not.

    Hugging Face's text is generated alone, at batch size 1, without padding: the plainest way to compute it.

    Args:
        hf: Hugging Face's model.
        prompt: its text, for the report.
        prompt_ids: its token ids.
        ours: the engine's output tokens.
    """
    ids = torch.tensor([prompt_ids], device=hf.device)
    theirs = hf.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=len(ours), eos_token_id=None
    )[0, len(prompt_ids) :].tolist()
    for position, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            # Up to here both texts are equal, so this past is ours as well.
            past = torch.tensor([prompt_ids + theirs[:position]], device=hf.device)
            logits = hf(past).logits[0, -1].float()
            return Divergence(prompt, position, a, b, (logits[b] - logits[a]).abs().item())
    return None


def hidden_states(llm: LLM, token_ids: list[int]) -> list[torch.Tensor]:
    """The hidden states (T, hidden) after each layer of ours, the last one after the final norm.

    That is what Hugging Face's `output_hidden_states` holds, so that entry i means the same in both lists.
    """
    runner = llm.llm_engine.runner
    model = runner.model.model
    states: list[torch.Tensor] = []
    # Hooks are PyTorch's way to look into a model. A layer leaves its last addition to the norm after it.
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output: states.append(output[0] + output[1]))
        for layer in model.layers[:-1]
    ]
    hooks.append(model.norm.register_forward_hook(lambda _norm, _inputs, output: states.append(output[0])))
    try:
        # One token of output takes one step, the prefill of the whole prompt: each hook is called once.
        params = SamplingParams(temperature=0, max_tokens=1)
        with patch.object(runner, "decode_steps", None):  # a compiled step calls no layer
            llm.generate({"prompt_token_ids": token_ids}, params, use_tqdm=False)
    finally:
        for hook in hooks:
            hook.remove()
    return states


@torch.inference_mode()
def hf_hidden_states(hf: torch.nn.Module, token_ids: list[int]) -> list[torch.Tensor]:
    """The same of Hugging Face's model; its first entry, the embedding before any layer, is left out."""
    output = hf(torch.tensor([token_ids], device=hf.device), output_hidden_states=True)
    return [state[0] for state in output.hidden_states[1:]]


# -- printing ---------------------------------------------------------------------------------------


def print_report(result: report.Result) -> None:
    """Print texts and layers, from what `--output-json` writes."""
    print(report.describe(result["provenance"]))
    print(f"{result['model']}, {result['max_tokens']} greedy tokens per prompt")
    for each in result["comparisons"]:
        equal = each["num_prompts"] - len(each["divergences"])
        print(
            f"{each['engine']:<9} {each['dtype']:<9} batch {each['batch_size']:<3} {each['backend']:<7} "
            f"{equal} of {each['num_prompts']} texts equal"
        )
        for text in each["divergences"]:
            print(
                f"    {text['prompt']!r}: token {text['position']}, {text['ours']} and Hugging Face's "
                f"{text['theirs']}, logits gap {text['gap']:.2g}"
            )
    print(
        "\nLargest difference of the hidden states after each layer, as a share of the largest value in them"
    )
    print(layer_table(result["comparisons"]))


def layer_settings(comparisons: list[report.Result]) -> dict[str, report.Result]:
    """ "float32 torch" -> a comparison in it. Batch sizes share one: for the layers, prompts run alone."""
    with_layers = [each for each in comparisons if each["layer_differences"]]
    return {f"{each['dtype']} {each['backend']}": each for each in with_layers}


def relative_differences(comparison: report.Result) -> list[float]:
    """After each layer: the largest difference over the largest value.

    A share, because the values grow with depth: SmolLM2's largest is 31 after one layer and 27,300 after
    twelve. There 0.035 is the difference of one number in its sixth digit, and no sign of a fault.
    """
    pairs = zip(comparison["layer_differences"], comparison["layer_scales"], strict=True)
    return [difference / scale for difference, scale in pairs]


def rounding_unit(comparison: report.Result) -> float:
    """What one rounding can do, as a share of a value: 1.2e-07 in float32, 7.8e-03 in bfloat16."""
    return torch.finfo(getattr(torch, comparison["dtype"])).eps


def layer_table(comparisons: list[report.Result]) -> str:
    """`relative_differences` of each setting, below one rounding of its type, to be measured by it.

    Example of a column::

        layer           float32 torch
        one rounding          1.2e-07
        0                     4.4e-07         four roundings: two sums of the same numbers in another order
    """
    settings = layer_settings(comparisons)
    rows = [
        ["layer", *settings],
        ["one rounding", *(f"{rounding_unit(each):.1e}" for each in settings.values())],
    ]
    columns = [relative_differences(each) for each in settings.values()]
    for layer, shares in enumerate(zip(*columns, strict=True)):
        rows.append([str(layer), *(f"{share:.1e}" for share in shares)])
    return report.table(rows)
