"""Every key of a recipe is read: another value changes what is built (contract 11)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from peft_bidora.recipe import loading
from peft_bidora.recipe import prepare as prepare_module
from peft_bidora.recipe.load import load_recipe, recipe_keys
from peft_bidora.recipe.options import adapter_options, baseline_arguments, bidora_arguments, task_options
from peft_bidora.recipe.outlook import activation_bytes
from peft_bidora.tasks import registry
from peft_bidora.tasks.base_model import skeleton

PHASE = {
    "steps": "7",
    "epochs": "2.0",
    "batch_size": "5",
    "gradient_accumulation_steps": "3",
    "learning_rate": "1e-4",
    "weight_decay": "0.3",
    "schedule": "cosine",
    "warmup_fraction": "0.4",
    "max_grad_norm": "0.7",
}
CHANGED = {
    "model": "other",
    "task": "twin",
    "method": "full",
    "data.train": "other.jsonl",
    "data.test": "other.jsonl",
    "data.selection": "other.jsonl",
    "data.text": "body",
    "data.label": "kind",
    "data.group": "place",
    "data.test_fraction": "0.3",
    "data.test_seed": "7",
    "data.folds": "4",
    "data.fold": "1",
    "data.selection_fraction": "0.3",
    "data.upper_fraction": "0.4",
    "data.max_train_rows": "30",
    "data.max_length": "9",
    "data.sequences": "protein",
    "classification.class_weights": "balanced",
    "classification.multi_label": "false",
    "generation.max_new_tokens": "3",
    "generation.min_new_tokens": "2",
    "generation.num_beams": "2",
    "generation.do_sample": "true",
    "generation.temperature": "0.5",
    "generation.top_k": "5",
    "generation.top_p": "0.5",
    "generation.repetition_penalty": "1.5",
    "generation.no_repeat_ngram_size": "2",
    "generation.length_penalty": "2.0",
    "adapter.rank": "3",
    "adapter.alpha": "5",
    "adapter.dropout": "0.2",
    "adapter.target_modules": "[key]",
    "adapter.orthogonality": "0.1",
    **{f"{section}.{name}": value for section in ("search", "retrain") for name, value in PHASE.items()},
    "search.upper_learning_rate": "0.3",
    "search.upper_weight_decay": "0.3",
    "search.upper_schedule": "linear",
    "search.upper_batch_size": "3",
    "search.lower_steps": "2",
    "search.hypergradient": "first-order",
    "search.penalty": "3",
    "search.xi": "lower-learning-rate",
    "search.finite_difference_radius": "0.01",
    "search.settled": "0.4",
    "retrain.from": "initial",
    "precision": "bfloat16",
    "base_dtype": "bfloat16",
    "quantization": "4bit",
    "activation_checkpointing": "true",
    "seed": "3",
    "output": "elsewhere",
    "logging_steps": "3",
    "eval_steps": "25",
    "save_steps": "100",
    "select_best": "false",
    "select_by": "matthews",
    "eval_batch_size": "8",
    "report_to": "[tensorboard]",
    "push_to_hub": "owner/name",
}
# What a key needs beside it to have a say, in the plain recipe too.
BESIDE = {
    **{f"generation.{name}": ["generation.do_sample=true"] for name in ("temperature", "top_k", "top_p")},
    "base_dtype": ["precision=bfloat16"],
    "data.test_fraction": ["data.test=null", "data.test_fraction=0.2"],
    "data.test_seed": ["data.test=null", "data.test_fraction=0.2"],
    "data.folds": ["data.test=null", "data.folds=5", "data.fold=0"],
    "data.fold": ["data.test=null", "data.folds=5", "data.fold=0"],
    "data.sequences": ["data.text=sequence"],
    "search.epochs": ["search.steps=null"],
    "retrain.epochs": ["retrain.steps=null"],
}


class OneToken:
    """A tokenizer that makes one token of each text."""

    model_max_length, unk_token_id = 32, 0

    def __len__(self) -> int:
        return 8

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] for _ in texts]}

    def tokenize(self, text: str) -> list[str]:
        return [text]

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [1 for _ in tokens]


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose model is a configuration alone."""
    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=32,
    )  # fmt: skip
    monkeypatch.setattr(prepare_module, "resolve_model", lambda name: f"folder of {name}")
    monkeypatch.setattr(prepare_module, "load_config", lambda _: config)
    monkeypatch.setattr(loading, "load_config", lambda _: config)
    monkeypatch.setattr(prepare_module, "load_tokenizer", lambda _: OneToken())
    kind = registry.TASKS["sequence-classification"]
    kind = replace(kind, reads=kind.reads | {"generation"})  # it is the options that are compared
    monkeypatch.setitem(registry.TASKS, kind.name, kind)
    monkeypatch.setitem(registry.TASKS, "twin", replace(kind, name="twin"))
    monkeypatch.chdir(tmp_path)
    for name, count in (("train", 60), ("test", 12), ("other", 66)):
        rows = [
            {"text": f"{name} text {i}", "body": f"{name} body {i}", "sequence": "M" + i * "KV", "label": f"l{i % 3}",
             "kind": f"k{i % 2}", "place": f"p{i // 3}"}
            for i in range(count)
        ]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: base\ndata: {train: train.jsonl, test: test.jsonl, text: text, label: label}\noutput: run\n"
        "search: {steps: 4}\nretrain: {steps: 4}\n"
    )
    return path


def built(path: Path, overrides: list[str]) -> dict[str, Any]:
    recipe = load_recipe(path, overrides)
    prepared = prepare_module.prepare(recipe)
    task = prepared.rows.task
    return {
        "bidora": bidora_arguments(recipe, task, True).to_dict(),
        "baseline": baseline_arguments(recipe, task, True).to_dict(),
        "adapter": adapter_options(recipe),
        "prepared": (prepared.kind.name, prepared.source, prepared.max_length, prepared.target_modules),
        "rows": (prepared.rows.split_hashes(), task.state()),
        "options": task_options(recipe),
        "packing": loading.packing(recipe, prepared.kind, prepared.source),
        "saved": loading.saved_bytes(
            recipe, skeleton(loading.load_config(prepared.source), prepared.kind.auto_class(None))
        ),
        "activations": activation_bytes(recipe, loading.load_config(prepared.source), 8),
        "hub": recipe.push_to_hub,  # read by the command line, after the run
    }


def test_every_key_has_a_changed_value() -> None:
    assert set(recipe_keys()) == set(CHANGED)


@pytest.mark.parametrize("key", CHANGED)
def test_changed_key_changes_what_is_built(key: str, recipe_file: Path) -> None:
    beside = BESIDE.get(key, [])
    plain = built(recipe_file, beside)
    assert plain == built(recipe_file, beside)
    assert built(recipe_file, [*beside, f"{key}={CHANGED[key]}"]) != plain
