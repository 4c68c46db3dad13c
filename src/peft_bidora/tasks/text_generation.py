"""Write a text for a prompt, by a causal model or an encoder-decoder."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from peft_bidora.data.examples import Examples
from peft_bidora.tasks.completions import encode_causal, encode_pairs, learned_separator, pad_right, prompt_reading
from peft_bidora.tasks.prompts import one_row_a_prompt, one_row_a_reference, prompt_layout, split_messages
from peft_bidora.tasks.task import Array, Columns, Task, TaskKind, TaskOptions
from peft_bidora.tasks.text_metrics import Summable, perplexity, resample, signatures, text_metrics
from peft_bidora.tasks.truncation import cut_notes
from peft_bidora.tasks.weights import load_weights

NAME = "text-generation"


@dataclass(frozen=True)
class TextGeneration:
    """Write texts; a label is a tuple of references, a prediction a `Generated`.

    A model learns the completion and the end-of-text token behind it, not the prompt. Of several references the first
    is learned, and measured by the loss and the perplexity; the other metrics compare with all.

    Args:
        encoder_decoder: whether the prompt is read by an encoder; else it stands before the completion.
        separator: between prompt and completion of a causal model.
        generation: keyword arguments of transformers' GenerationConfig.
        seed: of sampling.
    """

    encoder_decoder: bool
    separator: str
    generation: dict[str, Any]
    seed: int

    name: ClassVar[str] = NAME
    metrics: ClassVar[tuple[str, ...]] = ("bleu", "chrf", "nist", "rouge_l", "perplexity")
    lower_is_better: ClassVar[tuple[str, ...]] = ("perplexity",)
    outputs: ClassVar[None] = None
    loss: ClassVar[None] = None  # the model's own, weighed by its label tokens in ExactTrainer
    has_logits: ClassVar[bool] = False

    @property
    def peft_type(self) -> str:
        """PEFT's task type."""
        return "SEQ_2_SEQ_LM" if self.encoder_decoder else "CAUSAL_LM"

    @property
    def reserved(self) -> int:
        """The tokens of a row that a prompt leaves free for what is generated."""
        return 0 if self.encoder_decoder else int(self.generation["max_new_tokens"])

    def check(self, examples: Examples) -> None:
        """Pass: any text is a reference."""

    def load_model(self, source: str, tokenizer: Any, **loading: Any) -> Any:
        """Return the pretrained model in float32."""
        return load_weights(source, _auto_class(self.encoder_decoder), tokenizer, **loading)

    def encode(self, examples: Examples, tokenizer: Any, max_length: int) -> Columns:
        """Return columns of token ids, unpadded, and `labels` of the first reference where there are any.

        Args:
            examples: (rows,), with or without references.
            tokenizer: of the model.
            max_length: the most tokens of a row: for a causal model of the prompt with the completion or with
                max_new_tokens, the longer, and the prompt is cut on the left; else of prompt and completion each.

        Raises:
            ModelError: the tokenizer has no end-of-text token.
        """
        if self.encoder_decoder:
            return encode_pairs(examples, tokenizer, max_length)
        return encode_causal(examples, tokenizer, self.separator, max_length, self.reserved)

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], Any]:
        """Return the function that pads encoded rows into a batch."""
        return pad_right(tokenizer)

    def decode(self, logits: Array, labels: Array | None) -> list[Any]:
        """Refuse: text is not read from the logits of a pass, as `has_logits` says."""
        raise NotImplementedError("text is generated token by token; use predict_batch")

    def predict_batch(self, model: Any, inputs: Any, tokenizer: Any) -> list[Any]:
        """Return the `Generated` of each row of a batch, with the probability of its first reference."""
        from peft_bidora.tasks.generating import generate

        causal = not self.encoder_decoder
        return list(generate(model, inputs, tokenizer, causal=causal, settings=self.generation, seed=self.seed))

    def scores(self, predictions: Sequence[Any], labels: Sequence[tuple[str, ...]]) -> dict[str, float]:
        """Return bleu, chrf, nist, rouge_l and perplexity, as `text_metrics` has them."""
        return {name: metric.value() for name, metric in self._metrics(predictions, labels).items()}

    def resampled_scores(
        self,
        predictions: Sequence[Any],
        labels: Sequence[tuple[str, ...]],
        rng: np.random.Generator,
        resamples: int,
    ) -> dict[str, Array]:
        """Return (resamples,) values of each metric, over rows drawn with replacement."""
        return resample(self._metrics(predictions, labels), rng, resamples)

    def details(self, predictions: Sequence[Any], labels: Sequence[tuple[str, ...]]) -> dict[str, Any]:
        """Return sacrebleu's signatures, and how many texts are empty or were ended by max_new_tokens."""
        return {
            "signatures": signatures(labels),
            "references": sum(map(len, labels)),
            "empty_texts": sum(not prediction.text for prediction in predictions),
            "cut_by_max_new_tokens": sum(not prediction.ended for prediction in predictions),
        }

    def prediction_columns(self, predictions: Sequence[Any]) -> list[dict[str, object]]:
        """Return `predicted_text`."""
        return [{"predicted_text": prediction.text} for prediction in predictions]

    def state(self) -> dict[str, Any]:
        """Return all of it."""
        return asdict(self)

    def _metrics(self, predictions: Sequence[Any], labels: Sequence[tuple[str, ...]]) -> dict[str, Summable]:
        texts = tuple(each.text for each in predictions)
        nats, tokens = [each.nats for each in predictions], [each.tokens for each in predictions]
        return {**text_metrics(texts, tuple(map(tuple, labels))), "perplexity": perplexity(nats, tokens)}


def fit(options: TaskOptions, train: Examples, lower: Examples) -> TextGeneration:
    """Return the task with the separator that the train rows ask for."""
    separator = "" if options.encoder_decoder else learned_separator(train)
    return TextGeneration(options.encoder_decoder, separator, dict(options.generation), options.seed)


def reading(state: dict[str, Any], texts: tuple[Any, ...], tokenizer: Any) -> list[str]:
    """Return the Python that writes the text for a prompt by the stock model."""
    task = TextGeneration(**state)
    settings = "".join(f", {name}={value!r}" for name, value in task.generation.items())
    written = "written[0]" if task.encoder_decoder else 'written[0, inputs["input_ids"].shape[1] :]'
    return [
        prompt_reading(texts, tokenizer, task.separator, task.encoder_decoder),
        f"written = model.generate(**inputs{settings}, eos_token_id=tokenizer.eos_token_id)",
        f"predicted_text = tokenizer.decode({written}, skip_special_tokens=True).strip()",
    ]


def folded(task: Task, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Let a merged model write as the run does, by its generation_config.json."""
    from peft_bidora.tasks.generating import written_settings

    assert isinstance(task, TextGeneration)
    model.generation_config.update(**written_settings(model, tokenizer, task.generation))
    return task.state()


def _auto_class(encoder_decoder: bool) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM


TEXT_GENERATION = TaskKind(
    name=NAME,
    auto_class=lambda config: _auto_class(config.is_encoder_decoder),
    layout=lambda options, tokenizer: prompt_layout(tokenizer),
    fit=fit,
    restore=lambda state: TextGeneration(**state),
    strata=lambda examples: [""] * len(examples),
    arrange=split_messages,
    reading=reading,
    folded=folded,
    encoding_notes=lambda task, *encoding: cut_notes(task.separator, task.reserved, task.encoder_decoder, *encoding),
    learned=one_row_a_reference,
    scored=one_row_a_prompt,
    reads=frozenset({"generation"}),
)
