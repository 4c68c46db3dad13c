"""Recognise how tags mark entities, IOB1, IOB2 or BIOES, and find the words that break it."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal, NamedTuple

from peft_bidora.data.examples import Examples
from peft_bidora.data.wording import counted, listed
from peft_bidora.errors import DataError
from peft_bidora.tasks.entities import OUTSIDE, entities, split_tag

Scheme = Literal["IOB1", "IOB2", "BIOES", "plain"]
PREFIXES: dict[str, str] = {"IOB1": "BI", "IOB2": "BI", "BIOES": "BIES"}
CONTINUING: dict[str, str] = {
    "IOB1": "B",
    "IOB2": "I",
    "BIOES": "IE",
}  # what follows a word of its entity, or a like one
ENTITY_TAG = re.compile(r"[BIES]-.+")
LIKE_ENTITY_TAG = re.compile(r"[BIESLUMW]-.+")  # those of BILOU and BMEWO too
BARE_TAGS = {"O", "B", "I", "E", "S"}  # of a file with a single type of entity
# Annotators slip; beyond one entity in five it is another scheme, or none.
MOST_BROKEN = 0.2
SHOWN_BREAKS = 5


class Break(NamedTuple):
    """A word whose tag breaks the scheme: its place in the row, from 0, and what is wrong."""

    word: int
    what: str


def recognise_scheme(examples: Examples) -> Scheme:
    """Return the scheme of labelled rows; "plain" where the tags are classes of words, such as parts of speech.

    Of IOB1 and IOB2 it is the one that fewer words break. A few breaks are let pass: entities are read in the same way
    from all schemes (`entities`).

    Raises:
        DataError: some tags are of no scheme, or more than one entity in five breaks the nearest scheme.
    """
    counts = Counter(chain.from_iterable(examples.required_labels()))
    bare = counts.keys() <= BARE_TAGS and not counts.keys().isdisjoint({"B", "I"})
    if not bare:
        alike = sum(count for tag, count in counts.items() if LIKE_ENTITY_TAG.fullmatch(tag))
        if 2 * alike <= counts.total() - counts[OUTSIDE]:
            return "plain"
        _refuse_strange(examples, {tag for tag in counts if tag != OUTSIDE and not ENTITY_TAG.fullmatch(tag)})
    candidates: list[Scheme] = ["IOB2", "IOB1"] if {split_tag(tag)[0] for tag in counts} <= set("OBI") else ["BIOES"]
    nearest = min(candidates, key=lambda scheme: len(list(broken(examples, scheme))))
    check_scheme(examples, nearest)
    return nearest


def check_scheme(examples: Examples, scheme: Scheme) -> None:
    """Check that the rows keep to a scheme but for slips.

    Raises:
        DataError: there are tags of another scheme, or more than one entity in five breaks this one; the first lines
            and words are named.
    """
    if scheme == "plain" or examples.labels is None:
        return
    tags = set(chain.from_iterable(examples.labels))
    if foreign := {tag for tag in tags if ENTITY_TAG.fullmatch(tag) and tag[0] not in PREFIXES[scheme]}:
        raise DataError(
            f"{examples.source}: expected tags in {scheme}, the scheme of the train rows, which marks entities by"
            f" {listed([f'{prefix}-' for prefix in PREFIXES[scheme]])}; found {listed(sorted(foreign))}"
            f" ({_shown(_places(examples, foreign))}). Bring all files into one scheme: IOB1, IOB2 or BIOES."
        )
    breaks = list(broken(examples, scheme))
    total = sum(len(entities(tags)) for tags in examples.labels)
    if len(breaks) > MOST_BROKEN * total:
        raise DataError(
            f"{examples.source}: expected tags in {scheme}, to which most of the train rows come nearest; found"
            f" {counted(len(breaks), 'break')} in {total} entities ({_shown(breaks)}). Bring all files into one scheme:"
            " IOB1, IOB2 or BIOES."
        )


def broken(examples: Examples, scheme: Scheme) -> Iterator[str]:
    """Yield where a row breaks a scheme: `line 4, word 3: I-loc follows O`; words are counted from 1."""
    for tags, line in zip(examples.labels or [], examples.lines, strict=False):
        for position, what in breaks_of(tags, scheme):
            yield f"{examples.unit} {line}, word {position + 1}: {what}"


def breaks_note(examples: Examples, scheme: Scheme) -> str | None:
    """Return a sentence on the words that break the scheme; None where none does."""
    breaks = [] if scheme == "plain" else list(broken(examples, scheme))
    if not breaks:
        return None
    what = "1 tag breaks" if len(breaks) == 1 else f"{len(breaks)} tags break"
    return f"{what} {scheme} in {examples.source} ({_shown(breaks)}); entities are read as seqeval reads them."


def breaks_of(tags: Sequence[str], scheme: Scheme) -> Iterator[Break]:
    """Yield the words of a row that break a scheme.

    IOB2: I follows B or I of its type. IOB1: B follows B or I of its type, which it parts from it. BIOES: I and E
    follow B or I of their type, and B and I are followed by I or E of it.
    """
    pairs = zip([None, *tags], [*tags, None], strict=True)
    for position, (before, tag) in enumerate(pairs):
        if scheme == "BIOES" and before is not None and _is_open(before) and not _continues(before, tag, "IE"):
            yield Break(position - 1, f"{before} is not closed by E")
        if tag is None or tag == OUTSIDE:
            continue
        must_continue = split_tag(tag)[0] in CONTINUING[scheme]
        if must_continue and (before is None or not _is_open(before) or not _continues(before, tag, "BIE")):
            yield Break(position, f"{tag} {'begins the row' if before is None else f'follows {before}'}")


def scheme_tags(tags: Iterable[str], scheme: Scheme) -> list[str]:
    """Return O and, of each type that occurs, every tag that the scheme has: O, B-loc, I-loc, B-per, I-per."""
    types = sorted({tag[1:] for tag in tags if tag != OUTSIDE})
    return [OUTSIDE, *(prefix + type_ for type_ in types for prefix in PREFIXES[scheme])]


def _is_open(tag: str) -> bool:
    return split_tag(tag)[0] in "BI"


def _continues(before: str, tag: str | None, prefixes: str) -> bool:
    return tag is not None and split_tag(tag)[0] in prefixes and split_tag(tag)[1] == split_tag(before)[1]


def _refuse_strange(examples: Examples, strange: set[str]) -> None:
    if not strange:
        return
    places = _shown(_places(examples, strange))
    raise DataError(
        f"{examples.source}: {listed(sorted(strange))} among the tags of entities ({places}); expected O, or"
        " B-, I-, E- or S- and a type: IOB1, IOB2 or BIOES. Correct them; of BILOU, write L- as E- and U- as S-."
    )


def _places(examples: Examples, tags: set[str]) -> list[str]:
    """Return where these tags stand."""
    return [
        f"{examples.unit} {line}, word {position + 1}: {tag}"
        for row, line in zip(examples.required_labels(), examples.lines, strict=True)
        for position, tag in enumerate(row)
        if tag in tags
    ]


def _shown(places: Sequence[str]) -> str:
    more = len(places) - SHOWN_BREAKS
    return "; ".join(places[:SHOWN_BREAKS]) + (f"; and {more} more" if more > 0 else "")
