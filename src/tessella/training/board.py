"""TensorBoard's file, where TensorBoard is installed (the extra `tensorboard`).

Written through at once, without torch's `SummaryWriter`: that writes in a thread, whose errors
come later, as a traceback.

Source: the format as TensorBoard documents it, `tensorboard/compat/proto/event.proto`.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tessella.images import Pixels


class Board:
    """Writes points and pictures for TensorBoard.

    Args:
        folder: of the stage's files; each process writes one.
        purge_step: TensorBoard drops what an earlier process wrote from here on.

    Raises:
        ImportError: TensorBoard is not installed.
        OSError: on creation and in every method, the file cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._event: Any = Event
        self._summary: Any = summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._writer: Any = RecordWriter(self._file)
        try:
            self._add(file_version="brain.Event:2")
            self._add(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        except OSError:
            self.close()
            raise

    def add_scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        """Adds a point to the curve of each name."""
        for name, value in values.items():
            self._add(summary=self._summary.scalar(name, value), step=images_seen)

    def add_image(self, name: str, picture: Pixels, images_seen: int) -> None:
        """Adds a picture (H, W, 3) uint8."""
        drawn = self._summary.image(name, picture, dataformats="HWC")
        self._add(summary=drawn, step=images_seen)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add(self, **values: Any) -> None:
        event = self._event(wall_time=time.time(), **values)
        self._writer.write(event.SerializeToString())
        self._file.flush()


def create_board(folder: Path, purge_step: int) -> Board | None:
    """Creates TensorBoard's file; None where TensorBoard is not installed.

    Raises:
        OSError: it cannot be written.
    """
    try:
        return Board(folder, purge_step)
    except ModuleNotFoundError:
        return None
