"""JupyterLab with cells on home, an ssh host and a Slurm cluster, MPI ranks and GPUs among them; and a job that waits."""

import uuid

import pytest
from browser import BrowserTests
from processes import wait_until
from workflow import BIG, CELLS, LAST
from workflow import targets as workflow_targets
from world import own_world, write_targets


@pytest.fixture(scope="module")
def module_world(session_cluster):
    """The server's world: its HOME leads to the cluster."""
    with (
        pytest.MonkeyPatch.context() as patch,
        own_world(uuid.uuid4().hex, patch) as folder,
        session_cluster.used(folder, patch),
    ):
        yield folder


@pytest.fixture
def targets(tmp_path, session_cluster):
    made = workflow_targets(session_cluster)
    write_targets(tmp_path / "cellferry.toml", made)
    return made


@pytest.mark.browser
@pytest.mark.cellferry
@pytest.mark.timeout(300)
class TestLabCluster(BrowserTests):
    app = "lab"
    # What holds anywhere is tried elsewhere.
    test_run_all_as_in_ipykernel = test_error_stops_the_run = test_output_while_a_cell_runs = test_interrupt = None
    test_input = test_restart = test_widget = test_wrong_target_is_shown = None

    def test_a_notebook_over_home_a_host_and_a_cluster(self, open_notebook):
        page, _ = open_notebook(*CELLS)
        page.run_all()
        page.finished()
        page.sees(len(CELLS) - 1, LAST.strip())

    def test_a_job_that_waits_is_shown_until_it_runs(self, open_notebook, session_cluster, pictures):
        submit = "sbatch --parsable -N3 --exclusive --output=/dev/null --wrap 'sleep 1000'"
        other = session_cluster.slurm(submit, user="bob")
        wait_until(lambda: session_cluster.job(other)["JobState"] == "RUNNING", 20, lambda: session_cluster.job(other))
        page, _ = open_notebook(("print('it', 'runs')", BIG))
        page.run_all()
        page.sees(0, "number 1 in the queue")
        page.page.screenshot(path=pictures / "lab-job-waits.png")
        session_cluster.slurm(f"scancel {other}", user=None)
        page.sees(0, "it runs")
        page.finished()
        page.page.screenshot(path=pictures / "lab-job-runs.png")
