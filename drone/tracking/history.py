"""Metrics of a run by epoch, as the store has them."""

import pandas as pd
from mlflow.tracking import MlflowClient


def metric_history(run_id: str) -> pd.DataFrame:
    """Returns a run's metrics, a row per epoch and a column per metric; empty if there are none."""
    client = MlflowClient()
    names = [
        name
        for name in client.get_run(run_id).data.metrics
        # The others are of the whole run or of the system, and have no epochs.
        if name.startswith(("train/", "validation/", "lr/", "speed/"))
    ]
    columns = {
        name: pd.Series(
            {point.step: point.value for point in client.get_metric_history(run_id, name)}
        )
        for name in sorted(names)
    }
    return pd.DataFrame(columns).sort_index().rename_axis("epoch")
