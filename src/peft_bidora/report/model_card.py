"""The model card of a run, and its upload to the Hugging Face hub."""

import json
from pathlib import Path
from typing import Any

import yaml

from peft_bidora.data.wording import shown
from peft_bidora.errors import BiDoRAError
from peft_bidora.recipe import folder
from peft_bidora.recipe.load import dump_recipe
from peft_bidora.recipe.schema import Recipe

PIPELINES = {
    "sequence-classification": "text-classification",
    "regression": "text-classification",
    "token-classification": "token-classification",
    "text-generation": "text-generation",
}
METHODS = {
    "bidora": "BiDoRA (arXiv:2410.09758): magnitudes learned on a split of their own, then fixed",
    "dora": "DoRA (arXiv:2402.09353)",
    "lora": "LoRA (arXiv:2106.09685)",
    "full": "full fine-tuning",
}
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ method }}, trained for {{ task }} on {{ base }}.
{{ trainable }} of {{ parameters }} parameters were trained, in {{ seconds }} s.

## Metrics

On {{ rows.test }} test rows that were read once, at the end; 95 % bootstrap intervals.

| metric | value | interval |
| --- | --- | --- |
{% for name, value, low, high in scores -%}
| {{ name }} | {{ value }} | {{ low }} – {{ high }} |
{% endfor %}
## Use

```python
{% for line in loading -%}
{{ line }}
{% endfor -%}
```

## Data

{% for name, count in rows.items() -%}
- {{ name }}: {{ count }} rows, sha256 {{ splits[name][:16] }}
{% endfor %}
{{ use_of_splits }}

## Settings

```yaml
{{ recipe }}```

Versions: {% for name, number in versions.items() %}{{ name }} {{ number }}{{ ", " if not loop.last }}{% endfor %}.
"""


def write_model_card(run_folder: Path) -> Path:
    """Write README.md beside the weights of a finished run; return its path.

    Args:
        run_folder: what `run` wrote.
    """
    from huggingface_hub import ModelCard, ModelCardData

    recipe, metrics, manifest = _read(run_folder)
    base, path = _base(recipe), folder.weights_folder(recipe)
    card_data = ModelCardData(
        base_model=None if ":" in base or Path(recipe.model).is_dir() else base,  # a folder's name is a stranger's
        library_name="transformers" if recipe.method == "full" else "peft",
        pipeline_tag=PIPELINES.get(recipe.task),
        tags=["peft-bidora", recipe.method],
        metrics=list(metrics["test"]),
    )
    card = ModelCard.from_template(
        card_data,
        template_str=TEMPLATE,
        title=recipe.push_to_hub or run_folder.name,
        method=METHODS[recipe.method],
        task=recipe.task,
        base=base,
        trainable=f"{metrics['trainable_parameters']:,}",
        parameters=f"{metrics['parameters']:,}",
        seconds=f"{metrics['seconds']:.0f}",
        rows=metrics["rows"],
        scores=[
            (name, *(shown(score[key]) for key in ("value", "low", "high"))) for name, score in metrics["test"].items()
        ],
        loading=[
            folder.LOADED.sub(rf"\1{recipe.push_to_hub or path.name!r}", line) for line in metrics["loading_lines"]
        ],
        splits=manifest["split_sha256"],
        use_of_splits=_use_of_splits(recipe, metrics["rows"]),
        recipe=dump_recipe(_without_paths(recipe)),
        versions=manifest["versions"],
    )
    target = path / "README.md"
    card.save(target)
    return target


def push_to_hub(run_folder: Path, name: str) -> str:
    """Upload the weights of a finished run with their model card; return the address.

    Args:
        run_folder: what `run` wrote, with its card.
        name: owner/name.

    Raises:
        BiDoRAError: whatever the hub's client raised; the run folder is left as it is.
    """
    from huggingface_hub import HfApi

    api, path = HfApi(), folder.weights_folder(_read(run_folder)[0])
    try:
        api.create_repo(name, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=path, commit_message="Add the weights of a run"))
    except Exception as error:  # the hub's client raises a dozen types without a common base
        raise BiDoRAError(
            f"The run is finished in {run_folder}, but push_to_hub={name} failed ({type(error).__name__}: {error})."
            " Check the name, the network and `hf auth login`, then push again by the same command and --resume."
        ) from error


def _read(run_folder: Path) -> tuple[Recipe, dict[str, Any], dict[str, Any]]:
    values = yaml.safe_load((run_folder / folder.RECIPE).read_text(encoding="utf-8"))
    metrics, manifest = (
        json.loads((run_folder / name).read_text(encoding="utf-8")) for name in (folder.METRICS, folder.MANIFEST)
    )
    return Recipe.model_validate({**values, "output": run_folder}), metrics, manifest


def _use_of_splits(recipe: Recipe, rows: dict[str, int]) -> str:
    if recipe.method == "bidora":
        use = "The lower split trained the directions, the upper one the magnitudes"
    else:
        use = "The lower and the upper split were trained on together"
    if not rows["selection"]:
        return f"{use}."
    return f"{use}, the selection split {'chose the checkpoint' if recipe.select_best else 'was looked at alone'}."


def _base(recipe: Recipe) -> str:
    """The base model as others know it: a folder of this machine by its last name."""
    return Path(recipe.model).name if Path(recipe.model).is_dir() else recipe.model


def _without_paths(recipe: Recipe) -> Recipe:
    """The recipe with the names of files in place of where they lay."""
    data = recipe.data
    files = {key: getattr(data, key) for key in ("train", "test", "selection")}
    names = {key: Path(value).name if Path(value).is_absolute() else value for key, value in files.items() if value}
    return recipe.model_copy(
        update={
            "model": _base(recipe),
            "data": data.model_copy(update=names),
            "output": Path(recipe.output.name),
        }
    )
