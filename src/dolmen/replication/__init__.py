"""Replication: make one store hold what another holds.

It is a function of two stores, any two: nothing is kept between runs, so a run
that was interrupted anywhere is simply run again.
"""

from dolmen.replication.group import replicate_group
from dolmen.replication.replicate import replicate
from dolmen.replication.report import Progress, Report

__all__ = ["Progress", "Report", "replicate", "replicate_group"]
