"""A study: many runs, trained side by side where they are of one shape, each with a run folder of its own."""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from peft_bidora.adapter.parameters import restore
from peft_bidora.data.wording import counted
from peft_bidora.errors import CheckpointError, Faults
from peft_bidora.recipe import folder
from peft_bidora.recipe.finish import finish
from peft_bidora.recipe.lane_settings import UNCHECKED, Setting
from peft_bidora.recipe.load import flat
from peft_bidora.recipe.outlook import activation_bytes
from peft_bidora.recipe.output import disk_faults, held
from peft_bidora.recipe.prepare import Prepared, prepare
from peft_bidora.recipe.run import make_trainer
from peft_bidora.recipe.study_folder import (
    STOPPED,
    begin_study,
    check_study,
    divided,
    groups_to_train,
    halved,
    is_begun,
    is_over,
    remove_checkpoints,
)
from peft_bidora.tasks.base_model import load_config
from peft_bidora.training.lane import Lane
from peft_bidora.training.lane_passes import rows_a_pass
from peft_bidora.training.lanes import Watch, train_lanes

logger = logging.getLogger(__name__)
SHOWN_NAMES = 2  # of lanes that a note is of
USED = 0.7  # of the memory that is free, by an estimate that is an upper bound
BYTES_A_PARAMETER = 24  # value, gradient, two moments, and a copy of it when it is perturbed and when it is stacked


@dataclass(frozen=True)
class Outcome:
    """What became of a lane.

    Args:
        setting: what it was.
        metrics: as in its metrics.json; None where it was stopped.
        stopped: why it was; None where it was not.
    """

    setting: Setting
    metrics: dict[str, Any] | None
    stopped: str | None

    def told(self) -> dict[str, Any]:
        """Return it as JSON."""
        said = {"lane": self.setting.name, "values": self.setting.values, "folder": str(self.setting.recipe.output)}
        return {**said, "stopped": self.stopped, **(self.metrics or {})}


def run_lanes(
    settings: Sequence[Setting],
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    at_once: int | None = None,
    announce: Callable[[str], None] = logger.info,
    watch: Watch = lambda *_: None,
) -> list[Outcome]:
    """Train the runs of a study, score each on its test rows and write its run folder.

    Args:
        settings: the runs; their outputs are folders in `output`.
        output: the folder of the study.
        resume: go on with the study that is there: finished lanes are kept, others go on from their checkpoints.
        overwrite: replace the study that is there.
        at_once: most lanes trained side by side; None for what fits the memory.
        announce: takes what a user should know.
        watch: is told the progress of the lanes that are trained.

    Raises:
        BiDoRAError: anything in recipes, data or model, before weights are loaded.
    """
    check_study(output, resume, overwrite)
    with held(output):
        check_study(output, resume, overwrite)
        prepared = _prepare(settings, resume)
        for note in _notes(prepared):
            announce(note)
        with disk_faults(output, "--resume" if resume else "--overwrite"):
            manifests = begin_study(settings, prepared, output, resume)
        with disk_faults(output):
            waiting = groups_to_train(prepared, output, at_once)
            begun = 0
            while waiting:
                names, checkpoint = waiting.pop(0)
                begun += 1
                if begun > 1 or waiting:
                    announce(f"group {begun} of {begun + len(waiting)}: {counted(len(names), 'lane')}, {_some(names)}")
                group = {name: prepared[name] for name in names}
                try:
                    lanes, seconds = _train(group, checkpoint, at_once, watch)
                except (RuntimeError, MemoryError) as error:
                    if not _is_out_of_memory(error):
                        raise
                    if len(names) < 2:
                        raise CheckpointError(
                            f"{names[0]} alone does not fit the memory. Lower batch_size, or data.max_length."
                        ) from error
                    announce(f"{len(names)} lanes do not fit the memory; they go on in two halves.")
                    waiting[:0] = halved(names, checkpoint)
                except TooManyLanes as error:
                    announce(f"{len(names)} lanes may not fit the memory; they are trained {error.fit} at a time.")
                    waiting[:0] = divided(names, checkpoint, error.fit)
                else:
                    _finish(group, lanes, manifests, seconds, watch)
                    checkpoint.unlink(missing_ok=True)
                finally:
                    gc.collect()
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
        remove_checkpoints(output)
        return [_outcome(setting) for setting in settings]


def _some(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _notes(prepared: dict[str, Prepared]) -> Iterator[str]:
    """Yield each note once, with the lanes that it is of where it is not of all."""
    lanes: dict[str, list[str]] = {}
    for name, run in prepared.items():
        for note in run.rows.notes:
            lanes.setdefault(note, []).append(name)
    for note, names in lanes.items():
        yield note if len(names) == len(prepared) else f"{_some(names)}: {note}"


class TooManyLanes(Exception):
    """A group is larger than the memory, by the estimate.

    Args:
        fit: how many would do.
    """

    def __init__(self, fit: int) -> None:
        super().__init__(fit)
        self.fit = fit


def _prepare(settings: Sequence[Setting], resume: bool) -> dict[str, Prepared]:
    """Return each run by its name, checked; all faults are told at once."""
    faults, prepared = Faults(), dict[str, Prepared]()
    read: dict[str, Prepared] = {}
    for setting in settings:
        recipe = setting.recipe
        values = flat(recipe.model_dump(mode="json", by_alias=True))
        key = repr([(name, value) for name, value in values.items() if name not in UNCHECKED])
        known = read.get(key)
        run = replace(known, recipe=recipe) if known else faults.check(prepare, recipe)
        if run is None:
            continue
        read.setdefault(key, run)
        if resume and is_begun(recipe.output):
            faults.check(folder.check_same_run, run.recipe, run.rows)
        prepared[setting.name] = run
    faults.raise_any()
    return prepared


def _train(group: dict[str, Prepared], checkpoint: Path, at_once: int | None, watch: Watch) -> tuple[list[Lane], float]:
    """Train a group; return its lanes, and the seconds of each."""
    first = next(iter(group.values()))
    lanes, model = _lanes(group)
    if at_once is None and not checkpoint.is_file():
        fit = lanes_that_fit(group, model)
        if fit < len(lanes):
            raise TooManyLanes(fit)
    seconds = train_lanes(model, lanes, first.rows.task.collator(first.tokenizer), checkpoint, watch)
    return lanes, seconds / len(lanes)


def _finish(
    group: dict[str, Prepared],
    lanes: Sequence[Lane],
    manifests: dict[str, dict[str, Any]],
    seconds: float,
    watch: Watch,
) -> None:
    """Score each run that is not over and write its folder."""
    for number, lane in enumerate(lanes):
        watch("scoring", number, len(lanes), [])
        run = group[lane.name]
        if is_over(run.recipe.output):
            continue
        if lane.stopped is not None:
            folder.write_json_lines(run.recipe.output / "metrics.jsonl", lane.log)
            folder.write_json(run.recipe.output / STOPPED, {"stopped": lane.stopped})
            continue
        trainer = make_trainer(run)
        named = dict(trainer.model.named_parameters())
        restore({name: named[name] for name in lane.values}, lane.values)
        finish(run, trainer, manifests[lane.name], seconds, lane.log, lane.kept, shown=False)
        del trainer, named  # before the next model is loaded
    watch("scoring", len(lanes), len(lanes), [])


def _lanes(group: dict[str, Prepared]) -> tuple[list[Lane], Any]:
    """Return the lanes, and the model that computes for all of them: that of the method that asks most of it."""
    lanes, model, asked = [], None, -1
    for name, run in group.items():
        trainer = make_trainer(run)
        lanes.append(Lane.of(name, trainer))
        asks = ("lora", "dora", "bidora").index(run.recipe.method)
        if asks > asked:
            model, asked = trainer.model, asks
        del trainer
        gc.collect()
    return lanes, model


def lanes_that_fit(group: dict[str, Prepared], model: Any) -> int:
    """Return how many lanes fit the memory that is free now, with the base model loaded; at least one."""
    first = next(iter(group.values()))
    trainable = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name or "modules_to_save" in name)
    tokens = max(_longest(run) for run in group.values())
    sections = (first.recipe.search, first.recipe.retrain)
    batch = max(section.batch_size for section in sections)  # what `activation_bytes` is of
    of_row = activation_bytes(first.recipe, load_config(first.source), tokens) / batch
    whole = batch * max(section.gradient_accumulation_steps for section in sections)
    free = USED * _free_bytes()

    def fits(count: int) -> bool:
        rows = count * min(whole, rows_a_pass(model.device, count))
        return bool(BYTES_A_PARAMETER * trainable * count + of_row * rows <= free)

    return max((count for count in range(2, len(group) + 1) if fits(count)), default=1)


def _longest(run: Prepared) -> int:
    """Return the most tokens of a row that is trained on."""
    parts = [part for name, part in run.rows.parts.items() if name != "test" and len(part)]
    chunks = (chunk for part in parts for chunk in part.chunks())
    encoded = (run.rows.task.encode(chunk, run.tokenizer, run.max_length)["input_ids"] for chunk in chunks)
    return max(len(ids) for column in encoded for ids in column)


def _free_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    import psutil  # comes with accelerate

    return int(psutil.virtual_memory().available)


def _is_out_of_memory(error: Exception) -> bool:
    told = str(error).lower()
    known = ("allocate memory", "out of memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in told for words in known)


def _outcome(setting: Setting) -> Outcome:
    path = setting.recipe.output
    if (path / STOPPED).is_file():
        return Outcome(setting, None, str(folder.read_object(path / STOPPED, ("stopped",))["stopped"]))
    return Outcome(setting, folder.read_object(path / folder.METRICS, ()), None)
