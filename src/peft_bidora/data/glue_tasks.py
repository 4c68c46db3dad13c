"""The nine tasks of GLUE: their columns, classes and metrics, and how their official files differ from the hub's data.

References:
    Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding,
    arXiv:1804.07461.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class GlueTask:
    """One of the nine tasks.

    Args:
        folder: of the official download.
        config: its name on the hub.
        text: the text column, or the two of a pair.
        classes: in the order of their numbers; none for a regression.
        metric: the one that the benchmark ranks by, or the first of two.
        renamed: columns of the official files whose names differ from the hub's.
        header: the columns of official train and dev files that have no header row.
        torn: whether official files have rows that are cut off, which everybody leaves out.
        public_test: whether the hub has the labels of the test rows.
        flavours: whether validation and test come as `matched` and `mismatched`.
    """

    folder: str
    config: str
    text: tuple[str, ...]
    classes: tuple[str, ...]
    metric: str = "accuracy"
    renamed: Mapping[str, str] = field(default_factory=dict)
    header: tuple[str, ...] = ()
    torn: bool = False
    public_test: bool = False
    flavours: bool = False

    @property
    def task(self) -> str:
        """The recipe's `task` that it needs."""
        return "sequence-classification" if self.classes else "regression"


SENTENCES = ("sentence1", "sentence2")
ENTAILED = ("entailment", "not_entailment")
MSR = {"Quality": "label", "#1 String": "sentence1", "#2 String": "sentence2"}
GLUE = (
    GlueTask(
        "CoLA",
        "cola",
        ("sentence",),
        ("unacceptable", "acceptable"),
        "matthews",
        header=("source", "label", "star", "sentence"),
    ),
    GlueTask("SST-2", "sst2", ("sentence",), ("negative", "positive")),
    GlueTask(
        "MRPC", "mrpc", SENTENCES, ("not_equivalent", "equivalent"), "f1_of_equivalent", renamed=MSR, public_test=True
    ),
    GlueTask(
        "QQP",
        "qqp",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        "f1_of_duplicate",
        renamed={"is_duplicate": "label"},
        torn=True,
    ),
    GlueTask("STS-B", "stsb", SENTENCES, (), "pearson", renamed={"score": "label"}),
    GlueTask(
        "MNLI",
        "mnli",
        SENTENCES,
        ("entailment", "neutral", "contradiction"),
        renamed={"gold_label": "label"},
        flavours=True,
    ),
    GlueTask("QNLI", "qnli", ("question", "sentence"), ENTAILED),
    GlueTask("RTE", "rte", SENTENCES, ENTAILED),
    GlueTask("WNLI", "wnli", SENTENCES, ENTAILED[::-1]),
)
BY_CONFIG = {task.config: task for task in GLUE}
