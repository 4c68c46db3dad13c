"""Measure the memory and the time of a search step by the bits of the frozen weights, a process for each case.

    python benchmarks/small_memory.py                    # an encoder of 12 layers, a decoder of 16, random weights

Peak is the most resident memory from the second search step on, with an upper step each (K = 1): the weights are loaded
by then. All linear layers are adapted, rank 16. LoRA is PEFT's, in transformers' Trainer, without the search.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from tables import printed
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BitsAndBytesConfig,
    LlamaConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from peft_bidora import AdapterOptions, BiDoRAArguments, BiDoRATrainer, attach_adapter, head_modules
from peft_bidora.adapter.held import hold_in_bfloat16, leave_file, round_to_bfloat16
from peft_bidora.recipe.outlook import UPPER_PASSES, memory_bytes
from peft_bidora.recipe.schema import Recipe
from peft_bidora.tasks.base_model import skeleton

RESULTS = Path(__file__).parent / "results"
MIB, STEPS = 2**20, 3
CONFIGS: dict[str, Any] = {
    "encoder": BertConfig(num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072),
    "decoder": LlamaConfig(
        vocab_size=8192,
        num_hidden_layers=16,
        hidden_size=1024,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=2816,
    ),
}
BATCH = {"encoder": (4, 128), "decoder": (1, 256)}  # rows, tokens
# Of the frozen weights, the passes, and whether activations are computed again.
CASES = {
    "float32": (32, False, False),
    "float32, checkpointed": (32, False, True),
    "bfloat16": (32, True, False),
    "bfloat16, checkpointed": (32, True, True),
    "16 bits, bfloat16": (16, True, False),
    "16 bits, bfloat16, checkpointed": (16, True, True),
    "8 bits, bfloat16": (8, True, False),
    "8 bits, bfloat16, checkpointed": (8, True, True),
    "4 bits, bfloat16": (4, True, False),
    "4 bits, bfloat16, checkpointed": (4, True, True),
}


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Take seconds and peak memory of the search steps from the second on, or of a baseline's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds, self.peak = folder, list[float](), 0
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if Path(args.output_dir).name != "retrain" and state.global_step == 1:
            forget_peak()
        self._start = perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if Path(args.output_dir).name != "retrain" and state.global_step > 1:
            self.seconds.append(perf_counter() - self._start)
            self.peak = resident_bytes("VmHWM")


def main() -> None:
    """Measure all cases, print them and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--case", nargs=4, metavar=("MODEL", "METHOD", "CASE", "FOLDER"), help="print JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.case:
        print(json.dumps(measured(*options.case)))
        return
    found: dict[str, dict[str, Any]] = {}
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            auto_class(model).from_config(CONFIGS[model]).save_pretrained(folder)
            for method, case in [("lora", "float32"), ("lora", "bfloat16"), *(("bidora", case) for case in CASES)]:
                found[f"{model}, {method}, {case}"] = in_a_process([model, method, case, folder], options.threads)
                print(model, method, case, found[f"{model}, {method}, {case}"], flush=True)
    settings = {"threads": options.threads, "batch": BATCH, "torch": torch.__version__}
    RESULTS.joinpath("small-memory-cpu.json").write_text(
        json.dumps({"settings": settings, "cases": found}, indent=2) + "\n"
    )


def in_a_process(case: list[str], threads: int) -> dict[str, float]:
    """Return what a process of its own measures."""
    found: dict[str, float] = printed([__file__, "--threads", str(threads), "--case", *case])
    return found


def measured(model_name: str, method: str, case: str, source: str) -> dict[str, float]:
    """Return peak memory in MiB and seconds of a step, and what the formulae of docs/scale.md say of both.

    Returns:
        `peak_mib` and `seconds`; `libraries_mib`, what the process held before it loaded weights; `told_mib`, that with
        weights, trained parameters and activations as `peft-bidora check` counts them; `gflop`, of a step.
    """
    libraries = resident_bytes("VmRSS")
    bits, bfloat16, checkpointed = CASES[case]
    compute = torch.bfloat16 if bfloat16 else torch.float32
    packed = {
        8: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["classifier", "lm_head"]),
        4: BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=["classifier", "lm_head"],
        ),
    }.get(bits)
    model = auto_class(model_name).from_pretrained(source, dtype=torch.float32, quantization_config=packed)
    if bits == 16:
        round_to_bfloat16(model)
    elif bits < 16:
        leave_file(model)
    head, kind = head_modules(model), "SEQ_CLS" if model_name == "encoder" else "CAUSAL_LM"
    options = AdapterOptions(16, 32, 0.0, "all-linear")
    model = attach_adapter(model, options, use_dora=method != "lora", task_type=kind, head=head)
    if bits == 16:
        hold_in_bfloat16(model)
    batch, tokens = BATCH[model_name]
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for ids in torch.randint(5, 8000, (8 * batch, tokens), generator=generator).tolist():
        rows.append({"input_ids": ids, "labels": ids if model_name == "decoder" else ids[0] % 2})
    with tempfile.TemporaryDirectory() as folder:
        shared: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": STEPS,
            "per_device_train_batch_size": batch,
            "bf16": bfloat16,
            "activation_checkpointing": checkpointed,
            "activation_checkpointing_kwargs": {"use_reentrant": False} if checkpointed else None,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        watch = Watch(Path(folder))
        trainer: Any
        if method == "lora":
            trainer = Trainer(model, TrainingArguments(**shared), train_dataset=rows)
        else:
            args = BiDoRAArguments(**shared, lower_steps=1, retrain_max_steps=1)
            half = len(rows) // 2
            trainer = BiDoRATrainer(model, args, train_dataset=rows[:half], upper_dataset=rows[half:])
        trainer.add_callback(watch)
        trainer.train()
    return {
        "peak_mib": round(watch.peak / MIB),
        "seconds": round(median(watch.seconds), 2),
        "libraries_mib": round(libraries / MIB),
        "told_mib": round((libraries + told_bytes(model_name, trained, case)) / MIB),
        "gflop": round(told_flop(model_name, method, case) / 1e9),
    }


def told_bytes(model_name: str, trained: int, case: str) -> float:
    """Return the bytes of weights, trained parameters and activations, as `check` counts them."""
    (bits, bfloat16, checkpointed), (rows, tokens) = CASES[case], BATCH[model_name]
    base = skeleton(CONFIGS[model_name], auto_class(model_name))
    recipe = Recipe.model_validate(
        {
            **dict.fromkeys(("model", "output"), "."),
            "data": {"train": "."},
            **{phase: {"batch_size": rows} for phase in ("search", "retrain")},
            "precision": "bfloat16" if bfloat16 else "float32",
            "base_dtype": "bfloat16" if bits == 16 else None,
            "quantization": f"{bits}bit" if bits < 16 else None,
            "activation_checkpointing": checkpointed,
        }
    )
    return memory_bytes(recipe, base, trained + sum(each.numel() for each in base.parameters()), trained, tokens)


def told_flop(model_name: str, method: str, case: str) -> float:
    """Return the operations of a step by the formula: its passes · (4 or, computed twice, 6) · numbers · tokens."""
    (_, bfloat16, checkpointed), (rows, tokens) = CASES[case], BATCH[model_name]
    base = skeleton(CONFIGS[model_name], auto_class(model_name))
    looked_up = {module.weight for module in base.modules() if isinstance(module, nn.Embedding)}
    numbers = sum(each.numel() for each in base.parameters() if each not in looked_up)
    passes = 1 + UPPER_PASSES["finite-difference" if bfloat16 else "one-sided"] if method == "bidora" else 1
    return passes * (6 if checkpointed else 4) * numbers * rows * tokens


def auto_class(model: str) -> Any:
    """Return the class of a model with its head."""
    return AutoModelForSequenceClassification if model == "encoder" else AutoModelForCausalLM


def forget_peak() -> None:
    """Let Linux count the most resident memory of this process from here."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_bytes(name: str) -> int:
    """Return a figure of /proc/self/status: VmRSS, RssAnon of no file, or VmHWM, the most since `forget_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
