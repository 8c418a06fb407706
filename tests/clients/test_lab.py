"""JupyterLab, driven in headless Chromium."""

import pytest
from browser import BrowserTests


@pytest.mark.browser
class TestLab(BrowserTests):
    app = "lab"
