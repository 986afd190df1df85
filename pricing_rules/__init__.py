"""What a call costs; pure: no I/O, no clock, imports nothing of ours."""
