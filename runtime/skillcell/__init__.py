"""Skillcell runs third-party Skills in isolated containers over gRPC, and meters every call."""

__version__ = "0.1.0"
