"""One file for each claim of README, with peers measured in the same run. See README.md beside it."""
