"""The command line: one line a fault, whole runs of every method, and resume after a kill."""

import io
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, PreTrainedTokenizerFast

from peft_bidora import cli

NOUNS = {
    "fruit": ("apple", "pear", "plum", "fig", "lime"),
    "tool": ("saw", "drill", "rasp", "vice", "plane"),
    "bird": ("crow", "wren", "gull", "finch", "heron"),
}
TRAIN_WORDS, TEST_WORDS = ("old", "small", "green", "heavy"), ("new", "large")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
Rows = list[dict[str, Any]]


def rows_of(words: tuple[str, ...]) -> Rows:
    return [
        {"text": f"the {noun} is {word}", "label": label}
        for word in words
        for label, nouns in NOUNS.items()
        for noun in nouns
    ]


def save_tiny_model(folder: Path) -> Path:
    words = [*SPECIAL, "the", "is", *TRAIN_WORDS, *TEST_WORDS, *(noun for nouns in NOUNS.values() for noun in nouns)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, which wait for one another where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Project:
    """A folder with a recipe and its data."""

    folder: Path
    values: dict[str, Any]

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def output(self) -> Path:
        return self.folder / "run"

    def write(self) -> None:
        self.recipe.write_text(yaml.safe_dump(self.values), encoding="utf-8")

    def write_rows(self, name: str, rows: Rows) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.folder / name).write_text(text, encoding="utf-8")


def new_project(folder: Path, model: Path) -> Project:
    phase = {"steps": 4, "batch_size": 8}
    values = {
        "model": str(model),
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
        "adapter": {"rank": 2, "alpha": 4},
        "search": {**phase, "lower_steps": 2},
        "retrain": dict(phase),
        "output": str(folder / "run"),
        "eval_steps": 2,
        "save_steps": 2,
        "logging_steps": 1,
    }
    made = Project(folder, values)
    made.write()
    made.write_rows("train.jsonl", rows_of(TRAIN_WORDS))
    made.write_rows("test.jsonl", rows_of(TEST_WORDS))
    return made


@pytest.fixture
def project(tmp_path: Path, model_folder: Path) -> Project:
    return new_project(tmp_path, model_folder)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def faults(self) -> list[str]:
        return self.err.splitlines()


Run = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`peft-bidora ARGUMENTS` in this process, its output captured."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["peft-bidora", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", refuse)


def assert_faults(result: Result, *words: str) -> None:
    assert result.code == 2, result.err
    assert "Traceback" not in result.err + result.out
    assert result.faults
    assert all(line.startswith("error: ") for line in result.faults), result.err
    for word in words:
        assert word in result.err


def with_row(at: int, **changes: Any) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        rows = rows_of(TRAIN_WORDS)
        rows[at] |= changes
        project.write_rows("train.jsonl", rows)

    return change


def with_train_bytes(data: bytes, name: str = "train.jsonl") -> Callable[[Project], None]:
    def change(project: Project) -> None:
        (project.folder / name).write_bytes(data)
        project.values["data"]["train"] = name
        project.write()

    return change


def with_train_rows(select: Callable[[Rows], Rows]) -> Callable[[Project], None]:
    return lambda project: project.write_rows("train.jsonl", select(rows_of(TRAIN_WORDS)))


def with_strange_test_class(project: Project) -> None:
    project.write_rows("test.jsonl", [*rows_of(TEST_WORDS), {"text": "the oak is old", "label": "tree"}])


def with_too_few_rows(project: Project) -> None:
    first = {row["label"]: row for row in reversed(rows_of(TRAIN_WORDS))}
    project.write_rows("train.jsonl", list(first.values()))


def with_missing_model(project: Project) -> None:
    empty = project.folder / "nothing"
    empty.mkdir()
    project.values["model"] = str(empty)
    project.write()


GOOD_LINE = b'{"text": "the fig is old", "label": "fruit"}\n'
DATA_FAULTS: dict[str, tuple[Callable[[Project], None], tuple[str, ...]]] = {
    "missing file": (lambda project: (project.folder / "train.jsonl").unlink(), ("train.jsonl", "does not exist")),
    "empty file": (with_train_bytes(b""), ("train.jsonl", "empty")),
    "not UTF-8": (with_train_bytes(GOOD_LINE + b'{"text": "caf\xe9", "label": "x"}\n'), ("line 2", "not UTF-8")),
    "broken JSON": (with_train_bytes(GOOD_LINE * 2 + b'{"text": \n'), ("train.jsonl, line 3", "JSON")),
    "ragged CSV": (with_train_bytes(b"text,label\na,b\nc,d,e\n", "train.csv"), ("train.csv, line 3", "3 cells", "2")),
    "blank text": (with_row(4, text="  "), ("line 5", "empty text", "'text'")),
    "text is no string": (with_row(4, text=["a"]), ("line 5", "list", "'text'")),
    "null label": (with_row(6, label=None), ("line 7", "label")),
    "single class": (with_train_rows(lambda rows: [row | {"label": "bird"} for row in rows]), ("'bird'", "two")),
    "strange test class": (with_strange_test_class, ("test.jsonl", "'tree'", "line 31")),
    "too few rows": (with_too_few_rows, ("rows", "fraction")),
    "no model folder": (with_missing_model, ("config.json", "nothing")),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", DATA_FAULTS)
def test_fault_of_the_data_is_one_line_and_exit_code_2(name: str, project: Project, command: Run) -> None:
    change, words = DATA_FAULTS[name]
    change(project)
    assert_faults(command("train", project.recipe), *words)
    assert not project.output.exists()


RECIPE_FAULTS = {
    "missing column": ("data.label=lable", ("'lable'", "'text'", "'label'", "data.label")),
    "unknown key": ("search.stepz=4", ("search.stepz", "search.steps")),
    "unknown section": ("adaptor.rank=4", ("adaptor", "adapter")),
    "wrong type": ("adapter.rank=eight", ("adapter.rank", "'eight'", "integer")),
    "out of range": ("search.learning_rate=-1", ("search.learning_rate", "-1", "greater than 0")),
    "targets match nothing": ("adapter.target_modules=[querry]", ("'querry'", "query", "key", "value", "dense")),
    "unknown choice": ("method=bidoora", ("method", "'bidoora'", "bidora")),
    "unknown task": ("task=regresion", ("task=regresion", "'sequence-classification'", "Did you mean 'regression'")),
    "too long": ("data.max_length=99", ("data.max_length=99", "32")),
    "no equals sign": ("adapter.rank", ("adapter.rank", "key=value")),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", RECIPE_FAULTS)
@pytest.mark.parametrize("verb", ["train", "check"])
def test_fault_of_the_recipe_is_one_line_and_exit_code_2(name: str, verb: str, project: Project, command: Run) -> None:
    override, words = RECIPE_FAULTS[name]
    result = command(verb, project.recipe, override)
    assert_faults(result, *words)
    assert len(result.faults) == 1
    assert not project.output.exists()


@pytest.mark.usefixtures("no_weights")
def test_missing_recipe_is_named(tmp_path: Path, command: Run) -> None:
    assert_faults(command("train", tmp_path / "gone.yaml"), "gone.yaml", "does not exist")


@pytest.mark.usefixtures("no_weights")
def test_check_reports_every_fault_of_the_keys_at_once(project: Project, command: Run) -> None:
    result = command("check", project.recipe, "search.stepz=4", "adapter.rank=eight", "retrain.batch_size=0")
    assert_faults(result, "search.stepz", "adapter.rank", "retrain.batch_size")
    assert len(result.faults) == 3


@pytest.mark.usefixtures("no_weights")
def test_check_reports_faults_of_data_model_and_output_at_once(project: Project, command: Run) -> None:
    with_row(4, text="")(project)
    project.output.mkdir()
    (project.output / "letter.txt").write_text("mine")
    result = command("check", project.recipe, "adapter.target_modules=[querry]")
    assert_faults(result, "line 5", "'querry'", "no run")
    assert len(result.faults) == 3


@pytest.mark.usefixtures("no_weights")
def test_check_tells_a_key_that_there_is_not_beside_faults_of_the_data(project: Project, command: Run) -> None:
    result = command("check", project.recipe, "search.step=5", "rank=4", "data.label=nothing")
    assert result.code == 2
    for words in ("search.step: there is no such key", "rank: there is no such key", "nothing"):
        assert words in result.err
    assert result.err.count("error: ") == 3
    result = command("check", project.recipe, "search.step=5", "eval_steps=30", "save_steps=50")
    assert result.err.count("error: ") == 2


def test_foreign_files_in_the_output_are_left_alone(project: Project, command: Run) -> None:
    project.output.mkdir()
    letter = project.output / "letter.txt"
    letter.write_text("mine")
    for options in ((), ("--overwrite",)):
        assert_faults(command("train", project.recipe, *options), str(project.output), "left alone")
    assert letter.read_text() == "mine"
    assert list(project.output.iterdir()) == [letter]


@pytest.mark.parametrize("name", ["recipe.yaml", "manifest.json"])
@pytest.mark.usefixtures("no_weights")
def test_folder_with_a_file_of_the_same_name_is_no_run(name: str, project: Project, command: Run) -> None:
    project.output.mkdir()
    (project.output / name).write_text('{"name": "a web page"}')
    assert_faults(command("train", project.recipe, "--overwrite"), "hold", "no run")
    assert (project.output / name).read_text() == '{"name": "a web page"}'


@pytest.mark.usefixtures("no_weights")
def test_resume_needs_a_run(project: Project, command: Run) -> None:
    assert_faults(command("train", project.recipe, "--resume"), "no run to resume", str(project.output))


@pytest.mark.usefixtures("no_weights")
def test_evaluate_needs_a_run(tmp_path: Path, command: Run) -> None:
    assert_faults(command("evaluate", tmp_path / "gone"), "gone", "no run")


@pytest.mark.parametrize("verb", ["evaluate", "predict", "merge", "check", "init"])
def test_path_that_the_system_does_not_take_is_a_message(
    verb: str, lora_run: Project, command: Run, tmp_path: Path
) -> None:
    long, run = "x" * 300, lora_run.output
    arguments = {
        "evaluate": [run, long],
        "predict": [run, run / "predictions.jsonl", "-o", f"{long}.csv"],
        "merge": [run, "-o", long],
        "check": [lora_run.recipe, f"data.test={long}"],
        "init": [long, "-o", tmp_path / "recipe.yaml"],
    }
    assert_faults(command(verb, *arguments[verb]), "File name too long")


COMMANDS = """
import json, sys
from peft_bidora.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["peft-bidora", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
    print("\\f")
"""


def test_training_into_a_file_says_how_far_it_is(project: Project, command: Run) -> None:
    result = command("train", project.recipe)
    lines = [line for line in result.err.splitlines() if not line.startswith("note: ")]
    assert [line.partition(":")[0] for line in lines] == [
        f"{phase} step {step} of 4" for phase in ("search", "retrain") for step in (2, 4)
    ]
    assert all(", selection loss " in line and ", selection accuracy " in line for line in lines)
    assert "\033" not in result.err


def test_training_into_a_file_without_a_selection_split_tells_its_loss(project: Project, command: Run) -> None:
    project.values["data"]["selection_fraction"] = 0
    project.values |= {"method": "lora", "logging_steps": 2, "select_best": False}
    project.write()
    result = command("train", project.recipe)
    assert result.code == 0, result.err
    lines = [line for line in result.err.splitlines() if line.startswith("retrain")]
    assert [line.partition(": loss ")[0] for line in lines] == ["retrain step 2 of 4", "retrain step 4 of 4"]


def test_output_in_ascii_escapes_what_it_lacks(project: Project) -> None:
    named = {"fruit": "früit", "tool": "töol", "bird": "bird"}
    for name, words in (("train.jsonl", TRAIN_WORDS), ("test.jsonl", TEST_WORDS)):
        project.write_rows(name, [{**row, "label": named[row["label"]]} for row in rows_of(words)])
    recipe, output = str(project.recipe), str(project.output)
    commands = [["--help"], ["check", recipe], ["check", recipe, "--json"], ["train", recipe, "method=lora"]]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps([*commands, ["evaluate", output]])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.split("\f\n")
    assert set(json.loads(told[2])["classes"]["test"]) == set(named.values())
    assert [r"fr\xfcit" in text for text in told] == [False, True, False, False, True, False]


@pytest.mark.usefixtures("no_weights")
def test_check_prints_rows_and_loads_no_weights(project: Project, command: Run) -> None:
    result = command("check", project.recipe)
    assert result.code == 0
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.out.splitlines() if "│" in line]
    assert ["all", "43", "11", "6", "30"] in cells
    assert ["bird", "14", "4", "2", "10"] in cells
    for words in ("query, value", "search 4 with 2 upper ones, retrain 4", "No faults"):
        assert words in result.out
    assert not project.output.exists()
    report = json.loads(command("check", project.recipe, "--json").out)
    assert report["rows"] == {"lower": 43, "upper": 11, "selection": 6, "test": 30}


def test_overlap_of_test_and_train_is_noted_beside_the_json_of_the_run(project: Project, command: Run) -> None:
    project.write_rows("test.jsonl", rows_of(TRAIN_WORDS)[:15] + rows_of(TEST_WORDS))
    result = command("train", project.recipe, "method=lora", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == json.loads((project.output / "metrics.json").read_text())
    assert "note: " in result.err
    assert "test rows also stand among the training rows" in result.err


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys\nfrom peft_bidora.cli import main\nsys.argv = ['peft-bidora', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for verb in ("train", "check", "evaluate", "predict"):
        assert verb in done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Callable[[str], Project]:
    """Finished runs, one a method, made when first asked for."""
    from peft_bidora.recipe.load import load_recipe
    from peft_bidora.recipe.run import run

    made: dict[str, Project] = {}

    def get(method: str) -> Project:
        if method not in made:
            project = new_project(tmp_path_factory.mktemp(method), model_folder)
            project.values["method"] = method
            project.write()
            run(load_recipe(project.recipe))
            made[method] = project
        return made[method]

    return get


@pytest.fixture(scope="module")
def lora_run(finished: Callable[[str], Project]) -> Project:
    """Of module scope, so that it is there before a test forbids weights."""
    return finished("lora")


@pytest.fixture
def copied(lora_run: Project, tmp_path: Path) -> Project:
    """A finished LoRA run that a test may change."""
    folder = tmp_path / "copy"
    shutil.copytree(lora_run.folder, folder)
    moved = folder / "run" / "recipe.yaml"  # as if the run had been made here
    moved.write_text(moved.read_text().replace(str(lora_run.folder), str(folder)))
    project = Project(folder, {**lora_run.values, "output": str(folder / "run")})
    project.write()
    return project


@pytest.mark.parametrize("method", ["lora", "dora", "bidora", "full"])
def test_run_from_recipe_to_folder(method: str, project: Project, command: Run) -> None:
    result = command("train", project.recipe, f"method={method}")
    assert result.code == 0, result.err
    assert "\x1b" not in result.out + result.err
    weights = "model/model.safetensors" if method == "full" else "adapter/adapter_model.safetensors"
    names = ("recipe.yaml", "metrics.json", "manifest.json", "metrics.jsonl", "predictions.jsonl", weights)
    for name in names:
        assert (project.output / name).is_file(), name
    assert str(project.output / Path(weights).parent) in result.out
    metrics = json.loads((project.output / "metrics.json").read_text())
    assert metrics["method"] == method
    assert metrics["rows"] == {"lower": 43, "upper": 11, "selection": 6, "test": 30}
    assert f"{metrics['test']['accuracy']['value']:.4f}" in result.out
    kept = metrics["kept"]
    assert 0 < kept["step"] <= kept["of"]
    assert f"the checkpoint of step {kept['step']} of {kept['of']}" in result.out
    predictions = [json.loads(line) for line in (project.output / "predictions.jsonl").read_text().splitlines()]
    right = sum(row["predicted_label"] == row["label"] for row in predictions)
    assert right / 30 == metrics["test"]["accuracy"]["value"]
    history = [json.loads(line) for line in (project.output / "metrics.jsonl").read_text().splitlines()]
    phases = {"search", "retrain"} if method == "bidora" else {"retrain"}
    assert {entry["phase"] for entry in history} == phases
    again = command("evaluate", project.output, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out) == {**metrics["test"], "details": metrics["test_details"]}


@pytest.mark.usefixtures("no_weights")
def test_resuming_a_finished_run_says_so(copied: Project, command: Run) -> None:
    result = command("train", copied.recipe, "--resume")
    assert result.code == 0, result.err
    assert "finished already" in result.err


@pytest.mark.usefixtures("no_weights")
def test_output_with_another_run_is_refused(copied: Project, command: Run) -> None:
    before = (copied.output / "metrics.json").read_bytes()
    assert_faults(command("train", copied.recipe), str(copied.output), "another run", "--resume", "--overwrite")
    assert (copied.output / "metrics.json").read_bytes() == before


def test_overwrite_replaces_a_run(copied: Project, command: Run) -> None:
    result = command("train", copied.recipe, "--overwrite", "method=dora")
    assert result.code == 0, result.err
    assert json.loads((copied.output / "metrics.json").read_text())["method"] == "dora"


def test_overwrite_leaves_what_no_run_wrote(copied: Project, command: Run) -> None:
    (copied.output / "notes.txt").write_text("mine")
    assert command("train", copied.recipe, "--overwrite").code == 0
    assert (copied.output / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("no_weights")
def test_resume_with_a_changed_recipe_names_key_old_and_new(copied: Project, command: Run) -> None:
    result = command("train", copied.recipe, "--resume", "retrain.steps=6", "seed=1")
    assert_faults(result, "retrain.steps was 4 and is 6", "seed was 0 and is 1")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("key", ["train", "test"])
def test_resume_with_changed_data_names_the_file(key: str, copied: Project, command: Run) -> None:
    rows = rows_of(TRAIN_WORDS if key == "train" else TEST_WORDS)
    copied.write_rows(f"{key}.jsonl", [*rows[:-1], {"text": "the heron is blue", "label": "bird"}])
    result = command("train", copied.recipe, "--resume")
    assert_faults(result, f"data.{key}", "sha256")
    other = "data.test" if key == "train" else "data.train"
    assert other not in result.err


def test_evaluate_scores_another_file(finished: Callable[[str], Project], command: Run) -> None:
    project = finished("lora")
    same = command("evaluate", project.output, project.folder / "test.jsonl", "--json")
    metrics = json.loads((project.output / "metrics.json").read_text())
    assert json.loads(same.out) == {**metrics["test"], "details": metrics["test_details"]}
    table = command("evaluate", project.output).out
    assert "accuracy" in table
    for name in ("precision", "recall", "fruit", "tool", "bird"):
        assert name in table
    project.write_rows("strange.jsonl", [{"text": "the oak is old", "label": "tree"}])
    assert_faults(command("evaluate", project.output, project.folder / "strange.jsonl"), "'tree'", "strange.jsonl")


def test_predict_keeps_columns_and_adds_predictions(
    finished: Callable[[str], Project], command: Run, tmp_path: Path
) -> None:
    project, output = finished("lora"), tmp_path / "out.csv"
    result = command("predict", project.output, project.folder / "test.jsonl", "-o", output, "--batch-size", 4)
    assert (result.code, result.out, result.err) == (0, "", f"{output}: 30 rows\n")
    head, *rows = output.read_text().splitlines()
    assert head == "text,label,predicted_label,probability_bird,probability_fruit,probability_tool"
    assert len(rows) == 30
    told = [json.loads(line) for line in (project.output / "predictions.jsonl").read_text().splitlines()]
    assert [row.split(",")[2] for row in rows] == [row["predicted_label"] for row in told]
    assert_faults(command("predict", project.output, project.folder / "test.jsonl", "-o", output), "--overwrite")
    again = command("predict", project.output, project.folder / "test.jsonl", "-o", output, "--overwrite")
    assert again.code == 0, again.err


def test_predict_puts_rows_alone_on_standard_output(
    lora_run: Project, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": "the fig is old", "id": 7}, {"text": "the saw is new"}]
    given = "".join(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
    result = command("predict", lora_run.output, "-")
    assert (result.code, result.err) == (0, "")
    found = [json.loads(line) for line in result.out.splitlines()]
    added = {"predicted_label", "probabilities"}
    assert [{name: row[name] for name in row.keys() - added} for row in found] == rows
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode() + b"{\n")))
    broken = command("predict", lora_run.output, "-", "-o", "-")
    assert_faults(broken, "standard input, line 3: broken JSON")
    assert broken.out == ""


def test_model_card_tells_data_metrics_settings_and_how_to_load(project: Project, command: Run) -> None:
    assert command("train", project.recipe, "method=lora").code == 0
    card = (project.output / "adapter" / "README.md").read_text()
    metrics = json.loads((project.output / "metrics.json").read_text())
    header = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in header  # a folder of this machine is nobody else's
    assert header["library_name"] == "peft"
    assert header["pipeline_tag"] == "text-classification"
    assert f"| accuracy | {metrics['test']['accuracy']['value']:.4f} |" in card
    for words in ("- lower: 43 rows", "method: lora", "from_pretrained('adapter', num_labels=3)", "transformers 5"):
        assert words in card
    assert "labels = [" in card
    assert str(project.folder) not in card


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["method=bidora"], "directions, the upper one the magnitudes, the selection split chose the checkpoint."),
        (["method=lora"], "were trained on together, the selection split chose the checkpoint."),
        (["method=dora", "select_best=false"], "trained on together, the selection split was looked at alone."),
        (["method=full", "select_best=false", "data.selection_fraction=0"], "were trained on together.\n"),
    ],
)
def test_model_card_tells_what_each_split_was_used_for(
    settings: list[str], words: str, project: Project, command: Run
) -> None:
    assert command("train", project.recipe, *settings).code == 0
    folder = "model" if "method=full" in settings else "adapter"
    assert words in (project.output / folder / "README.md").read_text()


def test_one_class_for_all_rows_is_noted(project: Project, command: Run) -> None:
    result = command("train", project.recipe, "method=lora", "retrain.steps=1", "retrain.learning_rate=1e-9")
    predictions = [json.loads(line) for line in (project.output / "predictions.jsonl").read_text().splitlines()]
    same = len({row["predicted_label"] for row in predictions}) == 1
    assert ("note: every test row is predicted to be" in result.out) == same


def test_study_whose_lanes_were_all_stopped_is_an_error(project: Project, command: Run) -> None:
    options = ("method=lora", "retrain.learning_rate=1e38", "retrain.max_grad_norm=0", "--lanes", "seed=0..1")
    result = command("train", project.recipe, *options)
    assert result.code == 2
    assert "Every lane was stopped" in result.err


def test_check_of_a_recipe_that_was_trained_tells_so_and_all_else(copied: Project, command: Run) -> None:
    told = command("check", copied.recipe)
    assert told.code == 0, told.err
    assert "holds a run already: train needs --resume, --overwrite or another output." in told.out
    assert "trainable parameters" in told.out


def test_what_the_hub_client_logs_is_written_once(project: Project, command: Run) -> None:
    logging.getLogger("huggingface_hub").propagate = True
    assert command("check", project.recipe).code == 0
    assert not logging.getLogger("huggingface_hub").propagate


def test_no_bar_is_drawn_for_a_file_of_weights(lora_run: Project, command: Run, tmp_path: Path) -> None:
    from transformers.utils.logging import enable_progress_bar

    enable_progress_bar()
    merged = command("merge", lora_run.output, "-o", tmp_path / "merged")
    assert (merged.code, merged.err) == (0, "")


def test_push_uploads_the_adapter_and_its_failure_keeps_the_run(
    project: Project, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    sent: list[dict[str, Any]] = []

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "create_repo", offline)
    failed = command("train", project.recipe, "method=lora", "push_to_hub=owner/name")
    assert failed.code == 2
    assert "accuracy" in failed.out
    for words in ("error: The run is finished", "push_to_hub=owner/name failed", "no route", "--resume"):
        assert words in failed.err
    assert "Traceback" not in failed.err
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, exist_ok: None)
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda self, **options: sent.append(options) or "https://hub/owner/name"
    )
    done = command("train", project.recipe, "method=lora", "push_to_hub=owner/name", "--resume")
    assert done.code == 0, done.err
    assert "pushed to https://hub/owner/name" in done.err
    assert sent[0]["folder_path"] == project.output / "adapter"
    assert "from_pretrained('owner/name'" in (project.output / "adapter" / "README.md").read_text()


PIPELINE = """
import json, sys
for name in ("peft", "peft_bidora"):
    sys.modules[name] = None
from transformers import pipeline
classify = pipeline("text-classification", model=sys.argv[1])
texts = [json.loads(line)["text"] for line in open(sys.argv[2], encoding="utf-8")]
print(json.dumps([found["label"] for found in classify(texts)]))
"""


@pytest.mark.parametrize("method", ["lora", "bidora"])
def test_merged_run_predicts_the_same_in_a_pipeline(
    method: str, finished: Callable[[str], Project], command: Run, tmp_path: Path
) -> None:
    project = finished(method)
    done = command("merge", project.output, "-o", tmp_path / "merged", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["rows"] == 16
    assert report["difference"] < 1e-4
    predictions = project.output / "predictions.jsonl"
    line = [sys.executable, "-c", PIPELINE, str(tmp_path / "merged"), str(predictions)]
    served = subprocess.run(line, capture_output=True, text=True, check=False)
    assert served.returncode == 0, served.stderr
    expected = [json.loads(row)["predicted_label"] for row in predictions.read_text().splitlines()]
    assert json.loads(served.stdout) == expected
    again = command("merge", project.output, "-o", tmp_path / "merged")
    assert_faults(again, "exists already", "--overwrite")
    assert command("merge", project.output, "-o", tmp_path / "merged", "--overwrite", "--dtype", "bfloat16").code == 0


def test_merged_regression_tells_how_to_read_its_outputs(project: Project, command: Run, tmp_path: Path) -> None:
    from transformers import pipeline

    for name in ("train.jsonl", "test.jsonl"):
        rows = [json.loads(line) for line in (project.folder / name).read_text().splitlines()]
        project.write_rows(name, [{"text": row["text"], "label": 100.5 + index} for index, row in enumerate(rows)])
    assert command("train", project.recipe, "task=regression", "method=lora").code == 0
    merged = tmp_path / "merged"
    report = json.loads(command("merge", project.output, "-o", merged, "--json").out)
    assert json.loads((merged / "merge.json").read_text())["reading"] == report["reading"]
    row = json.loads((project.output / "predictions.jsonl").read_text().splitlines()[0])
    names: dict[str, Any] = {}
    exec("\n".join(report["reading"]).replace('"..."', json.dumps(row["text"])), names)
    # Merged weights round otherwise in float32.
    assert names["prediction"].item() == pytest.approx(row["predicted_value"], rel=1e-5)
    (served,) = pipeline("text-classification", model=str(merged))([row["text"]])  # in the user's unit, without us
    assert served["score"] == pytest.approx(row["predicted_value"], rel=1e-5)
    told = command("merge", project.output, "-o", merged, "--overwrite").out
    assert "Read its predictions:\n" in told
    assert all(f"  {line}\n" in told for line in report["reading"])


def test_merge_never_replaces_what_no_merge_wrote(
    finished: Callable[[str], Project], command: Run, tmp_path: Path
) -> None:
    run = finished("lora").output
    for folder in (tmp_path / "own", run.parent):
        folder.mkdir(exist_ok=True)
        (folder / "thesis.txt").write_text("mine")
        before = sorted(path.name for path in folder.iterdir())
        assert_faults(command("merge", run, "-o", folder, "--overwrite"), "holds what no merge wrote")
        assert sorted(path.name for path in folder.iterdir()) == before
    assert command("merge", run, "-o", tmp_path / "merged").code == 0
    (tmp_path / "merged" / "thesis.txt").write_text("mine")
    again = command("merge", run, "-o", tmp_path / "merged", "--overwrite")
    assert_faults(again, "holds what no merge wrote, thesis.txt")
    (tmp_path / "file").write_text("mine")
    assert_faults(command("merge", run, "-o", tmp_path / "file", "--overwrite"), "is a file")


def test_run_becomes_a_lora_adapter_with_the_error_of_each_layer(
    finished: Callable[[str], Project], command: Run, tmp_path: Path
) -> None:
    done = command("merge", finished("bidora").output, "-o", tmp_path / "lora", "--as-lora", "--rank", 16)
    assert done.code == 0, done.err
    assert "relative error" in done.out
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["r"]) == (False, 16)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("full", [], ["trained in full"]),
        ("lora", ["--as-lora", "--rank", 2], ["is one already"]),
        ("bidora", ["--as-lora"], ["--as-lora and --rank go together"]),
        ("bidora", ["--dtype", "float8"], ["dtype=float8"]),
        ("bidora", ["--as-lora", "--rank", 99], ["rank=99"]),
    ],
)
def test_what_cannot_be_merged_is_refused(
    method: str,
    options: list[object],
    words: list[str],
    finished: Callable[[str], Project],
    command: Run,
    tmp_path: Path,
) -> None:
    assert_faults(command("merge", finished(method).output, "-o", tmp_path / "out", *options), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_run_resumes_to_bit_identical_weights(tmp_path: Path, model_folder: Path) -> None:
    steps = {"search.steps": 40, "retrain.steps": 40, "save_steps": 4, "eval_steps": 4}
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def start(project: Project, *options: str) -> subprocess.Popen[bytes]:
        arguments = ["train", str(project.recipe), *(f"{key}={value}" for key, value in steps.items()), *options]
        line = [sys.executable, "-m", "peft_bidora", *arguments]
        with open(project.folder / "log.txt", "ab") as log:
            return subprocess.Popen(line, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def make(name: str) -> Project:
        (tmp_path / name).mkdir()
        return new_project(tmp_path / name, model_folder)

    whole = make("whole")
    assert start(whole).wait(timeout=300) == 0, (whole.folder / "log.txt").read_text()
    expected = load_file(whole.output / "adapter" / "adapter_model.safetensors")
    moments = random.Random()
    for phase in ("search", "retrain"):
        project = make(phase)
        process = start(project)
        deadline = time.monotonic() + 300
        while not any((project.output / phase).glob("checkpoint-*")):
            assert process.poll() is None, (project.folder / "log.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        delay = moments.uniform(0, 0.5)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"{phase} was over {delay:.3f} s after its first checkpoint"
        assert start(project, "--resume").wait(timeout=300) == 0, (project.folder / "log.txt").read_text()
        found = load_file(project.output / "adapter" / "adapter_model.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), f"{name}, killed {delay:.3f} s after the first {phase} checkpoint"


def test_tensorboard_gets_the_curves_of_both_levels(project: Project, command: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert command("train", project.recipe, "report_to=[tensorboard]").code == 0
    curves = {}
    for phase in ("search", "retrain"):
        (file,) = (project.output / phase).rglob("events.out.tfevents.*")
        events = EventAccumulator(str(file)).Reload()
        curves[phase] = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for name in ("loss", "learning_rate", "upper_loss", "upper_learning_rate", "hypergradient_norm"):
        assert curves["search"][f"train/{name}"] in ([1, 2, 3, 4], [2, 4]), name
    assert curves["retrain"]["eval/accuracy"] == [2, 4]
