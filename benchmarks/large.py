"""Measure search steps over a large model of 4-bit weights beside PEFT's LoRA and DoRA.

    python benchmarks/large.py                           # 7 · 10⁹ parameters of Llama's shape, random, on a GPU
    python benchmarks/large.py --size tiny --device cpu  # the same code in seconds

Weights are drawn on the device in bfloat16 and packed there, a layer at a time (NF4); embeddings, norms and the output
are float32. Passes are bfloat16 with activation checkpointing. A round runs each method once, in a process of its own;
figures are medians over rounds, ratios those of the medians. Peak is the largest allocation on a GPU, the most resident
memory on a CPU, once warmed up; seconds of a step are the mean of four, so that each has an upper step at any K, and
the median of such means.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import bitsandbytes
import peft
import torch
import transformers
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from small_memory import MIB, RESULTS, forget_peak, resident_bytes
from tables import printed
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from peft_bidora import AdapterOptions, BiDoRAArguments, BiDoRATrainer, attach_adapter
from peft_bidora.quiet import quiet_libraries

SIZES: dict[str, dict[str, int]] = {
    "7b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 256,
    },
}
TOKENS = {"7b": 1024, "tiny": 32}  # of a row
METHODS = {"lora": 0, "dora": 0, "bidora-1": 1, "bidora-4": 4}  # lower steps an upper step; LoRA and DoRA are PEFT's
WINDOW = 4  # steps whose mean is taken, and that warm up
STD = 0.02  # of random weights


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Take the seconds of each window of steps after the first, and the peak memory since."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds, self.peak = device, list[float](), 0
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % WINDOW or Path(args.output_dir).name == "retrain":
            return
        if state.global_step == WINDOW:
            forget(self.device)
        self._start = moment(self.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % WINDOW or state.global_step == WINDOW or Path(args.output_dir).name == "retrain":
            return
        self.seconds.append((moment(self.device) - self._start) / WINDOW)
        self.peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else resident_bytes("VmHWM")


def main() -> None:
    """Measure all methods, print a table and write the JSON; with `--case`, measure one in this process."""
    options = options_of(sys.argv[1:])
    quiet_libraries()
    if options.case:
        print(json.dumps(measured(options, options.case)))
        return
    rounds = []
    for number in range(options.rounds):
        rounds.append({method: in_a_process(method) for method in options.methods})
        print(f"round {number + 1}:", rounds[-1], flush=True)
    cases = {method: summed(rounds, method) for method in options.methods}
    for method, found in cases.items():
        print(f"{method:10}", ", ".join(f"{name} {value}" for name, value in found.items()))
    settings = {
        **{name: value for name, value in vars(options).items() if name not in ("case", "output")},
        "config": SIZES[options.size],
        "device_name": torch.cuda.get_device_name() if options.device == "cuda" else "CPU",
        **{each.__name__: each.__version__ for each in (torch, transformers, peft, bitsandbytes)},
    }
    output = options.output or RESULTS / f"large-{'gpu' if options.device == 'cuda' else 'cpu'}.json"
    Path(output).write_text(json.dumps({"settings": settings, "cases": cases, "rounds": rounds}, indent=1) + "\n")


def options_of(words: list[str]) -> argparse.Namespace:
    """Return what a command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"], help="endings of names, or all-linear")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, help="in place of those of the size")
    parser.add_argument("--tokens", type=int, help="of a row, in place of those of the size")
    parser.add_argument("--batch", type=int, default=1, help="rows")
    parser.add_argument("--steps", type=int, default=20, help=f"of a round; the first {WINDOW} warm up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="of the JSON, in place of results/large-gpu.json or large-cpu.json")
    parser.add_argument("--case", choices=METHODS, help="measure this method in this process, and print JSON")
    options = parser.parse_args(words)
    if options.steps % WINDOW or options.steps < 2 * WINDOW:
        parser.error(f"--steps: expected a multiple of {WINDOW} from {2 * WINDOW} on, got {options.steps}")
    options.tokens = options.tokens or TOKENS[options.size]
    return options


def in_a_process(method: str) -> dict[str, float]:
    """Return what a process of its own measures, with the options of this one."""
    found: dict[str, float] = printed([__file__, *sys.argv[1:], "--case", method])
    return found


def measured(options: argparse.Namespace, method: str) -> dict[str, float]:
    """Return MiB of the loaded model and of the peak, and seconds of a step."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES[options.size], max_position_embeddings=max(2048, options.tokens))
    if options.kv_heads:
        config.num_key_value_heads = options.kv_heads
    model = packed_model(config, options.device)
    held = torch.cuda.memory_allocated() if options.device == "cuda" else resident_bytes("VmRSS")
    trained = adapted(model, options, method)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(5, config.vocab_size, (8 * options.batch, options.tokens), generator=generator).tolist()
    rows, half = [{"input_ids": ids, "labels": ids} for ids in drawn], 4 * options.batch
    watch, trainer = Watch(options.device), None
    with tempfile.TemporaryDirectory() as folder:
        shared: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": options.steps,
            "per_device_train_batch_size": options.batch,
            "bf16": True,
            "activation_checkpointing": True,
            "activation_checkpointing_kwargs": {"use_reentrant": False},
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": options.device == "cpu",
            "dataloader_pin_memory": False,
        }
        if not METHODS[method]:
            trainer = Trainer(trained, TrainingArguments(**shared), train_dataset=rows)
        else:
            args = BiDoRAArguments(**shared, lower_steps=METHODS[method], retrain_max_steps=1)
            trainer = BiDoRATrainer(trained, args, train_dataset=rows[:half], upper_dataset=rows[half:])
        trainer.add_callback(watch)
        trainer.train()
    return {
        "loaded_mib": round(held / MIB),
        "peak_mib": round(watch.peak / MIB),
        "seconds": round(median(watch.seconds), 4),
    }


def packed_model(config: LlamaConfig, device: str) -> LlamaForCausalLM:
    """Return a model with random weights, its linear layers but the output packed; one is whole at a time."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not model.lm_head:
            model.set_submodule(name, packed_layer(module.in_features, module.out_features, device))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                values = torch.empty(parameter.shape, device=device)
                filled = values.normal_(std=STD) if parameter.ndim > 1 else values.fill_(1.0)
                setattr(module, name, nn.Parameter(filled, requires_grad=False))
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)  # it has buffers alone
    model.is_loaded_in_4bit = True  # by which PEFT knows
    return model


def packed_layer(in_features: int, out_features: int, device: str) -> Linear4bit:
    """Return a linear layer without bias, its random weights in NF4."""
    layer = Linear4bit(
        in_features,
        out_features,
        bias=False,
        compute_dtype=torch.bfloat16,
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    drawn = torch.empty(out_features, in_features, dtype=torch.bfloat16, device=device).normal_(std=STD)
    layer.weight = Params4bit(drawn, compress_statistics=False, quant_type="nf4", module=layer).to(device)
    return layer


def adapted(model: nn.Module, options: argparse.Namespace, method: str) -> Any:
    """Return the model with the adapter of a method: PEFT's own, or this package's."""
    targets = "all-linear" if options.targets == ["all-linear"] else options.targets
    if METHODS[method]:
        shape = AdapterOptions(options.rank, 2 * options.rank, 0.0, targets)
        return attach_adapter(model, shape, use_dora=True, task_type="CAUSAL_LM")
    config = LoraConfig(
        r=options.rank,
        lora_alpha=2 * options.rank,
        target_modules=targets,
        use_dora=method == "dora",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def summed(rounds: list[dict[str, dict[str, float]]], method: str) -> dict[str, float]:
    """Return the medians over rounds, and what they are to those of LoRA where it was measured."""
    found = {name: median(each[method][name] for each in rounds) for name in rounds[0][method]}
    if "lora" in rounds[0]:
        for name in ("peak_mib", "seconds"):
            to = found[name] / median(each["lora"][name] for each in rounds)
            found[f"{name.removesuffix('_mib')}_to_lora"] = round(to, 3)
    return found


def forget(device: str) -> None:
    """Count the most memory from here."""
    torch.cuda.reset_peak_memory_stats() if device == "cuda" else forget_peak()


def moment(device: str) -> float:
    """Return the time at which the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter()


if __name__ == "__main__":
    main()
