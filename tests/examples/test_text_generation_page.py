"""The recipe and the commands of docs/text-generation.md are run as they stand, on rows made here."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from peft_bidora import cli

PAGE = Path(__file__).parents[2] / "docs/text-generation.md"
SHORT = {
    "python": ["--steps", "2", "--layers", "1", "--width", "16", "--length", "16"],
    "train": ["search.steps=2", "retrain.steps=2", "eval_steps=2", "save_steps=2", "generation.max_new_tokens=8"],
}


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return str(text)


def test_recipe_and_commands_run(load_example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "recipe.yaml").write_text(block("yaml"))
    rows = [
        {"prompt": f"{a} {b}", "completion": f"the {a} {b}"}
        for a in ("red", "old", "wet", "big", "dry")
        for b in ("fox", "hat", "door", "boat")
    ]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    for line in block("bash").splitlines():
        program, first, *arguments = shlex.split(line, comments=True)
        if program == "python":
            load_example(Path(first).stem).main([*arguments, *SHORT["python"]])
        else:
            monkeypatch.setattr(sys, "argv", [program, first, *arguments, *SHORT.get(first, [])])
            with pytest.raises(SystemExit, match="0"):
                cli.main()
    assert "perplexity" in capsys.readouterr().out


def test_every_generation_key_and_metric_is_told() -> None:
    from peft_bidora.recipe.schema import GenerationSection
    from peft_bidora.tasks.text_generation import TextGeneration

    page = PAGE.read_text(encoding="utf-8")
    for name in (*GenerationSection.model_fields, *TextGeneration.metrics):
        assert f"`{name}`" in page, name
