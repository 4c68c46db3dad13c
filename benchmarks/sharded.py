"""Measure what a process holds when the frozen weights are divided over 1, 2 and 4 of them (FSDP2).

    python benchmarks/sharded.py              # a decoder of 16 layers, random weights, gloo, a thread a process

Loading: the most resident memory from before the file is read until the weights are divided, and what is held then, of
it what no file backs (RssAnon). Steps: the most resident memory of the second search step, with an upper step (K = 1),
what is held after it, seconds, and the weights that are gathered. All linear layers are adapted, rank 16; each process
has one row. Figures are of the process that has most. "Blocks mapped" is glibc with MALLOC_MMAP_THRESHOLD_=65536, which
keeps no gaps between blocks: what is in use.
"""

import argparse
import gc
import json
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from small_memory import CONFIGS, MIB, Watch, forget_peak, resident_bytes
from tables import printed
from torch import distributed as dist
from torch.distributed import _functional_collectives as functional
from transformers import AutoModelForCausalLM

from peft_bidora import AdapterOptions, BiDoRAArguments, BiDoRATrainer, attach_adapter, shard_base
from peft_bidora.adapter.held import hold_in_bfloat16, round_to_bfloat16
from peft_bidora.quiet import quiet_libraries
from peft_bidora.training import ranks

RESULTS = Path(__file__).parent / "results"
MODEL = "decoder"
# What the file holds, and whether linear layers are held in bfloat16 too.
STORED = {
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "bfloat16, held in it": (torch.bfloat16, True),
}
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
# Whether linear layers are held and passes are computed in bfloat16, whether activations are computed again, and what
# the C library is told: to give each freed block back at once.
PASSES: dict[str, tuple[bool, bool, dict[str, str]]] = {
    "float32": (False, False, {}),
    "float32, blocks mapped": (False, False, MAPPED),
    "float32, checkpointed, blocks mapped": (False, True, MAPPED),
    "bfloat16, checkpointed, blocks mapped": (True, True, MAPPED),
}


class Gathered:
    """The bytes of whole weights that collectives put together since it was last asked."""

    def __init__(self) -> None:
        self._bytes = 0
        for module, names in ((dist, ("single", "into_tensor")), (functional, ("single", "tensor"))):
            # Later releases of torch have renamed both.
            name = next(f"all_gather_{each}" for each in names if hasattr(module, f"all_gather_{each}"))
            setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, gather: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            result = gather(*arguments, **options)
            # One writes into its first argument, the other returns the whole.
            whole = result if isinstance(result, torch.Tensor) else arguments[0]
            self._bytes += whole.numel() * whole.element_size()
            return result

        return counted

    def taken(self) -> int:
        """Return the bytes, and begin anew."""
        found, self._bytes = self._bytes, 0
        return found


class GatheringWatch(Watch):
    """A Watch that keeps the bytes gathered in a step, and what is held after it, too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gathered, self.counts, self.held = Gathered(), list[int](), 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.gathered.taken()
        super().on_step_begin(args, state, control, **more)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        super().on_step_end(args, state, control, **more)
        if Path(args.output_dir).name != "retrain":
            self.counts.append(self.gathered.taken())
            self.held = resident_bytes("RssAnon")


def main() -> None:
    """Measure all cases, print them and write the JSON; as a process of a case, measure alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--source", help=argparse.SUPPRESS)  # of the weights, for a process of a case
    parser.add_argument("--passes", choices=PASSES, help=argparse.SUPPRESS)
    parser.add_argument("--half", action="store_true", help=argparse.SUPPRESS)  # whether bfloat16 is held
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # of all processes
    options = parser.parse_args()
    quiet_libraries()
    if options.source:
        torch.set_num_threads(1)
        ranks.join()
        found = stepped(options) if options.passes else loaded(options.source, options.half)[1]
        if (most := of_the_most(found)) is not None:
            print(json.dumps(most), flush=True)
        ranks.leave()
        return
    loading, steps = dict[str, Any](), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[MODEL])
        numbers = sum(each.numel() for each in model.parameters())
        for dtype in (torch.float32, torch.bfloat16):
            model.to(dtype).save_pretrained(f"{folder}/{dtype}")
        del model
        for processes in options.processes:
            for stored in STORED:
                name = f"{processes}, {stored}"
                dtype, half = STORED[stored]
                loading[name] = run(processes, options.tokens, f"{folder}/{dtype}", half=half)
                print("loading", name, loading[name], flush=True)
            for passes in PASSES:
                name = f"{processes}, {passes}"
                steps[name] = run(processes, options.tokens, f"{folder}/{torch.float32}", passes)
                print("steps", name, steps[name], flush=True)
    settings = {
        "processes": options.processes,
        "tokens": options.tokens,
        "threads": 1,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "frozen_mib": round(4 * numbers / MIB, 1),
    }
    RESULTS.joinpath("sharded-cpu.json").write_text(
        json.dumps({"settings": settings, "loading": loading, "steps": steps}, indent=1) + "\n"
    )


def run(processes: int, tokens: int, source: str, passes: str | None = None, *, half: bool = False) -> dict[str, float]:
    """Return what processes measure: of loading, or of search steps."""
    # One process without torchrun: under it its weights leave the file that they were mapped from.
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    own = ["--tokens", str(tokens), "--source", source, *(["--passes", passes] if passes else [])]
    own += ["--half"] if half or (passes and PASSES[passes][0]) else []
    with tempfile.TemporaryDirectory() as folder:
        told = PASSES[passes][2] if passes else {}
        found: dict[str, float] = printed(
            [*launcher, __file__, *own, "--folder", folder], **{"OMP_NUM_THREADS": "1", **told}
        )
    return found


def loaded(source: str, half: bool) -> tuple[Any, dict[str, float]]:
    """Return the adapted model, its frozen weights divided, and MiB: before, the peak, and what is held after."""
    torch.manual_seed(0)  # the adapter has to be the same on all
    before, anonymous_before = resident_bytes("VmRSS"), resident_bytes("RssAnon")
    forget_peak()
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if half:
        round_to_bfloat16(base)
    model = attach_adapter(base, AdapterOptions(16, 32, 0.0, "all-linear"), use_dora=True, task_type="CAUSAL_LM")
    if half:
        hold_in_bfloat16(model)
    shard_base(model)
    gc.collect()
    found = {
        "before": before,
        "peak": resident_bytes("VmHWM"),
        "resident": resident_bytes("VmRSS"),
        "anonymous": resident_bytes("RssAnon"),
        "anonymous_before": anonymous_before,
    }
    return model, {f"{name}_mib": round(value / MIB) for name, value in found.items()}


def stepped(options: argparse.Namespace) -> dict[str, float]:
    """Return of search steps the peak and what is held after one, in MiB, seconds, and MiB gathered in one."""
    half, checkpointed, _ = PASSES[options.passes]
    model, _ = loaded(options.source, half)
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": ids, "labels": ids}
        for ids in torch.randint(5, 8000, (8 * ranks.count(), options.tokens), generator=generator).tolist()
    ]
    middle = len(rows) // 2
    args = BiDoRAArguments(
        output_dir=options.folder,
        max_steps=2,
        retrain_max_steps=1,
        lower_steps=1,
        per_device_train_batch_size=1,
        bf16=half,
        activation_checkpointing=checkpointed,
        activation_checkpointing_kwargs={"use_reentrant": False} if checkpointed else None,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    watch = GatheringWatch(Path(options.folder))
    trainer = BiDoRATrainer(model, args, train_dataset=rows[:middle], upper_dataset=rows[middle:])
    trainer.add_callback(watch)
    trainer.train()
    return {
        "peak_mib": round(watch.peak / MIB),
        "held_mib": round(watch.held / MIB),
        "seconds": round(median(watch.seconds), 2),
        "gathered_mib": round(watch.counts[-1] / MIB),
    }


def of_the_most(found: dict[str, float]) -> dict[str, float] | None:
    """Return the most of each figure over the processes, on the first of them."""
    each: list[Any] = [found]
    if ranks.count() > 1:
        each = [None] * ranks.count()
        dist.all_gather_object(each, found)
    return {name: max(own[name] for own in each) for name in found} if ranks.rank() == 0 else None


if __name__ == "__main__":
    main()
