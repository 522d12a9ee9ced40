"""Admission: what may run, with which limits. Refusals happen here, before there is a record."""
