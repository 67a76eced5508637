"""bench parallel: what is computed against sums written out by hand, what is measured against tensors."""

import json

import pytest

from minivllm import bench
from minivllm.bench.parallel_model import (
    GPUS,
    MODELS,
    StepTime,
    all_reduce_seconds,
    gather_seconds,
    matrix_elements,
    plan_rows,
    step_time,
    where_it_stops,
)
from minivllm.config import ModelConfig
from minivllm.viz.parallel import shards_figure, step_time_figure
from minivllm.weights.loader import load_model
from minivllm.weights.random_model import random_llama

H100 = GPUS["H100"]


def test_matrix_elements_are_those_of_a_real_model(tmp_path):
    """Would catch a matrix that is forgotten or counted twice. Oracle: the tensors; norms and biases apart."""
    import torch

    folder = random_llama(tmp_path, num_key_value_heads=1, head_dim=24)

    class NoAttention:
        name = "torch"

    model = load_model(folder, NoAttention(), torch.float32, "cpu")
    matrices = {name: each.numel() for name, each in model.named_parameters() if each.dim() == 2}
    expected = sum(matrices.values()) - matrices["model.embed_tokens"]  # looked up, not multiplied with
    assert matrix_elements(model.config) == expected
    assert matrix_elements(ModelConfig(49_152, 576, 1536, 30, 9, 3, 64)) == 134_479_872


@pytest.mark.parametrize(
    ("model", "billions"), [("Llama-3.2-1B", 1.24), ("Llama-3.1-8B", 8.03), ("Llama-3.1-70B", 70.6)]
)
def test_the_shapes_are_those_of_llama(model, billions):
    """Would catch a digit turned around in a shape: the model cards' numbers of parameters, to 1%."""
    config = MODELS[model]
    embedding = config.vocab_size * config.hidden_size * (not config.tie_word_embeddings)
    assert matrix_elements(config) + embedding == pytest.approx(billions * 1e9, rel=0.01)


def test_a_ring_by_hand():
    """Would catch 2 (p - 1) / p upside down: 8 GPUs, 450 GB/s, LL for 8 KB and Simple for 128 MB."""
    assert all_reduce_seconds(8192, 8, 450e9) == pytest.approx(6.6e-6 + 14 * 0.6e-6 + 1.75 * 8192 / 225e9)
    assert all_reduce_seconds(2**27, 8, 450e9) == pytest.approx(8.4e-6 + 14 * 3.4e-6 + 1.75 * 2**27 / 450e9)
    assert gather_seconds(8192, 8, 450e9) == pytest.approx(6.6e-6 + 7 * 0.6e-6 + 0.875 * 8192 / 225e9)
    assert all_reduce_seconds(8192, 1, 450e9) == gather_seconds(8192, 1, 450e9) == 0.0


def test_a_step_on_one_gpu_is_the_roofline_and_more_gpus_share_it():
    """Would catch a weight read once per sequence, and products that do not shrink."""
    config = MODELS["Llama-3.1-8B"]
    one = step_time(config, H100, 1, 1, 0)
    assert one.communication == 0.0 and one.fits
    assert one.products == pytest.approx(2 * matrix_elements(config) / 3.35e12)
    assert step_time(config, H100, 1, 4096, 0).products == pytest.approx(
        2 * 4096 * matrix_elements(config) / 989e12
    )
    assert step_time(config, H100, 4, 1, 0).products == pytest.approx(one.products / 4)
    assert not step_time(MODELS["Llama-3.1-70B"], H100, 1, 1, 0).fits


def test_where_it_stops_paying():
    """Would catch a comparison with one GPU in place of half as many."""
    times = {1: StepTime(8.0, 0, True), 2: StepTime(4.0, 1.0, True), 4: StepTime(2.0, 2.6, True)}
    assert where_it_stops(times) == 4
    assert where_it_stops({1: times[1], 2: times[2]}) is None
    rows = {(row["model"], row["gpu"], row["num_seqs"]): row for row in plan_rows()}
    assert rows["Llama-3.2-1B", "H100", 1]["stops_at"] == 8
    assert rows["Llama-3.1-70B", "H100", 1]["stops_at"] is None


def test_the_command_measures_two_real_workers(tmp_path, capsys):
    """Would catch bytes that are not those of the formula (the report asserts it), and a report without JSON."""
    folder = random_llama(tmp_path / "model")
    path, plot = tmp_path / "parallel.json", tmp_path / "parallel.png"
    arguments = [
        "--model",
        str(folder),
        "--sizes",
        "2",
        "--batch-size",
        "3",
        "--num-steps",
        "2",
        "--rounds",
        "1",
    ]
    assert bench.main(["parallel", *arguments, "--output-json", str(path), "--plot", str(plot)]) == 0
    result = json.loads(path.read_text())
    measured = result["measured"]["2"]
    assert measured["sum_bytes_measured"] == measured["sum_bytes_by_arithmetic"] > 0
    # a decode step: 5 sums of 3 x 64 numbers
    assert measured["sum_bytes_of_a_step"] == 5 * 3 * 64 * 4 and measured["sums_of_a_step"] == 5
    assert len(measured["memory"]) == 2 and min(measured["resident_bytes"]) > 1 << 20
    assert measured["plan_bytes_of_a_step"] > 0
    printed = capsys.readouterr().out
    assert "Measured here: a decode step of 3 sequences" in printed and "Llama-3.1-70B" in printed
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_figure_shows_what_the_loader_reads():
    """Would catch a drawing of rows where columns are read. The parts tile the weight: no gap, no overlap."""
    shapes = {"self_attn.q_proj.weight": (12, 8), "mlp.down_proj.weight": (8, 24)}
    fig = shards_figure(shapes, 2)
    for ax, (rows, columns), cut in zip(fig.axes, shapes.values(), ("rows", "columns"), strict=True):
        boxes = [patch for patch in ax.patches if (patch.get_gid() or "").startswith("rank")]
        assert sum(box.get_width() * box.get_height() for box in boxes) == rows * columns
        assert {(box.get_width() == columns, box.get_height() == rows) for box in boxes} == {
            (cut == "rows", cut == "columns")
        }
        assert len({box.get_xy() for box in boxes}) == 2
    with pytest.raises(ValueError, match="at least one weight"):
        shards_figure({}, 2)


def test_the_bars_are_the_numbers():
    """Would catch communication drawn over products in place of on top of them."""
    rows = plan_rows((1,))
    fig = step_time_figure(rows)
    heights = [bar.get_y() + bar.get_height() for ax in fig.axes for bar in ax.patches]
    for row in rows:
        for cell in row["sizes"]:
            assert any(height == pytest.approx(cell["total"] * 1e3) for height in heights)
