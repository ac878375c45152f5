"""Jobs in the background: turns, pauses, stops, errors, and runs that follow each other."""

from __future__ import annotations

import threading
import time

import pytest

from workbench.widgets.background import Background

SOON = 10  # seconds; what is waited for takes milliseconds


class Counter:
    """A job that counts its slices, and says when more than one works at a time."""

    at_work = 0

    def __init__(self, slices=None, fail_at=None):
        self.count, self.slices, self.fail_at = 0, slices, fail_at

    def __call__(self, between):
        while self.slices is None or self.count < self.slices:
            if between():
                return
            Counter.at_work += 1
            assert Counter.at_work == 1
            self.count += 1
            time.sleep(0.0005)
            Counter.at_work -= 1
            if self.count == self.fail_at:
                raise LookupError("no such slice")


def until(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def begun():
    made = []

    def begin(*args, **kwargs):
        made.append(Background(*args, **kwargs))
        made[-1].start()
        return made[-1]

    yield begin
    for run in made:
        run.stop()
    assert all(run.join(SOON) for run in made)
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("workbench-job")])


def test_jobs_follow_each_other_and_end(begun):
    first, second = Counter(20), Counter(20)
    run = begun({"job a": first, "job b": second})
    until(lambda: second.count > 0)
    assert first.count == 20
    assert run.join(SOON) and run.state == "done" and second.count == 20


def test_turns_keep_jobs_abreast(begun):
    jobs = {"job a": Counter(), "job b": Counter(), "job c": Counter()}
    gaps = []

    def least(names):
        counts = [jobs[name].count for name in names]
        gaps.append(max(counts) - min(counts))
        return min(names, key=lambda name: jobs[name].count)

    run = begun(jobs, turn=least)
    until(lambda: min(job.count for job in jobs.values()) >= 20)
    run.stop()
    assert run.join(SOON) and run.state == "stopped" and not run.errors and max(gaps) <= 1


def test_a_pause_holds_still_and_a_resume_goes_on(begun):
    job, states = Counter(), []
    run = begun({"job": job}, changed=lambda: states.append(run.state))
    until(lambda: job.count > 3)
    run.pause()
    until(lambda: run.state == "paused")
    until(lambda: "paused" in states)
    held = job.count
    time.sleep(0.05)
    assert job.count == held
    run.resume()
    until(lambda: job.count > held)
    assert run.state == "running"


def test_a_stop_ends_a_paused_run_and_one_that_ended_was_not_stopped(begun):
    run = begun({"job": Counter()})
    run.pause()
    run.stop()
    assert run.join(SOON) and run.state == "stopped"
    done = begun({"job": Counter(3)})
    assert done.join(SOON)
    done.stop()
    assert done.state == "done"


def test_an_error_ends_its_own_job_alone(begun):
    good, bad = Counter(10), Counter(fail_at=3)
    run = begun({"job bad": bad, "job good": good})
    assert run.join(SOON) and run.state == "done" and good.count == 10
    assert list(run.errors) == ["job bad"] and isinstance(run.errors["job bad"], LookupError)
    alone = begun({"job": Counter(fail_at=1)})
    assert alone.join(SOON) and alone.state == "failed"


def test_a_run_waits_for_the_one_before_it(begun):
    slow = threading.Event()

    def stubborn(between):
        between()
        slow.wait(SOON)

    first = begun({"job": stubborn})
    first.stop()
    after = Counter(5)
    second = begun({"job": after}, after=first)
    time.sleep(0.05)
    assert after.count == 0 and second.state == "running"
    slow.set()
    assert second.join(SOON) and after.count == 5 and not first.unfinished
