"""Serves a model and the page over HTTP, from this machine alone or with replicas on Ray."""

import contextlib
import logging
import os
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from drone.cluster import serve as ray_serve
from drone.config import override
from drone.errors import ConfigError, cannot_listen
from drone.hosts import is_reached_by_others
from drone.serving.access import Access, AccessSettings
from drone.serving.api import Api, ApiSettings, identity
from drone.serving.background_keeper import BackgroundKeeper
from drone.serving.connections import ConnectionSettings, LimitedServer
from drone.serving.http import HttpApp, HttpSettings
from drone.serving.keeping import KeepSettings
from drone.serving.memory import limit_kept_memory
from drone.serving.metrics import Metrics
from drone.serving.predictor import Predictor
from drone.serving.tls import TlsSettings, tls_context
from drone.workflows.display import SILENT, Display
from drone.workflows.model_source import FetchedModel, fetch_model
from drone.workflows.requests import PAGE_FOLDER, ServeRequest


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of the server."""

    api: ApiSettings = field(default_factory=ApiSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    replicas: ray_serve.ReplicaSettings = field(default_factory=ray_serve.ReplicaSettings)
    keep: KeepSettings = field(default_factory=KeepSettings)


@dataclass(frozen=True, kw_only=True)
class ServiceArgs:
    """Arguments of the Ray Serve application, `args` in a Serve config."""

    model: str | None = None
    """Registered model, such as models:/drone-classifier@champion."""

    run: str | None = None
    """Run whose model is served, in place of the registered one."""

    onnx: str | None = None
    """Exported model, instead: a file on every machine of the cluster."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    api: ApiSettings = field(default_factory=ApiSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    replicas: ray_serve.ReplicaSettings = field(default_factory=ray_serve.ReplicaSettings)


def build_application(args: Mapping[str, Any]) -> Any:
    """Returns the Ray Serve application of a model: `import_path` in a Serve config.

    The model is downloaded and checked once, and sent to the replicas: all serve the same one, and
    only the machine that builds the application needs MLflow.

    Args:
        args: Values of `ServiceArgs` by name, with the names inside its groups as in serve.py.

    Raises:
        ConfigError: A name is unknown or a value out of range, or there is not one model.
        RunError: There is no such model.
    """
    service = override(ServiceArgs(), args, "args of the application")
    if sum(source is not None for source in (service.model, service.run, service.onnx)) != 1:
        raise ConfigError("Name what to serve in the args of the application: model, run or onnx.")
    request = ServeRequest(
        model=service.model,
        run=service.run,
        onnx=None if service.onnx is None else Path(service.onnx),
        experiment=service.experiment,
    )
    with tempfile.TemporaryDirectory() as folder:
        fetched = fetch_model(request, Path(folder))
        checked = Predictor(fetched.onnx)
        # A broken model fails here, and not in each replica.
        checked.start()
    return ray_serve.application(
        checked.content,
        _named(service.api, fetched),
        service.http,
        service.replicas,
        PAGE_FOLDER,
    )


def serve(request: ServeRequest, settings: ServerSettings, display: Display = SILENT) -> str:
    """Serves a model until it is interrupted; returns the URL.

    Raises:
        ConfigError: The address is in use, or others reach it without a key; the file of keys or
            the certificate is wrong; the cluster has no room for the replicas.
        RunError: There is no such model.
    """
    limit_kept_memory()
    _check_is_protected(request.host, settings.access)
    access, tls = Access(settings.access), tls_context(settings.tls)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fetched = fetch_model(request, folder)
        onnx, api = fetched.onnx, _named(settings.api, fetched)
        # The address is taken before anything expensive is started for it.
        listener = stack.enter_context(_bind(request.host, request.port))
        port = listener.getsockname()[1]
        url = f"{'https' if tls else 'http'}://{_location(request.host, port)}"
        predictor, http = _start_predictor(onnx, settings, f"drone-{port}", stack, display)
        page = request.page if request.page and request.page.is_dir() else None
        metrics = Metrics(
            predictor.info, {**identity(predictor.info, api), "sha256": predictor.checksum}
        )
        keeper = _start_keeper(settings.keep, metrics, stack)
        interface = Api(predictor, api, metrics.observe_answer, keeper)
        app = HttpApp(interface, http, page, access, metrics)
        beside = f"the page: {url}/, " if page else ""
        message = f"{onnx.name} is served at {url} - {beside}the HTTP API: {url}/docs"
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)

        def announce() -> None:
            display.show(message)
            if request.open:
                # In a thread: the browser's first request waits until this one is free.
                threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()

        LimitedServer(app, settings.connections, announce, tls).run(sockets=[listener])
        return url


def _check_is_protected(host: str, access: AccessSettings) -> None:
    """Rejects an address that others reach, unless they need a key or that is intended."""
    if is_reached_by_others(host) and access.api_key_file is None and not access.open_to_all:
        raise ConfigError(
            f"Other machines reach --host {host}, and could use the model without limit. Set "
            f"--api-key-file FILE to ask them for a key, or --open-to-all to serve everyone."
        )


def _named(api: ApiSettings, fetched: FetchedModel) -> ApiSettings:
    """Returns the interface's settings with the model's name and version."""
    return replace(api, name=api.name or fetched.name, version=api.version or fetched.version)


def _start_keeper(
    settings: KeepSettings, metrics: Metrics, stack: contextlib.ExitStack
) -> BackgroundKeeper | None:
    """Returns what keeps served images until the stack is closed; None if nothing does.

    Raises:
        ConfigError: There is no file system for the store's URI.
    """
    if settings.keep is None:
        return None
    # pyarrow, which reaches every file system, is slow to import.
    from drone.storage.kept_images import KeptImages

    # A store that is away may be back before long, and answers do not need it: the keeper's thread
    # says so in the log.
    keeper = BackgroundKeeper(settings, KeptImages(settings.keep))
    stack.callback(keeper.close)
    metrics.watch("kept_images", "Served images that were stored.", lambda: keeper.num_kept)
    metrics.watch(
        "dropped_images",
        "Served images that were to be stored, and could not be.",
        lambda: keeper.num_dropped,
    )
    return keeper


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    # The others: the text cannot be an address.
    except (OSError, TypeError, ValueError) as error:
        listener.close()
        raise cannot_listen(host, port, error) from error
    return listener


def _location(host: str, port: int) -> str:
    """Returns host and port as in a URL, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _start_predictor(
    onnx: Path,
    settings: ServerSettings,
    name: str,
    stack: contextlib.ExitStack,
    display: Display,
) -> tuple[Predictor, HttpSettings]:
    """Returns the predictor, here or on replicas, and the settings of the app in front of it."""
    if settings.replicas.replicas is None:
        engines = settings.http.engines or os.cpu_count() or 1
        predictor = Predictor(onnx, threads=1, max_concurrency=engines)
        # A broken model fails here, and the first request is answered quickly.
        predictor.start()
        return predictor, settings.http
    # A broken model fails here too, and not in each replica.
    checked = Predictor(onnx)
    checked.start()
    replicas = ray_serve.replicated(checked, settings.http, settings.replicas, name, display.show)
    return stack.enter_context(replicas), ray_serve.front(settings.http, settings.replicas)
