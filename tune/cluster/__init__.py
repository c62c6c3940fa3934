"""Machines that trials run on: this one or a Ray cluster's nodes, their checks, preparation and shared storage."""
