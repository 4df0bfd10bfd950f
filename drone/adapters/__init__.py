"""The only importers of Ray, MLflow and object storage, one module for each use."""
