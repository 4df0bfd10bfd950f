from .policy import CacheDecision as CacheDecision
from .policy import CacheWorkload as CacheWorkload
from .store import ActivationStore as ActivationStore
from .store import CacheSpec as CacheSpec

__all__ = [
    "ActivationStore",
    "CacheDecision",
    "CacheSpec",
    "CacheWorkload",
]
