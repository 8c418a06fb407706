"""One notebook over many machines, by the clients that run notebook files."""

import nbformat
import pytest
from test_batch import CLIENTS
from workflow import CELLS, LAST, targets
from world import write_targets


@pytest.mark.timeout(300)
@pytest.mark.parametrize("client", ["nbconvert", "papermill"])
def test_a_notebook_over_home_a_host_and_a_cluster(cluster, tmp_path, kernel_name, client):
    write_targets(tmp_path / "cellferry.toml", targets(cluster))
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(source, metadata=metadata) for source, metadata in CELLS]
    made.metadata.kernelspec = {"name": kernel_name, "display_name": "Cellferry", "language": "python"}
    made.cells[0].metadata.tags = ["parameters"]
    path = tmp_path / "note.ipynb"
    nbformat.write(made, path)
    done = nbformat.read(CLIENTS[client](path, kernel_name), 4)
    printed = ["".join(output.text for output in cell.outputs if output.output_type == "stream") for cell in done.cells]
    assert printed[-1] == LAST, printed
    assert not [output for cell in done.cells for output in cell.outputs if output.output_type == "error"]
