from .errors import FetchError as FetchError
from .provenance import ImageUrl as ImageUrl
from .provenance import Record as Record
from .provenance import latest_records as latest_records
from .rate_limiter import RateLimiter as RateLimiter
from .raw_folder import ClassCounts as ClassCounts
from .raw_folder import CollectionPlan as CollectionPlan
from .raw_folder import collect as collect
from .raw_folder import count_by_class as count_by_class
from .raw_folder import download_sequentially as download_sequentially
from .raw_folder import plan_collection as plan_collection
from .search import json_fetcher as json_fetcher
from .search import parse_queries as parse_queries
from .search import search_images as search_images
from .settings import FetchSettings as FetchSettings
from .settings import SearchSettings as SearchSettings
from .url_table import read_table as read_table

__all__ = [
    "ClassCounts",
    "CollectionPlan",
    "FetchError",
    "FetchSettings",
    "ImageUrl",
    "RateLimiter",
    "Record",
    "SearchSettings",
    "collect",
    "count_by_class",
    "download_sequentially",
    "json_fetcher",
    "latest_records",
    "parse_queries",
    "plan_collection",
    "read_table",
    "search_images",
]
