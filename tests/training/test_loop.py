"""The training loop: exact resume, idle candidates that stand still, and a stop before nonsense."""

import copy
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_contents import RunContents, assert_identical, read_run
from tiny_space import TINY, WIDTHS

from spos.architecture import Architecture
from spos.cost.constraints import Constraint
from spos.cost.counting import build_cost_table
from spos.data.loader import build_loader
from spos.data.preprocessing import Preprocessing
from spos.errors import CheckpointError
from spos.files import read_journal
from spos.spaces import build_space, build_subnet
from spos.supernet import Supernet
from spos.training import checkpoint
from spos.training.checkpoint import latest_checkpoint, load_checkpoint
from spos.training.distillation import Teacher
from spos.training.loop import MAX_SKIPPED_UPDATES, STOP_SIGNALS, Stopped, Training, TrainingError
from spos.training.recipe import Recipe
from spos.training.run_folder import RunFolder, RunSettings
from spos.training.samplers import build_sampler
from spos.training.samplers.protocol import ResumableSampler

pytestmark = [
    pytest.mark.usefixtures("one_thread", "tiny_spaces"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than cores
]

OPTIONS = {"image_size": 8, "num_classes": 3}
RECIPE = Recipe(
    epochs=3, batch_size=6, lr=0.1, weight_decay=1e-2, warmup_epochs=0.5, clip_norm=1.0, seed=4
)
STEPS_PER_EPOCH = 6
TOTAL = RECIPE.epochs * STEPS_PER_EPOCH


class Watched:
    """A sampler or preprocessing that calls ``before(step)`` at each training step."""

    def __init__(self, inner: Any, before: Callable[[int], object], start: int = 0) -> None:
        self._inner, self._before, self._step = inner, before, start

    def sample(self, step: int):
        self._before(step)
        return self._inner.sample(step)

    def apply(self, images):
        changed = self._before(self._step)
        self._step += 1
        return self._inner.apply(images) if changed is None else changed


class WatchedState(Watched):
    """A watched sampler that has a state."""

    def state(self):
        return self._inner.state()

    def restore(self, state):
        self._before(-1)
        self._inner.restore(state)


def send(number: signal.Signals, *, at: int) -> Callable[[int], None]:
    """Send this process a signal during step ``at``."""
    return lambda step: signal.raise_signal(number) if step == at else None


def fit(path: Path, images, *, before=None, spoil=None, **changes) -> RunContents:
    """Train the tiny supernet in a run folder to the end, or from where it was left."""
    training = make_training(path, images, before=before, spoil=spoil, **changes)
    try:
        training.fit()
    finally:
        training.loader.close()
        training.run.close()
    return read_run(path)


def make_training(
    path: Path,
    images,
    *,
    sampler: str = "uniform",
    space: str = TINY,
    workers: int = 0,
    save_every: int = 1,
    before=None,
    spoil=None,
    scratch: bool = False,
    taught: bool = False,
    **changes,
) -> Training:
    recipe = RECIPE.replace(changes)
    teacher = Teacher(make_teacher(), "", weight=0.7) if taught else None
    torch.manual_seed(recipe.seed)
    table = build_cost_table(space, options=OPTIONS)
    ranges = [Constraint("macs", 8_000, 40_000)] if sampler == "strolling" else []
    paths = build_sampler(
        sampler, table, seed=recipe.seed, ranges=ranges, steps_per_epoch=STEPS_PER_EPOCH
    )
    preprocessing: Any = Preprocessing("standard")
    watch = WatchedState if isinstance(paths, ResumableSampler) else Watched
    if scratch:
        arch = Architecture(TINY, OPTIONS, paths.sample(0))
        network: torch.nn.Module = build_subnet(arch)
    else:
        network = Supernet(build_space(space, options=OPTIONS, affine=False))

    def validate() -> dict[str, float]:
        torch.rand(3)  # what validation does must not change what comes after it
        if not scratch:
            network.activate(paths.sample(10**6))
        logits = network.eval()(torch.ones(1, 3, 8, 8))
        return {"val/logit": logits.sum().item()}

    loader = build_loader(
        images, image_size=8, augmentation="crop-flip", batch_size=recipe.batch_size,
        seed=recipe.seed, shuffle=True, num_workers=workers,
    )  # fmt: skip
    return Training(
        network,
        recipe,
        loader=loader,
        preprocessing=Watched(preprocessing, spoil) if spoil else preprocessing,
        device=torch.device("cpu"),
        run=RunFolder(path, RunSettings("supernet", {**vars(recipe), "sampler": sampler}, {})),
        sampler=None if scratch else watch(paths, before or (lambda step: None)),
        validate=validate,
        save_every=save_every,
        teacher=teacher,
    )


def make_teacher() -> torch.nn.Module:
    torch.manual_seed(8)
    arch = Architecture(TINY, OPTIONS, {"layer_1": "k3", "layer_2": "k1", "layer_3": "k5"})
    return build_subnet(arch).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, images, tiny_spaces, one_thread) -> Callable[..., RunContents]:
    """Uninterrupted runs, each made once."""
    made: dict[tuple, RunContents] = {}

    def get(**changes) -> RunContents:
        key = tuple(sorted(changes.items()))
        if key not in made:
            made[key] = fit(tmp_path_factory.mktemp("reference") / "run", images, **changes)
        return made[key]

    return get


# --- a whole run -----------------------------------------------------------------------------


def test_run_leaves_what_the_next_stage_needs(tmp_path, images):
    run = fit(tmp_path, images)
    assert run.state["step"] == TOTAL
    assert run.state["config"]["sampler"] == "uniform"
    assert run.steps() == [(step, name) for step in (6, 12, 18) for name in ("train", "val")]
    first, *_, last = [each for each in run.metrics if "train/loss" in each]
    assert last["train/loss"] < first["train/loss"]
    assert 0 <= last["train/top1"] <= 1 and last["train/images_per_second"] > 0
    assert 0 <= last["train/data_wait"] <= 1
    assert first["train/lr"] == pytest.approx(0.1 * (1 - 3 / 15)) and last["train/lr"] == 0
    assert list((tmp_path / "tb").glob("events.*"))
    assert [p.name for p in sorted((tmp_path / "checkpoints").glob("*.json"))] == [
        f"step_{step:08d}.json" for step in (6, 12, 18)
    ]


def test_validation_is_rehearsed_once(tmp_path, images):
    rehearsed = []
    for stop in (0, 7, None):
        before = send(signal.SIGTERM, at=stop) if stop is not None else None
        training = make_training(tmp_path, images, before=before)
        training.rehearse = lambda: rehearsed.append(training.step)  # noqa: B023
        if stop is None:
            training.fit()
        else:
            with pytest.raises(Stopped):
                training.fit()
        training.run.close()
    assert rehearsed == [0]


def test_subnet_is_trained_by_the_same_loop(tmp_path, images):
    run = fit(tmp_path / "a", images, scratch=True, schedule="cosine")
    again = fit(tmp_path / "b", images, scratch=True, schedule="cosine")
    assert_identical(run.state, again.state)
    assert "features.0.1.num_batches_tracked" in run.state["network"]
    assert run.state["network"]["features.0.1.num_batches_tracked"] == TOTAL


def test_number_of_workers_changes_nothing(tmp_path, images, reference):
    for workers in (1, 3):
        run = fit(tmp_path / str(workers), images, workers=workers)
        assert_identical(run.state, reference().state)


def test_seed_changes_everything(tmp_path, images, reference):
    other = fit(tmp_path, images, seed=5).state["network"]
    for name, tensor in reference().state["network"].items():
        if tensor.is_floating_point():
            assert not torch.equal(tensor, other[name]), name


# --- exact resume ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sampler", ["macs-uniform", "strolling"])
@pytest.mark.parametrize("stop_after", [1, 6, 7, 9, 18])
def test_stopped_run_continues_to_the_bit(
    tmp_path, images, reference, stop_after, sampler, workers
):
    # Step 6 is the last of an epoch, 7 the first of the next, 18 the last of all.
    stop = send(signal.SIGTERM, at=stop_after - 1)
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, images, before=stop, sampler=sampler, workers=workers)
    assert stopped.value.code == 143
    assert latest_checkpoint(tmp_path / "checkpoints")[0] == stop_after
    resumed = fit(tmp_path, images, sampler=sampler, workers=workers)
    whole = reference(sampler=sampler)
    assert_identical(resumed.state, whole.state)
    assert resumed.steps() == whole.steps()
    assert resumed.measured() == whole.measured()


def test_state_of_the_sampler_is_in_the_checkpoint_and_taken_from_it(tmp_path, images):
    with pytest.raises(Stopped):
        fit(tmp_path, images, before=send(signal.SIGTERM, at=7), sampler="strolling")
    state = load_checkpoint(latest_checkpoint(tmp_path / "checkpoints")[1])["sampler"]
    assert state["step"] == 8 and len(state["parents"]) == 5
    steps = []
    fit(tmp_path, images, before=steps.append, sampler="strolling")
    assert steps == [-1, *range(8, TOTAL)]  # restored, then sampled


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_stopped_run_with_mixed_precision_continues_to_the_bit(tmp_path, images, reference, amp):
    with pytest.raises(Stopped):
        fit(tmp_path, images, before=send(signal.SIGUSR1, at=7), amp=amp)
    assert_identical(fit(tmp_path, images, amp=amp).state, reference(amp=amp).state)
    assert reference(amp=amp).state["scaler"].keys() == reference(amp=amp).state["scaler"].keys()


EXTRAS = [
    {"mixup": 0.4, "mixup_off_epochs": 1},
    {"cutout": 4},
    {"taught": True},
    {"mixup": 1.0, "cutout": 3, "taught": True, "accumulate": 4, "amp": "fp16"},
]


@pytest.mark.parametrize("extra", EXTRAS, ids=" ".join)
@pytest.mark.parametrize("stop_after", [6, 8, 13])
def test_stopped_run_with_extras_continues_to_the_bit(
    tmp_path, images, reference, stop_after, extra
):
    stop = send(signal.SIGTERM, at=stop_after - 1)
    with pytest.raises(Stopped):
        fit(tmp_path, images, before=stop, **extra)
    resumed = fit(tmp_path, images, workers=2, **extra)
    whole = reference(**extra)
    assert_identical(resumed.state, whole.state)
    assert resumed.measured() == whole.measured()


@pytest.mark.parametrize("extra", EXTRAS[:3], ids=" ".join)
def test_extras_change_what_is_learned(reference, extra):
    plain, other = reference().state["network"], reference(**extra).state["network"]
    assert not torch.equal(plain["classifier.weight"], other["classifier.weight"])


def test_teacher_stays_as_it_is(tmp_path, images):
    training = make_training(tmp_path, images, taught=True)
    training.fit()
    training.run.close()
    assert training.teacher is not None
    assert_identical(dict(training.teacher.network.state_dict()), dict(make_teacher().state_dict()))
    assert not training.teacher.network.training


def test_stopped_run_of_searched_widths_continues_to_the_bit(tmp_path, images, reference):
    with pytest.raises(Stopped):
        fit(tmp_path, images, before=send(signal.SIGTERM, at=8), space=WIDTHS)
    resumed = fit(tmp_path, images, space=WIDTHS)
    assert_identical(resumed.state, reference(space=WIDTHS).state)


def test_run_stopped_at_every_other_step_continues_to_the_bit(tmp_path, images, reference):
    for step in range(1, TOTAL, 2):
        with pytest.raises(Stopped):
            fit(tmp_path, images, before=send(signal.SIGTERM, at=step))
    resumed = fit(tmp_path, images)
    assert_identical(resumed.state, reference().state)
    assert resumed.steps() == reference().steps()


def test_error_between_checkpoints_costs_no_exactness(tmp_path, images, reference):
    def fail(step: int) -> None:
        if step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, images, before=fail, save_every=2)
    assert latest_checkpoint(tmp_path / "checkpoints")[0] == 12
    resumed = fit(tmp_path, images, save_every=2)
    assert_identical(resumed.state, reference().state)
    assert resumed.steps() == reference().steps()


def test_metrics_beyond_the_checkpoint_are_measured_again(tmp_path, images, reference):
    def fail(step: int) -> None:
        if step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, images, before=fail, save_every=3)  # no checkpoint, but two epochs recorded
    assert read_journal(tmp_path / "metrics.jsonl")[-1]["step"] == 12
    resumed = fit(tmp_path, images, save_every=3)
    assert_identical(resumed.state, reference().state)
    assert resumed.steps() == reference().steps()


def test_damaged_newest_checkpoint_costs_one_interval(tmp_path, images, reference, caplog):
    with pytest.raises(Stopped):
        fit(tmp_path, images, before=send(signal.SIGTERM, at=14))
    os.truncate(tmp_path / "checkpoints" / "step_00000015.pt", 1_000)
    resumed = fit(tmp_path, images)
    assert sum("damaged" in record.message for record in caplog.records) == 1
    assert_identical(resumed.state, reference().state)
    assert resumed.steps() == reference().steps()


def test_finished_run_is_not_trained_again(tmp_path, images):
    run = fit(tmp_path, images)

    def refuse(step: int) -> None:
        raise AssertionError("trained a finished run")

    again = fit(tmp_path, images, before=refuse)
    assert_identical(again.state, run.state)
    assert again.metrics == run.metrics


def test_checkpoint_of_another_network_is_refused(tmp_path, images):
    fit(tmp_path, images)
    with pytest.raises(CheckpointError, match=r"step_00000018.pt: its weights do not fit"):
        fit(tmp_path, images, scratch=True)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_first_signal_saves_and_a_second_acts_as_before(tmp_path, images, number):
    handlers = []

    def stop(step: int) -> None:
        if step == 2:
            signal.raise_signal(number)
            handlers.append(signal.getsignal(number))

    def act(*_: object) -> None:
        pass

    before = signal.signal(number, act)  # in the background of a script some are ignored
    try:
        with pytest.raises(Stopped) as stopped:
            fit(tmp_path, images, before=stop)
        assert signal.getsignal(number) == act
    finally:
        signal.signal(number, before)
    assert stopped.value.code == (130 if number == signal.SIGINT else 143)
    assert latest_checkpoint(tmp_path / "checkpoints")[0] == 3
    assert handlers == [act]


def test_signal_during_the_last_save_stops_the_run(tmp_path, images, monkeypatch):
    save = checkpoint.save_checkpoint

    def save_and_signal(path: Path, step: int, state: dict[str, Any]) -> None:
        save(path, step, state)
        if step == TOTAL:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "save_checkpoint", save_and_signal)
    with pytest.raises(Stopped):
        fit(tmp_path, images)
    assert latest_checkpoint(tmp_path / "checkpoints")[0] == TOTAL


def test_signals_that_are_ignored_stay_so(tmp_path, images):
    """As `nohup` has it for SIGHUP, and a shell for Ctrl-C of what runs in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fit(tmp_path, images, before=send(signal.SIGHUP, at=2))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# --- not enough memory ---------------------------------------------------------------------------


def ask_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1125899906842624 B.\nmore")


def ask_cpu() -> None:
    torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize("ask", [ask_cuda, ask_cpu])
def test_batch_that_memory_cannot_hold_is_named_with_what_to_do(tmp_path, images, ask):
    with pytest.raises(
        TrainingError,
        match=r"batch of 6 images of 8 pixels .*allocate 1125.*--accumulate 4, --batch-size 3, ",
    ):
        fit(tmp_path / "2", images, accumulate=2, before=lambda step: ask() if step == 8 else None)
    with pytest.raises(TrainingError, match=r"\); try --batch-size 3, "):
        fit(tmp_path / "4", images, accumulate=4, before=lambda step: ask())
    assert latest_checkpoint(tmp_path / "2" / "checkpoints")[0] == 6


@pytest.mark.parametrize("ask", [ask_cuda, ask_cpu])
def test_validation_that_memory_cannot_hold_is_named(tmp_path, images, ask):
    training = make_training(tmp_path, images)
    for name, step in (("rehearse", 0), ("validate", 6)):
        setattr(training, name, ask)
        with pytest.raises(
            TrainingError, match="for the validation, .*allocate 1125.*--image-size"
        ):
            training.fit()
        assert training.step == step
        training.rehearse = None
    training.run.close()


# --- a step in parts -----------------------------------------------------------------------------


class Recorder(torch.nn.Module):
    """A network without BatchNorm, and what it was shown."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3 * 8 * 8, 3)
        self.shown: list[torch.Tensor] = []

    def forward(self, x):
        self.shown.append(x)
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("extra", [{}, {"mixup": 1.0, "cutout": 4, "taught": True}], ids=len)
@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("parts, sizes", [(2, [3, 3]), (4, [2, 2, 1, 1]), (6, [1] * 6)])
def test_parts_of_a_step_make_the_update_of_the_whole(
    tmp_path, images, parts, sizes, clip_norm, amp, extra
):
    found = []
    for accumulate in (1, parts):
        training = make_training(
            tmp_path / str(accumulate), images, scratch=True,
            accumulate=accumulate, amp=amp, clip_norm=clip_norm, **extra,
        )  # fmt: skip
        torch.manual_seed(0)
        network = Recorder()
        trained = Training(
            network, training.recipe, loader=training.loader, run=training.run,
            preprocessing=training.preprocessing, device=training.device, teacher=training.teacher,
        )  # fmt: skip
        trained.fit()
        training.run.close()
        metrics = read_run(tmp_path / str(accumulate)).metrics
        found.append((network, [each["train/loss"] for each in metrics]))
    (whole, losses), (divided, summed) = found
    assert [len(each) for each in divided.shown[: len(sizes)]] == sizes
    assert torch.equal(torch.cat(divided.shown), torch.cat(whole.shown))
    tolerance = 1e-6 if amp == "off" else 1e-2
    assert summed == pytest.approx(losses, rel=tolerance)
    torch.testing.assert_close(
        divided.linear.weight, whole.linear.weight, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_stopped_run_in_parts_continues_to_the_bit(tmp_path, images, reference, amp):
    with pytest.raises(Stopped):
        fit(tmp_path, images, before=send(signal.SIGTERM, at=7), accumulate=4, amp=amp)
    resumed = fit(tmp_path, images, accumulate=4, amp=amp)
    assert_identical(resumed.state, reference(accumulate=4, amp=amp).state)


# --- only the sampled path learns --------------------------------------------------------------


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_idle_candidates_stand_still(tmp_path, images, amp):
    training = make_training(tmp_path, images, amp=amp)
    network = training.network
    assert isinstance(network, Supernet)
    sampler = training.sampler
    snapshots = []

    def snapshot(step: int) -> None:
        snapshots.append(copy.deepcopy(network.state_dict()))

    training.sampler = Watched(sampler, snapshot)
    training.fit()
    snapshots.append(network.state_dict())
    for step in range(TOTAL):
        network.activate(sampler.sample(step))
        active = {id(module) for module in network.active_modules()}
        names = {
            name: id(module) in active
            for prefix, module in network.named_modules()
            for name in (f"{prefix}.{own}" for own in module._parameters | module._buffers)
        }
        for name, tensor in snapshots[step].items():
            if "num_batches" in name or "running" in name or "weight" in name:
                moved = not torch.equal(tensor, snapshots[step + 1][name])
                assert moved == names[name], (step, name)
    training.run.close()


# --- not finite --------------------------------------------------------------------------------


def is_finite(state: dict[str, Any]) -> bool:
    """Whether all weights and running statistics of a checkpoint are."""
    return all(bool(tensor.isfinite().all()) for tensor in state["network"].values())


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("step", [0, 5, 8, 17])
def test_run_stops_before_weights_are_spoiled(tmp_path, images, step, value):
    states = []

    def spoil(number: int):
        if number == step:
            states.append({k: v.clone() for k, v in training.network.named_parameters()})
            return torch.full((6, 3, 8, 8), value)
        return None

    training = make_training(tmp_path, images, spoil=spoil)
    with pytest.raises(TrainingError, match=f"the loss is not finite at step {step}; .*--lr"):
        training.fit()
    for name, parameter in training.network.named_parameters():
        assert torch.equal(parameter, states[0][name])
    training.run.close()
    found = latest_checkpoint(tmp_path / "checkpoints")
    assert (found[0] if found else 0) == step // STEPS_PER_EPOCH * STEPS_PER_EPOCH
    assert not found or is_finite(load_checkpoint(found[1]))


@pytest.mark.parametrize("step, stop", [(11, None), (8, send(signal.SIGTERM, at=8))])
def test_weights_that_a_gradient_spoiled_are_not_saved(tmp_path, images, step, stop):
    """Under a finite loss, in the last step of an epoch or the one that a signal saves after."""

    def spoil(gradient):
        return torch.full_like(gradient, math.inf) if training.step == step else gradient

    training = make_training(tmp_path, images, before=stop)
    list(training.network.parameters())[-1].register_hook(spoil)
    with pytest.raises(TrainingError, match=f"weights are not finite at step {step + 1}; .*--lr"):
        training.fit()
    training.run.close()
    found = latest_checkpoint(tmp_path / "checkpoints")
    assert found and found[0] == 6
    assert is_finite(load_checkpoint(found[1]))
    assert fit(tmp_path, images).state["step"] == TOTAL  # the command repeated


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("step", [6, 18])
def test_validation_that_is_not_finite_ends_the_run(tmp_path, images, step, value):
    training = make_training(tmp_path, images)
    training.validate = lambda: {"val/loss": value if training.step == step else 1.0}
    with pytest.raises(TrainingError, match=f"val/loss .* is {value} after step {step}: .*--lr"):
        training.fit()
    training.run.close()
    found = latest_checkpoint(tmp_path / "checkpoints")
    assert (found[0] if found else 0) == step // TOTAL * TOTAL  # the last one is saved before
    entries = read_journal(tmp_path / "metrics.jsonl")
    assert not [each for each in entries if each["step"] == step and "val/loss" in each]


@pytest.mark.parametrize("row", [MAX_SKIPPED_UPDATES - 1, MAX_SKIPPED_UPDATES])
def test_fp16_skips_updates_but_not_for_ever(tmp_path, images, row):
    def spoil(number: int):
        return torch.full((6, 3, 8, 8), math.inf) if 4 <= number < 4 + row else None

    training = make_training(tmp_path, images, spoil=spoil, amp="fp16", epochs=5, scratch=True)
    if row < MAX_SKIPPED_UPDATES:
        training.fit()
        # Parameters and running statistics, which the forward pass of a skipped update has spoiled.
        assert is_finite(read_run(tmp_path).state)
    else:
        with pytest.raises(TrainingError, match="20 updates in a row.*step 23.*bf16"):
            training.fit()
    training.run.close()
