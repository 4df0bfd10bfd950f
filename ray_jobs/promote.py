"""Registers a run's model and makes it champion, if it beats the one that is.

    python ray_jobs/promote.py --run finetune-s0
    python ray_jobs/promote.py --run finetune-s0 --dry-run     (the decision, and nothing else)
    python ray_jobs/promote.py --rollback                      (champion and previous change places)

The run must have been evaluated on its test split, and the champion on the same one.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(place for place in PLACES if (place / "drone").is_dir())))

from drone.errors import ConfigError, RunError
from ray_jobs import cli

if TYPE_CHECKING:
    from drone.adapters.mlflow_registry import Holder


@dataclass(frozen=True, kw_only=True)
class Promote:
    """Arguments of the job."""

    run: str | None = None
    """Run to promote, by id or name (the newest of that name)."""

    rollback: bool = False
    """Give the alias champion back to the version that had it before."""

    name: str = "drone-classifier"
    """Name of the registered model."""

    dry_run: bool = False
    """Show the decision, and change nothing."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    json: bool = False
    """Print the result as one JSON object, last."""

    def __post_init__(self) -> None:
        if (self.run is None) == (not self.rollback):
            raise ConfigError("Say what to do: either --run RUN or --rollback.")


def main(job: Promote) -> cli.Result:
    """Runs the job."""
    from drone.adapters import mlflow_tracking as tracking

    tracking.connect(job.experiment)
    return _roll_back(job) if job.rollback else _promote(job)


def _roll_back(job: Promote) -> cli.Result:
    from drone.adapters import mlflow_registry as registry

    if job.dry_run:
        previous = registry.holder(job.name, registry.PREVIOUS)
        version = previous.version if previous else "none"
        cli.console.print(f"Would make version {version} of {job.name} champion (--dry-run).")
        return {"name": job.name, "champion": None, "dry_run": True}
    now, before = registry.rollback(job.name)
    cli.console.print(f"{job.name}: version {now.version} is champion again, not {before.version}.")
    return {"name": job.name, "champion": now.version, "previous": before.version}


def _promote(job: Promote) -> cli.Result:
    from drone.adapters import mlflow_registry as registry
    from drone.adapters import mlflow_tracking as tracking
    from drone.evaluation.gate import decide

    run = tracking.find_run(str(job.run))
    run_id, tags = run.info.run_id, run.data.tags
    champion = registry.holder(job.name, registry.CHAMPION)
    if champion is not None and champion.run_id == run_id:
        cli.console.print(f"{run.info.run_name} is the champion of {job.name} already.")
        return _result(job, run_id, champion.version, promoted=True)
    fingerprint = tags.get("fingerprint", "")
    candidate = registry.test_result(run_id, fingerprint, own=True)
    if candidate is None:
        raise RunError(
            f"Run {run.info.run_name} has not been evaluated on its test split. First: "
            f"python ray_jobs/evaluate.py --run {run_id}"
        )
    held = _champions_result(job, champion, fingerprint) if champion else None
    decision = decide(candidate, held)
    for rule in decision.rules:
        cli.console.print(f"{'pass' if rule.passed else 'FAIL'}  {rule.name}: {rule.figures}")
    if job.dry_run:
        cli.console.print("Nothing was changed (--dry-run).")
        return _result(job, run_id, None, promoted=False, **decision.as_dict())
    facts = {"fingerprint": fingerprint, "pretrained": tags.get("pretrained", "")}
    version = registry.register(job.name, run_id, facts)
    registry.attach(job.name, version, run_id, decision.as_dict())
    if not decision.passed:
        raise RunError(
            f"{run.info.run_name} is registered as version {version} of {job.name}, but did not "
            f"pass the gate; the champion stays."
        )
    registry.promote(job.name, version)
    cli.console.print(
        f"{run.info.run_name} is now models:/{job.name}@champion (version {version})."
    )
    return _result(job, run_id, version, promoted=True, **decision.as_dict())


def _champions_result(job: Promote, champion: "Holder", fingerprint: str) -> dict[str, Any]:
    """The champion's metrics on the candidate's test split."""
    from drone.adapters import mlflow_registry as registry
    from drone.adapters import mlflow_tracking as tracking

    trained_on = tracking.find_run(champion.run_id).data.tags.get("fingerprint")
    own = trained_on == fingerprint
    result = registry.test_result(champion.run_id, fingerprint, own)
    if result is None:
        raise RunError(
            f"The champion of {job.name} (version {champion.version}) has not been evaluated on "
            f"the candidate's data set {fingerprint[:12]}, so they cannot be compared. First: "
            f"python ray_jobs/evaluate.py --model models:/{job.name}@champion --data DATASET"
        )
    return result


def _result(
    job: Promote, run_id: str, version: str | None, promoted: bool, **more: Any
) -> cli.Result:
    return {
        "name": job.name,
        "run_id": run_id,
        "version": version,
        "promoted": promoted,
        "dry_run": job.dry_run,
        **more,
    }


if __name__ == "__main__":
    cli.start(Promote, main, __doc__)
