"""The helper process of bounded work."""

import os
import signal
import threading
import time

import pytest

from llmkd.rewards import bounded

CATASTROPHE = ("(a+)+b", "a" * 40)  # 2^40 ways to split the letters


def test_a_match_is_of_the_whole_text_and_of_line_ends() -> None:
    assert bounded.ask("match", "a.b", "a\nb") is True
    assert bounded.ask("match", "a", "ab") is False


def test_endless_work_is_no_answer_and_the_next_job_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "CPU_SECONDS", 1)
    start = time.process_time()
    assert bounded.ask("match", *CATASTROPHE) is None
    assert time.process_time() - start < bounded.CPU_SECONDS, "the work is the helper's"
    assert bounded.ask("match", "a*", "aaa") is True


def test_a_helper_that_was_killed_is_replaced() -> None:
    assert bounded.ask("match", "a", "a") is True
    assert bounded._helper is not None
    first = bounded._helper.pid
    bounded._helper.send_signal(signal.SIGKILL)
    bounded._helper.wait()
    assert bounded.ask("match", "a", "a") is True
    assert bounded._helper.pid != first


def test_a_limit_counts_from_the_start_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many jobs of one helper may take more together than one of them may."""
    monkeypatch.setattr(bounded, "CPU_SECONDS", 1)
    assert bounded.ask("match", "a", "a") is True
    assert bounded._helper is not None
    first, pattern = bounded._helper.pid, "(a+)+b"
    for _ in range(18):
        assert bounded.ask("match", pattern, "a" * 22) is False
    assert bounded._helper.pid == first


def test_threads_get_their_own_answers() -> None:
    texts, found = ["a" * n for n in range(40)], {}
    threads = [threading.Thread(target=lambda t=t: found.update({t: bounded.ask("match", "(aa)*", t)})) for t in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {text: len(text) % 2 == 0 for text in texts}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_has_a_helper_of_its_own() -> None:
    """A worker of a data loader must not read the answers of its parent's helper."""
    assert bounded.ask("match", "a", "a") is True
    assert bounded._helper is not None
    parents = bounded._helper.pid
    child = os.fork()
    if child == 0:
        right = bounded.ask("match", "b", "b") is True and bounded._helper.pid != parents
        bounded._end()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bounded.ask("match", "a", "b") is False
    assert bounded._helper.pid == parents
