"""The training loop, for the supernet and for a subnet alike.

Imports `spos.data`, `spos.errors`, `spos.placement`, `spos.supernet`, the modules of
`spos.training` and torch.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.data.loader import Loader
from spos.data.preprocessing import Preprocessing
from spos.errors import SposError, is_out_of_memory
from spos.placement import place
from spos.supernet import Supernet
from spos.training import checkpoint, parallel
from spos.training.distillation import Teacher
from spos.training.meter import Meter
from spos.training.mixing import draw_changes, prepare_parts
from spos.training.recipe import Recipe, decay_groups
from spos.training.run_folder import RunFolder
from spos.training.samplers.protocol import PathSampler, ResumableSampler
from spos.training.shrinking import Shrinking
from spos.training.slices import only_active_slices
from spos.training.status import StatusLine

Measured = TypeVar("Measured")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
STEPS_BETWEEN_AGREEMENTS = 10  # between ranks, on whether a signal came
MAX_SKIPPED_UPDATES = 20  # in a row, of fp16's loss scaling

log = logging.getLogger(__name__)


class TrainingError(SposError):
    """Training cannot go on: the loss is not finite, or memory is not enough."""


class Stopped(SystemExit):
    """A signal asked the run to stop; its state was saved.

    The exit status is that of Ctrl-C, 130, if this process got it, else that of SIGTERM, 143.
    """


class Training:
    """Trains a network to the end of its recipe, from wherever its run folder left off.

    Everything random is a function of the seed and the step (paths, dropout, mixup, cutout) or
    epoch (order, augmentation), so that a resumed run does what the uninterrupted one would have
    done.

    Args:
        network: a `Supernet` with ``sampler``, or any network from images to logits without.
        recipe: how to train.
        loader: the training images; its batch size is the recipe's divided by the processes.
        preprocessing: from uint8 images to the network's input.
        device: of this process; ``network`` is moved there.
        run: where checkpoints and metrics go.
        sampler: chooses the path of each step.
        validate: called after every ``validate_every`` epochs and at the end; returns metrics.
        rehearse: called before the first step: some of what ``validate`` does, to see it fail soon.
        validate_every: in epochs.
        save_every: in epochs.
        shrinking: drops candidates between epochs; then it is the sampler as well.
        teacher: whose answers are learned beside the labels.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        *,
        loader: Loader,
        preprocessing: Preprocessing,
        device: torch.device,
        run: RunFolder,
        sampler: PathSampler | None = None,
        validate: Callable[[], Mapping[str, float]] | None = None,
        rehearse: Callable[[], object] | None = None,
        validate_every: int = 1,
        save_every: int = 1,
        shrinking: Shrinking | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.network = place(network, device)
        self.recipe, self.loader, self.preprocessing = recipe, loader, preprocessing
        self.device, self.run, self.sampler = device, run, shrinking or sampler
        self.shrinking, self.teacher = shrinking, teacher
        self.validate, self.validate_every, self.save_every = validate, validate_every, save_every
        self.rehearse = rehearse
        self.step = 0
        self.total_steps = recipe.epochs * len(loader)
        self._parameters = list(network.parameters())
        self._optimizer = torch.optim.SGD(
            decay_groups(self._parameters, recipe.weight_decay),
            lr=recipe.lr,
            momentum=recipe.momentum,
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")
        self._meter = Meter(device)
        self._skipped = 0

    def fit(self) -> dict[str, float]:
        """Train to the end; returns the last validation's metrics.

        Raises:
            TrainingError: if the loss or a result of the validation is not finite, or memory is not
                enough for a batch or for the validation; the last checkpoint is from before, but
                where only the validation at the end fails.
            Stopped: after one of `STOP_SIGNALS`, with everything saved.
        """
        self._restore()
        if self.rehearse and self.step == 0:
            self._measure(self.rehearse)
        self.run.start_metrics(self.step)
        status = StatusLine(self.total_steps, start=self.step, is_shown=self.run.is_writer)
        with _stop_requests() as signals:
            try:
                while self.step < self.total_steps:
                    self._train_epoch(signals, status)
                if self._is_stopping(signals, is_end=True):  # asked during the last save
                    self._leave(signals)
            finally:
                status.close()
        if self.total_steps == 0:
            self._save()  # given weights, as they are
        return self._validate() if self.validate else {}

    def _measure(self, measure: Callable[[], Measured]) -> Measured:
        try:
            return measure()
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
            raise TrainingError(
                f"{self.device} has not enough memory for the validation, whose batches do not "
                f"follow --batch-size ({_first_line(problem)}); try a smaller --image-size"
            ) from None

    def _train_epoch(self, signals: list[int], status: StatusLine) -> None:
        steps_per_epoch = len(self.loader)
        epoch, start = divmod(self.step, steps_per_epoch)
        is_stopping = False
        self.network.train()  # a validation came before; at every step this would take 5 ms
        self._meter.begin_epoch()
        waiting = time.perf_counter()
        for images, labels in self.loader.epoch(epoch, start):
            waited = time.perf_counter() - waiting
            try:
                self.train_step(images, labels)
            except RuntimeError as problem:
                if not is_out_of_memory(problem):
                    raise
                raise self._not_enough_memory(problem, images) from None
            waiting = time.perf_counter()
            self._meter.count(len(labels) * parallel.world_size(), waited)
            status.update(self.step, self._meter.text)
            is_end = self.step % steps_per_epoch == 0
            is_stopping = self._is_stopping(signals, is_end)
            if is_stopping and not is_end:
                self._save()
                self._leave(signals)
            if is_end or self.step % STEPS_BETWEEN_AGREEMENTS == 0:
                self._meter.refresh(lr=self._lr())
        self._finish_epoch(epoch + 1, is_stopping)
        if is_stopping:
            self._leave(signals)

    def _finish_epoch(self, epoch: int, is_stopping: bool) -> None:
        """Record, validate and save what is due after ``epoch`` epochs."""
        self._check_state()
        self.run.record(self.step, {**self._meter.finish_epoch(), "train/lr": self._lr()})
        is_last = epoch == self.recipe.epochs
        if self.shrinking:
            self.shrinking.after_epoch(self.network, epoch=epoch, step=self.step)
        if is_stopping:
            self._save()  # at once: who asked may not wait until the validation ends
        # Validation first: if a kill comes between the two, the resumed run does both again.
        if self.validate and epoch % self.validate_every == 0 and not is_last:
            self._validate()
        if not is_stopping and (epoch % self.save_every == 0 or is_last):
            self._save()

    def _is_stopping(self, signals: list[int], is_end: bool) -> bool:
        """Whether any rank was asked to stop; several ranks agree on it now and then."""
        if parallel.world_size() == 1:
            return bool(signals)
        is_agreement = is_end or self.step % STEPS_BETWEEN_AGREEMENTS == 0
        return is_agreement and parallel.any_rank(bool(signals), self.device)

    def _leave(self, signals: list[int]) -> NoReturn:
        log.info("stopped by a signal after step %d; repeat the command", self.step)
        raise Stopped(128 + (signal.SIGINT if signal.SIGINT in signals else signal.SIGTERM))

    def train_step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One update of a network in training mode.

        Args:
            images: uint8 (N, 3, H, W).
            labels: (N,).

        Returns:
            The loss, on the device.

        Raises:
            TrainingError: if the loss is not finite: on a CPU before this update, on a GPU, which
                is never waited for, within a few steps.
        """
        recipe = self.recipe
        _seed_dropout(recipe.seed, self.step, self.device)
        if self.sampler:
            assert isinstance(self.network, Supernet)
            self.network.activate(self.sampler.sample(self.step))
        labels = labels.to(self.device, non_blocking=True)
        # Gradients of idle candidates are None, not zero: with zeros, momentum and weight decay
        # would go on moving them.
        self._optimizer.zero_grad(set_to_none=True)
        loss, logits = self._add_gradients(images.to(self.device, non_blocking=True), labels)
        parallel.average_gradients(self._parameters)
        if self.device.type == "cpu":
            self._check_finite(loss.item())  # before the weights are touched
        if recipe.clip_norm:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(
                [p for p in self._parameters if p.grad is not None], recipe.clip_norm
            )
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr()
        with only_active_slices(self.network, self._optimizer):
            self._update()
        self._meter.add(loss, logits, labels)
        self._check_finite(self._meter.loss_sum())
        self.step += 1
        return loss

    def _add_gradients(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add up the gradients of a batch, part by part; returns its loss and logits."""
        recipe, losses, logits = self.recipe, [], []
        changes = draw_changes(recipe, images, step=self.step, steps_per_epoch=len(self.loader))
        number = min(recipe.accumulate, len(labels))
        for x, target in prepare_parts(
            images, labels, changes, preprocessing=self.preprocessing, number=number
        ):
            with torch.autocast(
                self.device.type, dtype=_AMP_DTYPES.get(recipe.amp), enabled=recipe.amp != "off"
            ):
                output = self.network(x)
                loss = target.cross_entropy(output, label_smoothing=recipe.label_smoothing)
                if self.teacher:
                    loss = self.teacher.teach(loss, output, x)
            share = loss * (len(x) / len(labels))
            self._scaler.scale(share).backward()
            losses.append(share.detach())
            logits.append(output.detach())
        return torch.stack(losses).sum(), torch.cat(logits)

    def _update(self) -> None:
        if not self._scaler.is_enabled():
            self._optimizer.step()
            return
        before = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        is_skipped = self._scaler.get_scale() < before
        self._skipped = self._skipped + 1 if is_skipped else 0
        if is_skipped:
            _mend_statistics(self.network)
        if self._skipped >= MAX_SKIPPED_UPDATES:
            raise TrainingError(
                f"{MAX_SKIPPED_UPDATES} updates in a row had gradients that are not finite "
                f"(step {self.step}); the last checkpoint is from before; lower --lr or use "
                "--amp bf16"
            )

    def _check_state(self) -> None:
        """Refuse to go on from, or to save, weights that nothing can be trained from.

        A gradient that overflows spoils the weights under a finite loss; only the next loss shows
        it, and after the last step before a checkpoint there is none.
        """
        self._check_finite(self._meter.loss_sum(wait=True))
        if not nn.utils.get_total_norm(self._parameters, math.inf).isfinite():
            raise self._not_finite("weights are")

    def _check_finite(self, loss: float) -> None:
        if self._scaler.is_enabled():
            return  # fp16 skips such a step and lowers its scale; `_update` counts how often
        if not math.isfinite(loss):
            raise self._not_finite("loss is")

    def _not_finite(self, what: str) -> TrainingError:
        return TrainingError(
            f"the {what} not finite at step {self.step}; the last checkpoint in "
            f"{self.run.checkpoints} is from before; lower --lr, or set --clip-norm 5"
        )

    def _not_enough_memory(self, problem: RuntimeError, images: torch.Tensor) -> TrainingError:
        parts, image_size = 2 * self.recipe.accumulate, images.shape[-1]
        halved = f"--accumulate {parts}, " if parts <= len(images) else ""
        return TrainingError(
            f"{self.device} has not enough memory for a batch of {self.recipe.batch_size} images "
            f"of {image_size} pixels on {parallel.world_size()} processes "
            f"({_first_line(problem)}); try {halved}"
            f"--batch-size {max(1, self.recipe.batch_size // 2)}, a smaller --image-size or "
            "--amp bf16"
        )

    def _lr(self) -> float:
        return self.recipe.lr_at(self.step, len(self.loader))

    def _validate(self) -> dict[str, float]:
        assert self.validate
        parallel.average_buffers(self.network)
        metrics = dict(self._measure(self.validate))
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} of the validation is {value} after step {self.step}: with these "
                    f"weights the network overflows; earlier ones are in {self.run.checkpoints}; "
                    "lower --lr, or set --clip-norm 5"
                )
        self.run.record(self.step, metrics)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if self.run.is_writer:
            log.info("epoch %d/%d  %s", self.step // len(self.loader), self.recipe.epochs, shown)
        return metrics

    def _save(self) -> None:
        self._check_state()
        parallel.average_buffers(self.network)
        if not self.run.is_writer:
            return
        state: dict[str, Any] = {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "config": dict(self.run.settings.config),
        }
        if isinstance(self.sampler, ResumableSampler):
            state["sampler"] = self.sampler.state()
        checkpoint.save_checkpoint(self.run.checkpoints, self.step, state)
        if self.shrinking:
            self.shrinking.publish()

    def _restore(self) -> None:
        found = checkpoint.latest_checkpoint(self.run.checkpoints)
        self._agree_on_start(found[0] if found else -1)
        if found is None:
            parallel.broadcast_module(self.network)
            if self.shrinking:
                self.shrinking.begin(self.network)
            return
        step, path = found
        state = checkpoint.load_checkpoint(path)
        checkpoint.load_weights_into(self.network, state["network"], source=str(path))
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if isinstance(self.sampler, ResumableSampler) and "sampler" in state:
            self.sampler.restore(state["sampler"])
        self.step = step
        if self.run.is_writer:
            if self.shrinking:
                self.shrinking.publish()
            log.info("continuing %s after step %d of %d", self.run.path, step, self.total_steps)

    def _agree_on_start(self, step: int) -> None:
        first = int(parallel.broadcast(torch.tensor(step, device=self.device)))
        if parallel.any_rank(first != step, self.device):
            raise TrainingError(
                f"{self.run.checkpoints}: the processes do not see the same checkpoints; continue "
                "where all machines share the run folder, or give each a copy of it"
            )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """The stop signals that came; a second one acts as it did before, and so do ignored ones."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handled = [number for number in STOP_SIGNALS if before[number] != signal.SIG_IGN]  # nohup's are

    def request(number: int, frame: object) -> None:
        came.append(number)
        restore()

    def restore() -> None:
        for number in handled:
            signal.signal(number, before[number])

    for number in handled:
        signal.signal(number, request)
    try:
        yield came
    finally:
        restore()


def _first_line(problem: RuntimeError) -> str:
    return str(problem).partition("\n")[0]


def _mend_statistics(network: nn.Module) -> None:
    """Begin the running statistics anew that a batch has made infinite or NaN.

    They are moving averages, so that no later batch would mend them.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            if not (module.running_mean + module.running_var).isfinite().all():
                module.reset_running_stats()


def _seed_dropout(seed: int, step: int, device: torch.device) -> None:
    """Seed the device's generator, the only stream left, from (seed, step, rank)."""
    value = (seed * 1_000_003 + step) * 1_009 + parallel.rank()
    generator = (
        torch.cuda.default_generators[device.index or 0]
        if device.type == "cuda"
        else torch.default_generator
    )
    generator.manual_seed(value % 2**63)


_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
