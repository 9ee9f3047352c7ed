"""Lightning: `HyperparameterMonitor` logs what towers learn; nothing else is needed to train with one."""

from __future__ import annotations

from typing import Any, Literal

try:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}. HyperparameterMonitor is a callback of Lightning's: pip install lightning.") from error

from ..observing import snapshot

__all__ = ["HyperparameterMonitor"]


class HyperparameterMonitor(Callback):
    """Logs the effective hyperparameters of the optimizers to all loggers of the trainer.

    Lightning's LearningRateMonitor shows `group["lr"]`, which stays what the user or a scheduler wrote. This shows what
    the updates use, under the keys of `gdtuo.hyperparameters`; of a tower also "written/L0/g0/lr" and its like, the
    numbers beside which it learns, and "skipped", how many hyper-updates were not finite. With several optimizers the keys
    of each begin with its place among them: "optimizer0/L0/g0/lr".

    Values are read where LearningRateMonitor reads: before a step, with the schedule of that step and what has been
    learned until then; and once more at the end of training.

    Args:
        logging_interval: "step" (default) logs at the steps that the trainer logs at, every `log_every_n_steps`-th; "epoch"
            at the start of every epoch.

    Raises:
        MisconfigurationException: for another interval; in `fit`, if the trainer has no logger.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[HyperparameterMonitor()], log_every_n_steps=10, accelerator="cpu", logger=False)
    """

    def __init__(self, logging_interval: Literal["step", "epoch"] = "step") -> None:
        if logging_interval not in ("step", "epoch"):
            raise MisconfigurationException(f'logging_interval is {logging_interval!r}: give "step" or "epoch".')
        self._interval = logging_interval
        self._logged = -1  # the step that was logged last

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged = -1
        if not trainer.loggers:
            raise MisconfigurationException("HyperparameterMonitor has nowhere to log to. Give the Trainer a logger.")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._interval == "epoch":
            self._log(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._interval == "step" and trainer._logger_connector.should_update_logs:
            self._log(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        # The step under which Lightning logs its own metrics; `trainer.global_step` counts every optimizer's steps.
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        if step == self._logged:  # several batches are accumulated to one step
            return
        self._logged = step
        several = len(trainer.optimizers) > 1
        metrics = {
            f"optimizer{i}/{key}" if several else key: value
            for i, optimizer in enumerate(trainer.optimizers)
            for key, value in snapshot(optimizer).items()
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
