"""Measure `predict`: memory against the number of rows, and rows a second against transformers' own pipeline.

    python benchmarks/predict.py memory                     a million lines against a thousand, by a tiny random model
    python benchmarks/predict.py speed --data-dir DIR       of DIR/trec6

Memory is the peak of resident memory of a process of its own, in MiB. Speed runs both on one model in turns: predict
reads a file and writes one; the pipeline gets a list of texts, and what it makes of them stays in memory. The pipeline
has the merged weights, the fastest that it can have, and for comparison the model with the adapter beside them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

WORDS = [*"abcdefghijklmnopqrst"]
RESULTS = Path(__file__).parent / "results"
STEPS = {"search": {"steps": 2, "lower_steps": 1}, "retrain": {"steps": 2}, "eval_steps": 2, "save_steps": 2}


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "speed"])
    parser.add_argument("--rows", type=int, nargs=2, default=[1_000, 1_000_000])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", default="builtin:minilm")
    parser.add_argument("--method", default="bidora")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="the most rows of DIR to predict")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = (memory if options.what == "memory" else speed)(options, Path(folder))
    print(json.dumps(result, indent=2))
    (RESULTS / f"predict-{options.what}.json").write_text(json.dumps(result, indent=2) + "\n")


def memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Predict few rows and many, each in a process of its own."""
    train(folder, tiny_model(folder / "model"), [{"text": text(n), "label": str(n % 2)} for n in range(200)])
    runs = []
    for count in options.rows:
        source = folder / f"{count}.jsonl"
        with source.open("w") as file:
            file.writelines(json.dumps({"id": n, "text": text(n)}) + "\n" for n in range(count))
        start = perf_counter()
        peak = peak_mib(["predict", folder / "run", source, "-o", folder / f"{count}.out.jsonl"])
        seconds = round(perf_counter() - start, 1)
        with (folder / f"{count}.out.jsonl").open() as file:
            assert sum(1 for _ in file) == count
        runs.append({"rows": count, "peak_mib": peak, "seconds": seconds, "file_mib": mib(source.stat().st_size)})
        print(runs[-1], flush=True)
    return {"runs": runs, "peak_ratio": round(runs[-1]["peak_mib"] / runs[0]["peak_mib"], 4)}


def speed(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Predict the same rows by both in turns, in this process."""
    import torch
    from transformers import pipeline

    from peft_bidora.recipe.finished import load_trained, read_run
    from peft_bidora.recipe.predict import predict_file

    files = [options.data_dir / "trec6" / f"{name}.jsonl" for name in ("test", "train")]
    rows = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    rows = rows[: options.limit]
    labelled = [{"text": row["sentence"], "label": str(row["label"])} for row in rows]
    train(folder, options.model, labelled, options.method)
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps({"text": row["sentence"]}) + "\n" for row in rows))
    texts = [row["sentence"] for row in rows]
    run = read_run(folder / "run")
    size = options.batch_size
    kinds: dict[str, Callable[[], Any]] = {
        "predict": lambda: predict_file(folder / "run", str(source), output, batch_size=size, overwrite=True)
    }
    for name in ("pipeline_merged", "pipeline_adapter"):
        model = load_trained(run).eval()
        model = model.merge_and_unload() if name == "pipeline_merged" else model.base_model.model
        pipe = pipeline("text-classification", model=model, tokenizer=run.tokenizer)
        kinds[name] = lambda pipe=pipe: pipe(texts, batch_size=size, truncation=True, max_length=run.max_length)
    load = median(timed(lambda: load_trained(run)) for _ in range(3))
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(options.rounds + 1):  # the first warms up
        for name, function in kinds.items():
            taken = timed(function) - (load if name == "predict" else 0.0)
            if turn:
                seconds[name].append(taken)
                print(name, round(taken, 2), flush=True)
    same = agreement(output, kinds["pipeline_merged"]())
    rate = {name: round(len(rows) / median(taken), 1) for name, taken in seconds.items()}
    return {
        "rows": len(rows),
        "batch_size": size,
        "method": options.method,
        "threads": torch.get_num_threads(),
        "seconds": {name: [round(value, 2) for value in taken] for name, taken in seconds.items()},
        "seconds_to_load": round(load, 2),
        "rows_a_second": rate,
        "ratio_to_merged": round(rate["predict"] / rate["pipeline_merged"], 3),
        "ratio_to_adapter": round(rate["predict"] / rate["pipeline_adapter"], 3),
        "same_labels": same,
    }


def train(folder: Path, model: str, rows: list[dict[str, str]], method: str = "bidora") -> None:
    """Leave a finished run of two steps in folder/run."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "train.jsonl", "text": "text", "label": "label", "test_fraction": 0.1}
    recipe = {"model": model, "method": method, "data": data, **STEPS, "output": str(folder / "run")}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    peak_mib(["train", folder / "recipe.yaml"])


def tiny_model(folder: Path) -> str:
    """Save a random BERT of one layer with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = [*names.values(), *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return str(folder)


def text(number: int) -> str:
    """Return a text of 4 to 23 words that hardly another row has."""
    return " ".join(WORDS[(number // 20**k + k) % 20] for k in range(4 + number * 7 % 20)) + f" {number}"


def peak_mib(arguments: list[Any]) -> float:
    """Run the command line in a process of its own and return the peak of its resident memory."""
    line = [sys.executable, "-m", "peft_bidora", *map(str, arguments)]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{line} ended with {process.returncode}")
    return mib(usage.ru_maxrss * 1024)  # Linux counts KiB


def mib(size: float) -> float:
    """Return bytes in MiB."""
    return round(size / 2**20, 1)


def timed(function: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    start = perf_counter()
    function()
    return perf_counter() - start


def agreement(output: Path, labels: list[dict[str, Any]]) -> float:
    """Return the part of the rows that get the same label from both."""
    own = [json.loads(line)["predicted_label"] for line in output.open()]
    return sum(one == other["label"] for one, other in zip(own, labels, strict=True)) / len(own)


if __name__ == "__main__":
    main()
