"""GPUs of targets that declare them: no device is needed to see which ones a step may use."""

import ast

import pytest
from client import on
from test_ranks import ROOT

VISIBLE = "import os\nos.environ.get('CUDA_VISIBLE_DEVICES')"


def test_steps_at_the_same_time_have_different_gpus(targets, kernel, tmp_path):
    targets.define("left", gpus=3)
    meet = tmp_path / "meet"
    meet.mkdir()
    wait = f"import os, time\nopen(f'{meet}/{{n}}', 'w').close()\nwhile len(os.listdir({str(meet)!r})) < 3: time.sleep(0.05)"
    one = on("left", resources={"gpus": 1})
    runs = [kernel.send(f"n = {n}\n{wait}\nmine_{n} = os.environ['CUDA_VISIBLE_DEVICES']", one) for n in range(3)]
    for run in runs:
        kernel.finish(run)
        run.ok()
    assert kernel.run("sorted([mine_0, mine_1, mine_2])").ok().result == "['0', '1', '2']"


def test_a_step_without_gpus_sees_none_and_one_that_does_not_say_sees_all(targets, kernel):
    targets.define("left", gpus=2)
    assert kernel.run(VISIBLE, on("left", resources={"gpus": 0})).ok().result == "''"
    assert kernel.run(f"{VISIBLE} is None", on("left")).ok().result == "True"


def test_workers_share_what_a_target_has(targets, kernel):
    targets.define("left", gpus=2, workers=2)
    assert kernel.run(VISIBLE, on("left")).ok().result == "'0'"


@pytest.mark.parametrize("gpus, told", [(None, "has no GPUs"), (1, "has 1 GPU,")])
def test_more_than_there_are_is_refused(targets, kernel, gpus, told):
    if gpus:
        targets.define("left", gpus=gpus)
    run = kernel.run("1", on("left", resources={"gpus": 2}))
    assert run.error.startswith("MetadataError") and told in run.error and "workflow.resources.gpus" in run.error


def test_gpus_of_workers_that_do_nothing_are_taken_and_their_values_stay(targets, kernel):
    targets.define("left", gpus=2)
    one, two = (on("left", resources={"gpus": count}) for count in (1, 2))
    kernel.run("x = [1]\ny = x", one).ok()
    run = kernel.run(f"y.append(2)\n{VISIBLE}", two)
    assert run.ok().result == "'0,1'"
    assert kernel.run("x", one).ok().result == "[1, 2]"
    assert kernel.run("x is y").ok().result == "True"


def test_gpus_of_a_worker_that_must_stay_are_told(targets, kernel):
    targets.define("left", gpus=2)
    one, two = (on("left", resources={"gpus": count}) for count in (1, 2))
    kernel.run("exec(\"x = open('/dev/null')\")", one).ok()
    run = kernel.run("1", two)
    assert run.error.startswith("NoGpu: ") and "%cellferry release" in run.error
    assert kernel.run("x.closed", one).ok().result == "False"
    kernel.run("%cellferry release left").ok()
    assert kernel.run("1", two).ok().result == "1"


RANKS = (
    "from mpi4py import MPI\nimport os\nmine = os.environ['CUDA_VISIBLE_DEVICES']\n"
    "{0} = MPI.COMM_WORLD.gather(mine)\n"
)


def test_ranks_and_steps_beside_them_have_different_gpus(targets, kernel):
    targets.define("left", gpus=6, env=ROOT)
    # Two islands and a plain step: each keeps its GPUs.
    kernel.run(RANKS.format("a"), on("left", resources={"ranks": 2, "gpus": 1})).ok()
    kernel.run(RANKS.format("b"), on("left", resources={"ranks": 1, "gpus": 2})).ok()
    kernel.run("import os\nc = [os.environ['CUDA_VISIBLE_DEVICES']]", on("left", resources={"gpus": 2})).ok()
    found = kernel.run("a, b, c").ok().result
    places = ",".join(part for parts in ast.literal_eval(found) for part in parts).split(",")
    assert sorted(places) == list("012345"), found
    assert kernel.run("len(a), len(b)").ok().result == "(2, 1)"
    # More ranks take those of ranks that do nothing, whose values stay.
    kernel.run(RANKS.format("d"), on("left", resources={"ranks": 6, "gpus": 1})).ok()
    assert kernel.run("sorted(d), len(a), len(b)").ok().result == "(['0', '1', '2', '3', '4', '5'], 2, 1)"


def test_ranks_that_do_not_ask_for_gpus_share_them(targets, kernel):
    targets.define("left", gpus=2, env=ROOT)
    run = kernel.run("import os\nprint(os.environ.get('CUDA_VISIBLE_DEVICES'))", on("left", resources={"ranks": 2}))
    assert run.ok().text() == "[0-1] None\n"
    run = kernel.run("print(repr(os.environ['CUDA_VISIBLE_DEVICES']))", on("left", resources={"ranks": 2, "gpus": 0}))
    assert run.ok().text() == "[0-1] ''\n"
    run = kernel.run("1", on("left", resources={"ranks": 3, "gpus": 1}))
    assert run.error.startswith("MetadataError") and "each of 3 ranks" in run.error
