"""The same notebook under two kernels, cell by cell: what must be equal, and the little that may differ.

Only what differs between two runs of one and the same kernel is normalised: addresses, process ids in paths,
widget ids, timings and the folder of the run."""

import copy
import json
import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

# Each pattern starts with something rare, so that megabytes of base64 cost no more than one pass.
VARYING = [
    (re.compile(r"0x[0-9a-f]{6,16}\b"), "0xADDRESS"),
    (re.compile(r"/ipykernel_\d+/\d+\.py"), "/CELL.py"),
    (re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])"), "MODEL"),
    (re.compile(r"[\d.]+(?:e[+-]?\d+)? ?(?:ns|[µμu]s|ms|s|min)\b"), "TIME"),
    (re.compile(r"\d\d:\d\d(?:<|&lt;)[\d:?]+,\s+[\d.?]+(?:it/s|s/it)"), "RATE"),
]


def notebook(*cells, metadata=True, parameters=None, kernel_name="python3"):
    """A notebook from cells: a source, or a pair of source and target name or metadata.

    Without `metadata` the targets are left out: the notebook as an ordinary kernel would run it."""
    made = nbformat.v4.new_notebook()
    made.metadata["kernelspec"] = {"name": kernel_name, "display_name": kernel_name, "language": "python"}
    made.metadata["language_info"] = {"name": "python"}
    for number, cell in enumerate(cells):
        source, target = cell if isinstance(cell, tuple) else (cell, None)
        new = nbformat.v4.new_code_cell(source, id=f"cell-{number}")
        if target and metadata:
            new.metadata.update(target if isinstance(target, dict) else {"workflow": {"target": target}})
        if parameters == number:
            new.metadata["tags"] = ["parameters"]
        made.cells.append(new)
    return made


def execute(made, kernel_name, folder, allow_errors=True, **options):
    """Runs a copy of `made` by nbclient in `folder` (created), as a file there, and returns the copy."""
    made = copy.deepcopy(made)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "notebook.ipynb"
    nbformat.write(made, path)
    client = NotebookClient(
        made,
        timeout=60,
        kernel_name=kernel_name,
        allow_errors=allow_errors,
        resources={"metadata": {"path": str(folder)}},
        **options,
    )
    client.execute(env={**os.environ, "CELLFERRY_NOTEBOOK": str(path)})
    return made


def normalised(value, folder):
    """`value` (any JSON) without what varies from run to run."""
    if isinstance(value, str):
        value = value.replace(str(folder), "FOLDER")
        for pattern, word in VARYING:
            value = pattern.sub(word, value)
        return value
    if isinstance(value, list):
        return [normalised(item, folder) for item in value]
    if isinstance(value, dict):
        return {normalised(key, folder): normalised(item, folder) for key, item in value.items()}
    return value


def threads_of(outputs):
    """Outputs as one sequence for each stream: its text, joined, in its place among the other outputs.

    How stdout and stderr mix, and where a stream is cut, is up to timing in ipykernel itself."""
    threads = {}
    for stream in ("stdout", "stderr"):
        thread = []
        for output in outputs:
            if output["output_type"] != "stream":
                thread.append(dict(output))
            elif output["name"] == stream:
                if thread and thread[-1].get("output_type") == "stream":
                    thread[-1]["text"] += output["text"]
                else:
                    thread.append({"output_type": "stream", "text": output["text"]})
        threads[stream] = thread
    return threads


def assert_same_outputs(expected, actual, folders, label=""):
    """Fails unless two lists of outputs are those of one run."""
    folder_expected, folder_actual = folders
    wanted = normalised(threads_of(expected), folder_expected)
    got = normalised(threads_of(actual), folder_actual)
    assert got == wanted, f"{label}\nexpected {shown(wanted)}\ngot      {shown(got)}"


def shown(value):
    """`value` for a message, cut to what a person reads."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return text if len(text) < 6000 else text[:3000] + "\n…\n" + text[-3000:]


def assert_same_notebooks(expected, actual, folders):
    """Fails unless two executed notebooks agree, cell by cell, in outputs, counts and widgets."""
    wanted = [cell for cell in expected.cells if cell.cell_type == "code"]
    got = [cell for cell in actual.cells if cell.cell_type == "code"]
    assert len(got) == len(wanted)
    for number, (one, other) in enumerate(zip(wanted, got, strict=True)):
        label = f"cell {number}: {one.source[:200]!r}"
        assert_same_outputs(one.outputs, other.outputs, folders, label)
        assert other.execution_count == one.execution_count, label
    assert widget_states(actual, folders[1]) == widget_states(expected, folders[0])


def widget_states(made, folder):
    """The widget models that a client saved with a notebook, in an order of their own."""
    saved = made.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    return sorted(json.dumps(normalised(state, folder), sort_keys=True) for state in saved.get("state", {}).values())


def assert_same_as_ipykernel(made, kernel_name, folder, plain=None, **options):
    """Runs `made` under `kernel_name` and its `plain` form (or itself) under ipykernel; fails where they differ.

    Returns the executed notebook of `kernel_name`."""
    folders = Path(folder) / "ipykernel", Path(folder) / "under-test"
    expected = execute(plain or made, "python3", folders[0], **options)
    actual = execute(made, kernel_name, folders[1], **options)
    assert_same_notebooks(expected, actual, folders)
    return actual
