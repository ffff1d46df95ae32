"""The setting of a study: scale, data, device and name."""

from __future__ import annotations

import dataclasses

from study.core.compute import Compute
from study.plan.data_spec import DataSpec
from study.plan.scales import Scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that the options of a command resolve to, except the ablation."""

    scale: Scale
    data: DataSpec
    compute: Compute
    study: str
    missing: tuple[str, ...] = ()  # what the study needs and this machine lacks, one line each
