"""The report of a study: results/<study>/report.html, one page that needs nothing else to be read."""

from __future__ import annotations
