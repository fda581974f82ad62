"""What a training leaves in its run folder, and what a resume finds there. Every file is whole at any moment.

weights/best.safetensors   the best epoch so far        results.csv, results.png   a row per epoch, and curves
weights/last.safetensors   the latest epoch             train_batch0.jpg ...       the first batches
weights/state.safetensors  what a resume needs,         args.yaml                  all settings
                           until the training has ended problems.txt               what is wrong with the data
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import save_checkpoint
from .runs import project_folder, write_file, write_image
from .train_setup import TrainSetup, problems_of
from .training.state import Progress, TrainingState, read_state, save_state
from .training.table import EpochRow, write_table

if TYPE_CHECKING:
    from .config import DetectSettings
    from .nn import YoloNAS
    from .training.loader import TrainingBatch
    from .training.step import Learner

LOGGER = logging.getLogger("yolonas")

WEIGHTS = "weights"
STATE = "state.safetensors"


class TrainFiles:
    """The files of one training.

    Args:
        folder: exists. settings: thresholds that checkpoints carry. pth: write super-gradients' files too.
    """

    def __init__(self, folder: Path, setup: TrainSetup, settings: DetectSettings, *, pth: bool, plots: bool):
        self.folder, self._setup, self._settings, self._pth, self._plots = folder, setup, settings, pth, plots
        self.best, self.last, self.state = (
            folder / WEIGHTS / name for name in ("best.safetensors", "last.safetensors", STATE)
        )

    def begin(self, options: Mapping[str, Any]) -> None:
        """Makes the folder of the weights, and removes the files of another training."""
        import yaml

        (self.folder / WEIGHTS).mkdir(exist_ok=True)
        old = [self.best, self.last, self.state, *(path.with_suffix(".pth") for path in (self.best, self.last))]
        old += [*self.folder.glob("train_batch*.jpg"), *(self.folder / WEIGHTS).glob("epoch*.safetensors")]
        old += [self.folder / name for name in ("results.csv", "results.png", "problems.txt")]
        for path in old:
            path.unlink(missing_ok=True)
        write_file(
            self.folder / "args.yaml", yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True).encode()
        )
        if problems := problems_of(self._setup.train, self._setup.val):
            text = "".join(f"{problem}\n" for problem in problems)
            write_file(self.folder / "problems.txt", text.encode("utf-8", "backslashreplace"))

    def keep(
        self,
        model: YoloNAS,
        learner: Learner,
        rows: Sequence[EpochRow],
        progress: Progress,
        settings: Mapping[str, Any],
        *,
        is_best: bool,
        numbered: bool,
    ) -> None:
        """Keeps an epoch. Whatever is cut off between two files, a resume goes on from the latest state that is whole.

        Args:
            model: what is measured, as it is to be run. settings: what `state` has to say besides.
            is_best: of all epochs so far. numbered: keep these weights for themselves too.

        Raises:
            OSError: a file cannot be written; it is then as it was before.
        """
        epoch = self.folder / WEIGHTS / f"epoch{progress.epoch}.safetensors"
        for path in [self.best] * is_best + [epoch] * numbered + [self.last]:
            self._save(path, model, rows[-1])
        save_state(self.state, learner, progress, {**settings, "rows": [asdict(row) for row in rows]})
        write_table(self.folder / "results.csv", rows)

    def go_on(self, rows: Sequence[EpochRow]) -> None:
        """The table of an interrupted run, which may lack a row; and what a killed process left half-written goes."""
        for path in (self.folder / WEIGHTS).glob(".*.tmp"):
            path.unlink(missing_ok=True)
        write_table(self.folder / "results.csv", rows)

    def draw_batch(self, number: int, batch: TrainingBatch) -> None:
        """The pictures of a batch as the network sees them."""
        if self._plots:
            from .plots import draw_training_batch

            picture = draw_training_batch(batch, self._setup.names, self._setup.placement)
            write_image(self.folder / f"train_batch{number}.jpg", picture)

    def end(self, rows: Sequence[EpochRow]) -> None:
        """The curves; and nothing to resume is left."""
        if self._plots:
            from .plots import plot_training

            plot_training(rows, self.folder / "results.png")
        self.state.unlink(missing_ok=True)

    def _save(self, path: Path, model: YoloNAS, row: EpochRow) -> None:
        setup = self._setup
        about: dict[str, Any] = {"names": setup.names, "preprocess": setup.preprocess, "settings": self._settings}
        save_checkpoint(path, model, **about)
        if self._pth:
            from .checkpoint import save_super_gradients

            save_super_gradients(path.with_suffix(".pth"), model, **about, epoch=row.epoch, accuracy=row.map)


def check_pth(setup: TrainSetup, settings: DetectSettings) -> None:
    """Writes super-gradients' file once, elsewhere: what it cannot hold would else show after an epoch.

    Raises:
        ValueError: the network or its pre-processing is nothing that super-gradients has.
    """
    from .checkpoint import save_super_gradients

    with tempfile.TemporaryDirectory() as folder:
        try:
            save_super_gradients(
                Path(folder, "first.pth"),
                setup.model,
                names=setup.names,
                preprocess=setup.preprocess,
                settings=settings,
            )
        except ValueError as error:
            raise ValueError(f"train: save_pth must be False here: {str(error).removeprefix('save: ')}") from None


def find_interrupted(resume: bool | str, project: str | None, name: str | None) -> TrainingState:
    """The state of the run to go on with: the latest interrupted one of a project, or that in a folder or file.

    Args:
        resume: True, or the run folder, its folder of weights, or a file in that.

    Raises:
        FileNotFoundError: there is none. CheckpointError: it is damaged.
    """
    if isinstance(resume, str):
        path = Path(resume).expanduser()
        places = [path / WEIGHTS / STATE, path / STATE, path.with_name(STATE)]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"resume: {path} must be the folder of an interrupted training, there is no {WEIGHTS}/{STATE} in it; "
                "a training that has ended leaves none, one that was stopped in its first epoch begins again"
            )
        return read_state(found)
    folder, stem = project_folder(project), name or "train"
    states = [*folder.glob(f"{stem}/{WEIGHTS}/{STATE}"), *folder.glob(f"{stem}-*/{WEIGHTS}/{STATE}")]
    if not states:
        raise FileNotFoundError(f"resume: no interrupted training in {folder / stem}; name its folder: resume=FOLDER")
    return read_state(max(states, key=lambda state: state.stat().st_mtime))
