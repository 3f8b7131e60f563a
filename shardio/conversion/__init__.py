"""Conversion to formats of other tools."""
