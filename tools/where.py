"""Prints a table of the cells of an executed notebook: where each ran, with which values, and what it printed.

Usage: where.py NOTEBOOK LOG, where LOG is the kernel's stderr with CELLFERRY_LOG=cellferry=info."""

import json
import re
import sys

RAN = re.compile(r"cell \[(\d+)\] runs on `([^`]+)`(?:, with (.*))?$")


def printed(cell):
    """The last line that the cell printed, else the kind of its last output."""
    lines = [line for output in cell["outputs"] for line in "".join(output.get("text", "")).splitlines()]
    if lines:
        return lines[-1]
    for output in reversed(cell["outputs"]):
        return "a figure" if "image/png" in output.get("data", {}) else "".join(output["data"].get("text/plain", ""))
    return ""


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        cells = [cell for cell in json.load(file)["cells"] if cell["cell_type"] == "code"]
    with open(sys.argv[2], encoding="utf-8") as file:
        found = (RAN.search(re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()) for line in file)
        places = {int(match[1]): (match[2], match[3] or "") for match in found if match}
    print(f"\n{'cell':<6} {'ran on':<10} {'ended with':<62} values carried there")
    for cell in cells:
        target, carried = places.get(cell["execution_count"], ("?", ""))
        print(f"[{cell['execution_count']}]".ljust(6), f"{target:<10} {printed(cell)[:60]:<62} {carried.replace('`', '')}")
    if len(places) < len(cells):
        sys.exit("error: the log does not say of every cell where it ran")


main()
