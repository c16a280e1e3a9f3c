"""Runs the application with uvicorn, and ends it without losing what is being painted."""

import contextlib
import faulthandler
import gc
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from tessella.errors import ConfigError, TessellaError
from tessella.posts.language_model import LanguageModel
from tessella.precision import PaintingPrecision
from tessella.serving.allocator import return_freed_memory
from tessella.serving.app import create_app
from tessella.serving.connections import bound_connections, create_protocol, raise_file_limit
from tessella.serving.models_served import load_models
from tessella.serving.server_log import log_to_stderr
from tessella.serving.settings import ServeSettings
from tessella.serving.worker import PaintingWorker
from tessella.signals import handling

_LATE_SECONDS = 15.0  # that a shutdown may take beyond its time-out
_TICKS_BETWEEN_RETURNS = 100  # of memory; a tick is a tenth of a second
_BACKLOG = 256  # also as many are accepted in one go: files that `connections.py` leaves for them


class _Server(uvicorn.Server):
    """Uvicorn whose worker, at shutdown, refuses every job that it has not begun.

    A signal's handler runs between any two steps of the main thread, which therefore never writes
    `should_exit`: what it had read before would undo the signal.
    """

    def __init__(
        self, config: uvicorn.Config, worker: PaintingWorker, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._worker, self._on_ready = worker, on_ready

    def run_to_end(self, listening: socket.socket) -> None:
        """Runs until it is told to end."""
        try:
            with handling(("SIGHUP",), self.handle_exit):  # the others are uvicorn's
                self.run([listening])
        except KeyboardInterrupt:  # not uvicorn's own: before it began, or once it had ended
            if not self.should_exit:
                raise
        finally:
            _end_after(None)

    async def on_tick(self, counter: int) -> bool:
        """Gives memory back now and then; ends the server once nothing can be painted any more."""
        if counter % _TICKS_BETWEEN_RETURNS == 0:
            return_freed_memory()
        return await super().on_tick(counter) or not self._worker.is_alive

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to answer, and reports it."""
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the shutdown; a second Ctrl-C does not wait for it."""
        # Not uvicorn's own, which raises the signal again in the end: this exit is a success.
        if not self.should_exit:
            _end_after(self.config.timeout_graceful_shutdown or 0)
        elif sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        self._worker.close()


def serve(
    models: Sequence[str],
    settings: ServeSettings,
    *,
    keys: Sequence[str] = (),
    language_model: LanguageModel | None = None,
    run: Path | None = None,
    device: str = "auto",
    precision: PaintingPrecision = "auto",
    tell: Callable[[str], None] = print,
) -> None:
    """Serves until SIGTERM, SIGHUP or Ctrl-C; then finishes what has begun and refuses the rest.

    15 s after `shutdown_timeout_seconds` the process ends, whatever still holds it up.

    Args:
        models: as `load_models` takes them.
        settings: address and limits.
        keys: API keys.
        language_model: writes posts; None: templates do.
        run: a training run for the page to show.
        device: auto, cpu, cuda or mps.
        precision: as for `tessella.load`.
        tell: called with the address, once the server takes requests.

    Raises:
        ConfigError: the address cannot be listened on, two models have one name, or the device
            does not paint in the precision.
        CheckpointError: a model is missing or damaged.
        TessellaError: the painting thread ended by itself.
    """
    max_connections = bound_connections(settings.max_connections, raise_file_limit())
    # Before the models are loaded: an address in use is reported at once.
    with _bind(settings) as listening, contextlib.closing(PaintingWorker(settings)) as worker:
        worker.start()
        app = create_app(
            # In the worker's thread, which alone may use PyTorch.
            worker.call(lambda: load_models(models, device, precision)).result(),
            settings,
            keys=keys,
            language_model=language_model,
            run=run,
            worker=worker,
        )
        host, port = settings.host, listening.getsockname()[1]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        server = _Server(
            _configure(app, settings, max_connections),
            worker,
            lambda: tell(address + settings.root_path),
        )
        _start_listening(listening, settings)
        with log_to_stderr(shows_prompts=settings.log_prompts):
            server.run_to_end(listening)
        if not worker.is_alive:
            raise TessellaError(
                "The painting thread ended after faults that came again and again; the log above "
                "says which. Start the server again."
            )


def _start_listening(listening: socket.socket, settings: ServeSettings) -> None:
    """Begins to listen, once everything is loaded.

    Not before: a proxy whose connection is refused goes elsewhere, one that waits does not.
    """
    # What is loaded stays. Looking through all of it for garbage would hold the event loop, and
    # whoever asks /healthz, for a sixth of a second.
    gc.collect()
    gc.freeze()
    with _naming_address(settings):
        listening.listen(_BACKLOG)


def _end_after(shutdown_timeout_seconds: float | None) -> None:
    """Ends the process some time after a shutdown should have; None: it has ended in time.

    Python waits for ever for a route's thread that hangs, as where a run lies on a drive that is
    gone, and the loop for a log that nobody reads.
    """
    seconds = 0.0 if shutdown_timeout_seconds is None else shutdown_timeout_seconds + _LATE_SECONDS
    # What ends it needs neither Python nor the loop. Without stderr it could say nothing.
    with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
        if seconds:
            faulthandler.dump_traceback_later(seconds, exit=True)
        else:
            faulthandler.cancel_dump_traceback_later()
    if hasattr(signal, "setitimer"):  # not on Windows; stderr itself may hang, SIGALRM does not
        signal.setitimer(signal.ITIMER_REAL, seconds and seconds + 1)


def _configure(app: FastAPI, settings: ServeSettings, max_connections: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=create_protocol(settings.header_timeout_seconds, max_connections),
        access_log=False,
        backlog=_BACKLOG,
        server_header=False,
        log_config=None,  # `log_to_stderr` writes all there is
        log_level="warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_seconds)),
        proxy_headers=False,
    )


def _bind(settings: ServeSettings) -> socket.socket:
    """Takes the address, as `socket.create_server` does, but does not listen yet.

    Raises:
        ConfigError: somebody listens on it, or it is not an address of this machine.
    """
    is_ipv6 = ":" in settings.host
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    with _naming_address(settings), contextlib.ExitStack() as on_error:
        listening = on_error.enter_context(socket.socket(family))
        if os.name == "posix":  # on Windows two servers could share a port by it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_ipv6:
            is_alone = not socket.has_dualstack_ipv6()
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, is_alone)
        listening.bind((settings.host, settings.port))
        on_error.pop_all()
    return listening


@contextlib.contextmanager
def _naming_address(settings: ServeSettings) -> Iterator[None]:
    """Turns the system's error into one that names the address.

    Raises:
        ConfigError: it does.
    """
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while ")[0]
        raise ConfigError(
            f"Cannot listen on `{settings.host}`, port {settings.port}: {reason}. Try another "
            "--port, or 0 for a free one."
        ) from None
