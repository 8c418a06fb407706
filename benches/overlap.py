"""Steps that wait 2 s each, on as many targets: four that are independent, and one, then four, then one. Sent all at once
as Run All does, by nbconvert and by papermill; the peer runs the same cells without metadata.

The same notebook with waits of no length is timed too and taken off: it is the start-up of clients, kernels, and workers."""

import subprocess
import sys
import time

import nbformat
from common import Kernel, folder, report

SECONDS = 2
WIDTH = 4
TARGETS = "".join(
    f'[targets.t{k}]\ntype = "local"\npython = "{sys.executable}"\nworkdir = "{{folder}}"\n' for k in range(WIDTH)
)
PATTERNS = {
    # The cells with their targets, and how many steps follow one another.
    "independent": ([(f"import time\ntime.sleep({{wait}})\nr{k} = {k}", f"t{k}") for k in range(WIDTH)], 1),
    "diamond": (
        [
            ("import time\ntime.sleep({wait})\ndata = [1, 2, 3]", "t0"),
            *((f"time.sleep({{wait}})\nr{k} = sum(data) + {k}", f"t{k}") for k in range(WIDTH)),
            ("time.sleep({wait})\nprint(r0 + r1 + r2 + r3)", "t1"),
        ],
        3,
    ),
}


def notebook(cells, kernel, wait):
    made = nbformat.v4.new_notebook()
    made.metadata["kernelspec"] = {"name": kernel, "display_name": kernel, "language": "python"}
    for source, target in cells:
        cell = nbformat.v4.new_code_cell(source.format(wait=wait))
        if kernel == "cellferry":
            cell.metadata["workflow"] = {"target": target}
        made.cells.append(cell)
    return made


def run_all(path, kernel, cells, wait):
    client = Kernel(kernel, path)
    try:
        began = time.perf_counter()
        sent = {client.send(source.format(wait=wait), target if kernel == "cellferry" else None) for source, target in cells}
        client.wait(sent)
        return time.perf_counter() - began
    finally:
        client.close()


def by_command(*command):
    def run(path, kernel, cells, wait):
        nbformat.write(notebook(cells, kernel, wait), path / "n.ipynb")
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", *command], cwd=path, check=True, capture_output=True)
        return time.perf_counter() - began

    return run


WAYS = {
    "Run All": run_all,
    "nbconvert": by_command("nbconvert", "--to", "notebook", "--execute", "--output", "done.ipynb", "n.ipynb"),
    "papermill": by_command("papermill", "n.ipynb", "done.ipynb"),
}


def main():
    results = []
    with folder() as path:
        (path / "cellferry.toml").write_text(TARGETS.format(folder=path / "work"))
        for run in WAYS.values():
            # What a client loads for the first time is not start-up.
            run(path, "python3", PATTERNS["independent"][0], 0)
        for name, (cells, steps) in PATTERNS.items():
            for way, run in WAYS.items():
                took = {
                    kernel: run(path, kernel, cells, SECONDS) - run(path, kernel, cells, 0)
                    for kernel in ("cellferry", "python3")
                }
                # At most 1.15 of the time of the steps that must follow one another.
                bound = round(1.15 * steps / len(cells), 3)
                results.append(report(f"{len(cells)} steps, {name}: {way}", [took["cellferry"]], [took["python3"]], bound))
    return all(results)


if __name__ == "__main__":
    sys.exit(not main())
