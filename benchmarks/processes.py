"""Measure the steps of two processes against those of one, and where what is lost goes.

    python benchmarks/processes.py            # an encoder of MiniLM's shape, random weights, a thread a process

One process takes the whole batch, two take half of it each, and one takes half of it alone: that is what a rank
computes, so that what two take beyond it is the price of the second: talk, waiting, and the memory that both cores
share. A round starts all of them anew, one after the other; ratios are medians over rounds. Beside the time of a step
stands that spent in `all_reduce`, waiting for the slower rank included, with the calls and the bytes of a step.
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
from torch import distributed as dist
from transformers import AutoModelForSequenceClassification, BertConfig, TrainerCallback

from peft_bidora import AdapterOptions, BiDoRAArguments, BiDoRATrainer, attach_adapter, head_modules
from peft_bidora.quiet import quiet_libraries
from peft_bidora.training import ranks

RESULTS = Path(__file__).parent / "results"
STEPS, WARM_UP = 14, 4
CASES = {"one": (1, 1.0), "half alone": (1, 0.5), "two": (2, 0.5)}  # processes, share of the batch of each


class Talk:
    """What `all_reduce` took since it was last asked."""

    def __init__(self) -> None:
        self._reduce = dist.all_reduce
        self._seconds, self._calls, self._bytes = 0.0, 0, 0
        dist.all_reduce = self._timed

    def _timed(self, tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        start = perf_counter()
        result = self._reduce(tensor, *arguments, **options)
        self._seconds += perf_counter() - start
        self._calls += 1
        self._bytes += tensor.nbytes
        return result

    def taken(self) -> dict[str, float]:
        """Return seconds, calls and bytes, and begin anew."""
        found = {"talk": self._seconds, "calls": self._calls, "bytes": self._bytes}
        self._seconds, self._calls, self._bytes = 0.0, 0, 0
        return found


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Keep the seconds of each step of both phases, those of warming up apart, and what of them was talk."""

    def __init__(self, talk: Talk) -> None:
        self.talk, self.steps = talk, {"search": list[dict[str, float]](), "retrain": list[dict[str, float]]()}
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.talk.taken()
        self._start = perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = perf_counter() - self._start
        if state.global_step > WARM_UP:
            self.steps[Path(args.output_dir).name].append({"seconds": seconds, **self.talk.taken()})


def main() -> None:
    """Measure, print and write the JSON; as a process of a case, measure alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16, help="of a batch of all processes")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)  # rows of this process
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # of all processes
    options = parser.parse_args()
    quiet_libraries()
    if options.case:
        measured(options.case, options.tokens, options.folder)
        return
    rounds = []
    for _ in range(options.rounds):
        rounds.append({name: run(name, options) for name in CASES})
        print({name: round(1000 * found["search"]["seconds"]) for name, found in rounds[-1].items()}, flush=True)
    summary = {phase: summed(rounds, phase, options.rows) for phase in ("search", "retrain")}
    print(json.dumps(summary, indent=1))
    settings = {**vars(options), "threads": 1, "torch": torch.__version__}
    RESULTS.joinpath("processes-cpu.json").write_text(
        json.dumps({"settings": settings, "summary": summary, "rounds": rounds}, indent=1) + "\n"
    )


def run(name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the median step of each phase, as the first process of a case measured it."""
    processes, share = CASES[name]
    own = ["--case", str(round(options.rows * share)), "--tokens", str(options.tokens)]
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", __file__]
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, dict[str, float]] = printed([*command, *own, "--folder", folder], OMP_NUM_THREADS="1")
    return found


def measured(rows: int, tokens: int, folder: str) -> None:
    """Train a few steps of both phases on this process's rows; the first rank prints what they took."""
    torch.set_num_threads(1)
    ranks.join()
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=8192
    )
    base = AutoModelForSequenceClassification.from_config(config)
    options = AdapterOptions(8, 16, 0.0, ["query", "value"])
    model = attach_adapter(base, options, use_dora=True, task_type="SEQ_CLS", head=head_modules(base))
    drawn = torch.randint(5, 8000, (8 * rows * ranks.count(), tokens), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": ids, "labels": ids[0] % 2} for ids in drawn.tolist()]
    half = len(data) // 2
    args = BiDoRAArguments(
        output_dir=folder,
        max_steps=STEPS,
        retrain_max_steps=STEPS,
        lower_steps=1,
        per_device_train_batch_size=rows,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    watch = Watch(Talk())
    trainer = BiDoRATrainer(model, args, train_dataset=data[:half], upper_dataset=data[half:])
    trainer.add_callback(watch)
    trainer.train()
    if ranks.rank() == 0:
        print(json.dumps({phase: medians(steps) for phase, steps in watch.steps.items()}), flush=True)
    ranks.leave()


def medians(steps: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure over steps."""
    return {key: median(step[key] for step in steps) for key in steps[0]}


def summed(rounds: list[dict[str, Any]], phase: str, rows: int) -> dict[str, Any]:
    """Return seconds by case, throughput over that of one process, and the parts of a step of two."""
    seconds = {name: [each[name][phase]["seconds"] for each in rounds] for name in CASES}
    gain = [one / two for one, two in zip(seconds["one"], seconds["two"], strict=True)]
    beyond = [two - half for half, two in zip(seconds["half alone"], seconds["two"], strict=True)]
    return {
        "milliseconds": {name: round(1000 * median(own), 1) for name, own in seconds.items()},
        "rows_a_second": {name: round(rows / median(seconds[name]), 1) for name in ("one", "two")},
        "throughput_of_two": {
            "median": round(median(gain), 3),
            "least": round(min(gain), 3),
            "most": round(max(gain), 3),
        },
        "half_over_one": round(median(b / a for a, b in zip(seconds["one"], seconds["half alone"], strict=True)), 3),
        "beyond_half_milliseconds": round(1000 * median(beyond), 1),
        "talk_milliseconds": round(1000 * median(each["two"][phase]["talk"] for each in rounds), 1),
        "calls": median(each["two"][phase]["calls"] for each in rounds),
        "mebibytes": round(median(each["two"][phase]["bytes"] for each in rounds) / 2**20, 3),
    }


if __name__ == "__main__":
    main()
