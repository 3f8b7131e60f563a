"""Conversion to the formats of other tools."""
