"""The program inside every sandbox: standard library alone, holds no secret, trusted with nothing."""
