"""The shape of a recipe: its keys, their defaults and their ranges."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from peft_bidora.data.fields import name_of

Method = Literal["bidora", "dora", "lora", "full"]


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {str(value).lower()}")
    return value


Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
Rate = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32 - 1, strict=True)]  # NumPy's are of 32 bits, and the retrain phase adds 1
Columns = Annotated[list[str], Field(min_length=1, max_length=2)]
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"]


def _system_path(value: Path) -> Path:
    """Return a path with its tilde expanded; whether something is there is another question."""
    try:
        path = value.expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a home of nobody, no permission
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"expected a path that the system takes, got one that it refuses ({reason})") from error
    return path


def _findable(value: str) -> str:
    """Return a name that may be a path, as it is."""
    _system_path(Path(value))
    return value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Source = Annotated[str, AfterValidator(_findable)]


def _named_labels(value: object) -> object:
    """Take the keys of a mapping as the labels that they are in a data file: YAML reads 1 and true as other types."""
    if not isinstance(value, dict):
        return value
    return {key if (name := name_of(key)) is None else name: weight for key, weight in value.items()}


def _steps_unless_epochs(steps: int) -> Callable[[object], object]:
    """Give a phase its default number of steps where neither steps nor epochs are set."""

    def fill(values: object) -> object:
        if isinstance(values, dict) and values.get("steps") is None and values.get("epochs") is None:
            return {**values, "steps": steps}
        return values

    return fill


class Section(BaseModel):
    """A part of a recipe: unknown keys are faults, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class DataSection(Section):
    """Where the rows are and how they are divided.

    Paths are files, folders or hub names. `fold`, counted from 0, is the one of `folds` parts of the train file that is
    the test split; the seed divides them. `test_seed`, else the seed, draws the rows of `test_fraction`: runs of other
    seeds are scored on the same ones by it. The fractions are of the rows that the earlier cuts leave: test, then
    selection, then `max_train_rows`, then upper. Without a selection file, `selection_fraction` is 0.1 unless set.
    """

    train: Source
    test: Source | None = None
    selection: Source | None = None
    text: Annotated[Columns | None, BeforeValidator(_as_list)] = None
    label: str | None = None
    group: str | None = None
    test_fraction: Fraction = 0.0
    test_seed: Seed | None = None
    folds: Annotated[int, Field(ge=2, strict=True)] | None = None
    fold: Annotated[int, Field(ge=0, strict=True)] | None = None
    selection_fraction: Fraction | None = None
    upper_fraction: Fraction = 0.2
    max_train_rows: Count | None = None
    max_length: Count | None = None
    sequences: Literal["text", "protein"] | None = None

    @model_validator(mode="after")
    def _one_of_file_and_fraction(self) -> "DataSection":
        for name in ("test", "selection"):
            if getattr(self, name) is not None and getattr(self, f"{name}_fraction"):
                raise ValueError(
                    f"{name} and {name}_fraction are both set; expected one of them. Remove the other, or set"
                    f" data.{name}_fraction=0"
                )
        return self

    @model_validator(mode="after")
    def _seed_of_a_fraction(self) -> "DataSection":
        if self.test_seed is not None and not self.test_fraction:
            raise ValueError(
                "test_seed draws the rows of test_fraction, which is 0; expected both or none of them. Set"
                " data.test_fraction, or leave data.test_seed out"
            )
        return self

    @model_validator(mode="after")
    def _one_fold(self) -> "DataSection":
        if (self.folds is None) != (self.fold is None):
            raise ValueError("folds and fold go together; expected both or none of them. Set the other")
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold={self.fold} of folds={self.folds}: expected one from 0 to {self.folds - 1}")
        if self.folds is not None and (self.test is not None or self.test_fraction):
            raise ValueError(
                "folds takes the test rows from the train file; expected no test and no test_fraction beside it. Set"
                " data.test=null and data.test_fraction=0"
            )
        return self


class ClassificationSection(Section):
    """What a classification may be told beyond its rows."""

    class_weights: Annotated[Literal["none", "balanced"] | dict[str, Rate], BeforeValidator(_named_labels)] = "none"
    multi_label: bool | None = None


class GenerationSection(Section):
    """How text is generated; keyword arguments of transformers' `GenerationConfig`. Null is the model's own."""

    max_new_tokens: Count = 64
    min_new_tokens: Annotated[int, Field(ge=0, strict=True)] = 0
    num_beams: Count = 1
    do_sample: bool = False
    temperature: Rate | None = None
    top_k: Annotated[int, Field(ge=0, strict=True)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    repetition_penalty: Rate = 1.0
    no_repeat_ngram_size: Annotated[int, Field(ge=0, strict=True)] = 0
    length_penalty: Number = 1.0

    @model_validator(mode="after")
    def _read_by_sampling(self) -> "GenerationSection":
        unread = [name for name in ("temperature", "top_k", "top_p") if getattr(self, name) is not None]
        if unread and not self.do_sample:
            raise ValueError(f"{', '.join(unread)} is set, which only sampling reads. Set do_sample too, or remove it")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}. Lower it"
            )
        return self


class AdapterSection(Section):
    """The adapter: rank r, lora_alpha, dropout before A, what is adapted, and γ of the search phase."""

    rank: Count = 8
    alpha: Count = 16
    dropout: Fraction = 0.0
    target_modules: str | list[str] | None = None
    orthogonality: NonNegative = 1e-5


class PhaseSection(Section):
    """One phase of training; `steps` are optimiser steps, `epochs` passes over its rows."""

    steps: Count | None = None
    epochs: Rate | None = None
    batch_size: Count = 16
    gradient_accumulation_steps: Count = 1
    learning_rate: Rate = 5e-3
    weight_decay: NonNegative = 0.0
    schedule: Schedule = "linear"
    warmup_fraction: Fraction = 0.1
    max_grad_norm: NonNegative = 1.0

    @model_validator(mode="after")
    def _one_length(self) -> "PhaseSection":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both set; expected one of them. Remove the other")
        return self


class SearchSection(PhaseSection):
    """The search phase: the direction on the lower split, the magnitudes on the upper one."""

    _default_length = model_validator(mode="before")(_steps_unless_epochs(200))

    upper_learning_rate: NonNegative = 2e-2
    upper_weight_decay: NonNegative = 0.0
    upper_schedule: Schedule = "constant"
    upper_batch_size: Count | None = None
    lower_steps: Count = 4
    hypergradient: Literal["auto", "finite-difference", "one-sided", "exact", "first-order", "pbgd-free"] = "auto"
    penalty: Rate = 10.0
    xi: Number | Literal["lower-learning-rate", "adam"] = 1.0
    finite_difference_radius: Rate | None = None
    settled: Annotated[Number, Field(gt=0, le=1)] | None = None


class RetrainSection(PhaseSection):
    """The retrain phase, on lower ∪ upper rows; all there is for lora, dora and full."""

    _default_length = model_validator(mode="before")(_steps_unless_epochs(300))

    start: Literal["initial", "search"] = Field(default="search", alias="from")


class Recipe(Section):
    """A whole run."""

    model: Source
    task: str = "sequence-classification"
    method: Method = "bidora"
    data: DataSection
    adapter: AdapterSection = AdapterSection()
    search: SearchSection = SearchSection()
    retrain: RetrainSection = RetrainSection()
    classification: ClassificationSection = ClassificationSection()
    generation: GenerationSection = GenerationSection()
    precision: Literal["float32", "bfloat16"] = "float32"
    base_dtype: Literal["float32", "bfloat16"] | None = None
    quantization: Literal["8bit", "4bit"] | None = None
    activation_checkpointing: bool = False
    seed: Seed = 0
    output: Annotated[Path, AfterValidator(_system_path)]
    logging_steps: Count = 10
    eval_steps: Count = 50
    save_steps: Count = 50
    select_best: bool = True
    select_by: str | None = None
    eval_batch_size: Count = 64
    report_to: list[str] = []
    push_to_hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None

    @model_validator(mode="after")
    def _cadence(self) -> "Recipe":
        if self.select_best and self.save_steps % self.eval_steps:
            raise ValueError(
                f"save_steps={self.save_steps} is no multiple of eval_steps={self.eval_steps}, which select_best needs."
                " Change one of the three"
            )
        return self
