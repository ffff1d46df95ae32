"""The HTML report of a study: results/<study>/report.html, a single self-contained page."""

from __future__ import annotations
