"""The fault suite: kills, power cuts, full disks, limits, clocks, load; on real files and hosts (`make faults`)."""

import pytest

# What its checks compare is shown when they fail, as in a test module.
pytest.register_assert_rewrite("faults.world")
