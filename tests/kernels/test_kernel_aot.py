"""Every kernel compiles for every chip, and fits into its shared memory: no GPU is needed to know.

The compiling is done by `aot_compile.py` in two processes side by side, without the interpreter.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# KiB of shared memory one program may have. T4, A100, RTX 3090, RTX 4090, H100, RTX 5090
SHARED_LIMIT = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 120: 99}
KERNELS = {
    "_paged_attention_kernel",
    "_combine_kernel",
    "_naive_kernel",
    "_prefill_kernel",
    "_reshape_and_cache_kernel",
    "_copy_blocks_kernel",
    "_rms_norm_kernel",
    "_rotary_kernel",
    "_silu_and_mul_kernel",
}


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    """One record for each compilation: chip, dtype, kernel, shared memory, instructions."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "aot_compile.py"), *chips],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for chips in (("75", "80", "86"), ("89", "90", "120"))
    ]
    records = []
    for process in processes:
        out, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]
        records += [json.loads(line) for line in out.splitlines()]
    return records


def assert_fits(records: list[dict]) -> None:
    """The one assertion on sizes: shared memory within the limit of the chip."""
    for record in records:
        limit = SHARED_LIMIT[record["capability"]] * 1024
        assert record["shared"] <= limit, f"needs {record['shared']} bytes, the chip has {limit}: {record}"


def of(records: list[dict], **wanted: object) -> list[dict]:
    """The records with these values."""
    return [r for r in records if all(r.get(name) == value for name, value in wanted.items())]


@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_every_kernel_compiles_and_fits(capability, compiled):
    """Catches code the compiler refuses but the interpreter runs, and tiles too large for the chip."""
    mine = [r for r in of(compiled, capability=capability) if r["heads"] != "too_large"]
    assert {record["kernel"] for record in mine} == KERNELS
    assert_fits(mine)


def test_the_limit_rejects_tiles_that_are_too_large(compiled):
    """Negative control: tiles for an H100 on an RTX 3090 do not pass the assertion."""
    too_large = of(compiled, heads="too_large")
    assert len(too_large) == 1
    with pytest.raises(AssertionError, match="the chip has 101376"):
        assert_fits(too_large)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
def test_decode_uses_tensor_cores_and_asynchronous_copies(capability, compiled):
    """Catches a dot that falls back to ordinary multiplications, which halves the bandwidth reached."""
    decode = of(compiled, capability=capability, kernel="_paged_attention_kernel")
    for dtype in ("float16", "bfloat16"):
        records = of(decode, dtype=dtype)
        assert records and all(record["mma"] and record["async_copy"] for record in records)


def test_float32_is_computed_exactly_and_not_on_tensor_cores(compiled):
    """Catches TF32, which rounds float32 to 10 bits; and shows that the flag above can be false."""
    attention = [r for r in of(compiled, dtype="float32") if "BLOCK_N" in r]
    assert len(attention) == 6 and not any(record["mma"] or record["wgmma"] for record in attention)


def test_prefill_uses_warp_group_products_on_hopper(compiled):
    """Catches tiles of fewer than 64 rows for long queries: Hopper's wgmma needs 64."""
    prefill = of(compiled, capability=90, kernel="_prefill_kernel")
    wide = [record for record in prefill if record["BLOCK_M"] >= 64]
    assert wide and all(record["wgmma"] for record in wide)
    assert not any(record["wgmma"] for record in prefill if record["BLOCK_M"] < 64)
