"""A supernet training step of ours against the published way, on the CPU or a GPU.

    python benchmarks/training_step.py --image-size 64 --batch-size 128
    python benchmarks/training_step.py --image-size 224 --batch-size 1024 --device cuda --amp bf16

The baseline is what the published systems do: contiguous float32, blocks that concatenate their
branches and split them by parity with a copy, gradients of idle candidates found by a pass over all
parameters, and the loss and two accuracies fetched at every step. Both run the same paths, in which
every candidate comes equally often, on the same images, which are on the device already;
`--data-dir` adds ours with a loader. Warming up runs every candidate once: a GPU plans each
convolution when it first sees it.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from interleave import interleave, print_configuration, print_rates
from torch import Tensor, nn

from spos.architecture import SearchSpec
from spos.cost.operations import list_operations
from spos.data.folder import open_data
from spos.data.loader import Loader, build_loader
from spos.data.preprocessing import Preprocessing
from spos.placement import keep_freed_memory
from spos.spaces import build_space
from spos.spaces.blocks import TwoBranchBlock
from spos.supernet import Supernet
from spos.training.loop import Training
from spos.training.recipe import Recipe
from spos.training.run_folder import RunFolder, RunSettings
from spos.training.samplers import FairSampler

CHECKED_STEPS = 20
CHECKED_BATCH = 16
TOLERANCE = 1e-4  # relative, of the losses
LR, MOMENTUM, WEIGHT_DECAY, SMOOTHING = 0.05, 0.9, 4e-5, 0.1
NUM_PATHS = 20
WARMUP_STEPS = 4  # candidates of a layer
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h

Step = Callable[[], object]


class PublishedBlock(nn.Module):
    """The block as published: one tensor in, a copy split by parity, one tensor out."""

    def __init__(self, block: TwoBranchBlock) -> None:
        super().__init__()
        self.branch_main, self.branch_proj = block.branch_main, block.branch_proj

    def forward(self, x: Tensor) -> Tensor:
        if self.branch_proj is not None:
            return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)
        n, c, h, w = x.shape
        pairs = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, n, c // 2, h, w)
        return torch.cat((pairs[0], self.branch_main(pairs[1])), 1)


class FixedBatch:
    """A loader whose every batch is the same, on the device; an epoch never ends."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return 10**9

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.images, self.labels

    def close(self) -> None:
        pass


def build_supernet(args: argparse.Namespace) -> Supernet:
    torch.manual_seed(0)
    options = {
        "image_size": args.image_size, "num_classes": args.num_classes,
        "output_stride": args.output_stride,
    }  # fmt: skip
    return Supernet(build_space("shufflenetv2", options=options, affine=False)).train()


def with_published_blocks(network: Supernet) -> Supernet:
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, TwoBranchBlock):
                parent._modules[name] = PublishedBlock(child)
    return network


def make_sampler(network: Supernet) -> FairSampler:
    return FairSampler(SearchSpec("shufflenetv2", {}, network.spec_choices), seed=0)


def make_images(args: argparse.Namespace, batch_size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, 3, args.image_size, args.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, args.num_classes, (batch_size,), generator=generator)
    return images.to(args.device), labels.to(args.device)


def published_step(args: argparse.Namespace, batch: tuple[Tensor, Tensor]) -> Step:
    """Train as published: returns what does one step."""
    network = with_published_blocks(build_supernet(args)).to(args.device)
    vectors = [p for p in network.parameters() if p.dim() == 1]
    weights = [p for p in network.parameters() if p.dim() > 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": vectors}],
        lr=LR,
        momentum=MOMENTUM,
        foreach=False,
    )
    sampler, preprocessing, number = make_sampler(network), Preprocessing(), itertools.count()

    def step() -> None:
        network.activate(sampler.sample(next(number)))
        images = preprocessing.apply(batch[0], channels_last=False)
        logits = network(images)
        loss = F.cross_entropy(logits, batch[1], label_smoothing=SMOOTHING)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        for parameter in network.parameters():
            if parameter.grad is not None and parameter.grad.sum() == 0:
                parameter.grad = None
        optimizer.step()
        top5 = logits.topk(min(5, args.num_classes)).indices == batch[1][:, None]
        top5[:, 0].float().mean().item(), top5.any(1).float().mean().item()
        loss.item()

    return step


def our_training(
    args: argparse.Namespace, network: Supernet, loader: Loader, *, amp: str
) -> Training:
    """Our own loop, with nothing in it switched off; it writes no files."""
    recipe = Recipe(
        epochs=1, batch_size=args.batch_size, lr=LR, momentum=MOMENTUM, amp=amp,
        weight_decay=WEIGHT_DECAY, label_smoothing=SMOOTHING,
    )  # fmt: skip
    return Training(
        network,
        recipe,
        loader=loader,
        preprocessing=Preprocessing(),
        device=torch.device(args.device),
        run=RunFolder("unused", RunSettings("supernet", {}, {}), is_writer=False),
        sampler=make_sampler(network),
    )


def compare_losses(args: argparse.Namespace) -> float:
    """Largest relative difference of the losses of 20 steps in float32: blocks apart and joined.

    Same loop, memory format and algorithms of torch, so that the order of additions in a
    convolution is the same: an untrained network amplifies another rounding tens of times in every
    step. On a GPU, algorithms that add in a fixed order, and no TF32.
    """
    batch = make_images(args, CHECKED_BATCH)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    losses = []
    for change in (with_published_blocks, lambda network: network):
        network = change(build_supernet(args))
        training = our_training(args, network, FixedBatch(*batch), amp="off")
        for module in network.modules():
            module.__dict__.pop("_conv_forward", None)
        losses.append([training.train_step(*batch).item() for _ in range(CHECKED_STEPS)])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = False, True
    return max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True))


def leave_memory_to_glibc() -> None:
    """Its own thresholds for giving memory back, as they are once it has adapted to large tensors.

    Ours changes them for the whole process (`spos.placement.keep_freed_memory`).
    """
    if platform.libc_ver()[0] == "glibc":
        for option, value in (
            (_TRIM_THRESHOLD, 2**26),
            (_MMAP_THRESHOLD, 2**25),
            (_MMAP_MAX, 2**16),
        ):
            ctypes.CDLL(None).mallopt(option, value)


def timed(
    args: argparse.Namespace, step: Step, *, prepare: Callable[[], None] = keep_freed_memory
) -> Callable[[], float]:
    """What runs the steps of a round and returns images per second."""

    clock = time.process_time if args.cpu_time else time.perf_counter

    def run() -> float:
        if args.device == "cpu":
            prepare()
        synchronize(args)
        begun = clock()
        for _ in range(args.steps):
            step()
        synchronize(args)
        return args.steps * args.batch_size / (clock() - begun)

    return run


def synchronize(args: argparse.Namespace) -> None:
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()


def loaded_step(args: argparse.Namespace, waits: list[float]) -> Step:
    """Our loop with a loader that decodes JPEGs; appends how long each step waited."""
    images = open_data(args.data_dir).train
    loader = build_loader(
        images, backend=args.loader, image_size=args.image_size, augmentation="paper",
        batch_size=args.batch_size, shuffle=True, num_workers=args.workers, device=args.device,
    )  # fmt: skip
    args.num_classes = max(args.num_classes, len(images.classes))
    training = our_training(args, build_supernet(args), loader, amp=args.amp)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count():
            yield from loader.epoch(epoch)

    endless = batches()

    def step() -> None:
        begun = time.perf_counter()
        batch = next(endless)
        waits.append(time.perf_counter() - begun)
        training.train_step(*batch)

    return step


def activation_bytes(args: argparse.Namespace) -> float:
    """Bytes that a step moves if each activation and its gradient is written and read once.

    Mean over some paths; activations are the outputs of convolutions, BatchNorm, ReLU, pooling
    and linear layers, of two bytes under mixed precision.
    """
    with torch.device("meta"):
        network = build_supernet(args)
    sampler, entries = make_sampler(network), []
    for number in range(NUM_PATHS):
        network.activate(sampler.sample(number))
        operations = list_operations(network, args.image_size)
        entries.append(sum(each.outputs for each in operations if each.kind != "shuffle"))
    size = 4 if args.amp == "off" else 2
    return statistics.mean(entries) * args.batch_size * size * 4


def copy_bandwidth(args: argparse.Namespace) -> float:
    """Bytes per second, read and written together, of a large copy on the device."""
    source = torch.empty(2**28 if args.device.startswith("cuda") else 2**26, device=args.device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(7):
        synchronize(args)
        begun = time.perf_counter()
        target.copy_(source)
        synchronize(args)
        seconds.append(time.perf_counter() - begun)
    return 2 * source.numel() * source.element_size() / statistics.median(seconds)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument(
        "--output-stride", type=int, default=32, help="that of the canonical network is 32"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--amp", choices=("off", "bf16"), default="off", help="of ours")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=3, help="of each variant in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--cpu-time", action="store_true",
        help="count seconds of this process, on a CPU that is busy with others; takes --threads 1",
    )  # fmt: skip
    parser.add_argument("--data-dir", type=Path, help="folder of JPEGs, for ours with a loader")
    parser.add_argument("--loader", choices=("torchvision", "dali"), default="torchvision")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.cpu_time and (args.device != "cpu" or args.threads != 1):
        parser.error("--cpu-time means something with --device cpu --threads 1 only")
    return args


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu"
    print_configuration(
        device=device, image_size=args.image_size, output_stride=args.output_stride,
        batch_size=args.batch_size, threads=args.threads, steps=args.steps, rounds=args.rounds,
    )  # fmt: skip
    difference = compare_losses(args)
    print(f"losses of {CHECKED_STEPS} steps, ours against joined blocks: {difference:.1e} apart")
    if difference > TOLERANCE:
        sys.exit(f"more than {TOLERANCE:.0e}: not the same training")
    batch = make_images(args, args.batch_size)
    training = our_training(args, build_supernet(args), FixedBatch(*batch), amp=args.amp)
    variants = {
        "published": timed(args, published_step(args, batch), prepare=leave_memory_to_glibc),
        "ours": timed(args, lambda: training.train_step(*batch)),
    }
    waits: list[float] = []
    if args.data_dir:
        variants["ours, with loader"] = timed(args, loaded_step(args, waits))
    rates = interleave(variants, rounds=args.rounds, warmup=-(-WARMUP_STEPS // args.steps))
    print_rates(rates, unit="images/s")
    moved, bandwidth = activation_bytes(args), copy_bandwidth(args)
    seconds = args.batch_size / statistics.median(rates["ours"])
    print(
        f"activations and gradients written and read once: {moved / 1e9:.2f} GB a step; copies run "
        f"at {bandwidth / 1e9:.0f} GB/s; ours is at {moved / bandwidth / seconds:.0%} of that limit"
    )
    if waits:
        step = args.batch_size / statistics.median(rates["ours, with loader"])
        print(f"data wait: {statistics.median(waits[-len(waits) // 2 :]) / step:.1%} of a step")


if __name__ == "__main__":
    main()
