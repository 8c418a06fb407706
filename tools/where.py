"""Prints where each cell of an executed notebook ran, as its metadata says."""

import re
import sys

import nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
for cell in notebook.cells:
    if cell.cell_type != "code":
        continue
    line = re.search(r"^#\|\s*target:\s*(\S+)", cell.source, re.MULTILINE)
    target = line.group(1) if line else cell.metadata.get("workflow", {}).get("target", "home")
    first = next((text for text in cell.source.splitlines() if text.strip() and not text.startswith("#")), "")
    results = "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream").strip()
    print(f"[{cell.execution_count}] on {target:<6} {first[:60]}")
    for text in results.splitlines():
        print(f"      {text}")
