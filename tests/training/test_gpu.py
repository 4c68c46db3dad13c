"""Search steps on a GPU find what they find on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from peft_bidora import AdapterOptions, BiDoRAArguments, BiDoRATrainer, attach_adapter

# How far the figures that are logged, and the way that the magnitudes went, may differ, of their own size: products
# sum in another order, bfloat16 has 8 bits, and Adam turns noise in a small gradient into a step.
TOLERANCES = {"float32": (1e-3, 0.05), "bfloat16": (0.05, 0.2), "nf4": (0.02, 0.2)}


def searched(source: Path, output: Path, kind: str, device: str) -> tuple[dict[str, float], Tensor]:
    """Return what two search steps log, and how far each magnitude went."""
    torch.manual_seed(0)
    packed = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = LlamaForCausalLM.from_pretrained(
        source,
        dtype=torch.float32,
        quantization_config=packed if kind == "nf4" else None,
        device_map={"": device} if kind == "nf4" else None,
    )
    model = attach_adapter(base, AdapterOptions(rank=4, alpha=8), use_dora=True, task_type="CAUSAL_LM")
    generator = torch.Generator().manual_seed(1)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(5, 256, (16, 12), generator=generator).tolist()]
    args = BiDoRAArguments(
        output_dir=str(output),
        max_steps=2,
        retrain_max_steps=1,
        lower_steps=1,
        per_device_train_batch_size=4,
        logging_steps=2,
        bf16=kind == "bfloat16",
        use_cpu=device == "cpu",
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = BiDoRATrainer(model, args, train_dataset=rows[:8], upper_dataset=rows[8:])
    before = magnitudes(trainer)
    trainer.train()
    logged = next(entry for entry in trainer.log_history if entry["phase"] == "search" and "upper_loss" in entry)
    told = {name: logged[name] for name in ("loss", "upper_loss", "hypergradient_norm")}
    return told, magnitudes(trainer) - before


def magnitudes(trainer: Any) -> Tensor:
    return torch.cat([each.detach().cpu().clone() for each in trainer.levels.magnitude.values()])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", TOLERANCES)
def test_two_search_steps_on_a_gpu_find_what_they_find_on_the_cpu(kind: str, source: Path, tmp_path: Path) -> None:
    of_figures, of_way = TOLERANCES[kind]
    told, way = searched(source, tmp_path / "cpu", kind, "cpu")
    told_on_gpu, way_on_gpu = searched(source, tmp_path / "gpu", kind, "cuda")
    assert told_on_gpu == pytest.approx(told, rel=of_figures)
    assert way.norm() > 0
    assert (way_on_gpu - way).norm() < of_way * way.norm()
