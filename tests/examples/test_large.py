"""The benchmark of a large model runs in a tiny size on the CPU, by the same code."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora.bnb import Linear4bit as PackedLoraLayer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # it imports a neighbour
    spec = importlib.util.spec_from_file_location("large", BENCHMARKS / "large.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_linear_layers_but_the_output_are_packed_and_nothing_is_left_without_values(large: ModuleType) -> None:
    torch.manual_seed(0)
    config = large.LlamaConfig(**large.SIZES["tiny"])
    model = large.packed_model(config, "cpu")

    packed = [module for module in model.modules() if isinstance(module, large.Linear4bit)]
    assert len(packed) == 7 * config.num_hidden_layers
    assert model.lm_head not in packed
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    weight = packed[0].weight
    spread = dequantize_4bit(weight.data, weight.quant_state).float().std().item()
    assert spread == pytest.approx(large.STD, rel=0.1)  # 4,096 draws, rounded to 16 levels
    assert bool(model(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all())


@pytest.mark.parametrize("method", ["lora", "dora", "bidora-1"])
def test_adapter_of_each_method_is_over_packed_weights(large: ModuleType, method: str) -> None:
    options = large.options_of(["--size", "tiny", "--device", "cpu", "--targets", "all-linear"])
    model = large.adapted(large.packed_model(large.LlamaConfig(**large.SIZES["tiny"]), "cpu"), options, method)
    layers = [module for module in model.modules() if isinstance(module, PackedLoraLayer)]
    assert len(layers) == 14
    assert all(bool(layer.lora_variant) == (method != "lora") for layer in layers)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/clear_refs is Linux's")
def test_search_steps_are_measured_after_those_that_warm_up(large: ModuleType) -> None:
    options = large.options_of(["--size", "tiny", "--device", "cpu", "--steps", "8"])
    found = large.measured(options, "bidora-4")
    assert all(value > 0 for value in found.values())
    rounds = [{"lora": {"peak_mib": 10, "seconds": 2.0}, "dora": {"peak_mib": 15, "seconds": 3.0}}]
    assert large.summed(rounds, "dora") == {"peak_mib": 15, "seconds": 3.0, "peak_to_lora": 1.5, "seconds_to_lora": 1.5}


def test_steps_that_leave_no_window_to_measure_are_refused(large: ModuleType, capsys) -> None:
    with pytest.raises(SystemExit):
        large.options_of(["--steps", "4"])
    assert "--steps: expected a multiple of 4 from 8 on, got 4" in capsys.readouterr().err
