import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from spos.data.folder import ImageSet, scan_folder
from spos.data.loader import BACKENDS, Loader, build_loader
from spos.data.workers import _begin_worker
from spos.errors import ConfigError, DataError
from spos.training.loop import STOP_SIGNALS

Batches = list[tuple[torch.Tensor, torch.Tensor]]
MakeImages = Callable[..., ImageSet]

# Three workers on a machine of two processors are the point of the test.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return request.param


def build(images: ImageSet, backend: str = "torchvision", **changes: Any) -> Loader:
    usual = {"image_size": 16, "augmentation": "crop-flip", "batch_size": 4, "shuffle": True}
    return build_loader(images, backend=backend, **{**usual, **changes})


def same(first: Batches, second: Batches) -> bool:
    return len(first) == len(second) and all(
        torch.equal(images, other_images) and torch.equal(labels, other_labels)
        for (images, labels), (other_images, other_labels) in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("count", [3, 5, 9])
def test_epoch_that_was_left_early_takes_nothing_from_the_next(
    backend: str, make_images: MakeImages, count: int
) -> None:
    loader = build(make_images(count), backend)
    whole = list(loader.epoch(1))
    for _ in range(2):
        assert len(list(islice(loader.epoch(0), 1))) == 1
        assert same(list(loader.epoch(1)), whole)


def test_batches_are_as_promised(backend: str, make_images: MakeImages) -> None:
    images = make_images(5)
    batches = list(build(images, backend, shuffle=False, augmentation=None).epoch(0))
    assert [tuple(pixels.shape) for pixels, _ in batches] == [
        (4, 3, 16, 16),
        (4, 3, 16, 16),
        (2, 3, 16, 16),
    ]
    for pixels, labels in batches:
        assert (pixels.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.cat([labels for _, labels in batches]).tolist() == list(images.labels)


def test_epochs_do_not_depend_on_workers(backend: str, make_images: MakeImages) -> None:
    images = make_images(9)
    expected: Batches = []
    for num_workers in (0, 1, 3):
        loader = build(images, backend, num_workers=num_workers, augmentation="paper")
        epochs = [list(loader.epoch(epoch)) for epoch in (0, 1, 5)]
        assert not same(epochs[0], epochs[1])
        assert same(list(loader.epoch(0)), epochs[0])
        batches = [batch for epoch in epochs for batch in epoch]
        expected = expected or batches
        assert same(batches, expected)
        loader.close()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_loaders_agree_on_batches(make_images: MakeImages, world_size: int, shuffle: bool) -> None:
    pytest.importorskip("nvidia.dali")
    images = make_images(11)
    seen = []
    for rank in range(world_size):
        options = {"shuffle": shuffle, "rank": rank, "world_size": world_size, "seed": 3}
        ours, theirs = (build(images, backend, **options) for backend in BACKENDS)
        assert len(ours) == len(theirs)
        batches, others = list(ours.epoch(2)), list(theirs.epoch(2))
        assert len(batches) == len(ours)
        labels = [labels.tolist() for _, labels in batches]
        assert labels == [labels.tolist() for _, labels in others]
        for (pixels, _), (other_pixels, _) in zip(batches, others, strict=True):
            assert (pixels.float() - other_pixels.float()).abs().mean() < 1.0
        seen += [label for each in labels for label in each]
    assert shuffle or sorted(seen) == sorted(images.labels)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_starting_later_equals_skipping(
    backend: str, make_images: MakeImages, num_workers: int, shuffle: bool
) -> None:
    loader = build(make_images(9), backend, num_workers=num_workers, shuffle=shuffle)
    whole = list(loader.epoch(1))
    for start in range(len(loader) + 1):
        assert same(list(loader.epoch(1, start=start)), whole[start:])
    loader.close()


def test_earlier_batches_are_not_decoded(backend: str, make_images: MakeImages) -> None:
    images = make_images(8)
    (images.root / images.paths[0]).write_bytes(b"")
    loader = build(images, backend, shuffle=False)
    assert len(list(loader.epoch(0, start=1))) == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_may_be_left_early(
    backend: str, make_images: MakeImages, num_workers: int
) -> None:
    loader = build(make_images(12), backend, num_workers=num_workers)
    expected = list(loader.epoch(3))
    for taken in (0, 1, 2):
        left = loader.epoch(2)
        for _ in range(taken):
            next(left)
        assert same(list(loader.epoch(3)), expected)
        if taken:
            with pytest.raises(AssertionError, match="another epoch"):
                next(left)
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_undecodable_image_is_named(
    backend: str, make_images: MakeImages, num_workers: int, shuffle: bool
) -> None:
    images = make_images(8)
    path = images.root / images.paths[9]  # in evaluation, in the third of four batches
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    loader = build(images, backend, num_workers=num_workers, shuffle=shuffle)
    delivered = []
    with pytest.raises(DataError) as caught:
        for batch in loader.epoch(0):
            delivered.append(batch)
    assert str(caught.value).startswith(f"{path}: cannot be decoded")
    assert "python -m spos data check" in str(caught.value)
    if not shuffle:
        assert len(delivered) == 2
    path.write_bytes(whole)
    assert len(list(loader.epoch(0))) == 4  # the loader has survived
    loader.close()


def test_missing_image_is_named(backend: str, make_images: MakeImages) -> None:
    images = make_images(4)
    path = images.root / images.paths[2]
    path.unlink()
    with pytest.raises(DataError, match=f"{path}: cannot be decoded .No such file"):
        list(build(images, backend).epoch(0))


def test_damage_that_dali_meets_first_is_named(make_images: MakeImages) -> None:
    pytest.importorskip("nvidia.dali")
    images = make_images(6, size=(60, 60))
    path = images.root / images.paths[5]
    Image.open(path).save(path, "PNG")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 255  # header and end are sound
    path.write_bytes(damaged)
    loader = build(images, "dali", shuffle=False)
    with pytest.raises(DataError, match=f"^{path}: cannot be decoded"):
        list(loader.epoch(0))
    path.unlink()
    remaining = build(scan_folder(images.root), "dali", shuffle=False)
    assert len(list(remaining.epoch(0))) == 3


def test_other_failures_of_dali_name_the_batch(
    make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pytest.importorskip("nvidia.dali.pipeline")
    images = make_images(6)
    loader = build(images, "dali", shuffle=False)
    expected = list(loader.epoch(0))

    def fail(_: object) -> None:
        raise RuntimeError("unsupported marker")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Pipeline, "run", fail)
        with pytest.raises(DataError, match="DALI cannot .* unsupported marker"):
            list(loader.epoch(0))
    assert same(list(loader.epoch(0)), expected)


def test_loading_leaves_global_random_state(backend: str, make_images: MakeImages) -> None:
    loader = build(make_images(8), backend, num_workers=1, augmentation="paper")
    before = torch.get_rng_state()
    list(loader.epoch(0))
    assert torch.equal(torch.get_rng_state(), before)
    loader.close()


@pytest.mark.parametrize("end", ["close", "collect", "abandon"])
def test_workers_end_with_their_loader(backend: str, make_images: MakeImages, end: str) -> None:
    before = set(multiprocessing.active_children())
    loader = build(make_images(12), backend, num_workers=2)
    batches = loader.epoch(0)
    next(batches)
    assert set(multiprocessing.active_children()) > before
    if end == "close":
        loader.close()
        loader.close()
    elif end == "abandon":
        del loader, batches
    else:
        list(batches)
        del loader, batches
    assert set(multiprocessing.active_children()) == before


def put_pipe(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make of an image a pipe, whose reader waits until it is killed, as for a dead disk."""
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr("spos.data.decode._open_file", lambda path: open(path, "rb"))


def test_killed_worker_ends_the_epoch(
    backend: str, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(12)
    put_pipe(images.root / images.paths[-1], monkeypatch)
    loader = build(images, backend, num_workers=1, shuffle=False)
    before = set(multiprocessing.active_children())
    batches = loader.epoch(0)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    killer = threading.Timer(0.5, worker.kill)
    killer.start()
    with pytest.raises(DataError, match="a process that loads images has died .*use fewer"):
        list(batches)
    killer.join()


SCRIPT = """
import sys
from spos.data.folder import scan_folder
from spos.data.loader import build_loader
loader = build_loader(scan_folder(sys.argv[1]), backend=sys.argv[2], image_size=16,
    augmentation="crop", batch_size=2, shuffle=True, num_workers=2)
for epoch in range(1_000_000):
    for batch in loader.epoch(epoch):
        print(epoch, flush=True)
"""


@contextlib.contextmanager
def started(script: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A script in a process group of its own, which has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # In the background of a script, SIGINT is ignored, and so it would be in the child.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"0\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_killed_training_leaves_no_process(
    backend: str, make_images: MakeImages, kill: signal.Signals
) -> None:
    images = make_images(12)
    with started(SCRIPT, str(images.root), backend) as process:
        process.send_signal(kill)
        process.communicate(timeout=60)  # returns when nobody holds the pipes any more
        assert process.returncode != 0
        assert not is_group_alive(process.pid)


@pytest.mark.parametrize("stop", STOP_SIGNALS)
def test_ending_the_process_group_lets_training_finish(
    make_images: MakeImages, stop: signal.Signals
) -> None:
    """A scheduler's SIGTERM, or Ctrl-C, reaches workers too, but a checkpoint is to be written."""
    images = make_images(12)
    handle = f"        signal.signal({stop:d}, lambda *_: stop.set())\n"  # workers run already
    script = (
        "import signal, sys, threading\n"
        "stop = threading.Event()\n"
        + SCRIPT.replace("        print(", f"{handle}        print(")
        + "        if stop.is_set():\n"
        "            list(loader.epoch(epoch))\n"
        "            sys.exit(143)\n"
    )
    with started(script, str(images.root), "torchvision") as process:
        os.killpg(process.pid, stop)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (143, b"")
        assert not is_group_alive(process.pid)


def test_workers_without_their_parent_end() -> None:
    """One that starts after its parent was killed would wait for work for ever."""
    process = multiprocessing.get_context("fork").Process(target=_begin_worker, args=(-1, 0))
    process.start()
    process.join()
    assert process.exitcode == 1


@pytest.mark.slow
def test_waiting_worker_does_not_hinder_closing(
    make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(12)
    put_pipe(images.root / images.paths[-1], monkeypatch)
    before = set(multiprocessing.active_children())
    loader = build(images, num_workers=1, shuffle=False)
    next(loader.epoch(0, start=4))
    loader.close()  # after torch's two waits of five seconds
    time.sleep(0.2)
    assert set(multiprocessing.active_children()) == before


def is_group_alive(group: int) -> bool:
    for _ in range(100):
        if not any(is_member(each, group) for each in psutil.process_iter()):
            return False
        time.sleep(0.1)
    return True


def is_member(process: psutil.Process, group: int) -> bool:
    """Whether it belongs to the group and is more than an entry that nobody has waited for yet."""
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def test_loaders_agree_on_unusual_files(tmp_path: Path, photographs: ImageSet) -> None:
    pytest.importorskip("nvidia.dali")
    photograph = Image.open(photographs.root / photographs.paths[0]).resize((90, 70))
    folder = tmp_path / "unusual" / "all"
    folder.mkdir(parents=True)
    photograph.save(folder / "png_named.JPEG", "PNG")
    photograph.convert("CMYK").save(folder / "cmyk.jpg", "JPEG")
    photograph.convert("L").save(folder / "grey.jpg", "JPEG")
    photograph.convert("P").save(folder / "palette.png", "PNG")
    photograph.convert("RGBA").save(folder / "transparent.png", "PNG")
    photograph.save(folder / "progressive.jpg", "JPEG", progressive=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn it by 90 degrees": neither loader does
    photograph.save(folder / "turned.jpg", "JPEG", exif=exif)
    for form in ("BMP", "TIFF", "WEBP", "PPM"):
        photograph.save(folder / f"other.{form.lower()}", form)
    images = scan_folder(tmp_path / "unusual")
    assert len(images) == 11
    options = {"shuffle": False, "augmentation": None, "image_size": 48, "batch_size": 11}
    ours, theirs = (next(build(images, each, **options).epoch(0))[0].float() for each in BACKENDS)
    differences = (ours - theirs).abs().mean((1, 2, 3)).tolist()
    assert {
        path: difference
        for path, difference in zip(images.paths, differences, strict=True)
        if difference > 0.3
    } == {}


GARBAGE = """
import gc, os, sys
from spos.data.folder import scan_folder
from spos.data.loader import build_loader

def build(backend, workers):
    return build_loader(
        scan_folder(sys.argv[1]), backend=backend, image_size=8, augmentation=None, batch_size=2,
        shuffle=False, num_workers=workers,
    )

gc.disable()
old = build("dali", 0)
list(old.epoch(0))
old.cycle = old
del old  # garbage that only a collection ends
os.register_at_fork(after_in_child=gc.collect)
loader = build("torchvision", 1)
print(len(list(loader.epoch(0))))
loader.close()
"""


def test_worker_outlives_an_old_pipeline_among_the_garbage(make_images: MakeImages) -> None:
    pytest.importorskip("nvidia.dali")
    images = make_images(3)
    command = [sys.executable, "-c", GARBAGE, str(images.root)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=45)
    assert (finished.returncode, finished.stdout) == (0, "3\n"), finished.stderr


def test_missing_dali_names_the_extra(
    make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia", None)
    with pytest.raises(ConfigError, match=r"pip install 'spos\[dali-cuda130\]'"):
        build(make_images(4), "dali")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "cv2"}, "loader 'cv2' is unknown; choose one of torchvision, dali"),
        ({"num_workers": -1}, "-1 workers"),
        ({"augmentation": "cutout"}, "augmentation 'cutout' is unknown"),
        ({"preprocessing": "rgb"}, "preprocessing 'rgb' is unknown"),
        ({"batch_size": 0}, "batch size 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_wrong_arguments_are_refused(
    make_images: MakeImages, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(make_images(3), **changes)
