"""The ledger of a data set: every decision on a file, one JSON object per line, append-only."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from drone.data.prepare.verdicts import BY_HAND
from drone.errors import DamagedError, DataError
from drone.files import write_whole
from drone.labels import NONE, nearest
from drone.names import listed

LEDGER_FILE = "ledger.jsonl"

_ACTIONS = ("keep", "drop", "relabel")
"""What the user can decide on an image."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided on a file, why, by whom and when."""

    md5: str
    path: str
    action: str
    """"keep", "drop", "relabel", or "retract" for a decision by hand that no longer holds."""

    reason: str
    """Why a file is dropped (one of `verdicts.STEPS`), or kept again after it was dropped."""

    evidence: str
    """The problem in a sentence, or the path of the copy that is kept."""

    by: str
    """"prepare" with its policy, or the user's name."""

    when: str
    """Time in ISO 8601, UTC."""

    class_name: str = ""
    """The class that an image is relabelled to."""

    content: str = ""
    """Hash of the image's pixels, by which a decision by hand holds for its copies too."""


def drop_decisions(frame: pd.DataFrame, by: str, when: str) -> list[Decision]:
    """Returns a decision to drop for each file that the verdicts leave out.

    Files that the user dropped are not among them: their decisions are in the ledger already.
    """
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
    """Returns the decisions in the ledger, oldest first; none if the file does not exist.

    A last line that was cut short, by a full disk or a power cut, counts as not written.

    Raises:
        DataError: The file cannot be read, or another line is no decision; names the line.
    """
    if not file.exists():
        return []
    return _parse_ledger(file)[0]


def repair(file: Path) -> list[str]:
    """Cuts off a last line that was not written to its end.

    Returns:
        What was done, in sentences for the user.

    Raises:
        DataError: As for `read`.
        OSError: The file cannot be written.
    """
    if not file.exists():
        return []
    decisions, torn = _parse_ledger(file)
    if not torn:
        return []
    write_whole(file, _to_bytes(decisions))
    return [f"{file}: its last line was cut short, and has been removed: {torn[:80]}"]


def _parse_ledger(file: Path) -> tuple[list[Decision], str]:
    """Returns the decisions, and the last line if it was cut short."""
    try:
        lines = _lines(file)
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(file, str(error)) from error
    decisions = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            decisions.append(Decision(**json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            if number == len(lines):
                return decisions, line
            raise _damaged(file, f"line {number} is no decision: {error}") from error
    return decisions, ""


def _damaged(file: Path, reason: str) -> DamagedError:
    return DamagedError(
        f"{file} is damaged: {reason}. It holds every decision on the images: correct the line in "
        f"an editor, or restore the file from a copy. Nothing was changed."
    )


def read_by_hand(file: Path, classes: Sequence[str]) -> list[Decision]:
    """Reads the decisions that the review page exported.

    Args:
        file: JSON lines with at least "md5" and "action" (keep, drop or relabel, the last with
            "class_name"). "path", "evidence", "by" and "when" are optional.
        classes: Classes that an image can be relabelled to. A served image can be relabelled to
            `labels.NONE` as well; which images are served ones is for the caller to know.

    Raises:
        DataError: The file cannot be read, or a line is no decision; names the line.
    """
    try:
        lines = _lines(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"The decisions {file} cannot be read: {reason}.") from error
    return [
        _parse(line, f"{file}, line {number}", classes)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _lines(file: Path) -> list[str]:
    # Not splitlines(): it also splits at U+2028 and the like, which a file name may hold.
    return file.read_text("utf-8").removesuffix("\n").split("\n")


def _parse(line: str, location: str, classes: Sequence[str]) -> Decision:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{location} is not JSON ({error}). Export the decisions from the review page again."
        ) from error
    # By md5 and not by path: a decision holds for every copy, wherever it is moved.
    if not isinstance(values, dict) or len(str(values.get("md5", ""))) != 32:
        raise DataError(f"{location} names no image: it needs an md5 of 32 digits.")
    md5 = str(values["md5"]).lower()
    action, class_name = values.get("action"), str(values.get("class_name", ""))
    if action not in _ACTIONS:
        raise DataError(f"{location} has the action {action!r}; allowed are {', '.join(_ACTIONS)}.")
    if action == "relabel" and class_name not in (*classes, NONE):
        like = nearest(class_name, classes)
        hint = f"did you mean {like!r}?" if like else f"the classes are {listed(classes)}."
        raise DataError(f"{location} relabels to {class_name!r}; {hint}")
    return Decision(
        md5=md5,
        path=str(values.get("path", "")),
        action=str(action),
        reason=BY_HAND,
        evidence=str(values.get("evidence", "")),
        by=str(values.get("by", "") or "user"),
        when=str(values.get("when", "")),
        class_name=class_name if action == "relabel" else "",
    )


def by_hand(ledger: Iterable[Decision]) -> dict[str, Decision]:
    """Returns the user's decisions in force by md5: the last on each, unless it was retracted.

    They are in the order in which they were made.
    """
    last: dict[str, Decision] = {}
    for decision in ledger:
        if decision.reason == BY_HAND:
            last.pop(decision.md5, None)  # A key that is only replaced would keep its place.
            last[decision.md5] = decision
    return {md5: decision for md5, decision in last.items() if decision.action != "retract"}


def new_by_hand(
    ledger: Sequence[Decision], decisions: Iterable[Decision], contents: Mapping[str, str]
) -> list[Decision]:
    """Returns those of the user's decisions that differ from what is in force, with contents.

    Args:
        ledger: Decisions in the ledger.
        decisions: The user's decisions since.
        contents: Hash of the pixels by md5. The last decision on any copy is in force for all, and
            the copy that was decided on may be removed later.
    """

    # Files that are gone had their contents recorded when they were decided on.
    recorded = {decision.md5: decision.content for decision in ledger if decision.content}
    contents = {**recorded, **contents}

    def key(decision: Decision) -> str:
        return contents.get(decision.md5) or decision.md5

    in_force = {key(decision): decision for decision in by_hand(ledger).values()}
    return [
        replace(decision, content=contents.get(md5, ""))
        for md5, decision in by_hand(decisions).items()
        if key(decision) not in in_force
        or (in_force[key(decision)].action, in_force[key(decision)].class_name)
        != (decision.action, decision.class_name)
    ]


def retractions(ledger: Sequence[Decision], num_lines: int, by: str, when: str) -> list[Decision]:
    """Returns the decisions that undo those made by hand after the first `num_lines` lines.

    A decision that was in force before them is made again; the others are retracted.
    """
    before, now = by_hand(ledger[:num_lines]), by_hand(ledger)
    undone = []
    # A dict keeps the order of the ledger and drops repeated md5s.
    for md5 in dict.fromkeys(decision.md5 for decision in ledger[num_lines:]):
        old, new = before.get(md5), now.get(md5)
        # Only verdicts of prepare since then, or a decision that was retracted: nothing to undo.
        if old == new:
            continue
        values = asdict(old or new)  # type: ignore[arg-type]
        action = values["action"] if old else "retract"
        undone.append(Decision(**{**values, "action": action, "by": by, "when": when}))
    return undone


def verdicts_in_force(ledger: Iterable[Decision]) -> Mapping[tuple[str, str], Decision]:
    """Returns the program's last decision on each (path, md5)."""
    return {
        (decision.path, decision.md5): decision for decision in ledger if decision.reason != BY_HAND
    }


def verdict_changes(
    ledger: Iterable[Decision], verdicts: Iterable[Decision], by: str, when: str
) -> list[Decision]:
    """Returns what to append so that the ledger agrees with the verdicts, nothing twice.

    A file that was dropped before and no longer is gets a decision to keep.
    """
    before = verdicts_in_force(ledger)
    now = verdicts_in_force(verdicts)
    changes = []
    for key, verdict in now.items():
        previous = before.get(key)
        if previous is None or (previous.action, previous.reason) != (
            verdict.action,
            verdict.reason,
        ):
            changes.append(verdict)
    # Appended rather than removed: the ledger is the record of what once held.
    for key, previous in before.items():
        if previous.action == "drop" and key not in now:
            changes.append(
                Decision(
                    md5=previous.md5,
                    path=previous.path,
                    action="keep",
                    reason=f"no longer {previous.reason}",
                    evidence="",
                    by=by,
                    when=when,
                )
            )
    return changes


def append(file: Path, decisions: Iterable[Decision]) -> None:
    """Appends decisions to the ledger: all of them or, if it cannot be written, none.

    Raises:
        OSError: The disk is full or not writable.
    """
    # Copied and renamed: appending in place would leave half a line on a full disk.
    before = file.read_bytes() if file.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    write_whole(file, before + _to_bytes(decisions))


def _to_bytes(decisions: Iterable[Decision]) -> bytes:
    lines = (json.dumps(asdict(one), ensure_ascii=False, sort_keys=True) for one in decisions)
    # Half of a surrogate pair, which a name may hold, becomes an escape that JSON reads back.
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
