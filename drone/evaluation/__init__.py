"""What a model is worth: metrics, plots and the report."""
