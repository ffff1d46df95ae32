"""The table that most tests of figures start from."""

import pandas as pd
import pytest
from made_tables import study


@pytest.fixture
def table() -> pd.DataFrame:
    """Two widths, plain and aligned, one generator size, two judges."""
    return study()
