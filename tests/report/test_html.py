"""Reports of runs and comparisons: what they show, that strings are escaped, and how they look in a browser."""

import functools
import html.parser
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peft_bidora.errors import CheckpointError, RecipeError
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.run import run
from peft_bidora.report.html import write_report
from peft_bidora.report.tables import write_csv
from peft_bidora.study import compare as compare_module
from peft_bidora.study.plan_file import PLAN, RESULT

Make = Callable[..., Path]
EVIL = "<script>alert(1)</script> & \"$x$\" 'é'"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Tags(html.parser.HTMLParser):
    """Collects the tags, and what would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.identifiers: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action") and not str(value).startswith("#"):
                self.fetched.append(str(value))
            if name == "id":
                self.identifiers.append(str(value))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def report(recipe: Path, *overrides: str) -> str:
    loaded = load_recipe(recipe, overrides)
    run(loaded)
    return write_report(loaded.output).read_text(encoding="utf-8")


def assert_self_contained(text: str) -> Tags:
    found = Tags(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert found.fetched == []
    assert len(found.identifiers) == len(set(found.identifiers))
    assert "@import" not in text
    return found


def test_report_of_a_run_has_its_figures_metrics_and_wrong_rows(make_recipe: Make, tmp_path: Path) -> None:
    text = report(make_recipe())
    found = assert_self_contained(text)

    titles = [word for word in found.words if word.strip()]
    for title in (
        *("Loss on the way", "Confusion", "Calibration", "Magnitudes, before and after"),
        *("What training did to the weights", "Test metrics", "By class", "Cost", "Settings", "Versions"),
    ):
        assert title in titles
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert f"{metrics['test']['accuracy']['value']:.4f}" in text
    wrong = [
        row for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()
        if (row := json.loads(line))["label"] != row["predicted_label"]
    ]  # fmt: skip
    assert wrong
    assert all(row["text"] in text for row in wrong[:12])
    assert found.tags.count("svg") == 5


def test_strings_of_the_data_are_escaped(make_recipe: Make) -> None:
    rows = [{"text": f"{EVIL} good {i}", "label": EVIL if i % 2 else "b"} for i in range(40)]
    text = report(make_recipe(train=rows, test=rows[:12]))
    assert_self_contained(text)
    assert "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize("method", ["lora", "full"])
def test_report_of_a_method_without_magnitudes_has_no_figure_of_them(make_recipe: Make, method: str) -> None:
    text = report(make_recipe(), f"method={method}")
    assert "Magnitudes, before" not in text
    assert ("What training did to the weights" in text) == (method == "lora")


def test_report_of_numbers_shows_predicted_and_true(make_recipe: Make) -> None:
    rows = [{"text": f"good film {i}", "label": i / 7} for i in range(40)]
    text = report(make_recipe(train=rows, test=rows[:12], task="regression"))
    assert "Predicted and true" in text
    assert "farthest from the label" in text


def test_report_of_tags_counts_words_that_differ(make_recipe: Make) -> None:
    rows = [{"tokens": ["good", "film", str(i)], "ner_tags": ["B-A", "O", "B-B"]} for i in range(40)]
    recipe = make_recipe(train=rows, test=rows[:12], task="token-classification")
    text = report(recipe, "data.text=tokens", "data.label=ner_tags")
    assert "By type of entity" in text


def test_folder_without_a_run_or_a_finished_one_is_refused(make_recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds no run and no comparison"):
        write_report(tmp_path)
    run(load_recipe(make_recipe()))
    with pytest.raises(RecipeError, match="expected a file in a folder that there is"):
        write_report(tmp_path / "run", tmp_path / "missing/report.html")
    (tmp_path / "run/metrics.json").unlink()
    with pytest.raises(CheckpointError, match="not finished"):
        write_report(tmp_path / "run")


def comparison(folder: Path, labels: tuple[str, ...] = ("lora", EVIL)) -> Path:
    """A folder that a comparison might have left."""
    methods = []
    for place, label in enumerate(labels):
        values = [0.7 + 0.02 * place + 0.01 * seed for seed in range(3)]
        runs = [
            {
                "rate": rate,
                "seed": str(seed),
                "folder": f"{place}/{rate}-{seed}",
                "stopped": False,
                "chosen": rate == "1",
                "selection": 0.6,
                "seconds": 3.0,
                "peak_memory_bytes": 2**30,
                "trainable_parameters": 9,
                "test": {"accuracy": values[seed], "ece": 0.1},
            }
            for rate in ("0.5", "1")
            for seed in range(3)
        ]
        pair = {"difference": 0.02, "low": -0.01, "high": 0.05, "p": 0.25, "p_corrected": 0.25, "test": "Wilcoxon"}
        methods.append(
            {
                "label": label,
                "method": "lora",
                "rate": 1.0,
                "learning_rates": {"retrain.learning_rate": 0.005},
                "selection_by_rate": {"0.5": 0.5, "1": 0.6},
                "values": values,
                "mean": values[1],
                "standard_deviation": 0.01,
                "others": {"ece": {"mean": 0.1, "standard_deviation": 0.0}},
                "seconds": 3.0,
                "peak_memory_bytes": 2**30,
                "trainable_parameters": 9,
                "runs": runs,
                **({"against_reference": pair} if place else {}),
            }
        )
    for method in methods:
        for each in method["runs"]:
            path = folder / each["folder"] / "metrics.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            entries = [{"phase": "retrain", "step": step, "eval_accuracy": 0.1 * step} for step in (2, 4)]
            path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    result = {
        "metric": "accuracy",
        "lower_is_better": False,
        "reference": labels[0],
        "seeds": [0, 1, 2],
        "folds": None,
        "rates": [0.5, 1.0],
        "methods": methods,
        "notes": ["a note"],
    }
    (folder / PLAN).write_text("{}")
    (folder / RESULT).write_text(json.dumps(result))
    return folder


def test_report_of_a_comparison_tells_the_difference_in_words(tmp_path: Path) -> None:
    text = write_report(comparison(tmp_path)).read_text(encoding="utf-8")
    found = assert_self_contained(text)

    assert found.tags.count("svg") == 4
    words = " ".join(found.words)
    assert "against lora: +0.0200; 3 seeds are too few to tell it from chance." in words
    assert "On the way" in words
    assert "a note" in words


def test_texts_with_other_ends_of_lines_and_names_with_backslashes_are_reported(
    make_recipe: Make, tmp_path: Path
) -> None:
    rows = [{"text": f"good \u2028 film \x85 {i}", "label": ("pos", "neg")[i % 2]} for i in range(40)]
    assert_self_contained(report(make_recipe(train=rows, test=rows[:12])))
    (tmp_path / "other").mkdir()
    text = write_report(comparison(tmp_path / "other", (r"lora a=\d\1", "dora"))).read_text(encoding="utf-8")
    assert r"lora a=\d\1" in text
    with (tmp_path / "run/predictions.jsonl").open("a") as file:
        file.write('{"text": ')
    with pytest.raises(CheckpointError, match=r"predictions\.jsonl is damaged"):
        write_report(tmp_path / "run")


def test_worse_is_worse_where_less_is_better(tmp_path: Path) -> None:
    folder = comparison(tmp_path, ("lora", "dora"))
    result = json.loads((folder / RESULT).read_text())
    result["methods"][1]["against_reference"] |= {"p_corrected": 0.01}
    for lower, word in ((False, "better"), (True, "worse")):
        (folder / RESULT).write_text(json.dumps({**result, "lower_is_better": lower}))
        assert f"+0.0200, {word}, and hardly by the chance of the seeds" in write_report(folder).read_text(
            encoding="utf-8"
        )


def test_table_of_a_comparison_has_a_row_for_each_run(tmp_path: Path) -> None:
    result = compare_module.read_comparison(comparison(tmp_path))
    write_csv(result, tmp_path / "runs.csv")
    lines = (tmp_path / "runs.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("label,rate,seed,chosen,stopped,selection,test_accuracy,test_ece,seconds")
    assert len(lines) == 1 + 12


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address at which the temporary folder is served."""
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


MEASURE = """<iframe id=f src="page.html" style="width:{width}px;height:900px;border:0"></iframe><p id=p></p><script>
f.onload = () => {{ const d = f.contentDocument.documentElement;
p.textContent = JSON.stringify({{wide: d.scrollWidth, shown: d.clientWidth, svg: d.querySelectorAll('svg').length,
small: [...d.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().height < 50).length}}) }}
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_browser_shows_it_without_errors_and_without_scrolling_sideways(
    kind: str, width: int, served: str, tmp_path: Path, make_recipe: Make
) -> None:
    if kind == "run":
        long = [{"text": f"good {'w' * 300} {i}", "label": ("pos", "neg")[i % 2]} for i in range(40)]
        run(load_recipe(make_recipe(train=long, test=long[:12])))
        written = write_report(tmp_path / "run")
    else:
        written = write_report(comparison(tmp_path / "comparison", ("lora", "bidora search.lower_steps=1 " * 3)))
    shutil.copy(written, tmp_path / "page.html")
    (tmp_path / "measure.html").write_text(MEASURE.format(width=width))
    flags = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--virtual-time-budget=5000", "--enable-logging=stderr", "--window-size=1600,1000", "--dump-dom"),
    )
    shown = subprocess.run(
        [str(BROWSER), *flags, f"{served}/measure.html"], capture_output=True, text=True, timeout=120, check=True
    )
    measured = json.loads(shown.stdout.split('<p id="p">')[1].split("</p>")[0])
    assert measured["wide"] <= measured["shown"]
    assert measured["svg"] == (5 if kind == "run" else 4)
    assert measured["small"] == 0
    assert "CONSOLE" not in shown.stderr
