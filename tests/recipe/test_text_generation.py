"""Whole runs of text generation: rows of each form, models of each kind, every method."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from peft_bidora.errors import BiDoRAError, RecipeError
from peft_bidora.recipe.finished import evaluate
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.merge import merge
from peft_bidora.recipe.prepare import prepare
from peft_bidora.recipe.run import run
from peft_bidora.tasks.text_generation import TextGeneration

NOUNS, VERBS = ("fox", "cat", "red", "blue"), ("runs", "sits", "say", "now")
Rows = list[dict[str, Any]]
TRAIN: Rows = [{"meaning_representation": f"say {a} {b}", "reference": f"{a} {b}"} for a in NOUNS for b in VERBS]
TEST: Rows = [
    {"meaning_representation": "now fox runs", "references": ["fox runs", "the fox runs"]},
    {"meaning_representation": "now cat", "references": ["cat"]},
    {"meaning_representation": "now red say", "references": ["red say"]},
]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, make_tokenizer, make_language_model, chat_template) -> Make:
    """A recipe of a few steps, its model and its data; `changes` are overrides with `__` for the dot."""

    def write(architecture: str = "gpt2", train: Rows = TRAIN, test: Rows = TEST, chat: bool = False) -> Path:
        folder = tmp_path / architecture
        make_language_model(architecture).save_pretrained(folder)
        make_tokenizer(chat_template if chat else None).save_pretrained(folder)
        for name, rows in (("train", train), ("test", test)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        path = tmp_path / "recipe.yaml"
        path.write_text(
            f"model: {folder}\ntask: text-generation\nmethod: lora\n"
            "data: {train: train.jsonl, test: test.jsonl, selection_fraction: 0.2}\nadapter: {rank: 2, alpha: 4}\n"
            "search: {steps: 2, batch_size: 4, lower_steps: 1}\nretrain: {steps: 4, batch_size: 4}\n"
            "generation: {max_new_tokens: 5}\neval_steps: 2\nsave_steps: 2\n"
            f"output: {tmp_path / 'run'}\n"
        )
        return path

    return write


def lines(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("architecture", "method"),
    [("gpt2", "lora"), ("gpt2", "dora"), ("gpt2", "bidora"), ("gpt2", "full"), ("t5", "bidora"),
     ("bart", "dora")],
)  # fmt: skip
def test_run_from_recipe_to_folder(architecture: str, method: str, make: Make, tmp_path: Path) -> None:
    metrics = run(load_recipe(make(architecture), [f"method={method}"]))
    assert metrics["rows"]["test"] == 3
    assert list(metrics["test"]) == ["bleu", "chrf", "nist", "rouge_l", "perplexity"]
    assert metrics["test"]["perplexity"]["low"] <= metrics["test"]["perplexity"]["value"]
    assert metrics["test_details"]["references"] == 4
    predictions = lines(tmp_path / "run/predictions.jsonl")
    assert [{key: row[key] for key in ("meaning_representation", "references")} for row in predictions] == TEST
    assert any(row["predicted_text"] for row in predictions)
    assert evaluate(tmp_path / "run").scores == metrics["test"]
    # Another process would load it by these lines; the texts are those of the run.
    scope: dict[str, Any] = {}
    exec("\n".join(metrics["loading_lines"]).replace("...", TEST[0]["meaning_representation"]), scope)
    assert scope["predicted_text"] == predictions[0]["predicted_text"]


def test_output_layer_is_neither_trained_nor_saved_with_an_adapter(make: Make, tmp_path: Path) -> None:
    run(load_recipe(make("bart")))
    saved = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert saved
    assert all("lora_" in name for name in saved)


def test_chats_are_learned_by_the_template_of_the_tokenizer(make: Make, tmp_path: Path) -> None:
    def chats(rows: Rows) -> Rows:
        return [
            {"messages": [{"role": "user", "content": row["meaning_representation"]},
                          {"role": "assistant", "content": row.get("reference", "fox")}]}
            for row in rows
        ]  # fmt: skip

    recipe = load_recipe(make(train=chats(TRAIN), test=chats(TEST), chat=True), ["generation.num_beams=2"])
    prepared = prepare(recipe)
    ids = prepared.rows.task.encode(prepared.rows.parts["test"], prepared.tokenizer, 48)["input_ids"][1]
    assert prepared.tokenizer.decode(ids) == "<user>now cat\n<assistant>fox<end>"
    run(recipe)
    assert [row["messages"] for row in lines(tmp_path / "run/predictions.jsonl")] == [
        row["messages"] for row in chats(TEST)
    ]


def test_kept_checkpoint_is_that_of_the_least_selection_loss(make: Make, tmp_path: Path) -> None:
    run(load_recipe(make(), ["retrain.learning_rate=0.3", "retrain.steps=6"]))
    losses = [row["eval_loss"] for row in lines(tmp_path / "run/metrics.jsonl") if "eval_loss" in row]
    state = json.loads((tmp_path / "run/retrain/checkpoint-6/trainer_state.json").read_text())
    assert len(losses) == 3
    assert state["best_metric"] == min(losses)


def test_references_of_a_train_row_are_learned_one_by_one(make: Make) -> None:
    train = [{"prompt": f"say {a}", "completion": [f"{a} {b}" for b in VERBS]} for a in (*NOUNS, "you", "me", "us")]
    test = [{"prompt": "now fox", "completion": "fox"}, {"prompt": "now fox", "completion": "a fox"}]
    rows = prepare(load_recipe(make(train=train, test=test))).rows
    assert len(rows.parts["test"]) == 1
    assert rows.parts["test"].labels == [("fox", "a fox")]
    learned = [(text, *label) for name in ("lower", "upper") for (text,), label in _pairs(rows.parts[name])]
    assert len(learned) == 4 * len({text for text, _ in learned})
    assert any("test split: 2 rows of the file became 1 row, one a prompt" in note for note in rows.notes)
    assert any("lower split: " in note and "one a reference" in note for note in rows.notes)


def _pairs(examples: Any) -> Any:
    return zip(examples.texts, examples.labels, strict=True)


def test_rows_of_one_prompt_stay_in_one_split_and_contradict_nothing(make: Make) -> None:
    train = [{"prompt": f"say {a}", "completion": f"{a} {b}"} for a in (*NOUNS, "you", "me") for b in VERBS]
    test = [{"prompt": "now fox", "completion": "fox"}]
    rows = prepare(load_recipe(make(train=train, test=test))).rows
    prompts = [{text for (text,) in rows.parts[name].texts} for name in ("lower", "upper", "selection")]
    assert all(prompts)
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 6
    assert not any("more than one label" in note for note in rows.notes)


def test_evaluate_gathers_the_references_of_another_file(make: Make, tmp_path: Path) -> None:
    run(load_recipe(make()))
    single = tmp_path / "single.jsonl"
    rows = [{"meaning_representation": row["meaning_representation"], "reference": reference}
            for row in TEST for reference in row["references"]]  # fmt: skip
    single.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate(tmp_path / "run", str(single)).scores == evaluate(tmp_path / "run").scores


def test_selection_by_a_metric_of_generated_text_is_refused(make: Make) -> None:
    with pytest.raises(RecipeError, match=r"select_by=bleu.*by the loss of the selection rows.*Leave it out"):
        prepare(load_recipe(make(), ["select_by=bleu"]))


def test_room_for_a_prompt_is_asked_for_before_weights_are_loaded(make: Make) -> None:
    with pytest.raises(BiDoRAError, match=r"generation.max_new_tokens=48 leaves no room"):
        prepare(load_recipe(make(), ["generation.max_new_tokens=48"]))


@pytest.mark.parametrize("architecture", ["gpt2", "bart"])
def test_task_knows_its_kind_of_model_and_its_seed(architecture: str, make: Make) -> None:
    task = prepare(load_recipe(make(architecture), ["seed=7"])).rows.task
    assert (task.encoder_decoder, task.seed) == (architecture == "bart", 7)


def test_rows_are_written_in_batches_of_the_size_asked_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, predict_batch = [], TextGeneration.predict_batch

    def spy(task: Any, model: Any, inputs: Any, tokenizer: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        return predict_batch(task, model, inputs, tokenizer)

    monkeypatch.setattr(TextGeneration, "predict_batch", spy)
    recipe = load_recipe(make(), ["eval_batch_size=2"])
    run(recipe)
    assert sizes[-2:] == [2, 1]
    evaluate(recipe.output)
    assert sizes[-2:] == [2, 1]
    assert max(sizes) == 2


def test_cut_rows_are_noted(make: Make) -> None:
    notes = prepare(load_recipe(make(), ["data.max_length=6"])).rows.notes
    assert any("test split: " in note and "a prompt that is cut on the left" in note for note in notes)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["generation.temperature=0.5"], "temperature is set, which only sampling reads"),
        (["generation.top_k=5", "generation.top_p=0.5"], "top_k, top_p is set"),
        (["generation.min_new_tokens=6"], "min_new_tokens=6 is more than max_new_tokens=5"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(overrides, words, make: Make) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(make(), overrides)


@pytest.mark.parametrize("architecture", ["gpt2", "bart"])
def test_merged_weights_write_what_the_run_writes(architecture: str, make: Make, tmp_path: Path) -> None:
    run(load_recipe(make(architecture), ["method=dora"]))
    assert merge(tmp_path / "run", tmp_path / "merged").difference <= 1e-4
    auto = transformers.AutoModelForCausalLM if architecture == "gpt2" else transformers.AutoModelForSeq2SeqLM
    model, tokenizer = auto.from_pretrained(tmp_path / "merged"), transformers.AutoTokenizer.from_pretrained(
        tmp_path / "merged"
    )  # fmt: skip
    ids = tokenizer("now cat\n" if architecture == "gpt2" else "now cat", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        written = model.generate(ids)[0]  # as its generation_config.json says
    text = tokenizer.decode(written[ids.shape[1] :] if architecture == "gpt2" else written, skip_special_tokens=True)
    assert text.strip() == lines(tmp_path / "run/predictions.jsonl")[1]["predicted_text"]
