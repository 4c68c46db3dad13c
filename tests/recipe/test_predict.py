"""Predicting rows by a finished run: what is kept, what is added, what a fault leaves behind."""

import csv
import io
import json
import shutil
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from safetensors.torch import load_file, save_file

from peft_bidora.errors import CheckpointError, DataError, RecipeError
from peft_bidora.recipe import predict as predict_module
from peft_bidora.recipe.finished import evaluate, load_trained, read_run
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.predict import predict_file
from peft_bidora.recipe.run import run

WORDS = ("good", "fine", "bad", "poor", "film", "shop")
TOLERANCE = 1e-5  # padding and the order of sums move a float32 logit by 1e-6 or so
Rows = list[dict[str, Any]]


def texts(count: int) -> list[str]:
    """Texts of one to nine words."""
    return [" ".join(WORDS[(n + k) % 6] for k in range(1 + n * 7 % 9)) for n in range(count)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    # To a tiny random encoder all texts are nearly one: let it tell them apart.
    weights = shutil.copytree(model_folder, folder / "model") / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: 20 * tensor if tensor.dim() > 1 else tensor for name, tensor in tensors.items()}, weights)
    rows = [{"text": text, "label": "neg" if text.split()[0] in WORDS[:3] else "pos"} for text in texts(60)]
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": str(folder / "model"),
        "method": "lora",
        "data": {"train": "train.jsonl", "test": "test.jsonl", "text": "text", "label": "label"},
        "retrain": {"steps": 2, "batch_size": 4, "learning_rate": 0.02},
        "eval_steps": 2,
        "save_steps": 2,
        "output": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(load_recipe(folder / "recipe.yaml"))
    return folder / "run"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_module, "load_trained", lambda _: pytest.fail("weights were loaded"))


def lines(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_file(path: Path, rows: Rows) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text(lines(rows))
    return path


def expected(finished: Path, count: int) -> tuple[list[str], list[float]]:
    """Labels and probabilities of `pos`, a text at a time and unpadded."""
    import torch

    read_back = read_run(finished)
    model = load_trained(read_back).eval()
    labels, probabilities = [], []
    for text in texts(count):
        with torch.no_grad():
            (logits,) = model(**read_back.tokenizer(text, return_tensors="pt"))["logits"].double().softmax(-1)
        labels.append(("neg", "pos")[int(logits.argmax())])
        probabilities.append(float(logits[1]))
    return labels, probabilities


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet", ".json"])
def test_rows_of_every_format_are_kept_in_order_and_predicted(suffix: str, finished: Path, tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": text, "more": "ä, b"} for n, text in enumerate(texts(23))]
    source = write_file(tmp_path / f"in{suffix}", rows)
    assert predict_file(finished, str(source), tmp_path / "out.jsonl", batch_size=4) == 23
    found = read(tmp_path / "out.jsonl")
    labels, probabilities = expected(finished, 23)
    assert [{name: row[name] for name in ("id", "text", "more")} for row in found] == rows
    assert [row["predicted_label"] for row in found] == labels
    assert np.std(probabilities) > 1000 * TOLERANCE
    np.testing.assert_allclose([row["probabilities"]["pos"] for row in found], probabilities, atol=TOLERANCE)
    assert not (tmp_path / "out.jsonl.partial").exists()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".ndjson"])
def test_every_output_format_holds_the_same(suffix: str, finished: Path, tmp_path: Path) -> None:
    source = write_file(tmp_path / "in.jsonl", [{"text": text, "n": n} for n, text in enumerate(texts(5))])
    plain, output = tmp_path / "plain.jsonl", tmp_path / f"out{suffix}"
    predict_file(finished, str(source), plain)
    predict_file(finished, str(source), output)
    if suffix == ".parquet":
        assert pyarrow.parquet.read_table(output).to_pylist() == read(plain)
    elif suffix == ".ndjson":
        assert output.read_bytes() == plain.read_bytes()
    else:
        with output.open(newline="") as file:
            found = list(csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ","))
        assert list(found[0]) == ["text", "n", "predicted_label", "probability_neg", "probability_pos"]
        for row, same in zip(found, read(plain), strict=True):
            assert (row["predicted_label"], row["n"]) == (same["predicted_label"], str(same["n"]))
            assert float(row["probability_pos"]) == same["probabilities"]["pos"]


@pytest.mark.parametrize("chunk", [1, 4, 6, 1024])
def test_chunks_do_not_show_in_the_rows(
    chunk: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_file(tmp_path / "in.jsonl", [{"text": text} for text in texts(13)])
    monkeypatch.setattr(predict_module, "CHUNK_ROWS", chunk)
    predict_file(finished, str(source), tmp_path / "out.jsonl", batch_size=4)
    found = read(tmp_path / "out.jsonl")
    assert [row["text"] for row in found] == texts(13)
    np.testing.assert_allclose(
        [row["probabilities"]["pos"] for row in found], expected(finished, 13)[1], atol=TOLERANCE
    )


@pytest.mark.parametrize(
    "labels",
    [{}, {"label": None}, {"label": ""}, {"label": "of no class"}, {"label": ["strange"]}],
    ids=["missing", "null", "empty", "unknown", "a list"],
)
def test_labels_are_neither_needed_nor_looked_at(labels: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    source = write_file(tmp_path / "in.jsonl", [{"text": "good film", **labels}, {"text": "bad", "label": "pos"}])
    assert predict_file(finished, str(source), tmp_path / "out.jsonl") == 2
    first, second = read(tmp_path / "out.jsonl")
    assert {name: first[name] for name in labels} == labels
    assert second["label"] == "pos"


def test_rows_go_from_stream_to_stream(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = SimpleNamespace(buffer=io.BytesIO(lines([{"text": text} for text in texts(9)]).encode()))
    monkeypatch.setattr(sys, "stdin", given)
    output = io.BytesIO()
    assert predict_file(finished, "-", output, batch_size=2) == 9
    assert [json.loads(line)["text"] for line in output.getvalue().splitlines()] == texts(9)


def test_progress_tells_rows_done_and_expected(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_module, "CHUNK_ROWS", 4)
    source = write_file(tmp_path / "in.parquet", [{"text": text} for text in texts(10)])
    told: list[tuple[int, int | None]] = []
    predict_file(
        finished, str(source), tmp_path / "out.jsonl", batch_size=2, progress=lambda *numbers: told.append(numbers)
    )
    assert told == [(n, 10) for n in (2, 4, 6, 8, 10)]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("[]", r"in\.jsonl, line 6: .*expected an object, found a list"),
        ('{"text": " "}', r"in\.jsonl: 1 row has an empty text in 'text' \(line 6\)"),
        ('{"n": 1}', r"in\.jsonl: 1 row has no text in 'text' \(line 6\)"),
        ('{"text": "a", "predicted_label": "b"}', r"have the column 'predicted_label', which a prediction adds"),
    ],
)
def test_broken_row_names_its_line_and_says_what_was_written(
    broken: str, message: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_module, "CHUNK_ROWS", 2)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = [{"text": text} for text in texts(8)]
    source.write_text(f"{lines(good[:5])}{broken}\n{lines(good[5:])}")
    with pytest.raises(DataError, match=message) as caught:
        predict_file(finished, str(source), output, batch_size=2)
    assert caught.value.faults[-1] == f"Of the rows before, 4 were written to {output}.partial."
    assert [row["text"] for row in read(tmp_path / "out.jsonl.partial")] == texts(4)
    assert not output.exists()
    stream = io.BytesIO()
    with pytest.raises(DataError, match="Of the rows before, 4 were written to standard output"):
        predict_file(finished, str(source), stream, batch_size=2)
    assert stream.getvalue() == (tmp_path / "out.jsonl.partial").read_bytes()


def test_parquet_of_the_rows_before_a_fault_can_be_read(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_module, "CHUNK_ROWS", 2)
    (tmp_path / "in.jsonl").write_text(lines([{"text": text} for text in texts(4)]) + "{\n")
    with pytest.raises(DataError, match=r"4 were written to .*out\.parquet\.partial"):
        predict_file(finished, str(tmp_path / "in.jsonl"), tmp_path / "out.parquet", batch_size=2)
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet.partial").num_rows == 4


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"txt": "a"}\n', r"in\.jsonl has no column 'text', from which the run .* it has 'txt'\. Did you mean 'txt'"),
        ('{"text": ""}\n', r"an empty text in 'text' \(line 1\)"),
        ("", "in.jsonl is empty"),
    ],
)
def test_fault_of_the_first_rows_comes_before_weights_and_files(
    content: str, message: str, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        predict_file(finished, str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl")
    assert len(caught.value.faults) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "in.jsonl"]


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("there.jsonl", r"there\.jsonl exists already\. Replace it by --overwrite"),
        ("out.xlsx", r"unknown suffix '\.xlsx'; predictions are written as \.jsonl, \.ndjson, \.csv, \.tsv, \.parquet"),
        ("nowhere/out.csv", "folder of .* does not exist"),
        ("folder.csv", "is a folder; expected a file to make"),
    ],
)
def test_output_that_cannot_be_made_is_refused_at_once(name: str, message: str, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(RecipeError, match=message):
        predict_file(finished, "in.jsonl", tmp_path / name)
    assert (tmp_path / "there.jsonl").read_text() == "mine"


def test_overwriting_replaces_the_file_at_the_end(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_module, "CHUNK_ROWS", 2)
    output = tmp_path / "out.jsonl"
    output.write_text("old")
    source = write_file(tmp_path / "in.jsonl", [{"text": text} for text in texts(4)])
    seen = []
    predict_file(
        finished, str(source), output, batch_size=2, overwrite=True, progress=lambda *_: seen.append(output.read_text())
    )
    assert seen == ["old", "old"]
    assert len(read(output)) == 4


def test_interrupt_leaves_the_rows_so_far_and_no_file(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_module, "CHUNK_ROWS", 2)
    source = write_file(tmp_path / "in.jsonl", [{"text": text} for text in texts(6)])

    def interrupt(done: int, _: int | None) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(finished, str(source), tmp_path / "out.jsonl", batch_size=2, progress=interrupt)
    assert not (tmp_path / "out.jsonl").exists()
    assert len(read(tmp_path / "out.jsonl.partial")) == 4


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        predict_file(tmp_path, "in.jsonl", tmp_path / "out.jsonl")


def test_memory_does_not_grow_with_the_rows(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is left out, so that what is held of the rows shows."""
    monkeypatch.setattr(predict_module, "CHUNK_ROWS", 64)
    monkeypatch.setattr(predict_module, "load_trained", lambda _: None)
    monkeypatch.setattr(predict_module, "predict_with", lambda run, model, rows, *_: [np.zeros(2)] * len(rows))

    def peak(count: int) -> int:
        source = write_file(tmp_path / "in.jsonl", [{"text": text, "n": n} for n, text in enumerate(texts(count))])
        tracemalloc.start()
        assert predict_file(finished, str(source), tmp_path / "out.csv", batch_size=64, overwrite=True) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(64)  # what imports and first calls keep
    # Some 300 kB, and a tenth more or less by the moments of the garbage collector; 4096 rows at once take 2.5 MB.
    assert peak(4096) < 1.5 * peak(256)


def test_evaluation_has_the_scores_and_details_of_the_run(finished: Path, tmp_path: Path) -> None:
    own = evaluate(finished)
    predict_file(finished, str(finished.parent / "test.jsonl"), tmp_path / "out.jsonl")
    right = [row["label"] == row["predicted_label"] for row in read(tmp_path / "out.jsonl")]
    assert own.scores["accuracy"]["value"] == sum(right) / len(right)
    assert [row["label"] for row in own.details["by_class"]] == ["neg", "pos"]
    rows = [json.loads(line) for line in (finished.parent / "test.jsonl").read_text().splitlines()]
    for suffix in (".csv", ".tsv", ".parquet", ".json"):
        again = evaluate(finished, str(write_file(tmp_path / f"in{suffix}", rows)))
        assert (again.scores, again.details, again.notes) == (own.scores, own.details, [])
