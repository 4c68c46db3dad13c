"""What processes do in tests of the pretrained MiniLM."""

from pathlib import Path
from typing import Any

import torch
from rank_works import collate, logged, trained
from transformers import AutoModelForSequenceClassification

from peft_bidora.adapter.attach import AdapterOptions, attach_adapter, head_modules
from peft_bidora.tasks.base_model import resolve_model
from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.sharding import shard_base
from peft_bidora.training.trainer import BiDoRATrainer

OPTIONS: dict[str, Any] = {
    "max_steps": 20,
    "retrain_max_steps": 1,
    "retrain_from": "search",
    "learning_rate": 5e-3,
    "upper_learning_rate": 2e-2,
    "lower_steps": 4,
    "hypergradient": "finite-difference",
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}
COUNTS = {"train_dataset": 40, "upper_dataset": 16}
TOKENS = range(1000, 4000)  # of the vocabulary; frozen rows that no batch reads would only be sent about
START, END = 101, 102


def adapted() -> Any:
    """The pretrained encoder without dropout, a new head of three classes and a new adapter."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve_model("builtin:minilm"), num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    words = model.get_input_embeddings()
    words.weight = torch.nn.Parameter(words.weight[: TOKENS.stop].detach().clone())
    options = AdapterOptions(rank=4, alpha=8)
    return attach_adapter(model, options, use_dora=True, task_type="SEQ_CLS", head=head_modules(model))


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of six to eight tokens."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for row in range(count):
        drawn = torch.randint(TOKENS.start, TOKENS.stop, (4 + row % 3,), generator=generator).tolist()
        ids = [START, *drawn, END]
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": drawn[0] % 3})
    return made


def train_all(output: Path, scenarios: dict[str, dict[str, Any]], sharded: bool = False) -> dict[str, Any]:
    """Train each scenario in both phases; return of each the values `before` and after, `logs`, and `logits`.

    The logits, (8, 3), are of rows that no level read.
    """
    found = {}
    for name, options in scenarios.items():
        model = adapted()
        before = trained(model)
        if sharded:
            shard_base(model)
        args = BiDoRAArguments(str(output / name), **{**OPTIONS, **options})
        data = {part: rows(count, seed) for seed, (part, count) in enumerate(COUNTS.items())}
        trainer = BiDoRATrainer(model, args, data_collator=collate, **data)
        trainer.train()
        model.eval()
        with torch.no_grad():
            logits = model(**collate(rows(8, len(COUNTS)))).logits
        found[name] = {
            "before": before, "values": trained(model), "logs": logged(trainer.log_history), "logits": logits
        }  # fmt: skip
    return found
