"""The scripts on every kind of device there is: what one trains, the CPU reads and confirms."""

import pytest
import torch
from commands import COMMON
from run_contents import read_run
from test_tester_script import results, write_archs

import spos
from spos.__main__ import main
from spos.architecture import save_architecture
from spos.data.folder import scan_folder
from spos.data.loader import build_loader
from spos.evaluation.accuracy import measure_accuracy
from spos.evaluation.build import open_supernet_run
from spos.evaluation.evaluator import ImageBatches
from spos.files import read_journal
from spos.training.checkpoint import latest_checkpoint
from spos.training.recipe import AMP_MODES

CPU = torch.device("cpu")
CLOSE = 2e-2  # of losses: a GPU multiplies in TF32


GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
on_every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
in_every_precision = pytest.mark.parametrize(
    ("device", "amp"),
    [
        ("cpu", "off"),
        ("cpu", "bf16"),
        *(pytest.param("cuda", amp, marks=GPU) for amp in AMP_MODES),
    ],
)


@in_every_precision
def test_supernet_goes_on_where_it_stopped_and_scores_as_on_a_cpu(workspace, device, amp):
    words = ("--device", device, "--amp", amp)
    finished = workspace.supernet(*words, run="on_device")
    assert finished.status == 0, finished.stderr
    run = workspace.folder / "on_device"
    before = read_run(run)
    step, newest = latest_checkpoint(run / "checkpoints")
    newest.unlink()
    finished = workspace.supernet(*words, run="on_device")
    assert finished.status == 0 and "continuing" in finished.stderr, finished.stderr
    after = read_run(run)
    assert after.state["step"] == step == before.state["step"]
    again = 0 if device == "cpu" else 0.1  # a GPU adds in another order
    for name, weight in before.state["network"].items():
        assert after.state["network"][name].device == CPU
        torch.testing.assert_close(after.state["network"][name], weight, rtol=again, atol=again)

    archs = write_archs(workspace.folder)
    there, here = (
        results(workspace.tester("--json", "--device", each, "--arch", *archs, run="on_device"))
        for each in (device, "cpu")
    )
    for one, other in zip(there, here, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=CLOSE)
        assert one["macs"] == other["macs"]


@on_every_device
def test_search_in_one_process_scores_as_the_tester(workspace, tiny_spaces, tmp_path, device):
    config = tmp_path / "config.yml"
    config.write_text("tuner: {className: spos.search.tuner.SearchTuner}")
    words = ("search", "run", "--config", config, "--rounds", 2, "--population", 4,
             "--run-dir", workspace.folder / "supernet", "--output-dir", tmp_path / "search",
             *COMMON, "--device", device, "--threads", 1)  # fmt: skip
    assert main([str(word) for word in words]) == 0
    entries = read_journal(tmp_path / "search" / "search.jsonl")
    assert len(entries) == 8
    spec = open_supernet_run(workspace.folder / "supernet").spec
    archs = [tmp_path / f"{number}.json" for number in range(len(entries))]
    for path, entry in zip(archs, entries, strict=True):
        save_architecture(path, spec.architecture(entry["choices"]))
    scores = results(workspace.tester("--json", "--device", device, "--arch", *archs))
    for entry, score in zip(entries, scores, strict=True):
        assert entry["score"] == pytest.approx(score["top1"], abs=0 if device == "cpu" else 0.1)


@in_every_precision
def test_network_from_scratch_scores_on_a_cpu_what_was_reported(
    workspace, tiny_spaces, device, amp
):
    words = ("--mixup", 0.2, "--cutout", 2, "--teacher", "scratch/best.safetensors")
    finished = workspace.scratch("--device", device, "--amp", amp, *words, run="on_device")
    assert finished.status == 0, finished.stderr
    network = spos.load_subnet(workspace.folder / "on_device" / "best.safetensors")
    loader = build_loader(
        scan_folder(workspace.folder / "data" / "val"), image_size=8, augmentation="none",
        batch_size=256, shuffle=False,
    )  # fmt: skip
    test = ImageBatches(loader, preprocessing=network.preprocessing, device=CPU)
    reported = read_run(workspace.folder / "on_device").measured()[-1]
    assert reported["test/loss"] == pytest.approx(
        measure_accuracy(network, test, CPU).loss, rel=CLOSE
    )
