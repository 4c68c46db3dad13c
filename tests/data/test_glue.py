import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
from glue_folders import QUOTE, write_glue

from peft_bidora.data import glue
from peft_bidora.data.glue import find_glue, glue_of_file, glue_of_hub, labelled_test
from peft_bidora.data.glue_tasks import GLUE, GlueTask
from peft_bidora.data.source import find_split_files, read_table
from peft_bidora.data.stream import open_chunks
from peft_bidora.errors import DataError

FIRST = {  # text columns and label of the first train row
    "CoLA": (("sentence",), "unacceptable"),
    "SST-2": (("sentence",), "negative"),
    "MRPC": (("sentence1", "sentence2"), "not_equivalent"),
    "QQP": (("question1", "question2"), "not_duplicate"),
    "STS-B": (("sentence1", "sentence2"), "5.000"),
    "MNLI": (("sentence1", "sentence2"), "entailment"),
    "QNLI": (("question", "sentence"), "entailment"),
    "RTE": (("sentence1", "sentence2"), "entailment"),
    "WNLI": (("sentence1", "sentence2"), "not_entailment"),
}
NAMES = tuple(FIRST)
BY_FOLDER = {task.folder: task for task in GLUE}


def test_there_are_nine_tasks() -> None:
    assert tuple(task.folder for task in GLUE) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_train_rows_of_an_official_folder_have_texts_and_named_labels(name: str, tmp_path: Path) -> None:
    task, (text, label) = BY_FOLDER[name], FIRST[name]
    table = read_table(write_glue(tmp_path, name))
    row = table.rows[0]
    assert task.text == text
    assert [row[column] for column in text] == [f"{QUOTE} in train row 0{end}" for end in ("", " again")][: len(text)]
    assert row["label"] == label
    assert len(table.rows) == 40
    assert table.lines[0] == (1 if name == "CoLA" else 2)
    if task.classes:
        assert {row["label"] for row in table.rows} == set(task.classes)


@pytest.mark.parametrize("name", NAMES)
def test_test_rows_are_scored_where_their_labels_are_public_and_validation_rows_elsewhere(
    name: str, tmp_path: Path
) -> None:
    folder = write_glue(tmp_path, name)
    source, split, note = labelled_test(str(folder))
    scored = read_table(source, split)
    assert all(row["label"] for row in scored.rows)
    if name == "MRPC":
        assert (len(scored.rows), note) == (5, None)
    else:
        dev = folder / ("dev_matched.tsv" if name == "MNLI" else "dev.tsv")
        assert (len(scored.rows), source) == (6, str(dev))
        assert note == f"The test labels of {name} are not public: {dev} serves as the test rows."
    unlabelled = read_table(folder / ("test_matched.tsv" if name == "MNLI" else "test.tsv"))
    assert "label" not in unlabelled.columns
    assert len(unlabelled.rows) == 5


@pytest.mark.parametrize("name", NAMES)
def test_stream_of_an_official_file_is_its_table(name: str, tmp_path: Path) -> None:
    path = find_split_files(write_glue(tmp_path, name))["train"]
    whole = read_table(path)
    with open_chunks(str(path), 7) as chunks:
        tables = list(chunks.tables)
    assert [row for table in tables for row in table.rows] == whole.rows
    assert [line for table in tables for line in table.lines] == whole.lines


def test_mismatched_rows_are_read_by_the_name_of_their_file(tmp_path: Path) -> None:
    table = read_table(write_glue(tmp_path, "MNLI") / "dev_mismatched.tsv")
    assert table.rows[1]["sentence1"] == f"{QUOTE} in mismatched row 1"
    assert table.rows[1]["label"] == "neutral"


def test_paraphrases_of_msr_alone_give_train_and_test(tmp_path: Path) -> None:
    folder = write_glue(tmp_path, "MRPC")
    for name in ("train.tsv", "dev.tsv", "test.tsv", "dev_ids.tsv"):
        (folder / name).unlink()
    assert find_split_files(folder).keys() == {"train", "test"}
    table = read_table(folder)
    assert len(table.rows) == 46
    assert table.rows[0]["sentence2"] == f"{QUOTE} in train row 0 again"
    assert labelled_test(str(folder)) == (str(folder), "test", None)


def test_rows_of_qqp_that_are_cut_off_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_glue(tmp_path, "QQP")
    with caplog.at_level(logging.WARNING):
        table = read_table(folder)
    assert table.lines[:3] == [2, 3, 5]
    assert caplog.messages == [f"{folder / 'train.tsv'}: 1 row is cut off and left out"]


@pytest.mark.parametrize("line", ["7\ta\tb", "7\ta\tb\tentailment\tmore"])
def test_row_of_another_length_is_a_fault_elsewhere(line: str, tmp_path: Path) -> None:
    folder = write_glue(tmp_path, "RTE")
    with (folder / "train.tsv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=r"train\.tsv, line 42: [35] cells, but RTE has 4 \('index', 'sentence1'"):
        read_table(folder)


@pytest.mark.parametrize("label", ["2", "maybe", "", "-1"])
def test_label_that_is_no_class_of_the_task_is_a_fault(label: str, tmp_path: Path) -> None:
    folder = write_glue(tmp_path, "RTE")
    with (folder / "dev.tsv").open("a") as file:
        file.write(f"7\ta\tb\t{label}\n")
    with pytest.raises(DataError, match=rf"dev\.tsv, line 8: the label '{label}' is no class of RTE, which has 'entai"):
        read_table(folder, "validation")


def test_file_of_another_layout_is_no_official_one(tmp_path: Path) -> None:
    (tmp_path / "RTE").mkdir()
    path = tmp_path / "RTE" / "train.tsv"
    path.write_text('text\tlabel\n"a ""word"" here"\t0\n')
    assert glue_of_file(path) is None
    assert read_table(path).rows == [{"text": 'a "word" here', "label": "0"}]
    assert read_table(path.parent).rows == read_table(path).rows


@pytest.mark.parametrize("name", ["rte", "Rte", "SST2", "stsb", "mnli"])
def test_folder_may_be_spelled_without_case_and_hyphens(name: str, tmp_path: Path) -> None:
    official = {"sst2": "SST-2", "stsb": "STS-B", "mnli": "MNLI", "rte": "RTE"}[name.lower()]
    write_glue(tmp_path, official).rename(tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / name)
    assert find_glue(str(tmp_path / name)) is BY_FOLDER[official]


def test_relative_names_are_seen_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_glue(tmp_path, "CoLA"))
    assert find_glue(".") is find_glue("train.tsv") is BY_FOLDER["CoLA"]


@pytest.mark.parametrize(
    ("source", "config", "flavour"),
    [
        ("glue/rte", "rte", ""),
        ("glue/SST-2", "sst2", ""),
        ("nyu-mll/glue:stsb", "stsb", ""),
        ("glue/mnli", "mnli", "_matched"),
        ("glue/mnli_mismatched", "mnli", "_mismatched"),
    ],
)
def test_hub_names_of_tasks(source: str, config: str, flavour: str) -> None:
    found = glue_of_hub(source)
    assert found is not None
    assert (found[0].config, found[1]) == (config, flavour)


@pytest.mark.parametrize("source", ["glue/ax", "other/glue:rte", "glue", "glue/rte_matched", "nyu-mll/glue", "rte"])
def test_other_hub_names_are_of_no_task(source: str) -> None:
    assert glue_of_hub(source) is None


def hub_rows(task: GlueTask, part: str, count: int) -> list[dict[str, Any]]:
    """Rows as the hub has them: classes are numbers, and -1 where they are hidden."""
    labels: list[Any] = list(range(len(task.classes))) or [4.5, 0.25]
    if part.startswith("test") and task.config != "mrpc":
        labels = [-1 if task.classes else -1.0]
    texts = {column: f"{column} of {part}" for column in task.text}
    return [{**texts, "label": labels[n % len(labels)], "idx": n} for n in range(count)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `datasets` reads as it reads the hub's data set, without a network."""
    folder = tmp_path / "hub"
    configs = []
    for task in GLUE:
        kinds = ["_matched", "_mismatched"] if task.flavours else [""]
        parts = ["train", *(f"{split}{kind}" for split in ("validation", "test") for kind in kinds)]
        (folder / task.config).mkdir(parents=True)
        for part in parts:
            lines = [json.dumps(row) for row in hub_rows(task, part, 6)]
            (folder / task.config / f"{part}.jsonl").write_text("\n".join(lines))
        files = [{"split": part, "path": f"{task.config}/{part}.jsonl"} for part in parts]
        configs.append({"config_name": task.config, "data_files": files})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    monkeypatch.setattr(glue, "GLUE_HUB", str(folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    yield folder
    datasets.enable_progress_bars()


@pytest.mark.parametrize("config", [task.config for task in GLUE])
def test_rows_of_the_hub_get_the_names_of_their_classes(config: str, hub: Path) -> None:
    task = next(task for task in GLUE if task.config == config)
    table = read_table(f"glue/{config}", "train")
    assert table.source == f"glue/{config}"
    assert [table.rows[0][column] for column in task.text] == [f"{column} of train" for column in task.text]
    expected = task.classes or (4.5, 0.25)
    assert [row["label"] for row in table.rows] == [expected[n % len(expected)] for n in range(6)]
    validation = "validation_matched" if config == "mnli" else "validation"
    source, split, note = labelled_test(f"glue/{config}")
    scored = read_table(source, split)
    assert scored.rows[0][task.text[0]] == f"{task.text[0]} of {'test' if config == 'mrpc' else validation}"
    assert (note is None) == (config == "mrpc")


def test_hidden_labels_of_the_hub_are_none(hub: Path) -> None:
    assert {row["label"] for row in read_table("glue/rte", "test").rows} == {None}
    assert {row["label"] for row in read_table("nyu-mll/glue:stsb", "test").rows} == {None}


def test_mismatched_rows_of_the_hub_have_a_name_of_their_own(hub: Path) -> None:
    assert read_table("glue/mnli_mismatched", "validation").rows[0]["sentence1"] == "sentence1 of validation_mismatched"
    assert read_table("glue/mnli_mismatched", "train").rows[0]["sentence1"] == "sentence1 of train"


def test_number_of_no_class_is_a_fault_of_the_hub(hub: Path) -> None:
    path = hub / "rte" / "train.jsonl"
    path.write_text(path.read_text().replace('"label": 1', '"label": 7'))
    with pytest.raises(DataError, match=r"glue/rte, row 2: the label 7 is no class of RTE"):
        read_table("glue/rte")


def test_what_lies_here_comes_before_the_hub(hub: Path, tmp_path: Path) -> None:
    write_glue(tmp_path / "glue", "rte")
    assert len(read_table("glue/rte").rows) == 40
