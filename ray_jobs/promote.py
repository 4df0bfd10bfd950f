"""Registers a run's model and makes it champion, if it beats the one that is.

    python ray_jobs/promote.py --run finetune-s0
    python ray_jobs/promote.py --run finetune-s0 --dry-run     (the decision, and nothing else)
    python ray_jobs/promote.py --why 3                         (the decision on version 3 again)
    python ray_jobs/promote.py --rollback                      (champion and previous change places)

The run must have been evaluated on its test split, and the champion on the same one. The two are
compared picture by picture; --limits.* say what the gate asks for. The decision, each rule with
its figures, is kept with the version whether it passes or not.
"""

import datetime
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(place for place in PLACES if (place / "drone").is_dir())))

from drone.errors import ConfigError, RunError
from drone.evaluation.limits import Limits
from ray_jobs import cli

if TYPE_CHECKING:
    from drone.adapters.mlflow_registry import Holder
    from drone.evaluation.gate import Contender


@dataclass(frozen=True, kw_only=True)
class Promote:
    """Arguments of the job."""

    run: str | None = None
    """Run to promote, by id or name (the newest of that name)."""

    rollback: bool = False
    """Give the alias champion back to the version that had it before."""

    why: str | None = None
    """Print the decision on this version."""

    limits: Limits = field(default_factory=Limits)
    """What the gate asks for."""

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
            raise ConfigError("Say what to do: --run RUN, --rollback or --why VERSION.")


def main(job: Promote) -> cli.Result:
    """Runs the job."""
    from drone.adapters import mlflow_tracking as tracking

    tracking.connect(job.experiment)
    if job.why is not None:
        return _why(job)
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


def _why(job: Promote) -> cli.Result:
    """Prints the decision on a version."""
    from drone.adapters import mlflow_registry as registry

    decision = registry.decision_on(job.name, str(job.why))
    _show(decision)
    verdict = "passed" if decision["passed"] else "did not pass"
    champion = decision.get("champion") or "no champion yet"
    cli.console.print(
        f"{decision['candidate']} {verdict} on {decision['when']}, against {champion}.",
        soft_wrap=True,
    )
    return decision


def _show(decision: dict[str, Any]) -> None:
    for rule in decision["rules"]:
        verdict = "pass" if rule["passed"] else "FAIL"
        cli.console.print(f"{verdict}  {rule['name']}: {rule['figures']}", soft_wrap=True)


def _promote(job: Promote) -> cli.Result:
    from drone.adapters import mlflow_registry as registry
    from drone.adapters import mlflow_tracking as tracking
    from drone.evaluation.gate import decide

    run = tracking.find_run(str(job.run))
    run_id, tags = run.info.run_id, run.data.tags
    holder = registry.holder(job.name, registry.CHAMPION)
    if holder is not None and holder.run_id == run_id:
        cli.console.print(f"{run.info.run_name} is the champion of {job.name} already.")
        return _result(job, run_id, holder.version, promoted=True)
    fingerprint = tags.get("fingerprint", "")
    candidate = registry.contender(run_id, fingerprint, True, f"run {run.info.run_name}")
    if candidate is None:
        raise RunError(
            f"Run {run.info.run_name} has not been evaluated on its test split. First: "
            f"python ray_jobs/evaluate.py --run {run_id}"
        )
    _refuse_if_seen(run_id, run_id, f"Run {run.info.run_name}")
    champion = _champion(job, holder, run_id, fingerprint) if holder else None
    decision = {
        **decide(candidate, champion, job.limits).as_dict(),
        "name": job.name,
        "candidate": candidate.name,
        "candidate_run_id": run_id,
        "champion": champion.name if champion else None,
        "champion_run_id": holder.run_id if holder else None,
        "fingerprint": fingerprint,
        "limits": vars(job.limits),
        "when": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M UTC}",
    }
    _show(decision)
    if job.dry_run:
        cli.console.print("Nothing was changed (--dry-run).")
        return _result(job, run_id, None, promoted=False, decision=decision)
    facts = {"fingerprint": fingerprint, "pretrained": tags.get("pretrained", "")}
    version = registry.register(job.name, run_id, facts)
    decision["version"] = version
    registry.attach(job.name, version, run_id, decision)
    if not decision["passed"]:
        raise RunError(
            f"{run.info.run_name} is registered as version {version} of {job.name}, but did not "
            f"pass the gate; the champion stays. python ray_jobs/promote.py --why {version} shows "
            f"the decision again."
        )
    registry.promote(job.name, version)
    cli.console.print(
        f"{run.info.run_name} is now models:/{job.name}@champion (version {version})."
    )
    return _result(job, run_id, version, promoted=True, decision=decision)


def _champion(job: Promote, holder: "Holder", run_id: str, fingerprint: str) -> "Contender":
    """The champion on the candidate's test split, which it must not know."""
    from drone.adapters import mlflow_registry as registry
    from drone.adapters import mlflow_tracking as tracking

    name = f"the champion (version {holder.version})"
    own = tracking.find_run(holder.run_id).data.tags.get("fingerprint") == fingerprint
    found = registry.contender(holder.run_id, fingerprint, own, name)
    if found is None:
        differ = "" if own else f", and was trained on another one than {fingerprint[:12]}"
        raise RunError(
            f"The champion of {job.name} (version {holder.version}) has not been evaluated on the "
            f"candidate's data set{differ}, so they cannot be compared. First: "
            f"python ray_jobs/evaluate.py --model models:/{job.name}@champion --data DATASET"
        )
    if not own:
        _refuse_if_seen(holder.run_id, run_id, f"The champion (version {holder.version})")
    return found


def _refuse_if_seen(run_id: str, tested: str, who: str) -> None:
    """A score on pictures that a model was trained on says nothing."""
    from drone.adapters import mlflow_registry as registry

    seen = registry.seen_test_pictures(run_id, tested)
    if seen:
        raise RunError(
            f"{who} was trained on {seen} of the test pictures, so a comparison on them would say "
            f"nothing. Train both on the same data set, or promote under another --name."
        )


def _result(
    job: Promote,
    run_id: str,
    version: str | None,
    promoted: bool,
    decision: dict[str, Any] | None = None,
) -> cli.Result:
    return {
        **(decision or {}),
        "name": job.name,
        "run_id": run_id,
        "version": version,
        "promoted": promoted,
        "dry_run": job.dry_run,
    }


if __name__ == "__main__":
    cli.start(Promote, main, __doc__)
