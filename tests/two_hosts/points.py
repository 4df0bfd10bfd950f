"""Prints all runs of a tracking server by name, as JSON; runs on the head of a cluster.

python points.py http://10.0.0.1:5000
"""

import json
import sys

from mlflow.tracking import MlflowClient

client = MlflowClient(sys.argv[1])
found: dict[str, list[dict]] = {}
numbers = [item.experiment_id for item in client.search_experiments()]
for run in client.search_runs(numbers, max_results=1000):
    number, metrics = run.info.run_id, run.data.metrics
    by_epoch = [name for name in metrics if name.split("/")[0] in ("train", "validation", "lr")]
    points = {
        name: [(point.step, point.value) for point in client.get_metric_history(number, name)]
        for name in by_epoch
    }
    entry = {
        "id": number,
        "status": run.info.status,
        "state": run.data.tags.get("state"),
        "reason": run.data.tags.get("reason"),
        "points": points,
        "files": [item.path for item in client.list_artifacts(number)],
        "parent": run.data.tags.get("mlflow.parentRunId"),
        "models": len(run.outputs.model_outputs),
    }
    found.setdefault(run.info.run_name, []).append(entry)
sys.stdout.write(json.dumps(found) + "\n")
