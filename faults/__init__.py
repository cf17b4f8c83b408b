"""The fault suite: kills, power cuts, full disks, limits, clocks, load; on real files and hosts (`make faults`)."""
