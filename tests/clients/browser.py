"""JupyterLab and Notebook 7 in headless Chromium: a driver, and the tests that hold for both.

What is saved to disk by the application is what is compared; the page is only asked for what a user would see."""

import json
import shutil
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import nbformat
import pytest
from compare import assert_same_notebooks, execute, notebook
from playwright.sync_api import sync_playwright
from processes import wait_until

LEFT, RIGHT = "left", "right"
PATIENCE = 30_000  # milliseconds

WAIT_FOR = "import os, time\nwhile not os.path.exists('{gate}'):\n    time.sleep(0.01)\n"


def fetched(url, method="GET"):
    """The body of the answer to a request, within a few seconds or an `OSError`."""
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=20) as reply:
        return reply.read()


@contextmanager
def server(app, folder, log):
    """A server of `app` for `folder`; yields its address."""
    command = [
        sys.executable, "-m", "jupyterlab" if app == "lab" else "notebook", "--no-browser", "--allow-root", "--port=0",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True",
        "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
        "--LabApp.news_url=", f"--ServerApp.root_dir={folder}", f"--LabServerApp.workspaces_dir={log.parent}/workspaces",
    ]  # fmt: skip
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)

    def address():
        assert process.poll() is None, log.read_text()
        for file in log.parent.glob("jupyter-run/jpserver-*.json"):
            try:
                url = json.loads(file.read_text())["url"]
                fetched(url + "api/status")
                return url
            except (OSError, ValueError):
                return None
        return None

    try:
        yield wait_until(address, 60, lambda: f"a server: {log.read_text()}")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Page:
    """One open notebook."""

    def __init__(self, page, address):
        self.page = page
        self.address = address

    def ready(self):
        """Waits until the page is connected to an idle kernel: the indicator alone also says idle before there is one."""

        def connected():
            kernels = [session["kernel"] for session in json.loads(fetched(self.address + "api/sessions"))]
            return any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels)

        wait_until(connected, PATIENCE / 1000, "a connected, idle kernel")
        self.idle()

    def idle(self):
        self.page.wait_for_selector(
            '.jp-Notebook-ExecutionIndicator[data-status="idle"]', state="attached", timeout=PATIENCE
        )

    def menu(self, *labels):
        """Clicks through the menu bar."""
        first, *rest = labels
        self.page.locator("#jp-MainMenu, #menu-panel").get_by_role("menuitem", name=first, exact=True).first.click()
        for label in rest:
            self.page.locator(f'.lm-Menu-item:has(.lm-Menu-itemLabel:text-is("{label}"))').last.click()

    def run_all(self):
        self.menu("Run", "Run All Cells")

    def prompts(self):
        return self.page.locator(".jp-CodeCell .jp-InputArea-prompt").all_inner_texts()

    def finished(self):
        """Waits until every code cell has its number."""
        self.page.wait_for_function(
            """() => {
                const all = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputArea-prompt')];
                return all.length > 0 && all.every(p => /\\[\\d+\\]/.test(p.innerText));
            }""",
            timeout=PATIENCE,
        )
        self.idle()

    def output(self, cell):
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(cell).locator(".jp-OutputArea").first

    def sees(self, cell, text):
        """Waits until `text` is shown below `cell`."""
        self.output(cell).get_by_text(text).first.wait_for(timeout=PATIENCE)

    def save(self):
        self.page.keyboard.press("Escape")
        self.menu("File", "Save Notebook")

    def saved(self, path, condition):
        """Saves until the file holds what `condition` wants, and returns it."""

        def read():
            try:
                made = nbformat.read(path, 4)
            except nbformat.reader.NotJSONError:  # half written
                return None
            return made if condition(made) else None

        self.save()
        return wait_until(read, 20, f"a saved {path}")

    def dialog(self, button):
        self.page.locator(f".jp-Dialog button:has-text('{button}')").last.click()


class BrowserTests:
    """What holds in each application; a subclass says which."""

    app = None

    @pytest.fixture(scope="class")
    def desk(self, module_world, tmp_path_factory):
        """A server and a browser that the tests of a class share. Yields the address and the browser."""
        root = tmp_path_factory.getbasetemp()
        with server(self.app, root, module_world / "server.log") as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
                args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
            )
            try:
                yield address, browser
            finally:
                browser.close()

    @pytest.fixture
    def open_notebook(self, desk, request, tmp_path, tmp_path_factory, targets, kernel_name, pictures):
        """Opens cells as a notebook under the kernel under test; takes a picture at the end."""
        address, browser = desk
        folder = tmp_path / "served"
        folder.mkdir()
        page = browser.new_page(viewport={"width": 1280, "height": 1400})

        def open_notebook(*cells):
            path = folder / "notebook.ipynb"
            nbformat.write(notebook(*cells, kernel_name=kernel_name), path)
            kind = "lab/tree" if self.app == "lab" else "notebooks"
            page.goto(f"{address}{kind}/{path.relative_to(tmp_path_factory.getbasetemp())}?reset")
            opened = Page(page, address)
            opened.ready()
            return opened, path

        try:
            yield open_notebook
        finally:
            page.screenshot(path=pictures / f"{self.app}-{request.node.originalname}.png")
            page.close()
            for session in json.loads(fetched(address + "api/sessions")):
                fetched(f"{address}api/sessions/{session['id']}", method="DELETE")

    def test_run_all_as_in_ipykernel(self, open_notebook, tmp_path):
        cells = [
            "import pandas as pd\nimport matplotlib.pyplot as plt\nn = 3",
            ("table = pd.DataFrame({'a': range(n)})\nprint('left')\ntable", LEFT),
            ("total = int(table.a.sum())\nprint('right', total)", RIGHT),
            "plt.plot(table.a)\nplt.title(str(total))",
            "from IPython.display import HTML, display\nh = display('one', display_id='d')\nh.update('two')\nHTML('<b>x</b>')",
            ("total", LEFT),
        ]
        page, path = open_notebook(*cells)
        page.run_all()
        page.finished()
        actual = page.saved(path, lambda made: all(cell.execution_count for cell in made.cells))
        expected = execute(notebook(*cells, metadata=False), "python3", tmp_path / "ipykernel")
        assert_same_notebooks(expected, actual, (tmp_path / "ipykernel", path.parent))

    def test_error_stops_the_run(self, open_notebook, tmp_path):
        cells = ["1", ("{}['missing']", LEFT), "print('never')"]
        page, path = open_notebook(*cells)
        page.run_all()
        page.sees(1, "KeyError")
        page.idle()
        actual = page.saved(path, lambda made: made.cells[1].outputs)
        assert actual.cells[2].outputs == [] and actual.cells[2].execution_count is None
        expected = execute(notebook(*cells[:2], metadata=False), "python3", tmp_path / "ipykernel")
        actual.cells = actual.cells[:2]
        assert_same_notebooks(expected, actual, (tmp_path / "ipykernel", path.parent))

    def test_output_while_a_cell_runs(self, open_notebook, tmp_path):
        gate = tmp_path / "gate"
        page, _ = open_notebook(
            ("print('be' 'fore')\n" + WAIT_FOR.format(gate=gate) + "print('af' 'ter')", LEFT), "print('ne' 'xt')"
        )
        page.run_all()
        page.sees(0, "before")
        assert "[*]" in page.prompts()[0].replace(" ", "")
        gate.touch()
        page.sees(0, "after")
        page.sees(1, "next")

    def test_interrupt(self, open_notebook):
        page, path = open_notebook(("kept = 1\nimport time\nprint('sleep' 'ing')\ntime.sleep(90)", LEFT))
        page.run_all()
        page.sees(0, "sleeping")
        page.menu("Kernel", "Interrupt Kernel")
        page.sees(0, "KeyboardInterrupt")
        page.finished()

    def test_input(self, open_notebook):
        page, path = open_notebook(("name = input('who? ')\nprint('hello', name)", LEFT), "name")
        page.run_all()
        box = page.page.locator(".jp-Stdin-input")
        box.wait_for(timeout=PATIENCE)
        box.fill("Ada")
        box.press("Enter")
        page.sees(0, "hello Ada")
        page.sees(1, "'Ada'")

    def test_restart(self, open_notebook):
        page, path = open_notebook("import os\nkept = 1\nprint('pid', os.getpid())", ("print('kept' in globals())", LEFT))
        page.run_all()
        page.finished()
        first = page.output(0).inner_text()
        page.menu("Kernel", "Restart Kernel and Clear Outputs of All Cells…")
        page.dialog("Restart")
        page.page.wait_for_function("() => !document.querySelector('.jp-Notebook .jp-OutputArea-output')")
        page.ready()
        page.run_all()
        page.finished()
        second = page.output(0).inner_text()
        assert first.startswith("pid") and second.startswith("pid") and first != second

    def test_widget(self, open_notebook):
        page, path = open_notebook(
            (
                "import ipywidgets as w\nbutton, label = w.Button(description='press'), w.Label('not yet')\n"
                "slider = w.IntSlider(value=3, max=9)\n"
                "def pressed(_):\n    label.value = f'pressed at {slider.value}'\n"
                "button.on_click(pressed)\nw.VBox([button, slider, label])",
                LEFT,
            ),
            "import ipywidgets\nipywidgets.Checkbox(description='home')",
        )
        page.run_all()
        page.finished()
        page.page.get_by_text("not yet", exact=True).wait_for(timeout=PATIENCE)
        track = page.page.locator(".widget-slider .noUi-target")
        track.click(position={"x": track.bounding_box()["width"] - 1, "y": 2})
        page.page.locator(".widget-readout").get_by_text("9").wait_for(timeout=PATIENCE)
        page.page.get_by_role("button", name="press").click()
        page.page.get_by_text("pressed at 9").wait_for(timeout=PATIENCE)
        # After a reload the page asks the kernel for its widgets, wherever they live.
        page.saved(path, lambda made: all(cell.execution_count for cell in made.cells))
        page.page.reload()
        page.ready()
        page.page.get_by_text("pressed at 9").wait_for(timeout=PATIENCE)
        track.click(position={"x": 1, "y": 2})
        page.page.locator(".widget-readout").get_by_text("0").wait_for(timeout=PATIENCE)
        page.page.get_by_role("button", name="press").click()
        page.page.get_by_text("pressed at 0").wait_for(timeout=PATIENCE)

    @pytest.mark.cellferry
    def test_wrong_target_is_shown(self, open_notebook, tmp_path):
        page, path = open_notebook((f"open({str(tmp_path / 'ran')!r}, 'w')", "lfet"), "1")
        page.run_all()
        page.sees(0, "lfet")
        assert not (tmp_path / "ran").exists()
