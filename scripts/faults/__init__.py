"""What chairlift survives and what that costs: scripts/chaos, figures in docs/reliability.md."""
