"""Notebook 7, driven in headless Chromium."""

import pytest
from browser import BrowserTests


@pytest.mark.browser
class TestNotebook7(BrowserTests):
    app = "notebook"
