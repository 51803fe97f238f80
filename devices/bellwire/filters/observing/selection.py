"""Which records a trace keeps: ``--only 'mmio.status,irq' --not config``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from bellwire.errors import OptionError
from bellwire.filters.observing.record import GROUPS, KINDS, VERBS, Record

MOST_KNOWN = 1024
_OF_ALL = {
    *KINDS,
    *GROUPS,
    *(f"{kind}.{verb}" for kind, verbs in VERBS.items() for verb in verbs),
    *("INTx", "MSI 0", "MSI-X 0"),
}
"""What records of every device may have."""
_BETWEEN = str.maketrans(",+", "  ")


class Selection:
    """The records that match one of the terms ``only`` (all, without any), and none of the terms ``without``.

    Commas, blanks or plus signs stand between terms. A term is a kind of records (``irq``, ``dma``), a kind with its
    verb (``dma.write``), ``mmio`` for reads and writes of BARs, the name of a register, doorbell or hook (``status``),
    a BAR (``bar.*``), a register with its BAR (``bar.status``), or a pattern for any of these (``sq*``).

    ``names`` are the names that the device has, with and without their BAR. An OptionError for a term that can never
    match.
    """

    def __init__(self, only: str = "", without: str = "", names: Iterable[str] = ()) -> None:
        known = set(names)
        self._only = _terms(only, known)
        self._without = _terms(without, known)
        self._decided: dict[tuple[str, str, str, str], bool] = {}

    def __contains__(self, record: Record) -> bool:
        key = record.kind, record.verb, record.space, record.name
        found = self._decided.get(key)
        if found is None:
            if len(self._decided) >= MOST_KNOWN:
                self._decided.clear()
            words = _words(*key)
            found = (not self._only or _match(self._only, words)) and not _match(self._without, words)
            self._decided[key] = found
        return found

    def wants(self, kind: str) -> bool:
        """Whether there may be a record of this kind: False is certain, so that nothing need be made of its events."""
        if any(kind in _kinds(term) for term in self._without):
            return False
        return not self._only or any(kind in (_kinds(term) or _head(term) or KINDS) for term in self._only)


def _kinds(term: str) -> Sequence[str]:
    """The kinds that a term names as a whole; none for a name. ``mmio`` is the name of many a BAR, too."""
    return GROUPS.get(term, (term,) if term in KINDS else ())


def _head(term: str) -> Sequence[str]:
    """The kind of a term like ``dma.write``."""
    kind, dot, _ = term.partition(".")
    return (kind,) if dot and kind in KINDS else ()


def _terms(text: str, names: set[str]) -> Sequence[str]:
    """The terms in ``text``. An OptionError for one that matches nothing of what a record may have."""
    terms = text.translate(_BETWEEN).split()
    known = {*names, *(name.rpartition(".")[2] for name in names), *_OF_ALL}
    for term in terms:
        if names and not any(fnmatchcase(each, term) for each in known):
            near = difflib.get_close_matches(term, known, n=1)
            raise OptionError(
                f"trace of {term!r}: this is neither a kind of events nor a name of the device"
                + (f"; did you mean {near[0]}?" if near else f"; kinds are {', '.join(KINDS)}")
            )
    return terms


def _words(kind: str, verb: str, space: str, name: str) -> list[str]:
    """Everything that a term may be compared with."""
    names = name.split(", ") if name else []
    words = [kind, f"{kind}.{verb}", space, *(group for group, kinds in GROUPS.items() if kind in kinds)]
    return [word for word in [*words, *names, *(f"{space}.{each}" for each in names)] if word]


def _match(terms: Sequence[str], words: Sequence[str]) -> bool:
    return any(fnmatchcase(word, term) for term in terms for word in words)
