"""The checks of this folder must be able to fail: each is given what is wrong. They need no GPU."""

import argparse
import stat
import subprocess
import sys

import numpy
import pytest

import bits_check
import run_all
import trace_check
import traffic_check
from engine_support import DEMO, ROOT, Model, Session, Verdict


@pytest.fixture(scope="module")
def model():
    with Model(DEMO, "cpu", n_threads=1) as opened:
        yield opened


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run_all_of(build, budget, *names, jobs=1):
    command = [
        sys.executable,
        ROOT / "tests/gpu/run_all.py",
        "--device",
        "cpu",
        "--build",
        build,
        "--budget",
        str(budget),
        "--jobs",
        str(jobs),
    ]
    done = subprocess.run([*command, "--only", *names], capture_output=True, text=True, timeout=60)
    return done.returncode, (build / "checks/summary.txt").read_text()


def test_run_all_tells_what_is_wrong_and_what_was_left_out(tmp_path):
    program(tmp_path / "tests/test_device", "echo all right")
    program(tmp_path / "tests/test_golden", "echo row 3 is WRONG; echo the end; exit 1")
    assert run_all_of(tmp_path, 60, "test_device")[0] == 0
    status, text = run_all_of(tmp_path, 60, "test_device", "test_golden")
    assert status == 1 and "1 good, 1 WRONG, 0 LEFT OUT" in text
    assert "exit status 1; the end" in text and "test_golden: row 3 is WRONG" in text
    status, text = run_all_of(tmp_path, 2, "test_device", "test_golden")
    assert status == 3 and text.count("no time") == 2
    (tmp_path / "tests/test_golden").unlink()
    status, text = run_all_of(tmp_path, 60, "test_golden")
    assert status == 3 and "there is no " in text


def test_run_all_runs_stages_beside_each_other(tmp_path):
    for name, other in (("test_device", "test_golden"), ("test_golden", "test_device")):
        program(tmp_path / "tests" / name, f"touch {tmp_path}/{name}; until [ -e {tmp_path}/{other} ]; do sleep 0.05; done")
    status, text = run_all_of(tmp_path, 60, "test_device", "test_golden", jobs=2)
    assert status == 0 and "2 good" in text


def test_the_summary_has_every_stage_that_ended_in_the_order_of_the_list(tmp_path):
    """The first stage ends when the summary tells of the second, at the latest after 20 s."""
    wait = f"for i in $(seq 400); do grep -q test_golden {tmp_path}/checks/summary.txt && exit 0; sleep 0.05; done; exit 1"
    program(tmp_path / "tests/test_device", wait)
    program(tmp_path / "tests/test_golden", "echo all right")
    status, text = run_all_of(tmp_path, 60, "test_device", "test_golden", jobs=2)
    assert status == 0 and text.index("test_device") < text.index("test_golden")


def test_stages_that_take_much_memory_or_watch_it_run_alone(tmp_path):
    chosen = run_all.stages(argparse.Namespace(device="cuda", build=tmp_path), tmp_path)
    beside, alone = run_all.divided(chosen, 8)
    assert [chosen[i].name for i in alone] == ["backward_check", "traffic_check_slice", "traffic_check"]
    assert sorted(beside + alone) == list(range(len(chosen)))
    assert run_all.divided(chosen, 1) == (list(range(len(chosen))), [])


def test_run_all_ends_what_hangs(tmp_path):
    program(tmp_path / "hangs", "echo begun\nsleep 1000 & wait")
    result = run_all.run(run_all.Stage("hangs", [tmp_path / "hangs"], 0, 1), 100, tmp_path, {})
    assert result["result"] == "WRONG" and "ended after 1 s" in result["last"]


def ended(check):
    verdict = Verdict("check")
    check(verdict)
    with pytest.raises(SystemExit) as end:
        verdict.end()
    return end.value.code, verdict.failed


def test_the_first_operator_that_differs_is_named():
    chance = numpy.random.default_rng(1)
    names = ["embed", *(f"{layer:02}-{i:02}-operator" for layer in range(8) for i in range(1, 9)), "logits"]
    assert sorted(names[::-1], key=trace_check.order) == names
    truth = {name: chance.normal(size=(9, 16)) for name in names}

    def compared(wrong):
        got = {name: rows.copy() for name, rows in truth.items()}
        wrong(got)
        return ended(lambda verdict: trace_check.compare(verdict, "fp32", got, truth, None))

    def spoil(*changed, value=0.1):
        return lambda got: [got[name].__setitem__((3, 5), got[name][3, 5] + value) for name in changed]

    assert compared(spoil("02-03-operator", value=1e-6)) == (0, [])
    status, failed = compared(spoil("logits", "05-01-operator", "02-03-operator"))
    assert status == 1 and len(failed) == 1 and "02-03-operator" in failed[0] and "in row 3 of 9" in failed[0]
    assert "00-01-operator" in compared(spoil("00-01-operator", value=numpy.nan))[1][0]
    assert compared(lambda got: got.pop("07-08-operator"))[0] == 1
    assert ended(lambda verdict: None) == (1, ["nothing was checked"])


def test_bits_that_differ_are_told(model):
    with Session(model, kv_tokens=1024) as session:
        runs = [session.finish([session.submit([5, 6, 7], 4)])[0] for _ in range(2)]
    expected = [bits_check.bits(runs[0])]
    assert ended(lambda verdict: bits_check.compare(verdict, "again", [bits_check.bits(runs[1])], expected))[0] == 0
    id, logprob = runs[1].tokens[2]
    runs[1].tokens[2] = (id, float(numpy.nextafter(numpy.float32(logprob), numpy.float32(1))))
    status, failed = ended(lambda verdict: bits_check.compare(verdict, "again", [bits_check.bits(runs[1])], expected))
    assert status == 1 and "from token 2 on" in failed[0]


@pytest.mark.parametrize("n", [640, 641])
def test_a_row_with_one_other_bit_has_another_checksum(n):
    row = numpy.random.default_rng(2).normal(size=n).astype(numpy.float32)
    for i in (0, 1, n // 2, n - 1):
        other = row.copy()
        other.view(numpy.uint32)[i] ^= 1
        assert bits_check.checksum(other) != bits_check.checksum(row)
    assert bits_check.checksum(row.copy()) == bits_check.checksum(row)


def test_where_types_round_every_token_goes_to_all_experts(tmp_path):
    with Model(trace_check.with_all_experts(tmp_path), "cpu", n_threads=1) as opened:
        assert opened.info.top_k == opened.info.n_experts


def test_traffic_tells_other_bits_and_blocks_that_are_kept(model, capsys):
    with Session(model, max_sequences=8, max_context=200, kv_tokens=1024) as session:
        traffic = traffic_check.Traffic(model, session, 200, 1)
        traffic_check.drive(traffic, session, 1 / 60)
        assert not traffic.faults and traffic.counts["requests"] > 0
        run = session.finish([session.submit([5, 6, 7], 4)])[0]
        run.uses_grammar = False
        traffic.known.pop(0, None)
        traffic.check_end(run, 0)
        traffic.check_end(run, 0)
        assert not traffic.faults
        run.tokens[1] = (run.tokens[1][0] ^ 1, run.tokens[1][1])
        traffic.check_end(run, 0)
        run.state = "failed"
        traffic.check_end(run, 1)
        session.submit([5, 6, 7], 100)  # nobody knows of it, so it ends by itself
        stats = session.stats()
        stats.kv_blocks_free -= 1
        session.stats = lambda: stats
        traffic.round(0, 0)
    assert [fault.split(" ")[:3] for fault in traffic.faults] == [
        ["request", "0", "of"], ["request", "1", "ended"], ["at", "the", "end"]
    ]  # fmt: skip
    capsys.readouterr()


def test_growth_is_from_the_second_quarter_to_the_last():
    flat = [500, 90, 100, 100, 100, 104, 100, 100]
    assert traffic_check.growth(flat) == 0
    assert traffic_check.growth([100 + 10 * i for i in range(40)]) == 200
