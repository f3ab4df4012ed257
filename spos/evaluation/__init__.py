"""Recalibrate BatchNorm, measure accuracy."""
