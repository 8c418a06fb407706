"""JupyterLab with targets on far hosts: what holds with targets on this machine holds there, and what a lost link looks like."""

import uuid

import pytest
from browser import BrowserTests
from world import own_world, write_targets


@pytest.fixture(scope="module")
def module_world(session_bed):
    """The server's world: its HOME leads to the hosts."""
    with (
        pytest.MonkeyPatch.context() as patch,
        own_world(uuid.uuid4().hex, patch) as folder,
        session_bed.used(folder, patch),
    ):
        yield folder


@pytest.fixture
def targets(tmp_path, session_bed):
    """`left` and `right`, each on a host of its own."""
    table = {"type": "ssh", "python": session_bed.python}
    made = {"left": {**table, "host": "node1"}, "right": {**table, "host": "node2"}}
    write_targets(tmp_path / "cellferry.toml", made)
    return made


@pytest.mark.browser
@pytest.mark.cellferry
class TestLabFar(BrowserTests):
    app = "lab"
    # They look at files of this machine.
    test_output_while_a_cell_runs = test_restart = test_wrong_target_is_shown = None

    def test_a_lost_link_is_shown_until_it_is_back(self, open_notebook, session_bed, pictures):
        page, path = open_notebook(("import time\nfor i in range(40):\n    print('tick', i)\n    time.sleep(0.5)", "left"))
        page.run_all()
        page.sees(0, "tick 3")
        session_bed.fault("cut", "node1")
        page.sees(0, "link to left lost, reconnecting")
        page.page.screenshot(path=pictures / "lab-lost-link.png")
        session_bed.fault("heal", "node1")
        page.sees(0, "tick 39")
        page.finished()
        page.page.screenshot(path=pictures / "lab-link-is-back.png")
        assert "lost" not in page.output(0).inner_text()
        saved = page.saved(path, lambda made: made.cells[0].execution_count)
        text = "".join(output.text for output in saved.cells[0].outputs if output.output_type == "stream")
        assert text == "".join(f"tick {i}\n" for i in range(40))
