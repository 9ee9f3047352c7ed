"""Hugging Face's Trainer: `HyperparameterCallback` logs what a tower learns; nothing else is needed to train with one."""

from __future__ import annotations

from typing import Any

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}. HyperparameterCallback is a callback of Hugging Face's Trainer: pip install 'transformers[torch]'."
    ) from error

from ..observing import snapshot

__all__ = ["HyperparameterCallback"]


class HyperparameterCallback(TrainerCallback):
    """Adds the effective hyperparameters to the Trainer's logs, wherever these hold "learning_rate".

    The Trainer's "learning_rate" is its schedule, without what a tower has learned beside it. This adds what the last
    update used, under the keys of `gdtuo.hyperparameters`; of a tower also "written/L0/g0/lr" and its like, the numbers
    beside which it learns, and "skipped", how many hyper-updates were not finite. They stand in `state.log_history`, so in
    trainer_state.json, and in what all later callbacks are given. The Trainer puts those of `report_to` before a user's:
    for TensorBoard give `report_to="none"` and `callbacks=[HyperparameterCallback(), TensorBoardCallback()]`. Values are
    read after every update, which waits once for the device, as the Trainer does by default.

    A tower gets into the Trainer as `optimizer_cls_and_kwargs`. Its learning rate stands there: `learning_rate` of
    TrainingArguments is for the Trainer's own optimizers. `weight_decay` of TrainingArguments, 0 by default, is written
    into the groups, and every schedule composes.

    Example:
        >>> import tempfile, torch, gdtuo
        >>> from transformers import Trainer
        >>> tower = (gdtuo.AdamW, {"lr": 1e-4, "optimizer": gdtuo.SGD(optimizer=gdtuo.SGD())})
        >>> arguments = TrainingArguments(tempfile.mkdtemp(), report_to="none", use_cpu=True)
        >>> model = torch.nn.Linear(4, 1)
        >>> trainer = Trainer(model, arguments, optimizer_cls_and_kwargs=tower, callbacks=[HyperparameterCallback()])
        >>> str(trainer.create_optimizer())
        'adamw / sgd / sgd'
    """

    def __init__(self) -> None:
        self._used: dict[str, float] = {}  # by the last update

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **kwargs: Any
    ) -> None:
        # Here, since the scheduler steps between the update and its log: after the last one of a linear schedule all is 0.
        self._used = snapshot(optimizer)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "learning_rate" in logs:
            logs.update(self._used)
            state.log_history[-1].update(self._used)
