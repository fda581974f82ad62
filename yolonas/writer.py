"""Writes what a predict run leaves behind, on threads of its own: drawn pictures and videos, labels, crops, windows.

At most a few pictures wait to be written; then `add` blocks, so memory stays flat. The first error (a full disk, say)
is raised by the next call and ends the run. Every file appears whole or not at all; a video is renamed when its last
frame is in.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .runs import UniqueStems, run_folder, write_image
from .window import show_image

if TYPE_CHECKING:
    import numpy as np

    from .data.sources import Picture
    from .predict import PredictOptions
    from .results import Results

WAITING = 8  # pictures between the network and the files
PICTURE_THREADS = 2
DEFAULT_FPS = 25.0  # where a stream does not say


class RunWriter:
    """The files of one run. `folder` is the run folder, made when the first file is due; None before."""

    def __init__(self, options: PredictOptions):
        self.options = options
        self.folder: Path | None = None
        self._stems = UniqueStems()
        self._stem_of_item: dict[int, str] = {}
        self._videos: dict[int, _Video] = {}
        self._places = threading.Semaphore(WAITING)
        self._pictures = ThreadPoolExecutor(PICTURE_THREADS, "yolonas-write")
        self._frames = ThreadPoolExecutor(1, "yolonas-write-video")  # one thread keeps frames in order
        self._error: BaseException | None = None

    def add(self, picture: Picture, result: Results) -> None:
        """Queues everything that the options want of one result. Raises the first error of an earlier one."""
        self._raise_error()
        options = self.options
        if options.save or options.save_txt or options.save_crop or options.save_frames:
            if self.folder is None:
                self.folder = run_folder(options.project, options.name, exist_ok=options.exist_ok)
            moving = picture.kind != "image"
            stem = self._stem(picture)
            label = f"{stem}_{picture.frame}" if moving and picture.frame is not None else stem
            if options.save or (options.save_frames and moving):
                pool = self._frames if moving else self._pictures
                self._queue(
                    pool, self._save_moving if moving else self._save_picture, self.folder, stem, picture, result
                )
            if options.save_txt:
                self._queue(self._pictures, self._save_labels, self.folder / "labels" / f"{label}.txt", result)
            if options.save_crop:
                self._queue(self._pictures, result.save_crop, self.folder / "crops", label)
        if options.show:
            if picture.kind == "image":
                result.show(**self._drawing())  # until a key is pressed
            else:
                show_image(result.plot(**self._drawing()), result.path, wait_ms=1)

    def finish(self) -> None:
        """Waits until everything is written and closes the videos."""
        self._pictures.shutdown(wait=True)
        self._frames.shutdown(wait=True)
        self._finish_videos()
        self._raise_error()

    def close(self) -> None:
        """Ends the threads after an interruption. What was queued is still written, and videos are closed where they
        are. Called while another error is on its way, it leaves that one to be the reason."""
        under_way = sys.exc_info()[0]
        try:
            self.finish()
        except Exception:
            if under_way in (None, GeneratorExit):
                raise

    def _stem(self, picture: Picture) -> str:
        """One stem per picture, one for all frames of a video."""
        if picture.kind == "image":
            return self._stems.claim(Path(picture.path).stem or "image")
        if picture.index not in self._stem_of_item:
            self._stem_of_item[picture.index] = self._stems.claim(Path(picture.path).stem or picture.kind)
        return self._stem_of_item[picture.index]

    def _drawing(self) -> dict[str, Any]:
        options = self.options
        return {
            "conf": options.show_conf,
            "labels": options.show_labels,
            "boxes": options.show_boxes,
            "line_width": options.line_width,
        }

    def _save_picture(self, folder: Path, stem: str, _: Picture, result: Results) -> None:
        write_image(folder / f"{stem}.jpg", result.plot(**self._drawing()))

    def _save_moving(self, folder: Path, stem: str, picture: Picture, result: Results) -> None:
        drawn = result.plot(**self._drawing())
        if self.options.save:
            if picture.index not in self._videos:
                if picture.kind == "video":  # they come one after another; how many frames one has is known at its end
                    self._finish_videos()
                fps = (picture.fps or DEFAULT_FPS) / self.options.vid_stride
                self._videos[picture.index] = _Video(folder / stem, drawn.shape[:2], fps)
            self._videos[picture.index].write(drawn)
        if self.options.save_frames:
            write_image(folder / f"{stem}_frames" / f"{picture.frame}.jpg", drawn)

    def _finish_videos(self) -> None:
        while self._videos:
            self._videos.popitem()[1].finish()

    def _save_labels(self, path: Path, result: Results) -> None:
        path.unlink(missing_ok=True)  # of an earlier run in the same folder; save_txt appends
        result.save_txt(path, save_conf=self.options.save_conf)

    def _queue(self, pool: ThreadPoolExecutor, job: Callable[..., Any], *arguments: Any) -> None:
        self._places.acquire()
        try:
            pool.submit(job, *arguments).add_done_callback(self._done)
        except BaseException:
            self._places.release()
            raise

    def _done(self, future: Future[Any]) -> None:
        self._places.release()
        if self._error is None and not future.cancelled():
            self._error = future.exception()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error


class _Video:
    """A video file that gets its name when it is complete: Motion JPEG in .avi, MPEG-4 in .mp4 on a Mac."""

    def __init__(self, stem: Path, size: tuple[int, int], fps: float):
        import cv2

        suffix, codec = (".mp4", "avc1") if sys.platform == "darwin" else (".avi", "MJPG")
        self.path = stem.with_name(f"{stem.name}{suffix}")
        self.temporary = stem.with_name(f".{stem.name}.part{suffix}")
        self.size = size
        self.frames = 0
        self.writer = cv2.VideoWriter(str(self.temporary), cv2.VideoWriter_fourcc(*codec), fps, size[::-1])
        if not self.writer.isOpened():
            raise OSError(f"cannot write a video to {self.path}")

    def write(self, frame: np.ndarray) -> None:
        import cv2

        if frame.shape[:2] != self.size:  # a stream may change its size; a file has one
            frame = cv2.resize(frame, self.size[::-1], interpolation=cv2.INTER_AREA)
        self.writer.write(frame)
        self.frames += 1

    def finish(self) -> None:
        """Gives the file its name. Raises OSError if frames are missing: the writer itself never says so."""
        import cv2

        self.writer.release()
        written = cv2.VideoCapture(str(self.temporary))
        frames = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        if frames < self.frames:
            raise OSError(
                f"{self.path} could not be written whole: {frames} of {self.frames} frames are in "
                f"{self.temporary.name}; is the disk full?"
            )
        self.temporary.replace(self.path)
