"""Read entities from the tags of words, as seqeval does where it is not told a scheme."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

OUTSIDE = "O"


class Entity(NamedTuple):
    """A run of words of one type: words[start:end]."""

    type: str
    start: int
    end: int


@lru_cache(maxsize=4096)
def split_tag(tag: str) -> tuple[str, str]:
    """Return prefix and type: ("B", "loc") of "B-loc", ("O", "") of "O", ("B", "_") of a bare "B"."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    return tag[0], tag[1:].removeprefix("-") or "_"


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of a sentence in their order.

    A word begins an entity if it has B or S, or stands at the start or after O, E or S, or after another type; a word
    of I or E continues the one before it otherwise. So I after O begins an entity in any scheme, and IOB1, IOB2 and
    BIOES are read alike.

    Args:
        tags: (words,), O or a prefix of B, I, E and S with a type.

    Reference: seqeval 1.2.2, `get_entities`, the default mode of its metrics.
    """
    found: list[Entity] = []
    for position, (begins, type_) in enumerate(_steps(tags)):
        if begins:
            found.append(Entity(type_, position, position + 1))
        elif type_:
            found[-1] = found[-1]._replace(end=position + 1)
    return found


def rarest_types(labels: Sequence[Sequence[str]]) -> list[str]:
    """Return of each sentence the type of its entities that the fewest sentences have; "" of one without.

    Splits that keep these in proportion keep rare types. Plain tags have no types, so that all sentences are alike.

    Args:
        labels: (rows,), the tags of a sentence's words.
    """
    held = [{split_tag(tag)[1] for tag in tags if tag[1:2] == "-"} for tags in labels]
    rows = Counter(name for types in held for name in types)
    return [min(types, key=lambda name: (rows[name], name), default="") for types in held]


def _steps(tags: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """Yield of each word whether it begins an entity, and the type; no type outside."""
    before, type_before = OUTSIDE, ""
    for tag in tags:
        prefix, type_ = split_tag(tag)
        begins = prefix != OUTSIDE and (prefix in "BS" or before in "OES" or type_ != type_before)
        yield begins, type_
        before, type_before = prefix, type_
