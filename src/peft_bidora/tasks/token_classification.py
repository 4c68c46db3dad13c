"""Tag the words of a sentence: entities in IOB1, IOB2 or BIOES, or one class a word, such as its part of speech."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from peft_bidora.data.examples import Examples
from peft_bidora.data.labels import check_labels_known, label_names
from peft_bidora.data.words import WORDS
from peft_bidora.errors import RecipeError
from peft_bidora.tasks.base_model import token_classifier
from peft_bidora.tasks.class_weights import class_weights
from peft_bidora.tasks.encoding import IGNORED
from peft_bidora.tasks.entities import OUTSIDE, rarest_types, split_tag
from peft_bidora.tasks.logits import at_least_float32, forward
from peft_bidora.tasks.resampling import resampled
from peft_bidora.tasks.tag_metrics import (
    accuracy,
    entity_counts,
    macro_f1,
    rate_table,
    rates,
    tag_counts,
)
from peft_bidora.tasks.tag_notes import encoding_notes
from peft_bidora.tasks.tag_scheme import Scheme, check_scheme, recognise_scheme, scheme_tags
from peft_bidora.tasks.tagging import Tagging, decode_tags, told_entities
from peft_bidora.tasks.task import Array, Columns, TaskKind, TaskOptions
from peft_bidora.tasks.weights import load_weights
from peft_bidora.tasks.word_encoding import (
    WORDS_COLUMN,
    encode_words,
    tokenizer_for_words,
    words_collator,
    words_of,
)

NAME = "token-classification"


@dataclass(frozen=True)
class TokenClassification:
    """Tag words; a label is the tags of a row, a prediction a `Tagging`.

    A word has the tag of its first subword. Words that do not fit into the model are tagged O, or with an empty
    string where there is no O.

    Args:
        label_names: the tags, in the order of the outputs.
        scheme: how the tags mark entities; "plain" where each is a class of its own.
        class_weights: (tags,), what a word of each tag weighs in the loss; None for 1.
    """

    label_names: tuple[str, ...]
    scheme: Scheme
    class_weights: tuple[float, ...] | None = None

    name: ClassVar[str] = NAME
    peft_type: ClassVar[str] = "TOKEN_CLS"
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    has_logits: ClassVar[bool] = True

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of entities f1, precision and recall, over all types together; of plain tags the mean f1."""
        return ("accuracy", "f1_macro") if self.scheme == "plain" else ("f1", "precision", "recall", "accuracy")

    @property
    def outputs(self) -> int:
        """The number of tags."""
        return len(self.label_names)

    @property
    def unread(self) -> str:
        """The tag of words that do not fit into the model."""
        return OUTSIDE if OUTSIDE in self.label_names else ""

    @property
    def types(self) -> list[str]:
        """The types of entities; none of plain tags."""
        return [] if self.scheme == "plain" else sorted({split_tag(tag)[1] for tag in self.label_names} - {""})

    def check(self, examples: Examples) -> None:
        """Raise DataError if the examples have tags that the train rows lack, or entities in another scheme."""
        check_scheme(examples, self.scheme)  # a tag of another scheme is no new class
        check_labels_known(self.label_names, examples)

    def load_model(self, source: str, tokenizer: Any, **loading: Any) -> Any:
        """Return the pretrained model in float32 with a new head, one output a tag."""
        return load_weights(
            source,
            token_classifier(),
            tokenizer,
            label_names=self.label_names,
            **loading,
        )

    def encode(self, examples: Examples, tokenizer: Any, max_length: int) -> Columns:
        """Return token ids, `labels` that are -100 but at the first subword of a word, and the words themselves.

        Without tags in the examples the labels are 0 there: they mark the words.
        """
        encoded = encode_words(words_of(examples), tokenizer, max_length)
        index = {name: position for position, name in enumerate(self.label_names)}
        labels = [[IGNORED] * len(ids) for ids in encoded.columns["input_ids"]]
        for row, firsts in enumerate(encoded.firsts):
            tags = [0] * len(firsts) if examples.labels is None else [index[tag] for tag in examples.labels[row]]
            for place, tag in zip(firsts, tags, strict=False):  # words that were cut have a tag and no place
                labels[row][place] = tag
        return {**encoded.columns, "labels": labels, WORDS_COLUMN: [list(words) for words in words_of(examples)]}

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], Any]:
        """Return the function that pads encoded rows into a batch; words, which no model reads, stay lists."""
        return words_collator(tokenizer)

    def loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """Return the cross entropy in mean nats a word: −Σ_i w(tag_i) log p(tag_i) / words.

        Args:
            outputs: has `logits`, (rows, tokens, tags).
            labels: (rows, tokens), tag indices; -100 counts for nothing.
            num_items_in_batch: words of the whole accumulated batch; None for those given here.
        """
        from torch.nn.functional import cross_entropy

        logits = at_least_float32(outputs["logits"]).flatten(0, 1)
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        words = labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        total = cross_entropy(logits, labels.flatten(), weight=weights, ignore_index=IGNORED, reduction="sum")
        return total / words

    def decode(self, logits: Array, labels: Array | None) -> list[Tagging]:
        """Return the tags of the words of each row; the labels mark the words."""
        if labels is None:
            raise TypeError("labels mark the words among the tokens and are needed to decode tags")
        return decode_tags(logits, labels != IGNORED, self.label_names)

    def predict_batch(self, model: Any, inputs: Any, tokenizer: Any) -> list[Tagging]:
        """Return the tags of all words of each row of a batch."""
        rows = inputs[WORDS_COLUMN]
        logits = forward(model, {name: value for name, value in inputs.items() if name != WORDS_COLUMN})
        found = self.decode(logits, inputs["labels"].cpu().numpy())
        return [tagging.of_words(words, self.unread) for tagging, words in zip(found, rows, strict=True)]

    def scores(self, predictions: Sequence[Tagging], labels: Sequence[tuple[str, ...]]) -> dict[str, float]:
        """Return each metric; those of entities are seqeval's in its default mode."""
        words, found = self._counts(predictions, labels)
        return {name: float(value) for name, value in self._scores(words.sum(0), found.sum(0)).items()}

    def resampled_scores(
        self,
        predictions: Sequence[Tagging],
        labels: Sequence[tuple[str, ...]],
        rng: np.random.Generator,
        resamples: int,
    ) -> dict[str, Array]:
        """Return (resamples,) values of each metric, over rows drawn with replacement."""
        words, found = self._counts(predictions, labels)

        def drawn(times: Array) -> dict[str, Array]:  # times: (draws, rows)
            return self._scores(np.tensordot(times, words, 1), np.tensordot(times, found, 1))

        return resampled(drawn, len(labels), rng, resamples)

    def details(self, predictions: Sequence[Tagging], labels: Sequence[tuple[str, ...]]) -> dict[str, Any]:
        """Return precision, recall and f1 by type of entity; by tag where tags are plain."""
        words, found = self._counts(predictions, labels)
        if self.scheme == "plain":
            return {"by_tag": rate_table(words.sum(0), self.label_names, "words")}
        return {"by_type": rate_table(found.sum(0), self.types, "entities")}

    def prediction_columns(self, predictions: Sequence[Tagging]) -> list[dict[str, object]]:
        """Return `predicted_tags` and `tag_probabilities`, both by word, and of entity tags `entities`.

        An entity has the keys of transformers' token-classification pipeline: `entity_group` its type, `score` the
        mean probability of its tags, `word` its words, `start` and `end` its place in " ".join(words), by characters.
        """
        told = [{"predicted_tags": list(p.tags), "tag_probabilities": list(p.probabilities)} for p in predictions]
        if self.scheme == "plain":
            return list(told)
        return [{**row, "entities": told_entities(tagging)} for row, tagging in zip(told, predictions, strict=True)]

    def state(self) -> dict[str, Any]:
        """Return the tags and their scheme, and their weights where they have any."""
        weights = {} if self.class_weights is None else {"class_weights": list(self.class_weights)}
        return {"label_names": list(self.label_names), "scheme": self.scheme, **weights}

    def _counts(self, predictions: Sequence[Tagging], labels: Sequence[tuple[str, ...]]) -> tuple[Array, Array]:
        """Counts of words by tag, (rows, tags, 3), and of entities by type, (rows, types, 3)."""
        predicted = [p.filled(len(tags), self.unread) for p, tags in zip(predictions, labels, strict=True)]
        words = tag_counts(predicted, labels, self.label_names)
        return words, entity_counts(predicted, labels, self.types) if self.types else words[:, :0]

    def _scores(self, words: Array, found: Array) -> dict[str, Array]:
        right = accuracy(words)
        if self.scheme == "plain":
            return {"accuracy": right, "f1_macro": macro_f1(words)}
        micro = rates(found.sum(-2))
        return {"f1": micro["f1"], "precision": micro["precision"], "recall": micro["recall"], "accuracy": right}


def fit(options: TaskOptions, train: Examples, lower: Examples) -> TokenClassification:
    """Return the task of the tags of the train rows; of entities, with every tag that the scheme has for a type.

    "balanced" weights are those of the words of the lower rows.

    Raises:
        DataError: there is a single tag, or there are tags of no scheme, or of several.
        RecipeError: a tag is weighed that there is not, or the recipe says what this task does not read.
    """
    if len(train.texts[0]) != 1:
        raise RecipeError(f"data.text names two columns; task={NAME} reads the words of one. Correct data.text.")
    scheme = recognise_scheme(train)
    names = label_names(replace(train, labels=list(chain.from_iterable(train.required_labels()))))
    names = names if scheme == "plain" else scheme_tags(names, scheme)

    def balanced() -> list[float]:
        found = Counter(chain.from_iterable(lower.required_labels()))
        return [found.total() / (len(names) * max(found[name], 1)) for name in names]

    return TokenClassification(tuple(names), scheme, class_weights(options.class_weights, names, balanced))


def restore(state: dict[str, Any]) -> TokenClassification:
    """Return the task of a state."""
    weights = state.get("class_weights")
    return TokenClassification(
        tuple(state["label_names"]), state["scheme"], None if weights is None else tuple(weights)
    )


def reading(state: dict[str, Any], _texts: tuple[Any, ...], _tokenizer: Any) -> list[str]:
    """Return the Python that tags words by the stock model; the tag of a word is that of its first token."""
    return [
        f"tags = {state['label_names']!r}",
        'inputs = tokenizer([["..."]], is_split_into_words=True, return_tensors="pt")',
        "tag_of_each_token = [tags[best] for best in model(**inputs).logits[0].argmax(-1)]",
    ]


TOKEN_CLASSIFICATION = TaskKind(
    name=NAME,
    auto_class=token_classifier,
    layout=lambda options, tokenizer: WORDS,
    fit=fit,
    restore=restore,
    strata=lambda examples: rarest_types(examples.labels or []),
    reading=reading,
    tokenizer=tokenizer_for_words,
    encoding_notes=encoding_notes,
    reads=frozenset({"classification.class_weights"}),
    classes=lambda examples: chain.from_iterable(examples.required_labels()),
)
