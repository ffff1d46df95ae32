"""A study's setting: at what size, on what data, on what device."""

from __future__ import annotations

import dataclasses

from study.core.compute import Compute
from study.plan.data_spec import DataSpec
from study.plan.scales import Scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What the options say but for the question: at what size, on what data, on what device, under what name."""

    scale: Scale
    data: DataSpec
    compute: Compute
    study: str
    missing: tuple[str, ...] = ()  # what is not here, one line each
