"""Scheduling: when a call may have a sandbox, and the lease of one."""
