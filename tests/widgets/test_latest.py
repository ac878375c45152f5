import threading

from workbench.widgets.latest import Latest


def begin(compute, failed=None):
    shown, errors = [], []
    return Latest(compute, shown.append, failed or errors.append, settle=0.01), shown, errors


def test_the_newest_value_wins_and_overtaken_ones_are_never_computed():
    entered, gate, computed = threading.Event(), threading.Event(), []

    def slow(value):
        computed.append(value)
        entered.set()
        assert gate.wait(10)
        return value

    latest, shown, _ = begin(slow)
    latest.submit(0)
    assert entered.wait(10)
    for value in range(1, 51):
        latest.submit(value)
    gate.set()
    assert latest.wait(10)
    assert computed == shown == [0, 50]


def test_an_error_is_handed_over_and_the_next_value_is_shown():
    latest, shown, errors = begin(lambda value: 1 / value)
    latest.submit(0)
    assert latest.wait(10)
    latest.submit(4)
    assert latest.wait(10)
    assert shown == [0.25] and [type(error) for error in errors] == [ZeroDivisionError]


def test_one_worker_at_a_time_and_none_when_idle():
    running, most = [], []

    def count(value):
        running.append(value)
        most.append(len(running))
        running.pop()
        return value

    latest, shown, _ = begin(count)
    callers = [threading.Thread(target=lambda n=n: [latest.submit((n, i)) for i in range(200)]) for n in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert latest.wait(10)
    assert max(most) == 1 and shown[-1][1] == 199
    for thread in threading.enumerate():
        if thread.name == "workbench-latest":
            thread.join(10)
    assert not [thread for thread in threading.enumerate() if thread.name == "workbench-latest"]


def test_wait_says_when_time_is_up():
    gate = threading.Event()
    latest, _, _ = begin(lambda value: gate.wait(10))
    latest.submit(1)
    assert not latest.wait(0.01)
    gate.set()
    assert latest.wait(10)


def test_the_rough_result_comes_first_and_the_rest_only_if_nothing_newer_waits():
    def compute(value):
        yield "rough", value
        if value == 1:
            latest.submit(2)
        yield "fine", value
        yield "finer", value

    latest, shown, _ = begin(compute)
    latest.submit(1)
    assert latest.wait(10)
    assert shown == [("rough", 1), ("fine", 1), ("rough", 2), ("fine", 2), ("finer", 2)]


def test_where_even_the_telling_of_an_error_fails_the_next_value_finds_a_worker(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def refuse(error):
        raise RuntimeError("the page is gone") from error

    latest, shown, _ = begin(lambda value: 1 / value, refuse)
    latest.submit(0)
    assert latest.wait(10)
    latest.submit(2)
    assert latest.wait(10) and shown == [0.5]
