"""Registers a run's model and makes it champion, if it passes the gate.

    python ray_jobs/promote.py --run finetune-s0
    python ray_jobs/promote.py --run finetune-s0 --dry-run     (the decision, and nothing else)
    python ray_jobs/promote.py --why 3                         (the decision on version 3 again)
    python ray_jobs/promote.py --rollback                      (exchange champion and previous)

The run must have been evaluated on its test split, and the champion on the same one. The two are
compared image by image; --limits.* set what the gate requires. The decision, each rule with its
figures, is stored with the version whether it passes or not.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
ROOTS = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(root for root in ROOTS if (root / "drone").is_dir())))

from ray_jobs import bug_report

bug_report.install(__name__)

from drone.errors import ConfigError, RunError
from drone.evaluation.limits import Limits
from ray_jobs import cli, console


@dataclass(frozen=True, kw_only=True)
class Promote:
    """Arguments of the job."""

    run: str | None = None
    """Run to promote, by id or name (the newest with that name)."""

    rollback: bool = False
    """Give the alias champion back to the version that had it before."""

    why: str | None = None
    """Print the gate's decision on this version."""

    limits: Limits = field(default_factory=Limits)
    """What the gate requires."""

    name: str = "drone-classifier"
    """Name of the registered model."""

    dry_run: bool = False
    """Show the decision, and change nothing."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    json: bool = False
    """Print the result as one JSON object, last."""

    def __post_init__(self) -> None:
        if sum((self.run is not None, self.rollback, self.why is not None)) != 1:
            raise ConfigError("Choose one: --run RUN, --rollback or --why VERSION.")


def main(job: Promote) -> cli.Result:
    """Runs the job."""
    # Imported late: it takes seconds, for which --help and wrong usage should not wait.
    from drone.workflows import promotion

    display = console.ConsoleDisplay()
    if job.why is not None:
        document = promotion.explain(job.name, job.why, experiment=job.experiment, display=display)
        verdict = "passed" if document["passed"] else "did not pass"
        champion = document.get("champion") or "no champion yet"
        console.show(
            f"{document['candidate']} {verdict} on {document['when']}, against {champion}."
        )
        return document
    if job.rollback:
        return _rollback(job)
    result = promotion.promote(
        str(job.run),
        job.name,
        job.limits,
        dry_run=job.dry_run,
        experiment=job.experiment,
        display=display,
    )
    if result.version is not None and not result.promoted:
        # An error, so that a script does not go on to export the old champion.
        raise RunError(result.message)
    console.show(result.message)
    return {**result.as_dict(), "dry_run": job.dry_run}


def _rollback(job: Promote) -> cli.Result:
    from drone.workflows import promotion

    new, old = promotion.rollback(job.name, dry_run=job.dry_run, experiment=job.experiment)
    if job.dry_run:
        version = new.version if new else "none"
        console.show(f"Would make version {version} of {job.name} champion (--dry-run).")
        return {"name": job.name, "champion": None, "dry_run": True}
    assert new is not None and old is not None
    console.show(f"Version {new.version} of {job.name} is champion again, not {old.version}.")
    return {"name": job.name, "champion": new.version, "previous": old.version}


if __name__ == "__main__":
    cli.start(Promote, main, __doc__)
