from .dataset_cache import open_at as open_at
from .filesystem import resolve_writable as resolve_writable
from .raw_roots import open_root as open_root

__all__ = [
    "open_at",
    "open_root",
    "resolve_writable",
]
