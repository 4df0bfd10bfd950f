from .connection import connected as connected
from .connection import on_cluster as on_cluster
from .data import map_rows as map_rows
from .doctor import Finding as Finding
from .serve import ReplicaSettings as ReplicaSettings
from .serve import replicated as replicated

__all__ = [
    "Finding",
    "ReplicaSettings",
    "connected",
    "map_rows",
    "on_cluster",
    "replicated",
]
