"""Collects images from the web into a raw folder, with a record of the origin of each.

    URL tables, public searches -> collection plan -> downloads -> raw folder, provenance.jsonl

url_table: `read_table` reads image URLs from a CSV or parquet file.
search: `search_images` finds image URLs with Openverse and Wikimedia Commons (`providers`).
raw_folder: `plan_collection` says what to download, `collect` downloads and stores it,
    `count_by_class` counts the results.
download: `download` fetches and checks one image.
rate_limiter: `RateLimiter` limits the requests per second to each host.
fetch: `fetch` gets one file within limits of time and size, from public addresses only.
provenance: `ImageUrl`, `Record` and the provenance file.
settings: `FetchSettings` and `SearchSettings`.

URLs come from strangers, so everything about a response is checked: `connection` holds the checks
of addresses, `fetch` those of redirects, sizes and encodings.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
