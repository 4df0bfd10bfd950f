"""The ledger: every decision on a file, one line of JSON each, only ever added to."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from drone.errors import DataError
from drone.labels import nearest

NAME = "ledger.jsonl"

BY_HAND = "by-hand"
"""Reason of the decisions that a person made; they hold until another one or a retraction."""

_ACTIONS = ("keep", "drop", "relabel")
"""What a person can decide on a picture."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided on a file, why, by whom and when."""

    md5: str
    path: str
    action: str
    """"keep", "drop", "relabel", or "retract" for a decision by hand that no longer holds."""

    reason: str
    """Why a file is dropped (one of `clean.STEPS`), or kept again after it was dropped."""

    evidence: str
    """What was seen: the problem in words, or the path of the copy that is kept."""

    by: str
    """"prepare" with its policy, or a person's name."""

    when: str
    """ISO 8601, UTC."""

    class_name: str = ""
    """The class that a picture is relabelled to."""


def decisions(frame: pd.DataFrame, by: str, when: str) -> list[Decision]:
    """A decision to drop for each file that the verdicts leave out, but for those by hand."""
    return [
        Decision(
            md5=row.md5,
            path=row.path,
            action="drop",
            reason=row.reason,
            evidence=row.detail or (f"copy of {row.duplicate_of}" if row.duplicate_of else ""),
            by=by,
            when=when,
        )
        for row in frame[~frame["kept"] & (frame["reason"] != BY_HAND)].itertuples()
    ]


def read(file: Path) -> list[Decision]:
    """The decisions so far, oldest first; none if there is no ledger yet."""
    if not file.exists():
        return []
    return [Decision(**json.loads(line)) for line in file.read_text("utf-8").splitlines()]


def read_by_hand(file: Path, classes: Sequence[str]) -> list[Decision]:
    """The decisions of a person, as the review page exports them.

    Args:
        file: lines of JSON with at least "md5" and "action" (keep, drop or relabel, the last with
            "class_name"); "path", "evidence", "by" and "when" are taken over.
        classes: that a picture can be relabelled to.

    Raises:
        DataError: the file cannot be read, or a line says something else; it names the line.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The decisions {file} cannot be read: {error}.") from error
    return [
        _parse(line, f"{file}, line {number}", classes)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _parse(line: str, where: str, classes: Sequence[str]) -> Decision:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}). Export the decisions again.") from error
    if not isinstance(said, dict) or len(str(said.get("md5", ""))) != 32:
        raise DataError(f"{where} names no picture: it needs an md5 of 32 digits.")
    action, class_name = said.get("action"), str(said.get("class_name", ""))
    if action not in _ACTIONS:
        raise DataError(f"{where} has the action {action!r}; allowed are {', '.join(_ACTIONS)}.")
    if action == "relabel" and class_name not in classes:
        like = nearest(class_name, classes)
        hint = f"did you mean {like!r}?" if like else f"the classes are {', '.join(classes)}."
        raise DataError(f"{where} relabels to {class_name!r}; {hint}")
    return Decision(
        md5=str(said["md5"]).lower(),
        path=str(said.get("path", "")),
        action=str(action),
        reason=BY_HAND,
        evidence=str(said.get("evidence", "")),
        by=str(said.get("by", "") or "a person"),
        when=str(said.get("when", "")),
        class_name=class_name if action == "relabel" else "",
    )


def by_hand(ledger: Iterable[Decision]) -> dict[str, Decision]:
    """By md5 the decisions of a person that hold: the last on each, unless it was retracted."""
    last = {decision.md5: decision for decision in ledger if decision.reason == BY_HAND}
    return {md5: decision for md5, decision in last.items() if decision.action != "retract"}


def new_by_hand(ledger: Iterable[Decision], given: Iterable[Decision]) -> list[Decision]:
    """Those decisions of a person that change what the ledger says."""
    held = by_hand(ledger)
    wanted = by_hand(given)
    return [
        decision
        for md5, decision in wanted.items()
        if md5 not in held
        or (held[md5].action, held[md5].class_name) != (decision.action, decision.class_name)
    ]


def retractions(ledger: Sequence[Decision], lines: int, by: str, when: str) -> list[Decision]:
    """What undoes the decisions by hand that were added after so many lines.

    A decision that stood before them is made again, the others are retracted.
    """
    before, now = by_hand(ledger[:lines]), by_hand(ledger)
    undone = []
    for md5 in dict.fromkeys(decision.md5 for decision in ledger[lines:]):
        old, new = before.get(md5), now.get(md5)
        if old == new:
            continue
        told = asdict(old or new)  # type: ignore[arg-type]
        action = told["action"] if old else "retract"
        undone.append(Decision(**{**told, "action": action, "by": by, "when": when}))
    return undone


def standing(ledger: Iterable[Decision]) -> Mapping[tuple[str, str], Decision]:
    """The last decision of the program on each (path, md5)."""
    return {
        (decision.path, decision.md5): decision for decision in ledger if decision.reason != BY_HAND
    }


def update(
    ledger: Iterable[Decision], verdicts: Iterable[Decision], by: str, when: str
) -> list[Decision]:
    """What has to be added so that the ledger says what the verdicts say; nothing twice.

    A file that was dropped before and is not any more gets a decision to keep.
    """
    before = standing(ledger)
    now = standing(verdicts)
    added = []
    for key, verdict in now.items():
        known = before.get(key)
        if known is None or (known.action, known.reason) != (verdict.action, verdict.reason):
            added.append(verdict)
    for key, known in before.items():
        if known.action == "drop" and key not in now:
            added.append(
                Decision(
                    md5=known.md5,
                    path=known.path,
                    action="keep",
                    reason=f"no longer {known.reason}",
                    evidence="",
                    by=by,
                    when=when,
                )
            )
    return added


def append(file: Path, added: Iterable[Decision]) -> None:
    """Adds decisions at the end of the ledger."""
    with file.open("a", encoding="utf-8") as stream:
        for decision in added:
            stream.write(json.dumps(asdict(decision), ensure_ascii=False, sort_keys=True) + "\n")
