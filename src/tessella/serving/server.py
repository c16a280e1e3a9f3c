"""Runs the application: uvicorn, and an end in which nothing that runs is lost."""

import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from tessella.errors import ConfigError
from tessella.posts.language_model import LanguageModel
from tessella.serving.access_log import ACCESS_LOG
from tessella.serving.app import create_app
from tessella.serving.models_served import load_models
from tessella.serving.service import PaintingService, create_worker
from tessella.serving.settings import ServeSettings

_BACKLOG = 2048


class _Server(uvicorn.Server):
    """Uvicorn that, asked to end, has the worker refuse what it has not begun."""

    def __init__(
        self, config: uvicorn.Config, service: PaintingService, tell_started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service, self._tell_started = service, tell_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to answer, and says so."""
        await super().startup(sockets)
        self._tell_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the end; a second Ctrl-C does not wait for it."""
        self._service.worker.close()
        # Not uvicorn's own, which raises the signal again at the end: this end is a success.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def serve(
    models: Sequence[str],
    settings: ServeSettings,
    *,
    keys: Sequence[str] = (),
    language_model: LanguageModel | None = None,
    run: Path | None = None,
    device: str = "auto",
    tell: Callable[[str], None] = print,
) -> None:
    """Serves until SIGTERM or Ctrl-C; then finishes what runs and refuses the rest.

    Args:
        models: as `load_models` takes them.
        settings: address and limits.
        keys: API keys.
        language_model: that writes posts; None: templates do.
        run: a training run that the page shows.
        device: auto, cpu, cuda or mps.
        tell: told the address, once requests are taken.

    Raises:
        ConfigError: the address cannot be listened on, or two models have one name.
        CheckpointError: a model is not there or damaged.
    """
    # Before the models are loaded: an address in use is said at once.
    with _listen(settings) as listening:
        worker = create_worker(settings)
        worker.start()
        app = create_app(
            # In the worker's thread, which alone may use PyTorch.
            worker.call(lambda: load_models(models, device)).result(),
            settings,
            keys=keys,
            language_model=language_model,
            run=run,
            worker=worker,
        )
        log = logging.getLogger(ACCESS_LOG)
        handler = logging.StreamHandler(sys.stderr)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
        config = uvicorn.Config(
            app,
            access_log=False,
            server_header=False,
            log_level="warning",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_seconds)),
            proxy_headers=False,
        )
        host, port = settings.host, listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{port}"
        try:
            _Server(config, app.state.service, lambda: tell(address)).run([listening])
        finally:
            log.removeHandler(handler)


def _listen(settings: ServeSettings) -> socket.socket:
    """Opens the address.

    Raises:
        ConfigError: it is in use, or no address of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
        listening.listen(_BACKLOG)
    except (OSError, UnicodeError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"Cannot listen on `{settings.host}`, port {settings.port}: {reason}. Try another "
            "--port, or 0 for a free one."
        ) from None
    return listening
