"""`make bench`: our jobs and deploys beside their peers, as ratios."""
