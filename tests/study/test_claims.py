"""Claims: of any number of processes one works on a run; a dead one's claim is taken over, a living one's is not."""

import json
import multiprocessing
import os
import time

from vlmpeft.study import claims
from vlmpeft.study.claims import Claims


def test_second_claim_of_a_name_is_refused_until_the_first_is_given_back(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    with first.claimed("runs/a/seed0") as mine:
        assert mine
        assert second.is_claimed("runs/a/seed0")
        with second.claimed("runs/a/seed0") as its:
            assert not its
        with second.claimed("runs/a/seed1") as its:
            assert its
    assert not second.is_claimed("runs/a/seed0")
    with second.claimed("runs/a/seed0") as its:
        assert its
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".json"] == []


def test_claim_is_given_back_after_an_error(tmp_path):
    try:
        with Claims(tmp_path).claimed("a"):
            raise RuntimeError
    except RuntimeError:
        pass
    assert not Claims(tmp_path).is_claimed("a")


def hold(folder, ready):
    with Claims(folder).claimed("a"):
        ready.set()
        time.sleep(60)


def test_claim_of_a_killed_process_is_taken_over_and_of_a_living_one_is_not(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(10)
    with Claims(tmp_path).claimed("a") as mine:
        assert not mine
    process.kill()
    process.join()
    with Claims(tmp_path).claimed("a") as mine:
        assert mine


def race(folder, start, won):
    start.wait()
    with Claims(folder).claimed("a") as mine:
        if mine:
            won.put(os.getpid())
            time.sleep(1)


def test_of_many_that_find_a_stale_claim_one_takes_it_over(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps({"token": "x", "machine": claims.machine(), "pid": 2**22 - 1, "host": "h"})
    )
    context = multiprocessing.get_context("fork")
    start, won = context.Event(), context.Queue()
    processes = [context.Process(target=race, args=(tmp_path, start, won)) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert won.get(timeout=5) in [process.pid for process in processes]
    assert won.empty()


def test_claim_of_another_machine_is_stale_when_nobody_touched_it_for_long(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"token": "x", "machine": "other", "pid": os.getpid(), "host": "h"}))
    assert Claims(tmp_path).is_claimed("a")
    old = time.time() - claims.STALE_SECONDS - 1
    os.utime(path, (old, old))
    assert not Claims(tmp_path).is_claimed("a")


def test_file_that_is_no_claim_holds_nobody_up(tmp_path):
    (tmp_path / "a.json").write_text("not json")
    with Claims(tmp_path).claimed("a") as mine:
        assert mine
