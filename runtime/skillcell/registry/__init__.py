"""Reads, checks, stores and finds Skills: folder or archive in, immutable version out.

The way of a publication is in `publish.py`: archive → frontmatter, manifest, discovery, schemas → dependencies →
store → catalogue.
"""
