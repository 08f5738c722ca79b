"""`sweep`: a study, resolved as a whole before anything is run."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from types import SimpleNamespace

from vlmpeft.cli.run_resolver import RunResolver
from vlmpeft.cli.sweep_tables import print_outline
from vlmpeft.runtime.visible import terminal_console
from vlmpeft.study.outline import ProbeSeconds, outline
from vlmpeft.study.resolving import ResolvedCell, ResolvedStudy, resolve_study
from vlmpeft.study.selection import select
from vlmpeft.study.spec import StudySpec


def sweep_study(spec: StudySpec, wishes: SimpleNamespace) -> None:
    """Run a study, or print what would be run.

    Args:
        spec: its file.
        wishes: the options of the verb (see `verbs.sweep`), and the folder of its records.

    Raises:
        UserError: a cell that cannot be, or a name that is not there.
    """
    with contextlib.redirect_stdout(sys.stderr if wishes.json else sys.stdout):
        study = resolve_study(spec, RunResolver())
        cells = select(study, wishes.only, wishes.seeds)
        if not wishes.dry_run:
            _run(study, cells, wishes)
            return
        found = outline(study, cells, wishes.folder, _prober(study))
    if wishes.json:
        print(json.dumps(found))  # noqa: T201
    else:
        print_outline(terminal_console(), found)


def _run(study: ResolvedStudy, cells: Sequence[ResolvedCell], wishes: SimpleNamespace) -> None:
    if wishes.budget:
        from vlmpeft.cli.sweep_halving import run_halving

        run_halving(study, cells, wishes)
    else:
        from vlmpeft.cli.sweep_run import run_sweep

        run_sweep(study, cells, wishes)


def _prober(study: ResolvedStudy) -> ProbeSeconds:
    """Twenty steps of a run of each task and base."""
    from vlmpeft.cli.study_runs import RunOpener
    from vlmpeft.study.probing import Prober, StepTimes
    from vlmpeft.study.worker import Worker

    times = StepTimes()
    return Prober(Worker(RunOpener([times])), times, study.spec.search)
