"""The loader on NVIDIA DALI: decodes and augments on the GPU, or with its threads on the CPU.

Imports torch, DALI (only when a loader is built) and the other modules of this package.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spos.data.augmentation import View, ViewRule, draw_view
from spos.data.decode import BadImage, file_size, load_rgb
from spos.data.folder import ImageSet
from spos.data.schedule import Schedule, count_batches
from spos.data.workers import BatchWorkers, PackedImages
from spos.errors import ConfigError, DataError, SposError, is_out_of_memory

_THREADS_PER_READER = 4  # checking a file takes a small part of the time of decoding it
_FINENESS = 32  # parts of a level in which colours are added; 255 levels * 1.4**3 fit 16 bits


class DaliLoader:
    """Carries out with DALI the very views that `TorchLoader` carries out with Pillow.

    DALI is given files and the views drawn for them, and keeps no random state of its own.

    Args:
        images: what to load.
        rule: how views are drawn.
        schedule: which images make up which batch.
        num_workers: DALI's threads; a quarter as many processes check files (0: this one).
        device: where batches are delivered; a CUDA device decodes and augments them too.

    Raises:
        ConfigError: if DALI is not installed.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        rule: ViewRule,
        schedule: Schedule,
        num_workers: int,
        device: torch.device,
    ) -> None:
        _import_dali()
        self._images = images
        self._rule = rule
        self._schedule = schedule
        self._num_threads = max(1, num_workers)
        self._device = device
        self._workers = BatchWorkers(
            _make_batches(images, rule),
            schedule=schedule,
            num_workers=-(-num_workers // _THREADS_PER_READER),
            pin_memory=False,
        )
        self._feed = _Feed()
        self._pipeline: Any = None

    def __len__(self) -> int:
        return count_batches(self._schedule)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """See `spos.data.loader.Loader.epoch`."""
        self._rewind()
        turn = self._feed.begin(self._workers.epoch(epoch, start))
        try:
            while (outputs := self._run()) is not None:
                batch = self._feed.pending.popleft()
                pixels = self._deliver(outputs[0], len(batch.labels))
                labels = torch.from_numpy(batch.labels).to(self._device, non_blocking=True)
                yield pixels.permute(0, 3, 1, 2), labels  # pixels (N, H, W, 3) to (N, 3, H, W)
                assert turn == self._feed.turn, "another epoch of this loader has begun"
        finally:
            self._feed.end(turn)
        if self._feed.error is not None:
            raise self._feed.error

    def close(self) -> None:
        """Stop the checking processes and free DALI's threads and buffers."""
        self._workers.close()
        self._feed = _Feed()
        self._pipeline = None

    def _rewind(self) -> None:
        """Let go of batches that DALI has ahead of an epoch that was left early."""
        if self._pipeline is None:
            self._pipeline = _build_pipeline(
                self._rule,
                feed=self._feed,
                batch_size=self._schedule.batch_size,
                num_threads=self._num_threads,
                device=self._device,
            )
        self._feed.begin(iter(()))
        # Also with none pending: DALI has seen the end already where all batches were ahead.
        while self._run() is not None:
            self._feed.pending.popleft()

    def _run(self) -> Any:
        """DALI's outputs for the oldest batch pending, or None at the end of the epoch."""
        try:
            return self._pipeline.run()
        except StopIteration:
            self._pipeline.reset()
            return None
        except RuntimeError as problem:
            error = self._explain(problem)
            self._pipeline = None  # it cannot be used after an error
            self._feed.pending.clear()
            raise error from None

    def _explain(self, problem: RuntimeError) -> SposError:
        """Which file of the batch is at fault; DALI does not know its files' names."""
        if is_out_of_memory(problem):
            return ConfigError(
                f"DALI has not enough memory of {self._device} for {self._schedule.batch_size} "
                f"images; lower --batch-size or use --loader torchvision. DALI said: {problem}"
            )
        indices = self._feed.pending[0].indices.tolist() if self._feed.pending else []
        paths = [f"{self._images.root}/{self._images.paths[index]}" for index in indices]
        for path in paths:
            image = load_rgb(path)
            if isinstance(image, BadImage):
                return image.error()
        return DataError(
            f"DALI cannot decode one of {len(paths)} files, {', '.join(paths[:3])}, ..., though "
            f"Pillow can: use the torchvision loader. DALI said: {problem}"
        )

    def _deliver(self, outputs: Any, count: int) -> torch.Tensor:
        """Copy DALI's buffer, which it is about to use again, to a tensor (N, H, W, 3)."""
        from nvidia.dali.plugin.pytorch.torch_utils import feed_ndarray

        size = self._rule.image_size
        pixels = torch.empty((count, size, size, 3), dtype=torch.uint8, device=self._device)
        stream = torch.cuda.current_stream(self._device) if pixels.is_cuda else None
        feed_ndarray(outputs.as_tensor(), pixels, cuda_stream=stream)
        return pixels


@dataclass(frozen=True)
class _CheckedBatch:
    """Files that were found whole, with the views that DALI is to make of them.

    Attributes:
        files: their names; DALI reads them itself, so that no contents are handed over.
        inputs: what each of `_inputs` says of the views.
        labels: (N,).
        indices: of the images in the data set, (N,).
    """

    files: list[bytes]
    inputs: list[np.ndarray]
    labels: np.ndarray
    indices: np.ndarray


class _Feed:
    """Hands batches to DALI, which asks for them ahead of time; no reference to the loader."""

    def __init__(self) -> None:
        self.pending: deque[_CheckedBatch] = deque()
        self.error: DataError | None = None
        self.turn = 0
        self._batches: Iterator[_CheckedBatch] = iter(())

    def begin(self, batches: Iterator[_CheckedBatch]) -> int:
        """Feed these from now on."""
        self._batches = batches
        self.error = None
        self.turn += 1
        return self.turn

    def end(self, turn: int) -> None:
        """Let go of the batches of that turn, and so of the workers that make them."""
        if turn == self.turn:
            self._batches = iter(())

    def __call__(self) -> tuple[Any, ...]:
        """The next batch as DALI's inputs: the names of files, and `_inputs`."""
        try:
            batch = next(self._batches)  # its StopIteration tells DALI that the epoch ends
        except DataError as error:
            self.error = error  # raised when the batches before it have been delivered
            raise StopIteration from None
        self.pending.append(batch)
        files = [np.frombuffer(name, np.uint8) for name in batch.files]
        return files, *batch.inputs


# What DALI's operators are told about each image, heights before widths.
_INPUTS: dict[str, Callable[[list[View]], np.ndarray]] = {
    "start": lambda views: np.array([view.box[1::-1] for view in views], np.int32),
    "shape": lambda views: np.array([view.box[:1:-1] for view in views], np.int32),
    "resized": lambda views: np.array([view.resized[::-1] for view in views], np.float32),
    "window": lambda views: np.array([view.window[::-1] for view in views], np.int32),
    "flip": lambda views: np.array([view.flip for view in views], np.int32),
    "brightness": lambda views: np.array([view.jitter[0] for view in views], np.float32),
    "contrast": lambda views: np.array([view.jitter[1] for view in views], np.float32),
    "saturation": lambda views: np.array([view.jitter[2] for view in views], np.float32),
}


def _inputs(rule: ViewRule) -> list[str]:
    """The names in `_INPUTS` that this rule's views need."""
    return [
        *("start", "shape", "resized"),
        *(() if rule.augmentation == "paper" else ("window",)),  # its resized box is the view
        *(("flip",) if rule.has_flip else ()),
        *(("brightness", "contrast", "saturation") if rule.has_jitter else ()),
    ]


def _make_batches(
    images: ImageSet, rule: ViewRule
) -> Callable[[int, np.ndarray], _CheckedBatch | BadImage]:
    packed = PackedImages(images)
    names = _inputs(rule)

    def make(epoch: int, indices: np.ndarray) -> _CheckedBatch | BadImage:
        files: list[bytes] = []
        views: list[View] = []
        for index in indices.tolist():
            path = packed.path(index)
            size = file_size(path)
            if isinstance(size, BadImage):
                return size
            files.append(os.fsencode(path))
            views.append(draw_view(rule, epoch=epoch, index=index, width=size[0], height=size[1]))
        inputs = [_INPUTS[name](views) for name in names]
        return _CheckedBatch(files, inputs, packed.labels[indices], indices)

    return make


def _build_pipeline(
    rule: ViewRule, *, feed: _Feed, batch_size: int, num_threads: int, device: torch.device
) -> Any:
    _, fn, types, pipeline_type = _import_dali()
    on_gpu = device.type == "cuda"
    device_id = None
    if on_gpu:
        device_id = torch.cuda.current_device() if device.index is None else device.index
    resize = (
        {"interp_type": types.INTERP_TRIANGULAR}
        if rule.antialias
        else {"interp_type": types.INTERP_LINEAR, "antialias": False}
    )
    pipeline = pipeline_type(batch_size=batch_size, num_threads=num_threads, device_id=device_id)
    names = _inputs(rule)
    with pipeline:
        files, *inputs = fn.external_source(source=feed, num_outputs=1 + len(names), batch=True)
        view = dict(zip(names, inputs, strict=True))
        images = fn.decoders.image_slice(
            # A mapped file that becomes shorter while it is read would end the process.
            fn.io.file.read(files, dont_use_mmap=True),
            start=view["start"],
            shape=view["shape"],
            axis_names="HW",
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,  # as Pillow
            jpeg_fancy_upsampling=True,  # as Pillow
        )
        images = fn.resize(images, size=view["resized"], **resize)
        if "window" in view:
            images = fn.slice(
                images,
                start=view["window"],
                shape=(rule.image_size, rule.image_size),
                axis_names="HW",
                out_of_bounds_policy="pad",
            )
        if "flip" in view:
            images = fn.flip(images, horizontal=view["flip"])
        if "brightness" in view:
            images = _jitter(images, view, on_gpu=on_gpu)
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline


def _jitter(images: Any, view: dict[str, Any], *, on_gpu: bool) -> Any:
    """Brightness, contrast about the mean grey and saturation, in one map, as `TorchLoader`'s.

    In whole numbers and by operators of single channels: on a CPU, expressions over colours or
    fractions take as long as decoding.
    """
    _, fn, types, _ = _import_dali()
    brightness, contrast, saturation = (
        view[name] for name in ("brightness", "contrast", "saturation")
    )
    grey = fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)
    greys = fn.color_space_conversion(grey, image_type=types.GRAY, output_type=types.RGB)
    scale, shift = _FINENESS * brightness * contrast, brightness * (1.0 - contrast)
    mean = fn.reductions.mean(grey, keep_dims=on_gpu)
    coloured = fn.brightness_contrast(
        images, brightness=scale * saturation, dtype=types.INT16
    ) + fn.brightness_contrast(greys, brightness=scale * (1.0 - saturation), dtype=types.INT16)
    if on_gpu:  # where the mean, not being on the CPU, cannot be an operator's argument
        return fn.cast(coloured * (1.0 / _FINENESS) + mean * shift.gpu(), dtype=types.UINT8)
    return fn.brightness_contrast(
        coloured,
        brightness=1.0 / _FINENESS,
        brightness_shift=mean * shift * (1.0 / 255),
        dtype=types.UINT8,
    )


def _import_dali() -> tuple[Any, Any, Any, Any]:
    try:
        from nvidia import dali
        from nvidia.dali import fn, pipeline, types
    except ImportError:
        raise ConfigError(
            "the DALI loader needs nvidia-dali, which is not installed: "
            "run `pip install 'spos[dali-cuda130]'`, or use the torchvision loader"
        ) from None
    return dali, fn, types, pipeline.Pipeline
