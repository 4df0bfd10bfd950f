"""The ledger: every decision on a file, one line of JSON each, only ever added to."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

NAME = "ledger.jsonl"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided on a file, why, by whom and when."""

    md5: str
    path: str
    action: str
    """"keep" or "drop"."""

    reason: str
    """Why a file is dropped (one of `clean.STEPS`), or kept again after it was dropped."""

    evidence: str
    """What was seen: the problem in words, or the path of the copy that is kept."""

    by: str
    """"prepare" with its policy, or a person's name."""

    when: str
    """ISO 8601, UTC."""


def decisions(frame: pd.DataFrame, by: str, when: str) -> list[Decision]:
    """A decision to drop for each file that the verdicts leave out."""
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
        for row in frame[~frame["kept"]].itertuples()
    ]


def read(file: Path) -> list[Decision]:
    """The decisions so far, oldest first; none if there is no ledger yet."""
    if not file.exists():
        return []
    return [Decision(**json.loads(line)) for line in file.read_text("utf-8").splitlines()]


def standing(ledger: list[Decision]) -> Mapping[tuple[str, str], Decision]:
    """The last decision on each (path, md5)."""
    return {(decision.path, decision.md5): decision for decision in ledger}


def update(ledger: list[Decision], verdicts: list[Decision], by: str, when: str) -> list[Decision]:
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


def append(file: Path, added: list[Decision]) -> None:
    """Adds decisions at the end of the ledger."""
    with file.open("a", encoding="utf-8") as stream:
        for decision in added:
            stream.write(json.dumps(asdict(decision), ensure_ascii=False, sort_keys=True) + "\n")
