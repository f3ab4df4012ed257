"""The page and its files: complete, self-contained, harmless, partial where things are missing."""

import base64
import html
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_runs import (
    SPEC,
    write_all,
    write_experiment,
    write_scratch,
    write_state,
    write_supernet,
)

from spos.__main__ import main
from spos.architecture import parse_architecture
from spos.errors import ArchitectureError, ConfigError
from spos.files import write_json
from spos.report.report import build_page, write_report
from spos.report.sources import collect

FIGURES = {
    "supernet_loss", "supernet_accuracy", "supernet_paths", "search_progress", "search_macs",
    "search_params", "search_latency_ms", "search_choices", "best_architecture", "scratch_loss",
    "scratch_accuracy",
}  # fmt: skip
HELD_OUT = {"num_train": 100, "held_out": 10, "split": "0123456789ab"}
EVIL = '"><script>alert(2)</script><img src=//evil.invalid/x onerror=alert(1)>$x_1$&amp;\x00é漢'


def page_of(*paths: Path) -> str:
    return build_page(collect([str(path) for path in paths]))[0]


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL))


class Tags(HTMLParser):
    """Every tag of a page or a figure with its attributes, as a browser would see them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def addresses_of(source: str) -> list[str]:
    """What a browser may load or go to."""
    names = {"src", "href", "xlink:href", "action", "srcset", "poster", "data", "background"}
    tags = Tags(source).found
    return [str(value) for _, each in tags for name, value in each.items() if name in names]


def is_harmless(source: str) -> bool:
    """Whether only our own script runs and nothing is loaded."""
    tags = Tags(source).found
    handlers = [name for _, each in tags for name in each if name.startswith("on")]
    scripts = [each for tag, each in tags if tag == "script"]
    allowed = ("data:", "#", "http://localhost:")
    outside = [each for each in addresses_of(source) if not each.startswith(allowed)]
    return not handlers and not outside and len(scripts) <= 1


def test_page_and_every_figure_are_written(report):
    assert {path.name for path in report.iterdir()} == {"index.html"} | {
        f"{name}.png" for name in FIGURES
    }
    page = (report / "index.html").read_text(encoding="utf-8")
    assert page.count("<img ") == len(FIGURES)
    assert (
        len(re.findall(r'<img src="data:image/svg\+xml;base64,[^"]+" alt="[^"]{40,}', page)) == 11
    )
    assert "missing-part" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    text = text_of(page)
    assert "Architecture search: nasbench_macro on digits" in text
    for words in ("87.5 %", "18 of 18 candidates", "17 candidates scored, 1 failed", "44 steps"):
        assert words in text


def test_page_loads_nothing(report):
    page = (report / "index.html").read_text(encoding="utf-8")
    assert all(each.startswith("data:") for each in addresses_of(page)) and is_harmless(page)
    for figure in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page):
        svg = base64.b64decode(figure).decode()
        assert all(each.startswith(("#", "data:image/png")) for each in addresses_of(svg))
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in html.unescape(page)


def test_check_finds_what_would_be_loaded_or_run():
    for source in ("<img src=//x.y/z>", "<a onclick='x'>", "<script></script>" * 2):
        assert not is_harmless(source)


def test_every_axis_has_a_unit(report):
    page = (report / "index.html").read_text(encoding="utf-8")
    figures = [base64.b64decode(each).decode() for each in re.findall(r"base64,(PD[^\"]+)", page)]
    for words in (
        ("step", "cross-entropy (nats)"), ("step", "top-1 accuracy (%)"), ("step", "accuracy (%)"),
        ("MACs", "parameters", "paths"), ("round", "top-1 accuracy (%), held-out images"),
        ("latency (ms)", "Pareto front"), ("after round", "share of the best 10 so far (%)"),
        ("MACs", "kernel", "channels", "map (pixels)"),
    ):  # fmt: skip
        assert any(all(f">{word}<" in svg for word in words) for svg in figures), words


def test_same_files_give_the_same_bytes(demo, report, tmp_path):
    write_report(collect([str(demo)]), tmp_path)
    for path in report.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_links_hold_the_architectures(report, demo):
    page = (report / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'href="data:application/json;base64,([^"]+)" download="(\w+)\.json"', page)
    assert len(links) == 18  # the best one and the table's
    (search,) = collect([str(demo / "search")]).searches
    for (data, name), entry in zip(links[1:], search.ranking, strict=True):
        arch = parse_architecture(base64.b64decode(data))
        assert arch.id == name == entry.id
        assert dict(arch.metrics) == dict(entry.metrics)


# --- what is missing -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_there", [True, False])
def test_empty_run_is_a_page_that_says_so(tmp_path, is_there):
    if is_there:
        write_supernet(tmp_path / "run", steps=0)
        text = text_of(page_of(tmp_path / "run"))
        assert text.count("Nothing has been recorded yet") == 2
        assert "No path has been sampled yet" in text
        assert "Supernet: nothing recorded yet" in text
    else:
        assert "holds no run yet" in text_of(page_of(tmp_path))


def test_search_in_its_first_trial_is_a_page_that_says_so(tmp_path):
    text = text_of(page_of(write_experiment(tmp_path / "search", rounds=0, planned=30)))
    assert text.count("No candidate has been scored yet") == 3
    assert "Search: 0 of 30 candidates" in text


def test_limit_without_an_upper_end_is_told(tmp_path):
    folder = write_experiment(tmp_path / "search", rounds=1)
    write_state(folder, planned=6, constraints={"macs": [1_000_000, None]})
    assert "The search allowed 1 M or more." in text_of(page_of(folder))


def test_middle_of_a_run_is_shown_as_far_as_it_is(tmp_path):
    paths = [
        write_supernet(tmp_path / "supernet", steps=20),
        write_experiment(tmp_path / "search", rounds=1, planned=30),
        write_scratch(tmp_path / "scratch", steps=22),
    ]
    for path in (paths[0] / "metrics.jsonl", paths[1] / "log" / "search.jsonl"):
        with open(path, "a") as file:
            file.write('{"step": 30, "rou')
    text = text_of(page_of(*paths))
    for words in ("step 20 of 40", "6 of 30 candidates", "step 22 of 44", "From scratch so far"):
        assert words in text
    assert "An architecture, trained anew" not in text  # as runs on held-out images are introduced


def test_images_that_were_held_out_are_not_called_test_images(tmp_path):
    write_scratch(tmp_path / "begun", steps=22, **HELD_OUT)
    write_scratch(tmp_path / "ended", **HELD_OUT)
    page = page_of(tmp_path)
    assert "test images" not in page.replace("without the test images", "")
    assert "all training images" not in page
    for name in ("begun", "ended"):
        assert f"top-1, held-out images, {name}" in page
    write_scratch(tmp_path / "tested")
    (tmp_path / "begun" / "args.json").unlink()
    page = page_of(tmp_path / "begun", tmp_path / "tested")
    assert "top-1, validation images, begun" in page and "top-1, test images, tested" in page
    assert "held-out images" not in page
    assert "top-1, test images<" in page_of(tmp_path / "tested")  # alone it needs no name


def test_state_that_is_not_written_yet_is_told(tmp_path):
    folder = write_experiment(tmp_path / "search")
    (folder / "checkpoint" / "search.json").unlink()
    text = text_of(page_of(folder))
    assert "the name of its search space" in text
    assert "does not say what its limits were" in text


def test_space_that_is_not_known_is_told(tmp_path):
    folder = write_experiment(tmp_path / "search")
    search = {"space": "mine:Space", "options": {}, "is_exhausted": False}
    settings = {"rounds": 3, "population": 6}
    write_state(folder, planned=18, search={**search, "settings": settings})
    assert "The network cannot be drawn: the search space 'mine:Space'" in text_of(page_of(folder))


def test_address_of_nni_is_linked(home):
    folder = write_experiment(home / "nni-experiments" / "Ab3dE6gH", rounds=1, planned=30)
    entry = {"logDir": str(folder.parent), "status": "RUNNING", "pid": os.getpid(), "port": 8123}
    write_json(folder.parent / ".experiment", {"Ab3dE6gH": entry})
    assert '<a href="http://localhost:8123">http://localhost:8123</a>' in page_of(folder)


# --- hostile files -------------------------------------------------------------------------------


def write_hostile(folder: Path) -> Path:
    """Runs whose every text is an attempt to break out of the page."""
    write_supernet(folder / "supernet", sampler=EVIL, space=EVIL, data=EVIL, **{EVIL: EVIL})
    write_scratch(folder / "scratch")
    search = write_experiment(folder / "search", rounds=1)
    state = {"space": EVIL, "options": {EVIL: EVIL}, "is_exhausted": False}
    settings = {"rounds": 1, "population": 9}
    write_state(search, planned=9, problem=EVIL, search={**state, "settings": settings})
    with open(search / "log" / "search.jsonl", "a") as file:
        for number in range(3):
            choices = {f"{EVIL}{n}": EVIL for n in range(3)}
            metrics = {EVIL: number, "macs": number, "top1": 0.9}
            line = {"round": 2, "id": f"{EVIL}{number}", "choices": choices, "score": 0.9}
            file.write(json.dumps({**line, "metrics": metrics, "time": EVIL}) + "\n")
    return folder


def test_hostile_texts_are_escaped(tmp_path):
    page, pictures = build_page(collect([str(write_hostile(tmp_path))]))
    assert is_harmless(page)
    assert text_of(page).count("<script>alert(2)</script>") > 5
    for picture in pictures:
        assert not {tag for tag, _ in Tags(picture.svg.decode()).found} & {"script", "img"}
        assert re.fullmatch(r"\w+", picture.name)


def test_page_of_many_layers_and_candidates_is_drawn(tmp_path):
    folder = write_experiment(tmp_path / "search", rounds=1)
    with open(folder / "log" / "search.jsonl", "a") as file:
        choices = {f"layer_{n}": f"candidate_{n % 50}" for n in range(400)}
        line = {"round": 10**9, "id": "x", "choices": choices, "score": 5.0, "metrics": {"macs": 1}}
        file.write(json.dumps(line) + "\n")
    assert "search_choices" in {each.name for each in build_page(collect([str(folder)]))[1]}


# --- the command ---------------------------------------------------------------------------------


def test_command_reports_what_the_default_commands_wrote(tmp_path, monkeypatch, capsys):
    write_all(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--experiments-dir", "runs/search"]) == 0
    assert capsys.readouterr().out == (
        "report: runs/report/index.html (11 figures beside it as PNG)\n"
    )
    assert "Ab3dE6gH" in (tmp_path / "runs" / "report" / "index.html").read_text()
    assert main(["report", "runs/scratch", "--output-dir", "one"]) == 0
    assert len(list((tmp_path / "one").iterdir())) == 3


def test_command_reports_the_search_that_ran_without_nni(tmp_path, monkeypatch, home):
    older = write_experiment(home / "nni-experiments" / "Ab3dE6gH", rounds=1)
    os.utime(older / "log" / "search.jsonl", (1e9, 1e9))
    (tmp_path / "runs").mkdir()
    shutil.move(write_experiment(tmp_path / "x", rounds=2) / "log", tmp_path / "runs" / "search")
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 0
    page = (tmp_path / "runs" / "report" / "index.html").read_text()
    assert "12 candidates" in text_of(page) and "Ab3dE6gH" not in page


@pytest.mark.parametrize("targets", [["demo"], ["demo/supernet", "demo/search", "demo/scratch"]])
def test_summary_is_of_the_folder_that_it_is_given(tmp_path, monkeypatch, capsys, targets):
    write_all(tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    assert main(["summary", *targets]) == 0
    lines = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    rows = {line[0].strip(): line[1] for line in lines if len(line) == 2}
    assert rows["candidates"] == "17" and rows["experiment"] == "Ab3dE6gH"
    assert main(["summary", *targets, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["scratch"]["test top-1"] == 0.875
    best = summary["search"]["top-1 of the best candidate"]
    assert summary["search"]["top-1 of the median candidate"] < best


def test_page_and_summary_tell_the_same_median_of_an_even_number(tmp_path, capsys):
    write_all(tmp_path)
    (journal,) = tmp_path.rglob("search.jsonl")
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    assert main(["summary", str(tmp_path), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["search"]
    assert summary["candidates"] % 2 == 0
    shown = f"{100 * summary['top-1 of the median candidate']:.1f} %"
    assert re.search(rf"Median candidate\s+{shown}", text_of(page_of(tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: write_supernet(folder / "two"), r"one run of supernet.py, found .*two"),
        (lambda folder: shutil.rmtree(folder / "scratch"), "a run of scratch.py, found none"),
        (lambda folder: shutil.rmtree(folder / "search"), "one search, found none; name a superne"),
        (lambda folder: (folder / "scratch" / "metrics.jsonl").unlink(), "has no test/top1 yet"),
        (lambda folder: shutil.rmtree(folder), "nothing to report"),
    ],
)
def test_summary_of_less_or_more_than_three_stages_says_so(tmp_path, monkeypatch, change, message):
    change(write_all(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    targets = ["runs"] if (tmp_path / "runs").exists() else []
    with pytest.raises(ConfigError, match=message):
        main(["summary", *targets])


def test_summary_of_several_runs_from_scratch_lists_the_best_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    best = {label: each[1] for label, each in SPEC.choices.items()}
    write_scratch(Path("runs/1"), top1=0.75, **HELD_OUT)
    write_scratch(Path("runs/2"), top1=0.8125, choices=best, **HELD_OUT)
    write_scratch(Path("runs/tested"), top1=0.875)
    assert main(["summary", "runs", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["scratch"]
    assert list(found) == ["runs/2", "runs/1", "runs/tested"]
    arch_id = SPEC.architecture(best).id
    assert found["runs/2"] == {
        "architecture": arch_id, "held-out top-1": 0.8125, "held-out top-5": 1.0
    }  # fmt: skip
    assert found["runs/tested"]["test top-1"] == 0.875
    assert main(["summary", "runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "scratch" and lines[2].endswith(
        f" architecture {arch_id}  held-out top-1 81.25 %  held-out top-5 100.00 %"
    )
    assert lines[4].endswith("test top-1 87.50 %  test top-5 100.00 %")
    assert main(["summary", "runs/2", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert list(alone) == ["scratch"] and alone["scratch"]["held-out top-1"] == 0.8125


@pytest.mark.parametrize(
    ("config", "steps", "error", "message"),
    [
        (HELD_OUT, 33, ConfigError, "two: the scratch is not finished: it has no held_out/top1"),
        ({"choices": 3}, 44, ArchitectureError, 'two/args.json: "choices" must be an object'),
    ],
)
def test_run_that_cannot_be_compared_is_named(tmp_path, config, steps, error, message):
    write_scratch(tmp_path / "one", **HELD_OUT)
    write_scratch(tmp_path / "two", steps=steps, **config)
    with pytest.raises(error, match=message):
        main(["summary", str(tmp_path)])


def test_summary_of_runs_that_hold_out_different_images_says_so(tmp_path, capsys):
    for name, split in (("1", "a" * 12), ("2", "a" * 12), ("3", "b" * 12)):
        write_scratch(tmp_path / name, **{**HELD_OUT, "split": split})
    assert main(["summary", str(tmp_path / "1"), str(tmp_path / "2")]) == 0
    assert capsys.readouterr().err == ""
    assert main(["summary", str(tmp_path)]) == 0
    assert "the runs hold out different images" in capsys.readouterr().err


def test_summary_says_which_target_it_leaves_out(tmp_path, capsys):
    write_scratch(tmp_path / "runs" / "1")
    write_scratch(tmp_path / "runs" / "2")
    (tmp_path / "runs" / "2" / "args.json").write_text("{")
    (tmp_path / "empty").mkdir()
    assert main(["summary", str(tmp_path / "runs"), str(tmp_path / "empty")]) == 0
    said = capsys.readouterr().err
    assert "2/args.json" in said and "empty holds no run yet" in said


def test_command_without_anything_to_report_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is nothing to report"):
        main(["report"])


def test_two_runs_of_a_stage_keep_their_figures_apart(tmp_path):
    for name in ("one", "two"):
        write_scratch(tmp_path / "runs" / name)
    names = [each.name for each in build_page(collect([str(tmp_path / "runs")]))[1]]
    assert names == [
        "scratch_loss", "scratch_accuracy", "scratch_loss_2", "scratch_accuracy_2"
    ]  # fmt: skip


def test_unwritable_folder_is_named(demo, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(ConfigError, match=r"file.*: cannot be written .*--output-dir"):
            write_report(collect([str(demo / "scratch")]), folder)
