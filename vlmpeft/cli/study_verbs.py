"""The verbs of studies as typed functions: run one, and what is made of its records.

Nothing heavy is imported before a verb's own work, and torch never where records are only read.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from vlmpeft.cli.command_line import Verb, declare_torchvision, given
from vlmpeft.runtime.errors import UserError


def sweep(
    run_args: list[str],
    study: str,
    out: str | None = None,
    match_parameters: int | None = None,
    only: list[str] = [],  # noqa: B006  read only
    seeds: str | None = None,
    jobs: int | None = None,
    launcher: Literal["process", "subprocess", "ray"] = "process",
    address: str | None = None,
    cpus_per_run: float | None = None,
    gpus_per_run: float | None = None,
    shard: str | None = None,
    budget: str | None = None,
    redo: bool = False,
    accept: list[str] = [],  # noqa: B006  read only
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Run a study: every row of its file on every task, base and seed; what is finished is not run again.

    Args:
        run_args: keys of a run that every run gets, over those of the file, e.g. --data.train mine.json.
        study: a study file, or the name of one under configs/studies.
        match_parameters: trainable parameters that every row gets, in place of what the file says.
        out: folder of its records; default results/NAME.
        only: cells that are meant, as row=A,B task=T base=B group=G; globs are taken.
        seeds: instead of those of the file, e.g. 0,1,2,3.
        jobs: processes that share the runs, each with its share of the cores or a GPU of its own; default 1. The same command may
            also be given in any number of terminals or jobs of a cluster that see the same folder. With ray, runs at once; default
            as many as the cluster has room for.
        launcher: process makes run after run in this process on one base in memory; subprocess gives each run a process of its own;
            ray makes each on a node of a Ray cluster, and brings what it leaves here.
        address: of the Ray cluster, e.g. auto or HOST:6379; default auto.
        cpus_per_run: cores of a node that a run gets; default 1. Of ray.
        gpus_per_run: GPUs of a node that a run gets; default 1 if the cluster has any. Of ray.
        shard: K/N makes only every N-th row, beginning with the K-th.
        budget: a time, e.g. 90s, 30m or 2h: search for the best rows by successive halving on validation, and run nothing that
            tables report.
        redo: make finished runs of other settings than the file's again; without it they are refused.
        accept: keys in which a finished record may differ, e.g. data.train.
        yes: go ahead with more than 500 runs.
        dry_run: resolve every row, print runs, sizes, memory and hours, and run nothing.
        json: print JSON and nothing else; of a dry run.
    """
    from vlmpeft.study.report.info import check_folder
    from vlmpeft.study.rows import check_size, expand_rows
    from vlmpeft.study.study_file import find_study, read_study_file, with_overrides

    wishes = SimpleNamespace(**given(locals()), run_args=run_args)
    wishes.began = time.monotonic()
    spec = with_overrides(read_study_file(find_study(study)), run_args, match_parameters)
    if not yes:
        check_size(spec)
    expand_rows(spec)
    _check_launcher(wishes)
    _check_budget(wishes)
    wishes.folder = Path(out) if out else Path("results") / spec.name
    check_folder(wishes.folder, spec.name)
    declare_torchvision()
    from vlmpeft.cli.sweep import sweep_study

    sweep_study(spec, wishes)


def _check_launcher(wishes: SimpleNamespace) -> None:
    if wishes.jobs is not None and wishes.jobs < 1:
        raise UserError(f"--jobs {wishes.jobs}: give a number above 0")
    options = ("address", "cpus_per_run", "gpus_per_run")
    if wishes.launcher != "ray":
        for name in options:
            if getattr(wishes, name) is not None:
                raise UserError(f"--{name} is an option of --launcher ray, which is not asked for")
        return
    from vlmpeft.study.launchers.ray_connection import require_ray

    require_ray()
    for name in options[1:]:
        if (value := getattr(wishes, name)) is not None and value < 0:
            raise UserError(f"--{name} {value:g}: give a number of at least 0")


def _check_budget(wishes: SimpleNamespace) -> None:
    if wishes.budget is None:
        return
    from vlmpeft.study.budget import read_seconds

    read_seconds(wishes.budget)
    if wishes.launcher == "ray":
        raise UserError("--budget times its steps on this machine; leave --launcher ray out")
    for name in ("dry_run", "shard"):
        if getattr(wishes, name):
            raise UserError(
                f"--budget searches among all rows, and --{name} does not: leave one out"
            )


def table(
    folder: str,
    format: Literal["md", "tex", "csv", "html"] | None = None,
    spec: str | None = None,
    appendix: bool = False,
    metric: list[str] = [],  # noqa: B006  read only
    task: list[str] = [],  # noqa: B006  read only
    out: str | None = None,
) -> None:
    """A study's records as a table: means over seeds, differences from the reference with intervals, sizes and costs.

    Args:
        folder: of the study, results/NAME, or of run folders, runs.
        format: default by the ending of --out, else a table for the terminal.
        spec: YAML with columns, rows, names and order (docs/studies.md).
        appendix: how the numbers came to be, in place of the table: settings, budgets, data, prompts, versions, BibTeX.
        metric: one or several; default the primary one of each task.
        task: one or several; default every task.
        out: file that is written; default stdout.
    """
    from vlmpeft.cli.table import show_table
    from vlmpeft.study.report.spec import Spec, narrowed, read_spec

    wanted = narrowed(read_spec(spec) if spec else Spec(), metric, task)
    show_table(Path(folder), wanted, format, Path(out) if out else None, appendix=appendix)


def plot(
    folder: str,
    kind: list[str] = [],  # noqa: B006  read only
    metric: list[str] = [],  # noqa: B006  read only
    task: list[str] = [],  # noqa: B006  read only
    out: str | None = None,
) -> None:
    """A study's records as plots, PNG and SVG: scores against size, rank and data, heat maps, forgetting, losses, spectra.

    Args:
        folder: results/NAME, or any folder of run folders.
        kind: pareto, heat_map, rank, data_scaling, forgetting, loss, spectrum, one or several; default all that the records allow.
        metric: one or several; default the primary one of each task.
        task: one or several; default every task.
        out: folder that is written; default plots/ in the study's.
    """
    from vlmpeft.cli.plot import plot_study

    plot_study(Path(folder), kind, Path(out) if out else None, metric, task)


def report(folder: str, out: str | None = None, pictures: bool = True) -> None:
    """A study's records as one HTML page: table, plots, worst predictions with pictures, settings, environment.

    Args:
        folder: results/NAME, or any folder of run folders.
        out: the file; default report.html in the folder.
        pictures: whether thumbnails of the data's pictures are on the page.
    """
    from vlmpeft.cli.report import report_study

    report_study(Path(folder), Path(out) if out else None, pictures=pictures)


def compare(
    a: str,
    b: str,
    data: str | None = None,
    image_dir: str | None = None,
    limit: int | None = None,
    metric: list[str] = [],  # noqa: B006  read only
    group_by: str | None = None,
    fail_if: list[str] = [],  # noqa: B006  read only
    cluster: str = "image",
    margin: float = 0.01,
    worst: int = 10,
    html: str | None = None,
    allow_strategy: str | None = None,
    json: bool = False,
) -> None:
    """Compare B with A on the same items: differences with intervals and tests, and what got worse.

    A and B are run folders, adapter folders, or rows of a study, STUDY:ROW[:TASK[:BASE]]. Exit code 4 if --fail_if holds.

    Args:
        a: the reference.
        b: what is compared with it.
        data: score both on this file first; then a bare adapter folder and `base` are taken as well.
        image_dir: what image paths are relative to; default the data's own folder.
        limit: items of --data that are scored.
        metric: these only, and the first decides what got worse; default all that both have.
        group_by: field of items; default the run's data.group_by, else kind.
        fail_if: conditions on B - A, e.g. "exact_match < -0.01"; METRIC.low and METRIC.high are the ends of the interval.
        cluster: items of one value are not independent: image, or a field.
        margin: differences below it count as equivalent.
        worst: how many of the items that got worse are shown.
        html: write a page with thumbnails to this file.
        allow_strategy: strategies of your own that an adapter may name, mine.A,mine.B; they are imported.
        json: print JSON and nothing else.
    """
    settings = SimpleNamespace(**given(locals()))
    for name in ("limit", "allow_strategy"):
        if getattr(settings, name) is not None and data is None:
            raise UserError(f"compare: --{name} has no effect without --data FILE; leave it out")
    if not 0 < margin < float("inf"):
        raise UserError(f"compare: --margin {margin:g} is no difference; give a number above 0")
    if worst < 0 or (limit is not None and limit < 1):
        raise UserError("compare: --worst and --limit are numbers of items; give 0 and 1 or more")
    if data:
        declare_torchvision()
    from vlmpeft.cli.compare import compare_two

    compare_two(settings)


STUDY_VERBS = {
    "sweep": Verb("sweep", sweep, positional=("study",)),
    "table": Verb("table", table, positional=("folder",)),
    "plot": Verb("plot", plot, positional=("folder",)),
    "report": Verb("report", report, positional=("folder",)),
    "compare": Verb("compare", compare, positional=("a", "b")),
}
