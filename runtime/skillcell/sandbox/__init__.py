"""Sandboxes: drivers that make them, the channel into them, and the supervisor that runs one call in one."""
