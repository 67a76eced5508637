"""Write the pages of measurements, and draw their charts, from `data/`: `python docs/make_performance.py`.

No number on these pages was typed by hand. The prose stands in templates, and a template asks for what it
shows; `measured/` turns files into tables and charts, and each benchmark's `print_report` prints its file
again as it did when it was measured::

    data/*.json            measured/performance.md.jinja        performance.md
                           {{ engines() }}                      | beside | work | minivllm is | ...
    cpu_vllm.json          {{ section("cpu_vllm.json") }}       the command and its output, folded
    (cpu_http.json)        {{ section("cpu_http.json") }}       "not measured here yet", and the command

A file that is not there never breaks a page. On the page about GPUs its mark stays open.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jinja2
from measured import charts, gpu, tables
from measured.files import command_of, paths_of, processor

from minivllm.aot import resources
from minivllm.baselines import compare
from minivllm.bench import (
    gpu_report,
    gpu_tests,
    http,
    kernel_report,
    latency,
    memory,
    paper,
    parallel,
    plan,
    serve,
    sharing,
    speculative,
    throughput_report,
)
from minivllm.bench.evaluation import command, drawing, headline, validate
from minivllm.bench.report import Result
from minivllm.viz.style import png_bytes

HERE = Path(__file__).parent
PRINTERS: dict[str, Callable[[Result], None]] = {
    "throughput": throughput_report.print_report,
    "sharing": sharing.print_report,
    "serve": serve.print_report,
    "http": http.print_report,
    "speculative": speculative.print_report,
    "latency": latency.print_report,
    "memory": memory.print_report,
    "compare": compare.print_report,
    "kernels": kernel_report.print_report,
    "resources": resources.print_report,
    "plan": plan.print_report,
    "gpu-tests": gpu_tests.print_report,
    "gpu-report": gpu_report.print_report,
    "parallel": parallel.print_report,
    "paper": command.print_report,
    "headline": headline.print_report,
    "step-time": validate.print_report,
}
# Drawn again from its file whenever the pages are written. `bench throughput` draws with its own `--plot`,
# and of `bench serve` no picture is shown.
PLOTS: dict[str, Callable[[Result, str], None]] = {
    "headline": headline.draw,
    "speculative": speculative.draw,
    "http": serve.plot,
    "parallel": parallel.draw,
    "step-time": validate.draw,
    "paper": drawing.draw,
    "memory": paper.draw,
    "kernels": kernel_report.plot,
}
FOLDED = """\
<details>
<summary>{summary}</summary>

```bash
{command}
```

```text
{report}
```

</details>
"""
OPEN = """\
Not measured here yet. The command:

```bash
{command}
```
"""


def report_of(result: Result) -> str:
    """What the benchmark printed about `result`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        PRINTERS[result["benchmark"]](result)
    return printed.getvalue().strip("\n")


def section(data: Path, name: str) -> str:
    """A measurement as it was printed, folded, on each processor; or how to make it."""
    parts = []
    for path in paths_of(data, name):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["benchmark"] in PLOTS or path.with_suffix(".png").exists():
            parts.append(f"![The numbers below, drawn](data/{path.stem}.png)\n")
        summary = f"What the command printed ({processor(result)}, {result['provenance']['date'][:10]})"
        line = shlex.join(["python", "-m", "minivllm", *result["provenance"]["command_line"]])
        parts.append(FOLDED.format(summary=summary, command=line, report=report_of(result)))
    return "\n".join(parts) or OPEN.format(command=command_of(name))


def chart(data: Path, name: str, alt: str) -> str:
    """The image of a chart; nothing where its files are not there."""
    return f"![{alt}](data/{name}.png)\n" if charts.has_files(data, name) else ""


def pages(data: Path) -> dict[str, str]:
    """File name -> text of each page that is written from `data`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "measured"), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    functions = {
        "section": section, "chart": chart,
        "engines": tables.engines, "engine_sentence": tables.engine_sentence, "summary": tables.summary,
        "answer": tables.answer, "layers": tables.layers, "longer_step": tables.longer_step,
        "counted": gpu.counted, "host": gpu.host, "marks": gpu.marks, "is_open": gpu.is_open,
        "measured": lambda data, name: bool(paths_of(data, name)),
    }  # fmt: skip
    environment.filters["first_upper"] = lambda text: text[:1].upper() + text[1:]
    environment.globals |= {name: partial(function, data) for name, function in functions.items()}
    templates = environment.list_templates(extensions=["jinja"])
    return {name.removesuffix(".jinja"): environment.get_template(name).render() for name in templates}


def draw(data: Path) -> None:
    """Write every picture that the pages show and that no benchmark has drawn."""
    for name, (_, make) in charts.CHARTS.items():
        if charts.has_files(data, name):
            (data / f"{name}.png").write_bytes(png_bytes(make(data)))
    for path in sorted(data.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["benchmark"] in PLOTS:
            PLOTS[result["benchmark"]](result, str(path.with_suffix(".png")))


def main() -> None:
    """Draw the charts, and write the pages."""
    draw(HERE / "data")
    for file_name, text in pages(HERE / "data").items():
        (HERE / file_name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
